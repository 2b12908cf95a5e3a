"""Speculative decoding and its building blocks: exact laws, counted calls, stored constants."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsample as ds
from diffsample import discrete, exact
from diffsample.discrete.draws import Keyed

double = pytest.mark.usefixtures("x64")
DRAFT, TARGET = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.2, 0.2, 0.3, 0.3])


@double
@pytest.mark.parametrize(
    "drafts, order, calls", [(3, [0, 1, 2, 3, 4], 4.0643), (5, [0, 1, 2, 3, 4], 3.1869), (5, [2, 0, 4, 1, 3], 2.7588)]
)
def test_speculative_decoding_is_exact_and_its_calls_are_known(drafts, order, calls):
    # the stored numbers count two calls a round, one to draft and one to verify
    chain = exact.golden_chain()
    sampler = discrete.speculative(chain.model(), 5, drafts=drafts, order=order, reuse=False)
    law = exact.output_law(sampler, np.full(5, 3))
    assert law.total_variation(chain.log_prob) < 1e-12
    assert law.calls == pytest.approx(calls, abs=5e-5)


@double
def test_reusing_the_verified_row_saves_calls_and_stays_exact_under_a_stopping_rule():
    chain = exact.golden_chain()
    sampler = discrete.speculative(
        chain.model(), 5, drafts=3, order=[0, 1, 2, 3, 4], stop=discrete.EntropyStop(jnp.asarray(5.0))
    )
    law = exact.output_law(sampler, np.full(5, 3))
    assert law.total_variation(chain.log_prob) < 1e-12 and law.calls < 4.0643 - 0.4
    shy = discrete.speculative(
        chain.model(), 5, drafts=3, order=[0, 1, 2, 3, 4], stop=discrete.EntropyStop(jnp.asarray(0.0))
    )
    law = exact.output_law(shy, np.full(5, 3))
    assert law.total_variation(chain.log_prob) < 1e-12 and law.calls == pytest.approx(5.0)


def test_speculative_sequences_belong_to_their_keys_and_prompts_stay():
    sampler = discrete.speculative(exact.golden_chain().model(), 5, drafts=3)
    x = jnp.array([[3, 1, 3, 3, 0], [0, 1, 2, 1, 0], [3, 3, 3, 3, 3]])
    out = ds.sample(jax.random.key(0), sampler, x=x)
    assert (out.x[x != 3] == x[x != 3]).all() and (out.x != 3).all()
    assert out.calls[1] == 0 and (out.calls <= jnp.array([3, 0, 5])).all() and (out.rows >= out.calls).all()
    alone = ds.sample(jax.random.key(0), sampler, x=x[2:], first=2)
    np.testing.assert_array_equal(alone.x[0], out.x[2])
    assert alone.calls[0] == out.calls[2]
    independent = exact.markov_chain([0.5, 0.3, 0.2], np.tile([0.5, 0.3, 0.2], (3, 1)), 5)
    free = ds.sample(jax.random.key(0), discrete.speculative(independent.model(), 5, drafts=5), (64, 5))
    assert (free.calls == 2).all()  # equal laws: every draft is accepted


GOLDEN = {1: (1.0, 0.60000), 2: (1.54031, 0.70806), 3: (1.94837, 0.78967), 4: (2.35864, 0.81793), 8: (3.72487, 0.88624)}


@double
@pytest.mark.parametrize("k", GOLDEN)
def test_k_seq_has_its_constants_and_the_law_of_the_target(k):
    plan = discrete.k_seq(jnp.log(jnp.asarray(TARGET)), jnp.log(jnp.asarray(DRAFT)), k)
    np.testing.assert_allclose((plan.rho, plan.accepted), GOLDEN[k], atol=1e-5)
    taken = np.minimum(DRAFT, TARGET / float(plan.rho))  # a draft is this token and accepted
    law = taken / taken.sum() * float(plan.accepted) + (1 - float(plan.accepted)) * np.exp(plan.residual)
    np.testing.assert_allclose(law, TARGET, atol=1e-9)


@double
def test_k_seq_of_equal_laws_accepts_and_of_far_ones_is_known():
    p = jnp.log(jnp.array([0.5, 0.5]))
    plan = discrete.k_seq(p, p, 3)
    assert float(plan.accepted) == pytest.approx(1.0) and np.isfinite(plan.residual).all()
    far = discrete.k_seq(jnp.array([0.0, -jnp.inf]), p, 2)
    assert float(far.accepted) == pytest.approx(0.75)


def test_selected_drafts_have_the_law_of_the_target():
    # shares within 4.5 standard errors
    n, k = 40000, 3
    keys = jax.random.split(jax.random.key(0), n)
    log_q, log_p = (jnp.broadcast_to(jnp.log(jnp.asarray(law, jnp.float32)), (n, 4)) for law in (DRAFT, TARGET))
    drafts = Keyed(keys).at(9).tokens(jnp.repeat(log_q[:, None], k, axis=1), jnp.ones((n, k), bool))
    tokens, taken = discrete.select_draft(Keyed(keys), log_p, log_q, drafts)
    shares = np.bincount(np.asarray(tokens), minlength=4) / n
    np.testing.assert_array_less(np.abs(shares - TARGET), 4.5 * np.sqrt(TARGET * (1 - TARGET) / n))
    assert abs(float(taken.mean()) - GOLDEN[3][1]) < 4.5 * 0.41 / np.sqrt(n)


def test_stopping_rules_and_bad_input():
    laws = jnp.log(jnp.array([[[0.5, 0.5], [0.9, 0.1], [0.5, 0.5]]]))
    assert discrete.EntropyStop(0.4)(laws).tolist() == [[True, True, False]]
    stop = discrete.AcceptanceStop(jax.tree_util.Partial(lambda log_q: jnp.full((1, 3), 0.8)), 0.3)
    assert stop(laws).tolist() == [[True, True, False]]
    model = exact.golden_chain().model()
    with pytest.raises(ValueError, match="permutation"):
        discrete.speculative(model, 3, order=[0, 0, 2])
    with pytest.raises(ValueError, match="drafts=0"):
        discrete.speculative(model, 3, drafts=0)
