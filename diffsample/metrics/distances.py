"""Samples as rows of a matrix, and the squared distances between rows."""

import jax.numpy as jnp
from jax import Array


def flattened(x: Array) -> Array:
    """[N, ...] to float32 [N, D]."""
    return jnp.asarray(x, jnp.float32).reshape(x.shape[0], -1)


def square_distances(x: Array, y: Array) -> Array:
    """[N, M] of rows x [N, D] and y [M, D]."""
    cross = jnp.matmul(x, y.T, precision="highest")
    return jnp.maximum(jnp.sum(x**2, axis=1)[:, None] + jnp.sum(y**2, axis=1)[None, :] - 2 * cross, 0.0)
