"""Active sensing: the driver that stops where an instrument has to measure, and runs on where answers are known."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.denoiser import PyTree
from diffsample.guidance.active import ActiveSensing, Sensed
from diffsample.sampler import Sampler, fold, sample_keys
from diffsample.sampling import CLOSING_STREAM, PRIOR_STREAM, NonFiniteError


class Sensing(NamedTuple):
    """The outcome of a session."""

    x: Array  # [scenes P, ...] samples
    y: Array  # [scenes, ...] measurements, zero where none was made
    mask: Array  # [scenes, K] bool, groups measured
    order: np.ndarray  # [scenes, n] int32, groups in the order in which they were chosen


class Progress(NamedTuple):
    """Where the program stands."""

    state: PyTree  # the sampler's
    row: Array  # int32, the next
    log: Array  # [n, scenes] int32, the group chosen at each row, -1 where none was
    asked: Array  # bool, whether the newest row chose


def sense(
    key: Array,
    sampler: Sampler,
    shape: tuple[int, ...],
    acquire: Callable[[np.ndarray], Any] | None = None,
    *,
    cond: PyTree = None,
    dtype: Any = jnp.float32,
) -> Sensing:
    """Active sensing, with an instrument or in simulation: one compiled program runs to the next choice, or to the end.

    With `acquire` the program stops after every choice, the host measures, and it goes on. Without, the rule's y must
    hold all measurements, and it never stops. Given the same answers both are the same, bit for bit. `sample` on the
    same sampler is the simulation up to rounding.

    Args:
        key, shape, cond, dtype: as for `sample`.
        sampler: one that contains an `active_sensing` rule, outermost but for rules that keep its memory as theirs.
        acquire: groups [scenes], int32 on the host -> measurements [scenes, ...], of which the chosen group is read;
            the rule's y then holds groups measured before, and zeros. None: a simulation.

    Raises:
        ValueError: no such rule in the sampler, or more than one; answers of another shape, or not finite.
        NonFiniteError: a sample is not finite.

    >>> import diffsample as ds
    >>> law, process = ds.exact.Gaussian(jnp.zeros(3), jnp.array([0.1, 3.0, 1.0])), ds.VarianceExploding()
    >>> when, none = ds.guidance.acquisition_steps(20, 2), jnp.zeros((1, 3))
    >>> rule = ds.guidance.active_sensing(law, lambda x0: x0, jnp.arange(3), none, when, particles=4)
    >>> sampler = ds.solvers.linear(rule, ds.solvers.ddim(process, ds.times.karras(process, 20)))
    >>> sense(jax.random.key(0), sampler, (4, 3), lambda groups: np.array([[5.0, 6.0, 7.0]])).y.tolist()
    [[0.0, 6.0, 7.0]]
    """
    rule = _rule(sampler)
    y, keys = jnp.asarray(rule.y, jnp.float32), sample_keys(key, 0, shape[0])
    progress = _begin(sampler, keys, cond, shape, dtype)
    while True:
        progress = _run(_with_answers(sampler, y), keys, cond, progress, acquire is not None)
        if acquire is None or not bool(progress.asked):
            break
        newest = np.asarray(progress.log[progress.row - 1])
        y = _answered(rule, y, newest, acquire(newest))
    x = _finish(_with_answers(sampler, y), keys, cond, progress.state, dtype)
    if not bool(jnp.isfinite(x).all()):
        raise NonFiniteError("a sample became non-finite; .x holds all samples", x, -1, [])
    mask = _memory(sampler, progress.state).mask[:: rule.particles]
    log = np.asarray(progress.log)
    return Sensing(x, jnp.where(rule.entries(mask), y, 0), mask, log[(log >= 0).all(axis=1)].T)


def _is_rule(node: Any) -> bool:
    return isinstance(node, ActiveSensing)


def _rule(sampler: Sampler) -> ActiveSensing:
    found = [node for node in jax.tree.leaves(sampler, is_leaf=_is_rule) if _is_rule(node)]
    if len(found) != 1:
        raise ValueError(f"sense needs a sampler with one active_sensing rule, found {len(found)}")
    return found[0]


def _with_answers(sampler: Sampler, y: Array) -> Sampler:
    """The sampler whose rule reads these measurements; no shape changes, so nothing compiles."""

    def put(node: Any) -> Any:
        return dataclasses.replace(node, y=y) if _is_rule(node) else node

    return jax.tree.map(put, sampler, is_leaf=_is_rule)


def _memory(sampler: Sampler, state: PyTree) -> Sensed:
    memory = sampler.view(state).memory
    if not isinstance(memory, Sensed):
        raise ValueError(
            f"the sampler's memory is a {type(memory).__name__}: active_sensing must be the outermost rule"
        )
    return memory


def _answered(rule: ActiveSensing, y: Array, newest: np.ndarray, answers: Any) -> Array:
    answers = jnp.asarray(answers, y.dtype)
    if answers.shape != y.shape:
        raise ValueError(f"acquire returned shape {answers.shape}, expected measurements {y.shape}")
    chosen = jnp.asarray(newest)[:, None] == jnp.arange(len(rule.measured))[None]
    y = jnp.where(rule.entries(chosen), answers, y)
    if not bool(jnp.isfinite(y).all()):
        raise ValueError(f"acquire returned a number that is not finite for groups {newest.tolist()}")
    return y


def _begin(sampler: Sampler, keys: Array, cond: PyTree, shape: tuple[int, ...], dtype: Any) -> Progress:
    working = jnp.promote_types(dtype, jnp.float32)
    state = sampler.init(keys, sampler.prior(fold(keys, PRIOR_STREAM), shape, working), cond)
    rows = jax.tree.leaves(sampler.steps)[0].shape[0]
    log = jnp.full((rows, shape[0] // _rule(sampler).particles), -1, jnp.int32)
    return Progress(state, jnp.zeros((), jnp.int32), log, jnp.zeros((), bool))


@jax.jit
def _run(sampler: Sampler, keys: Array, cond: PyTree, progress: Progress, pause: Any) -> Progress:
    """Rows from the present one to the next at which a group is chosen, where it pauses, or to the end."""
    steps, particles = jax.tree.map(jnp.asarray, sampler.steps), _rule(sampler).particles

    def go_on(progress: Progress) -> Array:
        return (progress.row < len(progress.log)) & ~(progress.asked & pause)

    def advance(progress: Progress) -> Progress:
        state, row, log, _ = progress
        state = sampler.step(fold(keys, row), state, jax.tree.map(lambda leaf: leaf[row], steps), cond)
        newest = _memory(sampler, state).newest[::particles]
        return Progress(state, row + 1, log.at[row].set(newest), (newest >= 0).any())

    return jax.lax.while_loop(go_on, advance, progress._replace(asked=jnp.zeros((), bool)))


def _finish(sampler: Sampler, keys: Array, cond: PyTree, state: PyTree, dtype: Any) -> Array:
    return sampler.finish(fold(keys, CLOSING_STREAM), state, cond).astype(dtype)
