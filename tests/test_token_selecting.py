"""SVDD over masked decoders: exact output laws, by hand for one softmax draw among M (specs/discrete.md, card 7)."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import token_paths as tp

import diffsample as ds
from diffsample import discrete, exact, smc
from diffsample.struct import pytree

MASKS, ALPHA = np.full(3, 3), 0.5


def reward(x):
    """Counts token 0, and a pair; of complete sequences."""
    return 0.8 * jnp.sum(x == 0, axis=1) - 0.5 * (x[:, 0] == x[:, 2])


def tilted():
    x = jnp.asarray(tp.sequences())
    p = np.exp(np.asarray(tp.chain().log_prob(x) + reward(x) / ALPHA))
    return p / p.sum()


def soft_values():
    """alpha log E[exp(r / alpha) | observed] of all 64 partly masked states, by summing over completions."""
    x, p = tp.sequences(), np.exp(np.asarray(tp.chain().log_prob(jnp.asarray(tp.sequences()))))
    gain = np.exp(np.asarray(reward(jnp.asarray(x))) / ALPHA)
    values = []
    for state in itertools.product(range(4), repeat=3):
        fits = ((np.array(state) == 3) | (x == np.array(state))).all(axis=1)
        values.append(ALPHA * np.log((p * gain)[fits].sum() / p[fits].sum()))
    return np.array(values)


@pytree
class Table:
    """A value function: a number for every state."""

    values: jax.Array

    def __call__(self, view, cond):
        return self.values[view.x @ jnp.array([16, 4, 1])]


def decoder():
    return discrete.Decoder(tp.chain().model(), discrete.given_order([1, 2, 0]))


def law_of(sampler):
    law = exact.output_law(sampler, MASKS, rows=256)
    return np.bincount(law.x @ np.array([9, 3, 1]), law.p, minlength=27)


def selected_law(candidates):
    """By hand: from each state the next token is one of M drawn, in proportion to exp(value / alpha)."""
    values, law, order = soft_values().reshape(4, 4, 4), {(3, 3, 3): 1.0}, (2, 0, 1)
    for at in order:
        new = {}
        for state, p in law.items():
            c = np.asarray(tp.chain().law(jnp.array([state])))[0, at]
            after = [(*state[:at], v, *state[at + 1 :]) for v in range(3)]
            w = np.exp([values[s] / ALPHA for s in after])
            for drawn in itertools.product(range(3), repeat=candidates):
                for one in drawn:
                    share = np.prod(c[list(drawn)]) * w[one] / w[list(drawn)].sum()
                    new[after[one]] = new.get(after[one], 0.0) + p * share
        law = new
    return np.array([law[tuple(s)] for s in tp.sequences().tolist()])


def test_svdd_of_a_decoder_keeps_one_of_m_by_its_value_and_tends_to_the_tilted_law(x64):
    table, errors = Table(jnp.asarray(soft_values())), []
    for m in (1, 2, 3):
        law = law_of(smc.svdd(decoder(), table, ALPHA, candidates=m))
        np.testing.assert_allclose(law, selected_law(m), atol=1e-12)
        errors.append(0.5 * np.abs(law - tilted()).sum())
    assert errors[0] > 1.5 * errors[1] > 1.5 * 1.3 * errors[2]
    # the bias falls as 1 / M
    far = [0.5 * np.abs(selected_law(m) - tilted()).sum() for m in (4, 8)]
    assert 1.6 < far[0] / far[1] < 2.6


def test_values_of_tokens_complete_the_sequence(x64):
    """The mode's reward; the soft value of many completions at the last mask, where the factorised law is exact."""
    model, states = tp.chain().model(), jnp.asarray(list(itertools.product(range(4), repeat=3)))
    features = model(states, jnp.ones(64), None)
    view = type("View", (), {"x": states, "masked": states == 3, "features": features, "index": jnp.int32(0)})()
    modes = jnp.where(states == 3, jnp.argmax(features, axis=-1), states)
    np.testing.assert_array_equal(smc.posterior_mode(model, reward)(view), reward(modes))
    found = smc.x0_reward(model, reward, jax.random.key(0), samples=40_000, alpha=ALPHA)(view)
    one_left = np.asarray((states == 3).sum(axis=1) <= 1)
    # relative error of the mean of exp(r / alpha), below 5, over 40000 draws: 0.015, times alpha
    np.testing.assert_allclose(np.asarray(found)[one_left], soft_values()[one_left], atol=4.5 * 0.0075)


def test_soft_value_loss_is_least_at_the_soft_value(x64):
    x, p = jnp.asarray(tp.sequences()), jnp.exp(tp.chain().log_prob(jnp.asarray(tp.sequences())))

    def expected(value):
        return jnp.sum(p * smc.soft_value_loss(jnp.full(27, value), reward(x), ALPHA))

    wanted = soft_values()[-1]
    assert float(jax.grad(expected)(wanted)) == pytest.approx(0, abs=1e-12)
    mean = float(jnp.sum(p * reward(x)))
    assert expected(wanted) < expected(mean) - 0.01 and wanted > mean + 0.1


def test_selected_tokens_belong_to_their_keys_and_count_all_calls():
    sampler = smc.svdd(decoder(), smc.posterior_mode(tp.chain().model(), reward), 0.0, candidates=4)
    out = ds.sample(jax.random.key(0), sampler, (6, 3))
    alone = ds.sample(jax.random.key(0), sampler, (1, 3), first=4)
    np.testing.assert_array_equal(out.x[4], alone.x[0])
    assert out.x.dtype == jnp.int32 and (out.calls == 1 + 4 + 4).all() and sampler.nfe >= 9
    slow = smc.svdd(decoder(), smc.posterior_mode(tp.chain().model(), reward), 0.0, candidates=4, sequential=True)
    np.testing.assert_array_equal(ds.sample(jax.random.key(0), slow, (6, 3)).x, out.x)
    one = smc.svdd(decoder(), smc.posterior_mode(tp.chain().model(), reward), 1.0, candidates=1)
    np.testing.assert_array_equal(
        ds.sample(jax.random.key(0), one, (6, 3)).x, ds.sample(jax.random.key(0), decoder(), (6, 3)).x
    )
    prompt = jnp.array([[0, 3, 3], [1, 2, 0]])
    kept = ds.sample(jax.random.key(0), sampler, x=prompt)
    assert kept.x[0, 0] == 0 and (kept.x[1] == prompt[1]).all() and kept.calls[1] == 0


def test_bad_input_of_token_selection_is_refused():
    with pytest.raises(ValueError, match="7"):
        sampler = smc.svdd(decoder(), smc.posterior_mode(tp.chain().model(), reward), 1.0, candidates=2)
        ds.sample(jax.random.key(0), sampler, x=jnp.array([[0, 7, 3]]))
    with pytest.raises(ValueError, match="one a sample"):
        ds.sample(jax.random.key(0), smc.svdd(decoder(), lambda view, cond: jnp.zeros(()), 1.0, candidates=2), (2, 3))
    broken = smc.svdd(decoder(), lambda view, cond: jnp.where(view.x[:, 0] == 3, 0.0, jnp.nan), 1.0, candidates=2)
    with pytest.raises(FloatingPointError, match=r"sequence 0 went wrong at position 0 .* as did 2 of 2"):
        ds.sample(jax.random.key(0), broken, (2, 3))
    with pytest.raises(ValueError, match="alpha=0"):
        smc.x0_reward(tp.chain().model(), reward, jax.random.key(0), alpha=0.0)
    with pytest.raises(ValueError, match="alpha=-1"):
        smc.soft_value_loss(jnp.zeros(2), jnp.zeros(2), -1.0)
