"""Predictor-corrector decoding restricted to the last group: predict a group at once, then redraw its positions one by
one.

The tokens of a group are drawn independently, which is the error of parallel decoding. Redrawing one of them from its
law given all others is a step of the Gibbs sampler on the group, chosen without looking at the tokens, so it leaves the
model's law invariant and moves the group towards it. An ordinary network gives that law where the position is masked
(`redrawn`, a policy, a call a redraw); a hollow one gives it as it is (`LastGroup`, a corrector).
"""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.discrete.draws import Draws
from diffsample.discrete.model import Laws
from diffsample.discrete.policy import Around, Place, Selection
from diffsample.discrete.slots import write
from diffsample.struct import pytree, static

PyTree: TypeAlias = Any


@pytree
class Redrawn(Around):
    """See `redrawn`."""

    policy: Any
    redraws: int = static()

    @property
    def steps(self) -> PyTree:
        """(phase, row of the policy): each row 1 + redraws times."""
        times, rows = 1 + self.redraws, self.policy.steps
        n = jax.tree.leaves(rows)[0].shape[0]
        phase = jnp.tile(jnp.arange(times, dtype=jnp.int32), n)
        return phase, jax.tree.map(lambda leaf: jnp.repeat(leaf, times, axis=0), rows)

    @property
    def length(self) -> int | None:
        """What the policy inside was planned for."""
        return getattr(self.policy, "length", None)

    def init(self, draws: Draws, place: Place) -> tuple[PyTree, Array]:
        """(the policy's memory, the group, those of it not yet redrawn; the first clock)."""
        memory, clock = self.policy.init(draws, place)
        none = jnp.zeros(place.masked.shape, bool)
        return (memory, none, none), clock

    def select(self, draws: Draws, laws: Laws, place: Place, memory: PyTree, row: PyTree) -> tuple[Selection, PyTree]:
        """Phase 0 reveals a group, the others what was masked again; all but the last mask one position again."""
        inner, group, left = memory
        phase, inner_row = row
        new = phase == 0
        chosen, moved = self.policy.select(draws.at(0), laws, place, inner, inner_row)
        if chosen.tokens is not None or chosen.remask is not None:
            raise ValueError(f"{type(self.policy).__name__} draws its tokens or masks again itself: redraw the "
                             f"groups of a policy that only chooses positions")  # fmt: skip
        group = jnp.where(new, chosen.reveal & place.masked, group)
        left = jnp.where(new, group, left)
        reveal = place.masked & group
        left = jnp.where(jnp.any(left, axis=1, keepdims=True), left, group & ~reveal)  # a new sweep, no position twice
        several = jnp.sum(group, axis=1) > 1  # one token alone was drawn from its own law
        valid = (several & (phase < self.redraws))[:, None]
        log_w = jnp.where(left, -jnp.log(jnp.maximum(jnp.sum(left, axis=1, keepdims=True), 1.0)), -jnp.inf)
        at = draws.at(1).tokens(log_w[:, None, :], valid)
        remask = write(jnp.zeros_like(left), at, valid, valid)
        clock = jnp.where(new, chosen.clock, place.clock)
        inner = jax.tree.map(lambda a, b: jnp.where(new, a, b), moved, inner)
        return Selection(reveal, clock, remask=remask), (inner, group, left & ~remask)


def redrawn(policy: Any, redraws: int) -> Redrawn:
    """A policy whose groups are corrected: after each, some of its positions are masked again and drawn anew.

    The positions of a group are taken in a random order, sweep after sweep, one in each call. Groups of one position
    need no correction and get none. As redraws grow, the law tends to that of decoding one by one.

    Args:
        policy: what predicts; any that never masks again and draws no tokens itself, for example
            `first_hitting(length, updates=...)`. Its extrapolation weights are dropped.
        redraws: calls spent on each group of two or more.

    Raises:
        ValueError: no redraw; a policy that masks again.

    Reference: the predictor-corrector scheme of Campbell et al. 2022, arXiv 2205.14987, section 4.4, restricted to the
    group that was just revealed.

    >>> from diffsample.discrete import first_hitting
    >>> redrawn(first_hitting(6, updates=2), 2).steps[0].tolist()
    [0, 1, 2, 0, 1, 2]
    """
    if redraws < 1:
        raise ValueError(f"redraws={redraws} must be at least 1")
    if getattr(policy, "remask", None) is not None or isinstance(policy, Redrawn):
        raise ValueError(f"{type(policy).__name__} masks again itself: redraw the groups of a policy that does not")
    return Redrawn(policy, redraws)


@pytree
class LastGroup:
    """A corrector restricted to the positions that the newest update revealed, for hollow models.

    >>> from diffsample.discrete import Gibbs
    >>> LastGroup(Gibbs()).hollow
    True
    """

    corrector: Any

    @property
    def hollow(self) -> bool:
        """As the corrector."""
        return getattr(self.corrector, "hollow", False)

    def __call__(self, draws: Draws, laws: Laws, place: Place) -> Array:
        """New x [B, L]."""
        newest = place.newest
        group = write(jnp.zeros_like(place.free), newest.positions, newest.valid, newest.valid)
        return self.corrector(draws, laws, place._replace(free=place.free & group))
