"""Runge-Kutta methods: measured orders, the law of DPM2-ancestral, flow Heun, and the published loops."""

import itertools

import jax
import numpy as np
import pytest
from numpy_runner import START, coordinate_gap, mixture_x0, p1_error, run_table

import diffsample as ds
from diffsample import solvers
from diffsample.exact.moments import Moments, output_moments
from diffsample.process import Level

VP, VE, FLOW = ds.VariancePreserving(), ds.VarianceExploding(), ds.FlowMatching()
NARROW = ds.VarianceExploding(sigma_min=0.1, sigma_max=80.0)
METHODS = {"heun": solvers.heun, "dpm2": solvers.dpm2, "kutta3": solvers.kutta3, "rk4": solvers.rk4}
PROCESSES = [VP, VE, ds.Cosine(), ds.SubVP(), ds.DiscreteBetas.linear()]


@pytest.mark.parametrize("grid", [ds.times.uniform_logsnr, ds.times.uniform])
@pytest.mark.parametrize("name", METHODS)
def test_measured_order_is_the_declared_one(name, grid):
    coarse, fine = (METHODS[name](VP, grid(VP, steps, stop=0.01, zero=False)) for steps in (256, 512))
    assert abs(np.log2(p1_error(coarse) / p1_error(fine)) - fine.about.order) < 0.1


@pytest.mark.parametrize("process", PROCESSES, ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_solver_is_exact_on_a_point_mass(name, process):
    x = START * float(process.sigma(process.t_start))
    table = METHODS[name](process, ds.times.karras(process, 7))
    np.testing.assert_allclose(run_table(table, lambda x, level: 0 * x + 0.7, x), 0.7, atol=1e-10)


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_the_same_in_all_coordinates(name):
    assert coordinate_gap(METHODS[name]) < 1e-10


def test_noise_is_the_same_in_all_coordinates():
    assert coordinate_gap(lambda p, g: solvers.dpm2(p, g, eta=0.8)) < 1e-10
    assert coordinate_gap(lambda p, g: solvers.heun(p, g, churn=2.0, churn_noise=1.1)) < 1e-10
    assert coordinate_gap(lambda p, g: solvers.euler(p, g, churn=2.0, churn_noise=1.1)) < 1e-10
    assert coordinate_gap(solvers.consistency_multistep) < 1e-10


@pytest.mark.parametrize(("name", "calls"), [("heun", 2), ("dpm2", 2), ("kutta3", 3), ("rk4", 4)])
def test_last_step_into_zero_is_one_call(name, calls):
    assert METHODS[name](VP, ds.times.karras(VP, 9)).calls == calls * 8 + 1
    table = METHODS[name](FLOW, [0.9, 0.0])
    np.testing.assert_allclose(run_table(table, mixture_x0, START), mixture_x0(START, FLOW.level(0.9)), rtol=1e-13)


def test_dpm2_ancestral_has_the_published_law():
    expected = (4.483e-2, 1.052e-2, 2.556e-3, 6.305e-4, 1.566e-4, 3.902e-5)  # specs/solvers.md, 10.4
    for steps, error in zip((16, 32, 64, 128, 256, 512), expected, strict=True):
        grid = ds.times.uniform_logsnr(NARROW, steps, start=10.0, zero=False)
        law = output_moments(solvers.dpm2(NARROW, grid, eta=1.0), Moments(0.0, 0.25), Moments(0.0, 100.25))
        assert abs(law.variance / 0.26 - 1) == pytest.approx(error, rel=2e-4)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_dpm2_is_the_published_loop(eta):
    def slope(x, sigma):
        return (x - mixture_x0(x, Level(sigma, 1.0, sigma))) / sigma

    grid = ds.times.karras(VE, 7, zero=False)
    draws = np.random.default_rng(0).standard_normal((7, 9))
    x = START * 80
    for i, (s, t) in enumerate(zip(grid.t[:-1], grid.t[1:], strict=True)):
        up = eta * t * (1 - t**2 / s**2) ** 0.5
        down = (t**2 - up**2) ** 0.5
        middle = np.exp((np.log(s) + np.log(down)) / 2)
        half = x + (middle - s) * slope(x, s)
        x = x + (down - s) * slope(half, middle) + up * draws[i]
    spaced = np.zeros((15, 9))
    spaced[2::2] = draws
    out = run_table(solvers.dpm2(VE, grid, eta=eta), mixture_x0, START * 80, spaced)
    np.testing.assert_allclose(out, x, rtol=1e-11, atol=1e-11)


def test_flow_heun_is_heun_on_the_velocity():
    def velocity(x, t):
        return (x - mixture_x0(x, Level(t, 1 - t, t))) / t

    times = np.linspace(1.0, 0.1, 8).tolist()
    x = START
    for s, t in itertools.pairwise(times):
        left = velocity(x, s)
        x = x + (t - s) * (left + velocity(x + (t - s) * left, t)) / 2
    np.testing.assert_allclose(run_table(solvers.flow_heun(FLOW, times), mixture_x0, START), x, atol=1e-13)
    clean = run_table(solvers.flow_heun(FLOW, [*times, 0.0]), mixture_x0, START)
    np.testing.assert_allclose(clean, mixture_x0(x, FLOW.level(0.1)), atol=1e-13)


def test_flow_heun_is_of_second_order():
    exact = run_table(solvers.flow_heun(FLOW, np.linspace(1.0, 0.1, 1025).tolist()), mixture_x0, START)
    errors = [
        np.abs(
            run_table(solvers.flow_heun(FLOW, np.linspace(1.0, 0.1, n + 1).tolist()), mixture_x0, START) - exact
        ).max()
        for n in (32, 64)
    ]
    assert abs(np.log2(errors[0] / errors[1]) - 2) < 0.1


def test_rk4_runs_on_the_device():
    sampler = solvers.linear(ds.exact.PointMass(np.array(0.7)), solvers.rk4(VP, ds.times.uniform_logsnr(VP, 4)))
    np.testing.assert_allclose(ds.sample(jax.random.key(0), sampler, (4,)), 0.7, atol=1e-4)


@pytest.mark.parametrize("solver", METHODS.values())
def test_start_at_pure_noise_is_refused(solver):
    with pytest.raises(ValueError, match=r"cannot start at alpha = 0"):
        solver(FLOW, [1.0, 0.5, 0.0])


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"churn_min=3.0 must not lie above churn_max=1.0"):
        solvers.heun(VE, [9.0, 1.0], churn=4.0, churn_min=3.0, churn_max=1.0)
    with pytest.raises(ValueError, match="churn=nan"):
        solvers.heun(VE, [9.0, 1.0], churn=float("nan"))
    with pytest.raises(ValueError, match=r"eta=-0.1"):
        solvers.dpm2(VE, [9.0, 1.0], eta=-0.1)
    with pytest.raises(TypeError, match="use heun"):
        solvers.flow_heun(VE, [9.0, 1.0])  # type: ignore[arg-type]
