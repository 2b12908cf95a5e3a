"""Program: writes a solver down as it stands in the paper and assembles its tableau.

A solver is host code on symbolic vectors. Registers start at the initial state; `program.call` asks the network and
hands back its stored output as a vector; registers are assigned linear combinations of registers, outputs and noise:

    program = Program(grid)
    for s, t in program.moves():
        eps = program.call(s, t, eps=1.0)
        program[0] = program[0] + (t.sigma - s.sigma) * eps
    tableau = program.tableau("euler", order=1)

Assignments between two calls compose into one row; history slots are allotted by the last use of each output, so that
a table carries only what its method needs. Coefficients are Python numbers, or traced JAX scalars, which make a traced
table: that is how a deterministic solver is learned.
"""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from diffsample.grid import Grid
from diffsample.process import Level
from diffsample.tableau import About, Tableau, is_concrete


class Vector:
    """A linear combination of atoms, with numbers or traced scalars as coefficients.

    Atoms are ("x", row * registers + register), ("f", call), ("z", draw) and ("1", constant).
    """

    def __init__(self, terms: dict[tuple[str, int], Any]):
        self.terms = terms

    def __add__(self, other: "Vector | float") -> "Vector":
        if not isinstance(other, Vector):
            if other == 0:  # so that sum() works
                return self
            raise TypeError(f"a state cannot be added to the number {other}")
        atoms = self.terms.keys() | other.terms.keys()
        return Vector({a: self.terms.get(a, 0.0) + other.terms.get(a, 0.0) for a in atoms})

    __radd__ = __add__

    def __sub__(self, other: "Vector") -> "Vector":
        return self + -1.0 * other

    def __mul__(self, scale: Any) -> "Vector":
        scale = _number(scale)
        return Vector({atom: value * scale for atom, value in self.terms.items()})

    __rmul__ = __mul__


class _Row(NamedTuple):
    update: list[Vector]
    register: int
    store: tuple[Any, Any]
    now: Level
    next: Level
    index: int
    stage: int


class Program:
    """Records calls and register updates on a grid; `tableau` assembles them.

    Args:
        grid: the time grid; its process is the table's.
        registers: vectors carried between calls; register 0 is the state, all start at the initial state.
    """

    def __init__(self, grid: Grid, registers: int = 1):
        self.grid = grid
        self._rows: list[_Row] = []
        self._draws = 0
        self._constants: list[Any] = []
        self._x = self._carried(registers)

    def _carried(self, registers: int) -> list[Vector]:
        return [Vector({("x", len(self._rows) * registers + i): 1.0}) for i in range(registers)]

    def moves(self) -> Iterator[tuple[Level, Level]]:
        """The steps of the grid: (level left, level reached), as floats."""
        levels = [Level(*map(float, level)) for level in zip(*self.grid.levels, strict=True)]
        yield from itertools.pairwise(levels)

    def __getitem__(self, register: int) -> Vector:
        return self._x[register]

    def __setitem__(self, register: int, value: Vector) -> None:
        self._x[register] = value

    def noise(self) -> Vector:
        """A fresh standard normal."""
        self._draws += 1
        return Vector({("z", self._draws): 1.0})

    def constant(self, value: ArrayLike) -> Vector:
        """A number, or an image of the event's shape, that the state is shifted by."""
        self._constants.append(value if isinstance(value, jax.Array) else np.asarray(value, np.float64))
        return Vector({("1", len(self._constants) - 1): 1.0})

    def call(
        self, now: Level, to: Level, *, x0: Any = 0.0, eps: Any = 0.0, register: int = 0, stage: int = 0
    ) -> Vector:
        """Call the network at a register; the output kept and returned is x0 * (predicted x0) + eps * (predicted eps).

        `stage=0` begins a new step; later calls of the same step count up from 1.
        """
        index = sum(row.stage == 0 for row in self._rows) - (stage > 0)
        self._rows.append(_Row(self._x, register, (_number(x0), _number(eps)), now, to, index, stage))
        self._x = self._carried(len(self._x))
        return Vector({("f", len(self._rows) - 1): 1.0})

    def tableau(self, name: str, order: int | None = None, output: int = 0) -> Tableau:
        """The finished table; `order` is the method's global order, declared for certification."""
        updates = [*(row.update for row in self._rows), self._x]
        slot_of, slots = _allot(updates)
        n, R = len(self._rows), len(self._x)
        A, B, shift = {}, {}, {}
        for r, update in enumerate(updates):
            for i, vector in enumerate(update):
                for (kind, k), value in vector.terms.items():
                    if kind == "x" and k // R != r:
                        raise ValueError(f"row {r} uses a register read before the call; read program[...] after it")
                    if kind == "x":
                        A[r, i, k % R] = value
                    elif kind == "f" and _used(value):
                        B[r, i, slot_of[k]] = value + B.get((r, i, slot_of[k]), 0.0)
                    elif kind == "1" and _used(value):
                        shift[r, i] = value * self._constants[k] + shift.get((r, i), 0.0)
        c = np.stack([_merge_noise(update, r) for r, update in enumerate(updates)])
        event = np.broadcast_shapes(*(np.shape(value) for value in shift.values()))
        tableau = Tableau(
            A=_filled((n + 1, R, R), A), B=_filled((n + 1, R, slots), B), c=c,
            store=_numbers([row.store for row in self._rows]),
            register=np.array([row.register for row in self._rows]),
            index=np.array([row.index for row in self._rows]),
            stage=np.array([row.stage for row in self._rows]),
            slot=np.array([slot_of[k] for k in range(n)]),
            now=_levels([row.now for row in self._rows]),
            next=_levels([row.next for row in self._rows]),
            active=np.ones(n, bool),
            start=Level(*(np.asarray(field[0], np.float64) for field in self.grid.levels)),
            shift=_filled((n + 1, R, *event), shift) if shift else None,
            noise=_noise_pattern(c),
            output=output,
            about=About(name, order, self.grid.process),
        )  # fmt: skip
        if is_concrete(tableau):
            tableau.check()
        return tableau


def _number(value: Any) -> Any:
    """A float, unless traced by JAX."""
    return value if isinstance(value, jax.Array) else float(value)


def _used(value: Any) -> bool:
    """Whether a coefficient is, or when traced may be, other than zero."""
    return isinstance(value, jax.Array) or value != 0


def _numbers(values: Any) -> Any:
    """Nested sequences as float64 on the host, or as a JAX array where one of them is traced."""
    traced = any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(values))
    return jnp.array(values) if traced else np.array(values, np.float64)


def _filled(shape: tuple[int, ...], entries: dict[tuple[int, ...], Any]) -> Any:
    """Zeros but for the entries."""
    if any(isinstance(value, jax.Array) for value in entries.values()):
        places = tuple(np.array(list(entries)).T)
        values = [jnp.broadcast_to(value, shape[len(places) :]) for value in entries.values()]
        return jnp.zeros(shape).at[places].set(jnp.stack(values))
    out = np.zeros(shape)
    for place, value in entries.items():
        out[place] = value
    return out


def _levels(levels: list[Level]) -> Level:
    return Level(*(_numbers(field) for field in zip(*levels, strict=True)))


def _allot(updates: list[list[Vector]]) -> tuple[list[int], int]:
    """Slot of every output: the lowest that is free from its call to the row of its last use."""
    last = [0] * (len(updates) - 1)
    for r, update in enumerate(updates):
        for vector in update:
            for (kind, k), value in vector.terms.items():
                if kind == "f" and _used(value):
                    last[k] = r
    busy: list[int] = []  # per slot, the row up to which it is needed
    slot_of = []
    for k, row in enumerate(last):  # output k is stored after update k
        slot = next((s for s, until in enumerate(busy) if until <= k), len(busy))
        if slot == len(busy):
            busy.append(0)
        busy[slot] = row
        slot_of.append(slot)
    return slot_of, len(busy)


def _merge_noise(update: list[Vector], row: int) -> np.ndarray:
    """One vector c for all draws of a row: independent draws along one direction add in variance."""
    draws = sorted({atom for vector in update for atom in vector.terms if atom[0] == "z"})
    columns = np.array([[vector.terms.get(atom, 0.0) for vector in update] for atom in draws])
    if not len(draws):
        return np.zeros(len(update))
    if np.linalg.matrix_rank(columns) > 1:
        raise ValueError(f"row {row} needs two independent draws in different registers; pre-load one into the base")
    direction = columns[np.argmax(np.abs(columns).sum(1))]
    norm = np.linalg.norm(direction)
    return direction / norm * np.sqrt((columns**2).sum()) if norm else direction


def _noise_pattern(c: np.ndarray) -> str:
    drawing = (c != 0).any(axis=1)
    if not drawing.any():
        return "never"
    return "all" if drawing[1:-1].all() and not drawing[0] else "some"
