"""Singlestep methods of the ODE and the SDE: laws of specs/solvers.md 10.4, orders, identities, published loops."""

import dataclasses

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
ODE = {
    "dpm-2": solvers.dpm_singlestep,
    "dpm-3": lambda p, g: solvers.dpm_singlestep(p, g, orders=3),
    "dpm-3-r": lambda p, g: solvers.dpm_singlestep(p, g, orders=3, r1=0.2),
    "dpmpp-2": solvers.dpmpp_singlestep,
    "dpmpp-2-r": lambda p, g: solvers.dpmpp_singlestep(p, g, r1=0.8),
    "dpmpp-2-r1": lambda p, g: solvers.dpmpp_singlestep(p, g, r1=1.0),
    "dpmpp-3": lambda p, g: solvers.dpmpp_singlestep(p, g, orders=3),
    "dpmpp-3-r": lambda p, g: solvers.dpmpp_singlestep(p, g, orders=3, r2=0.9),
    "dpmpp-3-1": lambda p, g: solvers.dpmpp_singlestep(p, g, orders=[3] * (g.steps - 1) + [1]),
    "dpmpp-3-2": lambda p, g: solvers.dpmpp_singlestep(p, g, orders=[3] * (g.steps - 1) + [2]),
}
SDE = {
    "dpmpp_2s_ancestral": solvers.dpmpp_2s_ancestral,
    "dpmpp_sde": solvers.dpmpp_sde,
    "seeds2": solvers.seeds2,
    "seeds2-0.3": lambda p, g: solvers.seeds2(p, g, c2=0.3),
    "dpmpp_sde-0.3": lambda p, g: solvers.dpmpp_sde(p, g, r=0.3),
    "dpmpp_sde-eta": lambda p, g: solvers.dpmpp_sde(p, g, eta=0.5),
    "dpmpp_2s_ancestral-eta": lambda p, g: solvers.dpmpp_2s_ancestral(p, g, eta=0.5),
    "seeds2-1": lambda p, g: solvers.seeds2(p, g, c2=1.0),
}
ALL = {**ODE, **SDE}


@pytest.mark.parametrize("name", ODE)
def test_measured_order_is_the_declared_one(name):
    def table(steps):
        return ODE[name](VP, ds.times.uniform_logsnr(VP, steps, stop=0.01, zero=False))

    measured = np.log2(p1_error(table(256)) / p1_error(table(512)))
    assert abs(measured - table(256).about.order) < 0.15


@pytest.mark.parametrize("process", [VP, VE, ds.Cosine(), ds.SubVP(), ds.DiscreteBetas.linear()], ids=str)
@pytest.mark.parametrize("name", ALL)
def test_solver_is_exact_on_a_point_mass(name, process):
    x = START * float(process.sigma(process.t_start))
    table = ALL[name](process, ds.times.karras(process, 7))
    draws = np.random.default_rng(0).standard_normal((table.rows + 1, 9))
    np.testing.assert_allclose(run_table(table, lambda x, level: 0 * x + 0.7, x, draws), 0.7, atol=1e-10)


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("dpmpp-3-1", "dpmpp-3-2")])
def test_methods_are_the_same_in_all_coordinates(name):
    assert coordinate_gap(ALL[name]) < 1e-10


def test_third_order_is_exact_where_the_output_is_linear_in_half_logsnr():
    grid = ds.times.custom(VP, [0.9, 0.2])
    (_, alpha_s, sigma_s), (_, alpha, sigma) = (VP.level(t) for t in grid.t)
    start, end = np.log(alpha_s / sigma_s), np.log(alpha / sigma)

    def line(level):
        return 0.3 - 0.8 * np.log(level.alpha / level.sigma)

    def x0(x, level):
        return 0 * x + line(level)

    def x0_of_eps(x, level):
        return (x - level.sigma * line(level)) / level.alpha

    half_logsnr = np.linspace(start, end, 200_001)
    middle = (half_logsnr[1:] + half_logsnr[:-1]) / 2
    value, width = 0.3 - 0.8 * middle, (end - start) / 200_000
    data = sigma / sigma_s * START + sigma * np.sum(np.exp(middle) * value) * width
    noise = alpha / alpha_s * START - alpha * np.sum(np.exp(-middle) * value) * width
    for r1, r2 in ((None, 2 / 3), (0.25, 0.6)):
        table = solvers.dpmpp_singlestep(VP, grid, orders=3, r1=r1, r2=r2)
        np.testing.assert_allclose(run_table(table, x0, START), data, atol=1e-8)
        table = solvers.dpm_singlestep(VP, grid, orders=3, r1=r1, r2=r2)
        np.testing.assert_allclose(run_table(table, x0_of_eps, START), noise, atol=1e-8)


def test_equal_methods_agree():
    grid = ds.times.karras(VP, 9, stop=0.02, zero=False)

    def run(solver, **options):
        return run_table(solver(VP, grid, **options), mixture_x0, START)

    ddim = run(solvers.ddim)
    np.testing.assert_allclose(run(solvers.dpm_singlestep, orders=1), ddim, atol=1e-12)
    np.testing.assert_allclose(run(solvers.dpmpp_singlestep, orders=1), ddim, atol=1e-12)
    np.testing.assert_allclose(run(solvers.dpm_singlestep), run(solvers.dpm2), atol=1e-11)
    data = run(solvers.dpmpp_singlestep)
    np.testing.assert_allclose(run(solvers.dpmpp_2s_ancestral, eta=0.0), data, atol=1e-11)
    np.testing.assert_allclose(run(solvers.dpmpp_sde, eta=0.0), data, atol=1e-11)
    narrow = run(solvers.dpmpp_singlestep, r1=0.3)
    np.testing.assert_allclose(run(solvers.dpmpp_sde, eta=0.0, r=0.3), narrow, atol=1e-11)


def test_deterministic_variants_draw_nothing():
    grid = ds.times.karras(VP, 5)
    for solver in (solvers.dpmpp_sde, solvers.dpmpp_2s_ancestral):
        assert solver(VP, grid, eta=0.0).noise == "never"
        assert solver(VP, grid).noise == "some" if solver is solvers.dpmpp_2s_ancestral else "all"


@pytest.mark.parametrize(("order", "most"), [(1, 1), (2, 2), (3, 3)])
def test_orders_spend_the_given_calls(order, most):
    for calls in range(1, 20):
        pattern = solvers.singlestep_orders(calls, order)
        grid = ds.times.uniform_logsnr(VP, len(pattern), zero=False)
        assert sum(pattern) == calls and max(pattern) <= most
        assert solvers.dpmpp_singlestep(VP, grid, orders=pattern).calls == calls


def test_orders_are_the_published_patterns():
    patterns = {calls: solvers.singlestep_orders(calls, 3) for calls in (9, 10, 11)}
    assert patterns == {9: [3, 3, 2, 1], 10: [3, 3, 3, 1], 11: [3, 3, 3, 2]}
    assert solvers.singlestep_orders(7, 2) == [2, 2, 2, 1]


def test_first_order_start_allows_pure_noise():
    pattern = [1, 3, 2, 1]
    table = solvers.dpmpp_singlestep(FLOW, [1.0, 0.8, 0.5, 0.2, 0.0], orders=pattern)
    assert table.calls == 7
    np.testing.assert_allclose(run_table(table, lambda x, level: 0 * x + 0.7, START), 0.7, atol=1e-12)


LAWS = {  # specs/solvers.md, 10.4: |variance / 0.26 - 1| for N = 16, ..., 512
    "dpmpp_sde": (1.461e-2, 3.278e-3, 7.370e-4, 1.710e-4, 4.090e-5, 9.979e-6),
    "dpmpp_2s_ancestral": (3.485e-2, 9.380e-3, 2.421e-3, 6.140e-4, 1.546e-4, 3.877e-5),
    "seeds2": (3.445e-2, 9.343e-3, 2.418e-3, 6.138e-4, 1.545e-4, 3.877e-5),
    "seeds2-0.3": (7.592e-3, 1.300e-3, 2.172e-4, 3.822e-5, 7.367e-6, 1.556e-6),
}


def law_error(table):
    return abs(output_moments(table, Moments(0.0, 0.25), Moments(0.0, 100.25)).variance / 0.26 - 1)


def log_grid(steps):
    return ds.times.uniform_logsnr(NARROW, steps, start=10.0, zero=False)


@pytest.mark.parametrize("name", LAWS)
def test_law_on_gaussian_data_is_the_published_one(name):
    for steps, expected in zip((16, 32, 64, 128, 256, 512), LAWS[name], strict=True):
        assert law_error(SDE[name](NARROW, log_grid(steps))) == pytest.approx(expected, rel=5e-4)


@pytest.mark.parametrize("name", SDE)
def test_weak_order_is_the_declared_one(name):
    coarse, fine = (SDE[name](NARROW, log_grid(steps)) for steps in (256, 512))
    assert abs(np.log2(law_error(coarse) / law_error(fine)) - fine.about.order) < 0.25


def swapped_seeds2(steps, c2):
    """SEEDS-2 as the authors' code has it: both noises at the end of a step are those of the other interval."""
    table, other = (solvers.seeds2(NARROW, log_grid(steps), c2=c) for c in (c2, 1 - c2))
    return dataclasses.replace(table, c=np.stack([other.c[:, 0], table.c[:, 1]], axis=1))


def test_swapped_noises_of_seeds_cost_an_order():
    errors = [law_error(swapped_seeds2(steps, 0.3)) for steps in (16, 256, 512)]
    assert errors[0] == pytest.approx(9.781e-2, rel=2e-4) and errors[2] == pytest.approx(4.514e-3, rel=2e-4)
    assert abs(np.log2(errors[1] / errors[2]) - 1) < 0.1
    assert law_error(swapped_seeds2(16, 0.5)) == pytest.approx(law_error(solvers.seeds2(NARROW, log_grid(16))))


def test_seeds_draws_the_noise_of_the_reverse_sde():
    # data N(0, 0), so that x0 is known: the state at the middle and at the end is a Gauss-Markov chain
    table = solvers.seeds2(VE, [10.0, 2.0], c2=0.3)
    rng = np.random.default_rng(0)
    draws = np.stack([np.zeros(100_000), *rng.standard_normal((2, 100_000))])
    seen = []

    def x0(x, level):
        seen.append(x)
        return 0 * x

    end = run_table(table, x0, rng.standard_normal(100_000) * 10, draws)
    middle = 10 * 0.2**0.3
    covariance = np.cov(np.stack([seen[0], seen[1], end]))
    # the reversed chain of x_t = x0 + t eps has cov(x_s, x_t) = min(s, t)^2
    expected = np.minimum.outer([10.0, middle, 2.0], [10.0, middle, 2.0]) ** 2
    error = np.sqrt((np.outer(np.diag(expected), np.diag(expected)) + expected**2) / 100_000)
    assert (np.abs(covariance - expected) < 5 * error).all()  # false alarm 5e-6


def test_dpmpp_sde_is_the_published_loop():
    def x0(x, sigma):
        return mixture_x0(x, Level(sigma, 1.0, sigma))

    def ancestral(s, t):
        up = 0.8 * (t**2 * (s**2 - t**2) / s**2) ** 0.5
        return (t**2 - up**2) ** 0.5, up

    grid, r = ds.times.karras(VE, 6, zero=False), 0.4
    draws = np.random.default_rng(0).standard_normal((13, 9))
    x = START * 80
    for i, (s, t) in enumerate(zip(grid.t[:-1], grid.t[1:], strict=True)):
        middle = s ** (1 - r) * t**r
        first, second = draws[2 * i + 1], draws[2 * i + 2]
        (down, up), (end, noise) = ancestral(s, middle), ancestral(s, t)
        start = x0(x, s)
        inner = x0(down / s * x + (1 - down / s) * start + up * first, middle)
        both = (((s - middle) / (s - t)) ** 0.5 * first + ((middle - t) / (s - t)) ** 0.5 * second) * noise
        x = end / s * x + (1 - end / s) * (start + (inner - start) / (2 * r)) + both
    table = solvers.dpmpp_sde(VE, grid, eta=0.8, r=r)
    np.testing.assert_allclose(run_table(table, mixture_x0, START * 80, draws), x, rtol=1e-11, atol=1e-11)


def test_seeds_runs_on_the_device():
    sampler = solvers.linear(ds.exact.PointMass(np.array(0.7)), solvers.seeds2(VP, ds.times.uniform_logsnr(VP, 4)))
    np.testing.assert_allclose(ds.sample(jax.random.key(0), sampler, (4,)), 0.7, atol=1e-4)


@pytest.mark.parametrize("name", ["dpm-2", "dpm-3", "dpmpp-2", *SDE])
def test_start_at_pure_noise_is_refused(name):
    with pytest.raises(ValueError, match="cannot start at alpha = 0"):
        ALL[name](FLOW, [1.0, 0.5, 0.0])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda g: solvers.dpm_singlestep(VP, g, orders=4), "orders=4"),
        (lambda g: solvers.dpm_singlestep(VP, g, orders=[2, 2]), "each of 4 moves"),
        (lambda g: solvers.dpmpp_singlestep(VP, g, orders=3, r1=0.7), "r1=0.7, r2=0.66"),
        (lambda g: solvers.dpmpp_singlestep(VP, g, r1=0.0), "r1=0.0"),
        (lambda g: solvers.singlestep_orders(0, 2), "calls=0"),
        (lambda g: solvers.singlestep_orders(9, 4), "order=4"),
        (lambda g: solvers.seeds2(VP, g, c2=0.0), "seeds2 .* got 0.0"),
        (lambda g: solvers.dpmpp_sde(VP, g, r=1.5), "dpmpp_sde .* got 1.5"),
        (lambda g: solvers.dpmpp_sde(VP, g, eta=1.5), "eta=1.5"),
        (lambda g: solvers.dpmpp_2s_ancestral(VP, g, eta=-1.0), "eta=-1.0"),
    ],
)
def test_bad_arguments_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build(ds.times.uniform_logsnr(VP, 4))
