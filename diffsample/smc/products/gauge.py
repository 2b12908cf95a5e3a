"""The Gaussian-matched gauge: a drift that leaves the targets as they are and takes the noise out of the weights.

Far from the data every expert is nearly Gaussian, and the weights of an annealed or multiplied target are those of a
quadratic, heavy-tailed long before any structure appears. With a Gaussian surrogate N(m_i, V_i) of each expert in
y = x / alpha, V_i = v_i + (sigma / alpha)^2, and

    Lambda = sum beta_i / V_i,   mu = sum beta_i m_i / (V_i Lambda),   Gamma = sum beta_i / V_i^2,

the drift  kappa (y - mu) + delta,  kappa = (Lambda^2 - Gamma) / (2 Lambda),  delta = -sum beta_i (mu - m_i) / (V_i^2
Lambda), makes weights constant where the surrogates are the experts, and so nearly constant where the data still look
Gaussian. This library's own addition (specs/smc.md 2.9).
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.denoiser import expand
from diffsample.process import Level


class Matched(NamedTuple):
    """The product of the experts' surrogates at a level, in y, one entry a coordinate of the event."""

    precision: Array  # [B or 1, ...] Lambda
    mean: Array  # mu
    kappa: Array  # slope of the gauge
    delta: Array  # its offset


def matched(means: Array, variances: Array, exponents: Array, x: Array, level: Level) -> Matched:
    """The surrogates' product, and the gauge that it asks for.

    Args:
        means, variances: [E, *event] or [E], of the data of each expert.
        exponents: [E].
        x: [B, *event], for its shape and dtype. level: where.
    """
    means, beta = per_expert(means, x), per_expert(exponents, x)
    spreads = per_expert(variances, x) + square_noise(level, x)[None]
    precision = (beta / spreads).sum(axis=0)
    mean = (beta * means / spreads).sum(axis=0) / precision
    kappa = 0.5 * (precision - (beta / spreads**2).sum(axis=0) / precision)
    delta = -(beta * (mean[None] - means) / spreads**2).sum(axis=0) / precision
    return Matched(precision, mean, kappa, delta)


def log_surrogates(means: Array, variances: Array, x: Array, level: Level) -> Array:
    """Log-densities [E, B] of y = x / alpha under the experts' surrogates."""
    means, spreads = per_expert(means, x), per_expert(variances, x) + square_noise(level, x)[None]
    y = (x / expand(level.alpha, x))[None]
    terms = -0.5 * ((y - means) ** 2 / spreads + jnp.log(2 * math.pi * spreads))
    return terms.reshape(*terms.shape[:2], -1).sum(axis=-1)


def square_noise(level: Level, x: Array) -> Array:
    """(sigma / alpha)^2 of the rank of x, [B or 1, 1, ...]."""
    square = (jnp.asarray(level.sigma, x.dtype) / jnp.asarray(level.alpha, x.dtype)) ** 2
    return square.reshape(-1, *(1,) * (x.ndim - 1))


def per_expert(values: Any, x: Array) -> Array:
    """[E] or [E, *event] as [E, 1, *event of ones or sizes]."""
    values = jnp.asarray(values, x.dtype)
    return values.reshape(values.shape[0], 1, *(values.shape[1:] or (1,) * (x.ndim - 1)))


def lowest_precision(means: Any, variances: Any, exponents: Any, levels: Level) -> tuple[float, float]:
    """(precision, level.t) where sum_i beta_i / V_i is smallest on a grid: the target has no normaliser if <= 0."""
    variances, beta = np.asarray(variances, np.float64), np.asarray(exponents, np.float64)
    with np.errstate(divide="ignore"):
        noise = (np.asarray(levels.sigma) / np.asarray(levels.alpha)) ** 2
    kept = np.isfinite(noise)
    noise, t = noise[kept], np.asarray(levels.t)[kept]
    spreads = variances.reshape(len(beta), -1, 1) + noise
    beta = beta[..., kept] if beta.ndim == 2 else beta[:, None]
    # in units of the noise, so that the sign is not lost in a small number
    precision = (beta[:, None] / spreads).sum(axis=0) * (variances.max() + noise)
    worst = np.unravel_index(np.argmin(precision), precision.shape)
    return float(precision[worst]), float(t[worst[-1]])
