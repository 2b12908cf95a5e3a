"""Denoisers around one denoiser, and samplers around one sampler: what they say of themselves where they add nothing;
and one condition for all.
"""

from typing import Any, Protocol

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


class SamplerWrapper(Protocol):
    """A sampler with the states of another: what a class does not define is that sampler's.

    What a sampler may lack (`draws`, `done`, `dtype`, `admit`, `verify`) is there where the one inside has it. A
    transition kernel is not among these: a wrapper whose moves are other moves has another.
    """

    sampler: Any

    @property
    def nfe(self) -> int:
        """The sampler's."""
        return self.sampler.nfe

    @property
    def steps(self) -> PyTree:
        """The sampler's."""
        return self.sampler.steps

    @property
    def draws(self) -> Any:
        """The sampler's."""
        return self.sampler.draws

    @property
    def done(self) -> Any:
        """The sampler's."""
        return self.sampler.done

    @property
    def dtype(self) -> Any:
        """The sampler's."""
        return self.sampler.dtype

    @property
    def admit(self) -> Any:
        """The sampler's."""
        return self.sampler.admit

    @property
    def verify(self) -> Any:
        """The sampler's."""
        return self.sampler.verify

    def settled(self, state: PyTree) -> bool:
        """The sampler's."""
        return self.sampler.settled(state)

    def prior(self, keys: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        """The sampler's."""
        return self.sampler.prior(keys, shape, dtype)

    def init(self, keys: Array, x: Array, cond: PyTree) -> PyTree:
        """The sampler's."""
        return self.sampler.init(keys, x, cond)

    def step(self, keys: Array, state: PyTree, step: PyTree, cond: PyTree) -> PyTree:
        """The sampler's."""
        return self.sampler.step(keys, state, step, cond)

    def finish(self, keys: Array, state: PyTree, cond: PyTree) -> Any:
        """The sampler's."""
        return self.sampler.finish(keys, state, cond)

    def view(self, state: PyTree) -> Any:
        """The sampler's."""
        return self.sampler.view(state)


class SameMoves(SamplerWrapper, Protocol):
    """A wrapper that leaves the sampler's moves as they are, so that what weighs them may read their table."""

    @property
    def denoiser(self) -> Any:
        """The sampler's."""
        return self.sampler.denoiser

    @property
    def tableau(self) -> Any:
        """The sampler's."""
        return self.sampler.tableau


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
