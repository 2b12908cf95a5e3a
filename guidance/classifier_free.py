"""Classifier-free guidance."""

from typing import Any

import jax
from jax import Array

from diffsample.denoiser import Denoiser, Point, Prediction, PyTree
from diffsample.guidance.branches import Branches, TwoBranches, both
from diffsample.guidance.schedules import scheduled, value_at
from diffsample.struct import pytree, static


@pytree
class ClassifierFree(TwoBranches):
    """D_c + (scale - 1)(D_c - D_u); see `cfg`."""

    denoiser: Denoiser
    null: PyTree
    scale: Any
    batched: bool = static(default=True)

    def init(self, x: Array) -> Branches:
        return Branches(self.denoiser.init(x), self.denoiser.init(x))

    def __call__(self, x: Array, at: Point, cond: PyTree, state: Branches) -> tuple[Prediction, Branches]:
        (c, u), state = both(self.denoiser, x, at, cond, self.null, state, self.batched)
        extra = value_at(self.scale, at.now, x) - 1
        return jax.tree.map(lambda c, u: c + extra * (c - u), c, u), state


def cfg(denoiser: Denoiser, null: PyTree, scale: Any, *, batched: bool = True) -> ClassifierFree:
    """CFG, classifier-free guidance: D_c + (scale - 1)(D_c - D_u).

    Two network evaluations a call. scale = 1 is the conditional model, bit for bit; the same in x0, eps, v or velocity.
    It does not sample the tilted law p_c^scale p_u^(1 - scale).

    Args:
        denoiser: what is guided.
        null: the unconditional (or negative) condition: a pytree like the condition, broadcast to its shapes.
        scale: guidance scale in the Imagen convention (1 = conditional, 0 = unconditional), a number, [B]
            or a schedule (as all numbers of guidance rules; `piecewise_linear`, `piecewise_constant`).
        batched: one network call of twice the batch; False makes two calls, with half the memory.

    Reference: Ho & Salimans 2022, arXiv 2207.12598, eq. 6, whose w is scale - 1.

    >>> import diffsample as ds
    >>> ds.guidance.cfg(ds.exact.Gaussian(0.0, 1.0), null=10, scale=2.0).evaluations
    2
    """
    return ClassifierFree(denoiser, null, scheduled(scale), batched)
