"""DEIS: its integrals against the published form, orders, and the methods that two of its coordinates equal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_runner import START, mixture_x0, p1_error, run_table
from scipy.integrate import quad

import diffsample as ds
from diffsample import solvers

VP, FLOW = ds.VariancePreserving(), ds.FlowMatching()
METHODS = {"t": solvers.deis_t, "rho": solvers.deis_rho, "log-rho": solvers.deis_log_rho}
VARIABLE = {"t": lambda t: t, "rho": lambda t: np.exp(-VP.half_logsnr(t)), "log-rho": lambda t: -VP.half_logsnr(t)}


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("name", METHODS)
def test_deis_order_is_the_declared_one(name, order):
    grids = [ds.times.uniform_logsnr(VP, steps, stop=0.01, zero=False) for steps in (256, 512)]
    tables = [METHODS[name](VP, grid, order=order) for grid in grids]
    assert tables[0].about.order == order
    assert abs(np.log2(p1_error(tables[0]) / p1_error(tables[1])) - order) < 0.25


def published_integral(time, end, basis):
    """int_s^t (alpha_t / alpha_tau) kappa(tau) basis(tau) d tau of the VP process, kappa = beta / (2 sigma)."""

    def integrand(v):
        rate = VP.beta_min + v * (VP.beta_max - VP.beta_min)
        return VP.alpha(end) / VP.alpha(v) * rate / (2 * VP.sigma(v)) * basis(v)

    return quad(integrand, time, end, epsabs=1e-14, epsrel=1e-12, limit=200)[0]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("name", METHODS)
def test_deis_weights_are_the_published_integrals(name, order):
    grid, u = ds.times.quadratic(VP, 6, stop=1e-3, zero=False), VARIABLE[name]
    for part in (grid[: order + 1], grid[-order - 1 :]):
        nodes = part.t[:-1]

        def basis(v, node, nodes=nodes):
            return np.prod([(u(v) - u(q)) / (u(node) - u(q)) for q in nodes if q != node])

        expected = [published_integral(nodes[-1], part.t[-1], lambda v, p=p: basis(v, p)) for p in nodes]
        table = METHODS[name](VP, part, order=order)
        np.testing.assert_allclose(table.B[-1, 0, table.slot], expected, rtol=1e-8)


def test_deis_equals_its_relatives():
    grid = ds.times.karras(VP, 9, stop=0.02)
    for order in (1, 2, 3, 4):
        pairs = [
            (
                solvers.deis_log_rho(VP, grid, order=order),
                solvers.exp_multistep(VP, grid, order=order, noise_form=True),
            ),
            (solvers.deis_rho(VP, grid, order=order), solvers.lms(VP, grid, order=order)),
        ]
        for first, second in pairs:
            np.testing.assert_array_equal(first.B, second.B)
    base = run_table(solvers.ddim(VP, grid), mixture_x0, START)
    for method in METHODS.values():
        np.testing.assert_allclose(run_table(method(VP, grid, order=1), mixture_x0, START), base, atol=1e-12)


PROCESSES = [VP, ds.VarianceExploding(), ds.Cosine(), ds.SubVP(), ds.DiscreteBetas.linear()]


@pytest.mark.parametrize("process", PROCESSES, ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_deis_is_exact_on_a_point_mass(name, process):
    table = METHODS[name](process, ds.times.karras(process, 7))
    out = run_table(table, lambda x, level: np.full_like(x, 0.7), 3.0 * START)
    np.testing.assert_allclose(out, 0.7, atol=1e-10)


def test_last_step_into_zero():
    """First order in t and log rho, where the polynomial has no value at sigma = 0; rho keeps its order."""
    grid = ds.times.uniform(VP, 6)
    last = {name: np.count_nonzero(method(VP, grid).B[-1]) for name, method in METHODS.items()}
    assert last == {"t": 1, "rho": 3, "log-rho": 1}


def test_sampled_run_is_the_table():
    table = solvers.deis_t(VP, ds.times.quadratic(VP, 6))
    mixture = ds.exact.Mixture(np.array([0.3, 0.45, 0.25]), np.array([-1, 0.3, 1.1]), np.array([0.35, 0.25, 0.4]) ** 2)
    with jax.enable_x64(True):
        out = ds.sample(jax.random.key(0), solvers.linear(mixture, table), x=jnp.asarray(START))
    np.testing.assert_allclose(out, run_table(table, mixture_x0, START), atol=1e-12)


def test_bad_deis_arguments_are_named():
    grid = ds.times.uniform(VP, 6)
    with pytest.raises(ValueError, match="deis_t has orders 1 to 4, got order=5"):
        solvers.deis_t(VP, grid, order=5)
    with pytest.raises(ValueError, match="deis_log_rho has orders 1 to 4, got order=0"):
        solvers.deis_log_rho(VP, grid, order=0)
    for method in METHODS.values():
        with pytest.raises(ValueError, match="alpha = 0"):
            method(FLOW, [1.0, 0.5, 0.1])
