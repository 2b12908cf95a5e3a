"""Observation self-guidance: an unconditional model of whole series conditioned on the part that was observed.

The energy compares the predicted clean series with the observed entries; its gradient through the network guides the
rest. Squared errors pull towards the observations; quantile losses, each sample at its own level, keep an ensemble of
forecasts spread.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.denoiser import Denoiser, Point, Prediction, PyTree, expand
from diffsample.guidance.gradients import Descending, add_score, descend
from diffsample.guidance.measurement import as_operator, one_a_sample, refuse_pure_noise
from diffsample.guidance.schedules import scheduled, value_at
from diffsample.process import Level, Process
from diffsample.struct import pytree
from diffsample.tableau import is_concrete

Energy: TypeAlias = Callable[[Array, Array, Array], Array]  # (x0, y, mask), all [B, ...] -> [B]


def squared_error(x0: Array, y: Array, mask: Array) -> Array:
    """Sum over observed entries of (x0 - y)^2, [B].

    >>> squared_error(jnp.array([[1.0, 5.0]]), jnp.array([[3.0, 0.0]]), jnp.array([[1.0, 0.0]])).tolist()
    [4.0]
    """
    return jnp.sum((mask * (x0 - y) ** 2).reshape(x0.shape[0], -1), axis=1)


@pytree
class QuantileLoss:
    """The asymmetric Laplace energy; see `quantile_loss`."""

    q: Any  # a number or [B]

    def __call__(self, x0: Array, y: Array, mask: Array) -> Array:
        q, error = expand(self.q, x0), y - x0
        return jnp.sum((mask * jnp.maximum(q * error, (q - 1) * error)).reshape(x0.shape[0], -1), axis=1)


def quantile_loss(q: Any) -> QuantileLoss:
    """Sum over observed entries of max(q e, (q - 1) e), e = y - x0, [B]: its gradient by x0 is -q below y, 1 - q above.

    Args:
        q: level, between 0 and 1, a number or [B]; `quantile_levels(B)` spreads an ensemble.

    Raises:
        ValueError: a level outside (0, 1).

    >>> quantile_loss(0.75)(jnp.array([[0.0], [2.0]]), jnp.ones((2, 1)), jnp.ones((2, 1))).tolist()
    [0.75, 0.25]
    """
    if is_concrete(q) and not np.all((np.asarray(q) > 0) & (np.asarray(q) < 1)):
        raise ValueError(f"q={q} must lie between 0 and 1")
    return QuantileLoss(q)


def quantile_levels(samples: int) -> np.ndarray:
    """(k + 1) / (K + 1) for the samples k = 0 ... K - 1 of an ensemble, float32 [K].

    >>> quantile_levels(3).tolist()
    [0.25, 0.5, 0.75]
    """
    return np.arange(1, samples + 1, dtype=np.float32) / np.float32(samples + 1)


@pytree
class ObservationGuided(Descending):
    """The score less scale grad energy; see `observe`."""

    denoiser: Denoiser
    y: Any
    mask: Any
    scale: Any
    loss: Any

    @property
    def coupled(self) -> bool:
        return self.denoiser.coupled

    def check(self, process: Process | None, levels: Level) -> None:
        """What the denoiser refuses, and alpha = 0, by which the rule divides."""
        self.denoiser.check(process, levels)
        refuse_pure_noise(levels)

    def energy(self, x0: Array, level: Level) -> Array:
        return one_a_sample("the energy", self.loss(x0, *observed(self.y, self.mask, x0)), x0)

    def __call__(self, x: Array, at: Point, cond: PyTree, state: PyTree) -> tuple[Prediction, PyTree]:
        energy = partial(self.energy, level=at.now)
        prediction, state, gradient = descend(self.denoiser, energy, x, at, cond, state)
        return add_score(prediction, -value_at(self.scale, at.now, x) * gradient, at), state


class AfterStepState(NamedTuple):
    before: Level  # of [B], the level of the step before; sigma = 0 where there was none
    denoiser: PyTree


@pytree
class ObservationAfterStep(Descending):
    """The state moved along the energy's gradient after every step; see `observe_after_step`."""

    denoiser: Denoiser
    y: Any
    mask: Any
    scale: Any
    loss: Any

    @property
    def evaluations(self) -> int:
        """One for the gradient at the level left, one at the level reached."""
        return 2 * self.denoiser.evaluations

    @property
    def vjps(self) -> int:
        """One through the first of them, and the denoiser's own."""
        return self.denoiser.evaluations + 2 * self.denoiser.vjps

    def init(self, x: Array) -> AfterStepState:
        none = jnp.zeros(x.shape[:1], x.dtype)
        return AfterStepState(Level(none, none, none), self.denoiser.init(x))

    def energy(self, x0: Array, level: Level) -> Array:
        return one_a_sample("the energy", self.loss(x0, *observed(self.y, self.mask, x0)), x0)

    def __call__(self, x: Array, at: Point, cond: PyTree, state: AfterStepState) -> tuple[Prediction, AfterStepState]:
        now = Level(*(jnp.broadcast_to(jnp.asarray(value, x.dtype), x.shape[:1]) for value in at.now))
        moved = state.before.sigma > 0
        before = Level(*(jnp.where(moved, old, new) for old, new in zip(state.before, now, strict=True)))
        left, energy = at._replace(now=before, next=now), partial(self.energy, level=before)
        _, _, gradient = descend(self.denoiser, energy, x, left, cond, state.denoiser)
        kept = before.alpha * now.sigma / (now.alpha * before.sigma)
        variance = jnp.where(moved & (at.stage == 0), now.sigma**2 * (1 - kept**2), 0)
        x = x - value_at(self.scale, before, x) * expand(variance, x) * gradient
        prediction, memory = self.denoiser(x, at, cond, state.denoiser)
        first = jax.tree.map(lambda old, new: jnp.where(at.stage == 0, new, old), state.before, now)
        return prediction, AfterStepState(first, memory)


def observe(denoiser: Denoiser, y: Any, mask: Any, scale: Any, energy: Energy = squared_error) -> ObservationGuided:
    """Observation self-guidance, DDIM form: eps + scale sigma grad_x energy(D(x), y, mask), x0 to match.

    With the squared error it is `dps_gaussian` on the observed entries with sigma_y^2 = 1 / (2 scale). One evaluation
    and one VJP a call.

    Args:
        denoiser: of whole series x0 [B, ...].
        y: [B, ...] or one for all, shaped like x; entries that are not observed are not read.
        mask: 1 where observed, else 0, shaped like y.
        scale: s, a number, [B], or a schedule of the level.
        energy: (x0, y, mask) -> [B]: `squared_error`, `quantile_loss(quantile_levels(B))`, or your own, a callable
            pytree where its numbers vary.

    Raises:
        ValueError: at trace time, a y or mask that is not shaped like x; a grid that starts at alpha = 0.

    Reference: Kollovieh et al. 2023, arXiv 2307.11494.

    >>> import diffsample as ds
    >>> rule = ds.guidance.observe(ds.exact.Gaussian([0.0, 0.0], 1.0), jnp.ones(2), jnp.array([1.0, 0.0]), scale=2.0)
    >>> rule.evaluations, rule.vjps
    (1, 1)
    """
    check_mask(mask)
    return ObservationGuided(denoiser, y, mask, scheduled(scale), as_operator(energy))


def observe_after_step(
    denoiser: Denoiser, y: Any, mask: Any, scale: Any, energy: Energy = squared_error
) -> ObservationAfterStep:
    """Observation self-guidance, DDPM form: x_s - scale c^2 grad_x energy(D(x_s, t), y, mask) after a step from t to s.

    c^2 = sigma_s^2 (1 - (alpha_t sigma_s / (alpha_s sigma_t))^2) is the variance of the ancestral step, zero into
    sigma = 0. The gradient is taken at the new state and the level that was left, as published. For `ddpm` and its kin.
    Two evaluations and one VJP a call.

    Args:
        denoiser, y, mask, energy: as for `observe`.
        scale: s, a number, [B], or a schedule of the level left; published with the quantile loss, 100 steps: 1 to 8.

    Raises:
        ValueError: at trace time, a y or mask that is not shaped like x.

    Reference: Kollovieh et al. 2023, arXiv 2307.11494.

    >>> import diffsample as ds
    >>> rule = observe_after_step(ds.exact.Gaussian([0.0, 0.0], 1.0), jnp.ones(2), jnp.array([1.0, 0.0]), scale=4.0)
    >>> rule.evaluations, rule.vjps
    (2, 1)
    """
    check_mask(mask)
    return ObservationAfterStep(denoiser, y, mask, scheduled(scale), as_operator(energy))


def check_mask(mask: Any) -> None:
    """Raise ValueError for values other than 0 and 1."""
    if is_concrete(mask) and not np.isin(np.asarray(mask), (0, 1)).all():
        raise ValueError(f"mask must hold 0 and 1 only, got {np.setdiff1d(np.asarray(mask), (0, 1))[:3]}")


def observed(y: Any, mask: Any, x: Array) -> tuple[Array, Array]:
    """y, zero where it is not observed, and the mask, both shaped like x and in its dtype.

    Raises:
        ValueError: another shape than x's, with or without the batch axis.
    """
    y, mask = jnp.asarray(y), jnp.asarray(mask)
    for name, value in (("y", y), ("mask", mask)):
        if jnp.shape(value) not in (x.shape, x.shape[1:]):
            raise ValueError(f"{name} has shape {jnp.shape(value)}; for x of shape {x.shape} it must be {x.shape[1:]} "
                             f"or {x.shape}")  # fmt: skip
    seen = jnp.broadcast_to(jnp.asarray(mask, x.dtype), x.shape)
    return jnp.where(seen > 0, jnp.broadcast_to(jnp.asarray(y, x.dtype), x.shape), 0), seen
