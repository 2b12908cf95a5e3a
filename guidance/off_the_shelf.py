"""EluCD: guidance by a classifier of clean images that never saw noise, made smooth and tempered."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.denoiser import Denoiser, Point, Prediction, PyTree, expand
from diffsample.guidance.classifier_based import gradient, posterior_variance, shift_mean
from diffsample.guidance.projected import inner, positive
from diffsample.guidance.schedules import known, scheduled, value_at
from diffsample.struct import pytree
from diffsample.wrapping import Wrapper

Logits = Callable[[Array], Array]  # images [B, ...] -> [B, K]; resizing and normalising are part of it


class OffTheShelfState(NamedTuple):
    denoiser: PyTree
    largest: Array  # [B] largest posterior variance so far


@pytree
class OffTheShelf(Wrapper):
    """A classifier's gradient at the predicted clean sample, in DDPM's mean; see `elucd`."""

    denoiser: Denoiser
    logits: Any
    scale: Any
    tau: Any
    others: Any
    sway: Any
    horizon: Any

    @property
    def coupled(self) -> bool:
        """Never: eps stays, and the state follows the pair."""
        return False

    def init(self, x: Array) -> OffTheShelfState:
        return OffTheShelfState(self.denoiser.init(x), jnp.zeros(x.shape[:1], x.dtype))

    def __call__(self, x: Array, at: Point, cond: PyTree, state: OffTheShelfState) -> tuple[Prediction, Any]:
        prediction, memory = self.denoiser(x, at, cond, state.denoiser)
        tau, others, scale, sway = (
            value_at(value, at.now, x) for value in (self.tau, self.others, self.scale, self.sway)
        )

        def value(x0: Array) -> Array:
            return tempered_log_prob(self.logits(x0), cond, tau.reshape(-1), others.reshape(-1))

        slope = gradient(value, jax.lax.stop_gradient(prediction.x0))
        variance = posterior_variance(at, x)
        largest = jnp.maximum(state.largest, jnp.broadcast_to(variance.reshape(-1), x.shape[:1]))
        largest = jnp.where(at.stage == 0, largest, state.largest)
        phase = jnp.sin(jnp.pi * expand(jnp.asarray(at.now.t) / self.horizon, x))
        weight = variance + sway * expand(largest, x) * phase
        return shift_mean(prediction, scale * weight * slope, at), OffTheShelfState(memory, largest)


@pytree
class Nudged(Wrapper):
    """A step of fixed size up a classifier's log-probability before each solver step; see `elucd_nudge`."""

    denoiser: Denoiser
    logits: Any
    steps: Any
    size: Any
    sway: Any
    tau: Any
    others: Any

    @property
    def coupled(self) -> bool:
        """Never: the state moves before the call."""
        return False

    def __call__(self, x: Array, at: Point, cond: PyTree, state: PyTree) -> tuple[Prediction, PyTree]:
        alpha = expand(at.now.alpha, x)
        tau, others = (value_at(value, at.now, x).reshape(-1) for value in (self.tau, self.others))
        size = _rms(x / alpha)

        def value(image: Array) -> Array:
            return tempered_log_prob(self.logits(image), cond, tau, others)

        slope = gradient(value, x / alpha / jnp.maximum(size, 1))
        move = alpha * size * self._amount(at, x) * slope / positive(_rms(slope))
        return self.denoiser(x + jnp.where(expand(at.stage, x) == 0, move, 0), at, cond, state)

    def _amount(self, at: Point, x: Array) -> Array:
        size, sway = value_at(self.size, at.now, x), value_at(self.sway, at.now, x)
        n, i = jnp.asarray(self.steps, x.dtype), expand(at.index, x)
        falling = jnp.maximum(size * (n + 1 - i) / (n + 1), 1e-5)
        return falling + size * sway * jnp.sin(jnp.pi * i / n)


def elucd(
    denoiser: Denoiser,
    logits: Logits,
    scale: Any = 1.0,
    *,
    tau: Any = 1.0,
    others: Any = 0.5,
    sway: Any = 0.3,
    horizon: Any = 1.0,
) -> OffTheShelf:
    """EluCD for DDPM: mean + (Sigma + sway Sigma_max sin(pi t / horizon)) scale grad L at the predicted clean sample.

    L = tau f_y - logsumexp(others f). The gradient is taken with respect to x0-hat, not through the denoiser: one
    evaluation and one classifier gradient a call. Sigma is the posterior variance of the coming DDPM step, Sigma_max
    the largest so far (kept in memory). eps is kept; meant for `solvers.ddpm`.

    Args:
        denoiser: its condition is the integer label y `[B]`; wrap it in `fixed` if it is to be unconditional.
        logits: clean images [B, ...] -> [B, K], smooth: each ReLU a `smooth_relu` (beta 3 as released).
        scale, tau, others, sway: numbers, [B] or schedules. tau = others is the classifier's own log-probability,
            others = 0 the joint energy.
        horizon: the process time that is T in the sine; 1 for processes on [0, 1].

    Reference: EluCD, ICLR 2024, arXiv 2310.11311, and its code.

    >>> import diffsample as ds
    >>> elucd(ds.exact.Gaussian(0.0, 1.0), lambda x: jnp.stack([x, -x], axis=-1)).evaluations
    1
    """
    scale, tau, others, sway = map(scheduled, (scale, tau, others, sway))
    return OffTheShelf(denoiser, scheduled(logits), scale, tau, others, sway, horizon)


def elucd_nudge(
    denoiser: Denoiser,
    logits: Logits,
    steps: Any,
    *,
    size: Any = 0.004,
    sway: Any = 0.3,
    tau: Any = 1.0,
    others: Any = 0.0,
) -> Nudged:
    """EluCD for EDM: before step i, x <- x + a_i RMS(x) g / RMS(g), g the gradient of L at x / max(RMS(x), 1).

    a_i = max(size (N + 1 - i) / (N + 1), 1e-5) + size sway sin(pi i / N), in EDM's variables x / alpha. The classifier
    sees the noisy state, not the prediction. Only the first call of a step moves; churn noise comes before the move
    here, after it in the released code. One evaluation and one classifier gradient a call.

    Args:
        denoiser, logits, tau, others: as for `elucd`; released with others = 0 and beta 5.
        steps: N, the number of noise levels of the grid.
        size, sway: numbers, [B] or schedules.

    Reference: EluCD, ICLR 2024, arXiv 2310.11311, and its code.

    >>> import diffsample as ds
    >>> elucd_nudge(ds.exact.Gaussian(0.0, 1.0), lambda x: jnp.stack([x, -x], axis=-1), steps=10).coupled
    False
    """
    if known(steps) and not np.all(np.asarray(steps) >= 1):
        raise ValueError(f"steps={steps} must be at least 1: the noise levels of the grid")
    size, sway, tau, others = map(scheduled, (size, sway, tau, others))
    return Nudged(denoiser, scheduled(logits), steps, size, sway, tau, others)


def tempered_log_prob(logits: Array, label: Array, tau: Any = 1.0, others: Any = 1.0) -> Array:
    """tau f_y - log sum_k exp(others f_k), for logits [B, K] and labels [B]; tau, others scalars or [B].

    >>> tempered_log_prob(jnp.array([[0.0, 500.0]]), jnp.array([1])).tolist()
    [0.0]
    """
    if label is None or not jnp.issubdtype(jnp.result_type(label), jnp.integer):
        raise TypeError(f"a classifier needs integer labels [B] as the condition, got {label!r}")
    own = jnp.take_along_axis(logits, jnp.asarray(label)[:, None], axis=1)[:, 0]
    spread = jnp.broadcast_to(jnp.asarray(others, logits.dtype), own.shape)[:, None]
    return tau * own - jax.nn.logsumexp(spread * logits, axis=1)


def smooth_relu(z: Array, beta: float) -> Array:
    """log(1 + exp(beta z)) / beta: within log(2) / beta of max(z, 0).

    >>> smooth_relu(jnp.array(0.0), 3.0).round(6).tolist()
    0.231049...
    """
    return jax.nn.softplus(beta * z) / beta


def _rms(x: Array) -> Array:
    """Root mean square of each sample, axes kept."""
    return jnp.sqrt(inner(x, x) / max(x.size // len(x), 1))
