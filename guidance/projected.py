"""Adaptive projected guidance, alone and after some steps of CFG."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.denoiser import Denoiser, Point, Prediction, PyTree, expand
from diffsample.guidance.branches import Branches, TwoBranches, both
from diffsample.guidance.schedules import known, scheduled, value_at
from diffsample.guidance.spaces import DATA, VELOCITY, Space, shift_output
from diffsample.process import Level
from diffsample.struct import pytree, static
from diffsample.wrapping import Wrapper


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
    axes: tuple[int, ...] | None = static(default=None)
    rms: bool = static(default=False)
    space: Space = static(default=DATA)
    batched: bool = static(default=True)

    def init(self, x: Array) -> ProjectedState:
        average = None if self.momentum is None else jnp.zeros_like(x)
        return ProjectedState(Branches(self.denoiser.init(x), self.denoiser.init(x)), average)

    def __call__(self, x: Array, at: Point, cond: PyTree, state: ProjectedState) -> tuple[Prediction, ProjectedState]:
        guided, _, state = self.guide(x, at, cond, state)
        return guided, state

    def guide(
        self, x: Array, at: Point, cond: PyTree, state: ProjectedState
    ) -> tuple[Prediction, Branches, ProjectedState]:
        """The guided prediction, the two that it was made from, and the new memory."""
        found, branches = both(self.denoiser, x, at, cond, self.null, state.branches, self.batched)
        c, u = (self.space.output(prediction, at.now) for prediction in found)
        difference, average = c - u, state.average
        if average is not None:
            difference = difference + value_at(self.momentum, at.now, x) * average
            average = jnp.where(expand(at.stage, x) == 0, difference, average)
        shift = (value_at(self.scale, at.now, x) - 1) * self._project(self._limit(difference, at.now), c, at.now)
        return shift_output(found.cond, shift, at.now, self.space), found, ProjectedState(branches, average)

    def _limit(self, difference: Array, level: Level) -> Array:
        """The difference, no longer than the radius."""
        if self.radius is None:
            return difference
        axes = self._axes(difference)
        dimension = math.prod(difference.shape[a] for a in axes) if self.rms else 1
        norm = jnp.sqrt(inner(difference, difference, axes))
        radius = value_at(self.radius, level, difference) * math.sqrt(dimension)
        return difference * jnp.minimum(1, radius / positive(norm))

    def _project(self, difference: Array, c: Array, level: Level) -> Array:
        """The difference with only the share eta of its part along the conditional output."""
        axes = self._axes(c)
        along = inner(difference, c, axes) / positive(inner(c, c, axes)) * c
        return difference - (1 - value_at(self.eta, level, c)) * along

    def _axes(self, x: Array) -> tuple[int, ...]:
        axes = self.axes or tuple(range(1, x.ndim))
        if not all(0 < a < x.ndim for a in axes):
            raise ValueError(f"axes={axes} must lie in 1 .. {x.ndim - 1} for x of shape {x.shape}; axis 0 is the batch")
        return axes


@pytree
class ProjectedAfterCFG(Wrapper):
    """CFG in the first steps, APG in the others; see `apg_mix`."""

    denoiser: AdaptiveProjected
    cfg_scale: Any
    cfg_steps: Any

    def __call__(self, x: Array, at: Point, cond: PyTree, state: ProjectedState) -> tuple[Prediction, ProjectedState]:
        projected, (c, u), state = self.denoiser.guide(x, at, cond, state)
        extra, early = value_at(self.cfg_scale, at.now, x) - 1, expand(at.index, x) < self.cfg_steps
        return jax.tree.map(lambda c, u, g: jnp.where(early, c + extra * (c - u), g), c, u, projected), state


def apg(
    denoiser: Denoiser,
    null: PyTree,
    scale: Any,
    *,
    radius: Any = None,
    momentum: Any = None,
    eta: Any = 0.0,
    axes: tuple[int, ...] | None = None,
    rms: bool = False,
    space: Space = DATA,
    batched: bool = True,
) -> AdaptiveProjected:
    """APG, adaptive projected guidance: CFG without the part of the difference that saturates.

    On x0 predictions, per sample over all other axes: d = D_c - D_u; m <- d + momentum m; d <- m clipped to norm
    `radius`; then D_c + (scale - 1)(d's part orthogonal to D_c + eta d's part along D_c). The kept m is not clipped,
    and advances at the first call of a step only. Two network evaluations a call, one array of memory with momentum.
    eta = 1 without radius and momentum is `cfg`.

    Args:
        denoiser, null, scale, batched: as for `cfg`.
        radius: largest norm of the difference; grows like sqrt(dimension) unless `rms`. None: no clipping.
        momentum: weight of the past, negative in the paper (-0.5, -0.75); a plain recursion, not an average. None: off.
        eta: share of the part along the conditional prediction that is kept.
        axes: axes of x over which norms and inner products are taken, each > 0; None: all but the batch.
        rms: the radius is of the root mean square over these axes, so that it suits every resolution.
        space: what D stands for, x0 as published. Pipelines that hand the rule the network's raw output (diffusers'
            guider) work in `spaces.NOISE`, `V` or `VELOCITY`: there the radius means another length at every level,
            and the part along the prediction is not saturation.
        radius, momentum and eta are numbers, [B] or schedules.

    Raises:
        ValueError: a radius that is not positive; at trace time, axes that x does not have.

    Reference: Sadat, Hilliges, Weber 2025, arXiv 2410.02416, algorithm 1.

    >>> import diffsample as ds
    >>> ds.guidance.apg(ds.exact.Gaussian(0.0, 1.0), null=10, scale=7.5, radius=2.5, momentum=-0.5).evaluations
    2
    """
    if radius is not None and known(radius) and not np.all(np.asarray(radius) > 0):
        raise ValueError(f"radius={radius} must be positive; None leaves the difference as long as it is")
    axes = None if axes is None else tuple(axes)
    scale, radius, momentum, eta = map(scheduled, (scale, radius, momentum, eta))
    return AdaptiveProjected(denoiser, null, scale, radius, momentum, eta, axes, rms, space, batched)


def apg_mix(
    denoiser: Denoiser,
    null: PyTree,
    cfg_scale: Any = 3.5,
    scale: Any = 10.0,
    *,
    cfg_steps: Any = 6,
    radius: Any = 10.0,
    momentum: Any = -0.5,
    eta: Any = 0.0,
    space: Space = VELOCITY,
    batched: bool = True,
) -> ProjectedAfterCFG:
    """HunyuanImage's mix: CFG of scale `cfg_scale` in the first steps, then APG, whose momentum ran from the start.

    Two network evaluations a call, one array of memory. The defaults are those of diffusers' guider for HunyuanImage
    2.1, where a run has 50 steps and the rule acts on the flow velocity.

    Args:
        denoiser, null, batched: as for `cfg`.
        cfg_scale, scale: guidance scales of CFG and of APG, numbers, [B] or schedules.
        cfg_steps: number of steps of CFG; a step begins at its first call.
        radius, momentum, eta, space: as for `apg`.

    Reference: HunyuanImage 2.1 (software) and diffusers (software), guiders/adaptive_projected_guidance_mix.

    >>> import diffsample as ds
    >>> apg_mix(ds.exact.Gaussian(0.0, 1.0), null=10).evaluations
    2
    """
    rule = apg(denoiser, null, scale, radius=radius, momentum=momentum, eta=eta, space=space, batched=batched)
    return ProjectedAfterCFG(rule, scheduled(cfg_scale), cfg_steps)


def inner(a: Array, b: Array, axes: tuple[int, ...] | None = None) -> Array:
    """Inner product per sample over some axes (all but the batch), axes kept."""
    return jnp.sum(a * b, axis=axes or tuple(range(1, a.ndim)), keepdims=True)


def positive(value: Array) -> Array:
    """No smaller than the smallest positive number, to divide by."""
    return jnp.maximum(value, jnp.finfo(value.dtype).tiny)
