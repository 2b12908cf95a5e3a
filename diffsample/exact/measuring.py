"""Bayes for a linear measurement of a Gaussian: y = A x0 + r, r ~ N(0, R), x0 ~ N(mu, S).

    gain = S A' (A S A' + R)^-1,  mean = mu + gain (y - A mu),  cov = (I - gain A) S (I - gain A)' + gain R gain'

The covariance is written as a sum of squares, which rounding cannot make indefinite, and R = 0 is allowed where
A S A' is invertible. Concrete numbers are worked in float64 on the host, traced ones by JAX.
"""

import math
from typing import Any

import jax
from jax import Array
from numpy.typing import ArrayLike

from diffsample.exact.covariance import Covariance, as_host, factor, namespace, single


def measure(
    means: Array, cov: Covariance, operator: ArrayLike, y: ArrayLike, noise_cov: ArrayLike
) -> tuple[Array, Array, Array]:
    """Update k Gaussians by a linear measurement y = A x0 + N(0, R).

    Args:
        means: `[k, *event]`.
        cov: covariances of the k components.
        operator: A, `[m, d]` over the flattened event, or `[d]` for one number measured.
        y: `[m]`, or a scalar.
        noise_cov: R: variance, `[m]` variances, or `[m, m]`.

    Returns:
        Means `[k, *event]`, covariances `[k or 1, d, d]`, log N(y; A mu, A S A' + R) `[k]`.

    Raises:
        ValueError: shapes that do not fit.

    >>> mean, cov, _ = measure(as_host([0.0], "mean"), factor(1.0, (), 1), 1.0, 2.0, noise_cov=1.0)
    >>> mean.tolist(), cov.tolist()
    ([1.0], [[[0.5]]])
    """
    prior, flat = cov.dense(), means.reshape(means.shape[0], -1)
    matrix, value = _operator(operator, y, d=flat.shape[-1])
    noise = factor(single(noise_cov), value.shape, 1).dense()
    xp = namespace(prior, flat, matrix, value, noise)
    with jax.default_matmul_precision("highest"):
        projected = matrix[None] @ prior
        total = projected @ matrix.T[None] + noise
        gain = xp.linalg.solve(total, projected).swapaxes(-1, -2)
        residual = (value[None] - flat @ matrix.T)[..., None]
        rest = xp.eye(flat.shape[-1])[None] - gain @ matrix[None]
        posterior = rest @ prior @ rest.swapaxes(-1, -2) + gain @ noise @ gain.swapaxes(-1, -2)
        mean = flat + (gain @ residual)[..., 0]
        misfit = xp.sum(residual * xp.linalg.solve(total, residual), axis=(-1, -2))
    log_evidence = -0.5 * (misfit + xp.linalg.slogdet(total)[1] + value.shape[0] * math.log(2 * math.pi))
    return mean.reshape(means.shape), posterior, log_evidence


def _operator(operator: ArrayLike, y: ArrayLike, d: int) -> tuple[Any, Any]:
    matrix, value = as_host(operator, "operator"), as_host(y, "y")
    matrix = matrix if matrix.ndim == 2 else matrix.reshape(1, -1)
    value = value.reshape(1) if value.ndim == 0 else value
    if matrix.shape[1] != d or value.shape != matrix.shape[:1]:
        raise ValueError(f"operator {matrix.shape} and y {value.shape} do not fit: they must be (m, {d}) and (m,)")
    return matrix, value
