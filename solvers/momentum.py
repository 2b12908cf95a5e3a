"""Heavy-ball momentum: a transform of any multistep table, and the generalised heavy-ball methods."""

import dataclasses
from collections.abc import Sequence
from math import isfinite
from numbers import Real

import numpy as np

from diffsample.grid import Grid, as_grid
from diffsample.process import Process
from diffsample.program import Program
from diffsample.solvers.exponential import check_order
from diffsample.solvers.moves import rescaled_noise
from diffsample.solvers.multistep import ADAMS, backward_differences, combine
from diffsample.tableau import About, Tableau


def heavy_ball(tableau: Tableau, beta: float, *, nesterov: bool = False) -> Tableau:
    """Polyak's heavy ball on a multistep table: v <- (1 - beta) v + beta g, x <- A x + b v.

    g is the method's increment B F divided by b, the sum of its weights; the first v is the first g. The same calls,
    one more register. First order for beta < 1, with a larger region of stability in the real direction, which removes
    divergence artifacts at few steps and high guidance; beta = 1 is the table itself. Nesterov's form moves by
    (1 - beta) v + beta g with the new v: its error is 1 - beta times that of the heavy ball, and what it widens is the
    imaginary direction.

    Args:
        tableau: a table of one register that keeps the same output at every call (`plms`, `euler`, `dpmpp`).
        beta: damping in (0, 1].
        nesterov: look ahead, as above.

    Reference: Wizadwongsa et al. 2024, arXiv 2307.11118, section 4.1.

    >>> import diffsample as ds
    >>> process = ds.VariancePreserving()
    >>> table = ds.solvers.dpmpp(process, ds.times.uniform_logsnr(process, 8))
    >>> ds.solvers.heavy_ball(table, 0.9).registers
    2
    """
    _check_beta(beta)
    if tableau.registers != 1 or tableau.padded:
        raise ValueError(f"heavy_ball needs an unpadded table of one register, got {tableau.about.name} with "
                         f"{tableau.registers} registers; apply it before pad, to plms, euler or dpmpp")  # fmt: skip
    if (tableau.store != tableau.store[0]).any():
        raise ValueError(f"{tableau.about.name} keeps a different output at every call, so an average of increments "
                         f"has no meaning; use euler or dpmpp(order=1) for first order")  # fmt: skip
    weights, n = tableau.B[:, 0, :], tableau.rows
    total = weights.sum(axis=-1)
    A, B = np.zeros((n + 1, 2, 2)), np.zeros((n + 1, 2, tableau.slots))
    A[:, 0, 0], A[0, 1, 1] = tableau.A[:, 0, 0], 1.0
    for r in range(1, n + 1):
        damping = beta if r > 1 else 1.0
        keep, take = np.full((2, 1), 1 - damping), np.full((2, 1), damping)  # shares of the old v and of g
        if nesterov:
            keep[0], take[0] = keep[1] ** 2, take[1] * (1 + keep[1])
        per_total = np.array([[1.0], [1 / total[r]]])
        A[r, :, 1:] += keep * total[r] * per_total
        B[r] = take * weights[r] * per_total
    order = tableau.about.order if beta == 1 else 1
    name = f"{'nesterov' if nesterov else 'heavy_ball'}({tableau.about.name})"
    about = About(name, order, tableau.about.process)
    c = np.concatenate([tableau.c, np.zeros_like(tableau.c)], axis=1)
    return dataclasses.replace(tableau, A=A, B=B, c=c, about=about)


def ghvb(process: Process, times: Grid | Sequence[float], *, order: float = 2, beta: float | None = None) -> Tableau:
    """GHVB, generalised heavy ball: v <- (1 - beta) v + beta eps first, then an extrapolation of the v's.

    One call a step, two registers. Keeps the order of the method without momentum: 1 for order=1, else 2 on general
    grids and starts (see `plms`), and enlarges its region of stability; beta = 1 is `plms` of the same order.

    Args:
        process, times: as for `plms`.
        order: 1 to 5; or the authors' fractional number: 1.8 is order=2, beta=0.8, and leaves no beta to be given.
        beta: damping in (0, 1]; None is 0.8, or the fraction of `order`.

    Reference: Wizadwongsa et al. 2024, arXiv 2307.11118, algorithm 2 (with the sign of its eq. for order 2 corrected).

    >>> import diffsample as ds
    >>> process = ds.VariancePreserving()
    >>> ds.solvers.ghvb(process, ds.times.uniform_logsnr(process, 8), order=4, beta=0.8).slots
    3
    """
    order, beta = _order_and_damping(order, beta)
    program = Program(as_grid(process, times), registers=2)
    recent = []  # outputs newer than the velocity in register 1
    for i, (s, t) in enumerate(program.moves()):
        eps = program.call(s, t, eps=1.0)
        if i == 0:
            program[1] = eps
        elif order == 1:
            program[1] = (1 - beta) * program[1] + beta * eps
        else:
            recent.append(eps)
        velocities = [program[1]]
        for output in recent:
            velocities.insert(0, (1 - beta) * velocities[0] + beta * output)
        step = t.alpha * (rescaled_noise(t) - rescaled_noise(s))
        weights = ghvb_weights(len(velocities), beta)
        program[0] = (t.alpha / s.alpha) * program[0] + step * combine(weights, velocities)
        if order > 1 and len(recent) == order - 1:
            program[1] = (1 - beta) * program[1] + beta * recent.pop(0)
    return program.tableau("ghvb", order=min(order, 2))


def ghvb_weights(order: int, beta: float) -> list[float]:
    """Weights on the newest velocity, the one before, ...; Adams-Bashforth's at beta = 1."""
    lag = (1 - beta) / beta
    return backward_differences([g + (ADAMS[j - 1] * lag if j else 0.0) for j, g in enumerate(ADAMS[:order])])


def _order_and_damping(order: float, beta: float | None) -> tuple[int, float]:
    """(order, beta) as given, or of the authors' number: 1.8 is (2, 0.8)."""
    if not (isinstance(order, Real) and isfinite(order)):
        raise ValueError(f"ghvb has orders 1 to {len(ADAMS)}, and fractions as 1.8, got order={order!r}")
    whole, fraction = int(np.ceil(order)), round(order % 1, 9)
    if fraction and beta is not None:
        raise ValueError(f"order={order!r} says order={whole}, beta={fraction:g} already, and beta={beta!r} was given; "
                         f"give order={whole} and beta")  # fmt: skip
    check_order(whole, len(ADAMS), "ghvb")
    damping = beta if beta is not None else fraction or 0.8
    _check_beta(damping)
    return whole, damping


def _check_beta(beta: float) -> None:
    if not 0 < beta <= 1:
        raise ValueError(f"beta={beta!r} must lie in (0, 1]; 1 is no momentum")
