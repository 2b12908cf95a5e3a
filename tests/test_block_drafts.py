"""Block verification of several drafts: the target's law by enumeration, and the gain of more drafts."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from diffsample import discrete, exact
from diffsample.discrete.draws import Keyed
from diffsample.struct import pytree, static

PI, P, PI_DRAFT, P_DRAFT = (
    np.array(a)
    for a in (
        [0.5, 0.3, 0.2],
        [[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.25, 0.25, 0.5]],
        [0.2, 0.5, 0.3],
        [[0.4, 0.4, 0.2], [0.3, 0.3, 0.4], [0.1, 0.1, 0.8]],
    )
)


class Block(NamedTuple):
    x: Array
    calls: Array
    count: Array

    def future(self):
        return self.x, self.count


@pytree
class Sampled:
    """Drafts of a chain, verified against another, and what is missing of three tokens drawn from the target."""

    drafts: int = static()
    depth: int = static(default=2)

    @property
    def steps(self):
        return jnp.arange(1)

    def init(self, draws, x, cond):
        zero = jnp.zeros(x.shape[0], jnp.int32)
        return Block(x, zero, zero)

    def step(self, draws, state, row, cond):
        batch, k = state.x.shape[0], self.drafts
        every = jnp.ones((batch, k), bool)
        drafts, log_draft, log_target = [], [], [jnp.broadcast_to(jnp.log(PI), (batch, k, 3))]
        law = jnp.broadcast_to(jnp.log(PI_DRAFT), (batch, k, 3))
        for j in range(self.depth):
            log_draft.append(law)
            drafts.append(draws.at(10 + j).tokens(law, every))
            law = jnp.log(P_DRAFT)[drafts[-1]]
            log_target.append(jnp.log(P)[drafts[-1]])
        target, draft = jnp.stack(log_target, axis=2), jnp.stack(log_draft, axis=2)
        out = discrete.verify_block(draws, target, draft, jnp.stack(drafts, axis=2))
        x = out.tokens
        for j in range(1, self.depth + 1):
            rest = draws.at(20 + j).tokens(jnp.log(P)[x[:, j - 1]][:, None], (out.count <= j)[:, None])[:, 0]
            x = x.at[:, j].set(jnp.where(out.count <= j, rest, x[:, j]))
        return Block(x, out.count, out.count * 0)

    def settled(self, state):
        return False


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_block_has_the_law_of_the_target(k):
    depth = 2 if k < 3 else 1
    law = exact.output_law(Sampled(k, depth), np.zeros(depth + 1, int))
    chain = exact.markov_chain(PI, P, depth + 1)
    assert law.total_variation(chain.log_prob) < 1e-7  # rho is found by 40 bisections
    first = float(jnp.sum(jnp.minimum(PI, PI_DRAFT)))
    if k == 1:  # speculative sampling: min(p, q) accepted at each depth
        second = float(jnp.minimum(PI, PI_DRAFT) @ jnp.sum(jnp.minimum(P, P_DRAFT), axis=1))
        assert law.calls == pytest.approx(1 + first + second, abs=1e-9)
    if k == 3:
        assert law.calls - 1 == pytest.approx(float(discrete.k_seq(jnp.log(PI), jnp.log(PI_DRAFT), 3).accepted))


@pytest.mark.usefixtures("x64")
def test_more_drafts_give_longer_runs():
    runs = [exact.output_law(Sampled(k, 2), np.zeros(3, int)).calls for k in (1, 2)]
    assert runs[1] > 1.05 * runs[0]


def test_equal_laws_accept_a_whole_draft_and_shapes_are_checked():
    keys = jax.random.split(jax.random.key(0), 500)
    law = jnp.broadcast_to(jnp.log(jnp.array([0.5, 0.3, 0.2])), (500, 3, 5, 3))
    drafts = jax.random.randint(jax.random.key(1), (500, 3, 4), 0, 3)
    out = discrete.verify_block(Keyed(keys), law, law[:, :, :4], drafts)
    assert (out.count == 5).all()
    np.testing.assert_array_equal(out.tokens[:, :4], drafts[:, 0])
    with pytest.raises(ValueError, match="need draft laws"):
        discrete.verify_block(Keyed(keys), law, law, drafts)
