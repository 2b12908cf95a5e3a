"""Moments of streams: those of the whole set, however it is cut, without cancellation; and the Frechet distance."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffsample import metrics

X = np.random.default_rng(0).normal(size=(101, 5)) @ np.random.default_rng(1).normal(size=(5, 5))


def chunks(x: np.ndarray, *cuts: int) -> list[np.ndarray]:
    return np.split(x, cuts)


@pytest.mark.parametrize("cuts", [(), (1,), (100,), (7, 8, 60), tuple(range(1, 101))], ids=len)
def test_moments_of_a_stream_are_those_of_the_whole_set(cuts):
    found = metrics.streamed_moments(chunks(X, *cuts))
    assert found.count == 101 and found.mean.dtype == found.scatter.dtype == np.float64
    np.testing.assert_allclose(found.mean, X.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(X.T), rtol=1e-12, atol=1e-13)


def test_moments_do_not_cancel_far_from_the_origin():
    """At a mean of 1e5 the squares are 1e10, of which float64 keeps 1e-6: E[x^2] - mean^2 would be wrong in the sixth
    digit, and in float32 by more than the variance itself."""
    far = (X + 1e5).astype(np.float32)
    found = metrics.streamed_moments(jnp.asarray(part) for part in chunks(far, 10, 50))
    np.testing.assert_allclose(found.covariance, np.cov(far.astype(np.float64).T), rtol=1e-9, atol=1e-10)


def test_moments_merge_in_any_order_and_shape_of_tree():
    parts = [metrics.update_moments(None, part) for part in chunks(X, 5, 40, 41)]
    trees = [functools.reduce(metrics.merge_moments, order) for order in itertools.permutations(parts)]
    trees.append(metrics.merge_moments(metrics.merge_moments(*parts[:2]), metrics.merge_moments(*parts[2:])))
    for found in trees:
        np.testing.assert_allclose(found.covariance, np.cov(X.T), rtol=1e-12, atol=1e-13)


def test_features_are_applied_to_every_chunk():
    features = jax.jit(lambda x: jnp.stack([x.sum(axis=1), x[:, 0] ** 2], axis=1))
    found = metrics.streamed_moments(chunks(X.astype(np.float32), 30, 31), features)
    expected = np.stack([X.sum(axis=1), X[:, 0] ** 2])
    np.testing.assert_allclose(found.covariance, np.cov(expected), rtol=1e-5)


def test_frechet_distance_of_streams_is_that_of_the_sets():
    one, two = metrics.streamed_moments(chunks(X, 33)), metrics.streamed_moments(chunks(2 * X + 1, 70))
    streamed = metrics.frechet_distance(one.mean, one.covariance, two.mean, two.covariance)
    whole = metrics.frechet_distance(*metrics.moments(X), *metrics.moments(2 * X + 1))
    assert streamed == pytest.approx(whole, rel=1e-11)


def test_moments_refuse_what_has_none():
    with pytest.raises(ValueError, match="no chunk"):
        metrics.streamed_moments([])
    with pytest.raises(ValueError, match=r"B >= 1, got shape \(0, 3\)"):
        metrics.update_moments(None, np.zeros((0, 3)))
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        _ = metrics.update_moments(None, X[:1]).covariance
    with pytest.raises(ValueError, match="of 2 and of 5 dimensions"):
        metrics.update_moments(metrics.update_moments(None, X), X[:, :2])
