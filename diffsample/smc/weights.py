"""Log-weights: means, effective sizes, numbers of distinct ancestors. Nothing is exponentiated before its maximum is
subtracted, so weights far outside the range of floats are safe.
"""

import jax.numpy as jnp
from jax import Array
from jax.nn import logsumexp


def log_mean(log_w: Array) -> Array:
    """log((1/K) sum exp log_w) over the last axis.

    >>> import jax.numpy as jnp
    >>> float(log_mean(jnp.full(4, 1000.0)))
    1000.0
    """
    return logsumexp(log_w, axis=-1) - jnp.log(jnp.asarray(log_w.shape[-1], log_w.dtype))


def log_effective_size(log_w: Array) -> Array:
    """log ESS = 2 logsumexp(log_w) - logsumexp(2 log_w) over the last axis; ESS = (sum w)^2 / sum w^2.

    >>> import jax.numpy as jnp
    >>> float(jnp.exp(log_effective_size(jnp.full(4, -1000.0))).round(3))
    4.0
    """
    return 2 * logsumexp(log_w, axis=-1) - logsumexp(2 * log_w, axis=-1)


def distinct(ancestors: Array) -> Array:
    """Number of distinct values among ancestors [K] of 0 .. K-1.

    >>> import jax.numpy as jnp
    >>> int(distinct(jnp.array([0, 2, 2, 0])))
    2
    """
    seen = jnp.zeros(ancestors.shape, jnp.int32).at[ancestors].set(1)
    return seen.sum(dtype=jnp.int32)
