"""Linear stability of a solver: for which steps errors die out where the network is steep.

The test equation is dx/dsigma = lambda x in the coordinates x / alpha, sigma / alpha, where eps is the slope. A step
multiplies the state and its history by a matrix that depends on z = lambda (sigma_t - sigma_s) alone; the solver is
stable where its spectral radius is at most 1. High guidance scales multiply lambda, few steps make the step large:
outside the region, samples burn out. Methods that work on x / sigma have the same limit of small steps.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from diffsample.grid import Grid, custom
from diffsample.process import VarianceExploding
from diffsample.tableau import Tableau

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FAR = 1e6  # level of the steady grid: so high that log-SNR is as uniform as sigma
PERIOD = 12  # longest period of slot addresses, in steps
REACH = 100.0  # of the search along the real axis
GROWTH = 1e-9  # a radius that exceeds 1 by less is rounding
NEAR = 1e-3  # a step so small that its factor is 1 + z


class StabilityRegion(NamedTuple):
    """Growth of the test equation over a rectangle of z."""

    real: np.ndarray  # [W]
    imag: np.ndarray  # [H]
    radius: np.ndarray  # [H, W] growth a step; stable where it is at most 1
    limit: float  # the real-axis limit


def steady_tableau(solver: Callable[[Any, Grid], Tableau], steps: int = 64) -> Tableau:
    """The solver's table on unit steps of sigma at a very high level, where all its rows but the first few are alike.

    Args:
        solver: a function (process, times) -> Tableau that works on `VarianceExploding`.
        steps: moves.

    >>> import diffsample as ds
    >>> steady_tableau(ds.solvers.plms).calls
    64
    """
    process = VarianceExploding(1.0, FAR + steps)
    return solver(process, custom(process, FAR + np.arange(steps, -1.0, -1.0)))


def real_axis_limit(tableau: Tableau) -> float:
    """The most negative real z up to which a solver is stable; -inf where that is beyond -100.

    For a solver that draws noise it is the stability of the mean.

    Args:
        tableau: with steady rows, as `steady_tableau` makes it, or on any grid of `VarianceExploding` uniform in sigma
            where the coefficients do not depend on log-SNR (`plms`, `ghvb`, `heun`).

    Raises:
        ValueError: the rows are not steady, or a step is no consistent step of the test equation (padding, churn).

    >>> import diffsample as ds
    >>> round(real_axis_limit(steady_tableau(ds.solvers.ghvb)), 6)  # GHVB 1.8
    -1.2
    """
    radius = _growth(tableau)
    z = -np.concatenate([np.arange(NEAR, 4.0, 5e-3), np.arange(4.0, REACH, 2e-2)])
    unstable = radius(z) > 1 + GROWTH
    if not unstable.any():
        return float("-inf")
    first = int(np.argmax(unstable))
    low, high = z[first], z[first - 1] if first else 0.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if radius(np.array([middle]))[0] > 1 + GROWTH else (low, middle)
    return float(high)


def stability_region(
    tableau: Tableau,
    real: tuple[float, float] = (-3.0, 0.5),
    imag: tuple[float, float] = (-2.0, 2.0),
    points: int = 101,
) -> StabilityRegion:
    """Growth a step over a rectangle of the complex plane, and the real-axis limit.

    Args:
        tableau: as for `real_axis_limit`.
        real, imag: sides of the rectangle.
        points: along each side.

    Raises:
        ValueError: as for `real_axis_limit`.

    >>> import diffsample as ds
    >>> region = stability_region(steady_tableau(ds.solvers.euler), points=11)
    >>> region.radius.shape, round(region.limit, 6)
    ((11, 11), -2.0)
    """
    x, y = np.linspace(*real, points), np.linspace(*imag, points)
    z = x[None, :] + 1j * y[:, None]
    return StabilityRegion(x, y, _growth(tableau)(z.ravel()).reshape(z.shape), real_axis_limit(tableau))


def stability_plot(
    tableaus: Mapping[str, Tableau],
    real: tuple[float, float] = (-3.0, 0.5),
    imag: tuple[float, float] = (-2.0, 2.0),
    points: int = 161,
) -> "Figure":
    """The boundary of each solver's stability region; stable is inside.

    Args:
        tableaus: name and table, as for `real_axis_limit`.
        real, imag, points: as for `stability_region`.

    Returns: the figure.

    >>> import diffsample as ds
    >>> len(stability_plot({"euler": steady_tableau(ds.solvers.euler)}, points=21).axes)
    1
    """
    from diffsample.plot import figure_class

    figure = figure_class()(figsize=(6.0, 5.0), layout="constrained")
    axes = figure.add_subplot(xlabel="Re z", ylabel="Im z", aspect="equal")
    for i, (name, tableau) in enumerate(tableaus.items()):
        region = stability_region(tableau, real, imag, points)
        axes.contour(region.real, region.imag, region.radius, levels=[1.0], colors=[f"C{i}"])
        axes.plot([], [], color=f"C{i}", label=f"{name}, limit {region.limit:.3g}")
    axes.axhline(0.0, color="0.7", lw=0.8, zorder=0)
    axes.axvline(0.0, color="0.7", lw=0.8, zorder=0)
    axes.legend(frameon=False, fontsize=9)
    return figure


def _growth(tableau: Tableau) -> Callable[[np.ndarray], np.ndarray]:
    """Spectral radius a step as a function of z [Z], of a period of steady rows."""
    if not np.allclose(tableau.now.alpha, 1.0):
        raise ValueError(f"stability of {tableau.about.name} is read in x / alpha: build the table on "
                         f"VarianceExploding, for example by steady_tableau(solver)")  # fmt: skip
    rows, steps = _steady_rows(tableau)
    step = float(tableau.next.sigma[rows[0]] - tableau.now.sigma[rows[0]])
    used = _used(_transfer(tableau, rows, np.array([-0.37 / step]))[0] != 0, tableau.output)

    def radius(z: np.ndarray) -> np.ndarray:
        matrices = _transfer(tableau, rows, z / step)[:, used][:, :, used]
        return np.abs(np.linalg.eigvals(matrices)).max(axis=-1) ** (1 / steps)

    factor = 1 - radius(np.array([-NEAR]))[0]
    if not 0.1 * NEAR < factor < 10 * NEAR:
        raise ValueError(f"a step of {tableau.about.name} at z = {-NEAR} multiplies the state by {1 - factor:.6g}, not "
                         f"by about 1 + z: it does not follow the grid (padding, churn, Langevin steps)")  # fmt: skip
    return radius


def _steady_rows(tableau: Tableau) -> tuple[range, int]:
    """Rows of a whole period of steps in the middle of the table, and how many steps they are."""
    starts = np.flatnonzero(np.asarray(tableau.stage) == 0)
    middle = len(starts) // 2
    for period in range(1, min(PERIOD, (len(starts) - middle - 1) // 2) + 1):
        first, second, end = (int(starts[middle + k * period]) for k in range(3))
        if second - first == end - second and _alike(tableau, first, second, second - first):
            return range(first, second), period
    raise ValueError(f"the rows of {tableau.about.name} are not steady; build the table by steady_tableau(solver)")


def _alike(tableau: Tableau, first: int, second: int, rows: int) -> bool:
    """Whether as many rows from `first` on, each with the update after it, equal those from `second` on."""
    for name in ("register", "slot"):
        column = np.asarray(getattr(tableau, name))
        if (column[first : first + rows] != column[second : second + rows]).any():
            return False
    for name, shift in (("A", 1), ("B", 1), ("store", 0)):
        column = np.asarray(getattr(tableau, name))
        old, new = (column[r + shift : r + shift + rows] for r in (first, second))
        if np.abs(old - new).max() > 1e-4 * np.abs(old).max():
            return False
    return True


def _used(reads: np.ndarray, output: int) -> np.ndarray:
    """Which registers and slots the output depends on in time: those left over from the start do not count."""
    used = np.arange(len(reads)) == output
    for _ in reads:
        used = used | reads[used].any(axis=0)
    return np.flatnonzero(used)


def _transfer(tableau: Tableau, rows: range, slope: np.ndarray) -> np.ndarray:
    """[Z, R + S, R + S] what the rows do to registers and slots where eps = slope * x."""
    R, size = tableau.registers, tableau.registers + tableau.slots
    weights = np.concatenate([tableau.A, tableau.B], axis=-1)
    matrix = np.tile(np.eye(size, dtype=np.result_type(slope, np.float64)), (len(slope), 1, 1))
    for r in rows:
        u, w = tableau.store[r]
        stored = u + (w - u * float(tableau.now.sigma[r])) * slope
        matrix[:, R + tableau.slot[r]] = stored[:, None] * matrix[:, tableau.register[r]]
        matrix[:, :R] = weights[r + 1] @ matrix
    return matrix
