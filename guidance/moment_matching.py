"""Gaussian posterior moments by Tweedie: E[x0 | x_t, y] with Cov[x0 | x_t] = C = (sigma^2 / alpha) dD/dx.

    x0' = D + C A' (A C A' + sigma_y^2 I)^-1 (y - A(D))

Exact for every Gaussian prior and linear A. C acts through VJPs of the denoiser; A may be non-linear, and is then
linearised at D. `tmpd` forms the matrix, `tmpd_diagonal` its row sums, `mmps` solves by a few Krylov iterations.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.denoiser import Denoiser, Point, Prediction, PyTree, expand
from diffsample.guidance.krylov import Solver, minimal_residual
from diffsample.guidance.measurement import (
    Differentiated,
    apply,
    as_operator,
    check_noise,
    differentiable_batch_of,
    spread,
)
from diffsample.guidance.schedules import scheduled
from diffsample.struct import pytree, static


class Linearised(NamedTuple):
    """Denoiser and operator around x_t, with the posterior covariance as a product."""

    residual: Array  # [B, *m] y - A(D)
    covary: Callable[[Array], Array]  # [B, *m] -> C A' v, [B, ...]: one VJP
    push: Callable[[Array], Array]  # [B, ...] -> A w, [B, *m]
    noise_var: Array  # [B]

    def product(self, v: Array) -> tuple[Array, Array]:
        """(C A' v, (A C A' + sigma_y^2) v)."""
        w = self.covary(v)
        return w, self.push(w) + expand(self.noise_var, v) * v


class MomentMatching(Differentiated, Protocol):
    """x0 moved by `correction`, eps with it."""

    sigma_y: Any

    def correction(self, local: Linearised) -> Array:
        """C A' (A C A' + sigma_y^2 I)^-1 (y - A(D)), or what stands for it, [B, ...]."""
        ...

    @property
    def coupled(self) -> bool:
        """Always, where the denoiser is: eps moves with x0."""
        return self.denoiser.coupled

    def __call__(self, x: Array, at: Point, cond: PyTree, state: PyTree) -> tuple[Prediction, PyTree]:
        def denoise(x: Array) -> tuple[Array, tuple[Array, PyTree]]:
            (x0, eps), memory = self.denoiser(x, at, cond, state)
            return x0, (eps, memory)

        y = differentiable_batch_of(self.operator, self.y, x)
        x0, pull, (eps, memory) = jax.vjp(denoise, x, has_aux=True)
        alpha, sigma = expand(at.now.alpha, x), expand(at.now.sigma, x)
        predicted, push = jax.linearize(partial(apply, self.operator), x0)
        adjoint = jax.linear_transpose(push, x0)
        shift = self.correction(
            Linearised(
                y - predicted,
                lambda v: sigma**2 / alpha * pull(adjoint(v)[0])[0],
                push,
                spread(self.sigma_y, at.now, x) ** 2,
            )
        )
        return Prediction(x0 + shift, eps - alpha / sigma * shift), memory


@pytree
class FullMoments(MomentMatching):
    """The matrix A C A' row by row; see `tmpd`."""

    denoiser: Denoiser
    operator: Any
    y: Any
    sigma_y: Any
    size: int = static()  # numbers in a measurement

    @property
    def vjps(self) -> int:
        """One a number measured through every evaluation, and the denoiser's own."""
        return self.size * self.denoiser.evaluations + self.denoiser.vjps

    def correction(self, local: Linearised) -> Array:
        r = local.residual
        if r[0].size != self.size:
            raise ValueError(f"tmpd was told of {self.size} numbers a measurement, the operator gives {r[0].size}")
        units = jnp.eye(self.size, dtype=r.dtype).reshape(self.size, 1, *r.shape[1:])
        w, rows = jax.vmap(lambda unit: local.product(jnp.broadcast_to(unit, r.shape)))(units)
        M = rows.reshape(self.size, r.shape[0], self.size).transpose(1, 2, 0)  # M[b, i, j] = (M e_j)_i
        v = jnp.linalg.solve(M, r.reshape(r.shape[0], self.size, 1))[..., 0]
        return jnp.einsum("bj,jb...->b...", v, w, precision="highest")


@pytree
class RowSums(MomentMatching):
    """The matrix A C A' replaced by its row sums on the diagonal; see `tmpd_diagonal`."""

    denoiser: Denoiser
    operator: Any
    y: Any
    sigma_y: Any

    @property
    def vjps(self) -> int:
        """Two through every evaluation, and the denoiser's own."""
        return 2 * self.denoiser.evaluations + self.denoiser.vjps

    def correction(self, local: Linearised) -> Array:
        _, diagonal = local.product(jnp.ones_like(local.residual))
        return local.covary(local.residual / diagonal)


@pytree
class KrylovMoments(MomentMatching):
    """The system solved by Krylov iterations; see `mmps`."""

    denoiser: Denoiser
    operator: Any
    y: Any
    sigma_y: Any
    iterations: int = static(default=1)
    solver: Solver = static(default=minimal_residual)

    @property
    def vjps(self) -> int:
        """One an iteration through every evaluation, and the denoiser's own."""
        return self.iterations * self.denoiser.evaluations + self.denoiser.vjps

    def correction(self, local: Linearised) -> Array:
        return self.solver(local.product, local.residual, self.iterations)


def tmpd(denoiser: Denoiser, operator: Any, y: Any, sigma_y: Any, *, size: int) -> FullMoments:
    """TMPD, Tweedie moment projected diffusions: the full covariance A C A' + sigma_y^2 I, formed and solved.

    One evaluation and `size` VJPs a call; for few measured numbers. Exact where the prior is Gaussian and A linear.

    Args:
        denoiser: what is guided.
        operator: A, a function of one sample, or one of `guidance.operators`; linearised at D where it is not linear.
        y: [B, ...] measurements, or one for all.
        sigma_y: standard deviation of the measurement's noise, positive, a number or [B].
        size: numbers in one measurement.

    Raises:
        ValueError: at trace time, an operator or y that do not fit x or `size`, or an operator without a gradient;
            sigma_y that is not positive; a grid that starts at alpha = 0.

    Reference: Boys et al. 2023, arXiv 2310.06721, eq. 11.

    >>> import diffsample as ds
    >>> ds.guidance.tmpd(ds.exact.Gaussian([0.0, 0.0], 1.0), lambda x0: x0[:1], jnp.ones(1), 0.5, size=1).vjps
    1
    """
    check_noise(sigma_y, positive=True)
    if size < 1:
        raise ValueError(f"size={size} must be at least 1: the numbers in one measurement")
    return FullMoments(denoiser, as_operator(operator), y, scheduled(sigma_y), size)


def tmpd_diagonal(denoiser: Denoiser, operator: Any, y: Any, sigma_y: Any) -> RowSums:
    """TMPD-D: the covariance A C A' replaced by the diagonal of its row sums, A C A' 1.

    One evaluation and two VJPs a call, whatever is measured. Exact where A C A' is diagonal.

    Args:
        denoiser, operator, y, sigma_y: as for `tmpd`.

    Raises:
        ValueError: as for `tmpd`.

    Reference: Boys et al. 2023, arXiv 2310.06721, section 3.3.

    >>> import diffsample as ds
    >>> ds.guidance.tmpd_diagonal(ds.exact.Gaussian([0.0, 0.0], 1.0), lambda x0: x0, jnp.ones(2), 0.5).vjps
    2
    """
    check_noise(sigma_y, positive=True)
    return RowSums(denoiser, as_operator(operator), y, scheduled(sigma_y))


def mmps(
    denoiser: Denoiser,
    operator: Any,
    y: Any,
    sigma_y: Any,
    *,
    iterations: int = 1,
    solver: Solver = minimal_residual,
) -> KrylovMoments:
    """MMPS, moment matching posterior sampling: the system solved by a few Krylov iterations, matrix-free.

    One evaluation and `iterations` VJPs a call; `tmpd` once iterations reach the numbers measured.

    Args:
        denoiser, operator, y, sigma_y: as for `tmpd`.
        iterations: Krylov iterations, 1 to 5 in the paper.
        solver: `krylov.minimal_residual` (GMRES; a network's Jacobian is not symmetric) or `krylov.conjugate_gradient`.

    Raises:
        ValueError: as for `tmpd`; iterations < 1.

    Reference: Rozet et al. 2024, arXiv 2405.13712, algorithm 2.

    >>> import diffsample as ds
    >>> ds.guidance.mmps(ds.exact.Gaussian([0.0, 0.0], 1.0), lambda x0: x0, jnp.ones(2), 0.5, iterations=3).vjps
    3
    """
    check_noise(sigma_y, positive=True)
    if iterations < 1:
        raise ValueError(f"iterations={iterations} must be at least 1")
    return KrylovMoments(denoiser, as_operator(operator), y, scheduled(sigma_y), iterations, solver)
