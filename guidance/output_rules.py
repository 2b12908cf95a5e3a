"""Rules on what the network puts out: the ratio, the angle or the spread of the two branches decides.

Norms and standard deviations differ between x0, eps, v and velocity, so each rule names the space it works in; the
network may predict anything. Per sample over all other axes. All cost two network evaluations a call, and scale = 1 is
the conditional model, bit for bit (where `zero_steps` is 0).
"""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.denoiser import Denoiser, Point, Prediction, PyTree, expand, from_velocity
from diffsample.guidance.branches import Branches, TwoBranches, both
from diffsample.guidance.projected import inner, positive
from diffsample.guidance.schedules import scheduled, value_at
from diffsample.guidance.spaces import VELOCITY, Space, V, shift_output
from diffsample.process import Level
from diffsample.struct import pytree, static


class OnOutputs(TwoBranches, Protocol):
    """A rule that adds `addition` to the conditional branch's output in its space."""

    null: PyTree
    scale: Any
    space: Space
    batched: bool

    def addition(self, c: Array, u: Array, level: Level) -> Array:
        """Guided output minus c, for the outputs of the two branches."""
        ...

    def __call__(self, x: Array, at: Point, cond: PyTree, state: Branches) -> tuple[Prediction, Branches]:
        branches, state = both(self.denoiser, x, at, cond, self.null, state, self.batched)
        c, u = (self.space.output(branch, at.now) for branch in branches)
        return shift_output(branches.cond, self.addition(c, u, at.now), at.now, self.space), state


@pytree
class Rescaled(OnOutputs):
    """CFG with the standard deviation of the conditional output; see `rescale`."""

    denoiser: Denoiser
    null: PyTree
    scale: Any
    share: Any = 0.7
    space: Space = static(default=V)
    batched: bool = static(default=True)

    def addition(self, c: Array, u: Array, level: Level) -> Array:
        more = (value_at(self.scale, level, c) - 1) * (c - u)
        factor = 1 + value_at(self.share, level, c) * (_std(c) / positive(_std(c + more)) - 1)
        return factor * more + (factor - 1) * c


@pytree
class ZeroStar(OnOutputs):
    """CFG from the best multiple of the unconditional output; see `cfg_zero`."""

    denoiser: Denoiser
    null: PyTree
    scale: Any
    zero_steps: Any = 1
    space: Space = static(default=VELOCITY)
    batched: bool = static(default=True)

    def addition(self, c: Array, u: Array, level: Level) -> Array:
        best = inner(c, u) / (inner(u, u) + 1e-8)
        return (value_at(self.scale, level, c) - 1) * (c - best * u)

    def __call__(self, x: Array, at: Point, cond: PyTree, state: Branches) -> tuple[Prediction, Branches]:
        guided, state = OnOutputs.__call__(self, x, at, cond, state)
        still = from_velocity(x, jnp.zeros_like(x), at.now)
        waiting = expand(at.index, x) < self.zero_steps
        return jax.tree.map(lambda a, b: jnp.where(waiting, a, b), still, guided), state


@pytree
class Tangential(OnOutputs):
    """CFG from the unconditional output's part along the common direction; see `tcfg`."""

    denoiser: Denoiser
    null: PyTree
    scale: Any
    space: Space = static(default=VELOCITY)
    batched: bool = static(default=True)

    def addition(self, c: Array, u: Array, level: Level) -> Array:
        cc, cu, uu = inner(c, c), inner(c, u), inner(u, u)
        size = positive(jnp.hypot(cc - uu, 2 * cu))  # the eigenvalues of [[cc, cu], [cu, uu]] lie this far apart
        along = 0.5 * (1 - (cc - uu) / size) * u + cu / size * c
        return (value_at(self.scale, level, c) - 1) * (c - along)


@pytree
class MagnitudeAware(OnOutputs):
    """CFG damped where the branches differ much; see `mambo_g`."""

    denoiser: Denoiser
    null: PyTree
    scale: Any
    damping: Any = 8.0
    space: Space = static(default=VELOCITY)
    batched: bool = static(default=True)

    def addition(self, c: Array, u: Array, level: Level) -> Array:
        ratio = jnp.sqrt(inner(c - u, c - u) / positive(inner(u, u)))
        damped = jnp.exp(-value_at(self.damping, level, c) * ratio)
        return (value_at(self.scale, level, c) - 1) * damped * (c - u)


def rescale(
    denoiser: Denoiser, null: PyTree, scale: Any, share: Any = 0.7, *, space: Space = V, batched: bool = True
) -> Rescaled:
    """CFG rescale: g = CFG's output; share g std(c) / std(g) + (1 - share) g.

    Args:
        denoiser, null, scale, batched: as for `cfg`.
        share: 0 is `cfg`, 1 keeps the conditional output's standard deviation.
        space: `spaces.V`, the output that the paper rescales; `spaces.DATA` rescales x0, which is another rule.

    Reference: Lin et al. 2024, arXiv 2305.08891, section 3.4.

    >>> import diffsample as ds
    >>> rescale(ds.exact.Gaussian(0.0, 1.0), null=10, scale=7.5).evaluations
    2
    """
    return Rescaled(denoiser, null, scheduled(scale), scheduled(share), space, batched)


def cfg_zero(
    denoiser: Denoiser,
    null: PyTree,
    scale: Any,
    *,
    zero_steps: Any = 1,
    space: Space = VELOCITY,
    batched: bool = True,
) -> ZeroStar:
    """CFG-Zero*: s u + scale (c - s u), s = <c, u> / |u|^2, and no velocity in the first steps.

    In the first `zero_steps` steps the flow velocity eps - x0 is zero, so that x / (alpha + sigma) does not move.

    Args:
        denoiser, null, scale, batched: as for `cfg`.
        zero_steps: number of steps that do not move, 0 for none; they are evaluated all the same.
        space: of c and u, `spaces.VELOCITY` as published.

    Reference: Fan et al. 2025, arXiv 2503.18886.

    >>> import diffsample as ds
    >>> cfg_zero(ds.exact.Gaussian(0.0, 1.0), null=10, scale=3.0).evaluations
    2
    """
    return ZeroStar(denoiser, null, scheduled(scale), zero_steps, space, batched)


def tcfg(denoiser: Denoiser, null: PyTree, scale: Any, *, space: Space = VELOCITY, batched: bool = True) -> Tangential:
    """TCFG, tangential damping: CFG from u' = v v'u, v the leading right singular vector of the two rows c, u.

    By the closed form of the 2 x 2 Gram matrix, without a singular value decomposition. Where the rows are orthogonal
    and of equal length every direction leads, and u' = u / 2.

    Args:
        denoiser, null, scale, batched: as for `cfg`.
        space: of c and u.

    Reference: Kwon et al. 2025, arXiv 2503.18137.

    >>> import diffsample as ds
    >>> tcfg(ds.exact.Gaussian(0.0, 1.0), null=10, scale=3.0).evaluations
    2
    """
    return Tangential(denoiser, null, scheduled(scale), space, batched)


def mambo_g(
    denoiser: Denoiser, null: PyTree, scale: Any, damping: Any = 8.0, *, space: Space = VELOCITY, batched: bool = True
) -> MagnitudeAware:
    """MAMBO-G, magnitude-aware guidance: CFG of scale 1 + (scale - 1) exp(-damping |c - u| / |u|).

    Args:
        denoiser, null, scale, batched: as for `cfg`.
        damping: 0 is `cfg`.
        space: of c and u.

    Reference: MAMBO-G, arXiv 2508.03442.

    >>> import diffsample as ds
    >>> mambo_g(ds.exact.Gaussian(0.0, 1.0), null=10, scale=10.0).evaluations
    2
    """
    return MagnitudeAware(denoiser, null, scheduled(scale), scheduled(damping), space, batched)


def _std(x: Array) -> Array:
    """Standard deviation per sample, axes kept."""
    return jnp.std(x, axis=tuple(range(1, x.ndim)), keepdims=True)
