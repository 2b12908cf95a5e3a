"""The order of particles before and after resampling: sorted by a number or along a Hilbert curve, or left in place."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.sampler import View
from diffsample.smc.functions import as_pytree
from diffsample.smc.particles import gather
from diffsample.smc.resamplers.resampling import Moved, Resampler, systematic
from diffsample.struct import pytree, static


@pytree
class InPlace:
    """Survivors keep their slots; see `in_place`."""

    resample: Any

    def __call__(self, key: Array, log_w: Array) -> Array:
        slots = jnp.arange(len(log_w), dtype=jnp.int32)
        copies = jnp.zeros(log_w.shape, jnp.int32).at[self.resample(key, log_w)].add(1)
        surplus = jnp.cumsum(jnp.maximum(copies - 1, 0))
        rank = jnp.cumsum(copies == 0, dtype=jnp.int32) - 1  # of an empty slot among the empty ones
        filler = jnp.searchsorted(surplus, rank, side="right").astype(jnp.int32)
        return jnp.where(copies > 0, slots, jnp.minimum(filler, len(log_w) - 1))


def in_place(resample: Resampler = systematic) -> InPlace:
    """The same copies, so ordered that every particle that survives keeps its slot; only surplus copies move.

    Args:
        resample: function (key, log_w [K]) -> ancestors [K].

    Reference: Murray, Lee, Jacob 2016, arXiv 1301.4019, section 3.5.

    >>> in_place()(jax.random.key(0), jnp.log(jnp.array([0.0, 0.25, 0.0, 0.75]))).tolist()
    [3, 1, 3, 3]
    """
    return InPlace(as_pytree(resample))


@pytree
class Sorted:
    """Resampling of particles in increasing order of a number; see `sorted_by`."""

    value: Any
    resample: Any

    def move(self, keys: Array, log_w: Array, cloud: list[Array], view: View) -> Moved:
        return _in_order(self.resample, keys, log_w, cloud, self.value(view).reshape(log_w.shape))


def sorted_by(value: Callable[[View], Array], resample: Resampler = systematic) -> Sorted:
    """Resampling along a number a particle, for example its reward: neighbours in it share strata.

    With `systematic` or `stratified` the error of averages of smooth functions of that number is o(K^-1/2).

    Args:
        value: function of the view, [B].
        resample: what inverts the sorted weights.

    Reference: Gerber, Chopin, Whiteley 2019, arXiv 1707.01845, section 4 (sorted systematic).

    >>> sorted_by(lambda view: view.x0[:, 0]).resample
    Plain(function=<function systematic ...>)
    """
    return Sorted(as_pytree(value), as_pytree(resample))


@pytree
class Hilbert:
    """Resampling along a Hilbert curve; see `hilbert`."""

    resample: Any
    bits: int | None = static(default=None)

    def move(self, keys: Array, log_w: Array, cloud: list[Array], view: View) -> Moved:
        size = math.prod(view.x.shape[1:])
        bits = self.bits or 30 // size
        if not 1 <= bits * size <= 31:
            raise ValueError(f"{bits} bits for each of {size} coordinates do not fit an index of 31 bits: sort by a "
                             f"number instead, sorted_by(reward)")  # fmt: skip
        x = view.x.reshape(*log_w.shape, size)
        centred = x - x.mean(axis=1, keepdims=True)
        scaled = centred / jnp.maximum(x.std(axis=1, keepdims=True), jnp.finfo(x.dtype).tiny)
        cells = jnp.floor(jax.nn.sigmoid(scaled) * 2**bits).astype(jnp.uint32)
        order = hilbert_index(jnp.minimum(cells, 2**bits - 1), bits)
        return _in_order(self.resample, keys, log_w, cloud, order)


def hilbert(resample: Resampler = systematic, *, bits: int | None = None) -> Hilbert:
    """Hilbert resampling: particles are sorted along a Hilbert curve through x, then resampled.

    Coordinates are standardised in the group, squashed by a logistic function and cut into 2^bits cells each. Error of
    averages o(K^-1/2) with `systematic` or `stratified`; of no use beyond a few dimensions.

    Args:
        resample: what inverts the sorted weights.
        bits: of each coordinate, bits * size(x) <= 31; None: as many as fit in 30.

    Raises:
        ValueError: at trace time, more than 31 bits altogether.

    Reference: Gerber, Chopin 2015, arXiv 1402.4039; Gerber, Chopin, Whiteley 2019, arXiv 1707.01845.

    >>> hilbert(bits=4).bits
    4
    """
    return Hilbert(as_pytree(resample), bits)


def hilbert_index(cells: Array, bits: int) -> Array:
    """Place of a cell on the Hilbert curve through 2^bits cells a side.

    Args:
        cells: uint32 [..., d], each below 2^bits, with bits * d <= 32.
        bits: of each coordinate.

    Returns:
        uint32 [...], a permutation of the cells in which neighbours differ by 1 in one coordinate.

    Reference: Skilling 2004, AIP Conf. Proc. 707 (Programming the Hilbert curve).

    >>> hilbert_index(jnp.array([[0, 0], [0, 1], [1, 1], [1, 0]], jnp.uint32), 1).tolist()
    [0, 1, 2, 3]
    """
    x = [cells[..., i] for i in range(cells.shape[-1])]
    for low in (jnp.uint32((1 << bit) - 1) for bit in range(bits - 1, 0, -1)):
        for i, axis in enumerate(x):  # undo the reflections and exchanges of the curve, from the coarsest level on
            inverted, swap = (axis & (low + 1)) != 0, (x[0] ^ axis) & low
            x[0] = x[0] ^ jnp.where(inverted, low, swap)
            if i:
                x[i] = jnp.where(inverted, axis, axis ^ swap)
    for i in range(1, len(x)):  # Gray code
        x[i] = x[i] ^ x[i - 1]
    flips = jnp.zeros_like(x[0])
    for low in (jnp.uint32((1 << bit) - 1) for bit in range(bits - 1, 0, -1)):
        flips = jnp.where((x[-1] & (low + 1)) != 0, flips ^ low, flips)
    index = jnp.zeros_like(flips)
    for bit in range(bits - 1, -1, -1):
        for axis in x:
            index = (index << 1) | (((axis ^ flips) >> bit) & 1)
    return index


def _in_order(resample: Resampler, keys: Array, log_w: Array, cloud: list[Array], value: Array) -> Moved:
    """Resample the particles as they stand when sorted by `value` [G, K]."""
    order = jnp.argsort(value, axis=1)
    chosen = jax.vmap(resample)(keys, jnp.take_along_axis(log_w, order, axis=1))
    ancestors = jnp.take_along_axis(order, chosen, axis=1).astype(jnp.int32)
    return Moved(gather(cloud, ancestors), jnp.zeros_like(log_w), ancestors)
