"""Masked models: what a decoder calls.

The network is cut in two, so that logits exist only where a token is about to be revealed: `features` (the trunk) sees
the whole sequence, `head` turns the features of a few positions into logits. Token ids are the model's own, whatever
the mask's id; the law never contains the mask.
"""

import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.struct import pytree, static

PyTree: TypeAlias = Any


@pytree
class MaskedModel:
    """A trained network of masked (absorbing) diffusion.

    Args:
        features: `(params, x [B, L], t [B] or None, cond) -> h`, a pytree of arrays [B, L, ...].
        head: `(params, h [B, k, ...], positions int32 [B, k]) -> logits [B, k, vocab]`.
        params: pytree of weights, leaves of the compiled program.
        vocab: number of logits, one an id from 0.
        mask_id: id of the mask in x; its logit, if it has one, is ignored. `vocab` if the logits leave it out.
        time: function from mask probability m [B] to the network's time, for a time-conditioned network (a schedule's
            `time`); None for one that is not, the usual case, whose features are reused while x does not change.
        hollow: whether the law at an observed position is that of the position given the others only; correctors
            that resample observed positions need it.
        evaluations: network evaluations a call of `features`.

    Raises:
        ValueError, TypeError: no mask id, no functions.

    >>> features, head = lambda table, x, t, cond: table[x], lambda table, h, at: h @ table.T
    >>> model = MaskedModel(features, head, jnp.ones((4, 2)), vocab=4, mask_id=3)
    >>> model.log_probs(model(jnp.full((1, 5), 3), jnp.ones(1), None), jnp.array([[2]])).shape
    (1, 1, 4)
    """

    features: Callable[..., PyTree] = static()
    head: Callable[..., Array] = static()
    params: PyTree
    vocab: int = static()
    mask_id: int = static()
    time: Callable[[Array], Array] | None = static(default=None)
    hollow: bool = static(default=False)
    evaluations: int = static(default=1)

    def __post_init__(self) -> None:
        for name in ("features", "head"):
            if not callable(getattr(self, name)):
                raise TypeError(f"{name} must be a function, got {getattr(self, name)!r}")
        if not isinstance(self.vocab, numbers.Integral) or self.vocab < 1:
            raise ValueError(f"vocab={self.vocab!r} must be the number of logits")
        if not isinstance(self.mask_id, numbers.Integral) or not 0 <= self.mask_id <= self.vocab:
            raise ValueError(f"mask_id={self.mask_id!r} must be an id in 0 .. {self.vocab}: the id that stands for the "
                             f"mask in x (vocab={self.vocab} where the logits leave it out)")  # fmt: skip
        if self.vocab == 1 and self.mask_id == 0:
            raise ValueError("vocab=1 with mask_id=0 leaves no token: vocab counts the logits")

    def __call__(self, x: Array, clock: Array, cond: PyTree) -> PyTree:
        """Features of x [B, L] at mask probability clock [B]."""
        return self.features(self.params, x, None if self.time is None else self.time(clock), cond)

    def log_probs(self, features: PyTree, positions: Array) -> Array:
        """Log-law of the tokens at positions [B, k], [B, k, vocab]: float32 at least, -inf at the mask.

        A law that is not one (a NaN, no token possible) comes back as NaN throughout.
        """
        return jax.nn.log_softmax(self.logits(features, positions), axis=-1)

    def logits(self, features: PyTree, positions: Array) -> Array:
        """What the head says at positions [B, k], [B, k, vocab]: float32 at least, -inf at the mask."""
        logits = self.head(self.params, gather(features, positions), positions)
        if logits.shape != (*positions.shape, self.vocab):
            raise ValueError(f"head returned logits of shape {logits.shape} for positions of shape {positions.shape}; "
                             f"it must be {(*positions.shape, self.vocab)}")  # fmt: skip
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        if self.mask_id < self.vocab:
            logits = jnp.where(jnp.arange(self.vocab)[None, None, :] == self.mask_id, -jnp.inf, logits)
        return logits


class AroundModel(Protocol):
    """A rule around a masked model, of the same tokens, network time and cost."""

    model: Any

    @property
    def vocab(self) -> int:
        """Number of tokens."""
        return self.model.vocab

    @property
    def mask_id(self) -> int:
        """Id of the mask."""
        return self.model.mask_id

    @property
    def time(self) -> Any:
        """From mask probability to the network's time, or None."""
        return self.model.time

    @property
    def hollow(self) -> bool:
        """As the model inside."""
        return self.model.hollow

    @property
    def evaluations(self) -> int:
        """Those of the model inside."""
        return self.model.evaluations


def gather(features: PyTree, positions: Array) -> PyTree:
    """Leaves [B, L, ...] at positions [B, k]: [B, k, ...]."""
    return jax.tree.map(
        lambda h: jnp.take_along_axis(h, positions.reshape(positions.shape + (1,) * (h.ndim - 2)), axis=1), features
    )


def from_logits(
    function: Callable[..., Array],
    params: PyTree,
    vocab: int,
    mask_id: int,
    *,
    time: Callable[[Array], Array] | None = None,
    hollow: bool = False,
) -> MaskedModel:
    """A plain network from tokens to logits as a `MaskedModel`: its features are the logits of all positions.

    Simple, and as costly in memory as it was: [B, L, vocab]. Cut the network at its last layer for long vocabularies.

    Args:
        function: `(params, x [B, L], cond) -> logits [B, L, vocab]`, or `(params, x, t [B], cond)` where time is given.
            Keep one function object: a lambda made anew compiles anew.
        params, vocab, mask_id, time, hollow: as for `MaskedModel`.

    >>> model = from_logits(lambda p, x, cond: jnp.zeros((*x.shape, 5)), (), vocab=5, mask_id=4)
    >>> model.log_probs(model(jnp.zeros((2, 3), int), jnp.ones(2), None), jnp.array([[0], [1]])).shape
    (2, 1, 5)
    """
    if not callable(function):
        raise TypeError(f"from_logits needs a function from tokens to logits, got {function!r}")
    return MaskedModel(Whole(function, time is not None), _as_they_are, params, vocab, mask_id, time, hollow)


@dataclasses.dataclass(frozen=True)
class Whole:
    """All logits of a plain network as features; equal where the function is, so that it compiles once."""

    function: Callable[..., Array]
    timed: bool

    def __call__(self, params: PyTree, x: Array, t: Array | None, cond: PyTree) -> Array:
        """[B, L, vocab]."""
        logits = self.function(params, x, t, cond) if self.timed else self.function(params, x, cond)
        if logits.ndim != 3 or logits.shape[:2] != x.shape:
            raise ValueError(f"the function returned logits of shape {logits.shape} for tokens of shape {x.shape}; "
                             f"they must be [B, L, vocab]")  # fmt: skip
        return logits


def _as_they_are(params: PyTree, h: Array, positions: Array) -> Array:
    return h


@pytree
class Laws:
    """What a policy may ask of the model at the present state: laws, never tokens."""

    model: MaskedModel
    features: PyTree  # of the model at x, [B, L, ...]
    x: Array  # [B, L]
    chunk: int = static(default=64)  # positions whose logits exist at a time

    def at(self, positions: Array) -> Array:
        """Log-laws [B, k, vocab] at positions [B, k]; a broken law is uniform here, and reported by `broken`."""
        return mend(self.model.log_probs(self.features, positions))

    def everywhere(self, function: Callable[[Array, Array], PyTree]) -> PyTree:
        """function(log_p [B, c, vocab], positions [B, c]) for all positions, a chunk at a time: leaves [B, L, ...]."""
        batch, length = self.x.shape
        if length <= self.chunk:
            positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
            return function(self.at(positions), positions)
        count = math.ceil(length / self.chunk)
        blocks = jnp.minimum(jnp.arange(count * self.chunk, dtype=jnp.int32), length - 1).reshape(count, self.chunk)

        def one(block: Array) -> PyTree:
            positions = jnp.broadcast_to(block, (batch, self.chunk))
            return function(self.at(positions), positions)

        parts = jax.lax.map(one, blocks)  # [count, B, chunk, ...]
        return jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1).reshape(batch, -1, *a.shape[3:])[:, :length], parts)


def broken(log_p: Array) -> Array:
    """Where a law [..., V] is none: a NaN, or no token possible; bool [...]."""
    return jnp.isnan(jnp.sum(jnp.exp(log_p), axis=-1))


def mend(log_p: Array) -> Array:
    """Broken laws made uniform, so that a failure stays at its position until it is reported."""
    return jnp.where(broken(log_p)[..., None], -math.log(log_p.shape[-1]), log_p)
