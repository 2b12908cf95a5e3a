"""Proposals: what to draw, given the model's law at the positions to reveal. They compose left to right by `chain`."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.denoiser import expand
from diffsample.struct import pytree, static

PyTree: TypeAlias = Any


class Context(NamedTuple):
    """What a proposal may read, besides the laws at the positions to reveal."""

    x: Array  # [B, L]
    positions: Array  # int32 [B, k]
    valid: Array  # bool [B, k]
    before: Array  # [B, k, vocab] log-laws at the same positions one update earlier
    count: Array  # int32 [B], positions revealed now
    count_before: Array  # int32 [B], and one update earlier
    weight: Array | None  # the policy's, of an extrapolation
    cond: PyTree


Proposal: TypeAlias = Callable[[Array, Context], Array]


def as_leaves(rule: Any) -> Any:
    """A plain function as a pytree without leaves; anything else as it is."""
    return jax.tree_util.Partial(rule) if callable(rule) and jax.tree_util.all_leaves([rule]) else rule


def by_sequence(number: Any, like: Array) -> Array:
    """A number, or one a sequence [B], in the dtype of an array [B, ...] and shaped to broadcast against it.

    Raises:
        ValueError: numbers of another shape.
    """
    if jnp.shape(number) not in ((), like.shape[:1]):
        raise ValueError(f"numbers of shape {jnp.shape(number)} in a batch of {like.shape[0]}: give one number, or one "
                         f"a sequence [B] (not with chunk=)")  # fmt: skip
    return expand(number, like)


@pytree
class Temperature:
    """log_q = log_p / temperature, renormalised; a leaf, so that a sweep does not recompile, or one a sequence [B].

    >>> Temperature(0.5)(jnp.log(jnp.array([[[0.8, 0.2]]])), None).round(3).tolist()
    [[[-0.06..., -2.83...]]]
    """

    temperature: Any = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.temperature, (int, float)) and not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature} must be positive; greedy decoding is `greedy`")

    def __call__(self, log_p: Array, context: Context | None = None) -> Array:
        colder = jnp.where(log_p > -jnp.inf, log_p / by_sequence(self.temperature, log_p), -jnp.inf)
        return jax.nn.log_softmax(colder, axis=-1)


def greedy(log_p: Array, context: Context | None = None) -> Array:
    """All mass on the most probable token, the first among equals: the limit of temperature 0."""
    best = jax.nn.one_hot(jnp.argmax(log_p, axis=-1), log_p.shape[-1], dtype=bool)
    return jnp.where(best, 0.0, -jnp.inf).astype(log_p.dtype)


@pytree
class TopP:
    """Nucleus: the smallest set of most probable tokens of mass at least p, ties kept, found without a sort.

    The threshold is bisected over the 31 bits of a positive float32, so 31 sums over the vocabulary and no sort.

    Args:
        p: mass to keep, in (0, 1]; a leaf, or one a sequence [B].
        inside: keep only tokens whose cumulative mass, their own included, is at most p, and the first; what ReMDM
            and BD3-LM do. The default keeps the token that crosses p, as Dream and RADD do.

    Reference: Holtzman et al. 2020, arXiv 1904.09751.

    >>> jnp.exp(TopP(0.6)(jnp.log(jnp.array([[[0.5, 0.3, 0.2]]])), None))
    Array([[[0.625, 0.375, 0.   ]]], dtype=float32)
    """

    p: Any
    inside: bool = static(default=False)

    def __post_init__(self) -> None:
        if isinstance(self.p, (int, float)) and not 0 < self.p <= 1:
            raise ValueError(f"p={self.p} must lie in (0, 1]")

    def __call__(self, log_p: Array, context: Context | None = None) -> Array:
        p = jnp.exp(log_p.astype(jnp.float32))
        keep = (self._mass_kept if self.inside else self._mass_reached)(p)
        return jax.nn.log_softmax(jnp.where(keep, log_p, -jnp.inf), axis=-1)

    def _mass_reached(self, p: Array) -> Array:
        """Tokens at least as probable as the largest threshold that keeps mass p."""
        goal = jnp.sum(p, axis=-1)
        goal = by_sequence(self.p, goal) * goal
        bits = _largest_bits(lambda t: jnp.sum(jnp.where(p >= t[..., None], p, 0.0), axis=-1) >= goal, p.shape[:-1])
        return p >= bits[..., None]

    def _mass_kept(self, p: Array) -> Array:
        """Tokens above the largest threshold whose upper set has more mass than p; always the most probable one."""
        goal = jnp.sum(p, axis=-1)
        goal = by_sequence(self.p, goal) * goal
        bits = _largest_bits(lambda t: jnp.sum(jnp.where(p >= t[..., None], p, 0.0), axis=-1) > goal, p.shape[:-1])
        return (p > bits[..., None]) | (p == jnp.max(p, axis=-1, keepdims=True))


@pytree
class TopK:
    """The k most probable tokens, ties with the k-th kept; k is a leaf, or one a sequence [B], and nothing is sorted.

    >>> jnp.exp(TopK(1)(jnp.log(jnp.array([[[0.5, 0.3, 0.2]]])), None)).tolist()
    [[[1.0, 0.0, 0.0]]]
    """

    k: Any

    def __post_init__(self) -> None:
        if isinstance(self.k, (int, float)) and (self.k < 1 or self.k % 1):
            raise ValueError(f"k={self.k} must be a whole number of at least 1")

    def __call__(self, log_p: Array, context: Context | None = None) -> Array:
        p = jnp.exp(log_p.astype(jnp.float32))
        k = by_sequence(self.k, jnp.zeros(p.shape[:-1], jnp.int32))
        threshold = _largest_bits(lambda t: jnp.sum(p >= t[..., None], axis=-1) >= k, p.shape[:-1])
        return jax.nn.log_softmax(jnp.where(p >= threshold[..., None], log_p, -jnp.inf), axis=-1)


@pytree
class Extrapolated:
    """log_q = (1 + w) log c - w log c_before, renormalised: what the group's average token should have seen.

    c_before is the law of one update earlier, w the policy's weight: (k - 1) / (2 k_before) of `first_hitting`, a2 of
    `trapezoidal`. Second order without another call. `linear` extrapolates probabilities, max(c + w (c - c_before), 0),
    as the theta-trapezoidal method does; logarithms keep the support.

    >>> Extrapolated().looks_back
    True
    """

    linear: bool = static(default=False)

    @property
    def looks_back(self) -> bool:
        """The decoder keeps the features of the update before."""
        return True

    def __call__(self, log_p: Array, context: Context) -> Array:
        if context.weight is None:
            raise ValueError("an extrapolated proposal needs a policy that gives weights: first_hitting, trapezoidal")
        w = jnp.asarray(context.weight, log_p.dtype)
        w = jnp.broadcast_to(w, log_p.shape[:1])[:, None, None]
        before = jnp.where(w > 0, context.before, log_p)  # nothing was called before the first update
        if self.linear:
            p, earlier = jnp.exp(log_p), jnp.exp(before)
            moved = jnp.maximum(p + w * (p - earlier), 0.0)
            return jax.nn.log_softmax(jnp.log(moved), axis=-1)
        possible = (log_p > -jnp.inf) & (before > -jnp.inf)
        safe = jnp.where(possible, before, 0.0)
        return jax.nn.log_softmax(jnp.where(possible, log_p + w * (jnp.where(possible, log_p, 0.0) - safe), log_p), -1)


@pytree
class Chain:
    """Proposals one after another; see `chain`."""

    parts: tuple[Any, ...]

    @property
    def looks_back(self) -> bool:
        """Whether a part does."""
        return any(getattr(part, "looks_back", False) for part in self.parts)

    def __call__(self, log_p: Array, context: Context | None = None) -> Array:
        for part in self.parts:
            log_p = part(log_p, context)
        return log_p


def chain(*parts: Any) -> Chain:
    """Proposals composed left to right.

    >>> chain(Temperature(0.9), TopP(0.95)).looks_back
    False
    """
    return Chain(tuple(as_leaves(part) for part in parts))


def _largest_bits(holds: Any, shape: tuple[int, ...]) -> Array:
    """The largest positive float32 t at which a condition, true at 0 and false from some t on, still holds."""

    def refine(i: Array, bits: Array) -> Array:
        trial = bits | (jnp.uint32(1) << (jnp.uint32(30) - i.astype(jnp.uint32)))
        value = jax.lax.bitcast_convert_type(trial, jnp.float32)
        return jnp.where(jnp.isfinite(value) & holds(value), trial, bits)

    bits = jax.lax.fori_loop(0, 31, refine, jnp.zeros(shape, jnp.uint32))
    return jax.lax.bitcast_convert_type(bits, jnp.float32)
