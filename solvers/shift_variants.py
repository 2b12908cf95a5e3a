"""Time shift as its released codes compute it, for ablation; each differs from algorithm 3 of the paper (`shifted`).

                           pnm            adm                 dpm                deis
    variance of            x at the call  x at the call       eps of the call    x at the call
    window centred on      next index j   current index i     next index j       current index i
    half a window          w // 2         w // 2              w // 2             w
    compared with          1 - abar_k     abar reversed       1 - abar_k         1 - abar_k
    what k replaces        the target     target + stride + 1 the target         the time of the query
    then x is taken to be  at j           at j                at the target      at the nominal index
    index over `cutoff`    j              i                   j                  i
    first step             not shifted    not shifted         not shifted        shifted

With abar = alpha^2. The first three are one sampler over the base steps of `time_shift`; the last is a denoiser, since
asking at another time leaves the solver alone. Read in Mingxiao-Li/TS-DPM (90cc903) and tingyu215/TS-DPM-ADM (574d0b7,
but for the reversed table, which was read at second hand).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.betas import DiscreteBetas
from diffsample.denoiser import Denoiser, Point, Prediction, PyTree, x0_from_eps
from diffsample.grid import Grid, as_grid
from diffsample.process import Level, Process
from diffsample.sampler import View
from diffsample.solvers.multistep import dpm_multistep
from diffsample.solvers.one_step import ddim
from diffsample.solvers.shift_bases import Midpoint, Move, check_window, nearest, read, table_index, variance
from diffsample.solvers.tabular import Linear, linear
from diffsample.solvers.time_shift import ShiftRow, ShiftState, TimeShift, build
from diffsample.struct import pytree, static
from diffsample.tableau import Tableau, is_concrete

FEW_STEPS = 15  # below it DPM-Solver's code ends with a step of order 1


class Rule(NamedTuple):
    """What decides the target of a step, and what becomes of it."""

    of_output: bool = False  # the variance is that of the call's eps, else of x
    ahead: bool = True  # window and cutoff at the next nominal index, else at the current one
    stays: bool = False  # x is then at the shifted target, else at the nominal level


PNM, ADM, DPM = Rule(), Rule(ahead=False), Rule(of_output=True, stays=True)


class TargetRow(NamedTuple):
    """One row: a row of the base, and the window of the step that follows its call."""

    row: ShiftRow
    shifts: Any  # bool
    center: Any  # int


class TargetState(NamedTuple):
    inner: ShiftState
    end: Array  # [B] time that the current step leads to


@pytree
class TargetShift:
    """A base method of the time-shift sampler whose steps lead to a level of each sample's own."""

    base: TimeShift  # without a window
    shifts: Any  # [n] bool
    center: Any  # [n] int
    expected: Any  # [T] what a variance is compared with
    offset: Any  # int, added to the chosen index
    rule: Rule = static()
    half: int = static()

    @property
    def nfe(self) -> int:
        """Network evaluations per sample: those of the base method."""
        return self.base.nfe

    @property
    def steps(self) -> TargetRow:
        return TargetRow(self.base.rows, self.shifts, self.center)

    @property
    def draws(self) -> Array:
        """[n] whether the move before each call draws noise."""
        return self.base.draws

    def check(self) -> None:
        self.base.check()

    def prior(self, keys: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        """sigma of the first level times standard normals."""
        return self.base.prior(keys, shape, dtype)

    def init(self, keys: Array, x: Array, cond: PyTree) -> TargetState:
        inner = self.base.init(keys, x, cond)
        return TargetState(inner, inner.level.t)

    def step(self, keys: Array, state: TargetState, step: TargetRow, cond: PyTree) -> TargetState:
        row = step.row
        level, point = self.base.arrived(keys, state.inner, row._replace(move=_aimed(row.move, state.end)))
        if not self.rule.stays:
            nominal = self.base.level_at(row.now.t, point)
            level = jax.tree.map(lambda reached, now: jnp.where(row.inner, reached, now), level, nominal)
        inner = self.base.called(keys, state.inner, row, level, point, cond)
        end = jnp.where(row.inner, state.end, self._target(inner, step))
        aimed = row._replace(coming=_aimed(row.coming, end))
        gain, std = self.base.coming(inner.source, inner.level, inner.places, aimed)
        return TargetState(inner._replace(gain=gain, std=std), end)

    def finish(self, keys: Array, state: TargetState, cond: PyTree) -> Array:
        last = jax.tree.map(lambda leaf: jnp.asarray(leaf)[-1], self.base.rows.coming)
        return self.base.moved(keys, state.inner, _aimed(last, state.end))[1]

    def view(self, state: TargetState) -> View:
        """Level, gain and std are [B]; the coming move is towards the shifted target."""
        return self.base.view(state.inner)

    def _target(self, state: ShiftState, step: TargetRow) -> Array:
        """Time that the step after this call leads to, [B]."""
        x = state.prediction.eps if self.rule.of_output else state.point
        k = jnp.broadcast_to(step.center, x.shape[:1])
        if self.half:
            k = nearest(variance(x), jnp.asarray(self.expected, x.dtype), k, self.half)
        index = jnp.maximum(k + self.offset, -1).astype(x.dtype)
        return jnp.where(step.shifts, (index + 1) / len(self.expected), jnp.asarray(step.row.next.t, x.dtype))


@pytree
class ShiftedQuery(Denoiser):
    """A denoiser asked at the time that a sample's variance says; its eps stands for the nominal time."""

    denoiser: Denoiser
    cutoff: Any
    process: DiscreteBetas = static()
    half: int = static()

    @property
    def evaluations(self) -> int:
        return self.denoiser.evaluations

    @property
    def coupled(self) -> bool:
        return True

    def check(self, process: Process | None, levels: Level) -> None:
        table_index(levels.t, len(self.process.betas))
        self.denoiser.check(process, levels)

    def init(self, x: Array) -> PyTree:
        return self.denoiser.init(x)

    def __call__(self, x: Array, at: Point, cond: PyTree, state: PyTree) -> tuple[Prediction, PyTree]:
        prediction, memory = self.denoiser(x, at._replace(now=self._asked(x, at.now)), cond, state)
        return Prediction(x0_from_eps(x, prediction.eps, at.now), prediction.eps), memory

    def _asked(self, x: Array, now: Level) -> Level:
        if not self.half:
            return now
        expected = np.asarray(_table(self.process).sigma) ** 2
        index = jnp.rint(jnp.asarray(now.t, x.dtype) * len(expected) - 1).astype(int)
        k = nearest(variance(x), jnp.asarray(expected, x.dtype), jnp.broadcast_to(index, x.shape[:1]), self.half)
        shifted = self.process.level(self.process.time(k.astype(x.dtype)))
        return jax.tree.map(lambda new, old: jnp.where(index > self.cutoff, new, old), shifted, now)


def shifted_pnm_code(denoiser: Denoiser, tableau: Tableau, *, window: int, cutoff: int) -> TargetShift:
    """Time shift as in the authors' pnm_solver: a shifted target, then x is taken to be at the nominal index.

    Before each step but the first, to a nominal index j above `cutoff`, the target becomes the k within window // 2 of
    j whose sigma_k^2 is nearest to the variance of x. The network is asked at nominal times, but inside a step of
    several calls between i and k. Released code, where the paper shifts the next query and source (`shifted`). Calls
    and order of the base method, which it is where window < 2 or cutoff >= T.

    Args:
        denoiser: any `Denoiser`.
        tableau: a base method of `shifted`, at times of the table. The authors' grid of skip q is the indices
            (T / q - 2) q + 1, ..., q + 1, 1, 0, which leaves out the noisiest of them.
        window: w; windows are cut at the ends of the table, where the code fails at the noisy one.
        cutoff: index j above which a step is shifted.

    Raises:
        TypeError, ValueError: as `shifted`.

    Reference: Li et al. 2024, arXiv 2305.15583; the released code, sampler/pnm_solver.py, not the paper.

    >>> import diffsample as ds
    >>> process = ds.DiscreteBetas.linear()
    >>> base = ds.solvers.fpndm(process, ds.times.trailing(process, 10))
    >>> ds.solvers.shifted_pnm_code(ds.exact.Gaussian(0.0, 1.0), base, window=5, cutoff=550).nfe
    19
    """
    if not is_concrete(tableau):
        raise TypeError("shifted_pnm_code reads the rows of its table: build the sampler outside of jit, and pass it")
    method, weights = read(tableau)
    return _targets(build(denoiser, tableau, method, weights, 0, cutoff, 0.0), PNM, window, cutoff)


def shifted_adm_code(
    denoiser: Denoiser,
    process: DiscreteBetas,
    times: Grid | Sequence[float],
    *,
    eta: float = 0.0,
    window: int,
    cutoff: int,
    reversed_table: bool = True,
) -> TargetShift:
    """Time shift as in the authors' DDIM for ADM: target k - q - 1 with k chosen around the current index.

    Before each step but the first, from a nominal index i above `cutoff`, k is within window // 2 of i, with
    abar_{T-1-k}, which is 1 - abar_k on symmetric schedules only, nearest to the variance of x. The target is
    abar_{k-q-1}, with q = T // (calls - 1), and clean data below the table; then x is taken to be at its nominal index.
    So window=0 is not DDIM: its targets are less noisy by one index or more. cutoff >= T is DDIM. One call a step.

    Args:
        denoiser: any `Denoiser`; the code clips x0 to [-1, 1], for which wrap it.
        process, times: as for `ddim`, at times of the table; in the code evenly spaced from T - 1 to 0.
        eta: as for `ddim`.
        window: w; windows are cut at the ends of the table.
        cutoff: index i above which a step is shifted. The code reads it for sample 0 and applies it to the batch,
            which is no difference, since i is common; but its cutoff=0 switches the choice off, as window=0 does here.
        reversed_table: False compares with 1 - abar_k, as the repository's guided_diffusion_debug does, where the
            reversed table is a line commented out.

    Raises:
        TypeError, ValueError: as `shifted`; fewer than two calls.

    Reference: Li et al. 2024, arXiv 2305.15583; the released code, guided_diffusion/gaussian_diffusion.py.

    >>> import diffsample as ds
    >>> process = ds.DiscreteBetas.cosine()
    >>> grid = ds.times.linspace(process, 5)
    >>> ds.solvers.shifted_adm_code(ds.exact.Gaussian(0.0, 1.0), process, grid, window=80, cutoff=300).nfe
    5
    """
    tableau = ddim(process, times, eta=eta)
    if tableau.rows < 2:
        raise ValueError("shifted_adm_code strides by T // (calls - 1) and needs two calls or more")
    method, weights = read(tableau)
    base = build(denoiser, tableau, method, weights, 0, cutoff, 0.0)
    stride = len(process.betas) // (tableau.rows - 1)
    expected = base.table.alpha[::-1] ** 2 if reversed_table else base.table.sigma**2
    return _targets(base, ADM, window, cutoff, expected, -stride - 1)


def shifted_dpm_code(
    denoiser: Denoiser, process: DiscreteBetas, times: Grid | Sequence[float], *, window: int, cutoff: int
) -> TargetShift:
    """Time shift as in the authors' DPM-Solver-2 multistep: a shifted target that x stays at, chosen by eps.

    Before each step but the first, to a nominal index j above `cutoff`, the target becomes the k within window // 2 of
    j whose sigma_k^2 is nearest to the variance of the last output, eps and not x; as that is near 1, most samples go
    to an end of the window, and at middle times all to the noisy one. The next call and step start at k, and its
    log-SNR enters the history. Under 15 steps the last one is of order 1. Otherwise `dpm_multistep` where window < 2 or
    cutoff >= T. One call a step.

    Args:
        denoiser: any `Denoiser`; it is called with one level a sample, [B].
        process, times: as for `dpm_multistep`, at times of the table (the code rounds others down where it shifts).
        window: w; half a window is w // 2, halved where the code's solver is made. Windows are cut at the table's ends.
        cutoff: index j above which a step is shifted.

    Raises:
        TypeError, ValueError: as `shifted`.

    Reference: Li et al. 2024, arXiv 2305.15583; the released code, sampler/dpm_solver_utils.py, not the paper.

    >>> import diffsample as ds
    >>> process = ds.DiscreteBetas.linear()
    >>> grid = ds.times.trailing(process, 5)
    >>> ds.solvers.shifted_dpm_code(ds.exact.Gaussian(0.0, 1.0), process, grid, window=30, cutoff=300).nfe
    5
    """
    tableau = dpm_multistep(process, as_grid(process, times), order=2)
    known = np.minimum(np.arange(tableau.rows + 1), 2)
    if tableau.rows < FEW_STEPS:
        known[-1] = 1
    weights = np.zeros((tableau.rows + 1, tableau.slots))
    for row, count in enumerate(known):
        weights[row, np.asarray(tableau.slot)[row - count : row]] = 1.0
    return _targets(build(denoiser, tableau, Midpoint(), weights, 0, cutoff, 0.0), DPM, window, cutoff)


def shifted_deis_code(denoiser: Denoiser, tableau: Tableau, *, window: int, cutoff: int) -> Linear:
    """Time shift as in the authors' DEIS: the network is asked at another time, and nothing else changes.

    At every call from an index i above `cutoff`, the first included, the network is asked at the k within `window`
    (not half of it) of i whose sigma_k^2 is nearest to the variance of x; its eps enters the table's update as if of
    time i. Calls of the table; the base method where window=0 or cutoff >= T.

    Args:
        denoiser: any `Denoiser`; it is called with one level a sample, [B].
        tableau: any table on a `DiscreteBetas` process whose calls are all at times of the table; in the code DEIS
            (`deis_t`) and `ipndm`.
        window: w; windows are cut at the ends of the table.
        cutoff: index i above which a call is shifted.

    Raises:
        TypeError: another process; a table under trace.
        ValueError: a call between two indices, a negative window.

    Reference: Li et al. 2024, arXiv 2305.15583; the released code, sampler/deis_sampler.py, not the paper.

    >>> import diffsample as ds
    >>> process = ds.DiscreteBetas.linear()
    >>> base = ds.solvers.deis_t(process, ds.times.trailing(process, 5))
    >>> ds.solvers.shifted_deis_code(ds.exact.Gaussian(0.0, 1.0), base, window=10, cutoff=900).nfe
    5
    """
    process = tableau.about.process
    if not isinstance(process, DiscreteBetas) or not is_concrete(tableau):
        raise TypeError(f"shifted_deis_code needs a table, outside of jit, of a DiscreteBetas process, got {process}")
    check_window(window)
    return linear(ShiftedQuery(denoiser, cutoff, process, window), tableau)


def _targets(
    base: TimeShift, rule: Rule, window: int, cutoff: int, expected: np.ndarray | None = None, offset: int = 0
) -> TargetShift:
    check_window(window)
    rows, total = base.rows, len(base.table.t)
    center = table_index(rows.next.t, total) if rule.ahead else np.asarray(rows.center)
    shifts = ~np.asarray(rows.inner) & (np.asarray(rows.index) > 0) & (center > cutoff) & (center >= 0)
    expected = base.table.sigma**2 if expected is None else expected
    return TargetShift(base, shifts, center, expected, offset, rule, window // 2)


def _table(process: DiscreteBetas) -> Level:
    return process.level(process.time(np.arange(len(process.betas))))


def _aimed(move: Move, end: Array) -> Move:
    """A move towards a time a sample."""
    return move._replace(to=move.to._replace(t=end))
