"""Decoders that know their order before they start: first-hitting, its parallel forms, and any given order.

Give every position a uniform U_l; position l is revealed when the mask probability m falls to U_l. So the order is
uniformly random, independent of the tokens, and the n-th largest U is the clock of the n-th reveal: "when" needs no
network and no randomness in the loop. Token by token the output law is exactly the model's any-order autoregressive
one.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.discrete.draws import Draws
from diffsample.discrete.model import Laws
from diffsample.discrete.policy import Counted, Place, Selection, masked_share
from diffsample.discrete.proposals import as_leaves
from diffsample.discrete.schedules import check_length
from diffsample.struct import pytree, static

PyTree: TypeAlias = Any
Sizes: TypeAlias = Callable[[Array, Array, int], Array]  # (masked [B], updates done, updates) -> revealed so far [B]


def equal_sizes(masked: Array, done: Array, updates: int) -> Array:
    """An equal split, the remainder spread over the first updates (LLaDA's)."""
    return done * (masked // updates) + jnp.minimum(done, masked % updates)


def cosine_sizes(masked: Array, done: Array, updates: int) -> Array:
    """floor(n cos(pi/2 i/K)) stay masked after update i of K, at least one less each time (MaskGIT's)."""
    left = jnp.floor(masked * jnp.cos(jnp.pi / 2 * done / updates) + 1e-4).astype(jnp.int32)
    left = jnp.where(done >= updates, 0, left)
    return jnp.clip(jnp.maximum(masked - left, jnp.minimum(done, masked)), 0, masked)


@pytree
class GivenSizes:
    """Groups of given sizes, the last update reveals all that is left; sizes are leaves.

    >>> GivenSizes(jnp.array([1, 2, 2]))(jnp.array([5, 2]), jnp.int32(2), 3).tolist()
    [3, 2]
    """

    sizes: Array  # int32 [K]

    def __call__(self, masked: Array, done: Array, updates: int) -> Array:
        total = jnp.sum(jnp.where(jnp.arange(updates) < done, jnp.asarray(self.sizes, jnp.int32), 0))
        return jnp.where(done >= updates, masked, jnp.minimum(total, masked))


@pytree
class FirstHitting(Counted):
    """Reveal in a uniformly random order, in groups.

    Args:
        updates: int32 [K] row numbers; K updates.
        sizes: how many positions stand revealed after each update.
        most: static bound of a group, so that only so many logits exist.
        overshoot: largest weight handed to an extrapolating proposal.
        length: of the longest sequence.
    """

    updates: Array
    sizes: Any
    overshoot: Any
    most: int = static()
    length: int = static()

    def init(self, draws: Draws, place: Place) -> tuple[PyTree, Array]:
        count = jnp.sum(place.masked, axis=1, dtype=jnp.int32)
        length = place.masked.shape[1]
        ranks = draws.at(0).ranks(jnp.where(place.masked, 0.0, -jnp.inf))
        clocks = draws.at(1).clocks(count, length)
        return (ranks, clocks, count, count * 0), clocks[:, 0]

    def select(self, draws: Draws, laws: Laws, place: Place, memory: PyTree, row: Array) -> tuple[Selection, PyTree]:
        ranks, clocks, count, before = memory
        total = self.updates.shape[0]
        start, stop = (self.sizes(count, row + d, total).astype(jnp.int32) for d in (0, 1))
        reveal = place.masked & (ranks < stop[:, None])
        upcoming = jnp.minimum(stop, clocks.shape[1] - 1)
        clock = jnp.where(stop < count, jnp.take_along_axis(clocks, upcoming[:, None], axis=1)[:, 0], 0.0)
        # the average token of a group should have seen half of the group's others; the last call saw `before` fewer
        size = stop - start
        weight = jnp.where(before > 0, 0.5 * (size - 1) / jnp.maximum(before, 1), 0.0)
        ranks = jnp.where(reveal, ranks.shape[1], ranks)  # of no use any more
        return Selection(reveal, clock, weight=jnp.minimum(weight, self.overshoot)), (ranks, clocks, count, size)


@pytree
class GivenOrder(Counted):
    """Reveal group 0, then group 1, and so on: any order, any fixed groups, the same for every sequence.

    Args:
        groups: int32 [L], the update that reveals each position.
        updates: int32 [K] row numbers.
        most: size of the largest group.
    """

    groups: Array
    updates: Array
    most: int = static()

    def select(self, draws: Draws, laws: Laws, place: Place, memory: PyTree, row: Array) -> tuple[Selection, PyTree]:
        if self.groups.shape[0] != place.masked.shape[1]:
            raise ValueError(f"the order is of {self.groups.shape[0]} positions, the sequence has "
                             f"{place.masked.shape[1]}")  # fmt: skip
        reveal = place.masked & (self.groups <= row)[None, :]
        return Selection(reveal, masked_share(place.masked & ~reveal)), memory


def first_hitting(
    length: int, *, updates: int | None = None, sizes: Sequence[int] | Sizes | None = None, overshoot: float = 0.75
) -> FirstHitting:
    """The first-hitting sampler: reveal in the order in which tokens would be hit, one call a token or a group.

    Exact token by token (any order is). In groups the tokens of a group are drawn independently; small groups first
    cost least. `Decoder(..., proposal=extrapolated)` makes groups second order without another call.

    Args:
        length: L of the sequences; prompts may leave fewer to reveal.
        updates: K; None is one a token.
        sizes: K group sizes; or a function `(masked [B], updates done, K) -> revealed [B]` such as `equal_sizes` (the
            default) and `cosine_sizes`, a pytree or a function that is kept.
        overshoot: largest extrapolation weight.

    Raises:
        ValueError: sizes that are not positive or do not sum to length.

    Reference: Zheng et al. 2024, arXiv 2409.02908, algorithm 1.

    >>> first_hitting(5, sizes=[1, 2, 2]).width(5)
    2
    """
    rule, count, most = planned_sizes(length, updates, sizes)
    return FirstHitting(jnp.arange(count, dtype=jnp.int32), rule, jnp.asarray(overshoot, float), most, length)


def given_order(groups: Sequence[int]) -> GivenOrder:
    """Reveal position l in update groups[l]: any fixed order, exact where a group has one position.

    Args:
        groups: L integers 0 .. K - 1, each update at least once.

    Raises:
        ValueError: an update that reveals nothing.

    >>> given_order([1, 2, 0, 2, 1]).width(5)
    2
    """
    table = np.asarray(groups)
    if table.ndim != 1 or not np.issubdtype(table.dtype, np.integer) or len(table) == 0:
        raise ValueError(f"groups must be L integers, got {groups!r}")
    counts = np.bincount(table) if table.min() >= 0 else np.zeros(1)
    if (counts == 0).any():
        raise ValueError(f"groups={list(groups)} must use every number from 0 to its largest")
    return GivenOrder(jnp.asarray(table, jnp.int32), jnp.arange(len(counts), dtype=jnp.int32), int(counts.max()))


def dyadic(length: int) -> GivenOrder:
    """Bisection: the middle, then the middles of the halves, and so on; ceil(log2(L + 1)) calls.

    Exact for a Markov chain, whose positions are independent given one between them.

    >>> dyadic(5).groups.tolist()
    [2, 1, 0, 2, 1]
    """
    groups = np.zeros(length, int)
    spans = [(0, length, 0)]
    while spans:
        low, high, depth = spans.pop()
        if low < high:
            middle = (low + high) // 2
            groups[middle] = depth
            spans += [(low, middle, depth + 1), (middle + 1, high, depth + 1)]
    return given_order(groups.tolist())


def planned_sizes(length: int, updates: int | None, sizes: Sequence[int] | Sizes | None) -> tuple[Any, int, int]:
    """(rule as a pytree, number of updates, largest group) from what a user may give."""
    check_length(length)
    if sizes is not None and not callable(sizes):
        table = np.asarray(sizes, np.int32)
        if table.ndim != 1 or (table < 1).any() or table.sum() != length or updates not in (None, len(table)):
            raise ValueError(f"sizes={list(sizes)} must be positive and sum to length={length}, one an update")
        updates, rule = len(table), GivenSizes(jnp.asarray(table))
    else:
        updates, rule = length if updates is None else updates, sizes or equal_sizes
    if not 1 <= updates <= length:
        raise ValueError(f"updates={updates} must lie in 1 .. length={length}")
    rule = as_leaves(rule)
    return rule, updates, _largest(rule, length, updates)


def _largest(rule: Any, length: int, updates: int) -> int:
    """The largest group of any update, over all numbers of masked positions."""
    count = jnp.arange(length + 1, dtype=jnp.int32)
    after = jax.vmap(lambda done: rule(count, done, updates))(jnp.arange(updates + 1, dtype=jnp.int32))
    after = np.asarray(after)
    if (np.diff(after, axis=0) < 0).any() or (after[-1] != np.arange(length + 1)).any():
        raise ValueError("sizes must reveal more and more positions, and all of them in the last update")
    return max(1, int(np.diff(after, axis=0).max()))
