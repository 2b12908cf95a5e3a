"""What twists are made of: what they read of a state, rewards of the prediction, strengths by step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from diffsample.denoiser import PyTree
from diffsample.process import Level
from diffsample.smc.functions import as_pytree
from diffsample.struct import pytree


class Look(NamedTuple):
    """What a twist reads of a state."""

    x0: Array  # [B, ...] predicted clean sample
    level: Level
    pull: Callable[[Array], Array]  # v [B, ...] -> v dx0/dx, the vector-Jacobian product of the prediction
    memory: PyTree = ()  # the denoiser's; of a product, `memory.x0` holds the experts' predictions


@pytree
class Scaled:
    """scale * reward."""

    reward: Any
    scale: Any

    def __call__(self, x0: Array, cond: PyTree) -> Array:
        reward = self.reward(x0, cond)
        return jnp.asarray(self.scale, reward.dtype) * reward


@pytree
class OnPrediction:
    """A function of the prediction as a twist."""

    function: Any

    def __call__(self, look: Look, cond: PyTree) -> Array:
        return self.function(look.x0, cond)


def on_x0(function: Callable[[Array, PyTree], Array]) -> OnPrediction:
    """A function (x0, condition) -> [B] of the predicted clean sample as a log-twist.

    >>> on_x0(abs).function.function is abs
    True
    """
    return OnPrediction(as_pytree(function))


@pytree
class Tempered:
    """min((1 + rate)^i - 1, 1)."""

    rate: Any

    def __call__(self, index: Any) -> Array:
        return jnp.minimum(jnp.expm1(index * jnp.log1p(jnp.asarray(self.rate, float))), 1.0)


def tempered(rate: Any) -> Tempered:
    """Strength min((1 + rate)^i - 1, 1) at step i: 0 at the start.

    >>> float(tempered(1.0)(0)), float(tempered(1.0)(1))
    (0.0, 1.0)
    """
    return Tempered(rate)


def full(index: Any) -> float:
    """Strength 1 at every step."""
    return 1.0
