"""Potentials: what weighs a particle at each row. They read views and transition kernels, and call no network.

A potential is a small pytree with three parts, all of which return log G [B]: `start` at the first call, `__call__` for
every further row, `finish` for the closing update. Memory is the potential's own; what has the batch axis first is
gathered with the particles.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
from jax import Array

from diffsample.denoiser import PyTree
from diffsample.sampler import Kernel, Sampler, View
from diffsample.smc.functions import Plain
from diffsample.struct import pytree


class Transition(NamedTuple):
    """One row: `before` it (after resampling), `after` it, and the law that x was drawn from, computed if asked for."""

    before: View
    after: View
    kernel: Callable[[], Kernel]  # of after.x


class Closing(NamedTuple):
    """The closing update: the last view, the result, and the law that it was drawn from."""

    before: View
    x: Array  # [B, ...]
    kernel: Callable[[], Kernel]  # of x; std is 0 where the closing update draws nothing


class Potential(Protocol):
    """What `feynman_kac` weighs with. The defaults weigh nothing at the start and at the end."""

    def check(self, sampler: Sampler) -> None:
        """Raise ValueError where it cannot weigh this sampler; called when the two are put together."""

    def start(self, view: View) -> tuple[Array, PyTree]:
        """(log G [B] of the first call, memory); shapes must not depend on values."""
        return zeros(view), ()

    def __call__(self, transition: Transition, memory: PyTree) -> tuple[Array, PyTree]:
        """(log G [B] of a row, memory)."""
        ...

    def finish(self, closing: Closing, memory: PyTree) -> Array:
        """log G [B] of the closing update."""
        return zeros(closing.before)


def zeros(view: View) -> Array:
    """log G = 0 for each particle, float32 at least."""
    dtype = view.x.dtype if jnp.issubdtype(view.x.dtype, jnp.floating) else jnp.float32
    return jnp.zeros(view.x.shape[:1], jnp.promote_types(dtype, jnp.float32))


@pytree
class Pairwise(Potential):
    """A function (view before, view after) -> log G [B] as a potential: nothing at the start, nothing at the end."""

    function: Any

    def __call__(self, transition: Transition, memory: PyTree) -> tuple[Array, PyTree]:
        return self.function(transition.before, transition.after), memory


@pytree
class Combined(Potential):
    """The product of potentials; see `combine`."""

    parts: tuple[Potential, ...]

    def check(self, sampler: Sampler) -> None:
        for part in self.parts:
            part.check(sampler)

    def start(self, view: View) -> tuple[Array, PyTree]:
        return _sum([part.start(view) for part in self.parts])

    def __call__(self, transition: Transition, memory: PyTree) -> tuple[Array, PyTree]:
        return _sum([part(transition, own) for part, own in zip(self.parts, memory, strict=True)])

    def finish(self, closing: Closing, memory: PyTree) -> Array:
        log_g = zeros(closing.before)
        for part, own in zip(self.parts, memory, strict=True):
            log_g = log_g + part.finish(closing, own)
        return log_g


def combine(*potentials: Any) -> Combined:
    """The product of several potentials: log G adds up, each keeps its own memory.

    Args:
        potentials: potentials, or functions (view before, view after) -> log G [B].

    >>> len(combine(lambda before, after: after.x, lambda before, after: -after.x).parts)
    2
    """
    return Combined(tuple(as_potential(potential) for potential in potentials))


def as_potential(value: Any) -> Any:
    """A potential, or a function (view before, view after) -> log G [B] made into one.

    Raises:
        TypeError: neither.
    """
    if not callable(value) or isinstance(value, type):
        raise TypeError(f"a potential is a function (view before, view after) -> log G [B], or has start, __call__ and "
                        f"finish; got {value!r}")  # fmt: skip
    return value if hasattr(value, "finish") else Pairwise(Plain(value))


def _sum(outputs: list[tuple[Array, PyTree]]) -> tuple[Array, PyTree]:
    total = outputs[0][0]
    for log_g, _ in outputs[1:]:
        total = total + log_g
    return total, tuple(memory for _, memory in outputs)
