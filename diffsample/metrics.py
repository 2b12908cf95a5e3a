"""Distances between sets of samples: Frechet, maximum mean discrepancy, sliced Wasserstein; and accuracy.

Samples are [N, ...] and are flattened to [N, D]. Nothing here needs a feature network: distances are in pixel space,
or in whatever space the caller maps the samples to first.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike


def moments(x: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Mean and unbiased covariance of samples, in float64 on the host.

    Args:
        x: [N, ...] with N >= 2, flattened to [N, D].

    Returns: mean [D] and covariance [D, D], NumPy float64.

    >>> mean, cov = moments(np.array([[0.0], [2.0]]))
    >>> float(mean[0]), float(cov[0, 0])
    (1.0, 2.0)
    """
    flat = np.asarray(x, np.float64).reshape(len(np.asarray(x)), -1)
    if len(flat) < 2:
        raise ValueError(f"a covariance needs at least 2 samples, got {len(flat)}")
    centred = flat - flat.mean(axis=0)
    return flat.mean(axis=0), centred.T @ centred / (len(flat) - 1)


def frechet_distance(mean1: ArrayLike, cov1: ArrayLike, mean2: ArrayLike, cov2: ArrayLike) -> float:
    """Squared Frechet distance of two Gaussians, |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2).

    It is the squared Wasserstein-2 distance, exact on Gaussians and zero only where the moments agree. The trace of the
    inner root is the nuclear norm of C1^1/2 C2^1/2, from symmetric eigendecompositions and one SVD in float64, so that
    singular covariances (pixels that never change) are fine.

    Args:
        mean1, mean2: [D].
        cov1, cov2: [D, D], symmetric positive semidefinite.

    Returns: the distance, >= 0.

    Raises:
        ValueError: shapes do not agree, a covariance is not symmetric or has a clearly negative eigenvalue.

    Reference: Dowson and Landau 1982; Heusel et al. 2017, arXiv 1706.08500, eq. 6.

    >>> frechet_distance(np.array([0.0]), np.eye(1), np.array([3.0]), 4 * np.eye(1))
    10.0
    """
    mean1, cov1, mean2, cov2 = (np.asarray(a, np.float64) for a in (mean1, cov1, mean2, cov2))
    dimension = mean1.size
    if mean1.shape != (dimension,) or mean2.shape != mean1.shape or {cov1.shape, cov2.shape} != {(dimension,) * 2}:
        raise ValueError(f"need means [D] and covariances [D, D], got {[a.shape for a in (mean1, cov1, mean2, cov2)]}")
    fidelity = np.linalg.svd(_root(cov1) @ _root(cov2), compute_uv=False).sum()
    distance = np.sum((mean1 - mean2) ** 2) + np.trace(cov1) + np.trace(cov2) - 2 * fidelity
    return max(0.0, float(distance))


def _root(cov: np.ndarray) -> np.ndarray:
    if not np.allclose(cov, cov.T, rtol=1e-4, atol=1e-6 * (1 + np.abs(cov).max())):
        raise ValueError("a covariance must be symmetric")
    values, vectors = np.linalg.eigh((cov + cov.T) / 2)
    if values[0] < -1e-4 * max(values[-1], 1e-12):
        raise ValueError(f"a covariance must be positive semidefinite, found eigenvalue {values[0]:.3g}")
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def accuracy(logits: Array, labels: Array) -> Array:
    """Share of rows whose largest logit is at the label.

    Args:
        logits: [N, K]; labels: integer [N].

    Returns: float32 scalar.

    >>> float(accuracy(jnp.array([[0.0, 1.0], [2.0, 0.0]]), jnp.array([1, 1])))
    0.5
    """
    return jnp.mean(jnp.argmax(logits, axis=-1) == labels, dtype=jnp.float32)


def mmd(x: Array, y: Array, bandwidth: float | None = None) -> Array:
    """Unbiased squared maximum mean discrepancy with the kernel exp(-|a - b|^2 / (2 bandwidth^2)).

    Zero in expectation where both sets have one law, so it may be slightly negative. O((N + M)^2) memory.

    Args:
        x: [N, ...] and y: [M, ...], flattened; N, M >= 2.
        bandwidth: kernel width; None takes the median distance between the two sets.

    Returns: float32 scalar.

    Reference: Gretton et al. 2012, A kernel two-sample test, JMLR 13, lemma 6.

    >>> bool(mmd(jnp.zeros((3, 1)), jnp.full((3, 1), 9.0), bandwidth=1.0) > 1.9)
    True
    """
    x, y = _flat(x), _flat(y)
    n, m = x.shape[0], y.shape[0]
    if min(n, m) < 2:
        raise ValueError(f"the unbiased estimate needs at least 2 samples a side, got {n} and {m}")
    across = _square_distances(x, y)
    width2 = jnp.median(across) if bandwidth is None else bandwidth**2

    def kernel(squares: Array) -> Array:
        return jnp.exp(-squares / (2 * width2))

    same_x = (jnp.sum(kernel(_square_distances(x, x))) - n) / (n * (n - 1))
    same_y = (jnp.sum(kernel(_square_distances(y, y))) - m) / (m * (m - 1))
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
    x, y = _flat(x), _flat(y)
    if x.shape != y.shape:
        raise ValueError(f"need as many samples of one size on both sides, got {x.shape} and {y.shape}")
    directions = jax.random.normal(key, (x.shape[1], slices))
    directions = directions / jnp.linalg.norm(directions, axis=0, keepdims=True)
    sorted_x, sorted_y = (jnp.sort(jnp.matmul(a, directions, precision="highest"), axis=0) for a in (x, y))
    return jnp.sqrt(jnp.mean((sorted_x - sorted_y) ** 2))


def _flat(x: Array) -> Array:
    return jnp.asarray(x, jnp.float32).reshape(x.shape[0], -1)


def _square_distances(x: Array, y: Array) -> Array:
    cross = jnp.matmul(x, y.T, precision="highest")
    return jnp.maximum(jnp.sum(x**2, axis=1)[:, None] + jnp.sum(y**2, axis=1)[None, :] - 2 * cross, 0.0)
