"""DEIS: Adams-Bashforth on the exact linear part, with the polynomial in one of three coordinates.

x_t = (alpha_t / alpha_s) x_s + alpha_t sum_j C_j eps_j, where C_j is the integral from s to t of the j-th Lagrange
polynomial against d(sigma / alpha). The polynomial is one of t, of rho = sigma / alpha, or of log rho. Orders count
points, as in diffusers; the authors count the degree, one less.
"""

from collections.abc import Sequence
from math import log

import numpy as np

from diffsample.grid import Grid, as_grid
from diffsample.process import Level, Process
from diffsample.solvers.exponential import NOISE, check_order, exact, explicit
from diffsample.solvers.moves import rescaled_noise
from diffsample.solvers.multistep import lagrange_averages, lms
from diffsample.tableau import Tableau

POINTS = 64  # of the quadrature in log-SNR


def deis_t(process: Process, times: Grid | Sequence[float], *, order: int = 3) -> Tableau:
    """DEIS tAB: the polynomial in process time t. The integrals are taken by Gauss-Legendre in log-SNR.

    Order `order` given exact history, where t is a smooth function of log-SNR (the authors' code has errors of 6e-4 in
    the integrals, from a Riemann sum). One call a step; starts at order 1, 2, ...; exact where eps is constant along
    the path. A last step into sigma = 0 is first order.

    Args:
        process, times: as for `ddim`, but alpha > 0 at the start.
        order: 1 to 4, points of the polynomial.

    Raises:
        ValueError: another order; a start at alpha = 0.

    Reference: Zhang & Chen 2023, arXiv 2204.13902, eq. 15.

    >>> import diffsample as ds
    >>> ds.solvers.deis_t(ds.VariancePreserving(), [1.0, 0.5, 0.2, 0.1]).slots
    3
    """
    check_order(order, 4, "deis_t")
    roots, weights = np.polynomial.legendre.leggauss(POINTS)

    def weigh(past: Sequence[Level], s: Level, t: Level) -> list[float]:
        if not t.sigma:
            return [1.0]
        start, end = -log(rescaled_noise(s)), -log(rescaled_noise(t))
        points = start + (end - start) * (roots + 1) / 2
        inside = np.asarray(process.t_from_half_logsnr(points))
        return lagrange_averages([level.t for level in past], inside, weights * np.exp(-points))

    return explicit(as_grid(process, times), NOISE, order, weigh).tableau("deis_t", order=order)


def deis_rho(process: Process, times: Grid | Sequence[float], *, order: int = 3) -> Tableau:
    """DEIS rhoAB: the polynomial in rho = sigma / alpha. The same table as `lms`, orders and limits included.

    Args:
        process, times: as for `ddim`, but alpha > 0 at the start.
        order: 1 to 5, points of the polynomial.

    Raises:
        ValueError: as for `lms`.

    Reference: Zhang & Chen 2023, arXiv 2204.13902, appendix B.

    >>> import diffsample as ds
    >>> ds.solvers.deis_rho(ds.VariancePreserving(), [1.0, 0.5, 0.2, 0.1]).slots
    3
    """
    return lms(process, times, order=order)


def deis_log_rho(process: Process, times: Grid | Sequence[float], *, order: int = 3) -> Tableau:
    """DEIS log-rho: the polynomial in log rho = -half_logsnr, integrated in closed form; diffusers' "logrho".

    The same table as `exp_multistep` in the noise form, remarks on the start included. Order `order` given exact
    history; one call a step; a last step into sigma = 0 is first order.

    Args:
        process, times: as for `ddim`, but alpha > 0 at the start.
        order: 1 to 4, points of the polynomial.

    Raises:
        ValueError: another order; a start at alpha = 0.

    Reference: Zhang & Chen 2023, arXiv 2204.13902, appendix B.

    >>> import diffsample as ds
    >>> ds.solvers.deis_log_rho(ds.VariancePreserving(), [1.0, 0.5, 0.2, 0.1]).slots
    3
    """
    check_order(order, 4, "deis_log_rho")
    return explicit(as_grid(process, times), NOISE, order, exact(NOISE)).tableau("deis_log_rho", order=min(order, 3))
