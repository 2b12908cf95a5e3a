"""Large jobs: any number of samples, chunk by chunk through one compiled program, to a store that survives anything."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import NamedSharding

from diffsample import sample_store
from diffsample.arguments import positive
from diffsample.checking import Check
from diffsample.placing import over_devices, parts_of, together, whole
from diffsample.progress import progress_bar
from diffsample.sample_job import CODE, Given, checked
from diffsample.sample_store import Samples, missing
from diffsample.sampler import Sampler
from diffsample.sampling import sample


def open_samples(path: str | Path) -> Samples:
    """The samples of a job at `path`, complete or not, read as they are asked for.

    Raises:
        FileNotFoundError: nothing is there. FileExistsError: something else is.

    >>> import jax, tempfile, diffsample as ds
    >>> process = ds.VariancePreserving()
    >>> sampler = ds.solvers.linear(ds.exact.PointMass(2.0), ds.solvers.ddim(process, ds.times.uniform(process, 5)))
    >>> out = tempfile.mkdtemp() + "/samples"
    >>> _ = ds.sample_many(jax.random.key(0), sampler, 10, (3,), out=out, chunk=4)
    >>> samples = ds.open_samples(out)
    >>> len(samples), samples.complete, samples[8:10].shape
    (10, True, (2, 3))
    """
    return Samples(path)


def sample_many(
    key: Array,
    sampler: Sampler,
    n: int,
    shape: tuple[int, ...] | None = None,
    *,
    x: Given = None,
    out: str | Path,
    chunk: int,
    cond: Given = None,
    first: int = 0,
    dtype: Any = None,
    sharding: NamedSharding | str | None = None,
    check: bool | Check = True,
    progress: bool = False,
) -> Samples:
    """Draws n samples into a store on the disk; where the store is there already, what is missing.

    Sample i is row i of `sample(key, sampler, (n, *shape))`, whatever the chunk, the devices and the interruptions, bit
    for bit on the same kind of hardware where XLA compiles the same arithmetic for both batch sizes (else 1e-6
    relative). Memory does not grow with n. A process that is killed loses the chunks in flight, two at most.

    Under jax.distributed every process makes this call, on a file system that all see. Without `sharding`, or with one
    over devices of its own, a process draws chunks of its own and waits for the others at the end alone; with one over
    the devices of all, they draw every chunk together and write a part each.

    Args:
        key, sampler, check: as for `sample`. A result with more than samples (`smc.Particles`, `discrete.Decoded`) is
            stored with all its arrays, diagnostics too.
        n: number of samples, with particles a multiple of their number.
        shape: of one sample, without the batch axis, started from the sampler's prior; or else
        x: [n, ...] states at the sampler's first level, or a function of numbers as for `cond`.
        out: directory of the store, see `open_samples`; it is made, or resumed if it is of this very job.
        chunk: samples drawn at a time; also the samples of one file of a new store. Another may be used to resume.
        cond: conditions of all samples, leaves [n, ...], or a function of the numbers of samples (int64 [chunk], from
            `first` on) that returns theirs, leaves [chunk, ...].
        first: number of the first sample, so that a job may be continued in another store.
        dtype, sharding: as for `sample`; a chunk is made larger until the devices divide it.
        progress: show a tqdm bar.

    Returns:
        the store; `samples[a:b]` reads.

    Raises:
        ValueError: bad input; a store of another key, sampler (also one whose functions were edited since), start,
            condition, version or kind of device, which is named: nothing was written.
        FileExistsError: `out` is something else. OSError: the disk refuses; what is committed is safe.
        NonFiniteError: with the numbers of the samples; the chunks before are safe.

    >>> import jax, tempfile, diffsample as ds
    >>> process = ds.VariancePreserving()
    >>> sampler = ds.solvers.linear(ds.exact.PointMass(2.0), ds.solvers.ddim(process, ds.times.uniform(process, 5)))
    >>> ds.sample_many(jax.random.key(0), sampler, 10, (3,), out=tempfile.mkdtemp() + "/samples", chunk=4)[9]
    array([2., 2., 2.], dtype=float32)
    """
    job = checked(key, sampler, n, shape, x, cond, first, dtype)
    chunk = positive("chunk", chunk)
    path, watched = Path(out).absolute(), isinstance(check, Check) and check.every_row
    if sharding is not None:
        sharding = over_devices(sharding)
        chunk = -(-chunk // parts_of(sharding)) * parts_of(sharding)

    def drawn(start: int, check: bool | Check) -> Any:
        return sample(key, sampler, sharding=sharding, check=check, **job.arguments(start, chunk))

    abstract = jax.eval_shape(lambda: drawn(0, False))
    arrays = {name: _about(name, leaf, job.n, chunk) for name, leaf in _named(abstract).items()}
    group = max(about["samples_a_row"] for about in arrays.values())
    samples = _opened(path, job.description(group), arrays, chunk)
    jointly = sharding is not None and not sharding.is_fully_addressable
    todo = _pieces(missing(samples.done, job.n), chunk)
    together(f"job {path}")  # all have read what is done before one goes on
    mine = todo if jointly else todo[jax.process_index() :: jax.process_count()]
    with progress_bar(job.n, "sample", progress and jax.process_index() == 0) as advance:
        advance(job.n - sum(b - a for a, b in todo))
        for (a, b), ahead in _ahead(mine, lambda a: None if watched else drawn(a, False)):
            with _told(job.first + a, job.first + b):
                result = drawn(a, check) if watched else ahead
                rows = _verified(whole(result), b - a, sampler, check, lambda a=a: drawn(a, check))
            low, high = _share(a, b, group) if jointly else (a, b)
            if low < high:
                samples.write(low, high, _cut(rows, arrays, low - a, high - a))
            advance(b - a)
    together(f"job {path} ends")
    if jax.process_index() == 0 and samples.complete:
        samples.tidy()
    return samples


def _ahead(pieces: list[tuple[int, int]], draw: Callable[[int], Any]) -> Iterator[tuple[tuple[int, int], Any]]:
    """The device draws the next chunk while this one is written."""
    coming = draw(pieces[0][0]) if pieces else None
    for i, piece in enumerate(pieces):
        now, coming = coming, draw(pieces[i + 1][0]) if i + 1 < len(pieces) else None
        yield piece, now


def _verified(out: Any, count: int, sampler: Any, check: bool | Check, again: Callable[[], Any]) -> Any:
    """The result, its first `count` samples looked at on the host; a bad chunk is drawn again for its report."""
    if not check:
        return out
    x = (out.x if hasattr(out, "_fields") else out)[:count]
    limit = check.limit if isinstance(check, Check) else math.inf
    flat = np.asarray(x, np.float32).reshape(count, -1)
    with np.errstate(over="ignore", invalid="ignore"):
        bad = not np.isfinite(flat).all() or bool((np.sqrt((flat**2).mean(axis=1)) > limit).any())
    if bad:
        again()
    getattr(sampler, "verify", lambda out: None)(out)
    return out


@contextmanager
def _told(start: int, stop: int) -> Iterator[None]:
    """Errors inside say where in the job they are."""
    try:
        yield
    except (FloatingPointError, ValueError) as error:
        error.add_note(f"in the chunk of samples {start} to {stop} of a job; the chunks before it are safe")
        raise


def _pieces(gaps: list[tuple[int, int]], chunk: int) -> list[tuple[int, int]]:
    """Gaps cut into chunks."""
    return [(a, min(a + chunk, stop)) for start, stop in gaps for a in range(start, stop, chunk)]


def _share(a: int, b: int, group: int) -> tuple[int, int]:
    """This process's part of a chunk that all have drawn, in whole groups."""
    groups, i, k = (b - a) // group, jax.process_index(), jax.process_count()
    return a + groups * i // k * group, a + groups * (i + 1) // k * group


def _cut(out: Any, arrays: dict[str, Any], low: int, high: int) -> dict[str, np.ndarray]:
    return {
        name: leaf[low // arrays[name]["samples_a_row"] : high // arrays[name]["samples_a_row"]]
        for name, leaf in _named(out).items()
    }


def _named(out: Any) -> dict[str, Any]:
    """The arrays of a result by name; "x" are the samples."""
    if not hasattr(out, "_fields"):
        return {"x": out}
    leaves = jax.tree_util.tree_leaves_with_path(out)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _about(name: str, leaf: Any, n: int, chunk: int) -> dict[str, Any]:
    if not leaf.shape or chunk % leaf.shape[0]:
        raise ValueError(f"{name} of shape {leaf.shape} has no row for every sample or group of a chunk of {chunk}")
    each = chunk // leaf.shape[0]
    if n % each:
        raise ValueError(f"n={n} is no whole number of groups of {each} samples")
    return {"name": name, "shape": [n // each, *leaf.shape[1:]], "dtype": str(leaf.dtype), "samples_a_row": each}


def _opened(path: Path, job: dict[str, Any], arrays: dict[str, Any], chunk: int) -> Samples:
    """The store of this job, made if there is none."""
    together(f"look at {path}")
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        together(f"nobody is at {path}")
        if jax.process_index() == 0:
            sample_store.create(path, job, arrays, min(chunk, job["n"]))
        together(f"made {path}")
        return Samples(path)
    together(f"nobody is at {path}")
    samples = Samples(path)
    there, here = samples.manifest["job"] | {"arrays": samples.arrays}, job | {"arrays": arrays}
    if differ := [name for name, value in here.items() if name != CODE and there.get(name) != value]:
        what = "; ".join(f"{name}: {_short(there.get(name))} there, {_short(here[name])} here" for name in differ)
        raise ValueError(f"{path} holds samples of another job ({what}). Choose another place, or give the arguments "
                         f"of that job; nothing was written")  # fmt: skip
    if there.get(CODE, here[CODE]) != here[CODE]:
        raise ValueError(f"{path} was begun with other code: a function of the sampler computes something else now. "
                         f"Choose another place or undo the edit; to mix the two all the same, delete {CODE!r} from "
                         f"its manifest.json. Nothing was written")  # fmt: skip
    return samples


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 60 else f"{text[:57]}..."
