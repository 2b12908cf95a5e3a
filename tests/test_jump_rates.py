"""Discrete Feynman-Kac correctors: the weighted flow against the path of laws, by enumeration (specs/smc.md 4.1-2)."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import token_paths as tp

import diffsample as ds
from diffsample import smc
from diffsample.smc import Growth, Jumps, corrected_jumps, jump_process, tempered_unmasking_jumps, unmasking_jumps

EXPONENTS = np.array([0.7, 1.6])


def flow(law, rates_out, targets, growth):
    """d/dtau of weighted particles of this law: in by jumps, out by jumps, growth of the weights; [S]."""
    into = np.zeros_like(law)
    np.add.at(into, targets.ravel(), (law[:, None, None] * rates_out).ravel())
    return into - law * rates_out.sum(axis=(1, 2)) + growth * law


def neighbours(states, vocab):
    """Index of each state with token v at position l, [S, L, V]."""
    base = int(states.max()) + 1
    places = base ** np.arange(states.shape[1])[::-1]
    changed = (np.arange(vocab)[None, None] - states[:, :, None]) * places[None, :, None]
    return (states @ places)[:, None, None] + changed


def uniform_model(seed):
    """(states, neighbours, forward rates [S, L, V], two positive laws q_i, their derivatives in tau)."""
    states = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    near, rng = neighbours(states, 3), np.random.default_rng(seed)
    forward = np.where(near == np.arange(27)[:, None, None], 0.0, rng.uniform(0.3, 1.0))
    laws = rng.dirichlet(np.ones(27), size=2)
    # noising flows forward in t: d q / d tau = -(in - out)
    moves = np.stack([-flow(law, forward, near, np.zeros(27)) for law in laws])
    return states, near, forward, laws, moves


@pytest.mark.parametrize("scale", [None, 1.0, 0.3])
def test_corrected_jumps_follow_the_product_of_experts(x64, scale):
    """Random laws, exponents that move, a reward that moves; every scale c (specs/smc.md 9.1 b, c)."""
    _, near, forward, laws, moves = uniform_model(1)
    rng = np.random.default_rng(2)
    rho, rho_dot, beta_dot = rng.normal(size=27), rng.normal(size=27), np.array([0.4, -0.9])
    log_q = np.log(laws)
    target = np.prod(laws ** EXPONENTS[:, None], axis=0) * np.exp(rho)
    wanted = target * (EXPONENTS @ (moves / laws) + beta_dot @ log_q + rho_dot)
    jumps = corrected_jumps(
        jnp.asarray(forward),
        jnp.asarray(forward),  # symmetric rates
        jnp.asarray(log_q[:, near] - log_q[:, :, None, None]),
        EXPONENTS,
        gain=jnp.asarray(rho[near] - rho[:, None, None]),
        drift=jnp.asarray(rho_dot + beta_dot @ log_q),
        scale=scale,
    )
    found = flow(target, np.asarray(jumps.rates), near, np.asarray(jumps.growth))
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    assert np.abs(flow(target, np.asarray(jumps.rates), near, 0.0) - wanted).max() > 1e-3


def test_one_expert_alone_grows_no_weight(x64):
    _, near, forward, laws, _ = uniform_model(3)
    ratios = np.log(laws)[:1][:, near] - np.log(laws)[:1][:, :, None, None]
    jumps = corrected_jumps(jnp.asarray(forward), jnp.asarray(forward), jnp.asarray(ratios), np.ones(1))
    np.testing.assert_allclose(jumps.growth, 0.0, atol=1e-12)


def masked_model():
    """(states of tokens 0..2 and the mask 3, neighbours, clean marginals of two chains, exact log-laws)."""
    states = np.stack(np.meshgrid(*[np.arange(4)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    experts = [tp.chain(), tp.other_chain()]
    clean = np.exp(np.stack([np.asarray(c.log_prob(jnp.asarray(states))) for c in experts]))
    log_p = jnp.log(jnp.stack([c.law(jnp.asarray(states)) for c in experts]))
    return states, neighbours(states, 3), clean, log_p


def masked_flows(alpha, slope):
    """Each form's (target, its derivative, jumps) with a random reward at alpha(t), a = -d alpha / dt."""
    states, near, clean, log_p = masked_model()
    rng, masks = np.random.default_rng(4), (states == 3).sum(axis=1)
    rho, rho_dot = rng.normal(size=64), rng.normal(size=64)
    masked = jnp.asarray(states == 3)
    gain = jnp.asarray(np.where((states == 3)[..., None], rho[near] - rho[:, None, None], 0.0))
    share = (1 - alpha) ** masks * alpha ** (3 - masks)
    share_dot = share * slope * ((3 - masks) / alpha - masks / (1 - alpha))  # in tau alpha rises
    tokens = np.prod(clean ** EXPONENTS[:, None], axis=0) * np.exp(rho)
    plain = unmasking_jumps(log_p, masked, EXPONENTS, slope / (1 - alpha), gain=gain, drift=jnp.asarray(rho_dot))
    b = EXPONENTS.sum()
    tempered = tempered_unmasking_jumps(log_p, masked, EXPONENTS, alpha, slope, gain=gain, drift=jnp.asarray(rho_dot))
    yield share * tokens, (share_dot + share * rho_dot) * tokens, plain
    yield share**b * tokens, (b * share_dot / share + rho_dot) * share**b * tokens, tempered


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.85])
def test_unmasking_jumps_follow_their_paths(x64, alpha):
    _, near, *_ = masked_model()
    for target, wanted, jumps in masked_flows(alpha, slope=1.3):
        found = flow(target, np.asarray(jumps.rates), near, np.asarray(jumps.growth))
        np.testing.assert_allclose(found, wanted, atol=1e-12)
        assert np.abs(flow(target, np.asarray(jumps.rates), near, 0.0) - wanted).max() > 1e-3


def test_tempered_unmasking_has_the_published_coefficients(x64):
    """Linear schedule: rate beta (1 - t)^(beta - 1) / t^beta, offset -beta / t (released code of the paper)."""
    *_, log_p = masked_model()
    masked, beta, t = jnp.ones((64, 3), bool), 1.7, 0.3
    jumps = tempered_unmasking_jumps(log_p[:1], masked, [beta], 1 - t, 1.0)
    rate = beta * (1 - t) ** (beta - 1) / t**beta
    np.testing.assert_allclose(jumps.rates, rate * np.exp(beta * np.asarray(log_p[0])), rtol=1e-12)
    total = np.exp(beta * np.asarray(log_p[0])).sum(axis=(1, 2))
    np.testing.assert_allclose(jumps.growth, rate * total - 3 * beta / t, rtol=1e-12)


def test_neighbour_gains_are_differences_of_rewards(x64):
    x = jnp.array([[3, 0, 3], [1, 3, 2]])
    table = jax.random.normal(jax.random.key(0), (4, 4, 4))

    def reward(x):
        return table[x[:, 0], x[:, 1], x[:, 2]]

    gains = np.asarray(smc.neighbour_gains(reward, x, x == 3, 3, batch_size=2))
    for b, (at, v) in itertools.product(range(2), itertools.product(range(3), range(3))):
        row = np.asarray(x[b]).copy()
        expected = 0.0
        if row[at] == 3:
            row[at] = v
            expected = float(reward(jnp.asarray(row)[None])[0] - reward(x[b : b + 1])[0])
        assert gains[b, at, v] == pytest.approx(expected, abs=1e-12)


def annealed(model, beta):
    """Path B of a chain tempered to beta, on the linear schedule t = 1 - alpha."""

    def rates(x, t, cond):
        return unmasking_jumps(jnp.log(model.law(x))[None], x == 3, [beta], 1 / t)

    return rates


def test_jump_process_with_growth_samples_the_tempered_chain():
    """K = 32, 300 groups, 240 steps in log t: a normaliser within 4 standard errors and 5 % (13 % at 60 steps)."""
    groups, k, beta = 300, 32, 2.0
    process = jump_process(annealed(tp.chain(), beta), np.geomspace(1.0, 1e-3, 241), vocab=3, start=3)
    out = ds.sample(jax.random.key(0), smc.feynman_kac(process, Growth(), particles=k), (groups * k, 3))
    whole = (np.asarray(out.x) != 3).all(axis=1).reshape(groups, k)
    wanted = np.exp(beta * np.asarray(tp.chain().log_prob(jnp.asarray(tp.sequences()))))
    weight = np.asarray(out.weights) * np.exp(np.asarray(out.log_z))[:, None] * whole
    ratio = weight.sum(axis=1) / wanted.sum()
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / groups**0.5 + 0.05
    place = np.asarray(out.grouped) @ np.array([9, 3, 1])
    law = np.bincount(place[whole], weight[whole], minlength=27)
    tv = 0.5 * np.abs(law / law.sum() - wanted / wanted.sum()).sum()
    plain = 0.5 * np.abs(np.exp(np.asarray(tp.chain().log_prob(jnp.asarray(tp.sequences())))) - wanted / wanted.sum())
    assert tv < 0.03 < 0.2 < plain.sum()


def test_growth_starts_from_the_part_of_the_target_that_the_prior_lacks(x64):
    """A process that never jumps, uniform start, log_start of the sum of tokens: Z = (1 + 2 + 4)^2 / 9 for 2^sum."""

    def idle(x, t, cond):
        return Jumps(jnp.zeros((*x.shape, 3)), jnp.zeros(x.shape[0]))

    potential = Growth(lambda x: jnp.log(2.0) * jnp.sum(x, axis=1))
    run = smc.feynman_kac(jump_process(idle, [1.0, 0.5, 0.0], vocab=3), potential, particles=50_000, policy=smc.never)
    out = ds.sample(jax.random.key(0), run, (50_000, 2))
    assert float(jnp.exp(out.log_z[0])) == pytest.approx(49 / 9, rel=0.02)


def test_jump_process_refuses_rising_times():
    with pytest.raises(ValueError, match="falling"):
        jump_process(lambda x, t, cond: Jumps(x, x), [0.0, 1.0], vocab=3)
