"""Time travel: stretches of a one-step table walked again from renewed noise, as in RePaint and FreeDoM."""

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np

from diffsample.process import Level
from diffsample.tableau import About, Tableau


def time_travel(tableau: Tableau, *, jump: int = 10, repeats: int = 10) -> Tableau:
    """Time travel: after every `jump` moves, up by `jump` levels and down again, `repeats` passes in all.

    The way up is the forward process, x_t = a x_s + sqrt(sigma_t^2 - a^2 sigma_s^2) z with a = alpha_t / alpha_s: it is
    linear, its small steps compose into one draw, and it calls nothing. Stretches are RePaint's: they end at every
    jump-th level counted from the last noisy one, where `jump` levels lie above; the move into the last level is
    walked once. N moves become N + (repeats - 1) jump ceil((N - jump) / jump) calls. repeats = 1 is the table itself.

    Args:
        tableau: of a one-step method of one call a step: `ddim`, `ddpm`, `euler`.
        jump: levels walked back.
        repeats: passes over every stretch, jump_n_sample in the released code.

    Raises:
        ValueError: a table with history, several registers or calls a step, or padding; jump or repeats < 1.

    Reference: Lugmayr et al. 2022, arXiv 2201.09865, section 4.2 and algorithm 1.

    >>> import diffsample as ds
    >>> process = ds.VariancePreserving()
    >>> time_travel(ds.solvers.ddpm(process, ds.times.uniform(process, 250))).calls
    2410
    """
    _check(tableau, jump, repeats)
    rows, climbs = (np.array(column) for column in zip(*_walk(tableau.rows, jump, repeats), strict=True))
    moves = np.concatenate([[0], rows + 1])  # the update before the first call, then the move after every call
    A, B, c = (np.array(getattr(tableau, name), np.float64)[moves] for name in "ABc")
    levels = [Level(*map(float, level)) for level in zip(*tableau.now, strict=True)]
    for k in np.flatnonzero(climbs):
        low, high = levels[rows[k] + 1], levels[rows[k] + 1 - climbs[k]]
        share = high.alpha / low.alpha
        A[k + 1] *= share
        B[k + 1] *= share
        c[k + 1] = np.sqrt((share * c[k + 1]) ** 2 + high.sigma**2 - (share * low.sigma) ** 2)
    columns = {
        name: np.asarray(getattr(tableau, name))[rows] for name in ("store", "register", "slot", "stage", "active")
    }
    now, ahead = (jax.tree.map(lambda column: np.asarray(column)[rows], level) for level in (tableau.now, tableau.next))
    about = About(f"time_travel({tableau.about.name})", None, tableau.about.process)
    return dataclasses.replace(tableau, A=A, B=B, c=c, now=now, next=ahead, index=np.arange(len(rows)),
                               noise=_pattern(c), about=about, **columns)  # fmt: skip


def _walk(n: int, jump: int, repeats: int) -> Iterator[tuple[int, int]]:
    """(row called, levels climbed after its move) of every call."""
    left = {n - 1 - k: repeats - 1 for k in range(0, n - jump, jump)}
    row = 0
    while row < n:
        reached, climb = row + 1, 0
        if left.get(reached):
            left[reached] -= 1
            climb = jump
        yield row, climb
        row = reached - climb


def _pattern(c: np.ndarray) -> str:
    drawing = (c != 0).any(axis=1)
    if not drawing.any():
        return "never"
    return "all" if drawing[1:-1].all() and not drawing[0] else "some"


def _check(tableau: Tableau, jump: int, repeats: int) -> None:
    if jump < 1 or repeats < 1:
        raise ValueError(f"jump={jump} and repeats={repeats} must be at least 1")
    if tableau.registers > 1 or tableau.slots > 1 or np.any(tableau.stage) or tableau.padded:
        raise ValueError(
            f"time_travel needs a one-step table of one call a step (ddim, ddpm, euler), got {tableau.about.name} "
            f"with {tableau.registers} registers and {tableau.slots} slots"
        )
