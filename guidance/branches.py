"""Branches: one denoiser under several conditions, in one network call or in sequence.

Only branches of one denoiser share a call; another network (a weak or a perturbed one) is called by itself.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.denoiser import Denoiser, Point, Prediction, PyTree
from diffsample.wrapping import Wrapper


class Branches(NamedTuple):
    """The predictions under the condition and under the null condition."""

    cond: Prediction
    null: Prediction


class TwoBranches(Wrapper, Protocol):
    """What every rule over a conditional and an unconditional branch of one denoiser says of itself."""

    denoiser: Denoiser

    @property
    def evaluations(self) -> int:
        """Two calls of the guided denoiser."""
        return 2 * self.denoiser.evaluations

    @property
    def vjps(self) -> int:
        """Those of both calls."""
        return 2 * self.denoiser.vjps

    def init(self, x: Array) -> PyTree:
        """A memory for each branch."""
        return Branches(self.denoiser.init(x), self.denoiser.init(x))


def null_like(null: PyTree, cond: PyTree) -> PyTree:
    """The null condition broadcast to the batch of the condition.

    Raises:
        ValueError: there is no condition, or the two trees or their shapes do not match, or a number that is no
            integer stands for a label.
    """
    if cond is None:
        raise ValueError("guidance needs a condition: sample(..., cond=...)")
    if jax.tree.structure(null) != jax.tree.structure(cond):
        raise ValueError(f"null has structure {jax.tree.structure(null)}, the condition {jax.tree.structure(cond)}")

    def spread(path: tuple, blank: Array, leaf: Array) -> Array:
        kinds = [jnp.issubdtype(jnp.result_type(value), jnp.integer) for value in (blank, leaf)]
        if kinds == [False, True]:
            raise ValueError(f"null{jax.tree_util.keystr(path)} must be an integer like the condition, "
                             f"got {jnp.result_type(blank)}")  # fmt: skip
        try:
            return jnp.broadcast_to(jnp.asarray(blank, jnp.result_type(leaf)), jnp.shape(leaf))
        except ValueError as error:
            raise ValueError(f"null{jax.tree_util.keystr(path)} of shape {jnp.shape(blank)} does not broadcast to the "
                             f"condition's shape {jnp.shape(leaf)}") from error  # fmt: skip

    return jax.tree.map_with_path(spread, null, cond)


def both(
    denoiser: Denoiser, x: Array, at: Point, cond: PyTree, null: PyTree, state: Branches, batched: bool
) -> tuple[Branches, Branches]:
    """(predictions, states) of the two branches; `batched` makes them one call of twice the batch."""
    predictions, states = evaluate(denoiser, x, at, (cond, null_like(null, cond)), state, batched)
    return Branches(*predictions), Branches(*states)


def evaluate(
    denoiser: Denoiser, x: Array, at: Point, conds: Sequence[PyTree], states: Sequence[PyTree], batched: bool
) -> tuple[list[Prediction], list[PyTree]]:
    """Predictions and states of one denoiser under n conditions of one shape; `batched`: one call of n times the batch.

    Every branch sees the same x, level and keys, and keeps a memory of its own.
    """
    n = len(conds)
    if not batched:
        called = [denoiser(x, at, cond, state) for cond, state in zip(conds, states, strict=True)]
        return [prediction for prediction, _ in called], [state for _, state in called]
    wide = jax.tree.map(lambda leaf: _join([leaf] * n) if jnp.ndim(leaf) else leaf, at)
    out, new = denoiser(_join([x] * n), wide, _join(conds), _join(states))
    return _split(out, n), _split(new, n)


def _join(trees: Sequence[PyTree]) -> PyTree:
    """The rows of one sample side by side: a batch that is sharded over devices is joined on each, without a word."""
    return jax.tree.map(lambda *rows: jnp.stack(rows, axis=1).reshape(-1, *jnp.shape(rows[0])[1:]), *trees)


def _split(tree: PyTree, n: int) -> list[PyTree]:
    return [jax.tree.map(lambda leaf, i=i: leaf.reshape(-1, n, *leaf.shape[1:])[:, i], tree) for i in range(n)]
