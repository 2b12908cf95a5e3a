"""The Ising model on a small periodic lattice under random flips: every noised law and concrete score by enumeration.

p(x) is proportional to exp(coupling sum over bonds s_i s_j), spins s = 2 x - 1 of tokens x in {0, 1}. Each spin flips
at rate 1, so that at time t it differs from its clean value with probability (1 - exp(-2 t)) / 2. All 2^spins states
are held.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.struct import pytree, static


@pytree
class Ising:
    """A lattice model, made by `ising`; state number n has token (n >> l) & 1 at position l."""

    log_p: Array  # [2^spins]
    energy: Array  # [2^spins], minus the sum of s_i s_j over bonds
    magnetisation: Array  # [2^spins], mean spin
    spins: int = static()

    def number(self, x: Array) -> Array:
        """The number of each state, int32 [B] from x [B, spins]."""
        return jnp.sum(x.astype(jnp.int32) << jnp.arange(self.spins, dtype=jnp.int32)[None], axis=1)

    def log_noised(self, t: Any) -> Array:
        """log q_t of all states, [2^spins].

        >>> bool(jnp.ptp(ising(2, 0.5).log_noised(20.0)) < 1e-5)
        True
        """
        low = self.spins // 2
        law = jnp.exp(self.log_p).reshape(2 ** (self.spins - low), 2**low)
        left, right = (_flips(size, t, law.dtype) for size in (self.spins - low, low))
        return jnp.log(jnp.linalg.multi_dot([left, law, right], precision="highest")).reshape(-1)

    def log_ratios(self, x: Array, t: Any) -> Array:
        """log q_t(x with v at l) - log q_t(x), the concrete scores [B, spins, 2]."""
        log_q, here = self.log_noised(t), self.number(x)
        flips = here[:, None] ^ (1 << jnp.arange(self.spins, dtype=jnp.int32))[None]
        change = log_q[flips] - log_q[here][:, None]
        return jnp.where(x[..., None] == jnp.arange(2)[None, None], 0.0, change[..., None])


def ising(side: int, coupling: float) -> Ising:
    """The ferromagnetic Ising model on a periodic square lattice; critical coupling 0.4407 on the infinite one.

    Args:
        side: spins of a row, 2 to 4. coupling: inverse temperature times the interaction.

    Raises:
        ValueError: a lattice too large to enumerate.

    Reference: Onsager 1944, Phys. Rev. 65 (the critical coupling).

    >>> float(jnp.exp(ising(2, 0.3).log_p).sum().round(5))
    1.0
    """
    if not 2 <= side <= 4:
        raise ValueError(f"side={side} must be 2 to 4: all 2^(side^2) states are enumerated")
    spins = side * side
    states = 2.0 * ((np.arange(2**spins)[:, None] >> np.arange(spins)) & 1) - 1
    grid = states.reshape(-1, side, side)
    bonds = np.sum([(grid * np.roll(grid, 1, axis)).sum(axis=(1, 2)) for axis in (1, 2)], axis=0)
    log_p = coupling * bonds
    log_p = log_p - log_p.max() - np.log(np.exp(log_p - log_p.max()).sum())
    return Ising(jnp.asarray(log_p), jnp.asarray(-bonds), jnp.asarray(states.mean(axis=1)), spins)


def _flips(spins: int, t: Any, dtype: Any) -> Array:
    """Probability that t takes each state of a few spins to each other, [2^spins, 2^spins]."""
    number = np.arange(2**spins)
    apart = np.bitwise_count((number[:, None] ^ number[None]).astype(np.uint32))
    flipped = -0.5 * jnp.expm1(-2.0 * jnp.asarray(t, dtype))
    each = flipped ** np.arange(spins + 1) * (1 - flipped) ** (spins - np.arange(spins + 1))
    return each.astype(dtype)[apart]
