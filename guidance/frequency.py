"""Frequency-decoupled guidance: a scale of its own for each band of a Laplacian pyramid."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.denoiser import Denoiser, Point, Prediction, PyTree
from diffsample.guidance.branches import Branches, TwoBranches, both
from diffsample.guidance.projected import inner, positive
from diffsample.guidance.schedules import scheduled, value_at
from diffsample.guidance.spaces import shift_x0
from diffsample.process import Level
from diffsample.struct import pytree, static

BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


@pytree
class FrequencyDecoupled(TwoBranches):
    """CFG band by band; see `fdg`."""

    denoiser: Denoiser
    null: PyTree
    scales: tuple[Any, ...]
    parallel: tuple[Any, ...] | None
    axes: tuple[int, ...] = static(default=(1, 2))
    batched: bool = static(default=True)

    def __call__(self, x: Array, at: Point, cond: PyTree, state: Branches) -> tuple[Prediction, Branches]:
        (c, u), state = both(self.denoiser, x, at, cond, self.null, state, self.batched)
        bands = laplacian_pyramid(c.x0 - u.x0, len(self.scales), self.axes)
        if self.parallel is not None:
            images = laplacian_pyramid(c.x0, len(self.scales), self.axes)
            bands = [self._weigh(i, *pair, at.now) for i, pair in enumerate(zip(bands, images, strict=True))]
        more = [(value_at(s, at.now, x) - 1) * band for s, band in zip(self.scales, bands, strict=True)]
        return shift_x0(c, from_pyramid(more, self.axes), at.now), state

    def _weigh(self, i: int, band: Array, image: Array, level: Level) -> Array:
        """The band with its part along the conditional image's band weighted."""
        assert self.parallel is not None
        along = inner(band, image) / positive(inner(image, image)) * image
        return band + (value_at(self.parallel[i], level, band) - 1) * along


def fdg(
    denoiser: Denoiser,
    null: PyTree,
    scales: Sequence[Any] = (10.0, 5.0),
    *,
    parallel: Sequence[Any] | None = None,
    axes: tuple[int, ...] = (1, 2),
    batched: bool = True,
) -> FrequencyDecoupled:
    """FDG, frequency-decoupled guidance: CFG of x0 with a scale for each band of a Laplacian pyramid.

    Two network evaluations a call. The pyramid is linear, so equal scales are `cfg`, and without `parallel` the rule
    is the same in x0, eps, v or velocity.

    Args:
        denoiser, null, batched: as for `cfg`.
        scales: one a band, the highest frequencies first; numbers, [B] or schedules.
        parallel: weight of each band's part along the conditional prediction's band, 1 for all by default.
        axes: height and width in x, by default of [B, H, W, C]; (1,) for sequences [B, L, C].

    Raises:
        ValueError: no scale, or another number of parallel weights; at trace time, too many bands for the image.

    Reference: Sadat et al. 2025, arXiv 2506.19713, algorithms 1 and 2.

    >>> import diffsample as ds
    >>> fdg(ds.exact.Gaussian(0.0, 1.0), null=10, scales=[10.0, 5.0]).evaluations
    2
    """
    if not len(scales) or (parallel is not None and len(parallel) != len(scales)):
        raise ValueError(f"fdg needs a scale a band and as many parallel weights, got {scales=}, {parallel=}")
    weights = None if parallel is None else tuple(map(scheduled, parallel))
    return FrequencyDecoupled(denoiser, null, tuple(map(scheduled, scales)), weights, axes, batched)


def laplacian_pyramid(x: Array, levels: int, axes: tuple[int, ...]) -> list[Array]:
    """Bands from the finest to the coarsest, which is what is left; each half as large as the one before.

    Raises:
        ValueError: an axis that x does not have, or one too short for so many levels.

    >>> [band.shape for band in laplacian_pyramid(jnp.ones((1, 8, 8, 1)), 3, (1, 2))]
    [(1, 8, 8, 1), (1, 4, 4, 1), (1, 2, 2, 1)]
    """
    if not all(0 < a < x.ndim for a in axes) or min(x.shape[a] for a in axes) < 3 * 2 ** max(levels - 2, 0):
        raise ValueError(f"{levels} bands over axes {axes} need axes of {3 * 2 ** max(levels - 2, 0)} or more, "
                         f"x has shape {x.shape}")  # fmt: skip
    bands = []
    for _ in range(levels - 1):
        coarse = _resize(_blur(x, axes), axes, [-(-x.shape[a] // 2) for a in axes])
        bands.append(x - _up(coarse, axes, [x.shape[a] for a in axes]))
        x = coarse
    return [*bands, x]


def from_pyramid(bands: Sequence[Array], axes: tuple[int, ...]) -> Array:
    """The image of a pyramid: the inverse of `laplacian_pyramid`."""
    x = bands[-1]
    for band in reversed(bands[:-1]):
        x = band + _up(x, axes, [band.shape[a] for a in axes])
    return x


def _up(x: Array, axes: tuple[int, ...], sizes: list[int]) -> Array:
    return _blur(_resize(x, axes, sizes), axes)


def _resize(x: Array, axes: tuple[int, ...], sizes: list[int]) -> Array:
    shape = list(x.shape)
    for axis, size in zip(axes, sizes, strict=True):
        shape[axis] = size
    return jax.image.resize(x, shape, "linear", antialias=False)


def _blur(x: Array, axes: tuple[int, ...]) -> Array:
    """The binomial filter of five taps along each axis, the image mirrored at its edges."""
    taps = jnp.asarray(BINOMIAL, x.dtype).reshape(1, 1, -1)
    for axis in axes:
        lines = jnp.moveaxis(
            jnp.pad(x, [(2, 2) if a == axis else (0, 0) for a in range(x.ndim)], mode="reflect"), axis, -1
        )
        blurred = jax.lax.conv(lines.reshape(-1, 1, lines.shape[-1]), taps, (1,), "VALID")
        x = jnp.moveaxis(blurred.reshape(*lines.shape[:-1], x.shape[axis]), -1, axis)
    return x
