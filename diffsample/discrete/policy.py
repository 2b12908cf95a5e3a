"""Policies: which positions a decoder reveals, and when.

A policy reads the laws at the present state and decides which masked positions are revealed now, which observed ones
are masked again, and at which mask probability the network is called next. It never sees a token that is yet to be
drawn, unless it draws the tokens itself.
"""

from typing import Any, NamedTuple, Protocol, TypeAlias

import jax.numpy as jnp
from jax import Array

from diffsample.discrete.draws import Draws
from diffsample.discrete.model import Laws

PyTree: TypeAlias = Any


class Reveal(NamedTuple):
    """What the newest update revealed, k positions at most."""

    positions: Array  # int32 [B, k]
    valid: Array  # bool [B, k], the slots that are used
    tokens: Array  # int32 [B, k]
    log_p: Array  # [B, k], log-probability of the token under the model
    log_q: Array  # [B, k], and under the proposal that drew it; NaN where the policy drew it, by a law of its own


class Place(NamedTuple):
    """Where a decoder stands."""

    masked: Array  # bool [B, L], positions that wait for a token
    free: Array  # bool [B, L], positions that are not prompt or padding
    clock: Array  # [B] mask probability
    index: Array  # int32 scalar, number of the update, from 0
    newest: Any = None  # the `Reveal` of the update before


class Selection(NamedTuple):
    """A policy's decision."""

    reveal: Array  # bool [B, L], masked positions to reveal now
    clock: Array  # [B], mask probability at which the network is called next
    tokens: Array | None = None  # int32 [B, L], where the policy drew them itself
    remask: Array | None = None  # bool [B, L], free positions to mask again, after the reveal
    weight: Array | None = None  # scalar or [B], of an extrapolating proposal


class Policy(Protocol):
    """Which positions, and when. Only `steps` and `select` have to be written.

    A policy whose `remask` is not None may mask a full sequence again; one with a `length` was planned for sequences of
    at most so many positions, and longer ones are refused.
    """

    @property
    def steps(self) -> PyTree:
        """Data of each update, leading axis n."""
        ...

    @property
    def adaptive(self) -> bool:
        """Whether to stop as soon as nothing is masked, in a while loop instead of a scan."""
        return False

    def width(self, length: int) -> int:
        """The most positions that one update reveals, of a sequence of this length."""
        return length

    def init(self, draws: Draws, place: Place) -> tuple[PyTree, Array]:
        """(memory, batch first; the mask probability of the first call [B])."""
        return (), masked_share(place.masked)

    def select(self, draws: Draws, laws: Laws, place: Place, memory: PyTree, row: PyTree) -> tuple[Selection, PyTree]:
        """The decision of one update; where nothing is masked it must decide nothing."""
        ...


class Counted(Policy, Protocol):
    """A policy of K numbered updates that reveal a bounded number of positions each."""

    updates: Array  # int32 [K], numbers of the updates
    most: int  # positions revealed at once

    @property
    def steps(self) -> PyTree:
        """The numbers of the updates."""
        return self.updates

    def width(self, length: int) -> int:
        """The static bound."""
        return min(self.most, length)


class Around(Policy, Protocol):
    """A policy around another one, with its rows, its width and its start."""

    policy: Any

    @property
    def steps(self) -> PyTree:
        """Those of the policy inside."""
        return self.policy.steps

    @property
    def adaptive(self) -> bool:
        """As the policy inside."""
        return self.policy.adaptive

    def width(self, length: int) -> int:
        """That of the policy inside."""
        return self.policy.width(length)


def masked_share(masked: Array) -> Array:
    """The masked share of each sequence, the natural clock where none was drawn; [B]."""
    return jnp.mean(masked, axis=1, dtype=jnp.float32)
