"""Slots: the few positions that an update touches, packed so that logits exist for them alone."""

import jax
import jax.numpy as jnp
from jax import Array


def pack(chosen: Array, k: int, *, in_place: bool = True) -> tuple[Array, Array]:
    """The first k chosen positions of each row, int32 [B, k], and which slots hold one.

    Where k is the length, every position is the slot of its own, unless not `in_place`: then the chosen come first.
    """
    length = chosen.shape[1]
    if k == length:
        places = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), chosen.shape)
        if in_place:
            return places, chosen
        order = jnp.argsort(~chosen, axis=1, stable=True).astype(jnp.int32)
        return order, jnp.take_along_axis(chosen, order, axis=1)
    seen = jnp.cumsum(chosen, axis=1, dtype=jnp.int32)
    found = jnp.sum(seen[:, None, :] <= jnp.arange(k, dtype=jnp.int32)[None, :, None], axis=-1, dtype=jnp.int32)
    return jnp.minimum(found, length - 1), found < length


def write(x: Array, positions: Array, valid: Array, tokens: Array) -> Array:
    """x with tokens at the valid positions; the other slots write nowhere.

    Row by row: one scatter over all rows would be gathered onto every device of a batch that is spread over several.
    """
    nowhere = jnp.where(valid, positions, x.shape[1])
    return jax.vmap(lambda row, at, new: row.at[at].set(new, mode="drop"))(x, nowhere, tokens.astype(x.dtype))


def of_token(log_p: Array, tokens: Array) -> Array:
    """The entries [...] of log-laws [..., V] at tokens [...]."""
    return jnp.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0]


def at_most(chosen: Array, most: int, ranks: Array) -> Array:
    """The chosen positions of lowest rank, `most` of each row at most; ranks [B, L] are distinct where chosen."""
    order = jnp.where(chosen, ranks, jnp.iinfo(jnp.int32).max)
    return chosen & (order <= -jax.lax.top_k(-order, most)[0][:, -1:])
