"""Guidance by a worse model: a weaker network, or the network itself perturbed.

Different networks never share a call.
"""

from typing import Any, NamedTuple, Protocol

import jax
from jax import Array

from diffsample.denoiser import Denoiser, Point, Prediction, PyTree
from diffsample.guidance.branches import Branches, both
from diffsample.guidance.schedules import scheduled, value_at
from diffsample.process import Level, Process
from diffsample.struct import pytree, static


class PairState(NamedTuple):
    main: PyTree
    worse: PyTree


class WithWorse(Denoiser, Protocol):
    """What both rules say of their two networks."""

    denoiser: Denoiser
    worse: Denoiser

    @property
    def coupled(self) -> bool:
        """Whether x = alpha x0 + sigma eps holds: where it does for both."""
        return self.denoiser.coupled and self.worse.coupled

    def check(self, process: Process | None, levels: Level) -> None:
        """What either refuses."""
        self.denoiser.check(process, levels)
        self.worse.check(process, levels)


@pytree
class Autoguidance(WithWorse):
    """D + (scale - 1)(D - D_worse); see `autoguidance`."""

    denoiser: Denoiser
    worse: Denoiser
    scale: Any

    @property
    def evaluations(self) -> int:
        """Those of both."""
        return self.denoiser.evaluations + self.worse.evaluations

    @property
    def vjps(self) -> int:
        return self.denoiser.vjps + self.worse.vjps

    def init(self, x: Array) -> PairState:
        return PairState(self.denoiser.init(x), self.worse.init(x))

    def __call__(self, x: Array, at: Point, cond: PyTree, state: PairState) -> tuple[Prediction, PairState]:
        main, main_state = self.denoiser(x, at, cond, state.main)
        worse, worse_state = self.worse(x, at, cond, state.worse)
        extra = value_at(self.scale, at.now, x) - 1
        return jax.tree.map(lambda a, b: a + extra * (a - b), main, worse), PairState(main_state, worse_state)


@pytree
class Perturbed(WithWorse):
    """CFG and guidance away from a perturbed network, from one conditional call; see `perturbed`."""

    denoiser: Denoiser
    worse: Denoiser
    null: PyTree
    scale: Any
    strength: Any
    batched: bool = static(default=True)

    @property
    def evaluations(self) -> int:
        """Two branches of the network and one call of the perturbed one."""
        return 2 * self.denoiser.evaluations + self.worse.evaluations

    @property
    def vjps(self) -> int:
        return 2 * self.denoiser.vjps + self.worse.vjps

    def init(self, x: Array) -> PairState:
        return PairState(Branches(self.denoiser.init(x), self.denoiser.init(x)), self.worse.init(x))

    def __call__(self, x: Array, at: Point, cond: PyTree, state: PairState) -> tuple[Prediction, PairState]:
        (c, u), main_state = both(self.denoiser, x, at, cond, self.null, state.main, self.batched)
        worse, worse_state = self.worse(x, at, cond, state.worse)
        extra, strength = value_at(self.scale, at.now, x) - 1, value_at(self.strength, at.now, x)
        guided = jax.tree.map(lambda c, u, worse: c + extra * (c - u) + strength * (c - worse), c, u, worse)
        return guided, PairState(main_state, worse_state)


def autoguidance(denoiser: Denoiser, worse: Denoiser, scale: Any) -> Autoguidance:
    """Autoguidance: D_worse + scale (D - D_worse), both under the same condition.

    One evaluation of each network a call, never batched together. scale = 1 is the denoiser, bit for bit. The worse
    model is a smaller or a less trained one; or the same one hurt, which makes this perturbed-attention, smoothed-
    energy or skip-layer guidance of strength scale - 1, and with another `Network(time=...)` time-step guidance.

    Args:
        denoiser: the main model.
        worse: the worse one.
        scale: 1 is no guidance; a number, [B] or a schedule.

    Reference: Karras et al. 2024, arXiv 2406.02507.

    >>> import diffsample as ds
    >>> autoguidance(ds.exact.Gaussian(0.0, 1.0), ds.exact.Gaussian(0.0, 2.0), 2.0).evaluations
    2
    """
    return Autoguidance(denoiser, worse, scheduled(scale))


def perturbed(
    denoiser: Denoiser, worse: Denoiser, null: PyTree, scale: Any, strength: Any = 2.8, *, batched: bool = True
) -> Perturbed:
    """Perturbed guidance on top of CFG: D_c + (scale - 1)(D_c - D_u) + strength (D_c - D_worse).

    Three network evaluations a call, one of them of the perturbed network under the same condition. PAG (identity in
    place of chosen attention maps), SEG (blurred queries) and SLG (skipped layers) differ in the network that is given
    as `worse`; without CFG they are `autoguidance` of scale 1 + strength.

    Args:
        denoiser, null, scale, batched: as for `cfg`.
        worse: the perturbed network, usually the same weights with another `apply`.
        strength: 0 is CFG; a number, [B] or a schedule.

    Reference: Ahn et al. 2024, arXiv 2403.17377 (PAG); Hong 2024, arXiv 2408.00760 (SEG).

    >>> import diffsample as ds
    >>> perturbed(ds.exact.Gaussian(0.0, 1.0), ds.exact.Gaussian(0.0, 2.0), 10, 2.0).evaluations
    3
    """
    return Perturbed(denoiser, worse, null, scheduled(scale), scheduled(strength), batched)
