"""Adaptive projected guidance."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from diffsample.denoiser import Denoiser, Point, Prediction, PyTree, expand
from diffsample.guidance.branches import Branches, TwoBranches, both
from diffsample.struct import pytree, static


class ProjectedState(NamedTuple):
    branches: Branches  # the guided denoiser's own memory
    average: Array | None  # [B, ...] running sum of the differences, not clipped; None without momentum


@pytree
class AdaptiveProjected(TwoBranches):
    """CFG whose difference is averaged, clipped and freed of its part along the image; see `apg`."""

    denoiser: Denoiser
    null: PyTree
    scale: Any
    radius: Any = None
    momentum: Any = None
    eta: Any = 0.0
    batched: bool = static(default=True)

    def init(self, x: Array) -> ProjectedState:
        average = None if self.momentum is None else jnp.zeros_like(x)
        return ProjectedState(Branches(self.denoiser.init(x), self.denoiser.init(x)), average)

    def __call__(self, x: Array, at: Point, cond: PyTree, state: ProjectedState) -> tuple[Prediction, ProjectedState]:
        (c, u), branches = both(self.denoiser, x, at, cond, self.null, state.branches, self.batched)
        difference, average = c.x0 - u.x0, state.average
        if average is not None:
            difference = difference + expand(self.momentum, x) * average
            average = jnp.where(at.stage == 0, difference, average)
        if self.radius is not None:
            norm = jnp.sqrt(_inner(difference, difference))
            difference = difference * jnp.minimum(1, expand(self.radius, x) / _positive(norm))
        along = _inner(difference, c.x0) / _positive(_inner(c.x0, c.x0)) * c.x0
        shift = (expand(self.scale, x) - 1) * (difference - (1 - expand(self.eta, x)) * along)
        eps = c.eps - expand(at.now.alpha, x) / expand(at.now.sigma, x) * shift
        return Prediction(c.x0 + shift, eps), ProjectedState(branches, average)


def apg(
    denoiser: Denoiser,
    null: PyTree,
    scale: Any,
    *,
    radius: Any = None,
    momentum: Any = None,
    eta: Any = 0.0,
    batched: bool = True,
) -> AdaptiveProjected:
    """APG, adaptive projected guidance: CFG without the part of the difference that saturates.

    On x0 predictions, per sample over all other axes: d = D_c - D_u; m <- d + momentum m; d <- m clipped to norm
    `radius`; then D_c + (scale - 1)(d's part orthogonal to D_c + eta d's part along D_c). The kept m is not clipped,
    and advances at the first call of a step only. Two network evaluations a call, one array of memory with momentum.
    eta = 1 without radius and momentum is `cfg`.

    Args:
        denoiser, null, scale, batched: as for `cfg`.
        radius: largest norm of the difference; grows like sqrt(dimension). None: no clipping.
        momentum: weight of the past, negative in the paper (-0.5, -0.75); a plain recursion, not an average. None: off.
        eta: share of the part along the conditional prediction that is kept.

    Reference: Sadat, Hilliges, Weber 2025, arXiv 2410.02416, algorithm 1.

    >>> import diffsample as ds
    >>> ds.guidance.apg(ds.exact.Gaussian(0.0, 1.0), null=10, scale=7.5, radius=2.5, momentum=-0.5).evaluations
    2
    """
    return AdaptiveProjected(denoiser, null, scale, radius, momentum, eta, batched)


def _inner(a: Array, b: Array) -> Array:
    """Inner product per sample, axes kept, in float32 at least."""
    return jnp.sum(a * b, axis=tuple(range(1, a.ndim)), keepdims=True)


def _positive(value: Array) -> Array:
    return jnp.maximum(value, jnp.finfo(value.dtype).tiny)
