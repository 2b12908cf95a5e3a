"""Linear multistep methods: one call a step, past outputs re-used. The loop and the weights are in `exponential`."""

from collections.abc import Sequence
from math import comb, prod

import numpy as np

from diffsample.grid import Grid, as_grid
from diffsample.process import Level, Process
from diffsample.solvers.exponential import (
    DATA,
    NOISE,
    Form,
    Weigh,
    check_order,
    exact,
    explicit,
    midpoint,
    places,
    shares,
)
from diffsample.solvers.exponential import combine as combine
from diffsample.solvers.moves import rescaled_noise
from diffsample.tableau import Tableau

ADAMS = (1.0, 1 / 2, 5 / 12, 3 / 8, 251 / 720)  # Adams-Bashforth constants of the backward differences


def dpmpp(process: Process, times: Grid | Sequence[float], *, order: int = 2, taylor: bool = False) -> Tableau:
    """DPM-Solver++ multistep: x_t = (sigma_t / sigma_s) x_s + alpha_t (w_0 D_0 + w_1 D_1 + ...), D = x0 predictions.

    One call a step. order=1 is DDIM. order=2 measures second order. order=3 is the published third-order formula, which
    measures second order too: it gives the second derivative of D half its weight (`exp_multistep` has it right).
    Exact where x0 is constant along the path. The first steps, and a last step into sigma = 0, are of lower order.
    Any start and end, alpha = 0 and sigma = 0 included.

    Args:
        process, times: as for `ddim`.
        order: 1 to 3, outputs used.
        taylor: exact exponential weights for a linear D instead of the published midpoint ones, where two outputs
            are used.

    Raises:
        ValueError: another order.

    Reference: Lu et al. 2022, arXiv 2211.01095, algorithm 2 (order 2) and the authors' code (order 3).

    >>> import diffsample as ds
    >>> process = ds.VariancePreserving()
    >>> ds.solvers.dpmpp(process, ds.times.uniform_logsnr(process, 8)).slots
    2
    """
    check_order(order, 3, "dpmpp")
    program = explicit(as_grid(process, times), DATA, order, published(DATA, taylor))
    return program.tableau("dpmpp", order=min(order, 2))


def dpm_multistep(process: Process, times: Grid | Sequence[float], *, order: int = 2, taylor: bool = False) -> Tableau:
    """DPM-Solver multistep: x_t = (alpha_t / alpha_s) x_s - sigma_t (w_0 eps_0 + w_1 eps_1 + ...), eps predictions.

    The noise form of `dpmpp`, with the same orders and the same remark on order=3. One call a step; exact where eps is
    constant along the path, a point mass among others. The first steps, and a last step into sigma = 0, are of lower
    order.

    Args:
        process, times: as for `ddim`, but alpha > 0 at the start.
        order: 1 to 3, outputs used.
        taylor: exact exponential weights for a linear eps instead of the published midpoint ones.

    Raises:
        ValueError: another order; a start at alpha = 0.

    Reference: Lu et al. 2022, arXiv 2206.00927, the multistep variant of the authors' code.

    >>> import diffsample as ds
    >>> ds.solvers.dpm_multistep(ds.VarianceExploding(), [4.0, 3.0, 2.0, 1.0]).calls
    3
    """
    check_order(order, 3, "dpm_multistep")
    program = explicit(as_grid(process, times), NOISE, order, published(NOISE, taylor))
    return program.tableau("dpm_multistep", order=min(order, 2))


def published(form: Form, taylor: bool) -> Weigh:
    """The weights of DPM-Solver multistep codes: midpoint or exact on two outputs, half the curvature on three."""

    def weigh(past: Sequence[Level], s: Level, t: Level) -> list[float]:
        z, found = form.move(s, t).z, places(past, s, t)
        return midpoint(found) if len(found) == 2 and not taylor else shares(z, found, curvature=0.5)

    return weigh


def exp_multistep(
    process: Process,
    times: Grid | Sequence[float],
    *,
    order: int = 3,
    noise_form: bool = False,
    singlestep_start: bool = False,
) -> Tableau:
    """Exponential Adams-Bashforth: the exact exponential integral of the polynomial through the last outputs.

    Order `order` on any grid given exact history; exact in one step where the output is a polynomial in log-SNR of
    degree below it. One call a step. Equal to UniPC's predictor and SA-Solver's at order 3, and in the noise form to
    DEIS in log-rho. The usual start with steps of order 1, 2, ... lets an error of order 2 in. It is small where
    sampling starts from almost pure noise, where orders up to 3 are measured, and rules elsewhere.
    singlestep_start=True removes it, for order - 2 calls more: the first step is a Runge-Kutta step of order - 1
    stages, the last of which is remembered.

    Args:
        process, times: as for `ddim`; alpha > 0 at the start if noise_form or singlestep_start.
        order: 1 to 4, outputs used; a last step into sigma = 0 is first order.
        noise_form: interpolate eps instead of x0.
        singlestep_start: third and fourth order from any start.

    Raises:
        ValueError: another order; a start at alpha = 0 where it is excluded.

    Reference: Hochbruck & Ostermann 2010, Acta Numerica 19, eq. 2.58; Zhao et al. 2023, arXiv 2302.04867 (UniP).

    >>> import diffsample as ds
    >>> process = ds.VariancePreserving()
    >>> ds.solvers.exp_multistep(process, ds.times.uniform_logsnr(process, 8), singlestep_start=True).calls
    9
    """
    check_order(order, 4, "exp_multistep")
    form = NOISE if noise_form else DATA
    stages = max(order - 2, 0) if singlestep_start else 0
    program = explicit(as_grid(process, times), form, order, exact(form), stages)
    return program.tableau("exp_multistep", order=order if singlestep_start else min(order, 3))


def plms(process: Process, times: Grid | Sequence[float], *, order: int = 4) -> Tableau:
    """PLMS / Adams-Bashforth on dx/dsigma = eps in the coordinates x / alpha, sigma / alpha; starts at order 1, 2, ...

    One call a step. Its fixed coefficients are those of a uniform grid in sigma / alpha; on other grids, and with this
    start, the measured order is 2 for order >= 2.

    Args:
        process, times: as for `ddim`, but alpha > 0 at the start.
        order: 1 to 5.

    Raises:
        ValueError: another order; a start at alpha = 0.

    Reference: Liu et al. 2022, arXiv 2202.09778, eq. 9 (without its Runge-Kutta start).

    >>> import diffsample as ds
    >>> ds.solvers.plms(ds.VarianceExploding(), [4.0, 3.0, 2.0, 1.0], order=2).slots
    2
    """
    check_order(order, len(ADAMS), "plms")

    def weigh(past: Sequence[Level], s: Level, t: Level) -> list[float]:
        return backward_differences(ADAMS[: len(past)])

    return explicit(as_grid(process, times), NOISE, order, weigh).tableau("plms", order=min(order, 2))


def ipndm(process: Process, times: Grid | Sequence[float], *, order: int = 4) -> Tableau:
    """iPNDM: PNDM's Adams-Bashforth on DDIM steps, started at order 1, 2, 3 instead of by Runge-Kutta steps.

    The same table as `plms`, under the name of its other authors.

    Args:
        process, times, order: as for `plms`.

    Raises:
        ValueError: as for `plms`.

    Reference: Zhang & Chen 2023, arXiv 2204.13902, appendix H.2.

    >>> import diffsample as ds
    >>> ds.solvers.ipndm(ds.VarianceExploding(), [4.0, 3.0, 2.0, 1.0]).calls
    3
    """
    return plms(process, times, order=order)


def lms(process: Process, times: Grid | Sequence[float], *, order: int = 4) -> Tableau:
    """LMS: Adams-Bashforth on dx/dsigma = eps in x / alpha, sigma / alpha, with the coefficients of the actual grid.

    The integrals of the interpolating polynomial are exact (Gauss-Legendre), so that order k is true given exact
    history, which `plms` is on uniform grids only. One call a step; starts at order 1, 2, ..., which lets an error of
    order 2 in: up to order 4 it hides from almost pure noise, see `exp_multistep`. Exact where eps is constant along
    the path. A last step into sigma = 0 keeps its order, since nothing is singular in these coordinates.

    Args:
        process, times: as for `ddim`, but alpha > 0 at the start.
        order: 1 to 5.

    Raises:
        ValueError: another order; a start at alpha = 0.

    Reference: Crowson, k-diffusion (software), sample_lms; Zhang & Chen 2023, arXiv 2204.13902 (rho-AB).

    >>> import diffsample as ds
    >>> ds.solvers.lms(ds.VarianceExploding(), [4.0, 3.0, 2.0, 1.0]).slots
    3
    """
    check_order(order, len(ADAMS), "lms")
    roots, weights = np.polynomial.legendre.leggauss(len(ADAMS))

    def weigh(past: Sequence[Level], s: Level, t: Level) -> list[float]:
        start, end = rescaled_noise(s), rescaled_noise(t)
        points = start + (end - start) * (roots + 1) / 2
        return lagrange_averages([rescaled_noise(level) for level in past], points, weights)

    return explicit(as_grid(process, times), NOISE, order, weigh).tableau("lms", order=min(order, 4))


def lagrange_averages(nodes: Sequence[float], points: np.ndarray, weights: np.ndarray) -> list[float]:
    """Averages over weighted points of the Lagrange polynomials of the nodes; they sum to 1."""
    basis = [prod([(points - q) / (p - q) for q in nodes if q != p], start=np.ones_like(points)) for p in nodes]
    return (np.array(basis) @ weights / weights.sum()).tolist()


def backward_differences(constants: Sequence[float]) -> list[float]:
    """Weights on the newest, the one before, ... of sum_j constants[j] nabla^j."""
    r = range(len(constants))
    return [sum(constants[j] * (-1) ** i * comb(j, i) for j in r if j >= i) for i in r]
