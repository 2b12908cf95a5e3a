"""Importance sampling with control variates for several expectations (specs/smc.md, section 6)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

from diffsample import smc
from diffsample.smc import GaussianMixture

TAIL = 6.209665e-3  # P(x > 2.5)


def log_f(x):
    return norm.logpdf(x[:, 0])


def functions(x):
    return jnp.concatenate([x > 2.5, x**2], axis=1).astype(x.dtype)


def mixture():
    return GaussianMixture(jnp.array([0.4, 0.6]), jnp.array([[0.0], [2.9]]), jnp.array([[[1.0]], [[0.45]]]))


def test_optimal_controls_leave_no_variance_for_any_proposal(x64):
    """phi = (x^2, e^x) under N(0, 1): q_j = phi_j f / I_j, B = diag(I), one sample of N(0.3, 1.5^2)."""
    x = 0.3 + 1.5 * jax.random.normal(jax.random.key(0), (20, 1))
    log_h = norm.logpdf(x[:, 0], 0.3, 1.5)
    truth = np.array([1.0, np.exp(0.5)])
    values = jnp.concatenate([x**2, jnp.exp(x)], axis=1)
    log_q = jnp.stack([2 * jnp.log(jnp.abs(x[:, 0])) + norm.logpdf(x[:, 0]), norm.logpdf(x[:, 0], 1.0)], axis=1)
    found = smc.importance_sampling(
        values, log_f(x) - log_h, smc.density_controls(log_q, log_h), jnp.diag(jnp.asarray(truth))
    )
    np.testing.assert_allclose(found.value, truth, rtol=1e-13)
    np.testing.assert_allclose(found.std_error, 0.0, atol=1e-13)


def test_importance_sampling_has_the_spread_of_the_card():
    """sd of (tail, second moment), N = 2000: plain (2.12e-4, 0.0455), with controls (1.81e-4, 0.0409)."""
    h, runs = mixture(), 1500

    def one(key):
        x = h.draw(key, 2000)
        log_h = h.log_prob(x)
        controls = smc.density_controls(h.log_components(x)[:, :1], log_h)
        plain = smc.importance_sampling(functions(x), log_f(x) - log_h)
        return plain, smc.importance_sampling(functions(x), log_f(x) - log_h, controls)

    plain, controlled = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=50))(
        jax.random.split(jax.random.key(0), runs)
    )
    for found, sds in ((plain, (2.12e-4, 0.0455)), (controlled, (1.81e-4, 0.0409))):
        value, error = np.asarray(found.value, np.float64), np.asarray(found.std_error)
        np.testing.assert_array_less(np.abs(value.mean(axis=0) - [TAIL, 1.0]), 4.4 * value.std(axis=0) / runs**0.5)
        np.testing.assert_allclose(value.std(axis=0), sds, rtol=4.4 / (2 * runs) ** 0.5)
        np.testing.assert_allclose(error.mean(axis=0), sds, rtol=0.03)


def test_mixture_density_integrates_its_components(x64):
    h = mixture()
    x = jnp.linspace(-8.0, 8.0, 4001)[:, None]
    expected = 0.4 * norm.pdf(x[:, 0]) + 0.6 * norm.pdf(x[:, 0], 2.9, 0.45)
    np.testing.assert_allclose(jnp.exp(h.log_prob(x)), expected, rtol=1e-12)
    drawn = np.asarray(h.draw(jax.random.key(0), 40_000))
    assert abs(drawn.mean() - 1.74) < 4.4 * drawn.std() / 200
    assert abs((drawn > 2.0).mean() - 0.4 * norm.sf(2.0) - 0.6 * norm.cdf(2.0)) < 4.4 * 0.5 / 200


def test_adaptive_importance_sampling_finds_both_expectations():
    start = GaussianMixture(jnp.ones(1), jnp.zeros((1, 1)), jnp.full((1, 1, 1), 2.0))

    found = [
        smc.adaptive_importance_sampling(jax.random.key(i), log_f, functions, start, budget=6000) for i in range(8)
    ]
    values = np.array([one.estimate.value for one in found], np.float64)
    errors = np.array([one.estimate.std_error for one in found], np.float64)
    z = (values - [TAIL, 1.0]) / errors
    assert np.abs(z.mean(axis=0)).max() < 4.4 / 8**0.5
    assert np.abs(z).max() < 4.9
    # plain Monte Carlo of 6000 draws has (1.01e-3, 0.0183); the tail gains most, and the second moment does not lose
    assert errors.mean(axis=0)[0] < 2.5e-4
    assert errors.mean(axis=0)[1] < 0.0183
    assert all(one.rounds >= 2 and one.samples == 6000 - 1000 * one.rounds for one in found)


def test_importance_sampling_refuses_what_does_not_belong_together():
    with pytest.raises(ValueError, match=r"must be \[N, J\]"):
        smc.importance_sampling(jnp.zeros(3), jnp.zeros(3))
    with pytest.raises(ValueError, match=r"must be \[3, m\]"):
        smc.importance_sampling(jnp.zeros((3, 1)), jnp.zeros(3), jnp.zeros((4, 1)))
    with pytest.raises(ValueError, match="none were given"):
        smc.importance_sampling(jnp.zeros((3, 1)), jnp.zeros(3), None, jnp.zeros((1, 1)))
    with pytest.raises(ValueError, match="budget=100"):
        smc.adaptive_importance_sampling(jax.random.key(0), log_f, functions, mixture(), budget=100)
    with pytest.raises(ValueError, match="safety=1"):
        smc.adaptive_importance_sampling(jax.random.key(0), log_f, functions, mixture(), budget=9000, safety=1.0)
