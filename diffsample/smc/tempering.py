"""Adaptive steps: the largest increment of an exponent that leaves enough effective particles."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn import logsumexp

from diffsample.smc.weights import log_effective_size
from diffsample.tableau import is_concrete

BISECTIONS = 30  # the increment is found to 2^-30 of the largest


def log_conditional_effective_size(log_w: Array, log_g: Array) -> Array:
    """log CESS = log(K (sum W g)^2 / sum W g^2), the effective size of weights that are about to change by g.

    It does not depend on how unequal the weights are before, so it fits where nothing is resampled in between.

    Args:
        log_w: [K] present log-weights. log_g: [K] logarithms of what they are multiplied by.

    Reference: Zhou, Johansen, Aston 2016, arXiv 1303.3123, eq. 3.4.

    >>> import jax.numpy as jnp
    >>> float(jnp.exp(log_conditional_effective_size(jnp.array([0.0, -9.0]), jnp.ones(2))).round(3))
    2.0
    """
    log_w = jax.nn.log_softmax(log_w)
    return 2 * logsumexp(log_w + log_g) - logsumexp(log_w + 2 * log_g) + jnp.log(jnp.asarray(len(log_w), log_w.dtype))


def next_increment(
    log_w: Array, reward: Array, largest: Any, threshold: Any = 0.5, *, conditional: bool = False
) -> Array:
    """The largest delta in (0, largest] with ESS(log_w + delta reward) >= threshold K, by bisection.

    30 halvings, vmappable over groups; tempering that adapts to its particles has a biased log-normaliser (O(1/K)).

    Args:
        log_w: [K] present log-weights.
        reward: [K] what the exponent multiplies.
        largest: upper end, the exponent that is left; a leaf.
        threshold: share of the particles, in (0, 1); a leaf.
        conditional: use the conditional ESS, for weights that are carried on without resampling.

    Returns:
        delta, a scalar; 0 where even a tiny one would leave too few.

    Raises:
        ValueError: a threshold outside (0, 1).

    Reference: Jasra et al. 2011, Scand. J. Stat. 38; Zhou, Johansen, Aston 2016, arXiv 1303.3123, section 3.3.2.

    >>> import jax.numpy as jnp
    >>> float(next_increment(jnp.zeros(8), jnp.zeros(8), 0.25))
    0.25
    """
    if is_concrete(threshold) and not np.all((0 < np.asarray(threshold)) & (np.asarray(threshold) < 1)):
        raise ValueError(f"threshold={threshold} must lie in (0, 1), a share of the particles")
    limit = jnp.log(jnp.asarray(threshold * len(log_w), log_w.dtype))

    def fits(delta: Array) -> Array:
        if conditional:
            return log_conditional_effective_size(log_w, delta * reward) >= limit
        return log_effective_size(log_w + delta * reward) >= limit

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = 0.5 * (low + high)
        ok = fits(middle)
        return jnp.where(ok, middle, low), jnp.where(ok, high, middle)

    largest = jnp.asarray(largest, log_w.dtype)
    low, _ = jax.lax.fori_loop(0, BISECTIONS, halve, (jnp.zeros_like(largest), largest))
    return jnp.where(fits(largest), largest, low)
