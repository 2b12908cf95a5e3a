"""RED-diff: the posterior mode by stochastic optimisation, with the network as a regulariser at every noise level."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from diffsample.denoiser import Denoiser, Point, Prediction, PyTree, expand
from diffsample.guidance.measurement import (
    Invertible,
    Measured,
    PerSample,
    apply,
    as_operator,
    differentiable_batch_of,
    pinv,
)
from diffsample.guidance.schedules import scheduled, value_at
from diffsample.sampler import fold, normal
from diffsample.struct import pytree, static

ADAM = optax.scale_by_adam(b1=0.9, b2=0.99)  # built once: another instance would be another program


class Optimisation(NamedTuple):
    denoiser: PyTree  # its own memory
    mean: Array  # [B, ...] what is optimised
    optimiser: PyTree  # its state, for `mean`


@pytree
class Regularised(Measured):
    """Optimisation of a clean sample, as a denoiser with memory; see `red_diff`."""

    denoiser: Denoiser
    operator: Any
    y: Any
    weight: Any
    rate: Any
    optimiser: optax.GradientTransformation = static()

    def init(self, x: Array) -> Optimisation:
        inside = self.operator.operator if isinstance(self.operator, PerSample) else self.operator
        y = differentiable_batch_of(self.operator, self.y, x)
        mean = pinv(self.operator, y) if isinstance(inside, Invertible) else jnp.zeros_like(x)
        return Optimisation(self.denoiser.init(x), mean, jax.vmap(self.optimiser.init)(mean))

    def __call__(self, x: Array, at: Point, cond: PyTree, state: Optimisation) -> tuple[Prediction, Optimisation]:
        z = normal(fold(at.keys, 0), x.shape, x.dtype)
        alpha, sigma = expand(at.now.alpha, x), expand(at.now.sigma, x)
        noisy = alpha * state.mean + sigma * z
        (_, eps), memory = self.denoiser(noisy, at._replace(keys=fold(at.keys, 1)), cond, state.denoiser)
        predicted, pull = jax.vjp(lambda mean: apply(self.operator, mean), state.mean)
        (misfit,) = pull(predicted - differentiable_batch_of(self.operator, self.y, x))
        gradient = misfit + value_at(self.weight, at.now, x) * sigma / alpha * (eps - z)
        update: Any
        update, optimiser = jax.vmap(self.optimiser.update)(gradient, state.optimiser, state.mean)
        mean = state.mean - value_at(self.rate, at.now, x) * update
        new = Optimisation(memory, mean, optimiser)
        new = jax.tree.map(lambda new, old: jnp.where(expand(at.stage, new) == 0, new, old), new, state)
        return Prediction(new.mean, z), new


def red_diff(
    denoiser: Denoiser,
    operator: Any,
    y: Any,
    *,
    weight: Any = 0.25,
    rate: Any = 0.1,
    optimiser: optax.GradientTransformation | None = None,
) -> Regularised:
    """RED-diff: descends |y - A(m)|^2 / 2 + weight (sigma / alpha) (eps(alpha m + sigma z) - z)' m over samples m.

    The difference of noises is not differentiated, so no VJP; one evaluation a call. A denoiser with memory: m, started
    at A+ y (at 0 without a pseudo-inverse), advances once a step, and (m, z) is the pair returned, so that `ddim` with
    eta = 0 walks the noise levels down and ends on m. It is an optimiser, and finds a mode: spread it does not sample.

    Args:
        denoiser, operator, y: as for `dps`.
        weight: of the regulariser, a number or [B].
        rate: learning rate, a number or [B].
        optimiser: an optax transformation of the gradient, without a rate; None is
            `optax.scale_by_adam(b1=0.9, b2=0.99)`.

    Raises:
        ValueError: as for `dps`.

    Reference: Mardani et al. 2023, arXiv 2305.04391, algorithm 1.

    >>> import diffsample as ds
    >>> ds.guidance.red_diff(ds.exact.Gaussian([0.0, 0.0], 1.0), lambda x0: x0[:1], jnp.ones(1)).vjps
    0
    """
    return Regularised(
        denoiser, as_operator(operator), y, scheduled(weight), scheduled(rate), ADAM if optimiser is None else optimiser
    )
