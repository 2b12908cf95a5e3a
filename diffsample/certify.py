"""Certificates: what a solver does, measured, beside what it says of itself.

Takes any function (process, times) -> Tableau, of this library or a user's. Nothing is drawn: orders, exactness and
stability are computed from the table in float64; only the checks of gradients compile a program.
"""

from typing import Any, NamedTuple

from diffsample.contract import gradient_error, keeps_dtypes
from diffsample.exact import Moments
from diffsample.orders import (
    EXACT,
    FROM_MIDWAY,
    HIGH,
    Solver,
    exact_degrees,
    measured_order,
    measured_weak_order,
    moment_error,
    time_of,
)
from diffsample.process import Process, VariancePreserving
from diffsample.stability import real_axis_limit, steady_tableau
from diffsample.times import uniform_logsnr

PROCESS = VariancePreserving()
MARGIN = 0.25  # between measured and declared order
MOVES = 10  # of the usual run
GRADIENT = 1e-2  # relative error of gradients that float32 explains


class CertificateError(AssertionError):
    """A solver does not do what it declares; `certificate` holds all that was measured."""

    def __init__(self, message: str, certificate: Any):
        super().__init__(message)
        self.certificate = certificate


class Certificate(NamedTuple):
    """The measured properties of a solver; print it for a card."""

    name: str
    declared: int | None  # order that the table declares; None makes no claim
    order: float  # measured, from almost pure noise; in law if stochastic
    midway: float | None  # measured, from sigma / alpha = 2; None if stochastic
    stochastic: bool
    calls_per_step: float
    calls: int  # on 10 moves
    registers: int
    slots: int
    point_mass: bool  # data of one point: the law of the output is exact
    x0_degree: int  # of log-SNR, up to which a polynomial x0 is integrated exactly; -1 none, or stochastic
    eps_degree: int  # the same for eps in log-SNR
    eps_noise_degree: int  # the same for eps in sigma / alpha
    gaussian: float  # error of mean (in standard deviations) or variance (relative) on N(1/2, 1/4), 10 moves
    real_axis: float | None  # stability limit of z = lambda step; None where a step has no steady form
    dtypes: bool | None  # float32 and bfloat16 come out as they went in; None unchecked
    gradient: float | None  # relative error against finite differences; None unchecked

    def verify(self) -> "Certificate":
        """Itself.

        Raises:
            CertificateError: measured and declared order differ by more than 0.25, a dtype changes, or a gradient is
                not finite or wrong.
        """
        faults = []
        if self.declared is not None and not abs(self.order - self.declared) <= MARGIN:
            kind = "weak order" if self.stochastic else "order"
            faults.append(f"measures {kind} {self.order:.2f} and declares {self.declared}")
        if self.dtypes is False:
            faults.append("returns another dtype than it was given")
        if self.gradient is not None and not self.gradient <= GRADIENT:
            faults.append(f"has gradients that are off by {self.gradient:.1g} from finite differences")
        if faults:
            raise CertificateError(f"{self.name} {'; '.join(faults)}\n{self}", self)
        return self

    def exact_on(self) -> str:
        """What is integrated exactly, in words; of what was tried."""
        return exact_words(self.point_mass, (self.x0_degree, self.eps_degree, self.eps_noise_degree))

    def __str__(self) -> str:
        midway = "" if self.midway is None else f", {self.midway:.2f} from sigma/alpha = 2"
        unchecked = {None: "not checked", True: "kept", False: "CHANGED"}
        gradient = "not checked" if self.gradient is None else f"within {self.gradient:.1g} of finite differences"
        lines = {
            "order in law" if self.stochastic else "order": f"{self.order:.2f}{midway}; declared {self.declared}",
            "calls": f"{self.calls_per_step:g} a step, {self.calls} on {MOVES} moves",
            "state": f"{self.registers} registers, {self.slots} slots",
            "exact on": self.exact_on(),
            "Gaussian data": f"error {self.gaussian:.2g} on {MOVES} moves",
            "stability": "no steady step" if self.real_axis is None else f"z > {self.real_axis:.4g} on the real axis",
            "dtypes": unchecked[self.dtypes],
            "gradients": gradient,
        }
        return "\n".join([self.name, *(f"  {key:15}{value}" for key, value in lines.items())])


def certificate(
    solver: Solver,
    process: Process = PROCESS,
    *,
    name: str | None = None,
    zero: bool = True,
    compiled: bool = True,
    check: bool = False,
) -> Certificate:
    """Measure a solver: order, calls, exactness, stability, dtypes, gradients. Under a second, without `compiled`.

    The order is the slope of the error on the probability flow of a mixture of Gaussians (see `diffsample.orders`); of
    a solver that draws noise, that of the error in mean and variance on Gaussian data, computed through the table.

    Args:
        solver: a function (process, times) -> Tableau; fix other arguments by a lambda.
        process: one that spans sigma / alpha from 152 to 0.045, for example `VarianceExploding(0.002, 160.0)`.
        name: on the card; None takes the table's.
        zero: False for a solver that cannot end at sigma = 0.
        compiled: also check dtypes and gradients; seconds for the first solver, for most others share its program.
        check: raise if a claim fails, as `Certificate.verify` does.

    Raises:
        CertificateError: check is True and a claim fails; names the method, the measured and the declared value.
        ValueError: a process that does not span the levels, or what the solver raises.

    >>> import diffsample as ds
    >>> print(certificate(ds.solvers.dpmpp, compiled=False))
    dpmpp
      order          2.00, 2.00 from sigma/alpha = 2; declared 2
      calls          1 a step, 10 on 10 moves
      state          1 registers, 2 slots
      exact on       point mass
      Gaussian data  error 0.065 on 10 moves
      stability      z > -1 on the real axis
      dtypes         not checked
      gradients      not checked
    """
    grid = uniform_logsnr(process, MOVES, zero=zero)
    table = solver(process, grid)
    stochastic = table.noise != "never"
    degrees = (-1, -1, -1) if stochastic else exact_degrees(solver, process)
    short = solver(process, uniform_logsnr(process, 4, start=time_of(process, HIGH), zero=zero)) if compiled else None
    found = Certificate(
        name=name or table.about.name,
        declared=table.about.order,
        order=measured_weak_order(solver, process) if stochastic else measured_order(solver, process),
        midway=None if stochastic else measured_order(solver, process, FROM_MIDWAY),
        stochastic=stochastic,
        calls_per_step=_calls_per_step(solver, process),
        calls=table.calls,
        registers=table.registers,
        slots=table.slots,
        point_mass=moment_error(table, grid, Moments(2.0, 0.0)) < EXACT,
        x0_degree=degrees[0],
        eps_degree=degrees[1],
        eps_noise_degree=degrees[2],
        gaussian=moment_error(table, grid, Moments(0.5, 0.25)),
        real_axis=_real_axis(solver),
        dtypes=short and keeps_dtypes(short),
        gradient=short and gradient_error(short),
    )
    return found.verify() if check else found


def exact_words(point_mass: bool, degrees: tuple[int, int, int]) -> str:
    """What is integrated exactly: a point mass, and polynomials up to `polynomial_degrees`."""
    words = ("x0 of degree {} in log-SNR", "eps of degree {} in log-SNR", "eps of degree {} in sigma/alpha")
    found = [text.format(k) for text, k in zip(words, degrees, strict=True) if k > 0]
    if not point_mass and max(degrees[:2]) >= 0:
        found.insert(0, "constant x0" if degrees[0] >= 0 else "constant eps")
    return ", ".join(["point mass"] * point_mass + found) or "none"


def _calls_per_step(solver: Solver, process: Process) -> float:
    """Calls that a move more costs, away from the start and the end."""
    few, many = (solver(process, uniform_logsnr(process, n, zero=False)).calls for n in (2 * MOVES, 4 * MOVES))
    return (many - few) / (2 * MOVES)


def _real_axis(solver: Solver) -> float | None:
    """The limit, or None of a solver that has no steady step or does not work on `VarianceExploding`."""
    try:
        return real_axis_limit(steady_tableau(solver))
    except (ValueError, TypeError):
        return None
