"""Sweeps: metrics of samples over a grid of hyperparameters, with as few compiled programs as there are structures."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding

from diffsample import sweep_store
from diffsample.arguments import is_whole, positive
from diffsample.denoiser import PyTree
from diffsample.identity import code, fingerprint
from diffsample.placing import over_devices, parts_of
from diffsample.progress import progress_bar
from diffsample.sampler import Sampler
from diffsample.sampling import prepared
from diffsample.structures import Structure, run_together, sort_by_structure, tables_alike

if TYPE_CHECKING:
    from xarray import Dataset

Metric = Callable[[Any], Any]


class Job(NamedTuple):
    """What is the same for all cells."""

    metrics: Mapping[str, Metric]
    shape: tuple[int, ...]
    cond: PyTree
    keys: list[Array]  # one a seed
    chunk: int | None
    batch: int | None
    sharding: NamedSharding | None


class Cell(NamedTuple):
    """One run: a point of the grid with one seed."""

    member: int  # position in its structure
    point: int  # number of the point of the grid
    seed: int  # position among the seeds


def sweep(
    sampler_of: Callable[..., Sampler],
    grid: Mapping[str, Sequence[Any] | np.ndarray | Mapping[Any, Any]],
    metrics: Mapping[str, Metric],
    shape: tuple[int, ...],
    *,
    seeds: Sequence[int] = (0,),
    cond: PyTree = None,
    pad: bool = False,
    chunk: int | None = None,
    batch: int | None = None,
    sharding: NamedSharding | str | None = None,
    out: str | Path | None = None,
    progress: bool = False,
) -> "Dataset":
    """Samples at every point of a grid, with every seed, and measures them.

    Samplers that differ in numbers (guidance scales, momenta, exponents, tables of one shape) run together in one
    vmapped program; another structure (solver of another shape, number of steps, kind of guidance) is one program more.
    Cell (point, seed) has the samples of `sample(jax.random.key(seed), sampler_of(**point), shape, cond=cond)`, up to
    rounding, so that all points see the same noise.

    Args:
        sampler_of: builds a sampler from one keyword a dimension of the grid. Functions inside it must be made once,
            outside: a lambda made anew is another structure.
        grid: for each dimension its values, numbers or strings; or a mapping from labels to values of any kind.
        metrics: for each name a function of what `sample` returns, as NumPy arrays, to a number.
        shape: (B, ...), samples of every cell.
        seeds: of the repetitions, the last dimension; whole numbers in 0 .. 2^31 - 1.
        cond: condition, leaves [B, ...], the same for all cells.
        pad: bring all tables to one shape (as `stack`), so that different solvers share a program, in which each costs
            as many calls as the longest.
        chunk: cells that run at a time, which bounds the memory; None runs all of a structure at once.
        batch: samples of each cell that run at a time; None runs all B.
        sharding: `NamedSharding(mesh, PartitionSpec(axis))`, or the name of an axis of the mesh in use, spreads the
            cells over devices; weights go to all of them.
        out: netCDF file that holds what is finished after every chunk; where it exists, finished cells are not run
            again. The grid, the seeds and the metrics may grow between runs; of a metric only the name is kept.
        progress: show a tqdm bar.

    Returns:
        xarray Dataset: every metric [*grid, seed], `calls` [*grid] (network evaluations a sample), `finished`,
        `sampler` (fingerprints), and the attribute `programs`, how many structures there are. Samples that are not
        finite go to the metrics as they are. `over_seeds` gives means and standard errors. (`.to_zarr(...)` needs
        the package zarr.)

    Raises:
        ImportError: xarray, or tqdm, is not installed.
        ValueError, TypeError: bad input, named, before anything is sampled.
        FileExistsError: `out` is not a file of this sweep, or the code of its samplers was edited since.
        OSError: `out` cannot be written to.

    >>> import diffsample as ds
    >>> process, law = ds.VariancePreserving(), ds.exact.Gaussian(0.0, 1.0)
    >>> table = lambda eta: ds.solvers.ddim(process, ds.times.uniform(process, 5), eta=eta)
    >>> found = sweep(lambda eta: ds.solvers.linear(law, table(eta)), {"eta": [0.5, 1.0]}, {"std": np.std}, (100,))
    >>> dict(found.sizes), found.programs
    ({'eta': 2, 'seed': 1}, 1)
    """
    labels, values = _named(grid)
    keys = [jax.random.key(seed) for seed in _whole(seeds)]
    spread = None if sharding is None else over_devices(sharding)
    job = Job(metrics, _check_shape(shape), cond, keys, chunk, batch, spread)
    _check(labels, job, out)
    samplers = [_built(sampler_of, dict(zip(values, point, strict=True))) for point in product(*values.values())]
    path = None if out is None else Path(out)
    found = _blank(labels, samplers, job, list(seeds), [""] * len(samplers) if path is None else _codes(samplers, job))
    if path is not None:
        sweep_store.fill_from(found, path)
    structures = sort_by_structure(tables_alike(samplers) if pad else samplers)
    found.attrs["programs"] = len(structures)
    done = found["finished"].values.reshape(len(samplers), len(seeds))  # a view: filled in place
    if path is not None and not done.all():
        sweep_store.write(found, path)  # a place that cannot be written to is found before anything is sampled
    with progress_bar(int((~done).sum()), "cell", progress) as advance:
        for structure, cells in _chunks(structures, done, chunk):
            _run(found, structure, cells, job)
            for cell in cells:
                done[cell.point, cell.seed] = True
            if path is not None:
                sweep_store.write(found, path)
            advance(len(cells))
    return found


def over_seeds(found: "Dataset") -> "Dataset":
    """Means over the seeds, and, where there are several, standard errors of the means as `<metric>_error`.

    >>> import xarray
    >>> runs = xarray.Dataset({"w": (("scale", "seed"), [[1.0, 3.0]])})
    >>> means = over_seeds(runs)
    >>> float(means["w"][0]), float(means["w_error"][0])
    (2.0, 1.0)
    """
    runs = found.drop_vars(["finished", "sampler"], errors="ignore")
    means, n = runs.mean(sweep_store.SEED, skipna=False), found.sizes[sweep_store.SEED]
    if n < 2:
        return means
    measured = [name for name in runs.data_vars if sweep_store.SEED in runs[name].dims]
    spread = runs[measured].std(sweep_store.SEED, ddof=1, skipna=False)
    return means.assign({f"{name}_error": spread[name] / np.sqrt(n) for name in measured})


def _built(sampler_of: Callable[..., Sampler], point: dict[str, Any]) -> Sampler:
    sampler = sampler_of(**point)
    if not hasattr(sampler, "nfe"):
        raise TypeError(f"sampler_of returned {type(sampler).__name__} at {point}, which is no sampler; "
                        f"solvers.linear(denoiser, tableau) makes one")  # fmt: skip
    return sampler


def _codes(samplers: list[Sampler], job: Job) -> list[str]:
    """What each sampler computes, traced once a structure."""
    found = [""] * len(samplers)
    for structure in sort_by_structure(samplers):
        first = samplers[structure.members[0]]
        text = code(prepared(job.keys[0], first, job.shape, None, job.cond, None, 0, False, None, None))
        for member in structure.members:
            found[member] = text
    return found


def _blank(
    labels: dict[str, list[Any]], samplers: list[Sampler], job: Job, seeds: list[int], codes: list[str]
) -> "Dataset":
    """A Dataset without results, which knows what is to be run in each cell."""
    sizes, seen = [len(names) for names in labels.values()], {}
    parts = zip(samplers, codes, strict=True)
    prints = np.array([fingerprint((sampler, job.cond, job.shape), seen) + text for sampler, text in parts])
    calls = np.array([sampler.nfe for sampler in samplers])
    found = sweep_store.blank(labels, seeds, list(job.metrics), calls.reshape(sizes), prints.reshape(sizes))
    return found.assign_attrs(shape=np.asarray(job.shape, np.int32))


def _chunks(
    structures: Sequence[Structure], done: np.ndarray, chunk: int | None
) -> Iterator[tuple[Structure, list[Cell]]]:
    """What is left to run, a chunk at a time."""
    for structure in structures:
        left = [
            Cell(member, point, seed)
            for member, point in enumerate(structure.members)
            for seed in np.flatnonzero(~done[point]).tolist()
        ]
        size = chunk or len(left) or 1
        for start in range(0, len(left), size):
            yield structure, left[start : start + size]


def _run(found: "Dataset", structure: Structure, cells: list[Cell], job: Job) -> None:
    """Samples some cells together, and writes their metrics into the Dataset."""
    size, devices = job.chunk or len(cells), parts_of(job.sharding) if job.sharding else 1
    missing = -(-size // devices) * devices - len(cells)
    padded = cells + cells[-1:] * missing  # chunks of one size are one program
    results = _samples(structure, padded, job)
    axes, sizes = found["finished"].dims, found["finished"].shape[:-1]
    for i, cell in enumerate(cells):
        out = jax.tree.map(lambda leaf, i=i: leaf[i], results)
        at = (*np.unravel_index(cell.point, sizes), cell.seed)
        for name, metric in job.metrics.items():
            try:
                found[name].values[at] = _number(metric(out))
            except Exception as error:
                where = {axis: found[axis].values[j].item() for axis, j in zip(axes, at, strict=True)}
                error.add_note(f"in the metric {name!r} of the cell {where}")
                raise


def _samples(structure: Structure, cells: list[Cell], job: Job) -> Any:
    """What `sample` returns for these cells, on the host, joined from batches; leaves [cells, ...]."""
    members, keys = [cell.member for cell in cells], jnp.stack([job.keys[cell.seed] for cell in cells])
    n = job.shape[0]
    batch = min(job.batch or n, n)
    parts = []
    for low in range(0, n, batch):
        at = min(low, n - batch)  # the last batch overlaps its neighbour, so that all have one shape
        cond = jax.tree.map(lambda leaf, at=at: leaf[at : at + batch], job.cond)
        out = run_together(structure, members, keys, (batch, *job.shape[1:]), cond, at, job.sharding)
        new = partial(_new_rows, (low - at) / batch)
        parts.append(jax.tree.map(new, out))
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *parts)


def _new_rows(before: float, leaf: Array) -> np.ndarray:
    """A result without the share of its rows that the batch before has given; of particles, some have a row a group."""
    rows = np.asarray(leaf)
    return rows[:, round(before * rows.shape[1]) :] if before else rows


def _number(value: Any) -> float:
    dtype = np.asarray(value).dtype
    if np.ndim(value) or not (jnp.issubdtype(dtype, jnp.number) or dtype.kind == "b"):
        raise TypeError(f"a metric must return one number, got {type(value).__name__} of shape {np.shape(value)}")
    return float(value)


def _named(grid: Mapping[str, Any]) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    """(labels, values) of each dimension."""
    labels: dict[str, list[Any]] = {}
    values: dict[str, list[Any]] = {}
    for name, column in grid.items():
        if isinstance(column, str) or not isinstance(column, Iterable):
            raise TypeError(f"grid[{name!r}] must be a sequence of values or a mapping from labels, got {column!r}")
        values[name] = list(column.values() if isinstance(column, Mapping) else column)
        given = list(column) if isinstance(column, Mapping) else values[name]
        labels[name] = [label.item() if isinstance(label, np.generic | jax.Array) else label for label in given]
        kinds = {str if isinstance(label, str) else Real if isinstance(label, Real) else None for label in labels[name]}
        if len(kinds) != 1 or None in kinds:
            raise TypeError(
                f"grid[{name!r}] must be all numbers or all strings, got {labels[name]!r}; give other values labels, "
                f"as in {{'first': value, 'second': value}}"
            )
        if len(set(labels[name])) < len(labels[name]):
            raise ValueError(f"grid[{name!r}] names a value twice: {labels[name]!r}")
    return labels, values


def _whole(seeds: Sequence[int]) -> Sequence[int]:
    given = list(seeds) if isinstance(seeds, Iterable) else []
    if not given or len(set(given)) < len(given) or not all(is_whole(seed) and 0 <= seed < 2**31 for seed in given):
        raise ValueError(f"seeds must be different whole numbers in 0 .. 2^31 - 1, one or more, got {seeds!r}")
    return given


def _check_shape(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, tuple | list) or not shape or not all(is_whole(size) and size > 0 for size in shape):
        raise ValueError(f"shape must be (B, ...), whole numbers of at least 1, got {shape!r}")
    return tuple(shape)


def _check(labels: Mapping[str, list[Any]], job: Job, out: str | Path | None) -> None:
    sweep_store.xarray()
    if not labels or not job.metrics:
        raise ValueError("a sweep needs one dimension and one metric at least")
    if not isinstance(job.metrics, Mapping) or not all(map(callable, job.metrics.values())):
        raise TypeError(f"metrics must be functions by name, as in {{'std': np.std}}, got {job.metrics!r}")
    if taken := sorted({*labels, *job.metrics} & set(sweep_store.OWN) | set(labels) & set(job.metrics)):
        raise ValueError(f"{taken[0]!r} is the name of something else in the result: choose another")
    for name, size in (("chunk", job.chunk), ("batch", job.batch)):
        if size is not None:
            positive(name, size)
    if out is not None and (Path(out).suffix != ".nc" or not Path(out).absolute().parent.is_dir()):
        raise ValueError(f"out={str(out)!r} must be a netCDF file, name.nc, in a folder that exists")
