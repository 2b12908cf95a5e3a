"""Denoisers around one denoiser: what they say of themselves where they add nothing, and one condition for all."""

from typing import Protocol

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.denoiser import Denoiser, Point, Prediction, PyTree
from diffsample.process import Level, Process
from diffsample.struct import pytree


class Wrapper(Denoiser, Protocol):
    """A rule that calls its denoiser once: costs, memory and refusals are those of the denoiser."""

    denoiser: Denoiser

    @property
    def evaluations(self) -> int:
        """Those of the denoiser."""
        return self.denoiser.evaluations

    @property
    def vjps(self) -> int:
        """Those of the denoiser."""
        return self.denoiser.vjps

    @property
    def coupled(self) -> bool:
        """Whether x = alpha x0 + sigma eps holds: where it does for the denoiser."""
        return self.denoiser.coupled

    def check(self, process: Process | None, levels: Level) -> None:
        """What the denoiser refuses."""
        self.denoiser.check(process, levels)

    def init(self, x: Array) -> PyTree:
        """The denoiser's memory."""
        return self.denoiser.init(x)


@pytree
class Fixed(Wrapper):
    """D under one condition whatever the sample's; see `fixed`."""

    denoiser: Denoiser
    condition: PyTree

    def __call__(self, x: Array, at: Point, cond: PyTree, state: PyTree) -> tuple[Prediction, PyTree]:
        same = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, x.shape[:1] + jnp.shape(leaf)), self.condition)
        return self.denoiser(x, at, same, state)


def fixed(denoiser: Denoiser, condition: PyTree) -> Fixed:
    """A denoiser under one condition, whatever the condition of the sample (which then guides something else).

    Args:
        denoiser: what is asked.
        condition: of one sample, without the batch axis; for example the null label, under `classifier`.

    >>> import diffsample as ds
    >>> fixed(ds.exact.Gaussian(0.0, 1.0), 10).evaluations
    1
    """
    return Fixed(denoiser, condition)
