"""USF, the unified sampling framework: a schedule of decisions as one tableau."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from diffsample.grid import Grid, as_grid
from diffsample.process import Level, Process
from diffsample.program import Program, Vector
from diffsample.solvers.decisions import Decisions, Derivative, Relaxation
from diffsample.solvers.expansion import DATA_KIND, NOISE_KIND, Kind, distance, place_of, relaxed, weigh
from diffsample.solvers.liveness import (
    Event,
    called_state,
    corrected_derivatives,
    inner_levels,
    plan,
    start_level,
)
from diffsample.solvers.model_statistics import ModelStatistics
from diffsample.solvers.order_implied import implied_order
from diffsample.tableau import Tableau

Gammas = Mapping[tuple[int, int], Any]  # (step, derivative) -> gamma of its linear relaxation


def usf(
    process: Process,
    decisions: Decisions,
    *,
    mean: ArrayLike | None = None,
    statistics: ModelStatistics | None = None,
) -> Tableau:
    """USF: x_t = carry x_s + total (F_s + sum_k m_k h^k F_s^(k)), F and its derivatives as each step decides.

    Any mix along one run of orders 1 to 4, noise and data predictions, multistep and singlestep starts, derivatives
    from chosen points with a chosen relaxation, correctors with or without a call of their own, and a first step that
    makes no call. It contains DDIM, DPM-Solver(++), UniPC and DEIS (log-rho). One call a step and one more for an
    implicit corrector. A step into sigma = 0, or from alpha = 0, is first order and is not corrected. The order that
    the table declares is that of repeating its decisions on finer grids; none where the first call is replaced.

    Args:
        process: the noising process.
        decisions: the schedule, with its times.
        mean: where decisions.first is "mean": the data's mean, a number or an image; it becomes a shift in the table.
        statistics: where a prediction is "v3": what DPM-Solver-v3 measures of a model, see `ModelStatistics`.

    Raises:
        ValueError: `mean` or `statistics` missing, or given where nothing uses them; times outside the process; a
            noise prediction at alpha = 0.

    Reference: Liu et al. 2024, arXiv 2312.07243, section 3.

    >>> import diffsample as ds
    >>> schedule = ds.solvers.Decisions((1.0, 0.6, 0.3, 0.05), (1, 2, 2), ("data", "noise", "data"))
    >>> usf(ds.VariancePreserving(), schedule).calls
    3
    """
    grid = as_grid(process, decisions.times)
    _check_given("mean", mean, "mean" == decisions.first, "first='mean'")
    _check_given("statistics", statistics, "v3" in decisions.predictions, "the prediction 'v3'")
    kinds: dict[str, Kind] = {"noise": NOISE_KIND, "data": DATA_KIND}
    if statistics is not None:
        kinds["v3"] = statistics
    levels = [Level(*map(float, level)) for level in zip(*grid.levels, strict=True)]
    return assemble(grid, decisions, levels, kinds, mean, order=implied_order(decisions, levels))


def assemble(
    grid: Grid,
    decisions: Decisions,
    levels: Sequence[Level],
    kinds: Mapping[str, Kind],
    mean: ArrayLike | None = None,
    gammas: Gammas | None = None,
    order: int | None = None,
) -> Tableau:
    """The table of a schedule at these levels, and with these gammas, either of which may be traced.

    Args:
        grid: names the process and the level of the initial state.
        decisions: everything but the times, and but the gammas that are given; corrections are derivative 0.
        levels: [N + 1].
        kinds: predictions by name.
        mean: of the data, in place of the first call.
        gammas: of linear relaxations, by (step, derivative).
        order: declared.
    """
    walk = _Walk(grid, decisions, levels, kinds, gammas or {})
    if decisions.first != "call":
        walk.give(walk.program.constant(mean) if mean is not None else Vector({}))
    for event in walk.plan.events:
        {"call": walk.call, "correct": walk.correct, "predict": walk.predict}[event.what](event)
    walk.program[0] = walk.held["final", decisions.steps]
    return walk.program.tableau("usf", order=order)


class _Walk:
    """The run of a schedule, written down event by event."""

    def __init__(
        self, grid: Grid, decisions: Decisions, levels: Sequence[Level], kinds: Mapping[str, Kind], gammas: Gammas
    ):
        self.plan = plan(decisions)
        self.program = Program(grid, self.plan.registers)
        self.decisions, self.levels, self.kinds, self.gammas = decisions, levels, kinds, gammas
        self.inner = inner_levels(decisions)
        self.held = {("final", 0): self.program[0]}  # states within reach, as vectors of this update
        self.outputs: dict[int, tuple[str, Vector]] = {}  # level -> (prediction, its vector)
        self.calls = self.stage = 0

    def give(self, x0: Vector) -> None:
        """What stands for the output of the first call."""
        self.outputs[0] = ("data", x0)

    def call(self, event: Event) -> None:
        level, carried = event.number, self.plan.carried[self.calls]
        fresh = level not in self.inner and level not in self.outputs
        self.stage = 0 if fresh or not self.calls else self.stage + 1
        reached = next(i for i in range(level + 1, self.decisions.steps + 1) if i not in self.inner)
        prediction = self.plan.keeps[level, event.state]
        u, w = self.kinds[prediction].channel(self.levels[level])
        self.program[0] = self.held[event.state]
        for state, register in carried.items():
            self.program[register] = self.held[state]
        output = self.program.call(self.levels[level], self.levels[reached], x0=u, eps=w, stage=self.stage)
        self.outputs[level] = (prediction, output)
        self.held = {event.state: self.program[0]} | {s: self.program[r] for s, r in carried.items()}
        self.calls += 1

    def predict(self, event: Event) -> None:
        i, d = event.number, self.decisions
        self.held[event.state] = self._expand(
            i, d.derivatives[i], [derivative.relaxation for derivative in d.derivatives[i]]
        )

    def correct(self, event: Event) -> None:
        i, d = event.number, self.decisions
        derivatives = corrected_derivatives(d, i)
        relaxations = [d.corrector_relaxations[i]] + [None] * (len(derivatives) - 1)
        s, t = self.levels[start_level(d, i)], self.levels[i + 1]
        if not isinstance(h := distance(s, t), float) or h < np.inf:
            self.held[event.state] = self._expand(i, derivatives, relaxations, correct=True)
        else:
            self.held[event.state] = self.held["predicted", i + 1]

    def _expand(
        self,
        i: int,
        derivatives: Sequence[Derivative],
        relaxations: Sequence[Relaxation | None],
        correct: bool = False,
    ) -> Vector:
        """The state that step i reaches with these derivatives."""
        start = start_level(self.decisions, i)
        s, t = self.levels[start], self.levels[i + 1]
        kind, h = self.kinds[self.decisions.predictions[i]], distance(s, t)
        step = kind.step(s, t, len(derivatives) + 1)

        def place(point: int) -> Any:
            return place_of(self.levels[i + 1 + point], s, h, after=i + 1 + point > start)

        def factor(k: int) -> Any:
            return relaxed(relaxations[k - 1], step.z, h, self.gammas.get((i, 0 if correct else k)))

        first, weights = weigh(step, derivatives, place, factor)
        used = [(start, first), *((i + 1 + point, weight) for point, weight in weights.items())]
        terms = (weight * kind.gauge(s, self.levels[level]) * self._output(i, level) for level, weight in used)
        reached = step.carry * self.held["final", start] + step.total * sum(terms, Vector({}))
        shift = kind.shift(s, t, step.total, [(weight, self.levels[level]) for level, weight in used])
        return reached if shift is None else reached + self.program.constant(shift)

    def _output(self, step: int, level: int) -> Vector:
        """The prediction that a step expands, of a level's call."""
        wanted = self.decisions.predictions[step]
        kept, vector = self.outputs[level]
        if kept == wanted:
            return vector
        at = self.levels[level]
        (u, w), (u_new, w_new) = self.kinds[kept].channel(at), self.kinds[wanted].channel(at)
        state = self.held[self._called(level)]  # alpha x0 + sigma eps
        det = u * at.sigma - w * at.alpha
        return ((u_new * at.sigma - w_new * at.alpha) / det) * vector + ((u * w_new - w * u_new) / det) * state

    def _called(self, level: int) -> tuple[str, int]:
        return called_state(self.decisions, level)


def _check_given(name: str, value: Any, used: bool, user: str) -> None:
    if used and value is None:
        raise ValueError(f"{user} needs {name}=..., which was not given")
    if not used and value is not None:
        raise ValueError(f"{name} was given, and nothing in these decisions uses it: only {user} does")
