"""Momentum: the toy of 10.2, orders and error constants of 10.3, published coefficients and loops, stability of 2.5."""

import itertools
from functools import lru_cache

import numpy as np
import pytest
from numpy_runner import MEANS, SPREADS, START, WEIGHTS, mixture_x0, run_table
from scipy.linalg import expm
from scipy.stats import norm

import diffsample as ds
from diffsample import solvers
from diffsample.solvers.momentum import ghvb_weights

VP, VE = ds.VariancePreserving(), ds.VarianceExploding(0.002, 80.0)
TOY = np.array([[0.0, 1.0], [-9.0, -10.0]])
TOY_RESULTS = {  # specs/solvers.md, 10.2: x(3) of x' = TOY x in 26 steps, and the norm of its error
    "euler": (solvers.euler, (-0.0464268493, 0.0464268493), 1.355326e-2),
    "ab2": (lambda p, g: solvers.plms(p, g, order=2), (0.1022701865, -1.3731385105), 1.437887),
    "hb0.9": (lambda p, g: heavy(p, g, 2, 0.9), (-0.0542846162, 0.0537320089), 2.858288e-3),
    "hb0.8": (lambda p, g: heavy(p, g, 2, 0.8), (-0.0515423117, 0.0515423074), 6.318908e-3),
    "ghvb1.9": (lambda p, g: solvers.ghvb(p, g, order=1.9), (-0.0513764522, 0.0089645848), 4.727354e-2),
    "ghvb1.8": (lambda p, g: solvers.ghvb(p, g, order=1.8), (-0.0566745099, 0.0557415806), 7.164250e-4),
}


def heavy(process, grid, order, beta, **options):
    return solvers.heavy_ball(solvers.plms(process, grid, order=order), beta, **options)


@pytest.mark.parametrize("name", TOY_RESULTS)
def test_momentum_toy(name):
    solver, expected, error = TOY_RESULTS[name]
    table = solver(ds.VarianceExploding(sigma_min=0.1, sigma_max=3.0), np.linspace(3, 0, 27))

    def x0(x, level):  # sigma = 3 - time runs down, so dx/dsigma = -TOY x
        return x + level.sigma * (TOY @ x)

    out = run_table(table, x0, [-1.0, 0.0])
    np.testing.assert_allclose(out, expected, atol=1e-9)
    exact = expm(3 * TOY) @ [-1.0, 0.0]
    np.testing.assert_allclose(exact, (-0.05601045, 0.05601045), atol=5e-9)
    assert np.linalg.norm(out - exact) == pytest.approx(error, rel=1e-6)


# specs/solvers.md, 10.3: order from N = 1024 to 2048 and error at 2048, with exact history
UNIFORM = {
    "ab1": (lambda g: solvers.plms(VE, g, order=1), 1.00, 4.29e-4),
    "ab2": (lambda g: solvers.plms(VE, g, order=2), 2.00, 9.81e-7),
    "ab3": (lambda g: solvers.plms(VE, g, order=3), 2.99, 3.97e-9),
    "ab4": (lambda g: solvers.plms(VE, g, order=4), 3.98, 1.02e-10),
    "hb0.8-ab2": (lambda g: heavy(VE, g, 2, 0.8), 1.00, 2.15e-4),
    "hb0.8-ab1": (lambda g: heavy(VE, g, 1, 0.8), 1.00, 6.43e-4),
    "ghvb1.8": (lambda g: solvers.ghvb(VE, g, order=1.8), 2.00, 1.28e-6),
    "ghvb1.2": (lambda g: solvers.ghvb(VE, g, order=1.2), 2.00, 5.73e-6),
    "ghvb2.8": (lambda g: solvers.ghvb(VE, g, order=2.8), 2.99, 5.07e-9),
    "ghvb3.8": (lambda g: solvers.ghvb(VE, g, order=3.8), 3.98, 1.30e-10),
    "ghvb3.9": (lambda g: solvers.ghvb(VE, g, order=3.9), 3.98, 1.15e-10),
}
HIGH, LOW, PAST = 2.0, 0.25, 60


def share_below(x, sigma):
    """Distribution function and density of problem P1 at a level of VE."""
    spread = np.sqrt(SPREADS**2 + sigma**2)
    z = (x[..., None] - MEANS) / spread
    return norm.cdf(z) @ WEIGHTS, (norm.pdf(z) / spread) @ WEIGHTS


@lru_cache
def on_the_flow(sigma):
    """x at this level of the flow lines through linspace(-5, 5, 9) at sigma = 4: the flow keeps quantiles."""
    x, share = np.linspace(-5, 5, 9) * sigma / 4, share_below(np.linspace(-5, 5, 9), 4.0)[0]
    for _ in range(60):
        below, density = share_below(x, sigma)
        x = x - np.clip((below - share) / density, -0.3, 0.3)
    return x


def error_with_exact_history(build, steps):
    """Error at LOW of steps from HIGH, after PAST steps whose network outputs are the flow's own.

    Tables in eps do not look at x, so the state there may be off by a constant, which is taken out.
    """
    step = (HIGH - LOW) / steps
    table = build(LOW + step * np.arange(steps + PAST, -1, -1))
    off = None

    def x0(x, level):
        nonlocal off
        if level.sigma > HIGH + step / 2:
            y = on_the_flow(level.sigma)
        else:
            off = on_the_flow(HIGH) - x if off is None else off
            y = x + off
        return x - (y - mixture_x0(y, level))

    return np.abs(run_table(table, x0, on_the_flow(table.now.sigma[0])) + off - on_the_flow(LOW)).max()


@pytest.fixture(scope="module")
def uniform_errors():
    return {name: [error_with_exact_history(row[0], n) for n in (1024, 2048)] for name, row in UNIFORM.items()}


@pytest.mark.parametrize("name", UNIFORM)
def test_momentum_order_and_error_on_a_grid_uniform_in_sigma(name, uniform_errors):
    coarse, fine = uniform_errors[name]
    _, order, error = UNIFORM[name]
    assert np.log2(coarse / fine) == pytest.approx(order, abs=0.008)
    assert fine == pytest.approx(error, rel=6e-3)


def test_momentum_error_constants_are_those_of_the_theorems(uniform_errors):
    fine = {name: pair[1] for name, pair in uniform_errors.items()}
    assert fine["hb0.8-ab2"] / fine["ab1"] == pytest.approx(0.5, abs=4e-3)  # 2 (1 - beta) / beta
    assert fine["hb0.8-ab1"] / fine["ab1"] == pytest.approx(1.5, abs=4e-3)  # 1 + that
    assert fine["ghvb1.8"] / fine["ab2"] == pytest.approx(1.30, abs=0.01)
    assert fine["ghvb1.2"] / fine["ab2"] == pytest.approx(5.84, abs=0.01)
    assert fine["ghvb3.8"] / fine["ab4"] == pytest.approx(1.27, abs=0.01)
    ahead = error_with_exact_history(lambda g: heavy(VE, g, 2, 0.8, nesterov=True), 2048)
    assert ahead / fine["hb0.8-ab2"] == pytest.approx(0.2, abs=0.01)  # 1 - beta


@pytest.mark.parametrize("order", [3, 4, 2.8, 3.8])
def test_ordinary_start_leaves_second_order_even_on_a_uniform_grid(order):
    errors = []
    for steps in (1024, 2048):
        grid = np.linspace(HIGH, LOW, steps + 1).tolist()
        table = solvers.ghvb(VE, grid, order=order, beta=1.0 if order in (3, 4) else None)
        errors.append(np.abs(run_table(table, mixture_x0, on_the_flow(HIGH)) - on_the_flow(LOW)).max())
    assert np.log2(errors[0] / errors[1]) == pytest.approx(2.0, abs=0.1)


def test_coefficients_of_ghvb_are_the_published_ones():
    for beta in (1.0, 0.8, 0.2):
        published = {  # specs/solvers.md, 2.2
            1: np.array([beta]) / 1,
            2: np.array([2 + beta, -(2 - beta)]) / 2,
            3: np.array([18 + 5 * beta, -(24 - 8 * beta), 6 - beta]) / 12,
            4: np.array([46 + 9 * beta, -(78 - 19 * beta), 42 - 5 * beta, -(10 - beta)]) / 24,
            5: np.array(
                [1650 + 251 * beta, -(3420 - 646 * beta), 2880 - 264 * beta, -(1380 - 106 * beta), 270 - 19 * beta]
            )
            / 720,
        }
        for order, c in published.items():
            np.testing.assert_allclose(ghvb_weights(order, beta), c / beta, rtol=1e-13)
            assert sum(c) / beta == pytest.approx(1.0, abs=1e-12)


def noise_of(x, level):
    return (x - level.alpha * mixture_x0(x, level)) / level.sigma


def levels_of(grid):
    return [ds.Level(*map(float, level)) for level in zip(*grid.levels, strict=True)]


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("beta", [1.0, 0.8, 0.5])
def test_ghvb_is_the_published_loop_over_all_velocities(order, beta):
    grid, x, past = ds.times.karras(VP, 9, stop=0.02, zero=False), START, []
    for s, t in itertools.pairwise(levels_of(grid)):
        eps = noise_of(x, s)
        past.append((1 - beta) * past[-1] + beta * eps if past else eps)
        c = ghvb_weights(min(order, len(past)), beta)
        move = sum(weight * v for weight, v in zip(c, reversed(past), strict=False))
        x = t.alpha * (x / s.alpha + (t.sigma / t.alpha - s.sigma / s.alpha) * move)
    table = solvers.ghvb(VP, grid, order=order, beta=beta)
    np.testing.assert_allclose(run_table(table, mixture_x0, START), x, atol=1e-12)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("beta", [1.0, 0.9, 0.8, 0.5])
def test_heavy_ball_is_the_published_loop(beta, nesterov):
    grid, x, y, v, w, past = ds.times.karras(VP, 9, stop=0.02, zero=False), START, START, None, None, []
    for s, t in itertools.pairwise(levels_of(grid)):
        past.append((noise_of(x, s), mixture_x0(y, s), np.log(t.alpha * s.sigma / (t.sigma * s.alpha))))
        g, data = past[-1][0], past[-1][1]
        if len(past) > 1:
            (older, before, back), h = past[-2], past[-1][2]
            g, data = (3 * g - older) / 2, data + (data - before) * h / (2 * back)
        v = g if v is None else (1 - beta) * v + beta * g
        w = data if w is None else (1 - beta) * w + beta * data
        move, mean = ((1 - beta) * v + beta * g, (1 - beta) * w + beta * data) if nesterov else (v, w)
        x = t.alpha * (x / s.alpha + (t.sigma / t.alpha - s.sigma / s.alpha) * move)
        y = t.sigma / s.sigma * y + (t.alpha - t.sigma / s.sigma * s.alpha) * mean
    for base, expected in ((solvers.plms(VP, grid, order=2), x), (solvers.dpmpp(VP, grid), y)):
        table = solvers.heavy_ball(base, beta, nesterov=nesterov)
        np.testing.assert_allclose(run_table(table, mixture_x0, START), expected, atol=1e-12)


@pytest.mark.parametrize("beta", [1.0, 0.8, 0.3])
def test_real_axis_limits_are_the_closed_forms(beta):
    heavy_limits = (2 - beta) / beta * np.array([-2, -1, -6 / 11, -3 / 10])
    generalised = -(2 - beta) * np.array([2 / beta, 1, 2 / (4 - beta / 3), 2 / (22 / 3 - 2 * beta / 3)])
    for order in (1, 2, 3, 4):
        built = (
            (lambda p, g, k=order: heavy(p, g, k, beta), heavy_limits),
            (lambda p, g, k=order: solvers.ghvb(p, g, order=k, beta=beta), generalised),
        )
        for solver, limits in built:
            found = ds.real_axis_limit(ds.steady_tableau(solver))
            assert found == pytest.approx(limits[order - 1], abs=1e-5)


def test_nesterov_widens_the_imaginary_direction():
    def growth(solver, z):
        return ds.stability_region(ds.steady_tableau(solver), (z.real,) * 2, (z.imag,) * 2, points=1).radius[0, 0]

    def plain(process, grid):
        return heavy(process, grid, 2, 0.8)

    def ahead(process, grid):
        return heavy(process, grid, 2, 0.8, nesterov=True)

    def base(process, grid):
        return heavy(process, grid, 2, 1.0)

    assert growth(ahead, -0.27 + 0.8j) < 1 < min(growth(plain, -0.27 + 0.8j), growth(base, -0.27 + 0.8j))
    assert growth(plain, -1.45 + 0j) < 1 < growth(ahead, -1.45 + 0j)


def test_fractional_numbers_say_order_and_damping():
    grid = ds.times.karras(VP, 9)
    for number, order, beta in ((0.8, 1, 0.8), (1.8, 2, 0.8), (3.9, 4, 0.9), (2, 2, 0.8), (3.0, 3, 0.8)):
        first, second = solvers.ghvb(VP, grid, order=number), solvers.ghvb(VP, grid, order=order, beta=beta)
        for name in ("A", "B"):
            np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 1.8, "beta": 0.5}, "order=1.8 says order=2, beta=0.8 already, and beta=0.5"),
        ({"order": 5.5}, "ghvb has orders 1 to 5, got order=6"),
        ({"order": 0}, "ghvb has orders 1 to 5, got order=0"),
        ({"order": float("nan")}, "orders 1 to 5, and fractions as 1.8, got order=nan"),
        ({"beta": 1.5}, "beta=1.5 must lie in"),
    ],
)
def test_bad_momentum_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        solvers.ghvb(VP, ds.times.uniform(VP, 6), **options)
