"""Discrete guidance by rates against the generators of its jump processes (specs/discrete.md, card 7), exact."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import token_paths as tp

import diffsample as ds
from diffsample import discrete, exact, smc
from diffsample.smc.tokens.experts import GivenCondition
from diffsample.struct import pytree

LEVELS = discrete.levels(discrete.Polynomial(), 4)
MASKS, Y = np.full(3, 3), jnp.array([1])


def mixture():
    return exact.chain_mixture([tp.chain(), tp.other_chain()], [0.7, 0.3])


@pytree
class OfClass:
    """log p(y | observed tokens), exact."""

    law: Any

    def __call__(self, x, cond):
        return jnp.take_along_axis(self.law.log_class(x), cond[:, None], axis=1)[:, 0]


def plain():
    return GivenCondition(mixture().model(), jnp.asarray(mixture().null))


def guided(scale):
    """The unconditional model with the exact predictor of y = 1."""
    return smc.rate_guided(plain(), OfClass(mixture()), scale)


def law_of(model, policy):
    law = exact.output_law(discrete.Decoder(model, policy), MASKS, Y, rows=256)
    return np.bincount(law.x @ np.array([9, 3, 1]), law.p, minlength=27)


def by_generator(scale):
    """exp(40 G) from all masks, G the rates c(v) [p(y | x') / p(y | x)]^scale in the clock -log m, from tables."""
    states = np.stack(np.meshgrid(*[np.arange(4)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    parts = ((0.7, tp.chain()), (0.3, tp.other_chain()))
    joint = np.stack([w * np.exp(np.asarray(c.log_prob(jnp.asarray(states)))) for w, c in parts])
    total, index = joint.sum(axis=0), {tuple(s): i for i, s in enumerate(states.tolist())}
    says, generator = joint[1] / total, np.zeros((64, 64))
    for i, s in enumerate(states.tolist()):
        for at, v in itertools.product(np.flatnonzero(np.array(s) == 3), range(3)):
            j = index[(*s[:at], v, *s[at + 1 :])]
            generator[i, j] = total[j] / total[i] * (says[j] / says[i]) ** scale
    generator -= np.diag(generator.sum(axis=1))
    end = scipy.linalg.expm(60 * generator)[index[(3, 3, 3)]]
    return end[[index[tuple(s)] for s in tp.sequences().tolist()]]


def test_rates_guided_at_scale_one_are_those_of_the_conditional_model(x64):
    conditional = law_of(mixture().model(), discrete.ancestral(LEVELS))
    np.testing.assert_allclose(law_of(guided(1.0), discrete.tau_leaping(LEVELS)), conditional, atol=1e-12)
    without = law_of(plain(), discrete.ancestral(LEVELS))
    np.testing.assert_allclose(law_of(guided(0.0), discrete.tau_leaping(LEVELS)), without, atol=1e-12)
    assert np.abs(conditional - without).sum() > 0.3


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_next_jump_has_the_law_of_the_guided_generator(x64, scale):
    wanted = by_generator(scale)
    assert wanted.sum() == pytest.approx(1, abs=1e-9)
    np.testing.assert_allclose(law_of(guided(scale), discrete.next_jump(3)), wanted, atol=1e-9)
    # the times matter: tokens of the same laws in a uniformly random order have another law
    uniform = law_of(guided(scale), discrete.first_hitting(3))
    assert 0.5 * np.abs(uniform - wanted).sum() > 1e-3


def test_tau_leaping_tends_to_the_guided_jump_process_to_first_order(x64):
    wanted, errors = by_generator(2.0), []
    for steps in (8, 16, 32):
        law = law_of(guided(2.0), discrete.tau_leaping(discrete.levels(discrete.Polynomial(), steps)))
        errors.append(0.5 * np.abs(law - wanted).sum())
    assert errors[0] < 0.1 and all(1.7 < a / b < 2.4 for a, b in itertools.pairwise(errors))


@pytest.mark.slow
def test_predictor_and_predictor_free_rates_coincide_by_bayes(x64):
    free = smc.token_guidance(mixture().model(), jnp.asarray(mixture().null), 2.0)
    for policy in (discrete.tau_leaping(LEVELS), discrete.next_jump(3)):
        np.testing.assert_allclose(law_of(free, policy), law_of(guided(2.0), policy), atol=1e-12)


def test_weights_of_guided_jumps_are_exactly_those_of_the_tilted_joint(x64):
    decoder = discrete.Decoder(guided(2.0), discrete.next_jump(3))
    x = jnp.asarray(tp.sequences())
    y = jnp.ones(27, int)
    wanted = np.exp(mixture().log_prob(x) + 2.0 * (OfClass(mixture())(x, y) - np.log(0.3)))
    np.testing.assert_allclose(tp.tilted_law(decoder, smc.token_weights(decoder), cond=Y), wanted, rtol=1e-12)
    assert 0.5 * np.abs(law_of(guided(2.0), discrete.next_jump(3)) - wanted / wanted.sum()).sum() > 0.01


def test_total_rates_have_the_range_of_the_card(x64):
    """sum_v c(v) ratio(v)^scale over all partly masked states: 1 at scale 1, up to 16.9 and 310 at 2 and 3."""
    law = exact.chain_mixture([exact.golden_chain(), tp.other_chain(5)], [0.7, 0.3])
    x = jnp.asarray(np.stack(np.meshgrid(*[np.arange(4)] * 5, indexing="ij"), axis=-1).reshape(-1, 5))
    base = GivenCondition(law.model(), jnp.asarray(law.null))
    at = jnp.broadcast_to(jnp.arange(5), x.shape)
    totals = []
    for scale in (1.0, 2.0, 3.0):
        model = smc.rate_guided(base, OfClass(law), scale)
        log_total = model.log_total(model(x, jnp.ones(len(x)), jnp.ones(len(x), int)), at)
        totals.append(np.exp(np.asarray(log_total))[np.asarray(x) == 3])
    np.testing.assert_allclose(totals[0], 1.0, atol=1e-10)
    assert totals[1].max() == pytest.approx(16.9, abs=0.1) and totals[2].max() == pytest.approx(310, abs=1)


@pytest.mark.slow
def test_first_order_guidance_is_exact_where_the_predictor_is_linear_in_tokens(x64):
    weights = jax.random.normal(jax.random.key(0), (3, 4))

    def of_hot(hot, cond):
        return jnp.sum(hot * weights[None], axis=(1, 2))

    def of_tokens(x, cond):
        return of_hot(jax.nn.one_hot(x, 4, dtype=weights.dtype), cond)

    first = smc.rate_guided_by_gradient(plain(), of_hot, 1.5)
    every = smc.rate_guided(plain(), of_tokens, 1.5, batch_size=4)
    laws = [law_of(model, discrete.tau_leaping(LEVELS)) for model in (first, every)]
    np.testing.assert_allclose(laws[0], laws[1], atol=1e-12)
    assert np.abs(laws[0] - law_of(plain(), discrete.tau_leaping(LEVELS))).sum() > 0.1


def test_first_order_gains_are_the_gradient_at_the_present_tokens(x64):
    x, table = jnp.array([[3, 0, 3], [1, 3, 2]]), jax.random.normal(jax.random.key(1), (3, 4, 3, 4))

    def curved(hot):
        return jnp.einsum("blv,lvkw,bkw->b", hot, table, hot) ** 2

    step, masked = 1e-6, jnp.array([[True, False, True], [True, True, False]])
    gains = np.asarray(smc.first_order_gains(curved, x, masked, 3))
    hot = jax.nn.one_hot(x, 4)
    for b, (at, v) in itertools.product(range(2), itertools.product(range(3), range(3))):
        moved = hot.at[b, at].add(step * (jax.nn.one_hot(v, 4) - hot[b, at]))
        slope = float((curved(moved) - curved(hot))[b]) / step if masked[b, at] else 0.0
        assert gains[b, at, v] == pytest.approx(slope, rel=1e-4, abs=1e-4)


def test_guided_rates_of_uniform_noise_are_the_conditional_reverse_rates(x64):
    """Random joint of class and two noisy tokens; R(x -> y) = Q q(y) / q(x), Q symmetric."""
    states = np.stack(np.meshgrid(*[np.arange(3)] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
    table = np.random.default_rng(0).dirichlet(np.ones(18)).reshape(2, 9)
    changed = (np.arange(3)[None, None] - states[:, :, None]) * np.array([3, 1])[:, None]
    near = (states @ [3, 1])[:, None, None] + changed
    moves = near != np.arange(9)[:, None, None]

    def reverse(q):
        return jnp.asarray(np.where(moves, q[near] / q[:, None, None], 0.0))

    def log_prob(x):
        return jnp.log(jnp.asarray(table[1] / table.sum(axis=0)))[x @ jnp.array([3, 1])]

    gains = smc.neighbour_gains(log_prob, jnp.asarray(states), jnp.ones((9, 2), bool), 3)
    uncond, cond = reverse(table.sum(axis=0)), reverse(table[1])
    np.testing.assert_allclose(smc.guided_rates(uncond, gains), cond, rtol=1e-12)
    below = jnp.where(moves, uncond, 1.0)
    free = smc.guided_rates(uncond, jnp.log(jnp.where(moves, cond / below, 1.0)), 2.5)
    np.testing.assert_allclose(free, jnp.where(moves, cond**2.5 * below**-1.5, 0.0), rtol=1e-10)


def test_rate_guidance_refuses_what_is_no_predictor_and_reports_an_impossible_class():
    with pytest.raises(TypeError, match="log_prob must be a function"):
        smc.rate_guided(plain(), None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="ids=3"):
        smc.rate_guided_by_gradient(plain(), lambda hot, cond: hot[:, 0, 0], ids=3)
    with pytest.raises(ValueError, match="length=0"):
        discrete.next_jump(0)
    with pytest.raises(ValueError, match="masks would be left"):
        discrete.tau_leaping([1.0, 0.5])
    # a class that no completion of x has: log p(y | x) = -inf, its ratios are 0 / 0
    never = smc.rate_guided(plain(), lambda x, cond: jnp.full(x.shape[0], -jnp.inf))
    for policy in (discrete.tau_leaping(LEVELS), discrete.next_jump(3)):
        with pytest.raises(FloatingPointError, match="sequence 0 went wrong at position"):
            ds.sample(jax.random.key(0), discrete.Decoder(never, policy), (2, 3))
