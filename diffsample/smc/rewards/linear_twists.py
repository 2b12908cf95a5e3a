"""Twists for linear measurements y = A x0 + noise: the likelihood of y under a Gaussian guess at x0 given x_t.

log psi = log N(y; A x0-hat, R + A C A'), and the three usual twists differ in C, the guess at Cov(x0 | x_t): none
(naive), (sigma / alpha)^2 I (inflated), Tweedie's (sigma^2 / alpha) dx0/dx (optimal: the exact p(y | x_t) of Gaussian
data). The final weight is log N(y; A x, R).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.linalg import solve_triangular

from diffsample.denoiser import PyTree
from diffsample.smc.functions import as_pytree
from diffsample.smc.rewards.twists import Look
from diffsample.struct import pytree
from diffsample.tableau import is_concrete


@pytree
class LinearTwist:
    """log N(y; A x0, R + A C A') of a look; see `linear_twist`."""

    operator: Any  # [m, d]
    y: Any  # [m] or [B, m]
    noise_cov: Any  # [m, m]
    spread: Any

    def __call__(self, look: Look, cond: PyTree) -> Array:
        operator = jnp.asarray(self.operator, look.x0.dtype)
        cov = jnp.asarray(self.noise_cov, look.x0.dtype)[None] + self.spread(operator, look)
        return log_normal(_residual(operator, self.y, look.x0), cov)


@pytree
class LinearLikelihood:
    """log N(y; A x, R) of a sample."""

    operator: Any
    y: Any
    noise_cov: Any

    def __call__(self, x: Array, cond: PyTree) -> Array:
        operator = jnp.asarray(self.operator, x.dtype)
        return log_normal(_residual(operator, self.y, x), jnp.asarray(self.noise_cov, x.dtype)[None])


def linear_twist(operator: Any, y: Any, noise_cov: Any, spread: Any = None) -> tuple[LinearTwist, LinearLikelihood]:
    """(twist, final log-likelihood) of y = A x0 + N(0, R), the pair that `tds` takes.

    Args:
        operator: A [m, d], over the flattened sample. y: [m], or one a particle [B, m]. All leaves.
        noise_cov: R: variance, [m] variances or [m, m], positive definite.
        spread: A C A' as a function (A, look) -> [1 or B, m, m]: `inflated` (the default), `naive`, `optimal`.

    Raises:
        ValueError: shapes that do not fit. TypeError: an operator that is no matrix.

    Reference: Wu et al. 2023, arXiv 2306.17775, section 3.3; Song et al. 2023 (PiGDM); Boys et al. 2023,
    arXiv 2310.06721 (Tweedie's covariance).

    >>> import jax.numpy as jnp
    >>> twist, likelihood = linear_twist([[1.0, 0.0]], [2.0], 1.0)
    >>> float(likelihood(jnp.array([[2.0, 9.0]]), None)[0])
    -0.918938...
    """
    refuse_operator(operator)
    operator, y, cov = (v if isinstance(v, Array) else np.asarray(v, np.float64) for v in (operator, y, noise_cov))
    m = operator.shape[0] if operator.ndim == 2 else 0
    if not m or y.shape[-1:] != (m,) or cov.shape not in {(), (m,), (m, m)}:
        raise ValueError(f"operator {operator.shape}, y {y.shape} and noise_cov {cov.shape} do not fit: they must be "
                         f"(m, d), (m,) or (B, m), and (), (m,) or (m, m)")  # fmt: skip
    if is_concrete(cov) and not (np.asarray(cov if cov.ndim < 2 else np.linalg.eigvalsh(cov)) > 0).all():
        raise ValueError(f"noise_cov={cov} must be positive definite; measurements without noise: smc.mcgdiff")
    dense = cov * jnp.eye(m) if cov.ndim < 2 else cov
    twist = LinearTwist(operator, y, dense, as_pytree(inflated if spread is None else spread))
    return twist, LinearLikelihood(operator, y, dense)


def naive(operator: Array, look: Look) -> Array:
    """No spread: the likelihood of the prediction. Heavy-tailed weights."""
    return jnp.zeros((1, len(operator), len(operator)), operator.dtype)


def inflated(operator: Array, look: Look) -> Array:
    """(sigma / alpha)^2 A A', the spread of x0 given x_t under a flat prior."""
    square = (jnp.asarray(look.level.sigma / look.level.alpha, operator.dtype) ** 2).reshape(-1, 1, 1)
    return square * jnp.matmul(operator, operator.T, precision="highest")[None]


def optimal(operator: Array, look: Look) -> Array:
    """A Cov(x0 | x_t) A' by Tweedie, m more vector-Jacobian products; exact for Gaussian data."""

    def row(a: Array) -> Array:
        return look.pull(jnp.broadcast_to(a.reshape(look.x0.shape[1:]), look.x0.shape)).reshape(len(look.x0), -1)

    pulled = jax.vmap(row, out_axes=1)(operator)  # [B, m, d]
    scale = jnp.asarray(look.level.sigma**2 / look.level.alpha, operator.dtype).reshape(-1, 1, 1)
    cov = scale * jnp.einsum("bid,jd->bij", pulled, operator, precision="highest")
    return 0.5 * (cov + cov.swapaxes(1, 2))


def log_normal(residual: Array, cov: Array) -> Array:
    """log N(residual; 0, cov), [B, m] and [1 or B, m, m]."""
    root = jnp.broadcast_to(jnp.linalg.cholesky(cov), (len(residual), *cov.shape[1:]))
    white = jax.vmap(lambda L, r: solve_triangular(L, r, lower=True))(root, residual)
    log_det = jnp.log(jnp.diagonal(root, axis1=1, axis2=2)).sum(axis=-1)
    return -0.5 * (white**2).sum(axis=-1) - log_det - 0.5 * residual.shape[-1] * jnp.log(2 * jnp.pi)


def refuse_operator(operator: Any) -> None:
    """Raise where A is a function, such as an operator of `guidance`, and not a matrix of numbers.

    Raises:
        TypeError: names its kind, and how to have the matrix.
    """
    if callable(operator) or not (hasattr(operator, "shape") or isinstance(operator, list | tuple)):
        raise TypeError(f"operator must be a matrix of numbers [m, d] over the flattened sample, got a "
                        f"{type(operator).__name__}; that of a linear function is jax.jacobian(function)(zeros of one "
                        f"sample), its axes flattened")  # fmt: skip


def _residual(operator: Array, y: Any, x: Array) -> Array:
    seen = jnp.matmul(x.reshape(len(x), -1), operator.T, precision="highest")
    return jnp.broadcast_to(jnp.asarray(y, x.dtype), seen.shape) - seen
