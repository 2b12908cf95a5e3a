"""Score-SDE: predictors that discretise the reverse SDE, annealed Langevin correctors, and both in turn.

A predictor's move is x_t = carry x_s + pull eps + noise z. Corrections are Langevin steps at the level before a move:
x + step score + sqrt(2 step) z, step = 2 (alpha_s / alpha_t)^2 (snr sigma_s)^2, score = -eps / sigma_s. Both have
fixed numbers, so the whole is a table. The forward kernel from t to s, x_s = a x_t + g z, has a = alpha_s / alpha_t
and g^2 = sigma_s^2 - a^2 sigma_t^2, which is beta_i on a table of betas.
"""

from collections.abc import Callable, Sequence
from math import log, sqrt
from typing import NamedTuple

from diffsample.grid import Grid, as_grid
from diffsample.process import Level, Process, SubVP, VarianceExploding, VariancePreserving
from diffsample.program import Program
from diffsample.tableau import Tableau


class Pull(NamedTuple):
    """One move of a predictor: x_t = carry x_s + pull eps + noise z."""

    carry: float
    pull: float
    noise: float


def euler_maruyama(
    process: Process,
    times: Grid | Sequence[float],
    *,
    step: float | None = None,
    flow: bool = False,
    corrections: int = 0,
    snr: float = 0.16,
    denoise: bool = True,
) -> Tableau:
    """Euler-Maruyama on the reverse SDE: x_t = x_s - (f x_s - g^2 score) dt + g sqrt(dt) z, f and g at s.

    Order 1 (in law, unless flow; none claimed with corrections), 1 + corrections calls a step; dt = s - t, on
    VarianceExploding dt = log(s / t), the published exponential schedule, whose grids must end at sigma > 0. VP has f =
    -beta / 2 and g^2 = beta, sub-VP the same f and g^2 = beta (1 - alpha^4), VE f = 0 and g^2 = 2 sigma^2. Not exact on
    a point mass.

    Args:
        process: `VariancePreserving`, `SubVP` or `VarianceExploding`.
        times: as for `ddim`.
        step: the same dt in every move; the released code has 1/N on a grid of N points from t = 1 to 1e-3 (append 0),
            and log(sigma_max / sigma_min) / N on VE. None takes the grid's own.
        flow: half the score and no noise: Euler on the probability-flow ODE.
        corrections: Langevin steps before every move, which make it a predictor-corrector sampler.
        snr: their signal-to-noise ratio r.
        denoise: leave out the noise of the last move.

    Raises:
        TypeError: another process.
        ValueError: a step that is not positive, negative corrections or snr, a VE grid that ends at 0 without a step.

    Reference: Song et al. 2021, arXiv 2011.13456, section 4.1; score_sde (software), EulerMaruyamaPredictor.

    >>> import diffsample as ds
    >>> process = ds.VariancePreserving()
    >>> ds.solvers.euler_maruyama(process, ds.times.uniform(process, 1000), step=1e-3).calls
    1000
    """
    if not isinstance(process, VariancePreserving | SubVP | VarianceExploding):
        raise TypeError(f"euler_maruyama knows the SDE of VariancePreserving, SubVP and VarianceExploding, not of "
                        f"{process}; use reverse_diffusion")  # fmt: skip
    if step is not None and not step > 0:
        raise ValueError(f"step={step} must be positive")

    def move(s: Level, t: Level) -> Pull:
        if isinstance(process, VarianceExploding):
            if step is None and not t.sigma:
                raise ValueError("euler_maruyama on VarianceExploding steps in log sigma and cannot reach sigma = 0; "
                                 "end the grid at sigma_min (zero=False) or give a step")  # fmt: skip
            dt, drift, spread = log(s.sigma / t.sigma) if step is None else step, 0.0, 2 * s.sigma**2
        else:
            beta = process.beta_min + s.t * (process.beta_max - process.beta_min)
            spread = beta * (1 - s.alpha**4) if isinstance(process, SubVP) else beta
            dt, drift = s.t - t.t if step is None else step, -beta / 2
        return Pull(1 - drift * dt, -spread * dt / s.sigma, sqrt(spread * dt))

    return _predict(process, times, move, flow, corrections, snr, denoise, "euler_maruyama")


def reverse_diffusion(
    process: Process,
    times: Grid | Sequence[float],
    *,
    flow: bool = False,
    corrections: int = 0,
    snr: float = 0.16,
    denoise: bool = True,
) -> Tableau:
    """Reverse diffusion: the reverse SDE discretised like the forward chain, x_t = (2 - a) x_s + g^2 score + g z.

    Order 1 (in law, unless flow; none claimed with corrections), 1 + corrections calls a step; a and g of the forward
    kernel between the two levels, so that `DiscreteBetas` and geometric VE grids give the published tables. Exact on a
    point mass where alpha = 1. Any start, alpha = 0 included. With corrections=1 it is the paper's PC sampler with
    Langevin steps of fixed size.

    Args:
        process, times: as for `ddim`.
        flow: half the score and no noise.
        corrections, snr, denoise: as for `euler_maruyama`.

    Raises:
        ValueError: negative corrections or snr.

    Reference: Song et al. 2021, arXiv 2011.13456, appendix E and algorithms 2 and 3.

    >>> import diffsample as ds
    >>> process = ds.VarianceExploding(0.01, 50.0)
    >>> ds.solvers.reverse_diffusion(process, ds.times.uniform_logsnr(process, 1000), corrections=1).calls
    2000
    """

    def move(s: Level, t: Level) -> Pull:
        a, g = _kernel(s, t)
        return Pull(2 - a, -(g**2) / s.sigma, g)

    return _predict(process, times, move, flow, corrections, snr, denoise, "reverse_diffusion")


def ancestral_sampling(
    process: Process,
    times: Grid | Sequence[float],
    *,
    corrections: int = 0,
    snr: float = 0.16,
    denoise: bool = True,
) -> Tableau:
    """Ancestral sampling of score-SDE: x_t = (x_s + g^2 score) / a + c z, c = g, but g sigma_t / sigma_s on VE.

    Order 1 in law (none claimed with corrections), 1 + corrections calls a step; exact on a point mass. Without
    corrections it is `ddpm` with large=True, and on VE with large=False. With corrections it is a predictor-corrector
    sampler.

    Args:
        process, times: as for `ddim`, but not `SubVP`, for which nothing is published (use `ddpm`), and alpha > 0.
        corrections, snr, denoise: as for `euler_maruyama`.

    Raises:
        TypeError: a sub-VP process.
        ValueError: negative corrections or snr; a start at alpha = 0.

    Reference: Song et al. 2021, arXiv 2011.13456, eq. 4 and appendix F.

    >>> import diffsample as ds
    >>> process = ds.DiscreteBetas.linear()
    >>> ds.solvers.ancestral_sampling(process, ds.times.trailing(process, 1000)).calls
    1000
    """
    if isinstance(process, SubVP):
        raise TypeError(f"ancestral_sampling has no published form on {process}; use ddpm or reverse_diffusion")

    def move(s: Level, t: Level) -> Pull:
        if not s.alpha:
            raise ValueError(f"ancestral_sampling cannot start at alpha = 0 (t = {s.t:g}); use ddpm(large=True)")
        a, g = _kernel(s, t)
        narrow = t.sigma / s.sigma if isinstance(process, VarianceExploding) else 1.0
        return Pull(1 / a, -(g**2) / (a * s.sigma), g * narrow)

    return _predict(process, times, move, False, corrections, snr, denoise, "ancestral_sampling")


def ald(
    process: Process,
    times: Grid | Sequence[float],
    *,
    corrections: int = 100,
    snr: float = 0.316,
    denoise: bool = True,
) -> Tableau:
    """ALD, annealed Langevin dynamics: `corrections` steps x + step score + sqrt(2 step) z at every level but the last.

    step = 2 (alpha_s / alpha_t)^2 (snr sigma_s)^2, with t the next level. The state stays as it is between levels. No
    order: at a level the law tends to one of relative variance 1 / (1 - step / 2v), v the variance of x_s.
    N corrections calls on a grid of N moves, and with denoise one more.

    Args:
        process, times: as for `ddim`.
        corrections: Langevin steps a level.
        snr: signal-to-noise ratio r.
        denoise: finish with one call whose x0, moved to the last level by DDIM, is returned.

    Raises:
        ValueError: corrections < 1 or negative snr.

    Reference: Song & Ermon 2019, arXiv 1907.05600, algorithm 1; the step of Song et al. 2021, arXiv 2011.13456,
    appendix G.

    >>> import diffsample as ds
    >>> process = ds.VarianceExploding(0.01, 1.0)
    >>> ds.solvers.ald(process, ds.times.uniform_logsnr(process, 10)).calls
    1001
    """
    if corrections < 1:
        raise ValueError(f"corrections={corrections} must be at least 1")
    program = Program(as_grid(process, times))
    moves = list(program.moves())
    for s, t in moves:
        _correct(program, s, t, corrections, snr)
    if denoise:
        s, t = moves[-1]
        program[0] = program.call(s, t, x0=t.alpha, eps=t.sigma)
    return program.tableau("ald")


def _kernel(s: Level, t: Level) -> tuple[float, float]:
    """a and g of the forward kernel x_s = a x_t + g z."""
    a = s.alpha / t.alpha
    return a, sqrt(s.sigma**2 - (a * t.sigma) ** 2)


def _predict(
    process: Process,
    times: Grid | Sequence[float],
    move: Callable[[Level, Level], Pull],
    flow: bool,
    corrections: int,
    snr: float,
    denoise: bool,
    name: str,
) -> Tableau:
    """Corrections, then the predictor's move, at every level."""
    program = Program(as_grid(process, times))
    moves = list(program.moves())
    for i, (s, t) in enumerate(moves):
        _correct(program, s, t, corrections, snr)
        carry, pull, noise = move(s, t)
        eps = program.call(s, t, eps=1.0, stage=corrections)
        program[0] = carry * program[0] + (pull / 2 if flow else pull) * eps
        if not flow and not (denoise and i == len(moves) - 1):
            program[0] += noise * program.noise()
    # Langevin steps of fixed size keep a bias that no number of steps removes
    return program.tableau(name, order=None if corrections else 1)


def _correct(program: Program, s: Level, t: Level, corrections: int, snr: float) -> None:
    """Langevin steps of register 0 at level s, before the move to t."""
    if corrections < 0 or snr < 0:
        raise ValueError(f"corrections={corrections} and snr={snr} must not be negative")
    step = 2 * (s.alpha / t.alpha * snr * s.sigma) ** 2
    for stage in range(corrections):
        eps = program.call(s, t, eps=1.0, stage=stage)
        program[0] = program[0] - (step / s.sigma) * eps + sqrt(2 * step) * program.noise()
