"""Restart: stretches of the path taken again from added noise, which contracts the errors made before."""

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

from diffsample.grid import Grid, as_grid
from diffsample.process import Level, Process
from diffsample.program import Program
from diffsample.solvers.levels import level_at
from diffsample.solvers.moves import rescaled_noise
from diffsample.solvers.runge_kutta import heun_step
from diffsample.tableau import Tableau
from diffsample.times import karras


class Segment(NamedTuple):
    """A stretch to repeat; levels are sigma / alpha."""

    points: int  # levels from high to low, both included
    repeats: int
    low: float  # it starts where the main run comes nearest to this level
    high: float


def restart(
    process: Process,
    times: Grid | Sequence[float],
    *,
    segments: Sequence[Segment | tuple[int, int, float, float]],
    noise: float = 1.0,
    rho: float = 7.0,
) -> Tableau:
    """Restart: Heun on the grid; at the point nearest to a segment's low level, its repeats of noise up and Heun down.

    Each repeat adds sqrt(high^2 - low^2) z in x / alpha, with low the level of the grid point, then takes points - 1
    Heun steps on a Karras grid from high to low. Order 2 (weak order 2) if the points of the segments grow with the
    grid; 2N - 1 + sum 2 (points - 1) repeats calls on a grid of N moves that ends clean; repeats = 0 is `heun`.
    Segments at one point follow each other as given.

    Args:
        process, times: as for `heun`.
        segments: (points, repeats, low, high) each, the order of the published configurations.
        noise: S_noise, standard deviation of the added noise relative to the exact one.
        rho: exponent of the Karras grids.

    Raises:
        ValueError: points < 2, repeats < 0, high not above its grid point or beyond the process, no noisy grid point
            to start from, negative noise.

    Reference: Xu et al. 2023, arXiv 2306.14878, section 3.

    >>> import diffsample as ds
    >>> process = ds.VarianceExploding()
    >>> ds.solvers.restart(process, ds.times.karras(process, 18), segments=[(3, 2, 0.14, 0.30)]).calls
    43
    """
    if noise < 0:
        raise ValueError(f"noise={noise} must not be negative")
    grid = as_grid(process, times)
    program = Program(grid, registers=2)
    moves = list(program.moves())
    plans = [(_nearest([t for _, t in moves], segment), segment) for segment in map(lambda g: Segment(*g), segments)]
    for s, t in moves:
        heun_step(program, s, t)
        for point, segment in plans:
            if point == t:
                _repeat(program, t, segment, noise, rho)
    return program.tableau("restart", order=2)


def _nearest(levels: Sequence[Level], segment: Segment) -> Level:
    """The noisy level of the grid nearest to a segment's low end, where the segment starts."""
    if segment.points < 2 or segment.repeats < 0:
        raise ValueError(f"{segment} needs at least 2 points and no negative number of repeats")
    noisy = [level for level in levels if level.sigma]
    if not noisy:
        raise ValueError(f"{segment} has no grid point with noise left to start from")
    found = min(noisy, key=lambda level: abs(rescaled_noise(level) - segment.low))
    if not segment.high > rescaled_noise(found):
        raise ValueError(f"{segment} must go above the level of its grid point, {rescaled_noise(found):g}")
    return found


def _repeat(program: Program, low: Level, segment: Segment, noise: float, rho: float) -> None:
    process, high = program.grid.process, level_at(program.grid.process, segment.high)
    if not high.t <= process.t_max:
        raise ValueError(f"{segment} starts beyond the end of {process}, t = {process.t_max:g}")
    grid = karras(process, segment.points - 1, rho=rho, start=high.t, stop=low.t, zero=False)
    added = noise * high.alpha * sqrt(rescaled_noise(high) ** 2 - rescaled_noise(low) ** 2)
    for _ in range(segment.repeats):
        program[0] = (high.alpha / low.alpha) * program[0] + added * program.noise()
        for s, t in Program(grid).moves():
            heun_step(program, s, t)
