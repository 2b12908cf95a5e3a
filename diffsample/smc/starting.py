"""A sampler that starts from another law than its own prior: what annealed, multiplied and conditioned targets need."""

from collections.abc import Callable
from typing import Any

from jax import Array

from diffsample.smc.functions import as_pytree
from diffsample.struct import pytree
from diffsample.wrapping import SameMoves


@pytree
class Started(SameMoves):
    """A sampler with its first states from `law`; all else is the sampler's. See `started`."""

    sampler: Any
    law: Any  # (keys [B], shape, dtype) -> x [B, ...]

    @property
    def kernel(self) -> Any:
        """The sampler's."""
        return self.sampler.kernel

    def prior(self, keys: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        """Draws of the law."""
        return self.law(keys, shape, dtype)


def started(sampler: Any, law: Callable[[Array, tuple[int, ...], Any], Array]) -> Started:
    """The sampler, started from a law of one's own instead of its prior.

    Args:
        sampler: for example `solvers.linear(denoiser, tableau)`.
        law: function (keys [B], shape, dtype) -> states [B, ...] at the first level, row i from keys[i] alone; a pytree
            keeps its numbers as leaves.

    >>> import jax, jax.numpy as jnp, diffsample as ds
    >>> process = ds.VariancePreserving()
    >>> sampler = ds.solvers.linear(ds.exact.PointMass(2.0), ds.solvers.ddim(process, [1.0, 0.0]))
    >>> ones = lambda keys, shape, dtype: jnp.ones(shape, dtype)
    >>> ds.sample(jax.random.key(0), started(sampler, ones), (2,)).tolist()
    [2.0, 2.0]
    """
    if not callable(law):
        raise TypeError(f"law must be a function (keys, shape, dtype) -> x, got {law!r}")
    return Started(sampler, as_pytree(law))
