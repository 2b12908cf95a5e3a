"""What a solver is worth in numbers: its order and what it integrates exactly, measured on the host in float64.

Two problems have reference solutions. A mixture of three Gaussians of one number, whose probability flow is known to 14
digits: the order of a deterministic solver. Gaussians, where the moments of the output follow from the table without a
draw: the weak order of a stochastic one. Both are posed in x / alpha over sigma / alpha, so that every process that
spans the levels measures alike, on grids uniform in log-SNR.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from diffsample.exact import Moments, output_moments, run_on_host
from diffsample.grid import Grid
from diffsample.process import Level, Process
from diffsample.tableau import Tableau
from diffsample.times import karras, uniform_logsnr

Solver: TypeAlias = Callable[[Process, Grid], Tableau]  # other arguments have defaults, or a lambda fixes them

WEIGHTS, MEANS, SPREADS = np.array([0.3, 0.45, 0.25]), np.array([-1.0, 0.3, 1.1]), np.array([0.35, 0.25, 0.4])
LAWS = tuple(Moments(0.5, variance) for variance in (0.01, 0.25, 4.0))  # of one, an error may vanish by chance
HIGH, LOW = 10.0, 0.1  # levels sigma / alpha between which weak orders are measured
ROUNDING = 1e-11  # errors below are not read
EXACT = 1e-10  # relative error of what counts as exact
DEGREES = 6  # polynomials tried, between levels 4 and 1/4
LENGTHS = range(6, 10)  # moves of the runs whose last steps are compared


class Flow(NamedTuple):
    """A stretch of the mixture's probability flow."""

    high: float  # sigma / alpha at the start
    low: float
    start: np.ndarray  # x / alpha, [9]
    end: np.ndarray  # DOP853 in log-SNR at the tightest tolerance, good to 3e-14
    steps: tuple[int, int, int]  # each twice the last


FROM_NOISE = Flow(
    152.16697028394637, 0.04468770900950956, np.linspace(-2, 2, 9) * 152.17025611266948,
    np.array([-1.506183258412964, -1.2696401072785912, -0.9749821442090412, -0.1953038719276214, 0.2576772258160127,
              0.5367947740707806, 0.9688667884231721, 1.3496187490107252, 1.6367913988996732]),
    (128, 256, 512),
)  # fmt: skip
FROM_MIDWAY = Flow(
    2.0, 0.25,
    np.array([-2.614685091023019, -1.9463580284074615, -1.278016875860209, -0.610138268570626, 0.05686187400309203,
              0.7226526827597894, 1.38699932116402, 2.049761180034203, 2.7108803573990023]),
    np.array([-1.1623840765077804, -0.9183252128408647, -0.5377502249726326, -0.051714969788005626, 0.21500178356029293,
              0.4313355912583037, 0.6507908738731069, 0.8980626583253932, 1.1589689181979312]),
    (64, 128, 256),
)  # fmt: skip


class Polynomial(NamedTuple):
    """A prediction that depends on the level alone: place(sigma / alpha) ** degree is x0, or eps."""

    degree: int
    gives_eps: bool
    place: Callable[[Any], Any]  # of NumPy: log or positive


def measured_order(solver: Solver, process: Process, flow: Flow = FROM_NOISE) -> float:
    """Slope of the error, mean square over nine paths of the mixture's probability flow, against the number of moves.

    FROM_NOISE is the usual run, whose first steps hardly matter; on FROM_MIDWAY, from sigma / alpha = 2, a start with
    steps of low order shows.

    >>> import diffsample as ds
    >>> round(measured_order(ds.solvers.dpmpp, ds.VariancePreserving()), 1)
    2.0
    """
    return flow_order(lambda grid, x: run_on_host(solver(process, grid), _mixture_x0, x), process, flow)


def flow_order(
    run: Callable[[Grid, np.ndarray], np.ndarray], process: Process, flow: Flow, rounding: float = ROUNDING
) -> float:
    """`measured_order` of whatever runs the mixture's states x from the first level of a grid to its last."""
    start, stop = time_of(process, flow.high), time_of(process, flow.low)

    def error(steps: int) -> float:
        grid = uniform_logsnr(process, steps, start=start, stop=stop, zero=False)
        out = run(grid, grid.alpha[0] * flow.start)
        return float(np.sqrt(np.mean((out / grid.alpha[-1] - flow.end) ** 2)))

    return slope(error, flow.steps, rounding)


def measured_weak_order(solver: Solver, process: Process) -> float:
    """Slope of the error in mean and variance on Gaussian data, from exact moments of the output, without a draw.

    >>> import diffsample as ds
    >>> round(measured_weak_order(ds.solvers.ddpm, ds.VariancePreserving()), 1)
    1.0
    """
    start, stop = time_of(process, HIGH), time_of(process, LOW)

    def error(steps: int) -> float:
        grid = uniform_logsnr(process, steps, start=start, stop=stop, zero=False)
        table = solver(process, grid)
        return float(np.sqrt(np.mean([moment_error(table, grid, law) ** 2 for law in LAWS])))

    return slope(error, FROM_NOISE.steps)


def moment_error(tableau: Tableau, grid: Grid, data: Moments) -> float:
    """Error of the output's law from the exact start: of the mean in standard deviations, of the variance relative.

    Where the output has no variance, errors are absolute. The larger of both.
    """
    alpha, variance = grid.alpha, grid.alpha**2 * data.variance + grid.sigma**2
    out = output_moments(tableau, data, Moments(float(alpha[0] * data.mean), float(variance[0])))
    scale = float(variance[-1]) or 1.0
    return float(max(abs(out.variance - variance[-1]) / scale, abs(out.mean - alpha[-1] * data.mean) / scale**0.5))


def exact_degrees(solver: Solver, process: Process) -> tuple[int, int, int]:
    """Degrees up to which steps are exact: x0 polynomial in log-SNR, eps in log-SNR, eps in sigma / alpha; -1 is none.

    The prediction is a given polynomial of the level, whatever x is. On a Karras grid, where nothing is uniform, the
    errors of the start are carried along unchanged, and those of the last steps must not add to them.
    """

    table = functools.cache(functools.partial(solver, process))

    def run(grid: Grid, given: Polynomial) -> float:
        def denoise(x: np.ndarray, level: Level) -> np.ndarray:
            value = given.place(level.sigma / level.alpha) ** given.degree
            return (x - level.sigma * value) / level.alpha if given.gives_eps else value

        return float(run_on_host(table(grid), denoise, 0.0))

    return polynomial_degrees(run, process)


def polynomial_degrees(run: Callable[[Grid, Polynomial], float], process: Process) -> tuple[int, int, int]:
    """`exact_degrees` of whatever runs the state 0 along a grid where the prediction is a polynomial."""
    cases = ((False, np.log), (True, np.log), (True, np.positive))
    x0, eps, eps_noise = (_degree(run, process, *case) for case in cases)
    return x0, eps, eps_noise


def _degree(
    run: Callable[[Grid, Polynomial], float],
    process: Process,
    gives_eps: bool,
    place: Callable[[np.ndarray], np.ndarray],
) -> int:
    """Highest degree in the coordinate `place`, of sigma / alpha, up to which x0 (or eps) is integrated exactly."""
    grid = karras(process, LENGTHS[-1], start=time_of(process, 4.0), stop=time_of(process, 0.25), zero=False)
    ends = np.array([1 / (grid.alpha if gives_eps else grid.sigma)[n] for n in LENGTHS])
    nodes, weights = np.polynomial.legendre.leggauss(24)

    def change(i: int) -> float:
        """Of the exact x / alpha (or x / sigma) over move i."""
        a, b = grid.half_logsnr[i : i + 2]
        noise = np.exp(-(a + b) / 2 - (b - a) / 2 * nodes)
        return float((b - a) / 2 * (weights * place(noise) ** degree * (-noise if gives_eps else 1 / noise)).sum())

    for degree in range(DEGREES):
        given = Polynomial(degree, gives_eps, place)
        reached = ends * [run(Grid(process, grid.t[: n + 1]), given) for n in LENGTHS]
        defect = reached - np.cumsum([0.0, *map(change, range(LENGTHS[0], LENGTHS[-1]))])
        if not np.ptp(defect) <= EXACT * np.abs(reached).max():
            return degree - 1
    return DEGREES - 1


def slope(error: Callable[[int], float], steps: Sequence[int], rounding: float = ROUNDING) -> float:
    """Slope between the finer two grids, its next-order term removed by that between the coarser two: 2 s' - s.

    Grids where the error is below rounding are replaced by coarser ones; inf if it is below there too.
    """
    errors = [error(n) for n in steps]
    while errors[-1] < rounding and steps[0] >= 8:
        steps = [n // 2 for n in steps]
        errors = [error(steps[0]), *errors[:-1]]
    if errors[-1] < rounding:
        return float("inf")
    coarse, fine = -np.diff(np.log2(errors))
    return float(2 * fine - coarse)


def time_of(process: Process, noise: float) -> float:
    """The time where sigma / alpha = noise.

    Raises:
        ValueError: the process does not reach it.
    """
    t = float(process.t_from_half_logsnr(-np.log(noise)))
    if not t <= process.t_max * (1 + 1e-9):
        raise ValueError(f"a certificate needs levels sigma / alpha up to {noise:.6g}, and {process} ends before; take "
                         f"VariancePreserving() or VarianceExploding(0.002, 160.0)")  # fmt: skip
    return min(t, process.t_max)


def _mixture_x0(x: np.ndarray, level: Level) -> np.ndarray:
    """E[x0 | x_t] of the mixture, elementwise."""
    var = level.alpha**2 * SPREADS**2 + level.sigma**2
    u = x[..., None] - level.alpha * MEANS
    log_r = np.log(WEIGHTS / np.sqrt(var)) - u**2 / (2 * var)
    r = np.exp(log_r - log_r.max(-1, keepdims=True))
    return ((MEANS + level.alpha * SPREADS**2 / var * u) * r).sum(-1) / r.sum(-1)
