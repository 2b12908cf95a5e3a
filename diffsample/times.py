"""Time grids: where a sampler stops on its way from noise to data.

A grid holds strictly decreasing process times. Every builder is called as f(process, steps, ...), where `steps` is the
number of moves, which is the number of network calls of a one-call solver. With zero=True the grid has `steps` points
from start to stop and then t = 0; with zero=False it has steps + 1 points from start to stop. The end points are kept
exactly as given.
"""

import math
import operator
from collections.abc import Callable

import numpy as np

from diffsample.ays import ROUNDING, interpolate
from diffsample.ays import SD15 as SD15
from diffsample.ays import SDXL as SDXL
from diffsample.ays import SVD as SVD
from diffsample.betas import DiscreteBetas
from diffsample.grid import Grid as Grid
from diffsample.grid import as_grid as as_grid
from diffsample.grid import check_process
from diffsample.grid import custom as custom
from diffsample.process import Process


def uniform(
    process: Process, steps: int, *, start: float | None = None, stop: float | None = None, zero: bool = True
) -> Grid:
    """Grid uniform in t, from start (default t_max) to stop (default t_min).

    The usual grid of flow matching, 1 to 0 in equal moves, is uniform(process, steps, stop=0, zero=False).

    >>> from diffsample.process import FlowMatching
    >>> print(uniform(FlowMatching(), 4, stop=0, zero=False).t)
    [1.   0.75 0.5  0.25 0.  ]
    """
    start, stop = _ends(process, start, process.t_max, stop)
    return _build(process, steps, start, stop, zero, lambda ramp: start + (stop - start) * ramp)


def quadratic(
    process: Process, steps: int, *, start: float | None = None, stop: float | None = None, zero: bool = True
) -> Grid:
    """Grid uniform in sqrt(t), from start (default t_max) to stop (default t_min); finer near the data.

    Reference: Song et al. 2021 (DDIM), arXiv:2010.02502, appendix D.2.

    >>> from diffsample.process import VariancePreserving
    >>> print(quadratic(VariancePreserving(), 3, stop=0.25).t)
    [1.     0.5625 0.25   0.    ]
    """
    start, stop = _ends(process, start, process.t_max, stop)
    low, high = math.sqrt(stop), math.sqrt(start)
    return _build(process, steps, start, stop, zero, lambda ramp: (high + (low - high) * ramp) ** 2)


def uniform_logsnr(
    process: Process, steps: int, *, start: float | None = None, stop: float | None = None, zero: bool = True
) -> Grid:
    """Grid uniform in log-SNR, from start (default t_start) to stop (default t_min); k-diffusion calls it exponential.

    Reference: Lu et al. 2022 (DPM-Solver), arXiv:2206.00927, section 3.4.

    >>> from diffsample.process import VarianceExploding
    >>> print(uniform_logsnr(VarianceExploding(), 3, start=25.0, stop=1.0).t)
    [25.  5.  1.  0.]
    """
    return polyexponential(process, steps, rho=1.0, start=start, stop=stop, zero=zero)


def polyexponential(
    process: Process,
    steps: int,
    *,
    rho: float = 1.0,
    start: float | None = None,
    stop: float | None = None,
    zero: bool = True,
) -> Grid:
    """Grid with log(sigma/alpha) polynomial of degree rho in the step; rho = 1 is `uniform_logsnr`.

    rho > 1 puts more points at low noise. Reference: Crowson, k-diffusion (software), get_sigmas_polyexponential.

    >>> from diffsample.process import VarianceExploding
    >>> print(polyexponential(VarianceExploding(), 3, rho=2, start=16.0, stop=1.0).t)
    [16.  2.  1.  0.]
    """
    start, stop, high, low = _noisy_ends(process, start, stop, rho)

    def curve(ramp: np.ndarray) -> np.ndarray:
        return process.t_from_half_logsnr(-low - (high - low) * (1 - ramp) ** rho)

    return _build(process, steps, start, stop, zero, curve)


def karras(
    process: Process,
    steps: int,
    *,
    rho: float = 7.0,
    start: float | None = None,
    stop: float | None = None,
    zero: bool = True,
) -> Grid:
    """Grid uniform in (sigma/alpha)^(1/rho), from start (default t_start) to stop (default t_min).

    Reference: Karras et al. 2022 (EDM), arXiv:2206.00364, equation 5.

    >>> from diffsample.process import VarianceExploding
    >>> print(karras(VarianceExploding(), 18).t.round(3)[:4])
    [80.    57.586 40.786 28.375]
    """
    start, stop, high, low = _noisy_ends(process, start, stop, rho)
    high, low = math.exp(high / rho), math.exp(low / rho)

    def curve(ramp: np.ndarray) -> np.ndarray:
        return process.t_from_half_logsnr(-rho * np.log(high + (low - high) * ramp))

    return _build(process, steps, start, stop, zero, curve)


def equidistribute(
    process: Process,
    steps: int,
    density: Callable[[np.ndarray], np.ndarray],
    *,
    start: float | None = None,
    stop: float | None = None,
    zero: bool = True,
) -> Grid:
    """Grid with the same integral of a density over half log-SNR between any two neighbours.

    A method of order p with the local error C h^(p+1) makes the same error in every step on the density C^(1/(p+1));
    `solvers.equal_error_grid` measures it. A constant density gives `uniform_logsnr`.

    Args:
        process, steps, start, stop, zero: as for `uniform_logsnr`.
        density: of half log-SNR, positive; any scale. It is read at 4096 levels.

    Raises:
        ValueError: a density that is not finite and positive everywhere.

    >>> from diffsample.process import VarianceExploding
    >>> print(equidistribute(VarianceExploding(), 3, np.ones_like, start=25.0, stop=1.0).t.round(6))
    [25.  5.  1.  0.]
    """
    start, stop, high, low = _noisy_ends(process, start, stop, 1.0)
    levels = np.linspace(-high, -low, 4096)
    values = np.asarray(density(levels), np.float64)
    if values.shape != levels.shape or not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(f"density must be finite and positive at every half log-SNR from {-high:g} to {-low:g}")
    mass = np.append(0.0, np.cumsum(values[1:] + values[:-1]))

    def curve(ramp: np.ndarray) -> np.ndarray:
        return process.t_from_half_logsnr(np.interp(ramp * mass[-1], mass, levels))

    return _build(process, steps, start, stop, zero, curve)


def leading(process: DiscreteBetas, steps: int, *, offset: int = 0, drop_last: bool = False, zero: bool = True) -> Grid:
    """Table indices that are multiples of N // steps, plus offset; never reaches the noisiest index.

    Args:
        process: a beta table with N entries.
        steps: number of indices.
        offset: added to every index (Stable Diffusion's files say 1).
        drop_last: lay steps + 1 indices and leave out the last, as diffusers does for DPM-Solver and UniPC.
        zero: end at clean data; False ends at index 0, which offset = 0 already visits unless drop_last.

    Reference: Lin et al. 2024, arXiv:2305.08891, table 2.

    >>> print(leading(DiscreteBetas.linear(), 4).t)
    [0.751 0.501 0.251 0.001 0.   ]
    """
    steps, total = _table_steps(process, steps)
    count = steps + drop_last
    index = np.arange(count)[::-1] * (total // count) + offset
    return _from_indices(process, index[:steps], zero)


def linspace(process: DiscreteBetas, steps: int, *, drop_last: bool = False, zero: bool = True) -> Grid:
    """Table indices evenly spaced from N - 1 to 0, both included, rounded half to even.

    Args:
        process: a beta table with N entries.
        steps: number of moves.
        drop_last: lay steps + 1 indices and leave out index 0, as diffusers does for DPM-Solver and UniPC.
        zero: end at clean data; False ends at index 0, which drop_last then cannot leave out.

    Reference: Lin et al. 2024, arXiv:2305.08891, table 2.

    >>> print(linspace(DiscreteBetas.linear(), 4).t)
    [1.    0.667 0.334 0.001 0.   ]
    """
    steps, total = _table_steps(process, steps)
    index = np.round(np.linspace(total - 1, 0, steps + (drop_last or not zero)))
    return _from_indices(process, index[:steps], zero)


def trailing(process: DiscreteBetas, steps: int, *, zero: bool = True) -> Grid:
    """Table indices evenly spaced down from N - 1; the spacing that a zero-terminal-SNR table needs.

    Args:
        process: a beta table with N entries.
        steps: number of indices.
        zero: end at clean data; False ends at index 0.

    Reference: Lin et al. 2024, arXiv:2305.08891, table 2.

    >>> print(trailing(DiscreteBetas.linear(), 4).t)
    [1.   0.75 0.5  0.25 0.  ]
    """
    steps, total = _table_steps(process, steps)
    return _from_indices(process, np.round(total - np.arange(steps) * (total / steps)) - 1, zero)


def ays(process: Process, steps: int, *, table: tuple[float, ...] = SD15, zero: bool = True) -> Grid:
    """Align-Your-Steps grid: the levels sigma/alpha of a table, log-linear in between for other numbers of steps.

    Args:
        process: any process that reaches the table's first level.
        steps: number of moves; 10 gives the published levels themselves.
        table: SD15, SDXL, SVD, or any strictly decreasing positive levels.
        zero: end at clean data in place of the table's last level, as published; False keeps that level.

    Raises:
        ValueError: the table starts beyond the process's noisiest level (by more than the rounding of the tables).

    Reference: Sabour et al. 2024, arXiv:2404.14507.

    >>> from diffsample.process import VarianceExploding
    >>> print(ays(VarianceExploding(), 10).t[:3])
    [14.615  6.475  3.861]
    """
    sigma = interpolate(table, _whole("steps", steps))
    noisiest = math.exp(-process.half_logsnr(process.t_max))
    if sigma[0] > noisiest * (1 + ROUNDING):
        raise ValueError(
            f"the table starts at sigma/alpha = {sigma[0]:g}, but {process} ends at {noisiest:g};"
            " choose another table or a process with a wider range"
        )
    t = process.t_from_half_logsnr(-np.log(sigma))
    t[0] = min(t[0], process.t_max)
    if zero:
        t[-1] = 0.0
    return Grid(process, t)


def shift(grid: Grid, factor: float) -> Grid:
    """Move every point to factor times its sigma/alpha; for flow matching t -> factor t/(1 + (factor - 1) t).

    Pure noise and clean data stay where they are. Apply it once: it composes by multiplication.

    Args:
        grid: any grid; on processes that end at finite noise the moved points must stay in range.
        factor: positive; Stable Diffusion 3 uses 3, `dynamic_shift` gives one for an image size.

    Raises:
        ValueError: a factor that is not positive, or a point moved beyond t_max.

    Reference: Esser et al. 2024 (Stable Diffusion 3), arXiv:2403.03206, equation 23.

    >>> from diffsample.process import FlowMatching
    >>> print(shift(custom(FlowMatching(), [1.0, 0.5, 0.0]), 3.0).t)
    [1.   0.75 0.  ]
    """
    if not (factor > 0 and math.isfinite(factor)):
        raise ValueError(f"factor must be positive and finite, got {factor}")
    if factor == 1:
        return grid
    t = grid.process.t_from_half_logsnr(grid.half_logsnr - math.log(factor))
    if t[0] > grid.process.t_max:
        raise ValueError(
            f"factor={factor} moves t={grid.t[0]:g} to {t[0]:g}, beyond t_max={grid.process.t_max} of {grid.process};"
            " start the grid lower"
        )
    return Grid(grid.process, t)


def dynamic_shift(tokens: int) -> float:
    """Shift factor for an image of that many tokens: its logarithm is linear, 0.5 at 256 tokens and 1.15 at 4096.

    Reference: Black Forest Labs, FLUX.1 (software), sampling.

    >>> print(f"{dynamic_shift(4096):.4f}")
    3.1582
    """
    tokens = _whole("tokens", tokens)
    return math.exp(0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256))


def _whole(name: str, value: int) -> int:
    """A count given by the user: an int of at least 1, else an error that names it."""
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {value!r}") from None
    if isinstance(value, bool) or count < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return count


def _ends(process: Process, start: float | None, default: float, stop: float | None) -> tuple[float, float]:
    check_process(process)
    start = default if start is None else float(start)
    stop = process.t_min if stop is None else float(stop)
    if not 0 <= stop < start <= process.t_max:
        raise ValueError(f"a grid on {process} needs 0 <= stop < start <= {process.t_max}, got {start=}, {stop=}")
    return start, stop


def _noisy_ends(
    process: Process, start: float | None, stop: float | None, rho: float
) -> tuple[float, float, float, float]:
    """Both ends as times and as log(sigma/alpha), which must be finite."""
    if not (rho > 0 and math.isfinite(rho)):
        raise ValueError(f"rho must be positive and finite, got {rho}")
    start, stop = _ends(process, start, process.t_start, stop)
    high, low = (-float(process.half_logsnr(t)) for t in (start, stop))
    if not math.isfinite(high):
        raise ValueError(
            f"log-SNR is infinite at {start=}; start at {process.t_start} or lower, the t_start of {process}"
        )
    if not math.isfinite(low):
        raise ValueError(f"log-SNR is infinite at {stop=}; stop at a positive time, zero=True then appends t = 0")
    return start, stop, high, low


def _build(
    process: Process,
    steps: int,
    start: float,
    stop: float,
    zero: bool,
    curve: Callable[[np.ndarray], np.ndarray],
) -> Grid:
    """The points of a curve over [0, 1], its ends set exactly, then t = 0 if asked."""
    steps = _whole("steps", steps)
    if zero and stop == 0:
        raise ValueError("zero=True appends t = 0 after stop, so stop must be positive, got 0; or pass zero=False")
    t = np.asarray(curve(np.linspace(0.0, 1.0, steps + (not zero))))
    t[-1] = stop
    t[0] = start
    return Grid(process, np.append(t, 0.0) if zero else t)


def _table_steps(process: DiscreteBetas, steps: int) -> tuple[int, int]:
    if not isinstance(process, DiscreteBetas):
        raise TypeError(f"table indices exist on DiscreteBetas only, got {process}; use uniform or uniform_logsnr")
    steps, total = _whole("steps", steps), len(process.betas)
    if steps > total:
        raise ValueError(f"steps={steps} exceeds the {total} entries of {process}")
    return steps, total


def _from_indices(process: DiscreteBetas, index: np.ndarray, zero: bool) -> Grid:
    """Times of these indices, then clean data (whose index is -1) or index 0."""
    if index[0] > len(process.betas) - 1 or index[-1] < 0:
        raise ValueError(f"indices {index[0]:g} to {index[-1]:g} leave the table of {process}; lower steps or offset")
    if not zero and index[-1] == 0:
        raise ValueError("zero=False ends at index 0, already visited; use leading with offset=1 or drop_last=True")
    return Grid(process, process.time(np.append(index, -1 if zero else 0)))
