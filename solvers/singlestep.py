"""Singlestep exponential methods: DPM-Solver (noise) and DPM-Solver++ (data) of two and three calls a step."""

from collections.abc import Sequence
from math import sqrt

from diffsample.grid import Grid, as_grid
from diffsample.process import Level, Process
from diffsample.program import Program, Vector
from diffsample.solvers.exponential import DATA, NOISE, Form, advance, shares
from diffsample.solvers.levels import between, level_at
from diffsample.solvers.moves import ancestral, rescaled_noise
from diffsample.solvers.one_step import check_eta
from diffsample.tableau import Tableau


def dpm_singlestep(
    process: Process,
    times: Grid | Sequence[float],
    *,
    orders: int | Sequence[int] = 2,
    r1: float | None = None,
    r2: float = 2 / 3,
) -> Tableau:
    """DPM-Solver singlestep: x_t = (alpha_t / alpha_s) x_s - sigma_t sum_i w_i eps_i, eps_i at levels within the step.

    As many calls a step as its order: order 1 is DDIM, order 2 calls at s and at the share r1 of the gain in log-SNR,
    order 3 also at the share r2. A last move into sigma = 0 is of order 1. Order 2 or 3 globally, at most one above
    the lowest of a pattern. Exact where eps is constant along the path, order 3 also where it is linear in log-SNR.

    Args:
        process, times: as for `ddim`, but alpha > 0 at the start.
        orders: 1, 2 or 3 for every step, or one a step, as `singlestep_orders` makes for a number of calls.
        r1: first share, default 1/2 in steps of order 2 and 1/3 in steps of order 3.
        r2: second share of steps of order 3; only at 2/3 are they of order 3, else of order 2.

    Raises:
        ValueError: orders other than 1, 2, 3 or not one a step; shares not 0 < r1 < r2 <= 1; a start at alpha = 0.

    Reference: Lu et al. 2022, arXiv 2206.00927, algorithms 1 and 2.

    >>> import diffsample as ds
    >>> process = ds.VariancePreserving()
    >>> ds.solvers.dpm_singlestep(process, ds.times.uniform_logsnr(process, 4), orders=3).calls
    10
    """
    return _singlestep(process, times, orders, r1, r2, NOISE, "dpm_singlestep")


def dpmpp_singlestep(
    process: Process,
    times: Grid | Sequence[float],
    *,
    orders: int | Sequence[int] = 2,
    r1: float | None = None,
    r2: float = 2 / 3,
) -> Tableau:
    """DPM-Solver++ singlestep: x_t = (sigma_t / sigma_s) x_s + alpha_t sum_i w_i D_i, D = x0 predictions in the step.

    As `dpm_singlestep`, on the data prediction: exact where x0 is constant along the path, order 3 also where it is
    linear in log-SNR. A first step of order 1 may start at alpha = 0: orders=[1, 2, 2, 2].

    Args:
        process, times, orders, r1, r2: as for `dpm_singlestep`.

    Raises:
        ValueError: as for `dpm_singlestep`.

    Reference: Lu et al. 2022, arXiv 2211.01095, algorithm 1 (order 2); order 3 as in the authors' code.

    >>> import diffsample as ds
    >>> process = ds.VariancePreserving()
    >>> ds.solvers.dpmpp_singlestep(process, ds.times.uniform_logsnr(process, 4), orders=[2, 2, 2, 1]).calls
    7
    """
    return _singlestep(process, times, orders, r1, r2, DATA, "dpmpp_singlestep")


def singlestep_orders(calls: int, order: int) -> list[int]:
    """Orders of singlestep moves that spend exactly this many calls: the highest first, what is left at the end.

    The published patterns: order 3 gives [3, ..., 3, 2, 1], [3, ..., 3, 1] or [3, ..., 3, 2] where calls leave 0, 1
    or 2 modulo 3, so that a last move into sigma = 0 loses at most one call.

    Args:
        calls: network calls, at least 1.
        order: 1, 2 or 3.

    Raises:
        ValueError: calls < 1, or another order.

    Reference: Lu et al. 2022, arXiv 2206.00927, section 3.4 (DPM-Solver-fast).

    >>> import diffsample as ds
    >>> ds.solvers.singlestep_orders(9, 3)
    [3, 3, 2, 1]
    """
    if calls < 1:
        raise ValueError(f"calls={calls} must be at least 1")
    if order not in (1, 2, 3):
        raise ValueError(f"singlestep methods have orders 1 to 3, got order={order!r}")
    if order == 3 and calls % 3 == 0:
        return [3] * (calls // 3 - 1) + [2, 1]
    return [order] * (calls // order) + [calls % order] * (calls % order > 0)


def dpmpp_2s_ancestral(process: Process, times: Grid | Sequence[float], *, eta: float = 1.0) -> Tableau:
    """DPM-Solver++(2S) ancestral: a step of order 2 down to the noise sqrt(sigma_t^2 - c^2), then fresh noise c.

    Weak order 2, two calls a step and one into sigma = 0; eta = 0 is `dpmpp_singlestep`. The second call is at the
    geometric mean of sigma / alpha at both ends of the deterministic part. Exact on a point mass.

    Args:
        process, times: as for `dpm_singlestep`.
        eta: share of the ancestral noise, 0 to 1.

    Raises:
        ValueError: eta outside [0, 1]; a start at alpha = 0.

    Reference: Crowson, k-diffusion (software), sample_dpmpp_2s_ancestral.

    >>> import diffsample as ds
    >>> ds.solvers.dpmpp_2s_ancestral(ds.VarianceExploding(), [10.0, 1.0, 0.0]).calls
    3
    """
    check_eta(eta)
    program = Program(as_grid(process, times), registers=2)
    for s, t in program.moves():
        if not t.sigma:
            program[0] = program.call(s, t, x0=t.alpha)
            continue
        down, up = ancestral(s, t, eta)
        middle = level_at(process, sqrt(rescaled_noise(s) * down / t.alpha))
        start = program.call(s, t, x0=1.0)
        program[1] = step_down(program[0], s, middle.alpha, middle.sigma, start)
        inner = program.call(middle, t, x0=1.0, register=1, stage=1)
        program[0] = step_down(program[0], s, t.alpha, down, inner)
        if up:
            program[0] += up * program.noise()
    return program.tableau("dpmpp_2s_ancestral", order=2)


def midpoint(r: float) -> list[float]:
    """Weights on the outputs at s and at the share r of the gain: the published rule of order 2."""
    return [1 - 1 / (2 * r), 1 / (2 * r)]


def step_down(x: Vector, s: Level, alpha: float, sigma: float, x0: Vector) -> Vector:
    """x at level s moved to (alpha, sigma) along a constant x0 prediction."""
    keep = sigma / s.sigma
    return keep * x + (alpha - keep * s.alpha) * x0


def _singlestep(
    process: Process,
    times: Grid | Sequence[float],
    orders: int | Sequence[int],
    r1: float | None,
    r2: float,
    form: Form,
    name: str,
) -> Tableau:
    grid = as_grid(process, times)
    pattern = [orders] * grid.steps if isinstance(orders, int) else list(orders)
    if len(pattern) != grid.steps or any(order not in (1, 2, 3) for order in pattern):
        raise ValueError(f"orders={orders} must be 1, 2 or 3 for each of {grid.steps} moves")
    if not 0 < r2 <= 1 or (r1 is not None and not 0 < r1 <= 1) or (3 in pattern and not (r1 or 1 / 3) < r2):
        raise ValueError(f"r1={r1}, r2={r2} must satisfy 0 < r1 < r2 <= 1")
    program = Program(grid, registers=2)
    for (s, t), order in zip(program.moves(), pattern, strict=True):
        _step(program, form, s, t, order if t.sigma else 1, r1, r2)
    return program.tableau(name, order=_global_order(pattern, r2))


def _step(program: Program, form: Form, s: Level, t: Level, order: int, r1: float | None, r2: float) -> None:
    """One step from register 0, with register 1 as probe; weights are shares of the whole, nodes parts of the gain."""
    process, move = program.grid.process, form.move(s, t)
    first, outputs, weights = r1 or 1 / order, [program.call(s, t, x0=form.x0, eps=form.eps)], [1.0]
    if order > 1:
        inner = between(process, s, t, first)
        advance(program, form.move(s, inner), weights, outputs, into=1)
        outputs.append(program.call(inner, t, x0=form.x0, eps=form.eps, register=1, stage=1))
        weights = midpoint(first)
    if order > 2:
        inner = between(process, s, t, r2)
        part = form.move(s, inner)
        advance(program, part, shares(part.z, [0.0, first / r2]), outputs, into=1)
        outputs[1] = program.call(inner, t, x0=form.x0, eps=form.eps, register=1, stage=2)
        weights = shares(move.z, [0.0, r2])
    advance(program, move, weights, outputs)


def _global_order(pattern: Sequence[int], r2: float) -> int:
    """A step of order p that occurs once has an error of order p + 1 once; repeated ones add up to order p."""
    local = [2 if order == 3 and abs(r2 - 2 / 3) > 1e-6 else order for order in pattern]
    return min(max(local), *(order + (local.count(order) == 1) for order in local))
