"""Values of noisy states, for steering and selecting: functions (view, condition) -> [B] made from a reward.

The best value of a state is log E[exp(scale r(x0)) | x_t] / scale. The reward of the prediction is the cheapest guess
at it; the average over draws around the prediction knows how uncertain the prediction is.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn import logsumexp

from diffsample.denoiser import PyTree, expand
from diffsample.sampler import View
from diffsample.smc.functions import as_pytree
from diffsample.struct import pytree, static
from diffsample.tableau import is_concrete

Reward = Callable[[Array, PyTree], Array]  # (x0 [B, ...], condition) -> [B]
Value = Callable[[View, PyTree], Array]  # (view, condition) -> [B]


@pytree
class PosteriorMean:
    """The reward of the predicted clean sample as a value."""

    reward: Any

    def __call__(self, view: View, cond: PyTree) -> Array:
        return self.reward(view.x0, cond)


def posterior_mean(reward: Reward) -> PosteriorMean:
    """The value r(x0) of the predicted clean sample, for any reward (x0, condition) -> [B]: SVDD-PM.

    >>> posterior_mean(abs).reward.function is abs
    True
    """
    return PosteriorMean(as_pytree(reward))


@pytree
class SampledValue:
    """The log-mean-exp reward of draws around the prediction; see `sampled_value`."""

    reward: Any
    key: Array
    scale: Any
    variance: Any
    samples: int = static()

    def __call__(self, view: View, cond: PyTree) -> Array:
        dtype = jnp.promote_types(view.x.dtype, jnp.float32)
        variance, (alpha, sigma) = jnp.asarray(self.variance, dtype), view.level[1:]
        spread = sigma * jnp.sqrt(variance / (alpha**2 * variance + sigma**2))
        z = jax.random.normal(jax.random.fold_in(self.key, view.index), (self.samples, *view.x.shape[1:]), dtype)
        rewards = jax.lax.map(lambda z: self.reward(view.x0 + expand(spread, view.x0) * z[None], cond), z)
        scale = jnp.asarray(self.scale, rewards.dtype)
        return (logsumexp(scale * rewards, axis=0) - math.log(self.samples)) / scale


def sampled_value(
    reward: Reward, key: Array, *, samples: int = 4, scale: Any = 1.0, variance: Any = 1.0
) -> SampledValue:
    """The value log mean_m exp(scale r(x0^m)) / scale over M draws x0^m ~ N(x0, s^2) around the predicted clean sample.

    s^2 = v sigma^2 / (alpha^2 v + sigma^2) is the posterior variance of data of variance v: for Gaussian data the
    optimal value as M grows. A guess at other laws, which costs variance and no exactness where it steers particles
    (`fk_difference`). M rewards a row and particle, one after another, no network call; particles share their draws.

    Args:
        reward: (x0 [B, ...], condition) -> [B].
        key: typed key, of these draws only.
        samples: M.
        scale: that of the tilt (1 / alpha of `svdd`), not 0; a leaf.
        variance: v of the data, a leaf; an EDM network's is sigma_data^2.

    Raises:
        ValueError: no samples, scale 0, a variance that is not positive.

    Reference: Singhal et al. 2025, arXiv 2501.06848, section 3 (where x0 is drawn from the model's own law).

    >>> import jax
    >>> sampled_value(lambda x0, cond: x0, jax.random.key(0), samples=16).samples
    16
    """
    if not isinstance(samples, int | np.integer) or samples < 1:
        raise ValueError(f"samples={samples!r} must be a whole number of at least 1")
    if is_concrete((scale, variance)) and (np.any(np.asarray(scale) == 0) or not np.all(np.asarray(variance) > 0)):
        raise ValueError(f"scale={scale} must not be 0, and variance={variance} must be positive")
    return SampledValue(as_pytree(reward), key, scale, variance, samples)


def soft_value_loss(value: Array, reward: Array, alpha: Any) -> Array:
    """exp(u) - u - 1, u = (reward - value) / alpha, [B]: the minimiser is the soft value alpha log E[exp(r / alpha)].

    Train SVDD-MC's value of a noisy or partly masked state by the rewards of samples that passed through it:
    `ds.sample(..., record=lambda view: (view.x, view.level.t))` gives the states of a run with its samples. A squared
    error, the limit of large alpha, learns the mean reward instead. The loss grows like exp(u), which leaves float32 at
    u = 88: let values start near the largest reward, not near 0.

    Args:
        value: [B], of states x_t. reward: [B], of the clean samples that followed. alpha: that of `svdd`, positive.

    Raises:
        ValueError: shapes that differ, an alpha that is not positive.

    Reference: the value: Li et al. 2024, arXiv 2408.08252; the loss: Garg et al. 2023, arXiv 2301.02328.

    >>> soft_value_loss(jnp.array([1.0]), jnp.array([1.0]), 0.5).tolist()
    [0.0]
    """
    if jnp.shape(value) != jnp.shape(reward):
        raise ValueError(f"values of shape {jnp.shape(value)} for rewards of shape {jnp.shape(reward)}")
    if is_concrete(alpha) and np.any(np.asarray(alpha) <= 0):
        raise ValueError(f"alpha={alpha} must be positive")
    u = (reward - value) / alpha
    return jnp.expm1(u) - u
