"""Intrinsic dimension of Gaussians on subspaces, where all four estimators are known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsample as ds
from diffsample import dimension, solvers
from diffsample.probes import every_axis

KEY = jax.random.key(0)
VE, VP = ds.VarianceExploding(0.002, 80.0), ds.VariancePreserving()
VARIANCES = np.array([1.0, 0.5, 0.0, 0.0, 0.0])
TURN = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0]
PLANE = ds.exact.Gaussian(np.zeros(5), VARIANCES)
TURNED = ds.exact.Gaussian(np.zeros(5), (TURN * VARIANCES) @ TURN.T)  # the same plane, not along the axes


def rising(sigma):
    return (VARIANCES / (VARIANCES + sigma**2)).sum()


@pytest.mark.parametrize(("sigma", "expected"), [(1.0, 0.8333333), (0.1, 1.970491), (0.01, 1.999700)])
def test_denoiser_trace_counts_the_directions_with_spread(x64, sigma, expected):
    x = jax.random.normal(KEY, (2, 5), jnp.float64)
    found = dimension.denoiser_dimension(KEY, PLANE, VE.level(sigma), x)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    turned = dimension.denoiser_dimension(KEY, TURNED, VE.level(sigma), x, probes=every_axis)
    np.testing.assert_allclose(turned, expected, atol=1e-6)


@pytest.mark.parametrize(("sigma", "expected"), [(0.5, 1.466667), (0.1, 1.970491), (0.01, 1.999700)])
def test_flipd_at_the_middle_of_a_subspace(x64, sigma, expected):
    found = dimension.flipd(KEY, TURNED, VE.level(sigma), jnp.zeros((2, 5), jnp.float64), probes=every_axis)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_flipd_is_its_formula_on_any_process(x64):
    level = VP.level(0.3)
    x0 = jnp.asarray([[0.4, -1.0, 0.0, 0.0, 0.0]])
    total = level.alpha**2 * VARIANCES + level.sigma**2
    score = -level.alpha * x0[0] / total
    expected = 5 + level.sigma**2 * (-(1 / total).sum() + (score**2).sum())
    np.testing.assert_allclose(dimension.flipd(KEY, PLANE, level, x0), expected, rtol=1e-10)


def test_flipd_keeps_its_digits_at_small_noise_in_float32():
    found = dimension.flipd(KEY, TURNED, VE.level(0.003), jnp.zeros((1, 5)), probes=every_axis)
    assert float(found[0]) == pytest.approx(rising(0.003), abs=2e-5)


def test_flow_singular_values_saturate_along_the_plane_and_vanish_across(x64):
    """sqrt((v + sigma^2) / (v + T^2)): 0.012499 and 0.008838 along, sigma / 80 across."""
    grid = ds.times.karras(VE, 100, zero=False)
    sampler = solvers.linear(TURNED, solvers.heun(VE, grid))
    found = dimension.flow_dimension(KEY, sampler, jnp.asarray([[3.0, -40.0, 10.0, 0.0, 20.0]]))
    assert found.dimension.tolist() == [2]
    np.testing.assert_allclose(found.values[-1, 0, :2], [0.012499, 0.008838], rtol=2e-3)
    np.testing.assert_allclose(found.values[-1, 0, 2:], 0.002 / 80, rtol=1e-6)  # Heun is exact across
    middle = np.asarray(grid.t)[50]
    expected = np.sqrt((VARIANCES + middle**2) / (VARIANCES + 80.0**2))
    np.testing.assert_allclose(found.values[100, 0], expected, rtol=2e-3)  # two calls a step


def test_a_few_directions_see_a_small_dimension():
    law = ds.exact.Gaussian(np.zeros(40), np.r_[np.ones(3), np.zeros(37)])
    sampler = solvers.linear(law, solvers.dpmpp(VE, ds.times.karras(VE, 12, zero=False)))
    found = dimension.flow_dimension(KEY, sampler, jnp.ones((2, 40)), directions=8)
    assert found.values.shape == (13, 2, 8) and found.dimension.tolist() == [3, 3]


def test_normal_bundle_has_the_known_ratio_of_singular_values():
    sigma, K = 0.5, 20_000
    law = ds.exact.Gaussian(np.zeros(3), [0.6, 0.6, 0.0])
    found = dimension.normal_bundle_dimension(KEY, law, VE.level(sigma), jnp.zeros((1, 3)), copies=K)
    ratio = found.values[0, 1:] / found.values[0, 0]
    np.testing.assert_allclose(ratio, sigma**2 / (0.6 + sigma**2), rtol=4 * np.sqrt(1 / K))
    assert found.values[0, 0] == pytest.approx(np.sqrt(K) / sigma, rel=4 * np.sqrt(0.5 / K))


def test_normal_bundle_finds_the_dimension_on_the_plane():
    x0 = TURNED.sample(KEY, 3)
    for process, t in ((VE, 0.02), (VP, 2e-3)):
        found = dimension.normal_bundle_dimension(KEY, TURNED, process.level(t), x0)
        assert found.dimension.tolist() == [2, 2, 2] and found.values.shape == (3, 5)


def test_dimensions_take_a_condition():
    laws = ds.exact.Switch((PLANE, ds.exact.Gaussian(np.zeros(5), [1.0, 1.0, 1.0, 0.0, 0.0])))
    cond, x0 = jnp.array([0, 1]), jnp.zeros((2, 5))
    level = VE.level(0.01)
    np.testing.assert_allclose(dimension.flipd(KEY, laws, level, x0, cond=cond), [2, 3], atol=1e-3)
    assert dimension.normal_bundle_dimension(KEY, laws, level, x0, cond=cond).dimension.tolist() == [2, 3]
    sampler = solvers.linear(laws, solvers.dpmpp(VE, ds.times.karras(VE, 12, zero=False)))
    assert dimension.flow_dimension(KEY, sampler, x0, cond=cond).dimension.tolist() == [2, 3]


def test_bad_numbers_of_copies_and_directions_are_named():
    with pytest.raises(ValueError, match="copies=3"):
        dimension.normal_bundle_dimension(KEY, PLANE, VE.level(0.1), jnp.zeros((1, 5)), copies=3)
    sampler = solvers.linear(PLANE, solvers.ddim(VE, [80.0, 1.0]))
    with pytest.raises(ValueError, match="directions=6"):
        dimension.flow_dimension(KEY, sampler, jnp.zeros((1, 5)), directions=6)
