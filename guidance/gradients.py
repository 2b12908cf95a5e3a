"""Rules that descend an energy of the predicted clean sample by its gradient through the denoiser: DPS and its kin."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.denoiser import Denoiser, Point, Prediction, PyTree, expand
from diffsample.guidance.measurement import (
    Differentiated,
    apply,
    as_operator,
    check_noise,
    differentiable_batch_of,
    spread,
)
from diffsample.guidance.schedules import scheduled, value_at
from diffsample.process import Level
from diffsample.struct import pytree
from diffsample.wrapping import Wrapper


class Descending(Wrapper, Protocol):
    """x0' = x0 - (scale / alpha_next) grad_x energy(x0(x)), eps kept: a one-step method moves by -scale grad."""

    scale: Any

    def energy(self, x0: Array, level: Level) -> Array:
        """What is descended, [B]."""
        ...

    @property
    def coupled(self) -> bool:
        """No: eps is kept, or made anew, while x0 moves."""
        return False

    @property
    def vjps(self) -> int:
        """One through every evaluation, and the denoiser's own."""
        return self.denoiser.evaluations + self.denoiser.vjps

    def __call__(self, x: Array, at: Point, cond: PyTree, state: PyTree) -> tuple[Prediction, PyTree]:
        energy = partial(self.energy, level=at.now)
        (x0, eps), state, gradient = descend(self.denoiser, energy, x, at, cond, state)
        return Prediction(x0 - value_at(self.scale, at.now, x) / expand(at.next.alpha, x) * gradient, eps), state


def descend(
    denoiser: Denoiser, energy: Callable[[Array], Array], x: Array, at: Point, cond: PyTree, state: PyTree
) -> tuple[Prediction, PyTree, Array]:
    """(prediction, memory, gradient by x of energy(x0) [B]), with one call of the denoiser and one pullback."""

    def total(x: Array) -> tuple[Array, tuple[Prediction, PyTree]]:
        prediction, memory = denoiser(x, at, cond, state)
        return energy(prediction.x0).sum(), (prediction, memory)

    gradient, (prediction, memory) = jax.grad(total, has_aux=True)(x)
    return prediction, memory, gradient


def add_score(prediction: Prediction, score: Array, at: Point) -> Prediction:
    """A guidance score added to a coupled pair: x0 + (sigma^2 / alpha) score, eps - sigma score."""
    alpha, sigma = expand(at.now.alpha, score), expand(at.now.sigma, score)
    return Prediction(prediction.x0 + sigma**2 / alpha * score, prediction.eps - sigma * score)


def distance(a: Array, b: Array) -> Array:
    """Euclidean norm of a - b per sample, [B]; its gradient is 0 where a = b."""
    square = jnp.sum((a - b).reshape(a.shape[0], -1) ** 2, axis=1)
    apart = square > 0
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1)), 0)


@pytree
class PosteriorSampling(Descending):
    """DPS with the norm of the residual as energy; see `dps`."""

    denoiser: Denoiser
    operator: Any
    y: Any
    scale: Any

    def energy(self, x0: Array, level: Level) -> Array:
        return distance(differentiable_batch_of(self.operator, self.y, x0), apply(self.operator, x0))


@pytree
class GaussianPosteriorSampling(Differentiated):
    """DPS as a likelihood score; see `dps_gaussian`."""

    denoiser: Denoiser
    operator: Any
    y: Any
    sigma_y: Any

    @property
    def coupled(self) -> bool:
        return self.denoiser.coupled

    def __call__(self, x: Array, at: Point, cond: PyTree, state: PyTree) -> tuple[Prediction, PyTree]:
        def energy(x0: Array) -> Array:
            y = differentiable_batch_of(self.operator, self.y, x0)
            noise = spread(self.sigma_y, at.now, x0)
            return 0.5 * (distance(y, apply(self.operator, x0)) / noise) ** 2

        prediction, state, gradient = descend(self.denoiser, energy, x, at, cond, state)
        return add_score(prediction, -gradient, at), state


def posterior_var(level: Level, data_var: Any, x: Array) -> Array:
    """Variance [B] of x0 given x_t for data of variance data_var: sigma^2 v / (sigma^2 + alpha^2 v)."""
    alpha, sigma, var = (spread(hyper, level, x) for hyper in (level.alpha, level.sigma, data_var))
    return sigma**2 * var / (sigma**2 + alpha**2 * var)


def dps(denoiser: Denoiser, operator: Any, y: Any, scale: Any = 0.3) -> PosteriorSampling:
    """DPS, diffusion posterior sampling, as published: x_next = step(x) - scale grad_x |y - A(D(x))|.

    The norm is not squared, and per sample. As a decoupled pair, x0' = D - (scale / alpha_next) grad with eps kept, so
    that a one-step method moves by exactly -scale grad. One evaluation and one VJP a call.

    Args:
        denoiser: what is guided; put guidance and `clip` inside (the authors clip D to the range of the data).
        operator: A, any function of one sample, or one of `guidance.operators`.
        y: [B, ...] measurements, or one for all.
        scale: zeta, a number or [B]; published with 1000 DDPM steps: 0.3 for super-resolution and blur, 0.5 for
            inpainting, 1 for phase retrieval.

    Raises:
        ValueError: at trace time, an operator or y that do not fit x, or an operator without a gradient.

    Reference: Chung et al. 2023, arXiv 2209.14687, algorithm 1.

    >>> import diffsample as ds
    >>> rule = ds.guidance.dps(ds.exact.Gaussian([0.0, 0.0], 1.0), lambda x0: x0[:1], jnp.array([1.0]))
    >>> rule.evaluations, rule.vjps
    (1, 1)
    """
    return PosteriorSampling(denoiser, as_operator(operator), y, scheduled(scale))


def dps_gaussian(denoiser: Denoiser, operator: Any, y: Any, sigma_y: Any) -> GaussianPosteriorSampling:
    """DPS as a likelihood: the score gains grad_x log N(y; A(D(x)), sigma_y^2), as if x0 were D(x) for certain.

    It overshoots, and is overconfident, even on a Gaussian. One evaluation and one VJP a call.

    Args:
        denoiser, operator, y: as for `dps`.
        sigma_y: standard deviation of the measurement's noise, positive, a number or [B].

    Raises:
        ValueError: as for `dps`; sigma_y that is not positive; a grid that starts at alpha = 0.

    Reference: Chung et al. 2023, arXiv 2209.14687, eq. 15 to 16.

    >>> import diffsample as ds
    >>> ds.guidance.dps_gaussian(ds.exact.Gaussian([0.0, 0.0], 1.0), lambda x0: x0[:1], 1.0, sigma_y=0.5).vjps
    1
    """
    check_noise(sigma_y, positive=True)
    return GaussianPosteriorSampling(denoiser, as_operator(operator), y, scheduled(sigma_y))
