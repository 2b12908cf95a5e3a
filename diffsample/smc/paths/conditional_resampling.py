"""Resampling that keeps a reference: the law of a scheme given that its slot 0 is a copy of particle 0.

A scheme may serve conditional SMC only through this conditional law; overwriting one index of an ordinary draw does
not leave the target invariant, unless the draws are independent. All functions are (key, log_w `[N]`) -> int32 `[N]`
with entry 0 equal to 0, and need only the ratios of the weights.

Reference: Chopin & Singh 2015, arXiv 1304.1887 (the condition); Karppinen, Singh & Vihola 2022 (killing).
"""

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.smc.resamplers.resampling import cumulative, inverse_cdf, strata


def conditional_multinomial(key: Array, log_w: Array) -> Array:
    """Independent draws from the weights in the slots 1, ..., N-1.

    >>> conditional_multinomial(jax.random.key(0), jnp.array([-jnp.inf, 0.0, -jnp.inf])).tolist()
    [0, 1, 1]
    """
    drawn = jax.random.categorical(key, log_w, shape=log_w.shape)
    return drawn.at[0].set(0).astype(jnp.int32)


def conditional_systematic(key: Array, log_w: Array) -> Array:
    """Rotated systematic draws (U + i/N) mod 1, with U uniform on the arc of particle 0.

    In the rotated scheme each slot alone has the law of the weights, so slot 0 holds particle 0 exactly when U falls
    in its arc [0, W_0); turning the slots of any generation around the circle changes nothing, which is why the
    reference may stay in slot 0. Particle 0 needs a positive weight.

    >>> conditional_systematic(jax.random.key(0), jnp.zeros(4)).tolist()
    [0, 1, 2, 3]
    """
    ends = cumulative(log_w)
    start = jax.random.uniform(key, dtype=ends.dtype) * ends[0]
    return inverse_cdf(ends, (start + strata(log_w)) % 1).at[0].set(0)


def conditional_killing(key: Array, log_w: Array) -> Array:
    """Particle i stays in slot i with probability W_i / max W, else is replaced by a draw from the weights.

    Of the copies of particle 0 the reference is one, in a slot drawn with odds 1/max W + 1 - W_0/max W (slot 0) and
    1 - W_i/max W (slot i); the copy is then swapped into slot 0.

    >>> conditional_killing(jax.random.key(0), jnp.zeros(4)).tolist()
    [0, 1, 2, 3]
    """
    n = log_w.shape[0]
    stay, draw, slot = jax.random.split(key, 3)
    weights, kept = jax.nn.softmax(log_w), jnp.exp(log_w - jnp.max(log_w))
    survives = jax.random.uniform(stay, (n,), kept.dtype) < kept
    drawn = jax.random.categorical(draw, log_w, shape=(n,))
    index = jnp.where(survives, jnp.arange(n), drawn)
    odds = (1 - kept).at[0].add(1 / jnp.max(weights))
    place = jax.random.categorical(slot, jnp.log(odds))
    index = index.at[place].set(index[0])  # entry 0 moves to the reference's slot, whose own draw is the reference
    return index.at[0].set(0).astype(jnp.int32)
