"""Replacement: what y determines of the noisy state is overwritten by a noised y before every call.

Score-SDE's inpainting (operator `mask`) and colourisation (operator `grayscale`), RePaint (with
`solvers.time_travel`), and MCG (replacement around `dps`).
"""

from typing import Any

from jax import Array

from diffsample.denoiser import Denoiser, Point, Prediction, PyTree, expand
from diffsample.guidance.gradients import dps
from diffsample.guidance.measurement import (
    Measured,
    apply,
    batch_of,
    check_in_range,
    invertible,
    pinv,
)
from diffsample.sampler import fold, normal
from diffsample.struct import pytree


@pytree
class Replaced(Measured):
    """The measured part of the state replaced; see `replacement`."""

    denoiser: Denoiser
    operator: Any
    y: Any

    def __call__(self, x: Array, at: Point, cond: PyTree, state: PyTree) -> tuple[Prediction, PyTree]:
        z = normal(fold(at.keys, 0), x.shape, x.dtype)
        known, noise = pinv(self.operator, batch_of(self.operator, self.y, x)), self._measured(z)
        alpha, sigma = expand(at.now.alpha, x), expand(at.now.sigma, x)
        x = x - self._measured(x) + alpha * known + sigma * noise
        (x0, eps), state = self.denoiser(x, at._replace(keys=fold(at.keys, 1)), cond, state)
        return Prediction(x0 - self._measured(x0) + known, eps - self._measured(eps) + noise), state

    def _measured(self, x: Array) -> Array:
        """A+ A x."""
        return pinv(self.operator, apply(self.operator, x))


def replacement(denoiser: Denoiser, operator: Any, y: Any) -> Replaced:
    """Replacement: x <- (I - A+ A) x + A+ (alpha y + sigma A z) before every call, and y in the predicted x0.

    The returned pair is (A+ y, z) in the measured part and the denoiser's elsewhere, so that the next state is a draw
    of q(x_next | y) there, and A x0 = y at the end. Biased where measured and missing parts depend on each other:
    resampling by `solvers.time_travel` mends that. No gradient; a batch of fresh normals a call.

    Args:
        denoiser: what is guided.
        operator: A with a pseudo-inverse: `operators.mask` for inpainting, `operators.grayscale` for colourisation, or
            any other linear one.
        y: [B, ...] noiseless measurements, or one for all.

    Raises:
        TypeError: an operator without a pseudo-inverse.
        ValueError: y outside the operator's range; at trace time, y that does not fit.

    Reference: Song et al. 2021, arXiv 2011.13456, appendix I; Lugmayr et al. 2022, arXiv 2201.09865, algorithm 1.

    >>> import jax, jax.numpy as jnp, diffsample as ds
    >>> A = ds.guidance.operators.mask([1.0, 0.0])
    >>> rule = ds.guidance.replacement(ds.exact.Gaussian([0.0, 0.0], 1.0), A, jnp.array([3.0, 0.0]))
    >>> sampler = ds.solvers.linear(rule, ds.solvers.ddpm(ds.VarianceExploding(), [9.0, 1.0, 0.0]))
    >>> ds.sample(jax.random.key(0), sampler, (1, 2))[0, 0].tolist()
    3.0
    """
    operator = invertible(operator)
    check_in_range(operator, y)
    return Replaced(denoiser, operator, y)


def mcg(denoiser: Denoiser, operator: Any, y: Any, scale: Any = 1.0) -> Replaced:
    """MCG, manifold constrained gradient: `dps` where nothing is measured, `replacement` where something is.

    One evaluation and one VJP a call.

    Args:
        denoiser, operator, y: as for `replacement`.
        scale: of the gradient of the residual's norm, as for `dps`.

    Raises:
        TypeError, ValueError: as for `replacement` and `dps`.

    Reference: Chung et al. 2022, arXiv 2206.00941, algorithm 1.

    >>> import jax.numpy as jnp, diffsample as ds
    >>> A = ds.guidance.operators.mask([1.0, 0.0])
    >>> ds.guidance.mcg(ds.exact.Gaussian([0.0, 0.0], 1.0), A, jnp.array([3.0, 0.0])).vjps
    1
    """
    return replacement(dps(denoiser, operator, y, scale), operator, y)
