"""Predictor-corrector sampling: Langevin steps at a level before any one-step method moves on.

A Langevin step is x + step score + sqrt(2 step) z, score = -eps / sigma, with

    step = 2 (alpha_s / alpha_t)^2 (snr ||z|| / ||score||)^2,

t the level that the coming move leads to: (alpha_s / alpha_t)^2 is 1 - beta_i on a table of betas, 1 on a VE process.
The size depends on the state, so this is a sampler of its own; `ald` and the `corrections` of `reverse_diffusion` are
Langevin steps of fixed size, in a table.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.denoiser import Denoiser, PyTree, expand
from diffsample.grid import Grid, as_grid
from diffsample.process import Process
from diffsample.program import Program
from diffsample.sampler import View, normal
from diffsample.solvers.tabular import Linear, LinearState, Row, linear
from diffsample.struct import pytree, static
from diffsample.tableau import Tableau, is_concrete


def per_sample_ratio(z: Array, score: Array) -> Array:
    """||z|| / ||score|| of every sample, [B]; a sample does not depend on its batch.

    >>> per_sample_ratio(jnp.ones((2, 4)), jnp.full((2, 4), 0.5)).tolist()
    [2.0, 2.0]
    """
    return _norm(z) / _norm(score)


def batch_mean_ratio(z: Array, score: Array) -> Array:
    """Mean of ||z|| over the batch by the mean of ||score||, [B]: the published rule, by which samples share a step.

    The batch is the whole one, also where it is sharded over devices.

    >>> batch_mean_ratio(jnp.ones((2, 1)), jnp.array([[1.0], [3.0]])).tolist()
    [0.5, 0.5]
    """
    return jnp.broadcast_to(_norm(z).mean() / _norm(score).mean(), z.shape[:1])


class CorrectedRow(NamedTuple):
    """One row as the scan sees it."""

    row: Row
    corrects: Any  # bool, whether a Langevin step stands before the row
    scale: Any  # 2 (alpha_s / alpha_t)^2 of that step


@pytree
class PredictorCorrector:
    """Langevin steps of a state-dependent size between the rows of a linear solver, where they make no move."""

    linear: Linear
    corrects: Any  # [n+1] bool; the last is the closing update
    scale: Any  # [n+1]
    snr: Any
    ratio: Callable[[Array, Array], Array] = static(default=per_sample_ratio)

    @property
    def nfe(self) -> int:
        """Network evaluations per sample."""
        return self.linear.nfe

    @property
    def steps(self) -> CorrectedRow:
        row = self.linear.steps
        # the size of a Langevin step depends on its own draw, so it is no Gaussian move with a gain and a std
        gain, std = (jnp.where(self.corrects[1:], jnp.nan, value) for value in (row.gain, row.std))
        return CorrectedRow(row._replace(gain=gain, std=std), self.corrects[:-1], self.scale[:-1])

    @property
    def draws(self) -> Any:
        """[n] whether the move before each call draws noise."""
        return self.linear.draws | self.corrects[:-1]

    def check(self) -> None:
        self.linear.check()

    def prior(self, keys: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        return self.linear.prior(keys, shape, dtype)

    def init(self, keys: Array, x: Array, cond: PyTree) -> LinearState:
        return self.linear.init(keys, x, cond)

    def step(self, keys: Array, state: LinearState, step: CorrectedRow, cond: PyTree) -> LinearState:
        return self.linear.step(keys, self._correct(keys, state, step.corrects, step.scale), step.row, cond)

    def finish(self, keys: Array, state: LinearState, cond: PyTree) -> Array:
        return self.linear.finish(keys, self._correct(keys, state, self.corrects[-1], self.scale[-1]), cond)

    def view(self, state: LinearState) -> View:
        """As of the linear sampler; gain and std are NaN where a Langevin step comes next."""
        return self.linear.view(state)

    def _correct(self, keys: Array, state: LinearState, corrects: Any, scale: Any) -> LinearState:
        """A Langevin step of the register called last. The table's row draws nothing there, so the keys are free."""

        def langevin() -> tuple[Array, ...]:
            eps, where = state.prediction.eps, state.where
            z, score = normal(keys, eps.shape, eps.dtype), -eps / expand(where.level.sigma, eps)
            size = jnp.asarray(scale, eps.dtype) * (jnp.asarray(self.snr, eps.dtype) * self.ratio(z, score)) ** 2
            move = expand(size, eps) * score + expand(jnp.sqrt(2 * size), eps) * z
            return tuple(jnp.where(where.register == i, x + move, x) for i, x in enumerate(state.registers))

        return state._replace(registers=jax.lax.cond(corrects, langevin, lambda: state.registers))


def predictor_corrector(
    denoiser: Denoiser,
    tableau: Tableau,
    *,
    snr: float = 0.16,
    corrections: int = 1,
    ratio: Callable[[Array, Array], Array] = per_sample_ratio,
) -> PredictorCorrector:
    """Predictor-corrector: `corrections` Langevin steps at a level, then one step of a one-step method, and so on.

    x <- x + e score + sqrt(2 e) z with e = 2 (alpha_s / alpha_t)^2 (snr ||z|| / ||score||)^2. N (calls a step +
    corrections) calls. Order of the predictor in the time step, but the Langevin steps have a bias that a finer grid
    does not remove: on a Gaussian of many dimensions the stationary variance is 1 + (alpha_s / alpha_t)^2 snr^2 times
    the true one. With `reverse_diffusion` it is the PC sampler of the paper. The corrector runs before the first
    move, not after the last.

    Args:
        denoiser: any `Denoiser`; one with memory commits it at the first call of a step, before the corrections.
        tableau: any method that keeps nothing but the state from step to step: `ddim`, `ddpm`, `reverse_diffusion`,
            `euler_maruyama`, `heun`, single-step methods, `restart`; without corrections of its own.
        snr: signal-to-noise ratio r of a Langevin step; 0.16 (CIFAR-10), 0.075 (LSUN), 0.15 (1024 pixels).
        corrections: Langevin steps before every step of the predictor; 0 is the predictor alone.
        ratio: ||z|| / ||score||: `per_sample_ratio`, or `batch_mean_ratio` as published.

    Raises:
        TypeError: a table under trace, whose rows cannot be read.
        ValueError: negative snr or corrections; a multistep table.

    Reference: Song et al. 2021, arXiv 2011.13456, algorithms 2 to 5 and appendix G.

    >>> import diffsample as ds
    >>> process = ds.VarianceExploding(0.01, 50.0)
    >>> predictor = ds.solvers.reverse_diffusion(process, ds.times.uniform_logsnr(process, 100))
    >>> ds.solvers.predictor_corrector(ds.exact.Gaussian(0.0, 1.0), predictor, snr=0.16).nfe
    200
    """
    _check(snr, corrections, least=0)
    if not is_concrete(tableau):
        raise TypeError("predictor_corrector reads the rows of its table: build it outside of jit, and pass it in")
    _check_one_step(tableau)
    counts = np.where((np.asarray(tableau.stage) == 0) & np.asarray(tableau.active), corrections, 0)
    corrects = np.concatenate([np.arange(count + 1) > 0 for count in counts] + [[False]])
    table = tableau if not corrections else _repeat_calls(tableau, counts, corrects)
    return PredictorCorrector(linear(denoiser, table), corrects, _scale(table), snr, ratio)


def annealed_langevin(
    denoiser: Denoiser,
    process: Process,
    times: Grid | Sequence[float],
    *,
    snr: float = 0.16,
    corrections: int = 100,
    denoise: bool = True,
    ratio: Callable[[Array, Array], Array] = per_sample_ratio,
) -> PredictorCorrector:
    """Annealed Langevin dynamics by the signal-to-noise rule: `corrections` Langevin steps at every level but the last.

    The step of `predictor_corrector` and no predictor: the state stays as it is from level to level. N corrections
    calls on a grid of N moves, and one more with denoise. No order; the bias is that of `predictor_corrector`. `ald`
    has steps of fixed size instead, as first published.

    Args:
        denoiser: any `Denoiser`.
        process, times: as for `ddim`.
        snr: signal-to-noise ratio r of a step.
        corrections: Langevin steps a level.
        denoise: finish with one call, whose prediction DDIM moves to the last level.
        ratio: as for `predictor_corrector`.

    Raises:
        ValueError: corrections < 1, negative snr.

    Reference: Song & Ermon 2019, arXiv 1907.05600, algorithm 1; the size of the step: Song et al. 2021,
    arXiv 2011.13456, algorithms 4 and 5; the denoising: Jolicoeur-Martineau et al. 2020, arXiv 2009.05475.

    >>> import diffsample as ds
    >>> process = ds.VarianceExploding(0.01, 1.0)
    >>> ds.solvers.annealed_langevin(ds.exact.Gaussian(0.0, 1.0), process, [1.0, 0.1, 0.01], corrections=5).nfe
    11
    """
    _check(snr, corrections, least=1)
    program = Program(as_grid(process, times))
    moves = list(program.moves())
    for s, t in moves:
        for stage in range(corrections):
            program.call(s, t, eps=1.0, stage=stage)
    corrects = np.arange(corrections * len(moves) + 1) > 0
    if denoise:
        s, t = moves[-1]
        program[0] = program.call(s, t, x0=t.alpha, eps=t.sigma, stage=corrections)
        corrects = np.append(corrects, False)
    table = dataclasses.replace(_with_a_slot(program.tableau("annealed_langevin")), noise="never")
    return PredictorCorrector(linear(denoiser, table), corrects, _scale(table), snr, ratio)


def _norm(x: Array) -> Array:
    return jnp.sqrt(jnp.sum(x.reshape(x.shape[0], -1) ** 2, axis=1))


def _check(snr: Any, corrections: int, least: int) -> None:
    if corrections < least or (is_concrete(snr) and not snr >= 0):
        raise ValueError(f"corrections={corrections} must be at least {least}, and snr={snr} not negative")


def _scale(table: Tableau) -> np.ndarray:
    """2 (alpha_s / alpha_t)^2 of the call before each row, for the row and the closing update."""
    return np.append(0.0, 2 * (np.asarray(table.now.alpha) / np.asarray(table.next.alpha)) ** 2)


def _with_a_slot(table: Tableau) -> Tableau:
    """A table that reads no output still has to store it somewhere."""
    if table.slots:
        return table
    return dataclasses.replace(table, B=np.zeros((*table.B.shape[:2], 1)), slot=np.zeros_like(table.slot))


def _repeat_calls(t: Tableau, counts: np.ndarray, corrects: np.ndarray) -> Tableau:
    """The table in which the call of row r stands counts[r] + 1 times, with rows between that move nothing."""
    source = np.repeat(np.arange(t.rows), counts + 1)
    rows = np.append(source, t.rows)
    stage = np.asarray(t.stage)[source]
    lead = np.repeat(counts, counts + 1)  # later calls of the step count on
    within = np.arange(len(source)) - np.searchsorted(source, source)
    begins = np.maximum.accumulate(np.where(stage == 0, lead, 0))
    stage = np.where(stage == 0, within, stage + begins)
    still = corrects[:, None]
    fields = ("store", "register", "slot", "now", "next", "index", "active")
    columns = {name: jax.tree.map(lambda leaf: np.asarray(leaf)[source], getattr(t, name)) for name in fields}
    return dataclasses.replace(
        t,
        A=np.where(still[:, :, None], np.eye(t.registers)[None], np.asarray(t.A)[rows]),
        B=np.where(still[:, :, None], 0.0, np.asarray(t.B)[rows]),
        c=np.where(still, 0.0, np.asarray(t.c)[rows]),
        stage=stage,
        noise="never" if t.noise == "never" else "some",
        **columns,
    )


def _check_one_step(t: Tableau) -> None:
    """Raise ValueError if a step reads outputs of an earlier step, or a register that it was not called at."""
    A, B = np.asarray(t.A) != 0, np.asarray(t.B) != 0
    registers, slots = {t.output}, set()  # that later rows read
    for row in range(t.rows, -1, -1):
        live = sorted(registers)
        slots |= set(np.flatnonzero(B[row, live].any(axis=0)))
        registers = set(np.flatnonzero(A[row, live].any(axis=0)))
        if row == 0:
            return
        call = row - 1
        begins = t.stage[call] == 0 and t.active[call]
        slots -= {int(t.slot[call])}
        if begins and (slots or registers - {int(t.register[call])}):
            raise ValueError(
                f"{t.about.name} carries more than the state from step to step (call {call}), and a Langevin step "
                f"would make it wrong; use a one-step method such as reverse_diffusion, ddim or heun as predictor"
            )
        if begins:
            slots = set()
        registers |= {int(t.register[call])}
