"""Minority guidance: how much of a sample a denoiser loses, classes of it, and `classifier` guidance towards the rare.

A sample whose denoised noisy versions come out far from it lies where there are few data. Its classes of equal mass
are the labels of a classifier of noisy samples, and `classifier` or `mean_shift` with it is minority guidance.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.denoiser import Denoiser, Point, PyTree, expand
from diffsample.process import Level
from diffsample.sampler import fold, normal, sample_keys


def squared_distance(a: Array, b: Array) -> Array:
    """Sum of squared differences of each sample, [B]."""
    return jnp.sum((a - b) ** 2, axis=tuple(range(1, a.ndim)))


def minority_score(
    key: Array,
    denoiser: Denoiser,
    x0: Array,
    level: Level,
    cond: PyTree = None,
    *,
    draws: int = 5,
    distance: Callable[[Array, Array], Array] = squared_distance,
) -> Array:
    """Minority score: the mean of d(x0, D(x_t)) over draws of x_t from x0; larger is rarer.

    `draws` evaluations of the denoiser a sample, one after the other.

    Args:
        key: typed key; sample i has its own.
        denoiser: without memory.
        x0: [B, ...] clean samples.
        level: the noise level of x_t, about 0.6 of the chain's length in the paper.
        cond: condition, batch axis first.
        draws: noises a sample.
        distance: (x0, D) -> [B]; a learned metric (LPIPS) as published, or the squared distance.

    Returns: scores [B].

    Raises:
        ValueError: less than one draw.

    Reference: Um, Lee, Ye 2024, arXiv 2301.12334.

    >>> import diffsample as ds
    >>> law, level = ds.exact.PointMass(0.0), ds.Level(None, 1.0, 1.0)
    >>> minority_score(jax.random.key(0), law, jnp.array([0.0, 2.0]), level).tolist()
    [0.0, 4.0]
    """
    if draws < 1:
        raise ValueError(f"minority_score needs one draw or more, got draws={draws}")
    keys, zero = sample_keys(key, 0, x0.shape[0]), jnp.zeros((), jnp.int32)

    def score(i: Array) -> Array:
        noise = normal(fold(keys, 2 * i), x0.shape, x0.dtype)
        x = expand(level.alpha, x0) * x0 + expand(level.sigma, x0) * noise
        at = Point(level, level, zero, zero, fold(keys, 2 * i + 1))
        return distance(x0, denoiser(x, at, cond, denoiser.init(x))[0].x0)

    return jax.lax.map(score, jnp.arange(draws)).mean(axis=0)


def quantile_labels(scores: Array, classes: int) -> Array:
    """Classes of equal mass: label k where quantile k / classes < score <= quantile (k + 1) / classes.

    Args:
        scores: [N].
        classes: number of classes; equal scores share the lower one.

    Returns: int32 [N], 0 the smallest scores, classes - 1 the largest.

    Raises:
        ValueError: less than two classes, or more than scores.

    Reference: Um, Lee, Ye 2024, arXiv 2301.12334.

    >>> quantile_labels(jnp.array([0.1, 0.4, 0.2, 0.9]), 2).tolist()
    [0, 1, 0, 1]
    """
    if not 2 <= classes <= len(scores):
        raise ValueError(f"quantile_labels needs 2 to {len(scores)} classes for {len(scores)} scores, got {classes}")
    edges = jnp.quantile(scores, jnp.arange(1, classes) / classes)
    return jnp.searchsorted(edges, scores, side="left").astype(jnp.int32)
