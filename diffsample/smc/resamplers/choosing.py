"""Resampling that tries each particle's own slot first: killing, rejection, Metropolis.

Most particles stay where they are, so little is moved, within a device or between devices.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.smc.resamplers.resampling import cumulative, inverse_cdf, uniform
from diffsample.struct import pytree
from diffsample.tableau import is_concrete


def killing(key: Array, log_w: Array) -> Array:
    """Killing: particle i stays with probability W_i / max W, else its slot takes a draw of Cat(W).

    Unbiased; the variance is a little below that of `multinomial`.

    Args, Returns: as for `multinomial`, slot by slot.

    Reference: Del Moral 2004, Feynman-Kac Formulae, section 2.5.3.

    >>> killing(jax.random.key(0), jnp.zeros(4)).tolist()
    [0, 1, 2, 3]
    """
    stay, draw = jax.random.split(key)
    own = jnp.arange(len(log_w), dtype=jnp.int32)
    kept = jnp.log(uniform(stay, log_w)) < log_w - jnp.max(log_w)
    return jnp.where(kept, own, inverse_cdf(cumulative(log_w), uniform(draw, log_w)))


def rejection(key: Array, log_w: Array) -> Array:
    """Rejection: slot i tries i, then uniform j, until one is taken, with probability W_j / max W.

    Exact without a cumulative sum; K max W trials a slot on average, as many as the unluckiest slot needs in lockstep.

    Args, Returns: as for `multinomial`, slot by slot.

    Reference: Murray, Lee, Jacob 2016, arXiv 1301.4019, code 3.

    >>> rejection(jax.random.key(0), jnp.array([-jnp.inf, 0.0, -jnp.inf])).tolist()
    [1, 1, 1]
    """
    largest = jnp.max(log_w)
    ratio = jnp.where(largest > -jnp.inf, log_w - largest, 0.0)  # without any weight all are taken; it would not end

    def searching(carry: tuple[Array, Array, Array]) -> Array:
        return ~carry[2].all()

    def again(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        trial, chosen, done = carry
        propose, accept = jax.random.split(jax.random.fold_in(key, trial))
        fresh = jax.random.randint(propose, log_w.shape, 0, len(log_w), jnp.int32)
        chosen = jnp.where(done | (trial == 0), chosen, fresh)
        return trial + 1, chosen, done | (jnp.log(uniform(accept, log_w)) < ratio[chosen])

    start = (jnp.uint32(0), jnp.arange(len(log_w), dtype=jnp.int32), jnp.zeros(log_w.shape, bool))
    return jax.lax.while_loop(searching, again, start)[1]


@pytree
class Metropolis:
    """Independent Metropolis chains over the particles; see `metropolis`."""

    steps: Any

    def __call__(self, key: Array, log_w: Array) -> Array:
        def move(b: Array, chosen: Array) -> Array:
            propose, accept = jax.random.split(jax.random.fold_in(key, b))
            fresh = jax.random.randint(propose, log_w.shape, 0, len(log_w), jnp.int32)
            taken = jnp.log(uniform(accept, log_w)) + log_w[chosen] < log_w[fresh]
            return jnp.where(taken | (log_w[chosen] == -jnp.inf), fresh, chosen)

        return jax.lax.fori_loop(0, self.steps, move, jnp.arange(len(log_w), dtype=jnp.int32))


def metropolis(steps: Any) -> Metropolis:
    """Metropolis resampling: slot i runs a chain from i, uniform proposals j taken with probability min(1, W_j / W_a).

    No sum over the weights at all. Biased towards staying; `metropolis_steps` says how many steps make that small.

    Args:
        steps: B, length of the chains, at least 1; a leaf.

    Raises:
        ValueError: fewer than 1 step.

    Reference: Murray, Lee, Jacob 2016, arXiv 1301.4019, code 2.

    >>> metropolis(64)(jax.random.key(0), jnp.array([-jnp.inf, 0.0, -jnp.inf])).tolist()
    [1, 1, 1]
    """
    if is_concrete(steps) and np.any(np.asarray(steps) < 1):
        raise ValueError(f"metropolis(steps={steps}) must be at least 1")
    return Metropolis(steps)


def metropolis_steps(max_weight: float, particles: int, error: float = 0.01) -> int:
    """Steps after which the law of a slot is within `error` of Cat(W): log error / log(1 - 1 / (K max W)).

    Args:
        max_weight: largest normalised weight, 1 / K to 1.
        particles: K.
        error: bound on the total variation, 0 to 1.

    Reference: Murray, Lee, Jacob 2016, arXiv 1301.4019, section 3.1.

    >>> metropolis_steps(7.15 / 64, 64)
    31
    """
    ratio = particles * max_weight
    if not (1 - 1e-6 <= ratio <= particles * (1 + 1e-6) and 0 < error < 1):
        raise ValueError(f"metropolis_steps needs 1/K <= max_weight <= 1 and 0 < error < 1, got {max_weight}, {error}")
    return 1 if ratio <= 1 else int(np.ceil(np.log(error) / np.log1p(-1 / ratio)))
