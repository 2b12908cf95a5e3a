"""Resampling by inverting the cumulative weights: multinomial, stratified, systematic.

A resampler is a function (key, log_w [K]) -> ancestors, int32 [K], with E[number of copies of i] = K W_i, W = softmax
of log_w. All invert c_j = W_0 + ... + W_j at K points u: the ancestor of u is the number of c_j <= u, so that no
particle of weight 0 is ever chosen, even at u = 0. In float32 a parallel cumulative sum of many weights is not
monotone, and moves where a weight is 0; (i + 0.9999999) / K rounds to 1: hence the running maximum over the particles
that have a weight, and u < 1.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.sampler import View

Resampler = Callable[[Array, Array], Array]


class Moved(NamedTuple):
    """What a resampler with `move` returns, G groups of K."""

    cloud: list[Array]  # leaves [G, K, ...]
    log_w: Array  # [G, K] log of weights relative to the mean weight before, so that 0 is plain resampling
    ancestors: Array  # [G, K] int32


class Mover(Protocol):
    """A resampler that sees more than weights, or returns more than ancestors."""

    def move(self, keys: Array, log_w: Array, cloud: list[Array], view: View) -> Moved:
        """`keys` [G], `log_w` [G, K]; `cloud`: all that belongs to the particles, leaves [G, K, ...]; `view`: [G*K]."""
        ...


def multinomial(key: Array, log_w: Array) -> Array:
    """Multinomial resampling: K independent draws of Cat(W), sorted.

    The baseline; N Var = sum W (phi - mean)^2. Sorted points come from spacings of exponentials, at O(K).

    Args:
        key: typed key. log_w: [K] log-weights, any constant added.

    Returns:
        ancestors, int32 [K], in increasing order.

    Reference: Gordon, Salmond, Smith 1993, IEE Proc. F 140; Devroye 1986, section V.3.

    >>> multinomial(jax.random.key(0), jnp.log(jnp.array([0.0, 1.0, 0.0]))).tolist()
    [1, 1, 1]
    """
    spaced = jnp.cumsum(jax.random.exponential(key, (len(log_w) + 1,), log_w.dtype))
    return inverse_cdf(cumulative(log_w), spaced[:-1] / spaced[-1])


def stratified(key: Array, log_w: Array) -> Array:
    """Stratified resampling: u_i = (i + U_i) / K with independent U_i.

    Variance at most that of `multinomial`; |copies - K W| < 2.

    Args, Returns: as for `multinomial`.

    Reference: Kitagawa 1996, JCGS 5; Douc, Cappe, Moulines 2005, arXiv cs/0507025.

    >>> stratified(jax.random.key(0), jnp.zeros(4)).tolist()
    [0, 1, 2, 3]
    """
    return inverse_cdf(cumulative(log_w), strata(log_w) + uniform(key, log_w) / len(log_w))


def systematic(key: Array, log_w: Array) -> Array:
    """Systematic resampling: u_i = (i + U) / K with one U. The default.

    |copies - K W| < 1. Slot 0 alone is biased towards low indices: `rotated` where one slot is to be used.

    Args, Returns: as for `multinomial`.

    Reference: Carpenter, Clifford, Fearnhead 1999, IEE Proc. F 146.

    >>> systematic(jax.random.key(0), jnp.log(jnp.array([0.5, 0.0, 0.5, 0.0]))).tolist()
    [0, 0, 2, 2]
    """
    return inverse_cdf(cumulative(log_w), strata(log_w) + jax.random.uniform(key, (), log_w.dtype) / len(log_w))


def rotated(key: Array, log_w: Array) -> Array:
    """Rotated systematic resampling: u_i = (i / K + U) mod 1, so that the ancestor of every slot has the law Cat(W).

    The copies are those of `systematic`; for when slot 0 is returned as the sample.

    Args, Returns: as for `multinomial`; ancestors in increasing order up to a rotation.

    Reference: Skreta et al. 2025, arXiv 2503.02819 (software).

    >>> bool((rotated(jax.random.key(0), jnp.array([-jnp.inf, 0.0])) == 1).all())
    True
    """
    turned = strata(log_w) + jax.random.uniform(key, (), log_w.dtype)
    return inverse_cdf(cumulative(log_w), jnp.where(turned < 1, turned, turned - 1))


def cumulative(log_w: Array) -> Array:
    """Cumulative weights [K], monotone, ending in 1."""
    return cumulated(jnp.exp(log_w - jnp.max(log_w)))


def cumulated(w: Array) -> Array:
    """Cumulative weights [K] of weights w, not all 0."""
    summed = jax.lax.cummax(jnp.where(w > 0, jnp.cumsum(w), 0))
    return summed / jnp.maximum(summed[-1], jnp.finfo(w.dtype).tiny)


def inverse_cdf(cumulated: Array, u: Array) -> Array:
    """The ancestor of each u in [0, 1]: the number of cumulated weights <= u."""
    below_one = 1 - jnp.finfo(u.dtype).epsneg
    found = jnp.searchsorted(cumulated, jnp.minimum(u, below_one), side="right")
    return jnp.minimum(found, len(cumulated) - 1).astype(jnp.int32)


def strata(log_w: Array) -> Array:
    """Lower ends i / K of K equal strata."""
    return jnp.arange(len(log_w), dtype=log_w.dtype) / len(log_w)


def uniform(key: Array, log_w: Array) -> Array:
    """K uniforms in the weights' dtype."""
    return jax.random.uniform(key, log_w.shape, log_w.dtype)
