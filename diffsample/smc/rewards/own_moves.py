"""For samplers that draw the moves of a one-register linear solver themselves: its levels, and its call alone."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.denoiser import PyTree
from diffsample.process import Level
from diffsample.tableau import is_concrete


def all_levels(linear: Any) -> Level:
    """All n + 1 levels of the table, the calls' and the last, float64 on the host.

    Raises:
        ValueError: a table under trace, or of several registers.
    """
    table = linear.tableau
    if not is_concrete(table) or table.registers > 1:
        raise ValueError(f"{table.about.name} carries {table.registers} registers; moves are drawn here, which needs "
                         f"one: ddpm, ddim(eta=1)")  # fmt: skip
    return Level(*(np.append(np.asarray(now, np.float64), np.asarray(to, np.float64)[-1])
                   for now, to in zip(table.now, table.next, strict=True)))  # fmt: skip


def call_at(linear: Any, keys: Array, inner: PyTree, x: Array, row: PyTree, cond: PyTree) -> PyTree:
    """The solver's state after the call of a row at x, which stands for the row's own move."""
    still = row._replace(A=jnp.ones((1, 1)), B=jnp.zeros((1, inner.past.shape[1])), c=jnp.zeros(1))
    return linear.step(keys, inner._replace(registers=(x,)), still, cond)
