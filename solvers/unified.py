"""UniPC: one formula for predictor and corrector of any order."""

from collections.abc import Sequence

from diffsample.grid import Grid, as_grid
from diffsample.process import Level, Process
from diffsample.solvers.exponential import (
    DATA,
    NOISE,
    bh1_scale,
    check_order,
    corrected,
    explicit,
    midpoint,
    places,
    shares,
)
from diffsample.tableau import Tableau


def unipc(
    process: Process,
    times: Grid | Sequence[float],
    *,
    order: int = 2,
    bh1: bool = False,
    corrector: bool = True,
    noise_form: bool = False,
) -> Tableau:
    """UniPC: an exponential multistep predictor, corrected by the output at the state that it predicted.

    x_t = (sigma_t / sigma_s) x_s + alpha_t sum_j w_j D_j, w on the last `order` outputs; the call at x_t, which the
    next step needs anyway, then recomputes x_t with that output as one point more. One call a step, two registers.
    Order `order` + 1, and `order` up to 3 without the corrector (UniP), from almost pure noise; elsewhere the first
    step, an Euler step corrected by the trapezoidal rule, caps it at 3 (UniP at 2). Exact where the output is constant
    along the path. The last step is not corrected; into sigma = 0 it is first order. In the data form any start and
    end, alpha = 0 and sigma = 0 included.

    Args:
        process, times: as for `ddim`; alpha > 0 at the start if noise_form.
        order: 1 to 4; the first steps use fewer outputs.
        bh1: B(h) = h instead of exp(h) - 1. It matters only in the rule for two outputs, which has a fixed 1/2 (the
            second-order predictor and first-order corrector, so for order >= 3 the first two steps).
        corrector: False is UniP, one register.
        noise_form: eps instead of x0.

    Raises:
        ValueError: another order; a start at alpha = 0 in the noise form.

    Reference: Zhao et al. 2023, arXiv 2302.04867, algorithms 1 and 2 and section 3.

    >>> import diffsample as ds
    >>> process = ds.VariancePreserving()
    >>> ds.solvers.unipc(process, ds.times.uniform_logsnr(process, 8), order=3).slots
    4
    """
    check_order(order, 4, "unipc")
    form, grid = NOISE if noise_form else DATA, as_grid(process, times)

    def weigh(past: Sequence[Level], s: Level, t: Level) -> list[float]:
        z, found = form.move(s, t).z, places(past, s, t)
        return midpoint(found, bh1_scale(z) if bh1 else 1.0) if len(found) == 2 else shares(z, found)

    if not corrector:
        return explicit(grid, form, order, weigh).tableau("unip", order=min(order, 3))
    return corrected(grid, form, order, predict=weigh, correct=weigh).tableau("unipc", order=order + 1)
