"""First-order methods of one call a step: DDIM, DDPM, Euler."""

from collections.abc import Sequence
from math import sqrt

from diffsample.grid import Grid, as_grid
from diffsample.process import Process
from diffsample.program import Program
from diffsample.solvers.moves import ancestral, decay, rescaled_noise
from diffsample.tableau import Tableau


def ddim(process: Process, times: Grid | Sequence[float], *, eta: float = 0.0) -> Tableau:
    """DDIM: x_t = alpha_t x0 + sqrt(sigma_t^2 - c^2) eps + c z, with c = eta sigma_t sqrt(1 - exp(-2h)).

    Order 1, one call a step; exact on a point mass at any eta. eta = 0 draws no noise, eta = 1 is ancestral sampling
    (`ddpm`). Any start and end, alpha = 0 and sigma = 0 included.

    Args:
        process: the noising process.
        times: a grid of `diffsample.times`, or decreasing process times.
        eta: share of the ancestral noise, 0 to 1.

    Reference: Song, Meng, Ermon 2021, arXiv 2010.02502, eq. 12 and 16.

    >>> import diffsample as ds
    >>> ds.solvers.ddim(ds.FlowMatching(), [1.0, 0.5, 0.0]).calls
    2
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta} must lie in [0, 1]")
    program = Program(as_grid(process, times))
    for s, t in program.moves():
        down, up = ancestral(s, t, eta)
        program[0] = program.call(s, t, x0=t.alpha, eps=down)
        if up:
            program[0] += up * program.noise()
    return program.tableau("ddim", order=1)


def ddpm(process: Process, times: Grid | Sequence[float], *, large: bool = False) -> Tableau:
    """DDPM: the ancestral step, with the posterior variance ("fixed small") or beta_t ("fixed large").

    Order 1 in law, one call a step. large=False equals ddim(eta=1); large=True keeps its mean and draws with the
    variance of the forward step, sigma_s^2 - (alpha_s / alpha_t)^2 sigma_t^2 (beta_t where alpha^2 + sigma^2 = 1),
    except into sigma = 0, where nothing is drawn.

    Args:
        process, times: as for `ddim`.
        large: the larger of the two variances.

    Reference: Ho, Jain, Abbeel 2020, arXiv 2006.11239, section 3.2.

    >>> import diffsample as ds
    >>> ds.solvers.ddpm(ds.VariancePreserving(), [1.0, 0.5, 0.0]).noise
    'all'
    """
    if not large:
        return ddim(process, times, eta=1.0)
    program = Program(as_grid(process, times))
    for s, t in program.moves():
        keep = decay(s, t)
        program[0] = program.call(s, t, x0=t.alpha, eps=t.sigma * keep)
        if t.sigma:
            program[0] += s.sigma * sqrt(1 - keep**2) * program.noise()
    return program.tableau("ddpm", order=1)


def euler(process: Process, times: Grid | Sequence[float]) -> Tableau:
    """Euler on dx/dsigma = eps in the coordinates x / alpha, sigma / alpha. Order 1, one call a step.

    The same numbers as `ddim` in another form: it keeps the state and adds eps, and so cannot start at alpha = 0.

    Args:
        process, times: as for `ddim`.

    Reference: Karras et al. 2022, arXiv 2206.00364, algorithm 1 without its correction.

    >>> import diffsample as ds
    >>> ds.solvers.euler(ds.VarianceExploding(), [10.0, 1.0, 0.0]).calls
    2
    """
    program = Program(as_grid(process, times))
    for s, t in program.moves():
        eps = program.call(s, t, eps=1.0)
        step = rescaled_noise(t) - rescaled_noise(s)
        program[0] = (t.alpha / s.alpha) * program[0] + t.alpha * step * eps
    return program.tableau("euler", order=1)
