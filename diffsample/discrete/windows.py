"""Sequences longer than the model: windows that slide, each starting from the end of the one before.

A window of L positions is decoded; its last L - stride tokens become the prompt of the next one, whose last `stride`
positions are masks; and so on. The model never sees more than L positions.
"""

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.discrete.decoder import Decoded
from diffsample.discrete.draws import Draws
from diffsample.discrete.masked_sampler import TokenSampler, first_bad, refuse_ids
from diffsample.sampler import fold
from diffsample.struct import pytree, static

PyTree: TypeAlias = Any

START = 2**31  # a stream of the row's key that no decoder asks


class Windowed(NamedTuple):
    """What the loop carries."""

    x: Array  # int32 [B, T], the whole sequence
    inner: PyTree  # the decoder's state on the newest window
    calls: Array  # int32 [B], of all windows
    fault: Array  # int32 [B], first position of T that went wrong, -1 if none

    def future(self) -> PyTree:
        """What decides the law of what follows."""
        return self.x, self.inner.future()


class WindowView(NamedTuple):
    """What observers may read after a row."""

    x: Array  # int32 [B, T]
    window: Any  # the decoder's own view
    fresh: Array
    cond: PyTree = None  # the run's condition, for potentials; recorders see None


@pytree
class SlidingWindows(TokenSampler):
    """See `sliding_windows`."""

    decoder: Any
    total: int = static()
    window: int = static()
    stride: int = static()

    @property
    def model(self) -> Any:
        """The decoder's."""
        return self.decoder.model

    @property
    def longest(self) -> int:
        """All windows together."""
        return self.total

    @property
    def count(self) -> int:
        """Number of windows."""
        return 1 + (self.total - self.window) // self.stride

    @property
    def steps(self) -> PyTree:
        """(where the window begins, whether it begins now, row of the decoder)."""
        rows = self.decoder.steps
        n = jax.tree.leaves(rows)[0].shape[0]
        begins = jnp.repeat(jnp.arange(self.count, dtype=jnp.int32) * self.stride, n)
        first = jnp.tile(jnp.arange(n) == 0, self.count)
        return begins, first, jax.tree.map(lambda leaf: jnp.concatenate([leaf] * self.count), rows)

    @property
    def draws(self) -> Array:
        """Which rows draw: those of the decoder, window by window."""
        return jnp.tile(self.decoder.draws, self.count)

    @property
    def nfe(self) -> int:
        """The most network evaluations a sequence."""
        return self.count * self.decoder.nfe

    def admit(self, shape: tuple[int, ...], x: Array | None) -> None:
        """Raise before a run from sequences that the windows do not cover, or what is no token."""
        if len(shape) == 2 and shape[1] != self.total:
            raise ValueError(f"the windows cover {self.total} positions and x has {shape[1]}")
        if x is not None:
            refuse_ids(x, self.model)

    def init(self, keys: Array | Draws, x: Array, cond: PyTree) -> Windowed:
        """Before the first call, on the first window."""
        self.admit(x.shape, x)
        zero = jnp.zeros(x.shape[0], jnp.int32)
        return Windowed(x, self.decoder.init(keys, x[:, : self.window], cond), zero, zero - 1)

    def step(self, keys: Array | Draws, state: Windowed, step: PyTree, cond: PyTree) -> Windowed:
        """A row of the decoder; where a window begins, its start is read from the sequence so far."""
        begin, first, row = step
        x = jax.lax.dynamic_slice_in_dim(state.x, begin, self.window, axis=1)
        start = fold(keys, START) if isinstance(keys, jax.Array) else keys.at(START)
        fresh = self.decoder.init(start, x, cond)
        again = first & (begin > 0)
        before = jax.tree.map(lambda new, old: jnp.where(again, new, old), fresh, state.inner)
        inner = self.decoder.step(keys, before, row, cond)
        calls = state.calls + inner.calls - before.calls
        whole = jax.lax.dynamic_update_slice_in_dim(state.x, inner.x, begin, axis=1)
        fault = jnp.where(inner.fault >= 0, inner.fault + begin, -1)
        return Windowed(whole, inner, calls, jnp.where(state.fault >= 0, state.fault, fault))

    def finish(self, keys: Array | Draws, state: Windowed, cond: PyTree) -> Decoded:
        """The tokens of all windows, and their calls."""
        fault = first_bad(state.x == self.model.mask_id, state.fault)
        return Decoded(state.x, state.calls, fault)

    def settled(self, state: Windowed) -> bool:
        """Whether no row can change a concrete state any more."""
        return self.decoder.settled(state.inner) and not bool(jnp.any(state.x == self.model.mask_id))

    def view(self, state: Windowed) -> WindowView:
        return WindowView(state.x, self.decoder.view(state.inner), jnp.ones((), bool))


def sliding_windows(decoder: Any, total: int, *, window: int, stride: int) -> SlidingWindows:
    """Semi-autoregressive decoding past the model's length: a window of L, its last L - stride tokens kept, repeated.

    Exact for a law in which the last `stride` tokens of a window depend on what came before only through the L - stride
    tokens kept, as in a Markov chain. Prompts anywhere in the T positions stay. One program for all windows.

    Args:
        decoder: a `Decoder` planned for sequences of the window's length. Its condition is that of the whole sequence.
        total: T, length of the sequences. window: L. stride: new positions a window, 1 .. L.

    Raises:
        ValueError: windows that do not end at T; a stride outside 1 .. L.

    Reference: Sahoo et al. 2024, MDLM, arXiv 2406.07524, section 4.3 (semi-autoregressive decoding).

    >>> import diffsample as ds
    >>> from diffsample import discrete
    >>> model = discrete.from_logits(lambda p, x, cond: jnp.zeros((*x.shape, 3)), (), vocab=3, mask_id=3)
    >>> sampler = sliding_windows(discrete.Decoder(model, discrete.first_hitting(4)), 8, window=4, stride=2)
    >>> ds.sample(jax.random.key(0), sampler, (2, 8)).calls.tolist()
    [8, 8]
    """
    if not 1 <= stride <= window:
        raise ValueError(f"stride={stride} must lie in 1 .. window={window}: new positions a window")
    if total < window or (total - window) % stride:
        raise ValueError(f"windows of {window} every {stride} positions do not end at total={total}; "
                         f"{window + max(0, -(-(total - window) // stride)) * stride} would do")  # fmt: skip
    if decoder.longest is not None and decoder.longest < window:
        raise ValueError(f"the decoder was planned for at most {decoder.longest} positions, not window={window}")
    return SlidingWindows(decoder, total, window, stride)
