"""Two branches of one denoiser, conditional and unconditional, in one network call or in sequence."""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.denoiser import Denoiser, Point, Prediction, PyTree
from diffsample.process import Level, Process


class Branches(NamedTuple):
    """The predictions under the condition and under the null condition."""

    cond: Prediction
    null: Prediction


class TwoBranches(Denoiser, Protocol):
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

    @property
    def coupled(self) -> bool:
        """Affine rules and rules on x0 keep x = alpha x0 + sigma eps if the guided denoiser does."""
        return self.denoiser.coupled

    def check(self, process: Process | None, levels: Level) -> None:
        """What the guided denoiser refuses."""
        self.denoiser.check(process, levels)


def null_like(null: PyTree, cond: PyTree) -> PyTree:
    """The null condition broadcast to the batch of the condition.

    Raises:
        ValueError: there is no condition, or the two trees or their shapes do not match.
    """
    if cond is None:
        raise ValueError("guidance needs a condition: sample(..., cond=...)")
    if jax.tree.structure(null) != jax.tree.structure(cond):
        raise ValueError(f"null has structure {jax.tree.structure(null)}, the condition {jax.tree.structure(cond)}")

    def spread(path: tuple, blank: Array, leaf: Array) -> Array:
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
    null = null_like(null, cond)
    if not batched:
        first, first_state = denoiser(x, at, cond, state.cond)
        second, second_state = denoiser(x, at, null, state.null)
        return Branches(first, second), Branches(first_state, second_state)
    twice = Point(_twice_level(at.now), _twice_level(at.next), at.index, at.stage, _join(at.keys, at.keys))
    out, new = denoiser(_join(x, x), twice, _join(cond, null), _join(state.cond, state.null))
    return Branches(*_split(out, len(x))), Branches(*_split(new, len(x)))


def _twice_level(level: Level) -> Level:
    return Level(*(_join(v, v) if jnp.ndim(v) else v for v in level))


def _join(first: PyTree, second: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)


def _split(tree: PyTree, n: int) -> tuple[PyTree, PyTree]:
    return jax.tree.map(lambda leaf: leaf[:n], tree), jax.tree.map(lambda leaf: leaf[n:], tree)
