"""Mean and covariance of a stream of samples, chunk by chunk, for Frechet distances of sets that fit in no memory.

Welford's update in blocks (Chan, Golub, LeVeque 1983, The American Statistician 37, eq. 2.1): with d = mean_b - mean_a
and n = n_a + n_b,  mean = mean_a + (n_b / n) d,  scatter = scatter_a + scatter_b + (n_a n_b / n) d d^T. Each chunk is
centred at its own mean before it is squared, and all sums are float64 on the host, so nothing cancels.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike


class Moments(NamedTuple):
    """Moments of all samples seen so far."""

    count: int
    mean: np.ndarray  # float64 [D]
    scatter: np.ndarray  # float64 [D, D], the sum of (x - mean)(x - mean)^T

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased, [D, D]."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 samples, got {self.count}")
        return self.scatter / (self.count - 1)


def update_moments(before: Moments | None, x: ArrayLike, features: Callable[[Any], ArrayLike] | None = None) -> Moments:
    """The moments with a chunk of samples more.

    Args:
        before: moments so far, None at the start.
        x: [B, ...] with B >= 1. Of an array that is sharded over several processes, each process counts its own rows;
            `merge_moments` joins what the processes found.
        features: function of the chunk, jitted or not, that returns [B, ...]; None takes the samples themselves.

    Returns: moments of the flattened features; those of any other cut into chunks, up to float64 rounding.

    >>> update_moments(update_moments(None, np.array([[0.0]])), np.array([[2.0]])).covariance
    array([[2.]])
    """
    parts = [_moments_of(rows) for rows in _local(x if features is None else features(x))]
    return merge_moments(*([] if before is None else [before]), *parts)


def merge_moments(*parts: Moments) -> Moments:
    """Moments of the union of disjoint sets: of chunks, devices or processes, in any order.

    Raises:
        ValueError: nothing to merge, or moments of another dimension.
    """
    if not parts:
        raise ValueError("merge_moments needs the moments of at least one set")
    merged = parts[0]
    for part in parts[1:]:
        if part.mean.shape != merged.mean.shape:
            raise ValueError(f"moments of {part.mean.shape[0]} and of {merged.mean.shape[0]} dimensions do not merge")
        count, apart = merged.count + part.count, part.mean - merged.mean
        spread = merged.count * part.count / count * np.outer(apart, apart)
        mean = merged.mean + part.count / count * apart
        merged = Moments(count, mean, merged.scatter + part.scatter + spread)
    return merged


def streamed_moments(chunks: Iterable[ArrayLike], features: Callable[[Any], ArrayLike] | None = None) -> Moments:
    """Moments of all chunks of an iterable, one in memory at a time.

    Args:
        chunks: arrays [B, ...], of any lengths.
        features: as for `update_moments`.

    >>> found = streamed_moments([np.zeros((2, 3)), np.ones((1, 3))])
    >>> found.count, float(found.mean[0].round(3))
    (3, 0.333)
    """
    found: Moments | None = None
    for x in chunks:
        found = update_moments(found, x, features)
    if found is None:
        raise ValueError("there was no chunk of samples")
    return found


def _moments_of(x: ArrayLike) -> Moments:
    rows = np.asarray(x, np.float64)
    if not rows.ndim or not len(rows):
        raise ValueError(f"a chunk of samples must be [B, ...] with B >= 1, got shape {rows.shape}")
    rows = rows.reshape(len(rows), -1)
    mean = rows.mean(axis=0)
    return Moments(len(rows), mean, (rows - mean).T @ (rows - mean))


def _local(x: Any) -> list[Any]:
    """The rows that this process can see, each once."""
    if not isinstance(x, jax.Array) or x.is_fully_addressable:
        return [x]
    return [shard.data for shard in x.addressable_shards if shard.replica_id == 0]
