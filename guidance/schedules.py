"""Hyperparameters of guidance rules: a number, an array [B] with one value a sample, or a schedule of the noise level.

A schedule is a callable of the `Level` of a call whose numbers are leaves, so that a change of them compiles nothing:
the two here, over rho = sigma / alpha, or `jax.tree_util.Partial(function, numbers)`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial
from numpy.typing import ArrayLike

from diffsample.denoiser import expand
from diffsample.process import Level
from diffsample.struct import pytree
from diffsample.tableau import is_concrete

ONE_A_SAMPLE = (
    "inside the branches of another rule only with batched=False there; not with chunk= or in_chunks, nor in adaptive "
    "solvers"
)


def value_at(hyper: Any, level: Level, x: Array) -> Array:
    """A hyperparameter at a level, in x's dtype and shaped to broadcast against x [B, ...].

    Raises:
        ValueError: neither one number nor one a sample.

    >>> value_at(lambda level: 2 * level.sigma, Level(None, 1.0, 3.0), jnp.ones((2, 5))).tolist()
    6.0
    """
    value = jnp.asarray(hyper(level) if callable(hyper) else hyper)
    if jnp.shape(value) not in ((), x.shape[:1]):
        raise ValueError(
            f"a hyperparameter has shape {jnp.shape(value)} in a batch of {x.shape[0]}: it may be a number, or one a "
            f"sample [B] ({ONE_A_SAMPLE})"
        )
    return expand(value, x)


def scheduled(hyper: Any) -> Any:
    """A plain function as a pytree, so that it can be a field of a rule; anything else unchanged.

    A function made anew each time compiles anew each time.
    """
    return Partial(hyper) if callable(hyper) and jax.tree_util.all_leaves([hyper]) else hyper


def known(*hypers: Any) -> bool:
    """Whether all are numbers now, so that host checks can read them; a schedule or a traced number is not."""
    return not any(map(callable, hypers)) and is_concrete(hypers)


@pytree
class PiecewiseLinear:
    """Linear in log(sigma / alpha) between knots; see `piecewise_linear`."""

    rho: Any  # [K]
    values: Any  # [K]

    def __call__(self, level: Level) -> Array:
        log_rho = jnp.log(jnp.asarray(level.sigma)) - jnp.log(jnp.asarray(level.alpha))
        return jnp.interp(log_rho, jnp.log(jnp.asarray(self.rho)), jnp.asarray(self.values))


@pytree
class PiecewiseConstant:
    """Constant on intervals of sigma / alpha; see `piecewise_constant`."""

    edges: Any  # [K]
    values: Any  # [K + 1]

    def __call__(self, level: Level) -> Array:
        rho = jnp.asarray(level.sigma) / jnp.asarray(level.alpha)
        return jnp.asarray(self.values)[jnp.searchsorted(jnp.asarray(self.edges), rho, side="left")]


def piecewise_linear(rho: ArrayLike, values: ArrayLike) -> PiecewiseLinear:
    """A schedule linear in log(sigma / alpha) between knots, constant beyond the first and the last.

    Args:
        rho: [K] knots, noise over signal, positive and rising.
        values: [K] at the knots.

    Raises:
        ValueError: knots that do not rise, or another number of values.

    >>> schedule = piecewise_linear([0.1, 10.0], [1.0, 5.0])
    >>> [round(float(schedule(Level(None, 1.0, sigma))), 4) for sigma in (0.01, 1.0, 80.0)]
    [1.0, 3.0, 5.0]
    """
    _check("piecewise_linear", rho, values, len(np.shape(rho)) and np.shape(rho)[0])
    return PiecewiseLinear(rho, values) if not is_concrete((rho, values)) else PiecewiseLinear(*_floats(rho, values))


def piecewise_constant(edges: ArrayLike, values: ArrayLike) -> PiecewiseConstant:
    """A schedule constant on intervals: values[i] where edges[i - 1] < sigma / alpha <= edges[i].

    Args:
        edges: [K] noise over signal, positive and rising.
        values: [K + 1], from the cleanest interval to the noisiest.

    Raises:
        ValueError: edges that do not rise, or another number of values.

    >>> schedule = piecewise_constant([0.2, 1.6], [1.0, 2.0, 1.0])
    >>> [float(schedule(Level(None, 1.0, sigma))) for sigma in (0.2, 1.0, 1.7)]
    [1.0, 2.0, 1.0]
    """
    _check("piecewise_constant", edges, values, len(np.shape(edges)) and np.shape(edges)[0] + 1)
    concrete = is_concrete((edges, values))
    return PiecewiseConstant(*_floats(edges, values)) if concrete else PiecewiseConstant(edges, values)


def _floats(*lists: Any) -> tuple[Array, ...]:
    return tuple(jnp.asarray(item, float) for item in lists)


def _check(name: str, rho: Any, values: Any, expected: int) -> None:
    if np.ndim(rho) != 1 or np.shape(values) != (expected,):
        raise ValueError(f"{name} needs a list of noise levels and {expected} values, got shapes "
                         f"{np.shape(rho)} and {np.shape(values)}")  # fmt: skip
    if is_concrete(rho) and not np.all(np.diff(np.asarray(rho, np.float64), prepend=0.0) > 0):
        raise ValueError(f"{name} needs noise levels that are positive and rise, got {rho}")
