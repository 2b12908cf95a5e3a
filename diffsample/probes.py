"""Probe vectors for Jacobians that are too large to form: v with E[v v'] = 1, so that E[v' J v] = tr J."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

Probes = Callable[[Array, Array, int], Array]  # (key, x of one sample, count) -> [K, ...]


def rademacher(key: Array, x: Array, count: int) -> Array:
    """`count` random signs shaped like x, [count, ...]: the Hutchinson estimate of smallest variance.

    Exact where the Jacobian is diagonal. Reference: Hutchinson 1990, Communications in Statistics 19(2), eq. 2.3.

    >>> rademacher(jax.random.key(0), jnp.zeros(3), 2).shape
    (2, 3)
    """
    return jax.random.rademacher(key, (count, *x.shape), x.dtype)


def gaussian(key: Array, x: Array, count: int) -> Array:
    """`count` standard normals shaped like x, [count, ...].

    >>> gaussian(jax.random.key(0), jnp.zeros(3), 2).shape
    (2, 3)
    """
    return jax.random.normal(key, (count, *x.shape), x.dtype)


def every_axis(key: Array, x: Array, count: int) -> Array:
    """The d unit vectors of length sqrt(d), [d, ...]: their mean estimate is the trace itself; key and count unused.

    >>> every_axis(jax.random.key(0), jnp.zeros(4), 1).tolist()[0]
    [2.0, 0.0, 0.0, 0.0]
    """
    return (math.sqrt(x.size) * jnp.eye(x.size, dtype=x.dtype)).reshape(x.size, *x.shape)
