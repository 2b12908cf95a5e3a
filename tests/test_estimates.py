"""Calibrated weights, Stein controls and standard errors against exact answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffsample import smc

MEAN, COVARIANCE = np.array([1.0, -2.0]), np.array([[1.0, 0.6], [0.6, 2.0]])


def weighted_points(n=50):
    """Any points and weights; the target knows nothing of them."""
    x, log_w = jax.random.uniform(jax.random.key(0), (n, 2), minval=-3.0), jax.random.normal(jax.random.key(1), (n,))
    score = -(x - MEAN[None]) @ np.linalg.inv(COVARIANCE)
    return x, log_w, score


def test_calibrated_weights_give_a_gaussian_its_mean_from_any_points(x64):
    x, log_w, score = weighted_points()
    weights = smc.calibrated_weights(log_w, smc.stein_controls(x, score))
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(weights @ x, MEAN, atol=1e-12)
    assert np.abs(jax.nn.softmax(log_w) @ x - MEAN).max() > 0.3


def test_quadratic_stein_controls_give_a_gaussian_its_covariance_from_any_points(x64):
    x, log_w, score = weighted_points()
    found = smc.expectation(x[:, :, None] * x[:, None], log_w, smc.stein_controls(x, score, order=2))
    np.testing.assert_allclose(found.value, COVARIANCE + np.outer(MEAN, MEAN), atol=1e-10)
    np.testing.assert_allclose(found.std_error, 0.0, atol=1e-10)


def test_calibration_counts_dependent_controls_once(x64):
    _, log_w, score = weighted_points()
    twice = jnp.concatenate([score, 1e6 * score[:, :1] + 1e6 * score[:, 1:], jnp.zeros((50, 1))], axis=1)
    np.testing.assert_allclose(
        smc.calibrated_weights(log_w, twice), smc.calibrated_weights(log_w, score), rtol=1e-8, atol=1e-12
    )


@pytest.mark.parametrize("controlled", [False, True])
def test_expectation_states_an_honest_standard_error(controlled):
    """Target N(0, 1) from N(0.3, 1.3^2), phi = (x, x^3, x > 1), N = 400, 2000 runs."""

    def one(key):
        x = 0.3 + 1.3 * jax.random.normal(key, (400, 1))
        log_w = 0.5 * ((x[:, 0] - 0.3) / 1.3) ** 2 - 0.5 * x[:, 0] ** 2
        values = jnp.concatenate([x, x**3, x > 1.0], axis=1)
        return smc.expectation(values, log_w, smc.stein_controls(x, -x, order=2) if controlled else None)

    found = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 2000))
    spread = np.asarray(found.value).std(axis=0)
    if controlled:
        np.testing.assert_allclose(found.value[:, 0], 0.0, atol=1e-5)
        spread, stated = spread[1:], np.asarray(found.std_error)[:, 1:].mean(axis=0)
    else:
        stated = np.asarray(found.std_error).mean(axis=0)
    # the spread is known to 1.6 %, and the plug-in error is biased by O(1/N)
    np.testing.assert_allclose(stated, spread, rtol=0.08)
    truth, bias = np.array([0.0, 0.0, 0.158655]), 2.0 / 400
    np.testing.assert_array_less(np.abs(np.asarray(found.value).mean(axis=0) - truth), bias)


def test_groups_pool_to_the_unbiased_ratio():
    means, log_z = jnp.array([[1.0, 0.0], [4.0, 2.0]]), jnp.log(jnp.array([3.0, 1.0]))
    found = smc.pooled(means, log_z)
    np.testing.assert_allclose(found.value, [1.75, 0.5], rtol=1e-6)
    np.testing.assert_allclose(found.std_error, np.array([2.25, 1.5]) / 4 * np.sqrt(2) * 3 / 4, rtol=0.7)


def test_normaliser_error_is_the_spread_of_the_mean():
    """64 groups of log-normal estimates, sd 0.3 on the log scale."""

    def one(key):
        return smc.normaliser(0.3 * jax.random.normal(key, (64,)) - 0.045)

    found = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 2000))
    assert abs(float(jnp.exp(found.value).mean()) - 1) < 4 * float(found.value.std()) / 2000**0.5
    assert float(found.std_error.mean()) == pytest.approx(float(found.value.std()), rel=0.08)


def test_estimates_refuse_what_does_not_belong_together():
    with pytest.raises(ValueError, match="leading axis"):
        smc.expectation(jnp.zeros((3, 2)), jnp.zeros(4))
    with pytest.raises(ValueError, match="m < N"):
        smc.calibrated_weights(jnp.zeros(3), jnp.zeros((3, 3)))
    with pytest.raises(ValueError, match="order=3"):
        smc.stein_controls(jnp.zeros((3, 2)), jnp.zeros((3, 2)), order=3)
    with pytest.raises(ValueError, match="one shape"):
        smc.stein_controls(jnp.zeros((3, 2)), jnp.zeros((3, 1)))
