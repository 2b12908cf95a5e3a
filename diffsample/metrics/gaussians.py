"""The Frechet distance between Gaussians, and the moments that it takes."""

import numpy as np
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
