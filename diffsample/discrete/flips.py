"""Asynchronous remasking: a clock a sequence for the decoders that mask again.

On a grid where step i reveals a masked position with probability rho_i and masks an observed one with sigma_i, whatever
the rest of the sequence, a position's next flip can be drawn when it flips: the first coin that falls from then on.
A sequence then jumps from one step that reveals something to the next. What is masked again between the two is masked
before the network is called, so the network sees what it would have seen on the grid, and the law is the grid's.
"""

from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.discrete.draws import CERTAIN, Draws
from diffsample.discrete.gridded import Grid
from diffsample.discrete.model import Laws
from diffsample.discrete.policy import Counted, Place, Selection
from diffsample.discrete.schedules import check_length
from diffsample.discrete.slots import at_most
from diffsample.struct import pytree, static

PyTree: TypeAlias = Any

BACK, DUE, ORDER = 0, 1, 2  # streams


@pytree
class Flips(Counted):
    """See `asynchronous_remasking`.

    Args:
        unmask, remask: [N + 1] cumulative hazards, sums of -log(1 - rho_i) and of -log(1 - sigma_i).
        level: [N + 1] mask probability at the start of each step.
        updates: int32 [N].
        most: static bound of the positions revealed at once.
        length: of the longest sequence.
    """

    unmask: Array
    remask: Array
    level: Array
    updates: Array
    most: int = static()
    length: int = static()

    @property
    def adaptive(self) -> bool:
        """A sequence without masks has no further step that reveals."""
        return True

    @property
    def _never(self) -> int:
        """The number after the last step's."""
        return self.level.shape[0] - 1

    def init(self, draws: Draws, place: Place) -> tuple[PyTree, Array]:
        """(the steps at which each position is masked again, and is revealed; the first level)."""
        never = jnp.full(place.masked.shape, self._never, jnp.int32)
        due = jnp.where(place.masked, draws.at(DUE).waits(self.unmask, never * 0, place.masked), never)
        return (never, due), self.level[jnp.min(due, axis=1)]

    def select(self, draws: Draws, laws: Laws, place: Place, memory: PyTree, row: Array) -> tuple[Selection, PyTree]:
        back, due = memory
        never = self._never
        now = jnp.min(due, axis=1, keepdims=True)
        reveal = place.masked & (due == now)
        if self.most < reveal.shape[1]:  # a fuller step goes on in the next update
            ranks = draws.at(ORDER).ranks(jnp.where(reveal, 0.0, -jnp.inf))
            reveal = at_most(reveal, self.most, ranks)
        again = draws.at(BACK).waits(self.remask, jnp.broadcast_to(now + 1, due.shape), reveal)
        later = draws.at(DUE).waits(self.unmask, again + 1, reveal & (again < never))
        back = jnp.where(reveal, again, back)
        due = jnp.where(reveal, jnp.where(again < never, later, never), due)
        coming = jnp.min(due, axis=1)
        remask = place.free & (back < coming[:, None])
        return Selection(reveal, self.level[coming], remask=remask), (jnp.where(remask, never, back), due)


def asynchronous_remasking(grid: Grid, length: int, *, most: int | None = None) -> Flips:
    """A remasking grid with a clock a sequence: the same law, and only the calls that reveal something.

    For every rule whose chances do not depend on the sequence: `remask_at_most`, `remask_rescaled`, `remask_loop`,
    `forward_backward`, `remasking`, `flow_corrector`, and `ancestral` or `euler`, which never mask again.

    Args:
        grid: the rule, as it would be given to a `Decoder`.
        length: L of the sequences.
        most: positions revealed at once at most, which bounds the logits; steps that hold more take several updates,
            which changes the law. None sets no bound.

    Raises:
        TypeError: a rule that depends on the sequence (`remask_unsure`) or is no grid.
        ValueError: an extrapolating grid (`trapezoidal`), whose halves belong together; a bound below 1.

    Reference: the hazards of ReMDM's schedule, Wang et al. 2025, arXiv 2503.00307, section 3; the clocks are ours.

    >>> from diffsample.discrete import remask_at_most
    >>> asynchronous_remasking(remask_at_most([1.0, 0.5, 0.0], 0.1), 4).steps.shape
    (2,)
    """
    if not isinstance(grid, Grid):
        raise TypeError(f"asynchronous clocks need a grid whose chances do not depend on the sequence, got {grid!r}")
    if grid.weight is not None:
        raise ValueError("an extrapolating grid (trapezoidal) has no asynchronous form: its halves belong together")
    check_length(length)
    if most is not None and most < 1:
        raise ValueError(f"most={most} must be at least 1")
    rho = np.asarray(grid.rho, np.float64)
    sigma = np.zeros_like(rho) if grid.remask is None else np.asarray(grid.remask, np.float64).copy()
    sigma[0] = 0.0 if np.asarray(grid.start) == 1 else sigma[0]  # nothing is observed yet
    level = np.append(np.asarray(grid.start), np.asarray(grid.clock))
    unmask, remask, level = (jnp.asarray(a, float) for a in (_hazard(rho), _hazard(sigma), level))
    updates = jnp.arange(len(rho) if most is None else len(rho) * -(-length // most), dtype=jnp.int32)
    return Flips(unmask, remask, level, updates, most or length, length)


def _hazard(p: np.ndarray) -> np.ndarray:
    """Sums of -log(1 - p) from 0 on, [N + 1]."""
    with np.errstate(divide="ignore"):
        return np.append(0.0, np.cumsum(np.minimum(-np.log1p(-p), CERTAIN)))
