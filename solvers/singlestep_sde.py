"""Singlestep solvers of the reverse SDE: two calls a step, with noise at the middle and at the end of a step.

The noise of the middle comes back at the end of the step, so it is loaded into the state beforehand, divided by the
factor by which the state will be multiplied.
"""

from collections.abc import Callable, Sequence
from math import sqrt

from diffsample.grid import Grid, as_grid
from diffsample.process import Level, Process
from diffsample.program import Program
from diffsample.solvers.exponential import combine
from diffsample.solvers.levels import between
from diffsample.solvers.moves import ancestral, decay, rescaled_noise
from diffsample.solvers.one_step import check_eta
from diffsample.solvers.singlestep import midpoint, step_down
from diffsample.tableau import Tableau


def dpmpp_sde(process: Process, times: Grid | Sequence[float], *, eta: float = 1.0, r: float = 1 / 2) -> Tableau:
    """DPM-Solver++ SDE of two stages: an ancestral step to the share r of the gain, then one over the whole step.

    x_t = (d / sigma_s) x_s + (alpha_t - d alpha_s / sigma_s) ((1 - 1/2r) D_s + D_m / 2r) + c z, with d and c those of
    `ddim`. The middle's noise is a part of z, by the increments of one Brownian motion in sigma / alpha; that is the
    reverse SDE's covariance to leading order only, and `seeds2` has the exact one. Weak order 2, two calls a step and
    one into sigma = 0. Exact on a point mass.

    Args:
        process, times: as for `ddim`, but alpha > 0 at the start.
        eta: share of the ancestral noise, 0 to 1; 0 is `dpmpp_singlestep`.
        r: share of the gain in log-SNR at which the second call is made, in (0, 1].

    Raises:
        ValueError: eta outside [0, 1]; r outside (0, 1]; a start at alpha = 0.

    Reference: Lu et al. 2022, arXiv 2211.01095, section 5; Crowson, k-diffusion (software), sample_dpmpp_sde.

    >>> import diffsample as ds
    >>> ds.solvers.dpmpp_sde(ds.VarianceExploding(), [10.0, 1.0, 0.0]).calls
    3
    """
    check_eta(eta)

    def shared(s: Level, middle: Level, t: Level) -> float:
        start, end = rescaled_noise(s), rescaled_noise(t)
        return sqrt((start - rescaled_noise(middle)) / (start - end))

    return _two_stage(process, times, eta, r, shared, "dpmpp_sde")


def seeds2(process: Process, times: Grid | Sequence[float], *, c2: float = 1 / 2) -> Tableau:
    """SEEDS-2 in the data form: the exponential method of `dpmpp_sde` with the noise that the reverse SDE has.

    The noise at the middle, sigma_m e(c2 h) z_1 with e(h)^2 = 1 - exp(-2h), comes back at the end as
    sigma_t exp(-(1 - c2) h) e(c2 h) z_1 + sigma_t e((1 - c2) h) z_2. The authors' code has c2 and 1 - c2 exchanged in
    these two, which costs an order unless c2 = 1/2. Weak order 2, two calls a step and one into sigma = 0. Exact on a
    point mass.

    Args:
        process, times: as for `dpmpp_sde`.
        c2: share of the gain in log-SNR at which the second call is made, in (0, 1].

    Raises:
        ValueError: c2 outside (0, 1]; a start at alpha = 0.

    Reference: Gonzalez et al. 2023, arXiv 2305.14267 (SEEDS-2, its noises corrected).

    >>> import diffsample as ds
    >>> ds.solvers.seeds2(ds.VarianceExploding(), [10.0, 1.0, 0.0], c2=0.3).calls
    3
    """

    def shared(s: Level, middle: Level, t: Level) -> float:
        return decay(middle, t) * sqrt((1 - decay(s, middle) ** 2) / (1 - decay(s, t) ** 2))

    return _two_stage(process, times, 1.0, c2, shared, "seeds2")


def _two_stage(
    process: Process,
    times: Grid | Sequence[float],
    eta: float,
    r: float,
    shared: Callable[[Level, Level, Level], float],
    name: str,
) -> Tableau:
    """Both methods; shared(s, middle, t) is the part of the noise at t that is the middle's own draw."""
    if not 0 < r <= 1:
        raise ValueError(f"{name} makes its second call at a share of the gain in (0, 1], got {r}")
    program = Program(as_grid(process, times), registers=2)
    for s, t in program.moves():
        if not t.sigma:
            program[0] = program.call(s, t, x0=t.alpha)
            continue
        middle = between(process, s, t, r)
        (inner_down, inner_up), (down, up) = ancestral(s, middle, eta), ancestral(s, t, eta)
        part, keep = shared(s, middle, t), down / s.sigma
        start, draw = program.call(s, t, x0=1.0), program.noise()
        program[1] = step_down(program[0], s, middle.alpha, inner_down, start) + inner_up * draw
        program[0] += (up * part / keep) * draw
        inner = program.call(middle, t, x0=1.0, register=1, stage=1)
        average = combine(midpoint(r), [start, inner])
        program[0] = step_down(program[0], s, t.alpha, down, average) + up * sqrt(1 - part**2) * program.noise()
    return program.tableau(name, order=2)
