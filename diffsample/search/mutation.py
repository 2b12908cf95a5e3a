"""Random schedules, their mutation and their crossover, all of one number of network calls.

A schedule is taken apart into its times and its steps; what comes out is put together under the rules of the space
(an order has that many outputs, the last step no corrector, times fall), so that every child is valid.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from diffsample.search.space import Rates, Space, pick
from diffsample.solvers.decisions import HIGHEST, Decisions, Derivative, Relaxation, nearest

TRIES = 200  # draws of a time before it is drawn afresh between the ends


class Step(NamedTuple):
    """The decisions of one step."""

    order: int
    prediction: str
    start: int
    derivatives: tuple[Derivative, ...]
    corrector: str
    corrector_order: int
    corrector_relaxation: Relaxation | None


class Parts(NamedTuple):
    """A schedule taken apart; lists are changed in place."""

    times: list[float]
    steps: list[Step]
    first: str


def random_schedule(rng: np.random.Generator, space: Space, nfe: int) -> Decisions:
    """A schedule of so many network calls, every decision drawn by the weights of the space.

    >>> random_schedule(np.random.default_rng(0), Space(1.0, (0.01, 0.01)), nfe=5).nfe
    5
    """
    if nfe < 1:
        raise ValueError(f"nfe={nfe} must be at least 1")
    first = pick(rng, space.first)
    n = nfe + (first != "call")
    ramp = np.linspace(1.0, 0.0, n + 1)
    stop, rho = rng.uniform(*space.stop), rng.uniform(*space.warp)
    root = stop ** (1 / rho)
    times = (root + (space.start ** (1 / rho) - root) * ramp) ** rho
    steps = [_random_step(rng, space, i) for i in range(n)]
    parts = Parts(_jittered(rng, times.tolist(), space), steps, first)
    _fit_calls(rng, parts, space, nfe)
    return _joined(parts, space)


def mutate(rng: np.random.Generator, parent: Decisions, space: Space) -> Decisions:
    """A child with as many network calls: steps more or less, times moved, decisions of every step redrawn at random.

    Args:
        rng: NumPy generator. parent: any valid schedule. space: with its `rates`.

    Reference: the mutation of the code released with Liu et al. 2024, arXiv 2312.07243.

    >>> space = Space(1.0, (0.01, 0.01))
    >>> parent = Decisions((1.0, 0.4, 0.1, 0.01), (1, 2, 2), ("data",) * 3)
    >>> mutate(np.random.default_rng(0), parent, space).nfe
    3
    """
    rates, parts = space.rates, _taken_apart(parent)
    if rng.random() < rates.insert:
        _insert(rng, parts, space, _random_step(rng, space, len(parts.steps)))
    if rng.random() < rates.delete:
        _delete(rng, parts)
    first = pick(rng, space.first) if rng.random() < rates.first else parts.first
    steps = [_mutated_step(rng, step, space, i) for i, step in enumerate(parts.steps)]
    changed = Parts(_jittered(rng, parts.times, space), steps, first)
    _fit_calls(rng, changed, space, parent.nfe)
    return _joined(changed, space)


def crossover(rng: np.random.Generator, one: Decisions, other: Decisions, space: Space) -> Decisions:
    """A child of two schedules with equally many steps and calls; both contribute.

    Times, predictions, orders with their derivatives, correctors and the first call each come from a parent at random;
    with probability `rates.stepwise` predictions and orders come step by step.

    Raises:
        ValueError: parents of different lengths.
    """
    if (one.steps, one.nfe) != (other.steps, other.nfe):
        raise ValueError(
            f"parents have {one.steps} and {other.steps} steps, {one.nfe} and {other.nfe} calls: need equal"
        )
    parents = _taken_apart(one), _taken_apart(other)
    while True:
        times, predictions, orders, correctors, first = (int(k) for k in rng.integers(2, size=5))
        if len({times, predictions, orders, correctors, first}) == 2:
            break
    n = one.steps
    by_prediction, by_order = np.full(n, predictions), np.full(n, orders)
    if rng.random() < space.rates.stepwise:
        by_prediction, by_order = rng.integers(2, size=(2, n))
    steps = []
    for i, pair in enumerate(zip(parents[0].steps, parents[1].steps, strict=True)):
        expanded, corrected = pair[by_order[i]], pair[correctors]
        corrector_order = corrected.corrector_order if corrected.order == expanded.order else 0
        steps.append(expanded._replace(
            prediction=pair[by_prediction[i]].prediction, corrector=corrected.corrector,
            corrector_order=corrector_order, corrector_relaxation=corrected.corrector_relaxation,
        ))  # fmt: skip
    child = Parts(list(parents[times].times), steps, parents[first].first)
    _fit_calls(rng, child, space, one.nfe)
    return _joined(child, space)


def _taken_apart(schedule: Decisions) -> Parts:
    columns = (schedule.orders, schedule.predictions, schedule.starts, schedule.derivatives, schedule.correctors,
               schedule.corrector_orders, schedule.corrector_relaxations)  # fmt: skip
    return Parts(list(schedule.times), [Step(*row) for row in zip(*columns, strict=True)], schedule.first)


def _joined(parts: Parts, space: Space) -> Decisions:
    last = len(parts.steps) - 1
    steps = [_capped(step, i, i == last, space.ends_clean) for i, step in enumerate(parts.steps)]
    columns = zip(*steps, strict=True)
    orders, predictions, starts, derivatives, correctors, corrector_orders, corrector_relaxations = columns
    return Decisions(parts.times, orders, predictions, starts, derivatives, correctors, parts.first, corrector_orders,
                     corrector_relaxations)  # fmt: skip


def _capped(step: Step, i: int, last: bool, clean: bool) -> Step:
    """What a step may be at its place: as many outputs as there are, no corrector last, order 1 into sigma = 0."""
    order = 1 if last and clean else min(step.order, i + 1, HIGHEST)
    start = step.start if step.start >= -i - 1 else -1
    known = {point for derivative in step.derivatives for point in derivative.points}
    derivatives = step.derivatives
    if (
        (order, start) != (step.order, step.start)
        or len(derivatives) != order - 1
        or not known <= set(range(-i - 1, 0))
    ):
        derivatives = nearest(order, start, derivatives[0].relaxation if derivatives else None)
    corrector = "none" if last else step.corrector
    if corrector == "none":
        return Step(order, step.prediction, start, derivatives, "none", 0, None)
    corrected = step.corrector_order if 2 <= step.corrector_order <= order + 1 else order + 1
    return Step(order, step.prediction, start, derivatives, corrector, corrected, step.corrector_relaxation)


def _random_step(rng: np.random.Generator, space: Space, i: int) -> Step:
    order = min(pick(rng, space.orders), i + 1)
    derivatives = _estimates(rng, space, order, -1, pick(rng, space.relaxations))
    corrector = pick(rng, space.correctors)
    return Step(order, pick(rng, space.predictions), -1, derivatives, corrector, 0, None)


def _estimates(
    rng: np.random.Generator, space: Space, order: int, start: int, relaxation: Relaxation | None
) -> tuple[Derivative, ...]:
    """Every derivative from a random number of the nearest outputs, as many as it needs at least."""
    full = nearest(order, start, relaxation)
    counts = [min(max(pick(rng, space.points), k), order - 1) for k in range(1, order)]
    return tuple(Derivative(d.points[:count], d.relaxation) for d, count in zip(full, counts, strict=True))


def _mutated_step(rng: np.random.Generator, step: Step, space: Space, i: int) -> Step:
    rates = space.rates
    if rng.random() < rates.order:
        order = min(pick(rng, space.orders), i + 1)
        relaxation = step.derivatives[0].relaxation if step.derivatives else None
        step = step._replace(order=order, derivatives=nearest(order, step.start, relaxation), corrector_order=0)
    if rng.random() < rates.prediction:
        step = step._replace(prediction=pick(rng, space.predictions))
    if step.derivatives and rng.random() < rates.points:
        relaxation = step.derivatives[0].relaxation
        step = step._replace(derivatives=_estimates(rng, space, step.order, step.start, relaxation))
    if step.derivatives:
        first, *others = step.derivatives
        step = step._replace(derivatives=(Derivative(first.points, _relaxed(rng, first.relaxation, space)), *others))
    if rng.random() < rates.corrector:
        step = step._replace(corrector=pick(rng, space.correctors), corrector_order=0, corrector_relaxation=None)
    return step


def _relaxed(rng: np.random.Generator, relaxation: Relaxation | None, space: Space) -> Relaxation | None:
    rates: Rates = space.rates
    if rng.random() < rates.relaxation:
        relaxation = pick(rng, space.relaxations)
    if rng.random() < rates.gamma and (relaxation is None or relaxation.kind == "linear"):
        gamma, power = (0.0, 1) if relaxation is None else (relaxation.gamma, relaxation.power)
        return Relaxation("linear", gamma + rates.gamma_std * rng.standard_normal(), power)
    return relaxation


def _jittered(rng: np.random.Generator, times: Sequence[float], space: Space) -> list[float]:
    """Inner times moved, falling, between the ends; the last one drawn in its range."""
    stop = float(rng.uniform(*space.stop))
    low, high = stop + space.margin, space.start - space.margin
    inner: list[float] = []
    for t in times[1:-1]:
        moved = (t * (1 + space.rates.jitter * rng.standard_normal()) for _ in range(TRIES))
        inner.append(next((m for m in moved if low < m < high and m not in inner), float(rng.uniform(low, high))))
    return [space.start, *sorted(inner, reverse=True), stop]


def _insert(rng: np.random.Generator, parts: Parts, space: Space, step: Step) -> None:
    """A step more, at a uniform time."""
    t = float(rng.uniform(parts.times[-1] + space.margin, space.start - space.margin))
    at = sum(other > t for other in parts.times)
    parts.times.insert(at, t)
    parts.steps.insert(at, step)


def _delete(rng: np.random.Generator, parts: Parts) -> None:
    """A step less, where there are two or more."""
    if len(parts.steps) > 1:
        at = int(rng.integers(1, len(parts.steps)))
        del parts.times[at], parts.steps[at]


def _fit_calls(rng: np.random.Generator, parts: Parts, space: Space, nfe: int) -> None:
    """Steps taken away or added until the schedule makes `nfe` calls; added ones have no implicit corrector."""

    def calls() -> int:
        parts.steps[-1] = parts.steps[-1]._replace(corrector="none")  # also where it will not be the last for long
        return len(parts.steps) + sum(step.corrector == "implicit" for step in parts.steps) - (parts.first != "call")

    while calls() > nfe:
        _delete(rng, parts)
    while calls() < nfe:
        step = _random_step(rng, space, len(parts.steps))
        _insert(rng, parts, space, step._replace(corrector="none") if step.corrector == "implicit" else step)
