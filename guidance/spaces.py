"""What a network of each kind would have put out, and how a change of it moves (x0, eps) at fixed x_t.

Every kind is affine in x0 at fixed x_t. So combinations whose weights sum to 1 (classifier-free guidance) are the same
in all of them, while norms, projections and standard deviations are not: a rule that takes them names its space.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from diffsample.denoiser import Prediction, expand
from diffsample.process import Level


class Space(NamedTuple):
    """A parametrisation: its output for a prediction, and d x0 / d output at fixed x_t."""

    output: Callable[[Prediction, Level], Array]
    gain: Callable[[Level], Any]


def _scales(level: Level) -> tuple[Array, Array]:
    return jnp.asarray(level.alpha), jnp.asarray(level.sigma)


def _v(prediction: Prediction, level: Level) -> Array:
    x0, eps = prediction
    return expand(level.alpha, x0) * eps - expand(level.sigma, x0) * x0


def _v_gain(level: Level) -> Array:
    alpha, sigma = _scales(level)
    return -sigma / (alpha**2 + sigma**2)


def _velocity_gain(level: Level) -> Array:
    alpha, sigma = _scales(level)
    return -sigma / (alpha + sigma)


def _noise_gain(level: Level) -> Array:
    alpha, sigma = _scales(level)
    return -sigma / alpha


DATA = Space(lambda prediction, level: prediction.x0, lambda level: jnp.ones(()))  # x0
NOISE = Space(lambda prediction, level: prediction.eps, _noise_gain)  # eps
V = Space(_v, _v_gain)  # alpha eps - sigma x0
VELOCITY = Space(lambda prediction, level: prediction.eps - prediction.x0, _velocity_gain)  # eps - x0, of flow matching


def shift_x0(prediction: Prediction, shift: Array, level: Level) -> Prediction:
    """x0 + shift and the eps that keeps alpha x0 + sigma eps: eps - (alpha / sigma) shift.

    >>> shift_x0(Prediction(jnp.ones(1), jnp.ones(1)), jnp.ones(1), Level(None, 1.0, 2.0)).eps.tolist()
    [0.5]
    """
    ratio = expand(level.alpha, shift) / expand(level.sigma, shift)
    return Prediction(prediction.x0 + shift, prediction.eps - ratio * shift)


def shift_output(prediction: Prediction, shift: Array, level: Level, space: Space) -> Prediction:
    """The pair after an addition to the output of a network of this kind, at fixed x_t."""
    return shift_x0(prediction, expand(space.gain(level), shift) * shift, level)
