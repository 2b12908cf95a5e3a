"""Stochastic multistep methods: weak errors of 10.4 without a draw, the ODE limit, noise shared with the corrector."""

import jax
import numpy as np
import pytest
from numpy_runner import START, mixture_x0, p1_error, run_table
from scipy.integrate import quad

import diffsample as ds
from diffsample import solvers
from diffsample.exact.moments import Moments, output_moments

VP, FLOW = ds.VariancePreserving(), ds.FlowMatching()
NARROW = ds.VarianceExploding(sigma_min=0.1, sigma_max=80.0)
GAUSSIAN = Moments(0.0, 0.25)
METHODS = {
    "1": lambda p, g: solvers.sde_dpmpp(p, g, order=1),
    "2-midpoint": solvers.sde_dpmpp,
    "2-heun": lambda p, g: solvers.sde_dpmpp(p, g, heun=True),
    "3": lambda p, g: solvers.sde_dpmpp(p, g, order=3),
    "2-eta": lambda p, g: solvers.sde_dpmpp(p, g, eta=0.3),
    "sa11": lambda p, g: solvers.sa_solver(p, g, predictor=1, corrector=1),
    "sa30": lambda p, g: solvers.sa_solver(p, g, corrector=0),
    "sa33": lambda p, g: solvers.sa_solver(p, g, corrector=3),
    "sa34": solvers.sa_solver,
    "sa33-few": lambda p, g: solvers.sa_solver(p, g, corrector=3, few_steps=True),
    "sa33-tau": lambda p, g: solvers.sa_solver(p, g, corrector=3, tau=lambda s, t: float(t.t < 5.0)),
}
WEAK = {  # |variance / 0.26 - 1| for N = 16, 32, ..., 512 (specs/solvers.md, 10.4)
    "1": (2.320e-1, 1.264e-1, 6.610e-2, 3.381e-2, 1.710e-2, 8.599e-3),
    "2-midpoint": (1.376e-2, 4.438e-3, 1.175e-3, 2.993e-4, 7.535e-5, 1.890e-5),
    "2-heun": (4.495e-2, 1.168e-2, 2.907e-3, 7.229e-4, 1.801e-4, 4.496e-5),
    "3": (2.923e-2, 5.163e-3, 1.124e-3, 2.643e-4, 6.422e-5, 1.584e-5),
}


def weak_error(table):
    return abs(output_moments(table, GAUSSIAN, Moments(0.0, 100.25)).variance / 0.26 - 1)


@pytest.mark.parametrize("name", WEAK)
def test_variance_of_gaussian_data(name):
    for steps, expected in zip((16, 32, 64, 128, 256, 512), WEAK[name], strict=True):
        grid = ds.times.uniform_logsnr(NARROW, steps, start=10.0, zero=False)
        assert weak_error(METHODS[name](NARROW, grid)) == pytest.approx(expected, rel=5e-4)


@pytest.mark.parametrize("name", METHODS)
def test_weak_order_is_the_declared_one(name):
    tables = [METHODS[name](NARROW, ds.times.uniform_logsnr(NARROW, n, start=10.0, zero=False)) for n in (256, 512)]
    assert abs(np.log2(weak_error(tables[0]) / weak_error(tables[1])) - tables[0].about.order) < 0.25


@pytest.mark.parametrize(("predictor", "corrector"), [(1, 0), (2, 0), (3, 0), (1, 1), (3, 1), (1, 2), (2, 2), (2, 3)])
def test_sa_solver_order_on_the_ode_is_the_declared_one(predictor, corrector):
    tables = [
        solvers.sa_solver(
            VP, ds.times.uniform_logsnr(VP, n, stop=0.01, zero=False), predictor=predictor, corrector=corrector, tau=0.0
        )
        for n in (256, 512)
    ]
    assert tables[0].noise == "never"
    assert abs(np.log2(p1_error(tables[0]) / p1_error(tables[1])) - tables[0].about.order) < 0.25


@pytest.mark.parametrize("tau", [0.0, 0.6, 1.0, 1.7])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_mean_is_exact_where_x0_is_a_polynomial(order, tau):
    grid, degree = ds.times.karras(VP, 6, stop=0.05, zero=False), order - 1
    before, after = (
        run_table(
            solvers.sa_solver(VP, part, predictor=order, corrector=0, tau=tau),
            lambda x, level: np.full_like(x, np.log(level.alpha / level.sigma) ** degree),
            START,
        )
        for part in (grid[:-1], grid)
    )
    rate, (start, end) = 1 + tau**2, grid.half_logsnr[-2:]
    integral = quad(lambda u: rate * np.exp(rate * (u - end)) * u**degree, start, end, epsabs=1e-14)[0]
    carry = grid.sigma[-1] / grid.sigma[-2] * np.exp(-(tau**2) * (end - start))
    np.testing.assert_allclose(after, carry * before + grid.alpha[-1] * integral, atol=1e-12)


def sa_loop(grid, draws, tau, predictor, corrector):
    """SA-Solver step by step, with numerical integrals."""
    lam, alpha, sigma = grid.half_logsnr, grid.alpha, grid.sigma
    rate, x, predicted, found = 1 + tau**2, START, START, []

    def move(x, i, nodes, outputs, z):
        """From level i to i + 1: the integral of the polynomial through the outputs at the nodes, and noise."""
        h = lam[i + 1] - lam[i]
        carry, spread = np.exp(-(tau**2) * h) * sigma[i + 1] / sigma[i], np.sqrt(1 - np.exp(-2 * tau**2 * h))
        x = carry * x + sigma[i + 1] * spread * z
        for p, output in zip(nodes, outputs, strict=True):

            def integrand(u, p=p):
                basis = np.prod([(u - lam[q]) / (lam[p] - lam[q]) for q in nodes if q != p])
                return rate * np.exp(rate * (u - lam[i + 1])) * basis

            x = x + alpha[i + 1] * quad(integrand, lam[i], lam[i + 1], epsabs=1e-14)[0] * output
        return x

    for i in range(grid.steps):
        found.append(mixture_x0(predicted, ds.Level(None, alpha[i], sigma[i])))
        if i:
            nodes = range(i, max(i - corrector, -1), -1)
            x = move(x, i - 1, nodes, [found[j] for j in nodes], draws[i])
        nodes = range(i, max(i - predictor, -1), -1)
        predicted = move(x, i, nodes, [found[j] for j in nodes], draws[i + 1])
    return predicted


@pytest.mark.parametrize(("tau", "predictor", "corrector"), [(0.5, 2, 3), (1.0, 3, 3), (1.0, 1, 3)])
def test_predictor_and_corrector_share_the_noise(tau, predictor, corrector):
    grid = ds.times.karras(VP, 6, stop=0.05, zero=False)
    draws = np.random.default_rng(3).normal(size=(grid.steps + 1, *START.shape))
    table = solvers.sa_solver(VP, grid, predictor=predictor, corrector=corrector, tau=tau)
    scale = np.abs(table.c[1:]).sum(1) / np.abs(table.c[1:, 0])  # a draw enters both registers alike
    np.testing.assert_allclose(scale, 2.0)
    expected = sa_loop(grid, draws, tau, predictor, corrector)
    np.testing.assert_allclose(run_table(table, mixture_x0, START, draws), expected, atol=1e-10)


def test_stochastic_methods_contain_their_relatives():
    grid = ds.times.karras(VP, 9, stop=0.02)
    pairs = [
        (solvers.sde_dpmpp(VP, grid, eta=0.0), solvers.dpmpp(VP, grid)),
        (solvers.sde_dpmpp(VP, grid, eta=0.0, heun=True), solvers.dpmpp(VP, grid, taylor=True)),
        (solvers.sde_dpmpp(VP, grid, eta=0.0, order=3), solvers.dpmpp(VP, grid, order=3, taylor=True)),
        (solvers.sde_dpmpp(VP, grid, heun=True), solvers.sa_solver(VP, grid, predictor=2, corrector=0)),
        (
            solvers.sde_dpmpp(VP, grid, order=1, eta=0.49),
            solvers.sa_solver(VP, grid, predictor=1, corrector=0, tau=0.7),
        ),
    ]
    for first, second in pairs:
        for name in ("A", "B", "c"):
            np.testing.assert_allclose(getattr(first, name), getattr(second, name), atol=1e-12)
    draws = np.random.default_rng(0).normal(size=(grid.steps + 1, *START.shape))
    ancestral = run_table(solvers.ddim(VP, grid, eta=1.0), mixture_x0, START, draws)
    np.testing.assert_allclose(run_table(METHODS["1"](VP, grid), mixture_x0, START, draws), ancestral, atol=1e-12)


def test_tau_may_depend_on_the_level():
    grid = ds.times.uniform(VP, 10, stop=0.001)
    table = solvers.sa_solver(VP, grid, tau=lambda s, t: float(0.2 <= t.t <= 0.8))
    drawing = np.abs(table.c).sum(1)[1:] > 0
    np.testing.assert_array_equal(drawing, (grid.t[1:] >= 0.2) & (grid.t[1:] <= 0.8))
    still = solvers.sa_solver(VP, ds.times.uniform(VP, 10, zero=False), few_steps=True)
    assert not still.c[-1].any() and still.c[-2].any()


PROCESSES = [VP, ds.VarianceExploding(), ds.Cosine(), ds.SubVP(), ds.DiscreteBetas.linear()]


@pytest.mark.parametrize("process", PROCESSES, ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_stochastic_method_is_exact_on_a_point_mass(name, process):
    table = METHODS[name](process, ds.times.karras(process, 7))
    draws = np.random.default_rng(1).normal(size=(table.rows + 1, *START.shape))
    out = run_table(table, lambda x, level: np.full_like(x, 0.7), 3.0 * START, draws)
    np.testing.assert_allclose(out, 0.7, atol=1e-10)


@pytest.mark.parametrize("name", METHODS)
def test_stochastic_method_starts_from_pure_noise(name):
    """At alpha = 0 the first step is first order: the exact law of x_t given x0, and nothing of it is remembered."""
    table = METHODS[name](FLOW, [1.0, 0.7, 0.4])
    after = output_moments(METHODS[name](FLOW, [1.0, 0.7]), Moments(0.5, 0.0), Moments(0.0, 1.0))
    np.testing.assert_allclose([after.mean, after.variance], [0.3 * 0.5, 0.7**2], rtol=1e-12)
    assert np.isfinite(output_moments(table, Moments(0.5, 0.3), Moments(0.0, 1.0)).variance)


def test_sampled_moments_agree_with_propagated_ones():
    table = solvers.sa_solver(VP, ds.times.karras(VP, 6))
    sampler = solvers.linear(ds.exact.Gaussian(np.array(1.5), np.array(0.3)), table)
    x = np.asarray(ds.sample(jax.random.key(7), sampler, (40_000,)), np.float64)
    level = VP.level(1.0)
    expected = output_moments(table, Moments(1.5, 0.3), Moments(0.0, float(level.sigma) ** 2))
    assert abs(x.mean() - expected.mean) < 5 * np.sqrt(expected.variance / x.size)  # false alarm 6e-7
    assert abs(x.var() / expected.variance - 1) < 5 * np.sqrt(2 / x.size)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda g: solvers.sde_dpmpp(VP, g, order=4), "sde_dpmpp has orders 1 to 3, got order=4"),
        (lambda g: solvers.sde_dpmpp(VP, g, eta=-0.1), "eta=-0.1 must be a finite number >= 0"),
        (lambda g: solvers.sa_solver(VP, g, predictor=0), "predictor has orders 1 to 4, got order=0"),
        (lambda g: solvers.sa_solver(VP, g, corrector=6), "corrector=6"),
        (lambda g: solvers.sa_solver(VP, g, tau=float("inf")), "tau=inf"),
        (lambda g: solvers.sa_solver(VP, g, tau=lambda s, t: s.t - 0.5), r"tau=-0\.\d+ \(from t = 0\.\d+ to 0"),
    ],
)
def test_bad_stochastic_arguments_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build(ds.times.uniform(VP, 6))
