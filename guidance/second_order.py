"""STSL: second-order Tweedie by a random probe of the score, with several corrections a level."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.denoiser import Denoiser, Point, Prediction, PyTree, eps_from_x0, expand
from diffsample.guidance.gradients import distance
from diffsample.guidance.measurement import Differentiated, apply, as_operator, differentiable_batch_of, spread
from diffsample.guidance.schedules import scheduled
from diffsample.process import Level
from diffsample.sampler import fold, normal
from diffsample.struct import pytree, static


@pytree
class SecondOrder(Differentiated):
    """Corrections of the state by the residual and by the trace of the score's Jacobian; see `stsl`."""

    denoiser: Denoiser
    operator: Any
    y: Any
    scale: Any
    curvature: Any
    probe: Any
    corrections: int = static()

    @property
    def evaluations(self) -> int:
        """Two calls of the denoiser a correction."""
        return 2 * self.corrections * self.denoiser.evaluations

    @property
    def vjps(self) -> int:
        """One through each of them, and the denoiser's own."""
        return 2 * self.corrections * (self.denoiser.evaluations + self.denoiser.vjps)

    def __call__(self, x: Array, at: Point, cond: PyTree, state: PyTree) -> tuple[Prediction, PyTree]:
        def correct(carry: tuple, i: Array) -> tuple[tuple, None]:
            x, _, state = carry
            step, (x0, state) = self._step(x, at._replace(keys=fold(at.keys, i)), cond, state)
            return (x + step, x0, state), None

        (x, x0, state), _ = jax.lax.scan(correct, (x, jnp.zeros_like(x), state), jnp.arange(self.corrections))
        return Prediction(x0, eps_from_x0(x, x0, at.now)), state

    def _step(self, x: Array, at: Point, cond: PyTree, state: PyTree) -> tuple[Array, tuple[Array, PyTree]]:
        """The gradient by x of -scale |y - A D(x)| - (curvature / d) tr, and what the call at x said."""
        z = normal(fold(at.keys, 0), x.shape, x.dtype)
        first, second = (at._replace(keys=fold(at.keys, i)) for i in (1, 2))

        scale, curvature, probe = (spread(h, at.now, x) for h in (self.scale, self.curvature, self.probe))

        def objective(x: Array) -> tuple[Array, tuple[Array, PyTree]]:
            here, memory = self.denoiser(x, first, cond, state)
            there, _ = self.denoiser(x + expand(probe, x) * z, second, cond, state)
            misfit = distance(differentiable_batch_of(self.operator, self.y, x), apply(self.operator, here.x0))
            total = scale * misfit + curvature / z[0].size * probed_trace(here, there, z, at.now, probe)
            return -total.sum(), (here.x0, memory)

        return jax.grad(objective, has_aux=True)(x)


def probed_trace(here: Prediction, there: Prediction, z: Array, level: Level, probe: Array) -> Array:
    """z' (s(x + probe z) - s(x)) / probe, [B]: its mean over z is the trace of the score's Jacobian, smoothed.

    Args:
        here, there: predictions at x and at x + probe z.
        z: [B, ...] standard normals.
        level: of x.
        probe: [B].
    """
    apart = jnp.sum((z * (there.eps - here.eps)).reshape(z.shape[0], -1), axis=1)
    return -apart / (spread(level.sigma, level, z) * probe)


def stsl(
    denoiser: Denoiser,
    operator: Any,
    y: Any,
    *,
    scale: Any = 0.05,
    curvature: Any = 0.02,
    corrections: int = 3,
    probe: Any = 1.0,
) -> SecondOrder:
    """STSL, second-order Tweedie sampler from a surrogate loss, as in the re-implementation of Boys et al.

    At every level, `corrections` times: x <- x + grad_x [-scale |y - A D(x)| - (curvature / d) tr], with the trace of
    the score's Jacobian estimated by one probe, tr = z' (s(x + probe z) - s(x)) / probe. The pair returned is the
    last D, read before its correction, with eps = (x - alpha D) / sigma of the corrected x: under `ddpm` the next
    state is the posterior step from both. 2 corrections evaluations and VJPs a call. On a Gaussian prior the trace is
    constant, and one correction is `dps`'s gradient step. The original code is not public.

    Args:
        denoiser, operator, y: as for `dps`.
        scale: of the gradient of the residual's norm, a number or [B].
        curvature: of the second-order term, divided by the numbers in a sample, a number or [B].
        corrections: at every level.
        probe: length of the probe; 1 as published, which at low noise leaves the data.

    Raises:
        ValueError: as for `dps`; corrections < 1.

    Reference: Rout et al. 2024, arXiv 2312.00852, section 4; Boys et al. 2023, arXiv 2310.06721 (software, STSL).

    >>> import diffsample as ds
    >>> rule = ds.guidance.stsl(ds.exact.Gaussian([0.0, 0.0], 1.0), lambda x0: x0[:1], jnp.ones(1))
    >>> rule.evaluations, rule.vjps
    (6, 6)
    """
    if corrections < 1:
        raise ValueError(f"corrections={corrections} must be at least 1")
    return SecondOrder(
        denoiser, as_operator(operator), y, scheduled(scale), scheduled(curvature), scheduled(probe), corrections
    )
