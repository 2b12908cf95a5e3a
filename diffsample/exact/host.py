"""Tables evaluated in NumPy float64, nothing compiled: orders and identities are measured in milliseconds."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from diffsample.process import Level
from diffsample.tableau import Tableau


def run_on_host(
    tableau: Tableau,
    denoise: Callable[[np.ndarray, Level], ArrayLike],
    x: ArrayLike,
    draws: ArrayLike | None = None,
) -> np.ndarray:
    """The output of a linear solver in NumPy float64: X <- A X + B F + c z (+ shift), then the call, row after row.

    Args:
        tableau: a solver.
        denoise: (x, level) -> predicted x0, of any shape like x.
        x: the initial state.
        draws: [rows + 1, ...] the normals of each row, like x; None leaves all noise out.

    >>> import diffsample as ds
    >>> table = ds.solvers.ddim(ds.VarianceExploding(), [10.0, 1.0, 0.0])
    >>> run_on_host(table, lambda x, level: 2.0, [5.0])  # a point mass is reached exactly
    array([2.])
    """
    x, R = np.asarray(x, np.float64), tableau.registers
    state = np.zeros((R + tableau.slots, *x.shape))
    state[:R] = x
    weights = np.concatenate([tableau.A, tableau.B], axis=-1)
    levels = [Level(*map(float, level)) for level in zip(*tableau.now, strict=True)]
    for r in range(tableau.rows + 1):
        if r < tableau.rows and not tableau.active[r]:
            continue
        state[:R] = np.tensordot(weights[r], state, axes=1)
        if tableau.shift is not None:
            for i, shift in enumerate(tableau.shift[r]):
                state[i] += shift
        if draws is not None:
            state[:R] += np.multiply.outer(tableau.c[r], np.asarray(draws)[r])
        if r < tableau.rows:
            (u, w), level, called = tableau.store[r], levels[r], state[tableau.register[r]].copy()
            x0 = np.asarray(denoise(called, level))
            state[R + tableau.slot[r]] = u * x0 + w * (called - level.alpha * x0) / level.sigma
    return state[tableau.output]
