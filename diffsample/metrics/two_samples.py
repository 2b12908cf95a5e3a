"""Distances between two sets of samples: maximum mean discrepancy, sliced Wasserstein."""

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.metrics.distances import flattened, square_distances


def mmd(x: Array, y: Array, bandwidth: float | None = None) -> Array:
    """Unbiased squared maximum mean discrepancy with the kernel exp(-|a - b|^2 / (2 bandwidth^2)).

    Zero in expectation where both sets have one law, so it may be slightly negative. O((N + M)^2) memory.

    Args:
        x: [N, ...] and y: [M, ...], flattened; N, M >= 2.
        bandwidth: kernel width; None takes the median distance between the two sets. At 0 equal points alone are near.

    Returns: float32 scalar.

    Reference: Gretton et al. 2012, A kernel two-sample test, JMLR 13, lemma 6.

    >>> bool(mmd(jnp.zeros((3, 1)), jnp.full((3, 1), 9.0), bandwidth=1.0) > 1.9)
    True
    """
    x, y = flattened(x), flattened(y)
    n, m = x.shape[0], y.shape[0]
    if min(n, m) < 2:
        raise ValueError(f"the unbiased estimate needs at least 2 samples a side, got {n} and {m}")
    across = square_distances(x, y)
    width2 = jnp.maximum(jnp.median(across) if bandwidth is None else bandwidth**2, jnp.finfo(jnp.float32).tiny)

    def kernel(squares: Array) -> Array:
        return jnp.exp(-squares / (2 * width2))

    same_x = (jnp.sum(kernel(square_distances(x, x))) - n) / (n * (n - 1))
    same_y = (jnp.sum(kernel(square_distances(y, y))) - m) / (m * (m - 1))
    return same_x + same_y - 2 * jnp.mean(kernel(across))


def sliced_wasserstein(key: Array, x: Array, y: Array, slices: int = 128) -> Array:
    """Sliced Wasserstein-2 distance: root mean over random directions of the squared 1-D distance.

    For a shift by d in D dimensions it is |d| / sqrt(D) in expectation of its square. Sorting gives each 1-D distance.

    Args:
        key: typed key of the directions.
        x, y: [N, ...], as many samples in both, flattened.
        slices: number of directions.

    Returns: float32 scalar, >= 0.

    Reference: Bonneel et al. 2015, Sliced and Radon Wasserstein barycenters of measures, JMIV 51.

    >>> x = jax.random.normal(jax.random.key(0), (64, 3))
    >>> float(sliced_wasserstein(jax.random.key(1), x, x[::-1]))
    0.0
    """
    x, y = flattened(x), flattened(y)
    if x.shape != y.shape:
        raise ValueError(f"need as many samples of one size on both sides, got {x.shape} and {y.shape}")
    directions = jax.random.normal(key, (x.shape[1], slices))
    directions = directions / jnp.linalg.norm(directions, axis=0, keepdims=True)
    sorted_x, sorted_y = (jnp.sort(jnp.matmul(a, directions, precision="highest"), axis=0) for a in (x, y))
    return jnp.sqrt(jnp.mean((sorted_x - sorted_y) ** 2))
