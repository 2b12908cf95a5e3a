"""Tableaus: a whole linear solver as a table of numbers.

Between two network calls every linear method is X <- A X + B F + c z on a few registers X, past outputs F in addressed
history slots, and one standard normal z, plus a fixed shift in the few methods that know the data's mean. Then the
network is called at one register and u x0 + w eps is stored in a slot. n calls are n rows and one closing update
without a call. Tables are built on the host in float64 (`diffsample.program.Program`), so changing solver, grid or
coefficients at equal shapes never compiles anew.

Burrage & Butcher's general linear methods (1980) with exponential weights; the table is this library's own layout.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from diffsample.process import Level, Process
from diffsample.struct import pytree, static


@dataclasses.dataclass(frozen=True, eq=False)
class About:
    """What a table says of itself to people and host checks. All are equal: a label never shapes a program."""

    name: str = "custom"
    order: int | None = None
    process: Process | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, About)

    def __hash__(self) -> int:
        return 0


@pytree
class Tableau:
    """A linear solver on a grid: n calls, R registers, S history slots. All numbers are leaves, float64 on the host."""

    A: Any  # [n+1, R, R] registers into registers; the last row is the closing update
    B: Any  # [n+1, R, S] history into registers
    c: Any  # [n+1, R] the row's normal draw into registers
    store: Any  # [n, 2] u, w: the slot receives u x0 + w eps
    register: Any  # [n] int, the register at which the network is called
    slot: Any  # [n] int, the slot that receives the output
    now: Level  # [n] levels of the calls
    next: Level  # [n] levels that the steps lead to
    index: Any  # [n] int, number of the step
    stage: Any  # [n] int, number of the call inside its step
    active: Any  # [n] bool, False on rows of padding, which call nothing
    start: Level  # scalars, the level of the initial state; that of the first call unless the first move makes none
    shift: Any = None  # [n+1, R] or [n+1, R, *event], added to the registers by each update; None adds nothing
    noise: str = static(default="never")  # rows that draw: "never" | "some" | "all" but the first and the closing one
    padded: bool = static(default=False)  # whether some rows may be inactive
    output: int = static(default=0)  # the register returned
    about: About = static(default=About())

    @property
    def calls(self) -> int:
        """Network calls, rows of padding not counted."""
        return int(np.sum(np.asarray(self.active)))

    @property
    def registers(self) -> int:
        return self.A.shape[-1]

    @property
    def slots(self) -> int:
        return self.B.shape[-1]

    @property
    def rows(self) -> int:
        return self.store.shape[-2]

    def check(self) -> None:
        """Raise ValueError if the numbers cannot be run: shapes, finiteness, addresses, a call at sigma = 0."""
        n, R, S = self.rows, self.registers, self.slots
        shapes = {"A": (n + 1, R, R), "B": (n + 1, R, S), "c": (n + 1, R), "store": (n, 2)}
        shapes |= {name: (n,) for name in ("register", "slot", "index", "stage", "active")}
        for name, shape in shapes.items():
            if np.shape(getattr(self, name)) != shape:
                raise ValueError(f"tableau.{name} has shape {np.shape(getattr(self, name))}, expected {shape}")
        if self.shift is not None and np.shape(self.shift)[:2] != (n + 1, R):
            raise ValueError(f"tableau.shift has shape {np.shape(self.shift)}, expected {(n + 1, R)} and the event's")
        for name in ("A", "B", "c", "store"):
            bad = np.argwhere(~np.isfinite(np.asarray(getattr(self, name))))
            if len(bad):
                raise ValueError(f"tableau.{name} is not finite at row {bad[0][0]}: a coefficient needs log-SNR at "
                                 f"sigma = 0 or alpha = 0, or two equal levels")  # fmt: skip
        register, slot = np.asarray(self.register), np.asarray(self.slot)
        if register.min() < 0 or register.max() >= R or slot.min() < 0 or slot.max() >= S:
            raise ValueError(f"tableau addresses registers {register} of {R} and slots {slot} of {S}")
        silent = (np.asarray(self.now.sigma) <= 0) & np.asarray(self.active)
        if silent.any():
            raise ValueError(f"row {int(np.argmax(silent))} calls the network at sigma = 0, where eps is undefined")
        if (np.asarray(self.c) != 0).any() and self.noise == "never":
            raise ValueError("tableau.c is not zero but noise='never'")


def is_concrete(tree: Any) -> bool:
    """Whether every leaf has a value now, so that host checks can read it."""
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def pad(
    tableau: Tableau,
    registers: int | None = None,
    slots: int | None = None,
    steps: int | None = None,
    noise: str | None = None,
) -> Tableau:
    """The same solver in a larger table, so that different solvers share one compiled program.

    Added rows are identities that make no network call: in a plain program `lax.cond` skips the call; under `vmap`,
    where a cond becomes a select, the call is computed and its result masked, so that a stacked sweep costs its
    longest member. Samples are those of the unpadded table.

    Args:
        tableau: what to pad.
        registers, slots, steps: new sizes (steps counts network calls); None keeps.
        noise: "some" makes a deterministic table share the program of a stochastic one; None keeps.

    Raises:
        ValueError: a size is smaller than the table's own; another noise than "some".
    """
    n, R, S = tableau.rows, tableau.registers, tableau.slots
    rows, registers, slots = steps or n, registers or R, slots or S
    if rows < n or registers < R or slots < S:
        raise ValueError(f"cannot pad a table of (registers, slots, steps) = {(R, S, n)} to {(registers, slots, rows)}")
    if noise not in (None, "some", tableau.noise):
        raise ValueError(f"noise={noise!r} of a table of noise={tableau.noise!r}: only 'some' or None can be asked for")
    A = np.tile(np.eye(registers), (rows + 1, 1, 1))
    B, c = np.zeros((rows + 1, registers, slots)), np.zeros((rows + 1, registers))
    event = np.shape(tableau.shift)[2:]
    shift = None if tableau.shift is None else np.zeros((rows + 1, registers, *event))
    for old, new in ((slice(0, n), slice(0, n)), (slice(n, None), slice(rows, None))):
        A[new, :R, :R], B[new, :R, :S], c[new, :R] = tableau.A[old], tableau.B[old], tableau.c[old]
        if shift is not None and tableau.shift is not None:
            shift[new, :R] = tableau.shift[old]

    def repeat_last(column: Any) -> Any:
        return np.concatenate([column, np.repeat(np.asarray(column)[-1:], rows - n, axis=0)])

    fields = ("store", "register", "slot", "now", "next", "index", "stage")
    columns = {name: jax.tree.map(repeat_last, getattr(tableau, name)) for name in fields}
    columns |= {"active": np.concatenate([tableau.active, np.zeros(rows - n, bool)]), "shift": shift}
    return dataclasses.replace(tableau, A=A, B=B, c=c, noise=noise or tableau.noise, padded=True, **columns)


def stack(tableaus: Sequence[Tableau]) -> Tableau:
    """Solvers padded to one shape and stacked on a new leading axis, ready for `vmap`.

    >>> import diffsample as ds
    >>> process = ds.VariancePreserving()
    >>> grid = ds.times.uniform(process, 4)
    >>> ds.stack([ds.solvers.ddim(process, grid), ds.solvers.dpmpp(process, grid)]).A.shape
    (2, 5, 1, 1)
    """
    tableaus = list(tableaus)
    if not tableaus:
        raise ValueError("stack needs at least one tableau")
    outputs = {tableau.output for tableau in tableaus}
    if len(outputs) > 1:
        raise ValueError(f"tables that return different registers {sorted(outputs)} do not stack")
    return jax.tree.map(lambda *leaves: np.stack(leaves), *alike(tableaus))


def alike(tableaus: Sequence[Tableau]) -> list[Tableau]:
    """Solvers padded to the least shape that holds them all, so that they share one compiled program."""
    noise = tableaus[0].noise if len({tableau.noise for tableau in tableaus}) == 1 else "some"
    registers, slots, steps = (max(getattr(t, name) for t in tableaus) for name in ("registers", "slots", "rows"))
    return _shifted_alike([pad(tableau, registers, slots, steps, noise) for tableau in tableaus])


def _shifted_alike(tableaus: list[Tableau]) -> list[Tableau]:
    """Tables with shifts of one shape, zero in those that had none, or none at all."""
    if all(tableau.shift is None for tableau in tableaus):
        return tableaus
    event = np.broadcast_shapes(*(np.shape(tableau.shift)[2:] for tableau in tableaus))

    def shift(tableau: Tableau) -> np.ndarray:
        found = np.zeros(tableau.c.shape) if tableau.shift is None else np.asarray(tableau.shift)
        lead = found.reshape(found.shape[:2] + (1,) * (len(event) - found.ndim + 2) + found.shape[2:])
        return np.broadcast_to(lead, found.shape[:2] + event)

    return [dataclasses.replace(tableau, shift=shift(tableau)) for tableau in tableaus]
