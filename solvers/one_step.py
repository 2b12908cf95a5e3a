"""First-order methods of one call a step: DDIM, DDPM, Euler, consistency sampling."""

from collections.abc import Sequence
from math import inf, sqrt

from diffsample.grid import Grid, as_grid
from diffsample.process import Process
from diffsample.program import Program
from diffsample.solvers.churning import add_churn
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

    Raises:
        ValueError: eta outside [0, 1].

    Reference: Song, Meng, Ermon 2021, arXiv 2010.02502, eq. 12 and 16.

    >>> import diffsample as ds
    >>> ds.solvers.ddim(ds.FlowMatching(), [1.0, 0.5, 0.0]).calls
    2
    """
    check_eta(eta)
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


def euler_ancestral(process: Process, times: Grid | Sequence[float], *, eta: float = 1.0) -> Tableau:
    """Euler-ancestral: an Euler step down to the noise sqrt(sigma_t^2 - c^2), then fresh noise c, as `ddim` says.

    Order 1 in law, one call a step. Another name of ddim(eta), with the default of k-diffusion.

    Args:
        process, times: as for `ddim`.
        eta: share of the ancestral noise, 0 to 1.

    Raises:
        ValueError: eta outside [0, 1].

    Reference: Crowson, k-diffusion (software), sample_euler_ancestral.

    >>> import diffsample as ds
    >>> ds.solvers.euler_ancestral(ds.VarianceExploding(), [10.0, 1.0, 0.0]).noise
    'all'
    """
    return ddim(process, times, eta=eta)


def euler(
    process: Process,
    times: Grid | Sequence[float],
    *,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = inf,
    churn_noise: float = 1.0,
) -> Tableau:
    """Euler on dx/dsigma = eps in the coordinates x / alpha, sigma / alpha, with the churn of EDM.

    Order 1, one call a step; exact where eps is constant along the path. The same numbers as `ddim` in another form: it
    keeps the state and adds eps, and so cannot start at alpha = 0.

    Args:
        process, times: as for `ddim`, but alpha > 0 at the start.
        churn, churn_min, churn_max, churn_noise: as for `heun`.

    Raises:
        ValueError: a negative churn or churn_noise; churn beyond the end of the process; a start at alpha = 0.

    Reference: Karras et al. 2022, arXiv 2206.00364, algorithm 2 without its correction.

    >>> import diffsample as ds
    >>> ds.solvers.euler(ds.VarianceExploding(), [10.0, 1.0, 0.0]).calls
    2
    """
    program = Program(as_grid(process, times))
    for left, t in program.moves():
        s = add_churn(program, left, churn, churn_min, churn_max, churn_noise)
        eps = program.call(s, t, eps=1.0)
        step = rescaled_noise(t) - rescaled_noise(s)
        program[0] = (t.alpha / s.alpha) * program[0] + t.alpha * step * eps
    return program.tableau("euler", order=1)


def consistency_multistep(process: Process, times: Grid | Sequence[float], *, sigma_min: float = 0.0) -> Tableau:
    """Multistep consistency sampling: x_t = alpha_t (D(x_s) + sqrt((sigma_t / alpha_t)^2 - sigma_min^2) z).

    One call a step, for networks that map any point of a path to its end at once; no order, for the error is the
    network's. Exact on a point mass. A last move to sigma_min or to 0 draws nothing and returns D. Any start, alpha = 0
    included; latent consistency models are sigma_min = 0.

    Args:
        process, times: as for `ddim`.
        sigma_min: level sigma / alpha at which the network's paths end, 0.002 in the paper; 0 for clean data.

    Raises:
        ValueError: a negative sigma_min, or a time before the last below it.

    Reference: Song et al. 2023, arXiv 2303.01469, algorithm 1.

    >>> import diffsample as ds
    >>> ds.solvers.consistency_multistep(ds.VarianceExploding(), [80.0, 5.84, 0.002], sigma_min=0.002).calls
    2
    """
    if sigma_min < 0:
        raise ValueError(f"sigma_min={sigma_min} must not be negative")
    grid = as_grid(process, times)
    program = Program(grid)
    for s, t in program.moves():
        if rescaled_noise(t) < sigma_min * (1 - 1e-9) and t.t != grid.t[-1]:
            raise ValueError(f"the level {rescaled_noise(t):g} at t = {t.t:g} lies below sigma_min={sigma_min}")
        program[0] = program.call(s, t, x0=t.alpha)
        added = rescaled_noise(t) ** 2 - sigma_min**2
        if added > 1e-9 * sigma_min**2:
            program[0] += t.alpha * sqrt(added) * program.noise()
    return program.tableau("consistency_multistep")


def check_eta(eta: float) -> None:
    """Raise ValueError unless eta lies in [0, 1]."""
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta} must lie in [0, 1]")
