"""PiGDM: guidance through the pseudo-inverse of a linear operator, pulled back through the denoiser."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.denoiser import Denoiser, Point, Prediction, PyTree, expand
from diffsample.guidance.gradients import add_score, posterior_var
from diffsample.guidance.measurement import (
    Differentiated,
    Spectral,
    apply,
    check_in_range,
    check_noise,
    differentiable_batch_of,
    each,
    invertible,
    pinv,
    spectral,
    spread,
)
from diffsample.guidance.schedules import scheduled
from diffsample.struct import pytree


@pytree
class PseudoinverseGuided(Differentiated):
    """PiGDM; see `pigdm`."""

    denoiser: Denoiser
    operator: Any
    y: Any
    sigma_y: Any
    data_var: Any

    @property
    def coupled(self) -> bool:
        return self.denoiser.coupled

    def __call__(self, x: Array, at: Point, cond: PyTree, state: PyTree) -> tuple[Prediction, PyTree]:
        prediction, state, pull = _pullback(self.denoiser, x, at, cond, state)
        residual = differentiable_batch_of(self.operator, self.y, x) - apply(self.operator, prediction.x0)
        spread_var, noise_var = posterior_var(at.now, self.data_var, x), spread(self.sigma_y, at.now, x) ** 2
        score = pull(each(self.operator, weighted_residual, residual, spread_var, noise_var))
        return add_score(prediction, score, at), state


@pytree
class PseudoinverseGuidedAsCoded(Differentiated):
    """PiGDM as its authors' later code has it; see `pigdm_as_coded`."""

    denoiser: Denoiser
    operator: Any
    y: Any

    def __call__(self, x: Array, at: Point, cond: PyTree, state: PyTree) -> tuple[Prediction, PyTree]:
        prediction, state, pull = _pullback(self.denoiser, x, at, cond, state)
        residual = differentiable_batch_of(self.operator, self.y, x) - apply(self.operator, prediction.x0)
        shift = expand(at.now.alpha, x) * pull(pinv(self.operator, residual))
        return Prediction(prediction.x0 + shift, prediction.eps), state


def pigdm(denoiser: Denoiser, operator: Any, y: Any, sigma_y: Any = 0.0, *, data_var: Any = 1.0) -> PseudoinverseGuided:
    """PiGDM, pseudoinverse-guided diffusion: Cov[x0 | x_t] taken as r^2 I, r^2 = sigma^2 v / (sigma^2 + alpha^2 v).

    The score gains J' A' (r^2 A A' + sigma_y^2 I)^-1 (y - A D), J = dD/dx. Exact where the prior's covariance is v I.
    One evaluation and one VJP a call.

    Args:
        denoiser: what is guided.
        operator: A with its SVD: one of `guidance.operators`.
        y: [B, ...] measurements, or one for all.
        sigma_y: standard deviation of the measurement's noise, 0 allowed, a number or [B].
        data_var: v, variance of the data, a number or [B].

    Raises:
        TypeError: an operator without an SVD.
        ValueError: negative sigma_y; at trace time, y that does not fit; a grid that starts at alpha = 0.

    Reference: Song et al. 2023, Pseudoinverse-guided diffusion models for inverse problems, ICLR, eq. 7.

    >>> import diffsample as ds
    >>> A = ds.guidance.operators.matrix([[1.0, 0.0]])
    >>> ds.guidance.pigdm(ds.exact.Gaussian([0.0, 0.0], 1.0), A, jnp.ones(1), 0.5).vjps
    1
    """
    operator = spectral(operator)
    check_noise(sigma_y)
    return PseudoinverseGuided(denoiser, operator, y, scheduled(sigma_y), scheduled(data_var))


def pigdm_as_coded(denoiser: Denoiser, operator: Any, y: Any) -> PseudoinverseGuidedAsCoded:
    """PiGDM without measurement noise, as released: x_next = step(x) + alpha_next alpha J' A+ (y - A D), eps kept.

    One evaluation and one VJP a call. Start from `ds.diffuse(key, A+ y, level)`, as that code does.

    Args:
        denoiser, y: as for `pigdm`.
        operator: A with a pseudo-inverse: one of `guidance.operators`, or `operators.function(A, pinv)`.

    Raises:
        TypeError: an operator without a pseudo-inverse.
        ValueError: y outside the operator's range; at trace time, y that does not fit.

    Reference: Mardani et al. 2023, arXiv 2305.04391 (software), algos/pgdm.

    >>> import diffsample as ds
    >>> A = ds.guidance.operators.mask([1.0, 0.0])
    >>> ds.guidance.pigdm_as_coded(ds.exact.Gaussian([0.0, 0.0], 1.0), A, jnp.array([2.0, 0.0])).vjps
    1
    """
    operator = invertible(operator)
    check_in_range(operator, y)
    return PseudoinverseGuidedAsCoded(denoiser, operator, y)


def _pullback(denoiser: Denoiser, x: Array, at: Point, cond: PyTree, state: PyTree):
    """(prediction, memory, v -> (dD/dx)' v), with one call of the denoiser."""

    def denoise(x: Array) -> tuple[Array, tuple[Prediction, PyTree]]:
        prediction, memory = denoiser(x, at, cond, state)
        return prediction.x0, (prediction, memory)

    _, pull, (prediction, memory) = jax.vjp(denoise, x, has_aux=True)
    return prediction, memory, lambda v: pull(v)[0]


def weighted_residual(A: Spectral, residual: Array, spread_var: Array, noise_var: Array) -> Array:
    """A' (spread_var A A' + noise_var I)^-1 residual."""
    s = jnp.asarray(A.singular_values, residual.dtype)
    seen = s > 0
    weight = jnp.where(seen, s / jnp.where(seen, spread_var * s**2 + noise_var, 1), 0)
    return A.from_axes(weight * A.measured(residual))
