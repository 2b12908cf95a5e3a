"""Jump-process resampling: a few particles die and are born at each row, and no weight is ever carried."""

import jax
import jax.numpy as jnp
from jax import Array


def birth_death(key: Array, log_w: Array) -> Array:
    """Birth-death resampling: particle i dies with probability 1 - exp(-(m - log_w_i)^+), m the mean of log_w.

    One that dies becomes a copy of j drawn in proportion to (log_w_j - m)^+. With `policy=always`, so that log_w is the
    row's own, this is the jump process with exponential clocks (whose memory of the past is none): exact as steps and
    particles grow, not unbiased before; few particles move. In place: survivors keep their slots.

    Args:
        key: typed key. log_w: [K] log-weights of one row.

    Returns:
        ancestors, int32 [K].

    Reference: Skreta et al. 2025, arXiv 2503.02819 (software).

    >>> birth_death(jax.random.key(0), jnp.array([-jnp.inf, 0.0, 0.0])).tolist()[1:]
    [1, 2]
    """
    dying, choosing = jax.random.split(key)
    alive = log_w > -jnp.inf
    mean = jnp.where(alive, log_w, 0.0).sum() / jnp.maximum(alive.sum(), 1)
    away = jnp.where(alive, log_w - mean, -jnp.inf)
    dies = jax.random.uniform(dying, log_w.shape, log_w.dtype) >= jnp.exp(jnp.minimum(away, 0.0))
    births = jnp.maximum(away, 0.0)
    births = jnp.where(births.max() > 0, births, alive.astype(log_w.dtype))
    parents = jax.random.categorical(choosing, jnp.log(births), shape=log_w.shape)
    own = jnp.arange(len(log_w), dtype=jnp.int32)
    return jnp.where(dies, parents.astype(jnp.int32), own)
