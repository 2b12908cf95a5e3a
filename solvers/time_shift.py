"""Time shift: after every step the variance of a sample says which time of the table it is really at.

A step from the shifted level of every sample, [B], to the nominal level of the grid is the step of a base method
(`shift_bases`). Then the level becomes the index k of the table, within half a window of the nominal one, of which the
variance alpha_k^2 data_var + sigma_k^2 is nearest to the variance of x_t over all its numbers; the next call and the
next step start there. Times and coefficients depend on the state, so this is no tableau; but base methods whose
weights do not depend on the grid are read off their own tables.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.betas import DiscreteBetas
from diffsample.denoiser import Denoiser, Network, Point, Prediction, PyTree, expand
from diffsample.grid import Grid
from diffsample.process import Level, Process
from diffsample.sampler import View, fold, normal
from diffsample.solvers.multistep import exp_multistep
from diffsample.solvers.shift_bases import Exponential, Move, check_window, levels_before, read, table_index, variance
from diffsample.solvers.tabular import DENOISER_STREAM
from diffsample.struct import pytree, static
from diffsample.tableau import Tableau, is_concrete


class ShiftRow(NamedTuple):
    """One row: an update, a shift, a call."""

    move: Move
    first: Any  # bool, nothing to update
    inner: Any  # bool, the call is at an inner point of a step
    shifts: Any  # bool
    center: Any  # int, nominal table index of the call
    now: Level  # nominal level of the call, scalars
    next: Level  # nominal level that the step leads to
    slot: Any
    index: Any
    stage: Any
    coming: Move  # the next row's update, of the base state


class ShiftState(NamedTuple):
    base: Array  # [B, ...] state at the start of the step
    point: Array  # [B, ...] where the network was called last
    source: Level  # [B] level of `base`: the shifted one
    level: Level  # [B] level of `point`
    past: tuple[Array, ...]  # S of [B, ...], outputs
    places: Array  # [B, S] half log-SNR of the outputs
    prediction: Prediction
    memory: PyTree
    gain: Array  # [B] of the coming move
    std: Array  # [B]
    index: Array
    stage: Array


@pytree
class TimeShift:
    """The time-shift sampler: a base method, stepped with a noise level a sample."""

    denoiser: Denoiser
    rows: ShiftRow
    method: Any
    table: Level  # [T] levels of the table's indices
    data_var: Any
    process: Process = static()
    slots: int = static()
    half: int = static()  # half a window

    @property
    def nfe(self) -> int:
        """Network evaluations per sample: those of the base method."""
        return np.shape(self.rows.slot)[0] * self.denoiser.evaluations

    @property
    def steps(self) -> ShiftRow:
        return self.rows

    @property
    def draws(self) -> Array:
        """[n] whether the move before each call draws noise."""
        return jnp.full(np.shape(self.rows.slot)[:1], self.method.draws)

    def check(self) -> None:
        self.denoiser.check(self.process, self.rows.now)

    def prior(self, keys: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        """sigma of the first level times standard normals."""
        return jnp.asarray(self.rows.now.sigma[0], dtype) * normal(keys, shape, dtype)

    def init(self, keys: Array, x: Array, cond: PyTree) -> ShiftState:
        level, zero = self.level_at(self.rows.now.t[0], x), jnp.zeros_like(x)
        places, number = jnp.zeros((x.shape[0], self.slots), x.dtype), jnp.zeros((), jnp.result_type(self.rows.index))
        return ShiftState(x, x, level, level, (zero,) * self.slots, places, Prediction(zero, zero),
                          self.denoiser.init(x), places[:, 0], places[:, 0], number, number)  # fmt: skip

    def step(self, keys: Array, state: ShiftState, step: ShiftRow, cond: PyTree) -> ShiftState:
        level, point = self.arrived(keys, state, step)
        if self.half:
            level = jax.lax.cond(step.shifts, lambda: self._shifted(point, step.center), lambda: level)
        return self.called(keys, state, step, level, point, cond)

    def arrived(self, keys: Array, state: ShiftState, step: ShiftRow) -> tuple[Level, Array]:
        """The level that a row's update reaches, [B], and the state there."""
        target, moved = self.moved(keys, state, step.move)
        point = jnp.where(step.first, state.base, moved)
        return jax.tree.map(lambda old, new: jnp.where(step.first, old, new), state.source, target), point

    def called(
        self, keys: Array, state: ShiftState, step: ShiftRow, level: Level, point: Array, cond: PyTree
    ) -> ShiftState:
        """A row's call, at a point taken to be at a level."""
        at = Point(level, self.level_at(step.next.t, point), step.index, step.stage, fold(keys, DENOISER_STREAM))
        prediction, memory = self.denoiser(point, at, cond, state.memory)
        if not isinstance(self.denoiser, Network):  # where a rule decouples eps from x0, the state follows the pair
            point = expand(level.alpha, point) * prediction.x0 + expand(level.sigma, point) * prediction.eps
        base = jnp.where(step.inner, state.base, point)
        source = jax.tree.map(lambda old, new: jnp.where(step.inner, old, new), state.source, level)
        output = prediction.eps if self.method.noise_form else prediction.x0
        past = tuple(jnp.where(step.slot == i, output, old) for i, old in enumerate(state.past))
        places = state.places.at[:, step.slot].set(_half_logsnr(level))
        gain, std = self.coming(source, level, places, step)
        return ShiftState(
            base, point, source, level, past, places, prediction, memory, gain, std, step.index, step.stage
        )

    def finish(self, keys: Array, state: ShiftState, cond: PyTree) -> Array:
        return self.moved(keys, state, jax.tree.map(lambda leaf: jnp.asarray(leaf)[-1], self.rows.coming))[1]

    def view(self, state: ShiftState) -> View:
        """Level, gain and std are [B]; the coming move is towards the nominal level."""
        return View(state.point, state.level, state.prediction, state.memory, state.gain, state.std, state.index,
                    state.stage, jnp.ones((), bool))  # fmt: skip

    def coming(self, source: Level, level: Level, places: Array, row: ShiftRow) -> tuple[Array, Array]:
        """gain and std of the move that follows this row, [B]; none where an inner call follows."""
        target = self.level_at(row.coming.to.t, places)
        _, total, up = self.method.coefficients(source, target)
        weight = self.method.weigh(source, target, row.coming, places.T)[row.slot]
        slope = -level.alpha / level.sigma if self.method.noise_form else 1.0
        gain, std = (jnp.where(row.coming.part < 1, 0.0, value) for value in (total * weight * slope, up))
        return gain, std

    def level_at(self, t: Any, x: Array) -> Level:
        """The process at one time a sample."""
        return self.process.level(jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1]))

    def moved(self, keys: Array, state: ShiftState, move: Move) -> tuple[Level, Array]:
        """The level that a move reaches and the state there."""
        s = state.source
        part, end = jnp.asarray(move.part, s.t.dtype), jnp.asarray(move.to.t, s.t.dtype)
        target = self.level_at(jnp.where(part == 1, end, s.t + part * (end - s.t)), state.base)
        carry, total, up = self.method.coefficients(s, target)
        weights = total[None] * self.method.weigh(s, target, move, state.places.T)
        x = expand(carry, state.base) * state.base
        for slot in range(self.slots):
            x = x + expand(weights[slot], x) * state.past[slot]
        return target, x + expand(up, x) * normal(keys, x.shape, x.dtype) if self.method.draws else x

    def _shifted(self, x: Array, center: Any) -> Level:
        """The level in the window whose variance is nearest to the sample's; the lowest index of equals."""
        var = variance(x)
        k = jnp.clip(center + jnp.arange(-self.half, self.half + 1), 0, len(self.table.t) - 1)
        alpha, sigma = (jnp.asarray(scale, x.dtype)[k] for scale in (self.table.alpha, self.table.sigma))
        spread = jnp.broadcast_to(jnp.asarray(self.data_var, x.dtype), x.shape[:1])
        expected = alpha[None] ** 2 * spread[:, None] + sigma[None] ** 2
        chosen = k[jnp.argmin(jnp.abs(var[:, None] - expected), axis=1)]
        return Level(*(jnp.asarray(scale, x.dtype)[chosen] for scale in self.table))


def shifted(
    denoiser: Denoiser, tableau: Tableau, *, window: int, cutoff: int, data_var: float | Array = 0.0
) -> TimeShift:
    """Time-shift sampler over DDIM, DDPM, PLMS, iPNDM, S-PNDM or F-PNDM.

    After each step from a nominal index above `cutoff`, the sample's next query and source is the table index k within
    window // 2 of the nominal one whose alpha_k^2 data_var + sigma_k^2 is nearest to its variance, the lowest if equal.
    Calls and order of the base method, which it is where window < 2 or cutoff >= T. Steps lead to nominal indices.

    Args:
        denoiser: any `Denoiser`; it is called with one level a sample, [B].
        tableau: `ddim` of any eta, `ddpm`, `plms`, `ipndm`, `spndm` or `fpndm`, on a `DiscreteBetas` process, at times
            of the table; a last time 0 is allowed. Other methods on eps (`lms`) keep their nominal weights.
        window: whole width w of the window of indices; the choice is among 2 (w // 2) + 1.
        cutoff: nominal index t_c, above which a step is followed by a shift.
        data_var: variance of one datum over its numbers, one for all or [B]; the published rule is 0, which shifts even
            exact samples towards noise by the index at which alpha^2 falls by the factor 1 - data_var.

    Raises:
        TypeError: another process; a table under trace.
        ValueError: a time between two indices, a negative window, a base method that is not one of these.

    Reference: Li et al. 2024, arXiv 2305.15583, algorithm 3; data_var is this library's own.

    >>> import diffsample as ds
    >>> process = ds.DiscreteBetas.linear()
    >>> base = ds.solvers.fpndm(process, ds.times.trailing(process, 10))
    >>> ds.solvers.shifted(ds.exact.Gaussian(0.0, 1.0), base, window=5, cutoff=550).nfe
    19
    """
    if not is_concrete(tableau):
        raise TypeError("shifted reads the rows of its table: build the sampler outside of jit, and pass it")
    method, weights = read(tableau)
    return build(denoiser, tableau, method, weights, window, cutoff, data_var)


def shifted_exponential(
    denoiser: Denoiser,
    process: DiscreteBetas,
    times: Grid | Sequence[float],
    *,
    order: int = 2,
    noise_form: bool = False,
    window: int,
    cutoff: int,
    data_var: float | Array = 0.0,
) -> TimeShift:
    """Time-shift sampler over `exp_multistep`: DPM-Solver(++) and DEIS in log-rho, with a log-SNR history a sample.

    The shift of `shifted`; the weights are those of the shifted levels at which each output was made. Where a shift
    puts two outputs at one level, or a source at or past its target, that step of that sample is of lower order.
    One call a step.

    Args:
        order: 1 to 3, outputs used; order 2 is DPM-Solver++ (taylor), or in noise form DPM-Solver (taylor).
        noise_form: interpolate eps instead of x0.
        denoiser, process, times, window, cutoff, data_var: as for `shifted`.

    Raises:
        TypeError, ValueError: as `shifted`; another order.

    Reference: Li et al. 2024, arXiv 2305.15583, algorithm 3 and section 5 (over DPM-Solver and DEIS).

    >>> import diffsample as ds
    >>> process = ds.DiscreteBetas.linear()
    >>> grid = ds.times.trailing(process, 5)
    >>> ds.solvers.shifted_exponential(ds.exact.Gaussian(0.0, 1.0), process, grid, window=30, cutoff=300).nfe
    5
    """
    if order not in (1, 2, 3):
        raise ValueError(f"shifted_exponential has orders 1 to 3, got order={order!r}")
    base = exp_multistep(process, times, order=order, noise_form=noise_form)
    known = np.minimum(np.arange(base.rows + 1), order)
    weights = np.zeros((base.rows + 1, base.slots))
    for row, count in enumerate(known):
        weights[row, np.asarray(base.slot)[row - count : row]] = 1.0
    return build(denoiser, base, Exponential(noise_form), weights, window, cutoff, data_var)


def build(
    denoiser: Denoiser, t: Tableau, method: Any, weights: np.ndarray, window: int, cutoff: int, data_var: Any
) -> TimeShift:
    process = t.about.process
    if not isinstance(process, DiscreteBetas):
        raise TypeError(f"time shift needs the table of a DiscreteBetas process, got {process}")
    check_window(window)
    if is_concrete(data_var) and np.any(np.asarray(data_var) < 0):
        raise ValueError(f"data_var={data_var} is a variance and must not be negative")
    total, stage = len(process.betas), np.asarray(t.stage)
    starts = stage == 0
    table_index(t.now.t[starts], total)
    center = np.rint(t.now.t * total - 1).astype(int)
    s = levels_before(t)
    to = Level(*(np.append(now[:1], next) for now, next in zip(t.now, t.next, strict=True)))  # of the step behind
    reached = np.append(t.now.t, t.next.t[-1])
    step = np.where(s.t == to.t, 1.0, s.t - to.t)
    inner = np.append(~starts, False)
    part = np.where(inner, (s.t - reached) / step, 1.0)
    part[0] = 0.0
    order = _newest_first(t)
    moves = Move(to, part, weights, order)
    coming = jax.tree.map(lambda leaf: leaf[1:], moves)._replace(part=np.where(inner[1:], 0.0, part[1:]))
    before = np.rint(s.t[:-1] * total - 1)  # nominal index of the step that each row ends
    first = np.arange(t.rows) == 0
    rows = ShiftRow(
        move=jax.tree.map(lambda leaf: leaf[:-1], moves), first=first, inner=~starts,
        shifts=starts & ~first & (before > cutoff), center=center, now=t.now, next=t.next,
        slot=t.slot, index=t.index, stage=stage,
        coming=coming,
    )  # fmt: skip
    table = process.level(process.time(np.arange(total)))
    sampler = TimeShift(denoiser, rows, method, table, data_var, process, t.slots, window // 2)
    sampler.check()
    return sampler


def _newest_first(t: Tableau) -> np.ndarray:
    """[n+1, S] slots in the order of their last writing before each row's update; never written ones last."""
    order, found = list(range(t.slots)), []
    for row in range(t.rows + 1):
        found.append(list(order))
        if row < t.rows:
            order.remove(int(t.slot[row]))
            order.insert(0, int(t.slot[row]))
    return np.array(found)


def _half_logsnr(level: Level) -> Array:
    return jnp.log(level.alpha) - jnp.log(level.sigma)
