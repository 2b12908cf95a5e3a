"""Resampling that rounds the expected copies K W_i up or down: residual and SSP."""

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.smc.resamplers.resampling import cumulated, inverse_cdf, uniform


def residual(key: Array, log_w: Array) -> Array:
    """Residual resampling: floor(K W_i) copies of i, and independent draws for the rest.

    The rest are draws of Cat(K W_i - floor(K W_i)). Variance at most that of `multinomial`.

    Args, Returns: as for `multinomial`, in no order at the end.

    Reference: Liu, Chen 1998, JASA 93; Douc, Cappe, Moulines 2005, arXiv cs/0507025.

    >>> residual(jax.random.key(0), jnp.log(jnp.array([0.5, 0.0, 0.5, 0.0]))).tolist()
    [0, 0, 2, 2]
    """
    whole, rest = _split(log_w)
    return _filled(whole, inverse_cdf(cumulated(rest), uniform(key, log_w)))  # unsorted: a tail of it is used


def residual_systematic(key: Array, log_w: Array) -> Array:
    """Residual resampling whose rest is drawn by `systematic`: |copies - K W| < 1.

    Args, Returns: as for `multinomial`, the last ancestors in an order of their own.

    Reference: Carpenter, Clifford, Fearnhead 1999, IEE Proc. F 146.

    >>> residual_systematic(jax.random.key(0), jnp.log(jnp.array([0.25, 0.75]))).tolist()
    [1, 1]
    """
    whole, rest = _split(log_w)
    settled, slots = whole.sum(), jnp.arange(len(log_w), dtype=log_w.dtype)
    left = jnp.maximum(len(log_w) - settled, 1)
    u = jnp.maximum(slots - settled, 0) + jax.random.uniform(key, (), log_w.dtype)
    return _filled(whole, inverse_cdf(cumulated(rest), u / left))


def ssp(key: Array, log_w: Array) -> Array:
    """SSP resampling: fractional parts of K W are rounded in pairs, each keeping its mean, all keeping their sum.

    |copies - K W| < 1, negatively associated, consistent in any order of the particles. O(K) one after another, so slow
    on accelerators.

    Args, Returns: as for `multinomial`.

    Reference: Gerber, Chopin, Whiteley 2019, arXiv 1707.01845, section 3.

    >>> ssp(jax.random.key(0), jnp.log(jnp.array([0.5, 0.0, 0.5, 0.0]))).tolist()
    [0, 0, 2, 2]
    """
    whole, part = _split(log_w)
    u = uniform(key, log_w)

    def pair(open_: tuple[Array, Array], item: tuple) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        """Of the open fraction and the next, one becomes 0 or 1 and the other stays open with what is left."""
        (i, a), (j, b, uniform) = open_, item
        total, low = a + b, a + b < 1
        room = jnp.where(low, total, 2 - total)
        wins = uniform * room < jnp.where(low, a, 1 - b)  # low: i keeps all; else i becomes 1
        first_stays = wins == low
        stays, closes = jnp.where(first_stays, i, j), jnp.where(first_stays, j, i)
        return (stays, jnp.where(low, total, total - 1)), (closes, jnp.where(low, 0, 1))

    order = jnp.arange(len(log_w), dtype=jnp.int32)
    last, (closed, ups) = jax.lax.scan(pair, (order[0], part[0]), (order[1:], part[1:], u[1:]))
    copies = whole.astype(jnp.int32).at[closed].add(ups.astype(jnp.int32))
    copies = copies.at[last[0]].add(len(log_w) - copies.sum())  # 0 or 1, but for rounding
    return ancestors_of(copies)


def ancestors_of(copies: Array) -> Array:
    """Ancestors in increasing order from numbers of copies, int32 [K] with sum K.

    >>> ancestors_of(jnp.array([0, 3, 0])).tolist()
    [1, 1, 1]
    """
    slots = jnp.arange(len(copies), dtype=jnp.int32)
    found = jnp.searchsorted(jnp.cumsum(copies), slots, side="right")
    return jnp.minimum(found, len(copies) - 1).astype(jnp.int32)


def _split(log_w: Array) -> tuple[Array, Array]:
    """Whole and fractional parts of K W; where all parts are 0 any weights serve, for they are not used."""
    w = jnp.exp(log_w - jnp.max(log_w))
    expected = len(log_w) * w / w.sum()
    whole = jnp.floor(expected)
    return whole, expected - whole


def _filled(whole: Array, rest: Array) -> Array:
    """The settled copies, then the tail of `rest`, which has an ancestor a slot."""
    slots = jnp.arange(len(whole))
    settled = jnp.searchsorted(jnp.cumsum(whole), slots.astype(whole.dtype), side="right").astype(jnp.int32)
    return jnp.where(slots < whole.sum(), jnp.minimum(settled, len(whole) - 1), rest)
