"""One-step methods of several calls: Heun, with the churn of EDM."""

from collections.abc import Sequence
from math import inf, log, sqrt

from diffsample.grid import Grid, as_grid
from diffsample.process import Level, Process
from diffsample.program import Program
from diffsample.solvers.moves import rescaled_noise
from diffsample.tableau import Tableau


def heun(
    process: Process,
    times: Grid | Sequence[float],
    *,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = inf,
    churn_noise: float = 1.0,
) -> Tableau:
    """Heun on dx/dsigma = eps in the coordinates x / alpha, sigma / alpha, with the churn of EDM.

    Order 2 (weak order 2 with churn), two calls a step and one in a last step into sigma = 0: 2N - 1 calls on a grid
    of N moves that ends clean. Churn raises the noise by 1 + min(churn / N, sqrt(2) - 1) before a step.

    Args:
        process, times: as for `ddim`, but alpha > 0 at the start.
        churn: total churn S_churn; 0 draws no noise.
        churn_min, churn_max: levels sigma / alpha between which it churns.
        churn_noise: S_noise, standard deviation of the added noise relative to the exact one.

    Reference: Karras et al. 2022, arXiv 2206.00364, algorithm 2.

    >>> import diffsample as ds
    >>> process = ds.VarianceExploding()
    >>> ds.solvers.heun(process, ds.times.karras(process, 18)).calls
    35
    """
    if churn < 0 or churn_noise < 0:
        raise ValueError(f"churn={churn} and churn_noise={churn_noise} must not be negative")
    grid = as_grid(process, times)
    program = Program(grid, registers=2)
    for s, t in program.moves():
        factor = 1 + min(churn / grid.steps, sqrt(2) - 1) * (churn_min <= rescaled_noise(s) <= churn_max)
        start = _raise_noise(process, s, factor)
        if factor > 1:
            added = churn_noise * start.alpha * sqrt(rescaled_noise(start) ** 2 - rescaled_noise(s) ** 2)
            program[0] = (start.alpha / s.alpha) * program[0] + added * program.noise()
        if not t.sigma:
            program[0] = program.call(start, t, x0=t.alpha)
            continue
        step = t.alpha * (rescaled_noise(t) - rescaled_noise(start))
        left = program.call(start, t, eps=1.0)
        program[0] = (t.alpha / start.alpha) * program[0]
        program[1] = program[0] + step * left
        right = program.call(t, t, eps=1.0, register=1, stage=1)
        program[0] += (step / 2) * (left + right)
    return program.tableau("heun", order=2)


def _raise_noise(process: Process, level: Level, factor: float) -> Level:
    if factor == 1:
        return level
    t = float(process.t_from_half_logsnr(-log(factor * rescaled_noise(level))))
    if not t <= process.t_max * (1 + 1e-9):
        raise ValueError(
            f"churn at t = {level.t:g} asks for a level beyond the end of {process}, t = {process.t_max:g}; "
            f"set churn_max below {rescaled_noise(level):g}"
        )
    return Level(*map(float, process.level(t)))
