"""The sampler of linear solvers: any denoiser driven by any tableau."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.counting import evaluations
from diffsample.denoiser import Denoiser, Point, Prediction, PyTree, expand
from diffsample.process import Level
from diffsample.sampler import Kernel, View, fold, normal
from diffsample.solvers.brownian import BrownianPath
from diffsample.struct import pytree
from diffsample.tableau import Tableau, is_concrete

DENOISER_STREAM = 2**32 - 1  # never a counter of the row's normal draw, which has fewer elements


class Row(NamedTuple):
    """One row of the table as the scan sees it."""

    A: Any  # [R, R]
    B: Any  # [R, S]
    c: Any  # [R]
    store: Any  # [2]
    register: Any
    slot: Any
    now: Level
    next: Level
    index: Any
    stage: Any
    active: Any
    gain: Any  # how this row's x0 and the next draw enter the coming move of the output register
    std: Any
    shift: Any = None  # [R, ...], where the table has one
    span: Any = ()  # the row's part of the Brownian path, where there is one


class Where(NamedTuple):
    """The scalars of the newest row that the view reports."""

    level: Level
    register: Array
    gain: Array
    std: Array
    index: Array
    stage: Array
    fresh: Array


class LinearState(NamedTuple):
    registers: tuple[Array, ...]  # R of [B, ...]
    past: Array  # [B, S, ...], one array: a call is one write, where a tuple costs S
    prediction: Prediction  # the newest, [B, ...]
    memory: PyTree  # the denoiser's
    where: Where
    walk: PyTree = ()  # place on the Brownian path


@pytree
class Linear:
    """A linear solver: a denoiser and a tableau, both leaves; with a path, its draws are increments of that path."""

    denoiser: Denoiser
    tableau: Tableau
    path: BrownianPath | None = None

    @property
    def nfe(self) -> int:
        """Network evaluations per sample; rows of padding make none."""
        return evaluations(self.denoiser, self.tableau)

    @property
    def steps(self) -> Row:
        t, n = self.tableau, self.tableau.rows
        gain, std = _coming_move(t)
        return Row(t.A[:n], t.B[:n], t.c[:n], t.store, t.register, t.slot, t.now, t.next, t.index, t.stage, t.active,
                   gain, std, None if t.shift is None else t.shift[:n], self._spans(slice(n)))  # fmt: skip

    @property
    def draws(self) -> Any:
        """[n] whether the move before each call draws noise."""
        t = self.tableau
        return (t.c[: t.rows] != 0).any(axis=-1) & t.active

    def check(self) -> None:
        self.tableau.check()
        self.denoiser.check(self.tableau.about.process, self.tableau.now)

    def prior(self, keys: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        """sigma of the level where the run starts times standard normals."""
        return jnp.asarray(self.tableau.start.sigma, dtype) * normal(keys, shape, dtype)

    def init(self, keys: Array, x: Array, cond: PyTree) -> LinearState:
        zero = jnp.zeros_like(x)
        where = Where(*jax.tree.map(lambda leaf: jnp.zeros((), jnp.result_type(leaf)), _where(self.steps)))
        past = jnp.zeros((x.shape[0], self.tableau.slots, *x.shape[1:]), x.dtype)
        return LinearState((x,) * self.tableau.registers, past, Prediction(zero, zero), self.denoiser.init(x), where,
                           self.path.init(keys, x) if self.path else ())  # fmt: skip

    def step(self, keys: Array, state: LinearState, step: Row, cond: PyTree) -> LinearState:
        z, walk = self._draw(keys, state, step.c, step.span)
        moved = state._replace(registers=self._update(state, step.A, step.B, step.c, z, step.shift), walk=walk)
        if not self.tableau.padded:
            return self._call(keys, moved, step, cond)
        idle = state.where._replace(fresh=jnp.zeros((), bool))
        return jax.lax.cond(
            step.active,
            lambda: self._call(keys, moved, step, cond),
            lambda: state._replace(where=idle),
        )

    def finish(self, keys: Array, state: LinearState, cond: PyTree) -> Array:
        t, out = self.tableau, self.tableau.output
        A, B, c = t.A[-1][out : out + 1], t.B[-1][out : out + 1], t.c[-1][out : out + 1]
        z, _ = self._draw(keys, state, c, self._spans(-1), closing=True)
        return self._update(state, A, B, c, z, None if t.shift is None else t.shift[-1][out : out + 1])[0]

    def view(self, state: LinearState) -> View:
        w = state.where
        return View(_select(state.registers, w.register), w.level, state.prediction, state.memory, w.gain, w.std,
                    w.index, w.stage, w.fresh)  # fmt: skip

    def kernel(self, state: LinearState, step: Row | None) -> Kernel:
        """The Gaussian law of the x of the coming row, or of the result where `step` is None.

        Raises:
            ValueError: a table of several registers, which share one draw, so that their joint law has no density.
        """
        t = self.tableau
        if t.registers > 1:
            raise ValueError(
                f"{t.about.name} carries {t.registers} registers that share a draw, so that its moves have no "
                f"transition density: weigh with a solver of one register, such as ddpm"
            )
        A, B, c = (t.A[-1], t.B[-1], t.c[-1]) if step is None else (step.A, step.B, step.c)
        shift = step.shift if step is not None else None if t.shift is None else t.shift[-1]
        return Kernel(self._update(state, A, B, c, None, shift)[0], jnp.abs(c[0]))

    def _spans(self, rows: slice | int) -> PyTree:
        return jax.tree.map(lambda leaf: leaf[rows], self.path.spans) if self.path else ()

    def _update(self, state: LinearState, A: Any, B: Any, c: Any, z: Array | None, shift: Any = None) -> tuple:
        """A X + B F + c z, and the shift where there is one."""
        first = state.registers[0]
        parts = (*state.registers, *(state.past[:, i] for i in range(state.past.shape[1])))
        weights = jnp.concatenate([jnp.asarray(A, first.dtype), jnp.asarray(B, first.dtype)], axis=1)
        new = [sum(weights[i, j] * part for j, part in enumerate(parts)) for i in range(weights.shape[0])]
        if shift is not None:
            new = [value + _event(shift[i], first) for i, value in enumerate(new)]
        if z is None:
            return tuple(new)
        c = jnp.asarray(c, first.dtype)
        return tuple(value + c[i] * z for i, value in enumerate(new))

    def _draw(
        self, keys: Array, state: LinearState, c: Any, span: PyTree, closing: bool = False
    ) -> tuple[Array | None, PyTree]:
        """(the row's normal draw, the walk after it); drawn only where the table has noise."""
        first = state.registers[0]
        if self.tableau.noise == "never":
            return None, state.walk
        if self.path:
            return self.path.draw(state.walk, span, first.shape)
        if self.tableau.noise == "all" and not closing:
            return normal(keys, first.shape, first.dtype), state.walk
        draw, skip = lambda: normal(keys, first.shape, first.dtype), lambda: jnp.zeros_like(first)
        return jax.lax.cond(jnp.any(jnp.asarray(c, first.dtype) != 0), draw, skip), state.walk

    def _call(self, keys: Array, state: LinearState, row: Row, cond: PyTree) -> LinearState:
        x = _select(state.registers, row.register)
        at = Point(row.now, row.next, row.index, row.stage, fold(keys, DENOISER_STREAM))
        prediction, memory = self.denoiser(x, at, cond, state.memory)
        registers = state.registers
        if not self.denoiser.coupled:  # the state follows the pair; where the pair is made from x this is x itself
            x = expand(row.now.alpha, x) * prediction.x0 + expand(row.now.sigma, x) * prediction.eps
            registers = tuple(jnp.where(row.register == i, x, old) for i, old in enumerate(registers))
        kept = expand(row.store[0], x) * prediction.x0 + expand(row.store[1], x) * prediction.eps
        past = jax.lax.dynamic_update_index_in_dim(state.past, kept, row.slot, axis=1)
        return LinearState(registers, past, prediction, memory, _where(row), state.walk)


def linear(denoiser: Denoiser, tableau: Tableau, *, path: BrownianPath | None = None) -> Linear:
    """The sampler that drives a denoiser by a tableau, whose numbers go to the device here.

    Args:
        denoiser: a `Network`, a guidance rule, a closed-form model, any `Denoiser`.
        tableau: any solver of this package, or a transform of one.
        path: `brownian_path(tableau)` gives runs of every step count the same Brownian path; None draws afresh.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: the denoiser cannot serve the table's process or levels, or the path is of a table of another
            length; the message names both.

    >>> import diffsample as ds
    >>> process = ds.VariancePreserving()
    >>> ds.solvers.linear(ds.exact.Gaussian(0.0, 1.0), ds.solvers.ddim(process, ds.times.uniform(process, 10))).nfe
    10
    """
    if not isinstance(tableau, Tableau):
        raise TypeError(f"linear(denoiser, tableau) got a {type(tableau).__name__} as tableau; call a solver, for "
                        f"example solvers.ddim(process, times)")  # fmt: skip
    if not callable(denoiser) or not hasattr(denoiser, "init"):
        raise TypeError(f"linear(denoiser, tableau) got a {type(denoiser).__name__} as denoiser; wrap a network as "
                        f"Network(apply, params, predicts=...)")  # fmt: skip
    if is_concrete(tableau):
        Linear(denoiser, tableau).check()
    if path is not None and len(path.spans.first) != tableau.rows + 1:
        raise ValueError(f"the path was laid out for {len(path.spans.first) - 1} rows, the table has {tableau.rows}")
    return Linear(denoiser, jax.tree.map(jnp.asarray, tableau), path)


def _event(shift: Any, x: Array) -> Array:
    """A number or an image, to be added to the states x [B, ...]."""
    shift = jnp.asarray(shift, x.dtype)
    return jnp.broadcast_to(shift.reshape((1,) * (x.ndim - shift.ndim) + shift.shape), x.shape)


def _where(row: Row) -> Where:
    return Where(row.now, row.register, row.gain, row.std, row.index, row.stage, row.active)


def _select(parts: tuple[Array, ...], index: Any) -> Array:
    chosen = parts[0]
    for i, part in enumerate(parts[1:], 1):
        chosen = jnp.where(index == i, part, chosen)
    return chosen


def _coming_move(t: Tableau) -> tuple[Any, Any]:
    """gain, std [n]: d x_next / d x0 at fixed x, and the scale of the draw, in the move that follows each call."""
    xp: Any = np if all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(t)) else jnp
    n = t.rows
    last = xp.concatenate([xp.logical_not(t.active[1:]), xp.ones(1, bool)])  # what follows is the closing update
    following = xp.where(last, n, xp.arange(1, n + 1))
    weight = xp.take_along_axis(t.B[following, t.output], t.slot[:, None].astype(int), axis=1)[:, 0]
    u, w = t.store[:, 0], t.store[:, 1]
    return weight * (u - w * t.now.alpha / t.now.sigma), t.c[following, t.output]
