"""Clamps of a row's weights: what published code does against heavy tails. All are BIASED, and none is used unasked.

A clamp is a function log G [K] of one group -> log G [K], for `feynman_kac(..., clamp=...)`. Weights 0 stay 0 whatever
it says, and the diagnostics count what it moved. `weight_window` drops the weights of whole rows.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.struct import pytree
from diffsample.tableau import is_concrete


@pytree
class AboutMean:
    """Within a bound of the group's mean; see `about_mean`."""

    bound: Any

    def __call__(self, log_g: Array) -> Array:
        lives = log_g > -jnp.inf
        mean = jnp.mean(log_g, where=lives)
        return jnp.clip(log_g, mean - self.bound, mean + self.bound)


@pytree
class Within:
    """Within a bound of 0; see `within`."""

    bound: Any

    def __call__(self, log_g: Array) -> Array:
        return jnp.clip(log_g, -self.bound, self.bound)


@pytree
class BelowQuantile:
    """Not above a quantile of the group; see `below_quantile`."""

    share: Any

    def __call__(self, log_g: Array) -> Array:
        living = jnp.where(log_g > -jnp.inf, log_g, jnp.nan)
        return jnp.minimum(log_g, jnp.nanquantile(living, self.share, method="lower"))


def about_mean(bound: Any) -> AboutMean:
    """Keep log G within `bound` of the group's mean: the released EDM2 code of FKC has 1 (Euler) and 2 (Heun, churn).

    Args:
        bound: positive; a leaf.

    Raises:
        ValueError: a bound that is not positive.

    >>> import jax.numpy as jnp
    >>> about_mean(2.0)(jnp.array([-5.0, 0.0, 5.0])).tolist()
    [-2.0, 0.0, 2.0]
    """
    return AboutMean(_positive("about_mean", bound))


def within(bound: Any) -> Within:
    """Keep log G within `bound` of 0.

    Args:
        bound: positive; a leaf.

    Raises:
        ValueError: a bound that is not positive.

    >>> import jax.numpy as jnp
    >>> within(15.0)(jnp.array([-50.0, 3.0])).tolist()
    [-15.0, 3.0]
    """
    return Within(_positive("within", bound))


def below_quantile(share: Any = 0.9) -> BelowQuantile:
    """Keep log G at most at a quantile of the group: the released PITA code has 0.9.

    Args:
        share: of the particles, between 0 and 1; a leaf.

    Raises:
        ValueError: a share outside (0, 1].

    >>> import jax.numpy as jnp
    >>> below_quantile(0.5)(jnp.arange(5.0)).tolist()
    [0.0, 1.0, 2.0, 2.0, 2.0]
    """
    if is_concrete(share) and not np.all((0 < np.asarray(share)) & (np.asarray(share) <= 1)):
        raise ValueError(f"below_quantile(share={share}) must lie in (0, 1], a share of the particles")
    return BelowQuantile(share)


def _positive(name: str, bound: Any) -> Any:
    if is_concrete(bound) and not np.all(np.asarray(bound) > 0):
        raise ValueError(f"{name}(bound={bound}) must be positive, in units of log G")
    return bound
