"""Precision and recall of samples, by balls around neighbours."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.metrics.distances import flattened, square_distances


class PrecisionRecall(NamedTuple):
    """Shares between 0 and 1."""

    precision: Array  # float32 scalar: samples that lie among the data
    recall: Array  # float32 scalar: data that lie among the samples


def precision_recall(x: Array, y: Array, neighbours: int = 3, block: int = 1024) -> PrecisionRecall:
    """Improved precision and recall: a set's manifold is the union of balls to each member's k-th nearest neighbour.

    Precision is the share of samples inside the manifold of the data, recall the share of data inside that of the
    samples. A ball contains its surface; a member is not its own neighbour. O(block (N + M)) memory.

    Args:
        x: samples [N, ...] and y: data [M, ...], flattened; N and M above `neighbours`. Usually features.
        neighbours: k.
        block: rows whose distances are in memory at a time.

    Returns: `PrecisionRecall`.

    Raises:
        ValueError: a set with too few members for k.

    Reference: Kynkaanniemi et al. 2019, arXiv 1904.06991, eq. 1 and 2.

    >>> precision_recall(jnp.array([[0.0], [0.5]]), jnp.array([[0.0], [1.0], [9.0], [10.0]]), neighbours=1)
    PrecisionRecall(precision=Array(1., dtype=float32), recall=Array(0.5, dtype=float32))
    """
    x, y = flattened(x), flattened(y)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"samples of {x.shape[1]} numbers, data of {y.shape[1]}: bring both into one space")
    if not 1 <= neighbours < min(len(x), len(y)):
        raise ValueError(f"neighbours={neighbours} must lie in 1 .. {min(len(x), len(y)) - 1}, with {len(x)} samples "
                         f"and {len(y)} data")  # fmt: skip
    return _precision_recall(x, y, neighbours, block)


@partial(jax.jit, static_argnums=(2, 3))
def _precision_recall(x: Array, y: Array, neighbours: int, block: int) -> PrecisionRecall:
    centre = y.mean(axis=0, keepdims=True)  # squared distances lose fewer digits near the origin
    x, y = x - centre, y - centre
    return PrecisionRecall(_share_inside(x, y, neighbours, block), _share_inside(y, x, neighbours, block))


def _share_inside(points: Array, members: Array, neighbours: int, block: int) -> Array:
    """Share of `points` in one of the balls around `members`."""

    def radius(i: Array) -> Array:
        squares = square_distances(members[i][None], members)[0].at[i].set(jnp.inf)
        return -jax.lax.top_k(-squares, neighbours)[0][-1]

    def inside(point: Array) -> Array:
        return jnp.any(square_distances(point[None], members)[0] <= radii)

    radii = jax.lax.map(radius, jnp.arange(len(members)), batch_size=min(block, len(members)))
    return jnp.mean(jax.lax.map(inside, points, batch_size=min(block, len(points))), dtype=jnp.float32)
