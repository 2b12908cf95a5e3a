"""Certificates of samplers that are not tables: time shift, Langevin steps by a rule, adaptive solves, a user's own.

Nothing can be read off such a sampler, so it is run, in 64-bit floats, on problems with known answers.
"""

from typing import NamedTuple

import jax
import numpy as np

from diffsample.betas import DiscreteBetas
from diffsample.certify import GRADIENT, MARGIN, MOVES, PROCESS, CertificateError, exact_words
from diffsample.exact import Gaussian
from diffsample.orders import EXACT
from diffsample.process import Process
from diffsample.running import (
    LAW,
    Build,
    Measure,
    Order,
    between,
    count_calls,
    gaussian_errors,
    gradient_gap,
    on_gaussian,
    order_in_law,
    order_on_flow,
    returns_its_dtype,
    sampler_degrees,
)

DRAWN = (64, 1024)  # samples and numbers of each, for moments
POINT = Gaussian(2.0, 0.0)
SAME = 1e-6  # of the largest value: a sample alone and in its batch
SIGMAS = 3.0  # standard errors of a drawn order that are forgiven beside the margin


class SamplerCertificate(NamedTuple):
    """The measured properties of a sampler; print it for a card."""

    name: str
    declared: float | None  # order that is claimed; None makes no claim
    order: Order | None  # measured where one is claimed
    stochastic: bool
    calls_per_step: float  # 0 where the sampler chooses its own steps
    calls: int  # on 10 moves, counted
    nfe: int | None  # that the sampler itself says; None where it does not say
    point_mass: bool  # data of one point are reached
    degrees: tuple[int, int, int] | None  # `exact_degrees`; None untried: it draws, has a table of times, is a function
    gaussian: float  # error of mean (in standard deviations) or variance (relative) on N(1/2, 1/4), 10 moves
    spread: float  # its standard error; 0 where nothing is drawn
    alone: bool  # a sample does not depend on its batch
    dtypes: bool  # float32 and bfloat16 come out as they went in
    gradient: float | None  # relative error against finite differences; None unchecked

    def verify(self) -> "SamplerCertificate":
        """Itself.

        Raises:
            CertificateError: measured and declared order differ by more than 0.25 (and three standard errors), `nfe`
                is not what was counted, a dtype changes, or a gradient is not finite or wrong.
        """
        faults = []
        if self.declared is not None and self.order is not None:
            allowed = MARGIN + SIGMAS * self.order.spread
            if not abs(self.order.value - self.declared) <= allowed:
                faults.append(f"measures order {self.order.value:.2f}{_of(self.order)} and declares {self.declared}")
        if self.nfe is not None and self.nfe != self.calls:
            faults.append(f"makes {self.calls} network calls and declares nfe={self.nfe}")
        if not self.dtypes:
            faults.append("returns another dtype than it was given")
        if self.gradient is not None and not self.gradient <= GRADIENT:
            faults.append(f"has gradients that are off by {self.gradient:.1g} from finite differences")
        if faults:
            raise CertificateError(f"{self.name} {'; '.join(faults)}\n{self}", self)
        return self

    def exact_on(self) -> str:
        """What is integrated exactly, in words; of what was tried."""
        return exact_words(self.point_mass, self.degrees or (-1, -1, -1))

    def moments(self) -> str:
        """The error on Gaussian data, and how far it is from chance."""
        return f"{self.gaussian:.2g}{f' ± {self.spread:.1g}' if self.spread else ''}"

    def orders(self) -> str:
        """Measured and declared order."""
        if self.order is None:
            return "no claim"
        spread = f" ± {self.order.spread:.2g}" if self.order.spread else ""
        return f"{self.order.value:.2f}{spread}, {self.declared:g}{_of(self.order)}"

    def each(self) -> str:
        """Calls a step."""
        return f"{self.calls_per_step:g} a step" if self.calls_per_step else "as many as it takes"

    def __str__(self) -> str:
        gradient = "not checked" if self.gradient is None else f"within {self.gradient:.1g} of finite differences"
        lines = {
            "order": self.orders(),
            "calls": f"{self.each()}, {self.calls} on {MOVES} moves",
            "draws noise": "yes" if self.stochastic else "no",
            "exact on": self.exact_on(),
            "Gaussian data": f"error {self.moments()} on {MOVES} moves",
            "a sample": "does not depend on its batch" if self.alone else "DEPENDS on its batch",
            "dtypes": "kept" if self.dtypes else "CHANGED",
            "gradients": gradient,
        }
        return "\n".join([self.name, *(f"  {key:15}{value}" for key, value in lines.items())])


def sampler_certificate(
    build: Build,
    process: Process = PROCESS,
    *,
    name: str,
    declared: float | None = None,
    measure: Measure | None = None,
    gradient: bool = True,
    check: bool = False,
) -> SamplerCertificate:
    """Measure a sampler by running it: order, calls, exactness, moments, batch, dtypes, gradients. A few seconds.

    Args:
        build: a function (denoiser, grid) that returns a `Sampler`, or, for what is none, a function (key, x) that
            returns the states at the end of the grid. Every sample has two numbers or more, but on the problem of
            the order one sample has nine.
        process: of the grids, which run from sigma / alpha = 10 to 0.1, and on to 0 where no order is measured; for
            an order on the flow from 152 to 0.045. On `DiscreteBetas` all times are of its table.
        name: on the card.
        declared: order that the sampler claims; None claims nothing, and none is measured.
        measure: `order_on_flow`, `order_in_law` or `order_along_path` of `diffsample.running`; by default the first
            for what draws nothing, the second for what draws (rough: it needs a million draws).
        gradient: False for steps that adapt to the noise: a small change of the weight is then another discretisation
            of the path, and finite differences are no derivative.
        check: raise if a claim fails, as `SamplerCertificate.verify` does.

    Raises:
        CertificateError: check is True and a claim fails; names the sampler, the measured and the declared value.
        ValueError: a process that does not span the levels, or what the sampler raises.

    >>> import diffsample as ds
    >>> process = ds.DiscreteBetas.linear()
    >>> def shifted(denoiser, grid):
    ...     return ds.solvers.shifted(denoiser, ds.solvers.ddim(process, grid), window=40, cutoff=300)
    >>> print(sampler_certificate(shifted, process, name="time-shift"))
    time-shift
      order          no claim
      calls          1 a step, 10 on 10 moves
      draws noise    no
      exact on       point mass
      Gaussian data  error 0.38 on 10 moves
      a sample       does not depend on its batch
      dtypes         kept
      gradients      within ... of finite differences
    """
    grid = between(process, MOVES, zero=True)
    with jax.enable_x64(True):
        out, other = (on_gaussian(build, grid, DRAWN, seed=seed) for seed in (0, 1))
        alone = on_gaussian(build, grid, DRAWN, first=1)
        stochastic, built = bool((out != other).any()), build(LAW, grid)
        calls, nfe = count_calls(build, grid), getattr(built, "nfe", None)
        measured = None if declared is None else (measure or (order_in_law if stochastic else order_on_flow))
        table = isinstance(process, DiscreteBetas)
        found = SamplerCertificate(
            name=name,
            declared=declared,
            order=measured and measured(build, process),
            stochastic=stochastic,
            calls_per_step=(_calls(build, process, 2 * MOVES) - calls) / MOVES,
            calls=calls,
            nfe=nfe,
            point_mass=bool(np.abs(on_gaussian(build, grid, DRAWN, law=POINT) - 2.0).max() < EXACT),
            degrees=None if stochastic or table or callable(built) else sampler_degrees(build, process),
            gaussian=max(map(abs, gaussian_errors(out, grid))),
            spread=float(np.sqrt(2 / np.prod(DRAWN))) * stochastic,
            alone=bool(np.abs(alone - out[:1]).max() <= SAME * np.abs(out).max()),
            dtypes=False,
            gradient=gradient_gap(build, between(process, 4)) if gradient else None,
        )
    found = found._replace(dtypes=returns_its_dtype(build, between(process, 4)))  # in 32-bit floats, as users run it
    return found.verify() if check else found


def _calls(build: Build, process: Process, moves: int) -> int:
    """Network calls on so many moves: what the sampler says, checked elsewhere, or else counted."""
    grid = between(process, moves, zero=True)
    nfe = getattr(build(LAW, grid), "nfe", None)
    return count_calls(build, grid) if nfe is None else nfe


def _of(order: Order) -> str:
    return f" {order.of}" if order.of else ""
