"""Refinement of forecasts by an unconditional model: descent of its denoising error at one noise level.

The energy of a series x is E(x) = |eps - eps_model(alpha x + sigma eps)|^2 + weight R(x, forecast), with fresh noise
eps in every iteration: the model's error is low where series are likely, R keeps x near the forecast that is refined.
For an exact denoiser of N(0, S), E averaged over eps is x' Q x + const, Q = (alpha sigma)^2 (alpha^2 S + sigma^2)^-2.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jax import Array

from diffsample.denoiser import Denoiser, Point, PyTree, expand
from diffsample.guidance.forecasting import Energy, check_mask, observed, squared_error
from diffsample.guidance.measurement import as_operator
from diffsample.process import Level
from diffsample.sampler import fold, normal, sample_keys

Levels: TypeAlias = Level | Callable[[Array], Level]  # one level, or a draw of one from a key

SLOW_ON_PLATEAU = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(factor=0.1, patience=10))


def refine_by_langevin(
    key: Array,
    denoiser: Denoiser,
    x: Array,
    level: Levels,
    *,
    forecast: Any = None,
    mask: Any = None,
    weight: Any = 1.0,
    energy: Energy = squared_error,
    step: Any = 0.1,
    noise_scale: Any = 0.1,
    iterations: int = 20,
    cond: PyTree = None,
) -> Array:
    """Refinement by Langevin Monte Carlo: x - step grad E(x) + sqrt(2 step) noise_scale xi.

    Small steps with noise_scale = 1 sample the law exp(-E). One evaluation and one VJP an iteration, in one scan.

    Args:
        key: typed key; sample i has fold_in(key, i).
        denoiser: of whole series, without memory.
        x: [B, ...] series to start from, usually the forecast.
        level: noise level of E, for example `process.level(0.2)`; or key -> Level, drawn anew for every sample and
            iteration (a function made anew compiles anew).
        forecast: [B, ...] or one for all, kept near; None is x.
        mask: entries that R compares, 1 or 0, shaped like a series; None is all.
        weight: lambda, a number or [B].
        energy: R(x, forecast, mask) -> [B]: `squared_error`, `quantile_loss(q)` (first sort the series by level, so
            that each is near its own quantile), or your own.
        step, noise_scale: numbers or [B].
        iterations: of the scan.
        cond: condition, leaves [B, ...].

    Raises:
        ValueError: shapes that do not fit; a denoiser with memory; iterations < 1.

    Reference: Kollovieh et al. 2023, arXiv 2307.11494.

    >>> import diffsample as ds
    >>> law, level = ds.exact.Gaussian(jnp.zeros(3), 1.0), ds.VariancePreserving().level(0.3)
    >>> refine_by_langevin(jax.random.key(0), law, jnp.full((2, 3), 9.0), level).shape
    (2, 3)
    """
    task = _task(denoiser, x, forecast, mask, weight, energy, iterations)
    return _langevin(key, denoiser, x, _levels(level), task, step, noise_scale, cond, iterations)


def refine_by_descent(
    key: Array,
    denoiser: Denoiser,
    x: Array,
    level: Levels,
    *,
    forecast: Any = None,
    mask: Any = None,
    weight: Any = 1.0,
    energy: Energy = squared_error,
    optimizer: optax.GradientTransformation = SLOW_ON_PLATEAU,
    iterations: int = 20,
    cond: PyTree = None,
) -> Array:
    """Refinement by maximum likelihood: stochastic descent of E with any optimiser, each sample with its own state.

    One evaluation and one VJP an iteration, in one scan.

    Args:
        key, denoiser, x, level, forecast, mask, weight, energy, iterations, cond: as for `refine_by_langevin`.
        optimizer: of optax; the published one is gradient descent of rate 0.1, reduced on plateaus of E. One made anew
            compiles anew.

    Raises:
        ValueError: as `refine_by_langevin`.

    Reference: Kollovieh et al. 2023, arXiv 2307.11494.

    >>> import diffsample as ds
    >>> law, level = ds.exact.Gaussian(jnp.zeros(3), 1.0), ds.VariancePreserving().level(0.3)
    >>> refine_by_descent(jax.random.key(0), law, jnp.full((2, 3), 9.0), level, weight=0.0).max() < 9.0
    Array(True, dtype=bool)
    """
    task = _task(denoiser, x, forecast, mask, weight, energy, iterations)
    return _descent(key, denoiser, x, _levels(level), task, cond, optimizer, iterations)


Task: TypeAlias = tuple[Any, Array, Array, Any]  # energy, forecast, mask, weight


def _task(denoiser: Denoiser, x: Array, forecast: Any, mask: Any, weight: Any, energy: Energy, iterations: int) -> Task:
    if iterations < 1:
        raise ValueError(f"iterations={iterations} must be at least 1")
    if jax.tree.leaves(jax.eval_shape(denoiser.init, x)):
        raise ValueError(f"{type(denoiser).__name__} has memory (its init returns arrays); refinement calls it at one "
                         f"level over and over and needs one without")  # fmt: skip
    mask = jnp.ones(x.shape[1:], x.dtype) if mask is None else mask
    check_mask(mask)
    return as_operator(energy), *observed(x if forecast is None else forecast, mask, x), weight


def _levels(level: Levels) -> Any:
    return level if isinstance(level, Level) else as_operator(level)


def _error(denoiser: Denoiser, keys: Array, level: Levels, task: Task, cond: PyTree, x: Array) -> Array:
    """E(x) of every sample, [B], with the noise of these keys."""
    energy, forecast, mask, weight = task
    if not isinstance(level, Level):
        level = jax.vmap(level)(fold(keys, 0))
    eps = normal(fold(keys, 1), x.shape, x.dtype)
    noisy = expand(level.alpha, x) * x + expand(level.sigma, x) * eps
    zero = jnp.zeros((), jnp.int32)
    at = Point(level, level, zero, zero, fold(keys, 2))
    predicted = denoiser(noisy, at, cond, denoiser.init(x))[0].eps
    own = jnp.sum(((eps - predicted) ** 2).reshape(x.shape[0], -1), axis=1)
    return own + jnp.asarray(weight, x.dtype) * energy(x, forecast, mask)


def _gradient(denoiser: Denoiser, keys: Array, level: Levels, task: Task, cond: PyTree, x: Array) -> tuple:
    """(gradient, E [B])."""
    error = partial(_error, denoiser, keys, level, task, cond)
    value, pull = jax.vjp(error, x)
    return pull(jnp.ones_like(value))[0], value


def _iteration_keys(key: Array, n: int, i: Array) -> Array:
    return fold(sample_keys(key, 0, n), i)


@partial(jax.jit, static_argnums=8)
def _langevin(key, denoiser, x, level, task, step, noise_scale, cond, iterations) -> Array:
    step, noise_scale = expand(step, x), expand(noise_scale, x)

    def iterate(x: Array, i: Array) -> tuple[Array, None]:
        keys = _iteration_keys(key, x.shape[0], i)
        gradient, _ = _gradient(denoiser, keys, level, task, cond, x)
        xi = normal(fold(keys, 3), x.shape, x.dtype)
        return x - step * gradient + jnp.sqrt(2 * step) * noise_scale * xi, None

    return jax.lax.scan(iterate, x, jnp.arange(iterations, dtype=jnp.uint32))[0]


@partial(jax.jit, static_argnums=(6, 7))
def _descent(key, denoiser, x, level, task, cond, optimizer, iterations) -> Array:
    optimizer = optax.with_extra_args_support(optimizer)

    def iterate(carry: tuple, i: Array) -> tuple[tuple, None]:
        x, state = carry
        keys = _iteration_keys(key, x.shape[0], i)
        gradient, value = _gradient(denoiser, keys, level, task, cond, x)
        update, state = jax.vmap(lambda g, s, x, v: optimizer.update(g, s, x, value=v))(gradient, state, x, value)
        return (optax.apply_updates(x, update), state), None

    start = (x, jax.vmap(optimizer.init)(x))
    return jax.lax.scan(iterate, start, jnp.arange(iterations, dtype=jnp.uint32))[0][0]
