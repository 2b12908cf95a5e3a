"""Stochastic exponential multistep methods: the reverse SDE of any strength, one call and one draw a step.

dx = (f - (1 + tau^2) g^2 score / 2) dt + tau g dW has the same marginals for every tau: 0 is the ODE, 1 the reverse
SDE.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import inf

from diffsample.grid import Grid, as_grid
from diffsample.process import Level, Process
from diffsample.solvers.exponential import (
    Form,
    Move,
    bh1_scale,
    check_order,
    corrected,
    data_move,
    explicit,
    midpoint,
    places,
    shares,
)
from diffsample.solvers.multistep import published
from diffsample.tableau import Tableau


def sde_dpmpp(
    process: Process, times: Grid | Sequence[float], *, order: int = 2, eta: float = 1.0, heun: bool = False
) -> Tableau:
    """SDE-DPM-Solver++ multistep: x_t = exp(-eta h) (sigma_t / sigma_s) x_s + alpha_t sum_j w_j D_j + up z.

    sum_j w_j = 1 - exp(-(1 + eta) h), up = sigma_t sqrt(1 - exp(-2 eta h)). One call a step; weak order 1 for order=1,
    else 2: the published third-order formula gives the second derivative half its weight. Exact on a point mass.
    eta = 0 is `dpmpp`; order=1 with eta=1 is ancestral sampling. Any start and end; a last step into sigma = 0 is first
    order.

    Args:
        process, times: as for `ddim`.
        order: 1 to 3, outputs used.
        eta: tau^2, the rate of fresh noise relative to the reverse SDE: 0 draws none, 1 is the reverse SDE, more is
            allowed. (This is k-diffusion's eta, not the share of `ddim`.)
        heun: order=2 with exact exponential weights instead of the midpoint ones; order=3 starts with them anyway.

    Raises:
        ValueError: another order; eta negative or not finite.

    Reference: Lu et al. 2022, arXiv 2211.01095, eq. 18; Crowson, k-diffusion (software), sample_dpmpp_2m_sde, _3m_sde.

    >>> import diffsample as ds
    >>> process = ds.VariancePreserving()
    >>> ds.solvers.sde_dpmpp(process, ds.times.karras(process, 8)).noise
    'all'
    """
    check_order(order, 3, "sde_dpmpp")
    if not 0 <= eta < inf:
        raise ValueError(f"eta={eta} must be a finite number >= 0; 0 is the ODE, 1 the reverse SDE")
    form = Form(1.0, 0.0, partial(data_move, rate=eta))
    program = explicit(as_grid(process, times), form, order, published(form, taylor=heun or order == 3))
    return program.tableau("sde_dpmpp", order=min(order, 2))


def sa_solver(
    process: Process,
    times: Grid | Sequence[float],
    *,
    predictor: int = 3,
    corrector: int = 4,
    tau: float | Callable[[Level, Level], float] = 1.0,
    few_steps: bool = False,
) -> Tableau:
    """SA-Solver: stochastic Adams predictor and corrector with exact exponential weights, one draw shared by both.

    x_t = exp(-tau^2 h) (sigma_t / sigma_s) x_s + alpha_t sum_j w_j D_j + sigma_t sqrt(1 - exp(-2 tau^2 h)) z. One call
    a step (PEC). On the ODE (tau = 0) the order is the corrector's count, at most predictor + 1 (the predictor's count
    without a corrector, at most 3), from almost pure noise; with noise the weak order is that, at most 2. Exact on a
    point mass. tau = 0 with corrector = predictor + 1 is `unipc` without its fixed 1/2. The last step is not corrected;
    into sigma = 0 it is first order. Any start and end.

    Args:
        process, times: as for `ddim`.
        predictor: 1 to 4, outputs used.
        corrector: 0 to 5, outputs used, that at the new state included; 0 is no corrector.
        tau: strength >= 0 of the noise, or a function of the levels that a step leaves and reaches; the authors' is 1
            on times 0.2 to 0.8, `lambda s, t: float(0.2 <= t.t <= 0.8)` (diffusers asks s.t).
        few_steps: the authors' mode for few steps: no noise in the last step, and the rule with a fixed 1/2 wherever
            two outputs are used.

    Raises:
        ValueError: another predictor or corrector; tau negative or not finite.

    Reference: Xue et al. 2023, arXiv 2309.05019.

    >>> import diffsample as ds
    >>> process = ds.VariancePreserving()
    >>> ds.solvers.sa_solver(process, ds.times.karras(process, 8), tau=0.6).registers
    2
    """
    check_order(predictor, 4, "sa_solver's predictor")
    if corrector not in range(6):
        raise ValueError(f"sa_solver's corrector uses 0 (none) to 5 outputs, got corrector={corrector!r}")
    grid = as_grid(process, times)

    def move(s: Level, t: Level) -> Move:
        still = few_steps and t.t == grid.t[-1]
        return data_move(s, t, 0.0 if still else _strength(tau, s, t) ** 2)

    def weigh(past: Sequence[Level], s: Level, t: Level, used: int) -> list[float]:
        z, found = move(s, t).z, places(past, s, t)[:used]
        return midpoint(found, bh1_scale(z)) if few_steps and len(found) == 2 else shares(z, found)

    form, predict, correct = Form(1.0, 0.0, move), partial(weigh, used=predictor), partial(weigh, used=corrector)
    if not corrector:
        program = explicit(grid, form, predictor, predict)
    else:
        program = corrected(grid, form, max(predictor, corrector - 1), predict, correct)
    noisy = any(move(s, t).up for s, t in program.moves())
    order = min(corrector, predictor + 1) if corrector else min(predictor, 3)
    return program.tableau("sa_solver", order=min(order, 2) if noisy else order)


def _strength(tau: float | Callable[[Level, Level], float], s: Level, t: Level) -> float:
    value = tau(s, t) if callable(tau) else tau
    if not 0 <= value < inf:
        raise ValueError(
            f"tau={value} (from t = {s.t:g} to {t.t:g}) must be a finite number >= 0; 0 is the ODE, 1 the reverse SDE"
        )
    return value
