"""The loops that a researcher writes by hand: what diffsample's overhead is measured against.

Coefficients are precomputed float32 columns, one carried state, and, for DPM-Solver++ 2M, one earlier x0.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import diffsample as ds


class Columns(NamedTuple):
    """Coefficients of the moves s -> t, each float32 [n]."""

    t: Array  # network time at s
    alpha_s: Array
    sigma_s: Array
    alpha_t: Array
    sigma_t: Array
    down: Array  # ancestral: sigma_t^2 = down^2 + up^2
    up: Array
    decay: Array  # DPM-Solver++: sigma_t / sigma_s, and the weights on the newest x0 and the one before
    newest: Array
    before: Array
    number: Array  # int32, for the keys


def columns(grid: ds.Grid) -> Columns:
    t, alpha, sigma = (np.asarray(level) for level in grid.levels)
    ratio = alpha[:-1] * sigma[1:] / (alpha[1:] * sigma[:-1])
    up = sigma[1:] * np.sqrt(1 - ratio**2)
    with np.errstate(divide="ignore"):
        h = -np.log(ratio)
    second = np.isfinite(h) & (np.arange(len(h)) > 0)
    slope = np.where(second, (1 - ratio) / 2 * h / np.roll(h, 1), 0.0)
    slope = np.where(second, slope, 0.0)
    weights = alpha[1:] * (1 - ratio + slope), -alpha[1:] * slope
    values = (t[:-1], alpha[:-1], sigma[:-1], alpha[1:], sigma[1:], np.sqrt(sigma[1:] ** 2 - up**2), up)
    floats = [jnp.asarray(value, jnp.float32) for value in (*values, sigma[1:] / sigma[:-1], *weights)]
    return Columns._make([*floats, jnp.arange(len(h))])


def _eps(apply: Callable, params: Any, x: Array, t: Array) -> Array:
    return apply(params, x, jnp.broadcast_to(t, x.shape[:1]), None)


@partial(jax.jit, static_argnums=0)
def bare(apply: Callable, params: Any, x: Array, rows: Columns) -> Array:
    """The network calls alone: each is fed the output of the one before."""
    return jax.lax.scan(lambda x, row: (_eps(apply, params, x, row.t), None), x, rows)[0]


@partial(jax.jit, static_argnums=0)
def bare_and_draws(apply: Callable, params: Any, x: Array, rows: Columns, key: Array, drawn: Array) -> Array:
    """The calls, and a batch of normals after those where `drawn` [n]: what a stochastic method cannot avoid."""

    def body(x: Array, at: tuple[Columns, Array]) -> tuple[Array, None]:
        row, draw = at
        z = jax.lax.cond(draw, lambda: one_flat_key(key, row.number, x.shape), lambda: jnp.zeros_like(x))
        return _eps(apply, params, x, row.t) + 0.1 * z, None

    return jax.lax.scan(body, x, (rows, drawn))[0]


@partial(jax.jit, static_argnums=0)
def ddim(apply: Callable, params: Any, x: Array, rows: Columns) -> Array:
    def body(x: Array, row: Columns) -> tuple[Array, None]:
        eps = _eps(apply, params, x, row.t)
        x0 = (x - row.sigma_s * eps) / row.alpha_s
        return row.alpha_t * x0 + row.sigma_t * eps, None

    return jax.lax.scan(body, x, rows)[0]


@partial(jax.jit, static_argnums=0)
def dpmpp(apply: Callable, params: Any, x: Array, rows: Columns) -> Array:
    def body(carry: tuple[Array, Array], row: Columns) -> tuple[tuple[Array, Array], None]:
        x, before = carry
        x0 = (x - row.sigma_s * _eps(apply, params, x, row.t)) / row.alpha_s
        return (row.decay * x + row.newest * x0 + row.before * before, x0), None

    return jax.lax.scan(body, (x, jnp.zeros_like(x)), rows)[0][0]


@partial(jax.jit, static_argnums=(0, 5))
def ancestral(apply: Callable, params: Any, x: Array, rows: Columns, key: Array, draw: Callable) -> Array:
    """DDIM with eta = 1; `draw(key or keys, number of the step, shape)` makes the noise."""

    def body(x: Array, row: Columns) -> tuple[Array, None]:
        eps = _eps(apply, params, x, row.t)
        x0 = (x - row.sigma_s * eps) / row.alpha_s
        return row.alpha_t * x0 + row.down * eps + row.up * draw(key, row.number, x.shape), None

    return jax.lax.scan(body, x, rows)[0]


def one_key(key: Array, number: Array, shape: tuple[int, ...]) -> Array:
    """One draw for the whole batch."""
    return jax.random.normal(jax.random.fold_in(key, number), shape)


def one_flat_key(key: Array, number: Array, shape: tuple[int, ...]) -> Array:
    """The same, drawn as a vector, which on a CPU takes a third of the time."""
    return jax.random.normal(jax.random.fold_in(key, number), (math.prod(shape),)).reshape(shape)


def key_per_sample(keys: Array, number: Array, shape: tuple[int, ...]) -> Array:
    """One draw a sample, from its own key, as diffsample does."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, number), shape[1:]))(keys)
