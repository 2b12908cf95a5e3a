"""What a Gaussian says about x0 once x_t is seen at a noise level.

With x0 ~ N(mu, S) and x_t = alpha x0 + sigma eps, in the axes of S, with u = x_t - alpha mu and
var = alpha^2 S + sigma^2:

    p(x_t) = N(alpha mu, var),  E[x0|x_t] = mu + (alpha S / var) u,  E[eps|x_t] = (sigma / var) u,  score = -u / var

No difference of near-equal numbers appears, so all four hold from alpha = 0 to sigma -> 0.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from diffsample.exact.covariance import Covariance
from diffsample.process import Level


class Marginal(NamedTuple):
    """The law N(alpha mean, var) of x_t for n rows, k components, d numbers; every array [n or 1, k or 1, d or 1]."""

    alpha: Array
    sigma: Array
    mean: Array  # of x0
    spread: Array  # variance of x0 along the axes of its covariance
    var: Array  # variance of x_t along the same axes


class Given(NamedTuple):
    """What x_t says about x0 and eps if it came from component k."""

    log_density: Array  # [n, k] log p(x_t | k)
    x0: Array  # [n, k, d] E[x0 | x_t, k]
    eps: Array  # [n, k, d] E[eps | x_t, k]
    score: Array  # [n, k, d] gradient of log_density


def rows(x: Array, event: tuple[int, ...]) -> Array:
    """States `[B, *copies, *event]` as rows `[n, d]`, in float32 at least.

    >>> rows(jnp.zeros((5, 2, 3)), event=(3,)).shape
    (10, 3)
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"x must be floating point, got {x.dtype}")
    if x.ndim < len(event) or x.shape[x.ndim - len(event) :] != event:
        raise ValueError(f"x has shape {x.shape}; it must end with the event shape {event} of the law")
    return x.reshape(-1, math.prod(event)).astype(jnp.promote_types(x.dtype, jnp.float32))


def marginal(x: Array, level: Level | None, means: Array, cov: Covariance) -> Marginal:
    """Law of every row of x at a level (None: of the data), component by component.

    >>> spread = Covariance(jnp.array([[16.0, 0.0]]), None)
    >>> noisy = marginal(jnp.zeros((4, 2)), Level(None, 1.0, 3.0), jnp.zeros((1, 2)), spread)
    >>> noisy.var.tolist()
    [[[25.0, 9.0]]]
    """
    dtype, event = jnp.promote_types(x.dtype, jnp.float32), means.shape[1:]
    lead = x.shape[: x.ndim - len(event)]
    alpha, sigma = (1.0, 0.0) if level is None else (level.alpha, level.sigma)
    alpha, sigma = _per_row(alpha, lead, dtype), _per_row(sigma, lead, dtype)
    mean = jnp.asarray(means, dtype).reshape(1, means.shape[0], -1)
    spread = jnp.asarray(cov.values, dtype)[None]
    # the floor keeps a singular law at sigma = 0 finite, and a quadratic form divided by it too
    var = jnp.maximum(alpha**2 * spread + sigma**2, float(jnp.finfo(dtype).tiny) ** 0.75)
    return Marginal(alpha, sigma, mean, spread, var)


def given(x: Array, level: Level | None, means: Array, cov: Covariance) -> Given:
    """Density, posterior means and score of every row of x under every component.

    Args:
        x: `[B, *copies, *event]`; n = B * copies rows.
        level: scalar or `[B]` alpha and sigma; None is the data (alpha 1, sigma 0).
        means: `[k, *event]`.
        cov: covariances of the k components.

    >>> unit = Covariance(jnp.ones((1, 1)), None)
    >>> float(given(jnp.array([2.0]), Level(None, 1.0, 1.0), jnp.zeros(1), unit).x0[0, 0, 0])
    1.0
    """
    law = marginal(x, level, means, cov)
    u = cov.to_axes(rows(x, means.shape[1:])[:, None, :] - law.alpha * law.mean)
    quadratic = jnp.sum(u**2 / law.var + jnp.log(law.var), axis=-1)
    log_density = -0.5 * (quadratic + u.shape[-1] * math.log(2 * math.pi))
    x0 = law.mean + cov.from_axes(law.alpha * law.spread / law.var * u)
    return Given(log_density, x0, cov.from_axes(law.sigma / law.var * u), -cov.from_axes(u / law.var))


def per_sample(values: Array, x: Array, event: tuple[int, ...]) -> Array:
    """Sum one number a row `[n]` over the copies inside a sample: `[B]`, in the dtype of x.

    >>> per_sample(jnp.arange(6.0), jnp.zeros((3, 2, 7)), event=(7,)).tolist()
    [1.0, 5.0, 9.0]
    """
    values = values.reshape(x.shape[: x.ndim - len(event)])
    return values.sum(axis=tuple(range(1, values.ndim))).astype(x.dtype)


def _per_row(value: Any, lead: tuple[int, ...], dtype: Any) -> Array:
    """A level's scale, scalar or [B], as [n or 1, 1, 1]."""
    value = jnp.asarray(value, dtype)
    if value.ndim and value.shape != lead[:1]:
        raise ValueError(f"a level's scale has shape {value.shape}; it must be a scalar or one a sample, {lead[:1]}")
    return jnp.repeat(value, math.prod(lead[1:]) if value.ndim else 1).reshape(-1, 1, 1)
