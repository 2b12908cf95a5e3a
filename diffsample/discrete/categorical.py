"""Categorical draws that are exact in float32.

A Gumbel maximum over V classes needs V noises, each capped by the grid of its uniform: in float32 a class of
conditional probability p, competing with one that holds 1 - rho, is kept with x / (e^x - 1) of its due, x = 2^-23 (1 -
rho) / (rho p) (after Zheng et al. 2024, arXiv 2409.02908, section 4: a lower effective temperature). Here "when a
token is revealed" is drawn apart from "which token", so rho = 1, and the default inverts the distribution function in
two
levels: two uniforms a draw instead of V. Every function maps (keys [B], log_p [B, k, V]) to int32 [B, k].
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import Array

SMALL = 64  # vocabularies up to here are inverted in one level


def inverse_cdf(keys: Array, log_p: Array) -> Array:
    """Inversion in two levels: a block of about sqrt(V) tokens, then a token inside it, by a uniform each.

    A token's probability is right to 2^-23 / P(block) + 2^-23 / P(token | block); a token of probability zero is never
    drawn, because a uniform is below one.

    Args:
        keys: [B] typed keys. log_p: [B, k, V] log-probabilities or logits, float32 or float64; -inf is a zero.

    Returns: int32 [B, k].

    >>> keys = jax.random.split(jax.random.key(0), 1)
    >>> inverse_cdf(keys, jnp.array([[[-jnp.inf, 0.0, -jnp.inf]]])).tolist()
    [[1]]
    """
    weights = jnp.exp(log_p - jnp.max(log_p, axis=-1, keepdims=True))
    u = jax.vmap(lambda key: jax.random.uniform(key, (2, log_p.shape[1]), log_p.dtype))(keys)
    vocab = log_p.shape[-1]
    if vocab <= SMALL:
        return invert(weights, u[:, 0])
    width = math.isqrt(vocab - 1) + 1
    count = -(-vocab // width)
    blocks = jnp.pad(weights, ((0, 0), (0, 0), (0, count * width - vocab))).reshape(*log_p.shape[:2], count, width)
    block = invert(jnp.sum(blocks, axis=-1), u[:, 0])
    inside = jnp.take_along_axis(blocks, block[..., None, None], axis=2)[:, :, 0]
    return block * width + invert(inside, u[:, 1])


def invert(weights: Array, u: Array) -> Array:
    """The first index of positive weight whose cumulative weight exceeds u times the total.

    Never one of weight 0, though float32 sums in a tree move there; rounding of u times the total may reach the total:
    then the last one of positive weight.

    Args:
        weights: [..., V], not all 0. u: [...] in [0, 1).

    Returns: int32 [...].

    >>> invert(jnp.array([[0.0, 1.0, 0.0, 1.0, 0.0]]), jnp.array([0.5])).tolist()
    [3]
    """
    cumulative, positive = jnp.cumsum(weights, axis=-1), weights > 0
    reached = positive & (cumulative > (u * cumulative[..., -1])[..., None])
    last = weights.shape[-1] - 1 - jnp.argmax(positive[..., ::-1], axis=-1)
    return jnp.where(jnp.any(reached, axis=-1), jnp.argmax(reached, axis=-1), last).astype(jnp.int32)


def gumbel_max(keys: Array, log_p: Array) -> Array:
    """argmax(log_p + g) with Gumbel noise of 64 random bits, dense where it is large: no cap below 44.

    E = -log1p(-x) is exponential for x uniform, and float32 resolves x relatively at every exponent, so that the small
    E that decide a race are exact. V draws of two words each; for comparison, and where the noise is to be shared.

    Args and returns: as `inverse_cdf`.

    >>> keys = jax.random.split(jax.random.key(0), 1)
    >>> gumbel_max(keys, jnp.array([[[-jnp.inf, 0.0, -jnp.inf]]])).tolist()
    [[1]]
    """
    return jnp.argmax(log_p + gumbel(keys, log_p.shape, log_p.dtype), axis=-1).astype(jnp.int32)


def gumbel(keys: Array, shape: tuple[int, ...], dtype: jnp.dtype | type = jnp.float32) -> Array:
    """Gumbel noise of 64 random bits, shape [B, ...], row i from keys[i]."""
    return -jnp.log(exponential(keys, shape, dtype))


def exponential(keys: Array, shape: tuple[int, ...], dtype: jnp.dtype | type = jnp.float32) -> Array:
    """Exponential noise of 64 random bits, dense and never zero near zero, shape [B, ...], row i from keys[i]."""
    words = jax.vmap(lambda key: jax.random.bits(key, (2, *shape[1:]), jnp.uint32))(keys)
    high, low = words[:, 0].astype(dtype), words[:, 1].astype(dtype)
    x = high * jnp.asarray(2.0**-32, dtype) + (low + 0.5) * jnp.asarray(2.0**-64, dtype)
    return -jnp.log1p(-jnp.minimum(x, 1 - jnp.finfo(dtype).eps / 2))


@dataclasses.dataclass(frozen=True)
class CoarseGumbel:
    """argmax(log_p + g) with noise from a uniform of few bits: the artefact of low precision, to show and to measure.

    Args:
        bits: of the uniform, 1 to 23; JAX's default float32 draw has 23, bfloat16 logits get 7.
    """

    bits: int = 23

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 23:
            raise ValueError(f"bits={self.bits} must lie in 1 .. 23, the bits of a float32 uniform")

    def __call__(self, keys: Array, log_p: Array) -> Array:
        """As `inverse_cdf`."""
        words = jax.vmap(lambda key: jax.random.bits(key, log_p.shape[1:], jnp.uint32))(keys)
        u = (words >> (32 - self.bits)).astype(log_p.dtype) * 2.0**-self.bits
        tiny = jnp.finfo(log_p.dtype).tiny
        noise = -jnp.log(-jnp.log(jnp.maximum(u, tiny)))
        return jnp.argmax(log_p + noise, axis=-1).astype(jnp.int32)
