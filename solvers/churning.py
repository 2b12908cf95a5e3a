"""Churn: noise raised before a step, so that the step works on a noisier state than the last one left."""

from math import sqrt

from diffsample.process import Level
from diffsample.program import Program
from diffsample.solvers.levels import level_at
from diffsample.solvers.moves import rescaled_noise


def add_churn(program: Program, level: Level, total: float, low: float, high: float, noise: float) -> Level:
    """Raise register 0 from a level to 1 + min(total / N, sqrt(2) - 1) times its noise; the level reached.

    Args:
        program: of a grid of N moves, its register 0 at `level`.
        level: where the state is.
        total: S_churn; 0 adds nothing.
        low, high: levels sigma / alpha between which it churns (S_min, S_max).
        noise: S_noise, standard deviation of the added noise relative to the exact one.

    Raises:
        ValueError: a negative amount, an empty range, or a raised level beyond the end of the process.

    Reference: Karras et al. 2022, arXiv 2206.00364, algorithm 2, lines 4 to 6.
    """
    if not (total >= 0 and noise >= 0):
        raise ValueError(f"churn={total} and churn_noise={noise} must not be negative")
    if not low <= high:
        raise ValueError(f"churn_min={low} must not lie above churn_max={high}")
    if not total or not low <= rescaled_noise(level) <= high:
        return level
    process = program.grid.process
    raised = level_at(process, rescaled_noise(level) * (1 + min(total / program.grid.steps, sqrt(2) - 1)))
    if not raised.t <= process.t_max * (1 + 1e-9):
        raise ValueError(
            f"churn at t = {level.t:g} asks for a level beyond the end of {process}, t = {process.t_max:g}; "
            f"set churn_max below {rescaled_noise(level):g}"
        )
    added = noise * raised.alpha * sqrt(rescaled_noise(raised) ** 2 - rescaled_noise(level) ** 2)
    program[0] = (raised.alpha / level.alpha) * program[0] + added * program.noise()
    return raised
