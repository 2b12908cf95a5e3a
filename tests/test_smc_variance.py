"""One run's own error bars, adaptive increments, waste-free clouds: against many runs and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from state_space import LOG_EVIDENCE, OBSERVED, Bootstrap, Observation

import diffsample as ds
from diffsample import smc

KEY = jax.random.key(3)


def filtered(particles: int, runs: int, policy, genealogy: bool = False) -> smc.Particles:
    fk = smc.feynman_kac(
        Bootstrap(OBSERVED),
        Observation(OBSERVED),
        particles=particles,
        resample=smc.multinomial,
        policy=policy,
        genealogy=genealogy,
    )
    return ds.sample(KEY, fk, (runs * particles,))


def test_lee_whiteley_estimate_is_unbiased_for_the_variance_of_the_normaliser():
    out = filtered(50, 4000, smc.always)
    relative = np.exp(np.asarray(out.log_z) - LOG_EVIDENCE)
    estimate = np.asarray(smc.variances(out, out.x[:, 0]).log_z) * relative**2
    truth = relative.var()
    error = np.hypot(estimate.std(), ((relative - 1) ** 2).std()) / np.sqrt(4000)
    assert abs(estimate.mean() - truth) < 4 * error
    assert 0.28 < truth < 0.42  # specs/smc.md 1.7: 0.3385, estimated as 0.341


def test_chan_lai_estimate_is_near_the_variance_of_a_filtered_mean():
    out = filtered(200, 1000, smc.always)
    means = np.asarray(out.mean(out.x[:, 0]))
    estimate = np.asarray(smc.variances(out, out.x[:, 0]).mean)
    assert 0.7 < estimate.mean() / means.var() < 1.3
    assert abs(np.std(out.log_z) - 0.28) < 4 * 0.28 / np.sqrt(2000) + 0.005  # specs/smc.md 9.4, to two digits
    short = smc.variances(filtered(200, 1000, smc.always, genealogy=True), out.x[:, 0], lag=2)
    assert 0.7 < np.asarray(short.mean).mean() / means.var() < 1.3
    assert (short.families > smc.variances(out, out.x[:, 0]).families).mean() > 0.9


def test_variances_of_independent_weighted_draws_are_those_of_importance_sampling():
    out = filtered(400, 2, smc.never)
    w, phi = np.asarray(out.weights, np.float64), np.asarray(out.x[:, 0], np.float64).reshape(2, 400)
    found = smc.variances(out, out.x[:, 0])
    unbiased = w.shape[1] * ((w - 1 / 400) ** 2).sum(axis=1) / 399  # sample variance of w / mean w, over K
    np.testing.assert_allclose(found.log_z, unbiased, rtol=1e-3)
    spread = (w**2 * (phi - (w * phi).sum(axis=1, keepdims=True)) ** 2).sum(axis=1)
    np.testing.assert_allclose(found.mean, 400 / 399 * spread, rtol=1e-4)
    assert (found.families == 400).all()


def test_variances_refuse_wrong_values_and_lags():
    out = filtered(4, 2, smc.always)
    with pytest.raises(ValueError, match=r"\[8\], got shape \(4,\)"):
        smc.variances(out, jnp.zeros(4))
    for lag in (0, 2):
        with pytest.raises(ValueError, match=f"lag={lag}"):
            smc.variances(out, jnp.zeros(8), lag=lag)


@pytest.mark.parametrize("conditional", [False, True])
def test_increment_leaves_exactly_the_effective_size_asked_for(conditional, x64):
    log_w, reward = jax.random.normal(KEY, (3, 500)), 4 * jax.random.normal(jax.random.key(1), (3, 500))
    for share in (0.3, 0.6):
        find = jax.vmap(lambda w, r, share=share: smc.next_increment(w, r, 9.0, share, conditional=conditional))
        delta = find(log_w * conditional, reward)
        w = np.exp(np.asarray(log_w * conditional))
        g = np.exp(np.asarray(delta[:, None] * reward))
        after = (w * g).sum(1) ** 2 / ((w * g) ** 2).sum(1)
        if conditional:
            after = 500 * (w * g).sum(1) ** 2 / w.sum(1) / (w * g**2).sum(1)
        np.testing.assert_allclose(after / 500, share, rtol=1e-5)
    assert smc.next_increment(log_w[0], jnp.zeros(500), 9.0, 0.01) == 9.0


def test_adaptive_tempering_reaches_a_gaussian_posterior():
    # N(0, 1) tilted by exp(-2 (x - 2)^2): Z = 0.0902909, N(1.6, 0.2); moves are exact draws of the tempered law
    def temper(key):
        def step(carry, number):
            x, log_w, log_z, beta = carry
            reward = -2 * (x - 2) ** 2
            delta = smc.next_increment(log_w, reward, 1 - beta, 0.5)
            log_z = log_z + jax.nn.logsumexp(delta * reward) - jnp.log(2000.0)
            beta = beta + delta
            noise = jax.random.normal(jax.random.fold_in(key, number), x.shape)
            return (8 * beta / (1 + 4 * beta) + noise / jnp.sqrt(1 + 4 * beta), log_w, log_z, beta), delta

        x = jax.random.normal(jax.random.fold_in(key, 99), (2000,))
        return jax.lax.scan(step, (x, jnp.zeros(2000), jnp.zeros(()), jnp.zeros(())), jnp.arange(8))

    (x, _, log_z, beta), deltas = jax.jit(jax.vmap(temper))(jax.random.split(KEY, 20))
    np.testing.assert_allclose(beta, 1.0, rtol=1e-6)
    assert (deltas[:, 0] > 0).all() and (deltas[:, 0] < 0.8).all() and (deltas[:, 1] > deltas[:, 0]).all()
    z = np.exp(np.asarray(log_z)) / 0.0902909
    assert abs(z.mean() - 1) < 4 * z.std() / np.sqrt(20) + 1e-3
    assert abs(x.mean() - 1.6) < 4 * np.sqrt(0.2 / x.size)


def autoregression(keys, x):
    """A Markov kernel that leaves N(0, 1) invariant, with correlation 0.6."""
    return 0.6 * x + 0.8 * jax.vmap(jax.random.normal)(keys)


def test_waste_free_cloud_has_the_target_law_and_says_its_variance():
    # particles of N(0.5, 1) weighted to N(0, 1), then refreshed: the mean of x stays unbiased up to O(1/K)
    def one(key):
        start, run = jax.random.split(key)
        x = 0.5 + jax.random.normal(start, (960,))
        cloud = smc.refresh(run, x, 0.125 - 0.5 * x, autoregression, 40)
        return cloud.mean(), (cloud**2).mean(), smc.chain_variance(cloud, jnp.zeros(960), 40)

    means, seconds, said = map(np.asarray, jax.jit(jax.vmap(one))(jax.random.split(KEY, 3000)))
    assert abs(means.mean()) < 4 * means.std() / np.sqrt(3000) + 1e-3
    assert abs(seconds.mean() - 1) < 4 * seconds.std() / np.sqrt(3000) + 2e-3
    assert 0.8 < said.mean() / means.var() < 1.25
    independent = 1 / 960  # what the correlation of the chains costs: (1 + 0.6) / (1 - 0.6) = 4
    assert 2.5 < means.var() / independent < 5


@pytest.mark.parametrize("chains", [0, 7, 12])
def test_waste_free_refuses_chains_that_do_not_divide_the_cloud(chains):
    with pytest.raises(ValueError, match=f"chains={chains}"):
        smc.refresh(KEY, jnp.zeros(12), jnp.zeros(12), autoregression, chains)
