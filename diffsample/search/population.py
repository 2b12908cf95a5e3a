"""Values of many schedules at once: their tables are stacked and run from the same noise by one compiled program."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import starmap
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffsample.denoiser import Denoiser
from diffsample.grid import as_grid
from diffsample.identity import as_on_device, code_of, fingerprint, printed
from diffsample.process import Level, Process
from diffsample.sampling import sample
from diffsample.search.objectives import as_objective
from diffsample.solvers.decisions import Decisions
from diffsample.solvers.expansion import DATA_KIND, NOISE_KIND
from diffsample.solvers.scheduled import assemble, usf
from diffsample.solvers.tabular import Linear
from diffsample.tableau import Tableau

PyTree: TypeAlias = Any
SAME_SIZE = ("store", "register", "slot", "now", "next", "index", "stage", "active", "start")  # whatever the padding
MOST = 64  # schedules in a chunk


def unlabelled(process: Process, schedule: Decisions) -> Tableau:
    """What `usf` makes of a schedule, but for the label of its order, which a population has no use for."""
    if schedule.first == "mean" or "v3" in schedule.predictions:
        return usf(process, schedule)  # which says what is missing
    grid = as_grid(process, schedule.times)
    levels = list(starmap(Level, zip(*(field.tolist() for field in grid.levels), strict=True)))
    return assemble(grid, schedule, levels, {"noise": NOISE_KIND, "data": DATA_KIND})


@dataclasses.dataclass(frozen=True, eq=False)
class Population:
    """A function from schedules of equally many calls to their values [M], NumPy float64, lower is better.

    Every schedule starts from the same states x, so values are compared without noise between them. Tables are padded
    to fixed registers and slots: however many generations are evaluated, one program is compiled for a number of calls.
    Tables of the coming chunk are built while the device runs the last. A schedule whose value is not finite is worth
    infinity. With several devices the chunk is split between them.

    Args:
        denoiser, process: as for a solver; guidance included.
        x: [B, ...] states at the schedules' first time, for example sigma times normals.
        objective: an `Objective`, or any function of the samples [B, ...] that JAX can trace.
        cond: condition, batch axis first.
        build: (process, schedule) -> tableau; another where `usf` needs the data's mean or the model's statistics.
        chunk: schedules evaluated at a time, so many for every device; None is as many as `memory` holds.
        memory: bytes for the states of a chunk, the network's own come on top.
        registers, slots: size of the tables.

    >>> import diffsample as ds
    >>> process, x = ds.VariancePreserving(), jax.random.normal(jax.random.key(0), (4,))
    >>> value = Population(ds.exact.PointMass(2.0), process, x, lambda samples: jnp.abs(samples - 2.0).max())
    >>> value([Decisions((1.0, 0.5, 0.0), (1, 1), ("data", "data"))])
    array([0.])
    """

    denoiser: Denoiser
    process: Process
    x: Array
    objective: Any
    cond: PyTree = None
    build: Callable[[Process, Decisions], Tableau] = unlabelled
    chunk: int | None = None
    memory: float = 2**28
    registers: int = 6
    slots: int = 5

    def __post_init__(self) -> None:
        as_objective(self.objective)
        if self.chunk is not None and self.chunk < 1:
            raise ValueError(f"chunk={self.chunk} must be at least 1")

    def __call__(self, schedules: Sequence[Decisions]) -> np.ndarray:
        objective = as_objective(self.objective)
        summaries = [part for part, _ in self._chunks(schedules, objective)]
        values = [objective.value(row) for part in summaries for row in _rows(jax.device_get(part))]
        found = np.array(values[: len(schedules)], np.float64)
        return np.where(np.isfinite(found), found, np.inf)

    @property
    def fingerprint(self) -> str:
        """Letters that tell populations apart: all their numbers, and what the program of a schedule computes."""
        table = unlabelled(self.process, Decisions((self.process.t_max, self.process.t_max / 2), (1,), ("data",)))
        given = (self.denoiser, self.x, self.cond, as_objective(self.objective))
        code = code_of(_evaluate, stack_tables([table], self.registers, self.slots, 1), *given)
        return f"{fingerprint(as_on_device(given))}{code} {printed(self.process)} {printed(self.build)}"

    def samples(self, schedules: Sequence[Decisions]) -> Array:
        """[M, B, ...] samples of every schedule, all kept."""
        parts = [part[:count] for part, count in self._chunks(schedules, None)]
        return jnp.concatenate(parts)

    def _chunks(self, schedules: Sequence[Decisions], objective: Any) -> Iterator[tuple[PyTree, int]]:
        """(summaries of a chunk, how many of them are of schedules asked for); the last one is filled up."""
        if not schedules:
            raise ValueError("a population needs at least one schedule")
        devices = np.array(jax.devices())
        size = self._size(len(schedules), len(devices))
        put = partial(_spread, devices) if len(devices) > 1 else lambda tree, split: tree
        fixed = put((self.denoiser, self.x, self.cond, objective), False)
        waiting = []
        for low in range(0, len(schedules), size):
            part = schedules[low : low + size]
            tables = [self.build(self.process, schedule) for schedule in part]
            stacked = stack_tables(tables, self.registers, self.slots, size)
            waiting.append((_evaluate(put(stacked, True), *fixed), len(part)))
        yield from waiting

    def _size(self, count: int, devices: int) -> int:
        """Schedules in a chunk: chunks of equal size, so that few places are filled up, and a share for each device."""
        each = self.x.size * 4 * (self.registers + self.slots + 3)
        most = devices * (self.chunk or int(np.clip(self.memory // each, 1, MOST)))
        size = -(-count // -(-count // most))
        return -(-size // devices) * devices


def stack_tables(tables: Sequence[Tableau], registers: int, slots: int, count: int) -> Tableau:
    """Tables with equally many calls as one: padded in registers and slots, and to `count` by repeats of the first.

    As `pad` and `stack` do, but without their rows of padding, and without a table of its own for each.

    Raises:
        ValueError: different numbers of calls, a table that draws noise, or one that is larger than this.
    """
    first, n = tables[0], tables[0].rows
    for table in tables:
        if (table.rows, table.output, table.noise) != (n, first.output, "never"):
            raise ValueError(f"a population has schedules of equal calls without noise: {n} and {table.rows} calls, "
                             f"noise {table.noise!r}")  # fmt: skip
        if table.registers > registers or table.slots > slots:
            raise ValueError(f"a table of {table.registers} registers and {table.slots} slots does not fit in "
                             f"registers={registers}, slots={slots}; raise them")  # fmt: skip
    event = np.broadcast_shapes(*(np.shape(t.shift)[2:] for t in tables if t.shift is not None))
    shifted = any(table.shift is not None for table in tables)
    A = np.zeros((count, n + 1, registers, registers))
    B, c = np.zeros((count, n + 1, registers, slots)), np.zeros((count, n + 1, registers))
    shift = np.zeros((count, n + 1, registers, *event)) if shifted else None
    A[:] = np.eye(registers)
    filled = [*tables, *[first] * (count - len(tables))]
    for k, table in enumerate(filled):
        R, S = table.registers, table.slots
        A[k, :, :R, :R], B[k, :, :R, :S] = table.A, table.B
        if shift is not None and table.shift is not None:
            shift[k, :, :R] = table.shift
    others = {name: jax.tree.map(lambda *leaves: np.stack(leaves), *(getattr(table, name) for table in filled))
              for name in SAME_SIZE}  # fmt: skip
    return dataclasses.replace(first, A=A, B=B, c=c, shift=shift, **others)


@jax.jit
def _evaluate(tables: Tableau, denoiser: Denoiser, x: Array, cond: PyTree, objective: Any) -> PyTree:
    """Summaries of all tables; the samples themselves where there is no objective."""

    def one(table: Tableau) -> PyTree:
        out = sample(jax.random.key(0), Linear(denoiser, table), x=x, cond=cond, check=False)
        return out if objective is None else objective.summary(out)

    return jax.vmap(one)(tables)


def _spread(devices: np.ndarray, tree: PyTree, split: bool) -> PyTree:
    """Leaves on all devices: split along the population, or each device a copy."""
    spec = PartitionSpec("population") if split else PartitionSpec()
    return jax.device_put(tree, NamedSharding(Mesh(devices, ("population",)), spec))


def _rows(summaries: PyTree) -> Iterator[PyTree]:
    leaves, structure = jax.tree.flatten(summaries)
    for row in zip(*leaves, strict=True):
        yield jax.tree.unflatten(structure, row)
