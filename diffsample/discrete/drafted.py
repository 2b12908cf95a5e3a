"""Policies that draw tokens first and choose positions by the draws: LLaDA, MaskGIT, Dream's maskgit_plus, path
planning.

Scoring the sampled token prefers lucky draws, so these are biased even at one token a call: on the reference chain the
output entropy falls from 4.60 to 1.66 nats. They are here for comparison, and because models were published with them;
`best_first` scores the law instead and is exact token by token.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.discrete.draws import Draws
from diffsample.discrete.model import Laws, broken
from diffsample.discrete.ordered import Sizes, cosine_sizes, planned_sizes
from diffsample.discrete.policy import Around, Place, Selection, masked_share
from diffsample.discrete.proposals import as_leaves, by_sequence
from diffsample.discrete.scored import Scored, ranked
from diffsample.discrete.slots import of_token
from diffsample.struct import pytree, static

PyTree: TypeAlias = Any

DRAFT, ORDER = 0, 1  # streams of a policy's draws


@pytree
class Drafted(Scored):
    """Draw a token for every masked position, keep those of highest log c(token); see `low_confidence`, `maskgit`."""

    updates: Array
    sizes: Any
    temperatures: Any  # [K], of the order; None takes the best
    proposal: Any

    @property
    def steps(self) -> PyTree:
        return self.updates, self.temperatures

    def select(self, draws: Draws, laws: Laws, place: Place, memory: Array, row: PyTree) -> tuple[Selection, PyTree]:
        update, temperature = row
        tokens, score = draft(draws.at(DRAFT), laws, place.masked, self.proposal)
        ranks = ranked(draws.at(ORDER), score, place.masked, temperature)
        start, stop = (self.sizes(memory, update + d, self.updates.shape[0]).astype(jnp.int32) for d in (0, 1))
        reveal = place.masked & (ranks < (stop - start)[:, None])
        return Selection(reveal, masked_share(place.masked & ~reveal), tokens), memory


def low_confidence(
    length: int, *, updates: int | None = None, sizes: Sequence[int] | Sizes | None = None, proposal: Any = None
) -> Drafted:
    """LLaDA's low-confidence remasking: draw everywhere, keep the tokens that were most probable. Biased, see above.

    Args:
        length: L. updates, sizes: groups, as for `first_hitting`; LLaDA splits equally.
        proposal: of the drafts, for example `Temperature(0.5)` or `greedy`; scores are at temperature 1.

    Reference: Nie et al. 2025, arXiv 2502.09992, algorithm 5 and released code.

    >>> low_confidence(8, updates=4).adaptive
    True
    """
    rule, count, _ = planned_sizes(length, updates, sizes)
    return Drafted(jnp.arange(count, dtype=jnp.int32), rule, None, as_leaves(proposal))


def maskgit(length: int, updates: int = 12, *, temperature: float = 4.5, proposal: Any = None) -> Drafted:
    """MaskGIT: keep the best of log c(token) + tau (1 - i/K) Gumbel, floor(n cos(pi/2 i/K)) stay masked. Biased, see
    above.

    Args:
        length: L. updates: K. temperature: tau, at the start; it falls linearly to zero.
        proposal: of the drafts.

    Reference: Chang et al. 2022, arXiv 2202.04200, section 3.2 and released code.

    >>> maskgit(16, 8).temperatures.shape
    (8,)
    """
    if temperature < 0:
        raise ValueError(f"temperature={temperature} must be at least 0")
    rule, count, _ = planned_sizes(length, updates, cosine_sizes)
    falling = np.maximum(temperature * (1 - (np.arange(count) + 1) / count), 1e-6)
    return Drafted(jnp.arange(count, dtype=jnp.int32), rule, jnp.asarray(falling, float), as_leaves(proposal))


@pytree
class PathPlanned(Scored):
    """Draw everywhere, then mask the worst of old and new tokens; see `path_planning`."""

    left: Array  # [K] share of the free positions that stays masked after each update
    eta: Any
    proposal: Any

    @property
    def steps(self) -> Array:
        return self.left

    @property
    def adaptive(self) -> bool:
        """A full sequence may be masked again."""
        return False

    def select(self, draws: Draws, laws: Laws, place: Place, memory: Array, row: Array) -> tuple[Selection, PyTree]:
        tokens, fresh = draft(draws, laws, place.masked, self.proposal)
        seen = jnp.minimum(laws.x, laws.model.vocab - 1)
        eta = by_sequence(self.eta, fresh)
        old = laws.everywhere(lambda log_p, at: of_token(log_p, jnp.take_along_axis(seen, at, axis=1)))
        kept = jnp.where(eta > 0, eta * jnp.maximum(old, -1e30), 0.0)  # 0 times -inf is 0 here
        score = jnp.where(place.masked, fresh, kept)
        count = jnp.floor(memory * row + 1e-4).astype(jnp.int32)
        worst = place.free & (ranked(draws, -score, place.free, None) < count[:, None])
        reveal, remask = place.masked & ~worst, place.free & ~place.masked & worst
        return Selection(reveal, masked_share(worst), tokens, remask), memory


def path_planning(length: int, updates: int, *, eta: float = 1.0, proposal: Any = None) -> PathPlanned:
    """P2 with the network as its own planner: old tokens compete with new ones to stay, so early mistakes can be
    undone.

    After update i the floor((1 - i/K) n) worst of log c(new token) and eta log c(old token) are masked. eta = 0 never
    masks again; a larger eta does so more. A heuristic without an invariant law. The planner reads the network's law at
    observed positions, which a hollow model gives.

    Reference: Peng et al. 2025, arXiv 2502.03540.

    >>> path_planning(8, 4).left.tolist()
    [0.75, 0.5, 0.25, 0.0]
    """
    if updates < 1 or eta < 0:
        raise ValueError(f"updates={updates} must be at least 1 and eta={eta} at least 0")
    left = 1 - (np.arange(updates) + 1) / updates
    return PathPlanned(jnp.asarray(left, float), jnp.asarray(eta, float), as_leaves(proposal))


def draft(draws: Draws, laws: Laws, masked: Array, proposal: Any) -> tuple[Array, Array]:
    """(tokens int32 [B, L] drawn for the masked positions, their log c [B, L] under the model)."""

    def one(log_p: Array, at: Array) -> tuple[Array, Array]:
        log_q = log_p if proposal is None else proposal(log_p, None)
        tokens = draws.at(at[0, 0]).tokens(log_q, jnp.take_along_axis(masked, at, axis=1))
        score = of_token(log_p, tokens)
        return jnp.where(broken(log_q), laws.model.mask_id, tokens), score  # a proposal's NaN stays a mask

    return laws.everywhere(one)


@pytree
class Blockwise(Around):
    """Another policy inside one block of positions after another; see `blockwise`."""

    policy: Any
    blocks: Array  # int32 [L], the block of each position
    count: int = static()

    @property
    def length(self) -> int:
        """That of the blocks together."""
        return self.blocks.shape[0]

    @property
    def steps(self) -> PyTree:
        rows = self.policy.steps
        n = jax.tree.leaves(rows)[0].shape[0]
        tiled = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * self.count), rows)
        block = jnp.repeat(jnp.arange(self.count, dtype=jnp.int32), n)
        return block, jnp.tile(jnp.arange(n) == 0, self.count), tiled

    @property
    def adaptive(self) -> bool:
        """Its blocks have a fixed number of rows."""
        return False

    def init(self, draws: Draws, place: Place) -> tuple[PyTree, Array]:
        return self.policy.init(draws, self._inside(place, jnp.int32(0)))

    def select(self, draws: Draws, laws: Laws, place: Place, memory: PyTree, row: PyTree) -> tuple[Selection, PyTree]:
        block, first, inner = row
        inside = self._inside(place, block)
        fresh, _ = self.policy.init(draws.at(0), inside)
        memory = jax.tree.map(lambda new, old: jnp.where(first, new, old), fresh, memory)
        chosen, memory = self.policy.select(draws.at(1), laws, inside, memory, inner)
        return chosen._replace(clock=masked_share(place.masked & ~chosen.reveal)), memory

    def _inside(self, place: Place, block: Array) -> Place:
        here = (self.blocks == block)[None, :]
        return place._replace(masked=place.masked & here, free=place.free & here)


def blockwise(policy: Any, length: int, block: int) -> Blockwise:
    """Semi-autoregressive decoding: a policy inside blocks from left to right, a run of all its updates a block.

    Args:
        policy: planned for sequences of the block's length, for example `low_confidence(block, updates=...)`.
        length: L. block: its length, which divides L.

    Raises:
        ValueError: a block that does not divide the length, or that the policy was not planned for.

    Reference: Nie et al. 2025, arXiv 2502.09992, section 2.4; Arriola et al. 2025, arXiv 2503.09573.

    >>> blockwise(low_confidence(4, updates=2), 8, 4).steps[0].tolist()
    [0, 0, 1, 1]
    """
    if block < 1 or length < 1 or length % block:
        raise ValueError(f"block={block} must divide length={length}")
    planned = getattr(policy, "length", None)
    if planned is not None and planned < block:
        raise ValueError(f"the policy was planned for at most {planned} positions, not block={block}")
    return Blockwise(policy, jnp.arange(length, dtype=jnp.int32) // block, length // block)
