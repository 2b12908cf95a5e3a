"""Automatic grids: equidistribution, measured local errors, and what they are worth on a mixture."""

import jax
import numpy as np
import pytest
from numpy_runner import p1_error

import diffsample as ds
from diffsample import solvers

VP = ds.VariancePreserving()
KEY = jax.random.key(2)
P1 = ds.exact.Mixture([0.3, 0.45, 0.25], [-1.0, 0.3, 1.1], [0.35**2, 0.25**2, 0.4**2])


def test_equidistribution_of_a_known_density():
    """The density e^l between l = 0 and ln 9 has equal shares at e^l = 1, 3, 5, 7, 9, that is at sigma = 1 / e^l."""
    ve = ds.VarianceExploding()
    grid = ds.times.equidistribute(ve, 4, np.exp, start=1.0, stop=1 / 9, zero=False)
    np.testing.assert_allclose(grid.t, [1, 1 / 3, 1 / 5, 1 / 7, 1 / 9], rtol=1e-5)
    assert grid.t[0] == 1.0 and grid.t[-1] == 1 / 9
    constant = ds.times.equidistribute(VP, 9, lambda half_logsnr: 3 + 0 * half_logsnr)
    np.testing.assert_allclose(constant.t, ds.times.uniform_logsnr(VP, 9).t, rtol=1e-6)


@pytest.mark.parametrize("density", [lambda v: 0 * v, lambda v: v, lambda v: np.nan * v, lambda v: np.ones(3)])
def test_equidistribution_refuses_what_is_no_density(density):
    with pytest.raises(ValueError, match="finite and positive"):
        ds.times.equidistribute(VP, 4, density)


@pytest.mark.parametrize(("solver", "moves", "order"), [(solvers.ddim, 1, 1), (solvers.dpmpp_singlestep, 2, 2)])
def test_local_error_falls_with_one_power_more_than_the_order(x64, solver, moves, order):
    ends = {"start": 0.6, "stop": 0.2, "zero": False}
    coarse, fine = (
        solvers.measure_local_error(KEY, P1, solver, ds.times.uniform_logsnr(VP, n, **ends), (64,), moves=moves)
        for n in (8, 16)
    )
    slope = np.log2(coarse / (fine[::2] + fine[1::2]) * 2)
    assert abs(np.median(slope) - order - 1) < 0.25


def test_local_error_of_an_exact_method_is_rounding_and_is_the_same_in_every_scaling():
    grid = ds.times.uniform_logsnr(VP, 6, zero=False)
    np.testing.assert_allclose(
        solvers.measure_local_error(KEY, ds.exact.PointMass(1.0), solvers.ddim, grid, (8,)), 0, atol=1e-5
    )
    ve = ds.VarianceExploding(0.002, 200.0)
    same = ds.times.custom(ve, grid.sigma / grid.alpha)
    flow = [solvers.measure_local_error(KEY, P1, solvers.ddim, g, (4000,)) for g in (grid, same)]
    np.testing.assert_allclose(flow[0], flow[1], rtol=0.05)  # alpha x0 + sigma z starts a little off in VE


@pytest.mark.parametrize(("solver", "order"), [(solvers.ddim, 1), (solvers.dpmpp, 2)])
def test_automatic_grid_beats_the_uniform_ones(solver, order):
    """Against uniform in log-SNR: the error of DDIM is 0.61 of it, of DPM-Solver++ 2M 0.38, 0.30, 0.28."""
    for steps in (8, 12, 16):
        ends = {"stop": 0.01, "zero": False}
        grid = solvers.equal_error_grid(KEY, P1, VP, steps, (256,), order=order, **ends)
        assert (np.diff(grid.t) < 0).all() and (grid.t[0], grid.t[-1], grid.steps) == (1.0, 0.01, steps)
        automatic = p1_error(solver(VP, grid))
        assert automatic < 0.7 * p1_error(solver(VP, ds.times.uniform_logsnr(VP, steps, **ends)))
        assert automatic < 0.7 * p1_error(solver(VP, ds.times.uniform(VP, steps, **ends)))


def test_automatic_grid_serves_a_network_with_a_condition_and_ends_clean():
    def apply(params, x, t, cond):
        return jax.numpy.tanh(x) * cond[:, None]

    network = ds.Network(apply, predicts="data")
    grid = solvers.equal_error_grid(KEY, network, VP, 5, (8, 3), cond=jax.numpy.linspace(0.5, 1.0, 8), levels=6)
    assert grid.t[-1] == 0 and grid.t[-2] == VP.t_min and grid.t[0] == 1.0


def test_what_cannot_be_measured_is_named():
    with pytest.raises(ValueError, match="order=3"):
        solvers.equal_error_grid(KEY, P1, VP, 8, (8,), order=3)
    with pytest.raises(ValueError, match="zero=False"):
        solvers.measure_local_error(KEY, P1, solvers.ddim, ds.times.uniform_logsnr(VP, 4), (8,))
    with pytest.raises(ValueError, match="draws noise"):
        solvers.measure_local_error(KEY, P1, solvers.ddpm, ds.times.uniform_logsnr(VP, 4, zero=False), (8,))
