"""Exponents that rise while the noise falls: targets in which no mode is starved on the way.

With fixed exponents of sum B > 1 the path of targets is q_u^B, u the noise. Where modes have just begun to part, dense
groups of them hold nearly everything: n modes within reach of each other have n times the density of a lone one, so
about n^B times its mass under q_u^B, against n times when the noise is gone. Weights have to give back the difference,
and a lone mode is made from the few particles that were left in it: no resampler and no move brings back the others.

Exponents of sum 1 leave every mode its share of the data at every level, with weights that hardly vary. They are raised
where the modes have parted: what the weights then say is in each mode by itself, and small.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.process import Level
from diffsample.struct import pytree
from diffsample.tableau import is_concrete


@pytree
class Rising:
    """Exponents from `first` to `last` as sigma / alpha falls from `high` to `low`; see `rising`."""

    first: Any
    last: Any
    high: Any
    low: Any

    def __call__(self, level: Level) -> Array:
        first, last, high, low = (jnp.asarray(v, jnp.result_type(float)) for v in vars(self).values())
        noise = jnp.clip(jnp.asarray(level.sigma / level.alpha, high.dtype), low, high)
        return first + (last - first) * (jnp.log(high / noise) / jnp.log(high / low))


def rising(last: Any, *, high: Any, low: Any, first: Any = None) -> Rising:
    """Exponents of `annealed` or `product` that are `first` above a noise level and `last` below another.

    Between them they are linear in log(sigma / alpha). Use it where data have several modes: with fixed exponents lone
    modes come out with few ancestors (see the module), with these each has its own. The weights need log-densities of
    the experts, which `corrector` carries along target-score moves (noise in the weights of the order of the step), or
    takes as log_density.

    Args:
        last: number for `annealed`, [E] for `product`: the exponents of the law that is sampled. A leaf, as all are.
        high: sigma / alpha at which the rise begins: where modes have parted, about their width.
        low: where it ends, below high and not below the last level that the network is called at.
        first: exponents before, shaped as last; None: last divided by its sum, so that they sum to 1 (1 for
            `annealed`). For guidance [1, 0] begins without it.

    Raises:
        ValueError: low or high not positive, or low not below high; first of another shape; exponents of sum 0 or less.

    >>> import diffsample as ds
    >>> cooling = rising(3.0, high=2.0, low=0.5)
    >>> [round(float(cooling(ds.Level(None, 1.0, sigma))), 3) for sigma in (80.0, 1.0, 0.5, 0.0)]
    [1.0, 2.0, 3.0, 3.0]
    """
    last = _numbers(last)
    if first is None:
        if is_concrete(last) and not last.sum() > 0:
            raise ValueError(f"last={last} sums to {last.sum():g}; a product is normalisable at high noise only if its "
                             f"exponents have a positive sum")  # fmt: skip
        first = last / last.sum()
    first = _numbers(first)
    if first.shape != last.shape:
        raise ValueError(f"first has shape {first.shape} and last {last.shape}: one exponent an expert in both")
    if is_concrete((high, low)) and not 0 < low < high:
        raise ValueError(f"exponents rise from sigma / alpha = high={high} down to low={low}: needs 0 < low < high")
    return Rising(first, last, high, low)


def _numbers(value: Any) -> Any:
    return value if isinstance(value, Array) else np.asarray(value, np.float64)
