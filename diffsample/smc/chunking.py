"""A denoiser called in pieces, for clouds whose activations do not fit in memory at once."""

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.arguments import positive
from diffsample.denoiser import Denoiser, Point, Prediction, PyTree
from diffsample.smc.batches import follows_batch
from diffsample.struct import pytree, static
from diffsample.wrapping import Wrapper


@pytree
class InChunks(Wrapper):
    """A denoiser called on `size` samples at a time; see `in_chunks`."""

    denoiser: Denoiser
    size: int = static()

    def __call__(self, x: Array, at: Point, cond: PyTree, state: PyTree) -> tuple[Prediction, PyTree]:
        if len(x) <= self.size:
            return self.denoiser(x, at, cond, state)
        leaves, structure = jax.tree.flatten((x, at, cond, state))
        memory = follows_batch(self.denoiser.init, x)
        kept = jax.tree.leaves(memory)
        own = [jnp.ndim(leaf) > 0 for leaf in leaves[: len(leaves) - len(kept)]] + kept  # the rest is shared

        def call(mine: list[Array]) -> tuple[Prediction, PyTree]:
            rest = iter(mine)
            full = [next(rest) if cut else leaf for leaf, cut in zip(leaves, own, strict=True)]
            return self.denoiser(*jax.tree.unflatten(structure, full))

        def join(own: bool, pieces: Array) -> Array:
            return pieces.reshape(whole, *pieces.shape[2:]) if own else pieces[-1]

        mine = [leaf for leaf, cut in zip(leaves, own, strict=True) if cut]
        whole, marks = len(x) // self.size * self.size, (Prediction._make((True, True)), memory)
        out = jax.lax.map(call, [leaf[:whole].reshape(-1, self.size, *leaf.shape[1:]) for leaf in mine])
        parts = [jax.tree.map(join, marks, out)]
        if whole < len(x):
            parts.append(call([leaf[whole:] for leaf in mine]))
        return jax.tree.map(lambda own, *pieces: jnp.concatenate(pieces) if own else pieces[-1], marks, *parts)


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
    return InChunks(denoiser, positive("size", size))
