"""Wasserstein-2 by Sinkhorn's algorithm, with ott-jax."""

from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.metrics.distances import flattened, square_distances


def sinkhorn_wasserstein(x: Array, y: Array, epsilon: Any = None, max_iterations: int = 2000) -> Array:
    """Root of the Sinkhorn divergence with the cost |a - b|^2: Wasserstein-2, smoothed but without the bias of that.

    OT(x, y) - OT(x, x) / 2 - OT(y, y) / 2 with entropic costs OT. It is zero between equal sets and |d| for a shift by
    d, whatever epsilon is, and tends to Wasserstein-2 as epsilon falls. O(N M) memory and time an iteration.

    Args:
        x: [N, ...] and y: [M, ...], flattened; the sets may differ in size.
        epsilon: entropic regularisation, in units of the cost; None is a twentieth of the mean cost between the sets.
        max_iterations: of Sinkhorn's algorithm.

    Returns: float32 scalar, >= 0; NaN where the iterations did not converge.

    Raises:
        ImportError: ott-jax is not installed.
        ValueError: samples of different dimensions.

    Reference: Genevay, Peyre, Cuturi 2018, arXiv 1706.00292, eq. 2; Feydy et al. 2019, arXiv 1810.08278.

    >>> sinkhorn_wasserstein(jnp.zeros((3, 2)), jnp.zeros((3, 4)))
    Traceback (most recent call last):
    ValueError: samples of 2 and of 4 numbers have no distance: bring both into one space
    """
    x, y = flattened(x), flattened(y)
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"samples of {x.shape[1]} and of {y.shape[1]} numbers have no distance: bring both into one space"
        )
    if find_spec("ott") is None:
        raise ImportError("sinkhorn_wasserstein needs ott-jax: pip install 'diffsample[metrics]'")
    from ott.geometry.pointcloud import PointCloud
    from ott.tools.sinkhorn_divergence import sinkhorn_divergence

    blur = 0.05 * jnp.mean(square_distances(x, y)) if epsilon is None else epsilon
    blur = jnp.maximum(blur, jnp.finfo(jnp.float32).tiny)
    with jax.numpy_rank_promotion("allow"):  # ott relies on it
        solve = {"max_iterations": max_iterations}
        cost, out = sinkhorn_divergence(PointCloud, x=x, y=y, epsilon=blur, solve_kwargs=solve)
    converged = jnp.all(jnp.array(out.converged))
    return jnp.where(converged, jnp.sqrt(jnp.maximum(cost, 0.0)), jnp.nan)
