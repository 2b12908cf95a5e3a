"""One-call methods: Euler-ancestral, churn, consistency sampling and flow Euler against loops written out."""

import itertools

import jax
import numpy as np
import pytest
from numpy_runner import START, mixture_x0, run_table

import diffsample as ds
from diffsample import solvers
from diffsample.process import Level

VE, FLOW = ds.VarianceExploding(), ds.FlowMatching()


def x0_at(x, sigma):
    return mixture_x0(x, Level(sigma, 1.0, sigma))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_euler_ancestral_is_the_published_loop(eta):
    grid = ds.times.karras(VE, 8)
    table = solvers.euler_ancestral(VE, grid, eta=eta)
    draws = np.random.default_rng(0).standard_normal((9, 9))
    x = START * 80
    for i, (s, t) in enumerate(zip(grid.t[:-1], grid.t[1:], strict=True)):
        up = min(t, eta * (t**2 * (s**2 - t**2) / s**2) ** 0.5)
        down = (t**2 - up**2) ** 0.5
        x = x + (down - s) * (x - x0_at(x, s)) / s + up * draws[i + 1]
    np.testing.assert_allclose(run_table(table, mixture_x0, START * 80, draws), x, rtol=1e-12, atol=1e-12)


def test_euler_churn_is_the_published_loop():
    grid = ds.times.karras(VE, 12)
    table = solvers.euler(VE, grid, churn=3.0, churn_min=0.05, churn_max=50.0, churn_noise=1.003)
    draws = np.random.default_rng(1).standard_normal((13, 9))
    x = START * 80
    for i, (s, t) in enumerate(zip(grid.t[:-1], grid.t[1:], strict=True)):
        raised = s * (1 + 3.0 / 12) if 0.05 <= s <= 50 else s
        x = x + 1.003 * (raised**2 - s**2) ** 0.5 * draws[i]
        x = x + (t - raised) * (x - x0_at(x, raised)) / raised
    np.testing.assert_allclose(run_table(table, mixture_x0, START * 80, draws), x, rtol=1e-11, atol=1e-11)
    assert np.count_nonzero(table.c) == np.count_nonzero((grid.t[:-1] >= 0.05) & (grid.t[:-1] <= 50))


def test_euler_without_churn_is_ddim():
    grid = ds.times.karras(ds.VariancePreserving(), 9, stop=0.02, zero=False)
    first, second = (run_table(f(grid.process, grid), mixture_x0, START) for f in (solvers.euler, solvers.ddim))
    np.testing.assert_allclose(first, second, atol=1e-13)


def test_flow_euler_is_ddim():
    times = np.linspace(1.0, 0.1, 10).tolist()
    x = START
    for s, t in itertools.pairwise(times):
        x0 = mixture_x0(x, Level(s, 1 - s, s))
        x = x + (t - s) * (x - x0) / s  # the velocity eps - x0 is (x - x0) / t
    np.testing.assert_allclose(run_table(solvers.ddim(FLOW, times), mixture_x0, START), x, atol=1e-13)


def test_consistency_sampling_maps_and_noises_in_turn():
    times = [80.0, 5.84, 0.661, 0.002]
    table = solvers.consistency_multistep(VE, times, sigma_min=0.002)
    draws = np.random.default_rng(2).standard_normal((4, 9))
    x = START * 80
    for i, (s, t) in enumerate(itertools.pairwise(times)):
        x = x0_at(x, s) + (t**2 - 0.002**2) ** 0.5 * draws[i + 1]
    np.testing.assert_allclose(run_table(table, mixture_x0, START * 80, draws), x, rtol=1e-13)
    assert table.c[-1] == 0 and table.calls == 3


def test_consistency_in_one_step_is_the_network():
    for times, sigma_min in (([1.0, 0.0], 0.0), ([1.0, 0.002], 0.002 / 0.998)):  # one starts at alpha = 0
        table = solvers.consistency_multistep(FLOW, times, sigma_min=sigma_min)
        assert table.noise == "never"
        out = run_table(table, mixture_x0, START)
        np.testing.assert_allclose(out, (1 - times[1]) * mixture_x0(START, Level(1.0, 0.0, 1.0)), rtol=1e-13)


@pytest.mark.parametrize("process", [VE, FLOW, ds.VariancePreserving(), ds.SubVP()], ids=str)
def test_consistency_reaches_every_level_with_its_own_law(process):
    target, t = 1.5, 0.3
    table = solvers.consistency_multistep(process, [process.t_start, t])
    mean = run_table(table, lambda x, level: np.full_like(x, target), np.zeros(1))
    np.testing.assert_allclose([mean[0], table.c[-1, 0]], [process.alpha(t) * target, process.sigma(t)], rtol=1e-12)


def test_euler_churn_runs_on_the_device():
    grid = ds.times.karras(VE, 6)
    table = solvers.euler(VE, grid, churn=2.0, churn_max=50.0)
    sampler = solvers.linear(ds.exact.PointMass(np.array(0.7)), table)
    np.testing.assert_allclose(ds.sample(jax.random.key(0), sampler, (4,)), 0.7, atol=1e-4)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: solvers.euler_ancestral(VE, [9.0, 1.0], eta=1.2), "eta=1.2"),
        (lambda: solvers.euler(VE, [9.0, 1.0], churn=-1.0), "churn=-1.0"),
        (lambda: solvers.euler(VE, [79.0, 1.0], churn=1.0), "churn_max below 79"),
        (lambda: solvers.consistency_multistep(VE, [9.0, 1.0], sigma_min=-0.1), "sigma_min=-0.1"),
        (lambda: solvers.consistency_multistep(VE, [9.0, 0.1, 0.0], sigma_min=0.2), "level 0.1 .* below sigma_min=0.2"),
    ],
)
def test_bad_arguments_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
