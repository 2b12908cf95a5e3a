"""Which leaves of a state belong to a sample: those whose shape follows the batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffsample.denoiser import PyTree


def batch_shapes(init: Callable[..., PyTree], *arguments: Any) -> tuple[PyTree, PyTree]:
    """Shapes of the state of a batch, and of one twice as large.

    What takes numbers of this batch alone (a target, a measurement or a strength a sample) refuses another; there the
    leaves of as many rows as the batch has are taken for those that would double.

    Args:
        init: arguments -> state.
        arguments: pytrees whose leaves have the batch axis first, as arrays or shapes.
    """
    once = jax.eval_shape(init, *arguments)
    batch = jax.tree.leaves(arguments)[0].shape[:1]
    try:
        return once, jax.eval_shape(init, *jax.tree.map(_doubled, arguments))
    except (TypeError, ValueError):
        return once, jax.tree.map(lambda leaf: _doubled(leaf) if leaf.shape[:1] == batch else leaf, once)


def follows_batch(init: Callable[..., PyTree], *arguments: Any) -> PyTree:
    """Marks of the state's leaves, True where one belongs to a sample.

    Args: as for `batch_shapes`.

    >>> follows_batch(lambda x: (x, jnp.zeros(3)), jnp.ones((3, 2)))
    (True, False)
    """
    return jax.tree.map(lambda one, two: one.shape != two.shape, *batch_shapes(init, *arguments))


def refuse_keys(path: tuple, leaf: Any, what: str) -> None:
    """Raise where a leaf of a sample holds keys, whose copies would draw the same.

    Raises:
        ValueError: names the leaf, and what cannot be had.
    """
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        raise ValueError(f"state{jax.tree_util.keystr(path)} holds keys, so {what}: run without a Brownian path "
                         f"(linear(..., path=None)) and without speculative sampling")  # fmt: skip


def _doubled(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((2 * leaf.shape[0], *leaf.shape[1:]), leaf.dtype)
