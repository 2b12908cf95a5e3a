"""Uniform-noise diffusion by its concrete score, as SEDD samples it.

The network gives log s(v) at every position, s(v) = p_t(x with the position set to v) / p_t(x), the present token's own
score being 1. So s is the law of the *noisy* token given the others, up to its scale, and a model of logits log s is a
`MaskedModel` whose laws are s / sum s; the steps below divide by the present token's entry to get s back. With
q(y -> x) = r [y = x] + (1 - r) / V, r = alpha_t / alpha_s, uniform noise from s to t:

- Tweedie (analytic): p(x_s = y) = (s(y) / r + (1 - 1/r) / V sum_v s(v)) q(y -> x_t), exact where one position moves;
- Euler: [y = x_t] + h Q(y), Q(y) = s(y) / V for y != x_t and minus their sum at x_t, h = (t - s) sigma'(t) with
  sigma = -log alpha. First order.
"""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.discrete.categorical import inverse_cdf
from diffsample.discrete.draws import Categorical
from diffsample.discrete.gridded import rates
from diffsample.discrete.model import MaskedModel
from diffsample.discrete.proposals import as_leaves
from diffsample.discrete.schedules import Schedule
from diffsample.discrete.uniform import UniformAncestral

PyTree: TypeAlias = Any


def tweedie_step(law: Array, x: Array, alpha_t: Array, alpha_s: Array) -> Array:
    """SEDD's analytic step [B, L, V] from scores as laws s / sum s.

    With exact scores it is the posterior of each token given the other noisy ones. Negative entries, which inexact
    scores may have, count as zero.

    >>> tweedie_step(jnp.array([[[0.5, 0.5]]]), jnp.array([[0]]), jnp.float32(0.5), jnp.float32(1.0)).tolist()
    [[[0.75, 0.25]]]
    """
    score, here = _score(law, x)
    vocab, stay = law.shape[-1], alpha_t / jnp.where(alpha_s > 0, alpha_s, 1.0)
    # times r, so that alpha_t = 0 divides by nothing
    back = score - (1 - stay) / vocab * jnp.sum(score, axis=-1, keepdims=True)
    return _normal(jnp.maximum(back, 0.0) * (stay * here + (1 - stay) / vocab))


def euler_step(law: Array, x: Array, alpha_t: Array, alpha_s: Array, size: Array) -> Array:
    """SEDD's Euler step [B, L, V] of size h from scores as laws s / sum s, and the analytic step where alpha_s is 1.

    >>> half = jnp.float32(0.5)
    >>> euler_step(jnp.array([[[0.5, 0.5]]]), jnp.array([[0]]), half, half, half).tolist()
    [[[0.75, 0.25]]]
    """
    score, here = _score(law, x)
    rate = jnp.where(here > 0, 0.0, score / law.shape[-1])
    stay = 1 - size * jnp.sum(rate, axis=-1, keepdims=True)
    euler = _normal(jnp.maximum(here * stay + size * rate, 0.0))
    return jnp.where(alpha_s < 1, euler, tweedie_step(law, x, alpha_t, alpha_s))


def uniform_tweedie(
    model: MaskedModel, schedule: Schedule, times: Any, *, categorical: Categorical = inverse_cdf
) -> UniformAncestral:
    """SEDD's analytic sampler for uniform noise: Tweedie's step of every token, positions drawn independently.

    First order in the steps, exact where one position remains to be drawn. One call a step.

    Args:
        model: log-scores as logits, its mask never occurs (mask_id = vocab); its time is that of 1 - alpha.
        schedule: alpha(t), with alpha > 0 at the first time: without a signal a score says nothing.
        times: [N + 1] falling noise times; the last step ends at clean tokens.
        categorical: how tokens are drawn.

    Raises:
        ValueError: times that do not fall; a schedule without a signal at the first time.

    Reference: Lou et al. 2024, arXiv 2310.16834, theorem 4.2.

    >>> import diffsample as ds
    >>> from diffsample.discrete import LogLinear, from_logits
    >>> model = from_logits(lambda p, x, cond: jnp.zeros((*x.shape, 3)), (), vocab=3, mask_id=3)
    >>> ds.sample(jax.random.key(0), uniform_tweedie(model, LogLinear(), [1.0, 0.5, 0.0]), (2, 4)).calls.tolist()
    [2, 2]
    """
    alpha, _ = _signal(schedule, times)
    return _sampler(model, tweedie_step, alpha, (), categorical)


def uniform_euler(
    model: MaskedModel, schedule: Schedule, times: Any, *, categorical: Categorical = inverse_cdf
) -> UniformAncestral:
    """SEDD's Euler sampler for uniform noise: Euler steps of the reverse rates, then one analytic step to clean tokens.

    Args, raises: as for `uniform_tweedie`.

    Reference: Lou et al. 2024, arXiv 2310.16834, section 4 and released code.

    >>> from diffsample.discrete import LogLinear, from_logits
    >>> model = from_logits(lambda p, x, cond: jnp.zeros((*x.shape, 3)), (), vocab=3, mask_id=3)
    >>> uniform_euler(model, LogLinear(), [1.0, 0.5, 0.0]).nfe
    2
    """
    alpha, slope = _signal(schedule, times)
    size = np.diff(np.asarray(times, np.float64)) * slope / alpha[:-1]
    return _sampler(model, euler_step, alpha, (np.append(0.0, size),), categorical)


def _signal(schedule: Schedule, times: Any) -> tuple[np.ndarray, np.ndarray]:
    """(alpha [N + 1], one at the end; its slope [N])."""
    t, slope = rates(schedule, times)
    alpha = np.asarray(schedule.alpha(t), np.float64).copy()
    if alpha[0] <= 0:
        raise ValueError(f"alpha({t[0]:g}) = {alpha[0]:g}: without a signal a score says nothing; start later")
    alpha[-1] = 1.0
    return alpha, slope


def _sampler(
    model: MaskedModel, step: Any, alpha: np.ndarray, more: tuple[np.ndarray, ...], categorical: Categorical
) -> UniformAncestral:
    """Rows (alpha_t, alpha_s, ...), the first of which only calls."""
    rows = (np.append(alpha[0], alpha[:-1]), alpha, *more)
    numbers = tuple(jnp.asarray(row, float) for row in rows)
    return UniformAncestral(model, as_leaves(step), numbers, jnp.asarray(1 - alpha, float), categorical)


def _score(law: Array, x: Array) -> tuple[Array, Array]:
    """(s relative to the present token, its one-hot), [B, L, V]."""
    here = jax.nn.one_hot(x, law.shape[-1], dtype=law.dtype)
    own = jnp.sum(law * here, axis=-1, keepdims=True)
    return law / jnp.maximum(own, jnp.finfo(law.dtype).tiny), here


def _normal(p: Array) -> Array:
    return p / jnp.sum(p, axis=-1, keepdims=True)
