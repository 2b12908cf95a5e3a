"""When to resample: functions of (log_w [K] of one group, row) -> bool, read before the row moves.

Whatever the policy says, `feynman_kac` resamples only before a row whose move draws noise: copies of a particle that
moved without noise would stay copies. Rows that the table leaves without noise put resampling off to the next that has
some; the weights are kept meanwhile, so nothing is lost.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.smc.functions import as_pytree
from diffsample.smc.weights import log_effective_size
from diffsample.struct import pytree
from diffsample.tableau import is_concrete

Policy = Callable[[Array, Array], Array]


def always(log_w: Array, row: Array) -> Array:
    """Resample before every row."""
    return jnp.ones((), bool)


def never(log_w: Array, row: Array) -> Array:
    """Do not resample: importance sampling of whole paths."""
    return jnp.zeros((), bool)


@pytree
class EffectiveSize:
    """ESS below a share of the particles; see `ess`."""

    threshold: Any = 0.5

    def __call__(self, log_w: Array, row: Array) -> Array:
        return log_effective_size(log_w) < jnp.log(jnp.asarray(self.threshold * log_w.shape[-1], log_w.dtype))


@pytree
class Every:
    """Rows whose number is a multiple of m; see `every`."""

    m: Any

    def __call__(self, log_w: Array, row: Array) -> Array:
        return row % self.m == 0


@pytree
class Window:
    """A policy in force on some rows only; see `window`."""

    low: Any
    high: Any
    policy: Any

    def __call__(self, log_w: Array, row: Array) -> Array:
        return (self.low <= row) & (row <= self.high) & self.policy(log_w, row)


def ess(threshold: Any = 0.5) -> EffectiveSize:
    """Resample where the effective sample size (sum w)^2 / sum w^2 falls below threshold * K.

    Args:
        threshold: share of the particles, 0 (never) to 1 (whenever weights differ); a leaf.

    Raises:
        ValueError: a threshold outside [0, 1].

    Reference: Kong, Liu, Wong 1994, JASA 89; Del Moral, Doucet, Jasra 2012, Bernoulli 18.

    >>> import jax.numpy as jnp
    >>> bool(ess(0.5)(jnp.array([0.0, -9.0, -9.0]), 1)), bool(ess(0.5)(jnp.zeros(3), 1))
    (True, False)
    """
    if is_concrete(threshold) and not np.all((0 <= np.asarray(threshold)) & (np.asarray(threshold) <= 1)):
        raise ValueError(f"ess(threshold={threshold}) must lie in [0, 1], a share of the particles")
    return EffectiveSize(threshold)


def every(m: Any) -> Every:
    """Resample before rows m, 2m, 3m, ...

    Args:
        m: rows between two resamplings, at least 1; a leaf.

    Raises:
        ValueError: m below 1, or no whole number.

    >>> import jax.numpy as jnp
    >>> [bool(every(3)(jnp.zeros(2), row)) for row in (2, 3)]
    [False, True]
    """
    if is_concrete(m) and not np.all((np.asarray(m) >= 1) & (np.asarray(m) % 1 == 0)):
        raise ValueError(f"every(m={m}) must be a whole number of rows, at least 1")
    return Every(m)


def window(low: Any, high: Any, policy: Policy) -> Window:
    """A policy that holds on rows low to high, both included; weights accumulate on all rows, so the law stays exact.

    Args:
        low, high: numbers of rows; leaves.
        policy: what decides inside.

    Raises:
        ValueError: an empty window.

    >>> import jax.numpy as jnp
    >>> [bool(window(2, 3, ess(1.0))(jnp.array([0.0, 1.0]), row)) for row in (1, 2, 3, 4)]
    [False, True, True, False]
    """
    if is_concrete((low, high)) and np.any(np.asarray(low) > np.asarray(high)):
        raise ValueError(f"window(low={low}, high={high}) holds no row")
    return Window(low, high, as_pytree(policy))
