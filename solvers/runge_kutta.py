"""One-step methods of several calls, Runge-Kutta on dx/dsigma = eps in the coordinates x / alpha, sigma / alpha."""

from collections.abc import Sequence
from math import inf, sqrt

from diffsample.grid import Grid, as_grid
from diffsample.process import FlowMatching, Level, Process
from diffsample.program import Program, Vector
from diffsample.solvers.churning import add_churn
from diffsample.solvers.exponential import combine
from diffsample.solvers.levels import level_at
from diffsample.solvers.moves import ancestral, rescaled_noise
from diffsample.solvers.one_step import check_eta
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
    """Heun: the mean of the slopes at both ends of a step, with the churn of EDM.

    Order 2 (weak order 2 with churn), two calls a step and one in a last step into sigma = 0: 2N - 1 calls on a grid
    of N moves that ends clean. Exact where eps is constant along the path. Churn raises the noise by
    1 + min(churn / N, sqrt(2) - 1) before a step.

    Args:
        process, times: as for `ddim`, but alpha > 0 at the start.
        churn: total churn S_churn; 0 draws no noise.
        churn_min, churn_max: levels sigma / alpha between which it churns.
        churn_noise: S_noise, standard deviation of the added noise relative to the exact one.

    Raises:
        ValueError: a negative churn or churn_noise; churn beyond the end of the process; a start at alpha = 0.

    Reference: Karras et al. 2022, arXiv 2206.00364, algorithm 2.

    >>> import diffsample as ds
    >>> process = ds.VarianceExploding()
    >>> ds.solvers.heun(process, ds.times.karras(process, 18)).calls
    35
    """
    program = Program(as_grid(process, times), registers=2)
    for s, t in program.moves():
        heun_step(program, add_churn(program, s, churn, churn_min, churn_max, churn_noise), t)
    return program.tableau("heun", order=2)


def heun_step(program: Program, s: Level, t: Level) -> Vector:
    """One Heun step of register 0 with register 1 as probe; one call into sigma = 0. Returns the first output."""
    if not t.sigma:
        program[0] = program.call(s, t, x0=t.alpha)
        return program[0]
    step = t.alpha * (rescaled_noise(t) - rescaled_noise(s))
    left = program.call(s, t, eps=1.0)
    program[0] = (t.alpha / s.alpha) * program[0]
    program[1] = program[0] + step * left
    right = program.call(t, t, eps=1.0, register=1, stage=1)
    program[0] += (step / 2) * (left + right)
    return left


def flow_heun(process: FlowMatching, times: Grid | Sequence[float]) -> Tableau:
    """Heun on dx/dt = eps - x0, the velocity of flow matching: the mean of the velocities at both ends.

    Order 2, two calls a step and one in a last step into t = 0. Exact on a point mass. Not the method `heun`, whose
    coordinates are x / alpha: it starts at pure noise, t = 1. Flow matching's Euler is `ddim`.

    Args:
        process: `FlowMatching`.
        times: a grid of `diffsample.times`, or decreasing process times.

    Raises:
        TypeError: another process.

    Reference: Esser et al. 2024, arXiv 2403.03206, section 2; diffusers (software), FlowMatchHeunDiscreteScheduler.

    >>> import diffsample as ds
    >>> ds.solvers.flow_heun(ds.FlowMatching(), [1.0, 0.5, 0.0]).calls
    3
    """
    if not isinstance(process, FlowMatching):
        raise TypeError(f"flow_heun integrates the velocity of FlowMatching, got {process}; use heun")
    program = Program(as_grid(process, times), registers=2)
    for s, t in program.moves():
        step = t.t - s.t
        left = program.call(s, t, x0=-1.0, eps=1.0)
        if not t.sigma:
            program[0] += step * left
            continue
        program[1] = program[0] + step * left
        right = program.call(t, t, x0=-1.0, eps=1.0, register=1, stage=1)
        program[0] += (step / 2) * (left + right)
    return program.tableau("flow_heun", order=2)


def dpm2(process: Process, times: Grid | Sequence[float], *, eta: float = 0.0) -> Tableau:
    """DPM2: the midpoint rule, its middle at the geometric mean of both noise levels; ancestral for eta > 0.

    x_u = x_s + (m - s) eps_s; x = x_s + (d - s) eps_u, m = sqrt(s d), in x / alpha and levels sigma / alpha; then the
    noise c is added, d^2 + c^2 = t^2 as for `ddim`. Order 2 (weak order 2 for eta > 0), two calls a step and one into
    sigma = 0. Exact where eps is constant along the path.

    Args:
        process, times: as for `heun`.
        eta: share of the ancestral noise, 0 to 1; 1 is DPM2-ancestral.

    Raises:
        ValueError: eta outside [0, 1]; a start at alpha = 0.

    Reference: Karras et al. 2022, arXiv 2206.00364, algorithm 3 with the log-midpoint; Crowson, k-diffusion (software).

    >>> import diffsample as ds
    >>> ds.solvers.dpm2(ds.VarianceExploding(), [10.0, 1.0, 0.0]).calls
    3
    """
    check_eta(eta)
    program = Program(as_grid(process, times), registers=2)
    for s, t in program.moves():
        if not t.sigma:
            program[0] = program.call(s, t, x0=t.alpha)
            continue
        down, up = ancestral(s, t, eta)
        noise = rescaled_noise(s)
        middle = level_at(process, sqrt(noise * down / t.alpha))
        left = program.call(s, t, eps=1.0)
        program[1] = (middle.alpha / s.alpha) * program[0] + middle.alpha * (rescaled_noise(middle) - noise) * left
        inner = program.call(middle, t, eps=1.0, register=1, stage=1)
        program[0] = (t.alpha / s.alpha) * program[0] + (down - t.alpha * noise) * inner
        if up:
            program[0] += up * program.noise()
    return program.tableau("dpm2", order=2)


KUTTA3 = ((), (1 / 2,), (-1.0, 2.0)), (1 / 6, 2 / 3, 1 / 6)
RK4 = ((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)


def kutta3(process: Process, times: Grid | Sequence[float]) -> Tableau:
    """Kutta's third-order method, the rho-RK3 of DEIS: slopes at the start, the middle and the end, weighed 1 4 1.

    Order 3, three calls a step and one into sigma = 0: 3N - 2 calls on a grid of N moves that ends clean. Exact where
    eps is constant along the path.

    Args:
        process, times: as for `heun`.

    Raises:
        ValueError: a start at alpha = 0.

    Reference: Zhang & Chen 2023, arXiv 2204.13902 (rho-RK).

    >>> import diffsample as ds
    >>> ds.solvers.kutta3(ds.VarianceExploding(), [10.0, 1.0, 0.0]).calls
    4
    """
    return _explicit(process, times, KUTTA3, "kutta3", order=3)


def rk4(process: Process, times: Grid | Sequence[float]) -> Tableau:
    """RK4, the classical fourth-order Runge-Kutta method, the rho-RK4 of DEIS.

    Order 4, four calls a step and one into sigma = 0: 4N - 3 calls on a grid of N moves that ends clean. Exact where
    eps is constant along the path.

    Args:
        process, times: as for `heun`.

    Raises:
        ValueError: a start at alpha = 0.

    Reference: Zhang & Chen 2023, arXiv 2204.13902 (rho-RK).

    >>> import diffsample as ds
    >>> ds.solvers.rk4(ds.VarianceExploding(), [10.0, 1.0, 0.0]).calls
    5
    """
    return _explicit(process, times, RK4, "rk4", order=4)


def _explicit(process: Process, times: Grid | Sequence[float], scheme: tuple, name: str, order: int) -> Tableau:
    """An explicit Runge-Kutta method of rows and weights; its nodes are the sums of the rows."""
    rows, weights = scheme
    program = Program(as_grid(process, times), registers=2)
    for s, t in program.moves():
        if not t.sigma:
            program[0] = program.call(s, t, x0=t.alpha)
            continue
        noise, slopes = rescaled_noise(s), []
        step = rescaled_noise(t) - noise
        for i, row in enumerate(rows):
            at = {0.0: s, 1.0: t}.get(sum(row)) or level_at(process, noise + sum(row) * step)
            if i:
                program[1] = (at.alpha / s.alpha) * program[0] + at.alpha * step * combine(row, slopes)
            slopes.append(program.call(at, t, eps=1.0, register=min(i, 1), stage=i))
        program[0] = (t.alpha / s.alpha) * program[0] + t.alpha * step * combine(weights, slopes)
    return program.tableau(name, order=order)
