"""Rules on the predicted clean sample: clipping and dynamic thresholding, under any sampler.

A rule changes x0 to x0'. By default the pair stays consistent, eps' = eps - (alpha / sigma)(x0' - x0), so that
alpha x0 + sigma eps does not move. With keep_eps it is eps that stays, and the sampler's state follows the pair.
"""

from math import inf
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.denoiser import Denoiser, Point, Prediction, PyTree, expand
from diffsample.guidance.schedules import known, scheduled, value_at
from diffsample.guidance.spaces import shift_x0
from diffsample.process import Level
from diffsample.struct import pytree, static
from diffsample.wrapping import Wrapper


class Limited(Wrapper, Protocol):
    """A denoiser whose x0 is changed elementwise or per sample by `limit`."""

    denoiser: Denoiser
    keep_eps: bool

    def limit(self, x0: Array, level: Level) -> Array:
        """The changed x0."""
        ...

    @property
    def coupled(self) -> bool:
        """Whether x = alpha x0 + sigma eps still holds: never where eps is kept."""
        return self.denoiser.coupled and not self.keep_eps

    def __call__(self, x: Array, at: Point, cond: PyTree, state: PyTree) -> tuple[Prediction, PyTree]:
        prediction, state = self.denoiser(x, at, cond, state)
        limited = self.limit(prediction.x0, at.now)
        if self.keep_eps:
            return Prediction(limited, prediction.eps), state
        return Prediction(limited, shift_x0(prediction, limited - prediction.x0, at.now).eps), state


@pytree
class Clipped(Limited):
    """x0 clipped to [low, high]; see `clip`."""

    denoiser: Denoiser
    low: Any = -1.0
    high: Any = 1.0
    keep_eps: bool = static(default=False)

    def limit(self, x0: Array, level: Level) -> Array:
        return jnp.clip(x0, value_at(self.low, level, x0), value_at(self.high, level, x0))


@pytree
class DynamicallyThresholded(Limited):
    """x0 clamped to its own quantile and scaled back into range; see `dynamic_threshold`."""

    denoiser: Denoiser
    quantile: Any = 0.995
    bound: Any = 1.0
    largest: Any = inf
    keep_eps: bool = static(default=False)

    def limit(self, x0: Array, level: Level) -> Array:
        q, bound, largest = (value_at(v, level, x0).reshape(-1) for v in (self.quantile, self.bound, self.largest))
        size = jnp.abs(x0).reshape(x0.shape[0], -1)
        s = jax.vmap(jnp.quantile)(size, jnp.broadcast_to(q, x0.shape[:1]))
        s = jnp.maximum(jnp.minimum(s, largest), bound)
        return jnp.clip(x0, -expand(s, x0), expand(s, x0)) * expand(bound / s, x0)


def clip(denoiser: Denoiser, low: Any = -1.0, high: Any = 1.0, *, keep_eps: bool = False) -> Clipped:
    """Clipping: x0 <- min(max(x0, low), high), elementwise.

    No call of its own; the denoiser itself, bit for bit, where nothing leaves the range.

    Args:
        denoiser: what is clipped; put guidance inside.
        low, high: range of the data, numbers, [B] or schedules.
        keep_eps: leave eps as predicted, so that DDIM is alpha_t x0' + sigma_t eps (diffusers' `clip_sample` with
            its default use_clipped_model_output=False). False recomputes eps from x0' (DDPM, Imagen).

    Raises:
        ValueError: an empty range.

    Reference: Ho, Jain, Abbeel 2020, arXiv 2006.11239 (software); "static thresholding" of arXiv 2205.11487, 2.3.

    >>> import diffsample as ds
    >>> sampler = ds.solvers.linear(clip(ds.exact.PointMass(3.0)), ds.solvers.ddim(ds.FlowMatching(), [1.0, 0.5, 0.0]))
    >>> ds.sample(jax.random.key(0), sampler, (2,)).tolist()
    [1.0, 1.0]
    """
    if known(low, high) and not np.all(np.asarray(low) < np.asarray(high)):
        raise ValueError(f"clip needs low < high, got low={low}, high={high}")
    return Clipped(denoiser, scheduled(low), scheduled(high), keep_eps)


def dynamic_threshold(
    denoiser: Denoiser, quantile: Any = 0.995, *, bound: Any = 1.0, largest: Any = inf, keep_eps: bool = False
) -> DynamicallyThresholded:
    """Dynamic thresholding: x0 <- clamp(x0, -s, s) bound / s, s the quantile of |x0| over a sample, `bound` at least.

    No call of its own; the identity on samples whose quantile is within the bound and that have nothing beyond it.

    Args:
        denoiser: what is limited; put guidance inside.
        quantile: of |x0| over all axes of one sample, 0 to 1 (0.995 in the paper).
        bound: half the range of the data, which is [-bound, bound].
        largest: s never exceeds it (diffusers' sample_max_value, whose default of 1 makes this `clip`).
        keep_eps: as for `clip`.
        quantile, bound and largest are numbers, [B] or schedules.

    Raises:
        ValueError: a quantile outside [0, 1], a bound that is not positive, or largest below it.

    Reference: Saharia et al. 2022, arXiv 2205.11487, section 2.3 and appendix D.

    >>> import diffsample as ds
    >>> rule = dynamic_threshold(ds.exact.PointMass(3.0), 1.0)
    >>> rule.limit(jnp.array([[4.0, -2.0], [0.5, 0.25]]), ds.Level(None, 1.0, 1.0)).tolist()
    [[1.0, -0.5], [0.5, 0.25]]
    """
    if known(quantile, bound, largest):
        if not np.all((np.asarray(quantile) >= 0) & (np.asarray(quantile) <= 1)):
            raise ValueError(f"quantile={quantile} must lie in [0, 1]")
        if not np.all((np.asarray(bound) > 0) & (np.asarray(largest) >= np.asarray(bound))):
            raise ValueError(f"dynamic_threshold needs 0 < bound <= largest, got bound={bound}, largest={largest}")
    return DynamicallyThresholded(denoiser, scheduled(quantile), scheduled(bound), scheduled(largest), keep_eps)
