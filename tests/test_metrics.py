"""Distances against closed forms, and against an independent matrix square root."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffsample import metrics


def gaussian(seed, dimension=6, rank=None):
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(dimension, rank or dimension + 2))
    return rng.normal(size=dimension), factor @ factor.T / dimension


def test_frechet_distance_of_one_dimensional_gaussians_is_mean_and_deviation_gap():
    one, four = np.array([1.0]), np.array([[4.0]])
    assert metrics.frechet_distance(one, four / 16, -2 * one, four) == pytest.approx(9.0 + 1.5**2, rel=1e-12)


def test_frechet_distance_of_commuting_gaussians_is_the_gap_of_roots():
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    a, b = np.array([0.0, 1.0, 4.0, 9.0]), np.array([4.0, 1.0, 0.25, 0.0])
    distance = metrics.frechet_distance(np.zeros(4), basis * a @ basis.T, np.ones(4), basis * b @ basis.T)
    assert distance == pytest.approx(4.0 + (4.0 + 0.0 + 2.25 + 9.0), rel=1e-6)


@pytest.mark.parametrize("rank", [None, 3])
def test_frechet_distance_of_equal_gaussians_is_zero(rank):
    mean, cov = gaussian(1, rank=rank)
    assert 0.0 <= metrics.frechet_distance(mean, cov, mean, cov) < 1e-7


def test_frechet_distance_matches_the_roots_of_the_product_of_covariances():
    (mean1, cov1), (mean2, cov2) = gaussian(2), gaussian(3)
    assert np.abs(cov1 @ cov2 - cov2 @ cov1).max() > 0.1
    fidelity = np.sqrt(np.linalg.eigvals(cov1 @ cov2).real).sum()
    expected = np.sum((mean1 - mean2) ** 2) + np.trace(cov1 + cov2) - 2 * fidelity
    assert metrics.frechet_distance(mean1, cov1, mean2, cov2) == pytest.approx(expected, rel=1e-9)
    assert metrics.frechet_distance(mean2, cov2, mean1, cov1) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_is_the_cost_of_the_optimal_linear_map():
    mean, cov = gaussian(4)
    stretch = gaussian(5)[1] + np.eye(6)  # symmetric positive, so x -> stretch x is an optimal transport (Brenier)
    expected = np.trace((stretch - np.eye(6)) @ cov @ (stretch - np.eye(6)))
    moved = metrics.frechet_distance(mean, cov, mean, stretch @ cov @ stretch)
    assert moved == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("cov", [[[1.0, 0.5], [0.0, 1.0]], [[1.0, 0.0], [0.0, -1.0]], [[1.0]]])
def test_frechet_distance_refuses_what_is_no_covariance(cov):
    with pytest.raises(ValueError, match="covariance"):
        metrics.frechet_distance(np.zeros(2), np.array(cov), np.zeros(2), np.eye(2))


def test_moments_are_those_of_numpy_and_are_float64():
    x = np.random.default_rng(6).normal(size=(40, 2, 3)).astype(np.float32)
    mean, cov = metrics.moments(jnp.asarray(x))
    assert mean.dtype == cov.dtype == np.float64
    np.testing.assert_allclose(mean, x.reshape(40, 6).astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(cov, np.cov(x.reshape(40, 6).astype(np.float64).T), rtol=1e-9)
    with pytest.raises(ValueError, match="at least 2"):
        metrics.moments(x[:1])


def test_accuracy_counts_the_rows_that_are_right():
    logits = jnp.array([[3.0, 1.0], [0.0, 2.0], [5.0, 4.0], [0.0, 1.0]])
    assert float(metrics.accuracy(logits, jnp.array([0, 1, 1, 1]))) == 0.75


def test_mmd_is_unbiased_between_equal_laws():
    # 200 pairs of independent sets of 20: mean within 4 standard errors of 0 (false alarm 6e-5); the biased estimate,
    # with the diagonal, is about 0.07 = 40 standard errors.
    x, y = jax.random.normal(jax.random.key(0), (2, 200, 20, 3))
    values = jax.vmap(lambda a, b: metrics.mmd(a, b, bandwidth=1.0))(x, y)
    assert abs(values.mean()) < 4 * values.std() / np.sqrt(200)


def test_mmd_of_gaussians_is_the_closed_form():
    # E k(a, b) = (1 + 2/w^2)^(-1/2) exp(-d^2 / (2 (w^2 + 2))) for unit 1-D Gaussians at distance d; tolerance 5 s.e.
    x, y = jax.random.normal(jax.random.key(1), (2, 2000, 1)) + jnp.array([0.0, 1.0])[:, None, None]
    expected = 2 * (1 - np.exp(-1 / 6)) / np.sqrt(3)
    assert float(metrics.mmd(x, y, bandwidth=1.0)) == pytest.approx(expected, abs=0.04)


def test_mmd_takes_the_median_distance_where_no_bandwidth_is_given():
    x, y = jax.random.normal(jax.random.key(2), (2, 30, 2))
    distances = np.linalg.norm(np.asarray(x)[:, None] - np.asarray(y)[None], axis=-1)
    np.testing.assert_allclose(metrics.mmd(x, y), metrics.mmd(x, y, float(np.median(distances))), rtol=1e-4, atol=1e-6)


def test_mmd_of_repeated_points_counts_which_are_equal():
    """Most distances between the sets are 0, and so is their median; shares 3/4 and 1/4 against 1 and 0 by pairs."""
    x, y = jnp.array([0.0, 0.0, 0.0, 5.0])[:, None], jnp.zeros((4, 1))
    assert float(metrics.mmd(x, y)) == pytest.approx(6 / 12 + 1 - 2 * 3 / 4)


def test_sliced_wasserstein_of_a_shift_is_its_length_over_root_dimension():
    # One direction's squared length has mean 1/5 and deviation 0.18: 5 standard errors at 4096 slices are 7 percent.
    x = jax.random.normal(jax.random.key(3), (50, 5))
    shift = jnp.array([3.0, 0.0, -4.0, 0.0, 0.0])
    distance = metrics.sliced_wasserstein(jax.random.key(4), x, x + shift[None, :], slices=4096)
    assert float(distance) == pytest.approx(5.0 / np.sqrt(5.0), rel=0.035)


def test_sliced_wasserstein_ignores_the_order_of_samples():
    x = jax.random.normal(jax.random.key(5), (32, 2, 2))
    assert float(metrics.sliced_wasserstein(jax.random.key(6), x, x[::-1])) == 0.0
    with pytest.raises(ValueError, match="as many samples"):
        metrics.sliced_wasserstein(jax.random.key(6), x, x[:10])
