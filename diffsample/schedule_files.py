"""Solver schedules on the command line: a JSON file, or "s3", the schedules found for the shipped digits.

A schedule brings its times with it, so the options of a grid or of a solver do not apply beside one.
"""

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffsample.grid import Grid
from diffsample.nets import digits
from diffsample.process import Process, VariancePreserving
from diffsample.solvers import Decisions, usf
from diffsample.tableau import Tableau

SHIPPED, USUAL_CALLS = "s3", 10
TRAINED = (0.002, 160.0)  # sigma / alpha that the network has seen


def solver_name(known: Mapping[str, Any]) -> Any:
    """The argparse type of `--solver`: a known name, "s3", or the path of a schedule."""

    def read(text: str) -> str:
        if text in known or is_schedule(text):
            return text
        names = ", ".join(map(repr, [*known, SHIPPED]))
        raise argparse.ArgumentTypeError(f"invalid choice: {text!r} (choose from {names}, or a schedule's FILE.json)")

    return read


def is_schedule(solver: str) -> bool:
    """Whether `--solver` names a schedule."""
    return solver == SHIPPED or solver.endswith(".json")


def refuse_beside_schedule(solver: str, given: Mapping[str, Any]) -> None:
    """Raise ValueError where an option is given that a schedule decides by itself."""
    for name, value in given.items():
        if value is not None:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} does not apply to --solver {solver}, which has decisions and times of its own")


def schedule_table(solver: str, process: Process, calls: int | None = None) -> tuple[Grid, Tableau]:
    """The grid and the table of a schedule.

    Args:
        solver: "s3", whose times are moved to the process by equal log-SNR, or a file with times of this process.
        process: of the sampler.
        calls: which shipped schedule; a file has a number of its own.

    Raises:
        ValueError: no such shipped schedule; a file that is no schedule, or that leaves the model's noise levels.
    """
    if solver == SHIPPED:
        schedule = on_process(digits.schedule(calls or USUAL_CALLS), VariancePreserving(), process)
    else:
        schedule = Decisions.load(Path(solver))
    grid = Grid(process, np.array(schedule.times))
    noisy = grid.t > 0
    noise = grid.sigma[noisy] / grid.alpha[noisy]
    if not ((TRAINED[0] <= noise) & (noise <= TRAINED[1])).all():
        span = f"from {noise.max():g} to {noise.min():g}"
        raise ValueError(f"{solver} has noise / signal {span}, the model was trained in {TRAINED}: was it found on "
                         f"another process?")  # fmt: skip
    mean = digits.load().mean.reshape(digits.SHAPE) if schedule.first == "mean" else None
    return grid, usf(process, schedule, mean=mean)


def on_process(schedule: Decisions, source: Process, target: Process) -> Decisions:
    """The same schedule at times of equal log-SNR of another process; samples are the same, up to rounding."""
    if source == target:
        return schedule
    inner = np.array([t for t in schedule.times if t > 0])
    moved = target.t_from_half_logsnr(source.half_logsnr(inner)).tolist()
    return dataclasses.replace(schedule, times=(*moved, *(0.0 for t in schedule.times if t == 0)))
