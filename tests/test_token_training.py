"""Losses over tokens: contrastive energies, partition bounds, marginal models; exact expectations by given draws."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import token_paths as tp

from diffsample import discrete, exact, smc
from diffsample.exact.enumeration import _Replay

double = pytest.mark.usefixtures("x64")
EVERY, MASKS = tp.sequences(), np.full(3, 3)
PLACES = np.array([9, 3, 1])


def given(tokens, ranks=None) -> Any:
    """Draws prepared beforehand, by stream."""
    return Given(tokens, ranks)


class Given:
    """See `given`."""

    def __init__(self, tokens, ranks=None):
        self.answers, self.order = tokens, ranks

    def at(self, stream):
        return Given(self.answers[stream] if isinstance(self.answers, dict) else self.answers, self.order)

    def tokens(self, log_p, valid):
        return self.answers

    def ranks(self, log_w):
        return self.order


def joint():
    return np.exp(np.asarray(tp.chain().log_prob(jnp.asarray(EVERY)), np.float64))


def factorised():
    law = np.asarray(tp.chain().law(jnp.asarray(MASKS[None])))[0]
    return np.prod(law[np.arange(3), EVERY], axis=1)


def table(params, x0, x):
    return params[x0 @ jnp.asarray(PLACES)]


def pairs():
    """(data, draw, probability) of all 729 pairs of a sequence of the chain and one of the factorised law."""
    i, j = np.meshgrid(np.arange(27), np.arange(27), indexing="ij")
    return EVERY[i.ravel()], EVERY[j.ravel()], (joint()[:, None] * factorised()).ravel()


@double
def test_contrastive_training_recovers_the_energy_of_the_joint_law():
    """Newton's method on the exact expectation of the loss, from energies of zero."""
    data, noise, p = (jnp.asarray(a) for a in pairs())

    def expected(params):
        energy = smc.network_energy(table, params)
        every = jnp.ones(data.shape, bool)
        return jnp.sum(p * smc.nce_loss(given(noise), tp.chain().model(), energy, data, every))

    params = jnp.zeros(27)
    gradient, curvature = jax.jit(jax.grad(expected)), jax.jit(jax.hessian(expected))
    for _ in range(25):
        params = params - jnp.linalg.solve(curvature(params), gradient(params))
    np.testing.assert_allclose(params, np.log(factorised()) - np.log(joint()), atol=1e-8)
    # the trained energy picks by the same law as the joint law's own
    laws = []
    for energy in (smc.network_energy(table, params), smc.joint_energy(tp.chain().log_prob)):
        policy = smc.energy_pick(discrete.given_order([0, 0, 0]), energy)
        laws.append(exact.output_law(discrete.Decoder(tp.chain().model(), policy), MASKS, rows=256).p)
    np.testing.assert_allclose(laws[0], laws[1], atol=1e-9)


@pytest.mark.slow
@double
def test_contrast_with_several_negatives_has_the_same_minimiser():
    data, noise, p = (jnp.asarray(a) for a in pairs())
    best = jnp.log(jnp.asarray(factorised())) - jnp.log(jnp.asarray(joint()))

    def expected(params):
        draws = given({0: noise, 1: noise, 2: noise})
        energy, every = smc.network_energy(table, params), jnp.ones(data.shape, bool)
        return jnp.sum(p * smc.nce_loss(draws, tp.chain().model(), energy, data, every, negatives=3))

    np.testing.assert_allclose(jax.grad(expected)(best), 0.0, atol=1e-12)
    assert np.abs(jax.grad(expected)(best + 0.1 * jnp.arange(27))).max() > 1e-3


ENERGIES = np.random.default_rng(3).normal(size=27)


@double
@pytest.mark.parametrize("draws", [1, 2])
def test_partition_bounds_bracket_the_partition_function(draws):
    """Expectations over all tuples of draws, and over the tilted law; the sign of E is that of exp(-E)."""
    energy, weight = smc.network_energy(table, jnp.asarray(ENERGIES)), factorised() * np.exp(-ENERGIES)
    log_z, expected = np.log(weight.sum()), np.zeros(2)
    x = jnp.full((27**draws, 3), 3)
    index = np.array(list(itertools.product(range(27), repeat=draws)))
    p = factorised()[index].prod(axis=1)
    drawn = given({i: jnp.asarray(EVERY[index[:, i]]) for i in range(draws)})
    for at in range(27):
        tilted = jnp.broadcast_to(jnp.asarray(EVERY[at]), x.shape)
        found = smc.partition_bounds(drawn, tp.chain().model(), energy, x, tilted, draws=draws)
        expected += weight[at] / weight.sum() * np.array([p @ np.asarray(bound) for bound in found])
    assert expected[0] < log_z - 0.05 and expected[1] > log_z + 0.05
    if draws == 2:
        one = p.reshape(27, 27).sum(axis=1) @ -ENERGIES  # E log mean over one draw
        assert expected[0] > one + 0.05


@pytest.mark.slow
@double
def test_bounds_of_an_exact_energy_are_its_likelihood_once_draws_are_many():
    """Z = 1: bounds near 0 at 4000 draws, and joint_loss near -log p, for partly masked sequences too."""
    x0, masked = jnp.asarray(EVERY[::5]), jnp.asarray(EVERY[::5] != 1)
    energy, model = smc.joint_energy(tp.chain().log_prob), tp.chain().model()
    bounds = smc.joint_loss(jax.random.key(0), model, energy, x0, masked, draws=400)
    seen = jnp.where(masked, 3, x0)
    wanted = tp.chain().log_prob(seen) - tp.chain().log_prob(x0)
    for bound in bounds:  # weights of variance below 3 (1 / .276 - 1): standard error of log Z below 0.09 at 400 draws
        assert np.abs(np.asarray(bound - wanted)).max() < 4.5 * 0.09
    # all masked, no energy: the factorised law's own likelihood
    free = smc.joint_loss(jax.random.key(0), model, lambda x0, x, log_mu: 0.0 * log_mu, x0, x0 >= 0, draws=2)
    np.testing.assert_allclose(free.upper, -np.log(factorised()[::5]), rtol=1e-12)


def chain_parts():
    """A marginal and a conditional network that are tables: [64], and [64, 3, 3] logits."""

    def log_marginal(params, x, cond):
        return params[x @ jnp.array([16, 4, 1])]

    def logits(params, x, cond):
        return params[x @ jnp.array([16, 4, 1])]

    return (
        lambda params: discrete.MarginalModel(log_marginal, params, 3, 3),
        lambda params: discrete.from_logits(logits, params, 3, 3),
    )


STATES = np.array(list(itertools.product(range(4), repeat=3)))


def orders():
    """(ranks, d - 1) of all 18 pairs of an order and a length."""
    both = list(itertools.product(itertools.permutations(range(3)), range(3)))
    return np.array([list(o) for o, _ in both]), np.array([[[d]] for _, d in both])


def expected_consistency(marginal, conditional, weights, log_z):
    """Of all sequences with these weights, orders and lengths."""
    ranks, last = orders()
    x, w = jnp.asarray(np.repeat(EVERY, 18, axis=0)), jnp.repeat(weights, 18) / 18
    draws = given(jnp.asarray(np.tile(last[:, 0], (27, 1))), jnp.asarray(np.tile(ranks, (27, 1))))
    return jnp.sum(w * discrete.consistency_loss(draws, marginal, conditional, x, log_z=log_z))


@double
def test_consistency_loss_is_the_mean_squared_residual_over_orders():
    """Against the sum over all pairs (S, l) by hand, for tables of random numbers; zero for the chain's own."""
    marginal, conditional = chain_parts()
    rng = np.random.default_rng(0)
    m, c = rng.normal(size=64), rng.normal(size=(64, 3, 3))
    log_c, total = c - np.log(np.exp(c).sum(axis=-1, keepdims=True)), 0.0
    at = {tuple(s): i for i, s in enumerate(STATES.tolist())}
    for x, p in zip(EVERY.tolist(), joint(), strict=True):
        for order in itertools.permutations(range(3)):
            for d in range(3):
                seen = [t if i in order[: d + 1] else 3 for i, t in enumerate(x)]
                less = [t if i in order[:d] else 3 for i, t in enumerate(x)]
                gap = m[at[tuple(seen)]] - m[at[tuple(less)]] - log_c[at[tuple(less)], order[d], x[order[d]]]
                total += p / 6 * gap**2
    found = expected_consistency(marginal(jnp.asarray(m)), conditional(jnp.asarray(c)), jnp.asarray(joint()), None)
    assert float(found) == pytest.approx(total, rel=1e-10)
    states = jnp.asarray(STATES)
    right = marginal(tp.chain().log_prob(states)), conditional(jnp.log(tp.chain().law(states)))
    assert float(expected_consistency(*right, jnp.asarray(joint()), 0.0)) == pytest.approx(0, abs=1e-20)


def adam(gradient, params, steps, rate):
    import optax

    optimiser = optax.adam(optax.cosine_decay_schedule(rate, steps))

    @jax.jit
    def run(params):
        def step(carry, _):
            update, state = optimiser.update(gradient(carry[0]), carry[1])
            return (optax.apply_updates(carry[0], update), state), None

        return jax.lax.scan(step, (params, optimiser.init(params)), None, length=steps)[0][0]

    return run(params)


@double
def test_likelihood_training_recovers_all_marginals():
    """Any-order loss of the conditionals and consistency, expectations exact: log p(x_S) of all 64 subsets."""
    marginal, conditional = chain_parts()
    ranks, last = orders()
    x, w = jnp.asarray(np.repeat(EVERY, 18, axis=0)), jnp.repeat(jnp.asarray(joint()), 18) / 18
    draws, p = given(jnp.asarray(np.tile(last[:, 0], (27, 1))), jnp.asarray(np.tile(ranks, (27, 1)))), joint()

    def loss(params):
        both = marginal(params[0]), conditional(params[1])
        fit = jnp.sum(w * discrete.any_order_loss(draws, both[1], x))
        return fit + expected_consistency(*both, jnp.asarray(p), 0.0)

    found = adam(jax.grad(loss), (jnp.zeros(64), jnp.zeros((64, 3, 3))), 3000, 0.1)
    np.testing.assert_allclose(found[0], tp.chain().log_prob(jnp.asarray(STATES)), atol=2e-3)
    likelihood = marginal(found[0]).log_likelihood(jnp.asarray(EVERY))
    np.testing.assert_allclose(likelihood, np.log(joint()), atol=2e-3)


@double
def test_energy_training_recovers_the_law_of_the_energy():
    """exp(f) / Z with f = log p of the chain + 1.7 and samples weighed by the model's own law: log Z too."""
    marginal, conditional = chain_parts()
    f = jnp.log(jnp.asarray(joint())) + 1.7

    def target(x):
        return f[x @ jnp.asarray(PLACES)]

    def loss(params):
        m = marginal(params[0])
        log_w = jax.lax.stop_gradient(m.log_likelihood(jnp.asarray(EVERY)))
        kl = discrete.energy_loss(m, target, jnp.asarray(EVERY), log_w=log_w)
        evenly = jnp.full(27, 1 / 27)
        return kl + 4.0 * expected_consistency(m, conditional(params[1]), evenly, 0.0)

    found = adam(jax.grad(loss), (jnp.zeros(64), jnp.zeros((64, 3, 3))), 3000, 0.1)
    np.testing.assert_allclose(marginal(found[0]).log_likelihood(jnp.asarray(EVERY)), np.log(joint()), atol=5e-3)
    log_z = jnp.mean(target(jnp.asarray(EVERY)) - marginal(found[0]).log_likelihood(jnp.asarray(EVERY)))
    assert float(log_z) == pytest.approx(1.7, abs=5e-3)


@double
def test_gibbs_chain_leaves_the_law_invariant_and_moves():
    """All outcomes of three redraws from every sequence at once."""
    model = discrete.MarginalModel(lambda p, x, cond: p.log_prob(x), tp.chain(), 3, 3)

    def moved(corrector, script, x, row, cond):
        return discrete.gibbs_chain(script, model, corrector, x, steps=2)

    for corrector in (discrete.BlockGibbs(1), discrete.BlockGibbs(2)):
        law = joint()[:, None]
        x, weights = _Replay(None, 256, 2**18).play(moved, corrector, jnp.asarray(EVERY, jnp.int32), law, None)
        np.testing.assert_allclose(np.bincount(x @ PLACES, weights[:, 0], minlength=27), joint(), atol=1e-12)
        far = np.eye(27)[:, :1]
        x, weights = _Replay(None, 256, 2**18).play(moved, corrector, jnp.asarray(EVERY, jnp.int32), far, None)
        assert weights[(x == 0).all(axis=1), 0].sum() < 0.8
    frozen = jnp.broadcast_to(jnp.array([True, False, True]), (27, 3))
    out = discrete.gibbs_chain(jax.random.key(0), model, discrete.BlockGibbs(1), jnp.asarray(EVERY), frozen=frozen)
    assert (out[:, ::2] == EVERY[:, ::2]).all() and (out[:, 1] != EVERY[:, 1]).any()


@double
def test_any_order_loss_has_the_expectation_of_the_bound():
    ranks, last = orders()
    params = jnp.asarray(np.random.default_rng(1).normal(size=(64, 3, 3)))
    model = chain_parts()[1](params)
    x = jnp.asarray(np.repeat(EVERY[5:7], 18, axis=0))
    draws = given(jnp.asarray(np.tile(last[:, 0], (2, 1))), jnp.asarray(np.tile(ranks, (2, 1))))
    found = discrete.any_order_loss(draws, model, x).reshape(2, 18).mean(axis=1)
    np.testing.assert_allclose(found, discrete.exact_bound(model, jnp.asarray(EVERY[5:7])), rtol=1e-10)
    prompt = jnp.array([[True, False, True]])
    one = discrete.any_order_loss(jax.random.key(0), model, jnp.asarray(EVERY[5:6]), frozen=prompt)
    wanted = discrete.masked_loss(model, jnp.asarray(EVERY[5:6]), ~prompt)
    np.testing.assert_allclose(one, wanted, rtol=1e-10)


def test_bad_input_of_losses_is_refused_with_its_position():
    model, x = tp.chain().model(), jnp.asarray(EVERY[:2])
    energy = smc.joint_energy(tp.chain().log_prob)
    key, marked = jax.random.key(0), jnp.array([[0, 1, 2], [0, 5, 1]])
    for call in (
        lambda bad: discrete.any_order_loss(key, model, bad),
        lambda bad: discrete.any_order_bound(key, model, bad),
        lambda bad: discrete.importance_weighted_bound(key, model, bad),
        lambda bad: discrete.log_likelihood(model, bad),
        lambda bad: discrete.masked_loss(model, bad, bad >= 0),
        lambda bad: smc.nce_loss(key, model, energy, bad, jnp.zeros(bad.shape, bool)),
        lambda bad: smc.joint_loss(key, model, energy, bad, jnp.zeros(bad.shape, bool)),
    ):
        with pytest.raises(ValueError, match="sequence 1 holds 5 at position 1"):
            call(marked)
        with pytest.raises(ValueError, match="sequence 1 holds 3 at position 2"):
            call(jnp.array([[0, 1, 2], [0, 1, 3]]))
    with pytest.raises(ValueError, match="sequence 0 holds 1 at position 0, where x holds 2"):
        smc.partition_bounds(key, model, energy, jnp.array([[2, 3, 3]]), jnp.array([[1, 1, 1]]))
    with pytest.raises(ValueError, match="draws=0"):
        smc.partition_bounds(key, model, energy, x, x, draws=0)
    with pytest.raises(ValueError, match="negatives=0"):
        smc.nce_loss(key, model, energy, x, x >= 0, negatives=0)
    with pytest.raises(TypeError, match="apply must be a function"):
        smc.network_energy(None, ())  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"\(2, 4\) for x of shape \(2, 3\)"):
        discrete.any_order_bound(key, model, x, frozen=jnp.zeros((2, 4), bool))
    with pytest.raises(ValueError, match="orders=0"):
        discrete.importance_weighted_bound(key, model, x, orders=0)
    with pytest.raises(ValueError, match="steps=0"):
        discrete.gibbs_chain(key, model, discrete.Gibbs(), x, steps=0)
    with pytest.raises(ValueError, match="hollow=True"):
        discrete.gibbs_chain(key, chain_parts()[1](jnp.zeros((64, 3, 3))), discrete.Gibbs(), x)
    marginal = discrete.MarginalModel(lambda p, x, cond: p.log_prob(x), tp.chain(), 3, 3)
    with pytest.raises(ValueError, match="1 sample"):
        discrete.energy_loss(marginal, lambda x: x[:, 0], x[:1])


@double
@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_likelihoods_report_a_network_that_gives_no_law(bad):
    logits = jnp.zeros((64, 3, 3)).at[:, 1].set(bad)
    model, x = chain_parts()[1](logits), jnp.asarray(EVERY[:2])
    assert np.isnan(discrete.masked_loss(model, x, x >= 0)).all()
    assert np.isfinite(discrete.masked_loss(model, x, jnp.array([[True, False, True]] * 2))).all()
    for call in (discrete.any_order_bound, discrete.importance_weighted_bound):
        with pytest.raises(FloatingPointError, match="position 1 of sequence 0"):
            call(jax.random.key(0), model, x)
    for call in (discrete.log_likelihood, discrete.exact_bound):
        with pytest.raises(FloatingPointError, match="position 1 of sequence 0"):
            call(model, x)
    energy = smc.network_energy(table, jnp.zeros(27))
    assert np.isnan(smc.nce_loss(jax.random.key(0), model, energy, x, x >= 0)).all()
    assert np.isnan(smc.joint_loss(jax.random.key(0), model, energy, x, x >= 0, draws=2).upper).all()
