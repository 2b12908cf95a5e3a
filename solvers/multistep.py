"""Linear multistep methods: one call a step, past outputs re-used."""

from collections.abc import Sequence
from math import comb

from diffsample.grid import Grid, as_grid
from diffsample.process import Level, Process
from diffsample.program import Program, Vector
from diffsample.solvers.moves import decay, gain, rescaled_noise
from diffsample.tableau import Tableau

ADAMS = (1.0, 1 / 2, 5 / 12, 3 / 8, 251 / 720)  # Adams-Bashforth constants of the backward differences


def backward_differences(constants: Sequence[float]) -> list[float]:
    """Weights on the newest, the one before, ... of sum_j constants[j] nabla^j."""
    r = range(len(constants))
    return [sum(constants[j] * (-1) ** i * comb(j, i) for j in r if j >= i) for i in r]


def dpmpp(process: Process, times: Grid | Sequence[float], *, order: int = 2, taylor: bool = False) -> Tableau:
    """DPM-Solver++ multistep: x_t = (sigma_t / sigma_s) x_s + alpha_t (w_0 D_0 + w_1 D_1), D = x0 predictions.

    One call a step. order=1 is DDIM. order=2 measures second order and is exact where x0 is constant along the path;
    the first step, and a last step into sigma = 0, are first order.

    Args:
        process, times: as for `ddim`.
        order: 1 or 2.
        taylor: exact exponential weights for a linear D instead of the published midpoint ones.

    Reference: Lu et al. 2022, arXiv 2211.01095, algorithm 2.

    >>> import diffsample as ds
    >>> process = ds.VariancePreserving()
    >>> ds.solvers.dpmpp(process, ds.times.uniform_logsnr(process, 8)).slots
    2
    """
    _check_order(order, 2, "dpmpp")
    program, outputs, before = Program(as_grid(process, times)), [], 0.0
    for s, t in program.moves():
        outputs = [program.call(s, t, x0=1.0), *outputs][:order]
        h = gain(s, t)
        weights = _dpmpp_weights(s, t, h, before / h if len(outputs) == 2 and t.sigma else None, taylor)
        program[0] = (t.sigma / s.sigma) * program[0] + t.alpha * combine(weights, outputs)
        before = h
    return program.tableau("dpmpp", order=order)


def _dpmpp_weights(s: Level, t: Level, h: float, r: float | None, taylor: bool) -> list[float]:
    """Weights on the newest x0 and the one before; r = previous gain / this gain, None for first order."""
    full = 1 - decay(s, t)
    if r is None:
        return [full]
    slope = (1 - full / h) / r if taylor else full / (2 * r)
    return [full + slope, -slope]


def plms(process: Process, times: Grid | Sequence[float], *, order: int = 4) -> Tableau:
    """PLMS / Adams-Bashforth on dx/dsigma = eps in the coordinates x / alpha, sigma / alpha; starts at order 1, 2, ...

    One call a step. Its fixed coefficients are those of a uniform grid in sigma / alpha; on other grids, and with this
    start, the measured order is 2 for order >= 2.

    Args:
        process, times: as for `ddim`, but alpha > 0 at the start.
        order: 1 to 5.

    Reference: Liu et al. 2022, arXiv 2202.09778, eq. 9 (without its Runge-Kutta start).

    >>> import diffsample as ds
    >>> ds.solvers.plms(ds.VarianceExploding(), [4.0, 3.0, 2.0, 1.0], order=2).slots
    2
    """
    _check_order(order, len(ADAMS), "plms")
    program, outputs = Program(as_grid(process, times)), []
    for s, t in program.moves():
        outputs = [program.call(s, t, eps=1.0), *outputs][:order]
        step = t.alpha * (rescaled_noise(t) - rescaled_noise(s))
        weights = backward_differences(ADAMS[: len(outputs)])
        program[0] = (t.alpha / s.alpha) * program[0] + step * combine(weights, outputs)
    return program.tableau("plms", order=min(order, 2))


def combine(weights: Sequence[float], vectors: Sequence[Vector]) -> Vector:
    """sum_i weights[i] vectors[i], newest first; older vectors than there are weights stay unused."""
    return sum((w * v for w, v in zip(weights, vectors, strict=False)), Vector({}))


def _check_order(order: int, highest: int, name: str) -> None:
    if order not in range(1, highest + 1):
        raise ValueError(f"{name} has orders 1 to {highest}, got order={order!r}")
