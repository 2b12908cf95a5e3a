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
        TypeError: a wrapped sampler, whose states are others.
        ValueError: a table under trace, or of several registers; a Brownian path, which would be ignored.
    """
    if not hasattr(linear, "tableau") or hasattr(linear, "sampler"):
        raise TypeError(f"moves are drawn here, which needs solvers.linear(denoiser, table) itself and not a "
                        f"{type(linear).__name__}: wrap what comes out")  # fmt: skip
    table = linear.tableau
    if getattr(linear, "path", None) is not None:
        raise ValueError("moves are drawn here and cannot follow a Brownian path: linear(..., path=None)")
    if not is_concrete(table) or table.registers > 1:
        raise ValueError(f"{table.about.name} carries {table.registers} registers; moves are drawn here, which needs "
                         f"one: ddpm, ddim(eta=1)")  # fmt: skip
    return Level(*(np.append(np.asarray(now, np.float64), np.asarray(to, np.float64)[-1])
                   for now, to in zip(table.now, table.next, strict=True)))  # fmt: skip


def refuse_padding(linear: Any, what: str) -> None:
    """Raise where rows of padding would be laid out as moves.

    Raises:
        ValueError: names the table.
    """
    table = linear.tableau
    if not np.all(np.asarray(table.active)):
        raise ValueError(f"{table.about.name} has {table.rows - table.calls} rows of padding, over which {what} would "
                         f"be laid out: give the table before ds.pad")  # fmt: skip


def call_at(linear: Any, keys: Array, inner: PyTree, x: Array, row: PyTree, cond: PyTree) -> PyTree:
    """The solver's state after the call of a row at x, which stands for the row's own move."""
    still = row._replace(A=jnp.ones((1, 1)), B=jnp.zeros((1, inner.past.shape[1])), c=jnp.zeros(1))
    return linear.step(keys, inner._replace(registers=(x,)), still, cond)
