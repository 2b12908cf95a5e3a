"""Rules that guess Cov[x0 | x_t] without the network's Jacobian: JFPS and DiffPIR. No gradient of the network.

x0' = D + C A' (A C A' + sigma_y^2 I)^-1 (y - A D),  eps moved with it
"""

from typing import Any, Protocol

import jax
from jax import Array

from diffsample.denoiser import Denoiser, Point, Prediction, PyTree, expand
from diffsample.guidance.gradients import posterior_var
from diffsample.guidance.measurement import (
    Measured,
    apply,
    as_operator,
    batch_of,
    check_noise,
    differentiable_batch_of,
    each,
    refuse_pure_noise,
    spectral,
    spread,
)
from diffsample.guidance.pseudoinverse import weighted_residual
from diffsample.guidance.schedules import scheduled, value_at
from diffsample.process import Level, Process
from diffsample.struct import pytree


class FixedVariance(Measured, Protocol):
    """The posterior covariance of x0 guessed as a variance times I."""

    sigma_y: Any

    def variance(self, level: Level, x: Array) -> Array:
        """The guess, [B]."""
        ...

    @property
    def coupled(self) -> bool:
        """Always, where the denoiser is: eps moves with x0."""
        return self.denoiser.coupled

    def __call__(self, x: Array, at: Point, cond: PyTree, state: PyTree) -> tuple[Prediction, PyTree]:
        (x0, eps), state = self.denoiser(x, at, cond, state)
        residual = batch_of(self.operator, self.y, x) - apply(self.operator, x0)
        variance, noise_var = self.variance(at.now, x), spread(self.sigma_y, at.now, x) ** 2
        shift = expand(variance, x) * each(self.operator, weighted_residual, residual, variance, noise_var)
        return Prediction(x0 + shift, eps - expand(at.now.alpha, x) / expand(at.now.sigma, x) * shift), state


@pytree
class JacobianFree(FixedVariance):
    """The variance of a Gaussian prior; see `jfps`."""

    denoiser: Denoiser
    operator: Any
    y: Any
    sigma_y: Any
    data_var: Any

    def variance(self, level: Level, x: Array) -> Array:
        return posterior_var(level, self.data_var, x)


@pytree
class PlugAndPlay(FixedVariance):
    """The variance (sigma / alpha)^2 / lam; see `diffpir`."""

    denoiser: Denoiser
    operator: Any
    y: Any
    sigma_y: Any
    lam: Any

    def check(self, process: Process | None, levels: Level) -> None:
        """What the denoiser refuses, and alpha = 0, by which the rule divides."""
        self.denoiser.check(process, levels)
        refuse_pure_noise(levels)

    def variance(self, level: Level, x: Array) -> Array:
        sigma, alpha, lam = (spread(hyper, level, x) for hyper in (level.sigma, level.alpha, self.lam))
        return (sigma / alpha) ** 2 / lam


@pytree
class ManifoldPreserving(Measured):
    """MPGD without an autoencoder; see `mpgd`."""

    denoiser: Denoiser
    operator: Any
    y: Any
    scale: Any

    def __call__(self, x: Array, at: Point, cond: PyTree, state: PyTree) -> tuple[Prediction, PyTree]:
        y = differentiable_batch_of(self.operator, self.y, x)
        (x0, eps), state = self.denoiser(x, at, cond, state)
        predicted, pull = jax.vjp(lambda x0: apply(self.operator, x0), x0)
        (step,) = pull(y - predicted)
        return Prediction(x0 + 2 * value_at(self.scale, at.now, x) * step, eps), state


def jfps(denoiser: Denoiser, operator: Any, y: Any, sigma_y: Any = 0.0, *, data_var: Any = 1.0) -> JacobianFree:
    """JFPS, Jacobian-free posterior sampling: the covariance of a prior N(0, v I), sigma^2 v / (sigma^2 + alpha^2 v) I.

    Exact where the prior's covariance is v I; `pigdm` with its Jacobian replaced by that prior's. One evaluation, no
    VJP.

    Args:
        denoiser: what is guided.
        operator: A with its SVD: one of `guidance.operators`.
        y: [B, ...] measurements, or one for all.
        sigma_y: standard deviation of the measurement's noise, 0 allowed, a number or [B].
        data_var: v, variance of the data, a number or [B].

    Raises:
        TypeError: an operator without an SVD.
        ValueError: negative sigma_y; at trace time, y that does not fit.

    Reference: azula (software), guidance/jfps, after Rozet et al. 2024, arXiv 2405.13712, section 3.

    >>> import jax.numpy as jnp, diffsample as ds
    >>> A = ds.guidance.operators.matrix([[1.0, 0.0]])
    >>> ds.guidance.jfps(ds.exact.Gaussian([0.0, 0.0], 1.0), A, jnp.ones(1), 0.5).vjps
    0
    """
    operator = spectral(operator)
    check_noise(sigma_y)
    return JacobianFree(denoiser, operator, y, scheduled(sigma_y), scheduled(data_var))


def diffpir(denoiser: Denoiser, operator: Any, y: Any, sigma_y: Any, *, lam: Any = 10.0) -> PlugAndPlay:
    """DiffPIR: the proximal step argmin |y - A x|^2 / sigma_y^2 + lam (alpha / sigma)^2 |x - D|^2 for x0.

    The same as the covariance (sigma / alpha)^2 / lam I. One evaluation, no VJP.

    Args:
        denoiser, operator, y: as for `jfps`.
        sigma_y: standard deviation of the measurement's noise, 0 allowed, a number or [B].
        lam: weight of the prior, a number or [B].

    Raises:
        TypeError, ValueError: as for `jfps`; a grid that starts at alpha = 0.

    Reference: Zhu et al. 2023, arXiv 2305.08995, eq. 12 and 13.

    >>> import jax.numpy as jnp, diffsample as ds
    >>> A = ds.guidance.operators.matrix([[1.0, 0.0]])
    >>> ds.guidance.diffpir(ds.exact.Gaussian([0.0, 0.0], 1.0), A, jnp.ones(1), 0.5).evaluations
    1
    """
    operator = spectral(operator)
    check_noise(sigma_y)
    return PlugAndPlay(denoiser, operator, y, scheduled(sigma_y), scheduled(lam))


def mpgd(denoiser: Denoiser, operator: Any, y: Any, scale: Any = 0.5) -> ManifoldPreserving:
    """MPGD, manifold preserving guided diffusion: a gradient step on x0 alone, x0' = D - scale grad_x0 |y - A(x0)|^2.

    eps is kept; nothing is differentiated but the operator. Where A A' = I, scale = 1/2 is `ddnm` with eta = 0.

    Args:
        denoiser, operator, y: as for `dps`.
        scale: a number or [B]; the paper's c_t, with the square not halved.

    Raises:
        ValueError: as for `dps`.

    Reference: He et al. 2023, arXiv 2311.16424, algorithm 1.

    >>> import jax.numpy as jnp, diffsample as ds
    >>> ds.guidance.mpgd(ds.exact.Gaussian([0.0, 0.0], 1.0), lambda x0: x0[:1], jnp.ones(1)).vjps
    0
    """
    return ManifoldPreserving(denoiser, as_operator(operator), y, scheduled(scale))
