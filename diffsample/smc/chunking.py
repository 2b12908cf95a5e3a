"""A denoiser called in pieces, for clouds whose activations do not fit in memory at once."""

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.denoiser import Denoiser, Point, Prediction, PyTree
from diffsample.struct import pytree, static
from diffsample.wrapping import Wrapper


@pytree
class InChunks(Wrapper):
    """A denoiser called on `size` samples at a time; see `in_chunks`."""

    denoiser: Denoiser
    size: int = static()

    def __call__(self, x: Array, at: Point, cond: PyTree, state: PyTree) -> tuple[Prediction, PyTree]:
        leaves, structure = jax.tree.flatten((x, at, cond, state))
        own = [jnp.ndim(leaf) > 0 for leaf in leaves]  # scalars of the point are shared

        def call(mine: list[Array]) -> tuple[Prediction, PyTree]:
            rest = iter(mine)
            full = [next(rest) if cut else leaf for leaf, cut in zip(leaves, own, strict=True)]
            return self.denoiser(*jax.tree.unflatten(structure, full))

        mine = [leaf for leaf, cut in zip(leaves, own, strict=True) if cut]
        whole, parts = len(x) // self.size * self.size, []
        if whole:
            out = jax.lax.map(call, [leaf[:whole].reshape(-1, self.size, *leaf.shape[1:]) for leaf in mine])
            parts.append(jax.tree.map(lambda leaf: leaf.reshape(whole, *leaf.shape[2:]), out))
        if whole < len(x):
            parts.append(call([leaf[whole:] for leaf in mine]))
        return jax.tree.map(lambda *pieces: jnp.concatenate(pieces), *parts)


def in_chunks(denoiser: Denoiser, size: int) -> InChunks:
    """The same denoiser, called on `size` samples at a time, one after another inside the compiled program.

    For particles whose network activations do not fit in memory together; the samples are the same. A rest that is
    no whole chunk is a call of its own, which compiles the network twice.

    Args:
        denoiser: what is called; put guidance inside.
        size: samples in a call, at least 1.

    Raises:
        ValueError: size below 1.

    >>> import diffsample as ds
    >>> in_chunks(ds.exact.Gaussian(0.0, 1.0), 32).size
    32
    """
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"in_chunks(size={size!r}) must be a whole number of at least 1")
    return InChunks(denoiser, size)
