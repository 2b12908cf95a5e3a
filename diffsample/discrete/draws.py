"""Where randomness comes from: every random choice of a decoder is one of six questions, asked of a `Draws`.

`Keyed` answers from keys, one a sequence. `diffsample.exact.output_law` answers with every possible outcome instead and
so computes the law of the same decoder, of the same code, without Monte Carlo. "When" and "which token" ask different
streams: `draws.at(WHEN)`, `draws.at(WHAT)`.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.discrete.categorical import exponential, gumbel, inverse_cdf
from diffsample.sampler import fold, sample_keys
from diffsample.struct import pytree, static

Categorical: TypeAlias = Callable[[Array, Array], Array]

CERTAIN = 40.0  # a hazard that no exponential draw survives

WHEN, WHAT, FIX, CHECK = 0, 1, 2, 3  # streams: positions, tokens, corrections, verification


class Draws(Protocol):
    """The random choices that a decoder may ask for; each `at` is asked once."""

    def at(self, stream: Any) -> "Draws":
        """An independent source."""
        ...

    def tokens(self, log_p: Array, valid: Array) -> Array:
        """Independent tokens int32 [B, k] from log-probabilities [B, k, V]; anything where not valid [B, k]."""
        ...

    def coins(self, p: Array) -> Array:
        """Independent coins, bool like p [B, L]."""
        ...

    def ranks(self, log_w: Array) -> Array:
        """A random order without replacement: the rank of each position, int32 [B, L].

        The first is drawn with probabilities w / sum w, the next among the rest, and so on (Plackett-Luce); equal
        weights give a uniformly random order. Positions of weight zero come last, rank L.
        """
        ...

    def cells(self, edges: Array, valid: Array) -> Array:
        """Cells int32 [B, L] of independent uniforms: cell i is edges[i + 1] <= u < edges[i], edges from 1 to 0."""
        ...

    def clocks(self, count: Array, length: int) -> Array:
        """Falling order statistics of count [B] uniforms, float32 [B, length], zeros after them."""
        ...

    def waits(self, hazard: Array, since: Array, valid: Array) -> Array:
        """The first of n independent coins, from number `since` on, that falls; n if none does. int32 [B, L].

        hazard [n + 1] rises from 0: coin i falls with probability 1 - exp(hazard[i] - hazard[i + 1]), surely where the
        difference is `CERTAIN`.
        """
        ...


@pytree
class Keyed(Draws):
    """Draws from keys [B]: those of sequence i come from keys[i] alone.

    >>> draws = Keyed(jax.random.split(jax.random.key(0), 2))
    >>> draws.at(WHEN).coins(jnp.array([[0.0, 1.0], [1.0, 0.0]])).tolist()
    [[False, True], [True, False]]
    """

    keys: Array
    categorical: Categorical = static(default=inverse_cdf)

    def at(self, stream: Any) -> "Keyed":
        return Keyed(fold(self.keys, stream), self.categorical)

    def tokens(self, log_p: Array, valid: Array) -> Array:
        return self.categorical(self.keys, log_p)

    def coins(self, p: Array) -> Array:
        return self._uniform(p.shape[1:], p.dtype) < p

    def ranks(self, log_w: Array) -> Array:
        race = jnp.where(log_w > -jnp.inf, log_w + gumbel(self.keys, log_w.shape, log_w.dtype), -jnp.inf)
        rank = jnp.argsort(jnp.argsort(-race, axis=-1), axis=-1)
        return jnp.where(log_w > -jnp.inf, rank, log_w.shape[1]).astype(jnp.int32)

    def cells(self, edges: Array, valid: Array) -> Array:
        u = self._uniform(valid.shape[1:], edges.dtype)
        inside = jnp.searchsorted(-edges[1:-1], -u, side="left")
        return inside.astype(jnp.int32)

    def clocks(self, count: Array, length: int) -> Array:
        u = self._uniform((length,), jnp.float32)
        alive = jnp.arange(length)[None, :] < count[:, None]
        return -jnp.sort(jnp.where(alive, -u, 0.0), axis=-1)

    def waits(self, hazard: Array, since: Array, valid: Array) -> Array:
        since = jnp.minimum(since, hazard.shape[0] - 1)
        goal = hazard[since] + exponential(self.keys, since.shape, hazard.dtype)
        return jnp.searchsorted(hazard, goal, side="right").astype(jnp.int32) - 1

    def _uniform(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return jax.vmap(lambda key: jax.random.uniform(key, shape, dtype))(self.keys)


def as_draws(keys: Any, categorical: Categorical) -> Draws:
    """Draws from keys, or the draws themselves."""
    return Keyed(keys, categorical) if isinstance(keys, jax.Array) else keys


def draws_of(key: Array | Draws, batch: int) -> Draws:
    """Draws of a batch from one key, row i from fold_in(key, i); or the draws themselves."""
    return Keyed(sample_keys(key, 0, batch)) if isinstance(key, jax.Array) else key
