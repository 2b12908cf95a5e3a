"""The public door: `sample` runs any sampler, as one compiled scan, in chunks with a progress bar, or step by step."""

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding

from diffsample import checking
from diffsample.arguments import as_states, check_cond, check_dtype, check_key, sample_number
from diffsample.checking import Check, NonFiniteError
from diffsample.denoiser import PyTree, expand
from diffsample.loop import CLOSING_STREAM, PRIOR_STREAM, Job, Plan, run, run_in_python, samples_of
from diffsample.placing import (
    automatic_axes,
    batch_sharding,
    everywhere,
    of_leading_axis,
    on_mesh,
    settled,
    spread,
    whole,
)
from diffsample.process import Level
from diffsample.progress import progress_bar
from diffsample.record import as_observer
from diffsample.runs import Run, begun
from diffsample.sampler import Sampler, fold, normal, sample_keys
from diffsample.tableau import is_concrete

__all__ = ["CLOSING_STREAM", "PRIOR_STREAM", "NonFiniteError", "diffuse", "sample", "start"]


def sample(
    key: Array,
    sampler: Sampler,
    shape: tuple[int, ...] | None = None,
    *,
    x: Array | None = None,
    cond: PyTree = None,
    record: Any = None,
    first: int = 0,
    chunk: int | None = None,
    progress: bool = False,
    debug: bool = False,
    check: bool | Check = True,
    dtype: Any = None,
    sharding: NamedSharding | str | None = None,
) -> Any:
    """Draw samples: initial states, `sampler.nfe` network evaluations each, and the closing update, in one program.

    Args:
        key: typed key (`jax.random.key(seed)`), threefry.
        sampler: for example `solvers.linear(denoiser, tableau)`.
        shape: (B, ...) of a batch started from the sampler's prior; or else
        x: [B, ...] states at the sampler's first level (`diffuse` makes them from clean ones); output has x's dtype.
        cond: condition, a pytree whose leaves have the batch axis first.
        record: a function of the `View`, stacked at every row; or a `Stack` or `Fold`.
        first: number of the first sample; row i of a batch is the same sample as a batch of one with first=i.
        chunk: run at most this many samples at a time, one program for all chunks.
        progress: show a tqdm bar; the same samples, from the same row program run in pieces.
        debug: run row by row in Python, so that prints and debuggers inside a network work; equal up to rounding
            (operations are not fused; relative 1e-6 in float32).
        check: look at the result once for NaN; False returns without waiting for the device. A `Check` also refuses
            samples beyond a limit, or looks after every row and stops at the first that fails.
        dtype: of the result when `shape` is given; the state is float32 at least. None is the sampler's own, float32
            unless it says otherwise (int32 for decoders of tokens).
        sharding: `NamedSharding(mesh, PartitionSpec(axis))`, or the name of an axis of the mesh in use, spreads the
            batch over devices, also over those of several processes of jax.distributed, which then all make this call;
            the result lies there. Weights are used as they lie: on one device (then sent to all), replicated, or
            sharded over other axes. Same samples as on one device.

    Returns:
        samples [B, ...], or what the sampler returns with them (`smc.Particles`); with a record, the pair of both.

    Raises:
        ValueError, TypeError: bad input, named.
        NonFiniteError: a sample is not finite; says at which call that first happened, and carries the samples.
        DivergenceError: a sample is beyond the limit of `check`.
        FloatingPointError: what the sampler's own `verify` finds, where it has one.

    >>> import jax, diffsample as ds
    >>> process = ds.VariancePreserving()
    >>> sampler = ds.solvers.linear(ds.exact.PointMass(2.0), ds.solvers.ddim(process, ds.times.uniform(process, 5)))
    >>> ds.sample(jax.random.key(0), sampler, (3,))
    Array([2., 2., 2.], dtype=float32)
    """
    job = prepared(key, sampler, shape, x, cond, record, first, check, dtype, sharding)
    batch = job.plan.shape[0]
    if chunk is not None and chunk < batch:
        if not isinstance(chunk, (int, np.integer)) or chunk < 1:
            raise ValueError(f"chunk={chunk!r} must be a whole number of at least 1")
        if record is not None:
            raise ValueError(f"chunk={chunk} does not go with a record; call sample(..., first=...) for each piece")
        again = functools.partial(
            sample, key, sampler, progress=progress, debug=debug, check=check, dtype=job.plan.dtype, sharding=sharding
        )
        return _in_chunks(again, job.plan.shape, x, cond, first, chunk)
    with automatic_axes():
        if isinstance(check, Check) and check.every_row:
            out, kept = _watched(job, check)
        else:
            out, kept = run_in_python(job) if debug else _with_progress(job) if progress else run(job)
        if check:
            _refuse(job, out, check)
    out, kept = on_mesh((out, kept), x if sharding is None else sharding)
    return out if job.observer is None else (out, kept)


def start(
    key: Array,
    sampler: Sampler,
    shape: tuple[int, ...] | None = None,
    *,
    x: Array | None = None,
    cond: PyTree = None,
    record: Any = None,
    first: int = 0,
    dtype: Any = None,
    sharding: NamedSharding | str | None = None,
) -> Run:
    """A run that stands before its first row, to be advanced by hand, saved, and restored here or elsewhere.

    No network call is made. `run.advance(rows)` goes on, `run.finish()` gives what `sample` gives. The
    rows are the same and compiled apart from `sample`'s, so the two may differ by rounding (1e-6 relative); runs that
    were saved and restored, on any mesh and in pieces of any length, are bit-equal on the same kind of hardware.

    Args: as for `sample`.

    >>> import jax, tempfile, diffsample as ds
    >>> process = ds.VariancePreserving()
    >>> sampler = ds.solvers.linear(ds.exact.PointMass(2.0), ds.solvers.ddpm(process, ds.times.uniform(process, 9)))
    >>> run = ds.start(jax.random.key(0), sampler, (2,)).advance(4)
    >>> path = tempfile.mkdtemp() + "/run"
    >>> run.save(path)
    >>> ds.start(jax.random.key(0), sampler, (2,)).restore(path).finish()
    Array([2., 2.], dtype=float32)
    """
    job = prepared(key, sampler, shape, x, cond, record, first, True, dtype, sharding)
    with automatic_axes():
        return begun(job)


def prepared(
    key: Array,
    sampler: Sampler,
    shape: tuple[int, ...] | None,
    x: Array | None,
    cond: PyTree,
    record: Any,
    first: int,
    check: bool | Check,
    dtype: Any,
    sharding: NamedSharding | str | None,
) -> Job:
    """The arguments of `sample`, checked and put where they belong."""
    check_key(key)
    if not (hasattr(sampler, "step") and hasattr(sampler, "finish")):
        raise TypeError(f"sampler must be a sampler, for example solvers.linear(denoiser, tableau); got a "
                        f"{type(sampler).__name__}")  # fmt: skip
    if x is not None:
        x = as_states(x)
    own = getattr(sampler, "dtype", jnp.float32)
    shape, dtype = _start(shape, x, own if dtype is None and x is None else dtype, bool(check))
    if jnp.issubdtype(own, jnp.floating) and not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"the states of {checking.title(sampler)} are floating point, got {dtype}")
    if x is None and jnp.issubdtype(own, jnp.integer) and not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"the states of {checking.title(sampler)} are tokens, got dtype={jnp.dtype(dtype)}")
    getattr(sampler, "admit", _accept)(shape, x if check else None)
    check_cond(cond, shape[0])
    number = sample_number(first)
    place = None if sharding is None else batch_sharding(sharding, shape[0])
    sampler, key, x, cond = settled((sampler, key, x, cond))
    if place is not None:
        x, cond = spread(x, place), spread(cond, of_leading_axis(place))
        sampler, key = everywhere((sampler, key), place)
    return Job(sampler, key, number, x, cond, as_observer(record), Plan(shape, dtype, place))


def _watched(job: Job, check: Check) -> tuple[Any, PyTree]:
    """Runs with a look after every row, and raises where one failed."""
    watch = checking.Watch(job.observer, check.limit, job.first, checking.title(job.sampler))
    watching = dataclasses.replace(job, observer=watch)
    if not is_concrete((job.sampler, job.key, job.first, job.x, job.cond)):
        out, watched = run(watching)  # the caller's checkify finds the checks in there
        return out, watched.record
    error, (out, watched) = checking.run_checked(watching)
    if error.get():
        raise checking.report_watched(job, out, watched, error)
    return out, watched.record


def _refuse(job: Job, out: Any, check: bool | Check) -> None:
    """Raises where a concrete result is not sound."""
    if not is_concrete(out):
        return
    limit = check.limit if isinstance(check, Check) else float("inf")
    if not bool(checking.is_sound(samples_of(out), limit)):
        raise checking.located(job, out, limit)
    verify = getattr(job.sampler, "verify", None)
    if verify is not None:
        verify(out if job.plan.place is None else whole(out))


def _with_progress(job: Job) -> tuple[Any, PyTree]:
    """The same rows in pieces of a tenth of a second or more."""
    going, piece = begun(job), 1
    with progress_bar(going.rows, "call", shown=True) as advance_bar:
        while not going.done:
            before, began = going.row, time.perf_counter()
            going = going.advance(piece)
            jax.block_until_ready(going.carry)
            advance_bar(going.row - before)
            spent = (time.perf_counter() - began) / (going.row - before)
            piece = 1 if before == 0 else max(1, round(0.1 / spent))  # the first piece pays the compile
    return going.end()


def _accept(*_: Any) -> None:
    """A sampler without `admit` takes any start."""


def diffuse(key: Array, x0: Array, level: Level, *, first: int = 0) -> Array:
    """alpha x0 + sigma z, where z is the noise that `sample` would start the same samples from.

    The start of image-to-image: diffuse clean samples to a level, then sample on a grid that begins there.

    Args:
        key: as for `sample`. x0: [B, ...] clean samples. level: `process.level(t)`. first: as for `sample`.
    """
    check_key(key)
    x0 = jnp.asarray(as_states(x0, "x0"))
    if not jnp.issubdtype(x0.dtype, jnp.floating):
        raise TypeError(f"x0 must be floating point, got {x0.dtype}; scale it as the network's data were")
    if not isinstance(level, Level):
        raise TypeError(f"level must be a Level, process.level(t); got {level!r}")
    keys = fold(sample_keys(key, sample_number(first), x0.shape[0]), PRIOR_STREAM)
    noise = normal(keys, x0.shape, jnp.promote_types(x0.dtype, jnp.float32))
    return (expand(level.alpha, noise) * x0 + expand(level.sigma, noise) * noise).astype(x0.dtype)


def _in_chunks(again: Any, shape: tuple, x: Any, cond: PyTree, first: int, chunk: int) -> Any:
    n, parts = shape[0], []
    for low in range(0, n, chunk):
        at = min(low, n - chunk)  # the last chunk overlaps its neighbour, so that all chunks have one shape
        cut = functools.partial(jax.tree.map, lambda leaf, at=at: leaf[at : at + chunk])
        start = {"shape": (chunk, *shape[1:])} if x is None else {"x": x[at : at + chunk]}
        out = again(**start, cond=cut(cond), first=first + at)
        parts.append(jax.tree.map(lambda leaf, at=at, low=low: leaf[(low - at) * len(leaf) // chunk :], out))
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)  # of particles, some have a row a group


def _start(shape: Any, x: Any, dtype: Any, check: bool) -> tuple[tuple[int, ...], Any]:
    """Shape and dtype of the result."""
    if (shape is None) == (x is None):
        raise ValueError("give either shape=(batch, ...) or x=initial states, not both or neither")
    if x is None:
        if not isinstance(shape, (tuple, list)) or not all(isinstance(s, (int, np.integer)) for s in shape):
            raise TypeError(f"shape must be a tuple of ints (batch, ...), got {shape!r}")
        if not shape or min(shape) < 1:
            raise ValueError(f"shape={tuple(shape)} must have a batch axis and no empty axis")
        return tuple(int(s) for s in shape), check_dtype(dtype)
    if dtype is not None and jnp.dtype(dtype) != x.dtype:
        raise ValueError(f"dtype={jnp.dtype(dtype)} goes with shape; the result of x has its {x.dtype}: give "
                         f"x.astype(...)")  # fmt: skip
    if check and is_concrete(x) and not bool(_all_finite(x)):
        values = whole(x)
        bad = np.argwhere(~np.isfinite(values))[0]
        raise ValueError(f"x is not finite: x{bad.tolist()} = {values[tuple(bad)]}")
    return x.shape, jnp.dtype(x.dtype)


@jax.jit
def _all_finite(x: Array) -> Array:
    return jnp.isfinite(x).all()
