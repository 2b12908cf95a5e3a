"""Schedules as plain arrays: what the predictor reads, and what a search hands back as its history."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from diffsample.solvers.decisions import CORRECTORS, FIRST, HIGHEST, PREDICTIONS, RELAXATIONS, Decisions


class Encoded(NamedTuple):
    """M schedules of at most L steps; entries after a schedule's last step are 0, of `times` its last time."""

    times: np.ndarray  # [M, L+1] float64
    steps: np.ndarray  # [M] int32, N
    orders: np.ndarray  # [M, L] int32, 1 to 4
    predictions: np.ndarray  # [M, L] int32, index in PREDICTIONS
    starts: np.ndarray  # [M, L] int32, how many states back it starts, 1 the newest
    points: np.ndarray  # [M, L, 3] int32, outputs that estimate each derivative
    relaxations: np.ndarray  # [M, L] int32, of the first derivative: 0 none, else 1 + index in RELAXATIONS
    gammas: np.ndarray  # [M, L] float32, of a linear relaxation
    correctors: np.ndarray  # [M, L] int32, index in CORRECTORS
    corrector_orders: np.ndarray  # [M, L] int32, 0 without a corrector
    corrector_relaxations: np.ndarray  # [M, L] int32, as `relaxations`
    first: np.ndarray  # [M] int32, index in FIRST


def encode(schedules: Sequence[Decisions], longest: int | None = None) -> Encoded:
    """Arrays of the schedules, padded to `longest` steps (default: those of the longest).

    >>> encode([Decisions((1.0, 0.5, 0.1), (1, 2), ("data", "noise"))], longest=3).orders.tolist()
    [[1, 2, 0]]
    """
    m, length = len(schedules), longest or max(schedule.steps for schedule in schedules)
    whole = lambda *shape: np.zeros((m, *shape), np.int32)  # noqa: E731
    out = Encoded(
        np.zeros((m, length + 1)), whole(), whole(length), whole(length), whole(length), whole(length, HIGHEST - 1),
        whole(length), np.zeros((m, length), np.float32), whole(length), whole(length), whole(length), whole(),
    )  # fmt: skip
    for k, d in enumerate(schedules):
        if d.steps > length:
            raise ValueError(f"schedule {k} has {d.steps} steps, more than longest={length}")
        out.times[k] = (*d.times, *[d.times[-1]] * (length - d.steps))
        out.steps[k], out.first[k] = d.steps, FIRST.index(d.first)
        for i in range(d.steps):
            _put(out, k, i, d)
    return out


def _put(out: Encoded, k: int, i: int, d: Decisions) -> None:
    out.orders[k, i], out.starts[k, i] = d.orders[i], -d.starts[i]
    out.predictions[k, i] = PREDICTIONS.index(d.predictions[i])
    out.correctors[k, i], out.corrector_orders[k, i] = CORRECTORS.index(d.correctors[i]), d.corrector_orders[i]
    for j, derivative in enumerate(d.derivatives[i]):
        out.points[k, i, j] = len(derivative.points)
    relaxed = d.derivatives[i][0].relaxation if d.derivatives[i] else None
    corrected = d.corrector_relaxations[i]
    out.relaxations[k, i] = 0 if relaxed is None else 1 + RELAXATIONS.index(relaxed.kind)
    out.gammas[k, i] = 0.0 if relaxed is None else relaxed.gamma
    out.corrector_relaxations[k, i] = 0 if corrected is None else 1 + RELAXATIONS.index(corrected.kind)
