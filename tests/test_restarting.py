"""Restart: calls of the published configurations, the loop written out, and what repeats do to errors."""

import itertools

import jax
import numpy as np
import pytest
from numpy_runner import START, coordinate_gap, mixture_x0, run_table

import diffsample as ds
from diffsample import solvers
from diffsample.exact.moments import Moments, output_moments
from diffsample.process import Level

VP, VE = ds.VariancePreserving(), ds.VarianceExploding()
IMAGENET = [(4, 1, 19.35, 40.79), (4, 1, 1.09, 1.92), (4, 5, 0.59, 1.09), (4, 5, 0.30, 0.59), (6, 6, 0.06, 0.30)]


def test_calls_of_the_published_configurations():
    assert solvers.restart(VE, ds.times.karras(VE, 36), segments=IMAGENET).calls == 203
    for repeats in (2, 5, 10, 20):
        table = solvers.restart(VE, ds.times.karras(VE, 18), segments=[(3, repeats, 0.06, 0.30)])
        assert table.calls == 35 + 4 * repeats
        assert np.count_nonzero(table.c.any(axis=1)) == repeats


def heun_loop(x, sigmas):
    def slope(x, sigma):
        return (x - mixture_x0(x, Level(sigma, 1.0, sigma))) / sigma

    for s, t in itertools.pairwise(sigmas):
        left = slope(x, s)
        x = x + (t - s) * (left if t == 0 else (left + slope(x + (t - s) * left, t)) / 2)
    return x


def test_restart_is_the_published_loop():
    grid = ds.times.karras(VE, 12)
    low = np.array([0.6, 0.1])
    segments = [(4, 2, low[0], 3.0), (3, 3, low[1], 0.5)]
    draws = np.random.default_rng(0).standard_normal((5, 9))
    x, left = START * 80, list(draws)
    start = 0
    for points, repeats, low, high in segments:
        stop = int(np.argmin(np.abs(grid.t - low)))
        x = heun_loop(x, grid.t[start : stop + 1])
        t = grid.t[stop]
        ramp = np.linspace(0, 1, points)
        sigmas = (high ** (1 / 7) + ramp * (t ** (1 / 7) - high ** (1 / 7))) ** 7
        for _ in range(repeats):
            x = heun_loop(x + 1.003 * np.sqrt(high**2 - t**2) * left.pop(0), sigmas)
        start = stop
    x = heun_loop(x, grid.t[start:])
    table = solvers.restart(VE, grid, segments=segments, noise=1.003)
    spread = np.zeros((table.rows + 1, 9))
    spread[np.flatnonzero(table.c.any(axis=1))] = draws
    np.testing.assert_allclose(run_table(table, mixture_x0, START * 80, spread), x, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("segments", [[], [(4, 0, 0.5, 2.0)]])
def test_no_repeats_is_heun(segments):
    grid = ds.times.karras(VP, 8)
    first, second = solvers.restart(VP, grid, segments=segments), solvers.heun(VP, grid)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


def test_segments_at_one_point_follow_each_other():
    table = solvers.restart(VE, ds.times.karras(VE, 6), segments=[(3, 1, 1.0, 5.0), (2, 1, 1.0, 9.0)])
    high = table.now.sigma[np.flatnonzero(table.c.any(axis=1))]
    np.testing.assert_allclose(high, [5.0, 9.0], rtol=1e-12)


@pytest.mark.parametrize("process", [VP, VE, ds.Cosine(), ds.SubVP(), ds.DiscreteBetas.linear()], ids=str)
def test_restart_is_exact_on_a_point_mass(process):
    x = START * float(process.sigma(process.t_start))
    table = solvers.restart(process, ds.times.karras(process, 7), segments=[(3, 2, 0.3, 1.5)])
    draws = np.random.default_rng(0).standard_normal((table.rows + 1, 9))
    np.testing.assert_allclose(run_table(table, lambda x, level: 0 * x + 0.7, x, draws), 0.7, atol=1e-10)


def test_restart_is_the_same_in_all_coordinates():
    assert coordinate_gap(lambda p, g: solvers.restart(p, g, segments=[(3, 2, 0.3, 1.5)], noise=1.1)) < 1e-10


def test_restart_is_of_second_order_in_law():
    def error(steps):
        grid = ds.times.uniform_logsnr(VE, steps, start=10.0, stop=0.1, zero=False)
        table = solvers.restart(VE, grid, segments=[(steps // 4 + 1, 3, 1.0, 4.0)])
        return abs(output_moments(table, Moments(0.0, 0.25), Moments(0.0, 100.25)).variance / 0.26 - 1)

    assert abs(np.log2(error(64) / error(128)) - 2) < 0.1


def test_repeats_contract_a_wrong_start():
    def mean(repeats):
        table = solvers.restart(VE, ds.times.karras(VE, 24), segments=[(8, repeats, 0.5, 20.0)])
        return output_moments(table, Moments(0.0, 0.25), Moments(400.0, 80.0**2)).mean

    assert mean(0) > 1.0
    assert abs(mean(3) / mean(2) - mean(2) / mean(1)) < 1e-9  # each repeat multiplies the error by the same factor
    assert mean(1) < 0.2 * mean(0)


def test_restart_runs_on_the_device():
    table = solvers.restart(VE, ds.times.karras(VE, 5), segments=[(2, 1, 1.0, 5.0)])
    sampler = solvers.linear(ds.exact.PointMass(np.array(0.7)), table)
    np.testing.assert_allclose(ds.sample(jax.random.key(0), sampler, (4,)), 0.7, atol=1e-4)


@pytest.mark.parametrize(
    ("segment", "message"),
    [
        ((1, 2, 0.1, 0.3), "at least 2 points"),
        ((3, -1, 0.1, 0.3), "at least 2 points"),
        ((3, 2, 2.0, 1.0), "above the level of its grid point"),
        ((3, 2, 2.0, 90.0), "beyond the end"),
    ],
)
def test_bad_segments_are_named(segment, message):
    with pytest.raises(ValueError, match=message):
        solvers.restart(VE, ds.times.karras(VE, 8), segments=[segment])


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="noise=-1"):
        solvers.restart(VE, [9.0, 1.0], segments=[], noise=-1.0)
    with pytest.raises(ValueError, match="no grid point with noise left"):
        solvers.restart(VE, [9.0, 0.0], segments=[(3, 2, 1.0, 2.0)])
