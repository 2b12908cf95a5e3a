"""Heavy-ball momentum: a transform of any multistep table, and the generalised heavy-ball methods."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from diffsample.grid import Grid, as_grid
from diffsample.process import Process
from diffsample.program import Program
from diffsample.solvers.moves import rescaled_noise
from diffsample.solvers.multistep import ADAMS, _check_order, backward_differences, combine
from diffsample.tableau import About, Tableau


def heavy_ball(tableau: Tableau, beta: float) -> Tableau:
    """Polyak's heavy ball on a multistep table: v <- (1 - beta) v + beta g, x <- A x + b v.

    g is the method's increment B F divided by b, the sum of its weights; the first v is the first g. The same calls,
    one more register. First order for beta < 1, with a larger region of stability in the real direction, which removes
    divergence artifacts at few steps and high guidance; beta = 1 is the table itself.

    Args:
        tableau: a table of one register that keeps the same output at every call (`plms`, `euler`, `dpmpp`).
        beta: damping in (0, 1].

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
        A[r, :, 1] += (1 - damping) * np.array([total[r], 1.0])
        B[r] = damping * weights[r] * np.array([[1.0], [1 / total[r]]])
    order = tableau.about.order if beta == 1 else 1
    about = About(f"heavy_ball({tableau.about.name})", order, tableau.about.process)
    c = np.concatenate([tableau.c, np.zeros_like(tableau.c)], axis=1)
    return dataclasses.replace(tableau, A=A, B=B, c=c, about=about)


def ghvb(process: Process, times: Grid | Sequence[float], *, order: int = 2, beta: float = 0.8) -> Tableau:
    """GHVB, generalised heavy ball: v <- (1 - beta) v + beta eps first, then an extrapolation of the v's.

    One call a step, two registers. Keeps the order of the method without momentum: 1 for order=1, else 2 on general
    grids and starts (see `plms`), and enlarges its region of stability; beta = 1 is `plms` of the same order. The
    authors' label 1.8 is order=2, beta=0.8.

    Args:
        process, times: as for `plms`.
        order: 1 to 5.
        beta: damping in (0, 1].

    Reference: Wizadwongsa et al. 2024, arXiv 2307.11118, algorithm 2 (with the sign of its eq. for order 2 corrected).

    >>> import diffsample as ds
    >>> process = ds.VariancePreserving()
    >>> ds.solvers.ghvb(process, ds.times.uniform_logsnr(process, 8), order=4, beta=0.8).slots
    3
    """
    _check_beta(beta)
    _check_order(order, len(ADAMS), "ghvb")
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


def _check_beta(beta: float) -> None:
    if not 0 < beta <= 1:
        raise ValueError(f"beta={beta!r} must lie in (0, 1]; 1 is no momentum")
