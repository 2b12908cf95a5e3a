"""The one loop: `sample` runs any sampler, as one compiled scan, in chunks with a progress bar, or step by step.

Randomness belongs to the sample: sample i has the key fold_in(key, i), its row j the key fold_in(key_i, j), whatever
the batch, the device or the chunking.
"""

import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.denoiser import PyTree, expand
from diffsample.process import Level
from diffsample.record import Observer, as_observer
from diffsample.sampler import Sampler, fold, normal, sample_keys
from diffsample.tableau import is_concrete

PRIOR_STREAM, CLOSING_STREAM = 2**32 - 1, 2**32 - 2  # row numbers that no table has


class NonFiniteError(FloatingPointError):
    """A sample became NaN or infinite; nothing is lost: `x` holds all samples, `row` and `samples` say where."""

    def __init__(self, message: str, x: Array, row: int, samples: list[int]):
        super().__init__(message)
        self.x, self.row, self.samples = x, row, samples


class Carry(NamedTuple):
    """What the loop carries: the sampler's state and the observer's record."""

    state: PyTree
    record: PyTree


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
    check: bool = True,
    dtype: Any = None,
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
        check: look at the result once for NaN; False returns without waiting for the device.
        dtype: of the result when `shape` is given; the state is float32 at least. None is the sampler's own, float32
            unless it says otherwise (int32 for decoders of tokens).

    Returns:
        samples [B, ...], or what the sampler returns with them (`smc.Particles`); with a record, the pair of both.

    Raises:
        ValueError, TypeError: bad input, named.
        NonFiniteError: a sample is not finite; says at which call that first happened, and carries the samples.
        FloatingPointError: what the sampler's own `verify` finds, where it has one.

    >>> import jax, diffsample as ds
    >>> process = ds.VariancePreserving()
    >>> sampler = ds.solvers.linear(ds.exact.PointMass(2.0), ds.solvers.ddim(process, ds.times.uniform(process, 5)))
    >>> ds.sample(jax.random.key(0), sampler, (3,))
    Array([2., 2., 2.], dtype=float32)
    """
    _check_key(key)
    dtype = getattr(sampler, "dtype", jnp.float32) if dtype is None else dtype
    shape, dtype = _start(shape, x, dtype, check)
    getattr(sampler, "admit", _accept)(shape, x if check else None)
    _check_cond(cond, shape[0])
    if chunk is not None and chunk < shape[0]:
        if record is not None or chunk < 1:
            raise ValueError(f"chunk={chunk} must be positive and cannot be combined with record; call sample(..., "
                             f"first=...) for each piece")  # fmt: skip
        again = functools.partial(sample, key, sampler, progress=progress, debug=debug, check=check, dtype=dtype)
        return _in_chunks(again, shape, x, cond, first, chunk)
    observer = as_observer(record)
    number = np.uint32(first) if isinstance(first, int) else jnp.uint32(first)  # of an int, jnp's is an eager operation
    arguments = (sampler, key, number, x, cond, observer, shape, dtype)
    out, kept = (_debug if debug else _with_progress if progress else _run)(*arguments)
    if check and is_concrete(out):
        if not bool(_all_finite(_samples(out))):
            raise _locate(_samples(out), *arguments)
        getattr(sampler, "verify", _accept)(out)
    return out if observer is None else (out, kept)


def diffuse(key: Array, x0: Array, level: Level, *, first: int = 0) -> Array:
    """alpha x0 + sigma z, where z is the noise that `sample` would start the same samples from.

    The start of image-to-image: diffuse clean samples to a level, then sample on a grid that begins there.

    Args:
        key: as for `sample`. x0: [B, ...] clean samples. level: `process.level(t)`. first: as for `sample`.
    """
    _check_key(key)
    keys = fold(sample_keys(key, first, x0.shape[0]), PRIOR_STREAM)
    noise = normal(keys, x0.shape, jnp.promote_types(x0.dtype, jnp.float32))
    return (expand(level.alpha, noise) * x0 + expand(level.sigma, noise) * noise).astype(x0.dtype)


@jax.jit
def _steps(sampler: Sampler) -> PyTree:
    return sampler.steps


def _rows(sampler: Sampler) -> int:
    return jax.tree.leaves(_steps.eval_shape(sampler))[0].shape[0]  # traced once a shape of sampler


def _begin(sampler: Sampler, key: Array, first: Array, x: Any, observer: Any, shape: Any, dtype: Any, cond: PyTree):
    keys = sample_keys(key, first, shape[0])
    working = jnp.promote_types(dtype, jnp.float32) if jnp.issubdtype(dtype, jnp.floating) else dtype
    x = sampler.prior(fold(keys, PRIOR_STREAM), shape, working) if x is None else x.astype(working)
    state = sampler.init(keys, x, cond)
    rows = _rows(sampler)
    record = () if observer is None else observer.init(jax.eval_shape(sampler.view, state), rows)
    return keys, Carry(state, record)


def _row(sampler: Sampler, observer: Observer | None, keys: Array, cond: PyTree, carry: Carry, j: Any, step: PyTree):
    state = sampler.step(fold(keys, j), carry.state, step, cond)
    record = carry.record if observer is None else observer.update(carry.record, sampler.view(state), j)
    return Carry(state, record)


def _end(sampler: Sampler, keys: Array, carry: Carry, cond: PyTree, dtype: Any) -> Any:
    out = sampler.finish(fold(keys, CLOSING_STREAM), carry.state, cond)
    return out._replace(x=out.x.astype(dtype)) if hasattr(out, "_fields") else out.astype(dtype)


def _samples(out: Any) -> Array:
    return out.x if hasattr(out, "_fields") else out


def _accept(*_: Any) -> None:
    """A sampler without `admit` takes any start, one without `verify` any result."""


@functools.partial(jax.jit, static_argnums=(6, 7))
def _run(sampler: Sampler, key: Array, first: Array, x: Any, cond: PyTree, observer: Any, shape: Any, dtype: Any):
    keys, carry = _begin(sampler, key, first, x, observer, shape, dtype, cond)
    steps = sampler.steps
    rows = jnp.arange(_rows(sampler), dtype=jnp.uint32)

    def body(carry: Carry, row: tuple) -> tuple[Carry, None]:
        return _row(sampler, observer, keys, cond, carry, *row), None

    if _stops(sampler) is None:
        carry, _ = jax.lax.scan(body, carry, (rows, steps))
    else:
        carry = _advance(sampler, observer, keys, cond, carry, 0, _rows(sampler))
    return _end(sampler, keys, carry, cond, dtype), carry.record


_jit_begin = jax.jit(_begin, static_argnums=(5, 6))
_jit_end = jax.jit(_end, static_argnums=4)


def _stops(sampler: Sampler) -> Any:
    """The sampler's condition on its state to end before the last row; None where all rows are run, by a scan."""
    return getattr(sampler, "done", None)


def _over(sampler: Sampler, state: PyTree) -> bool:
    return _stops(sampler) is not None and bool(_finished(sampler, state))


@jax.jit
def _finished(sampler: Sampler, state: PyTree) -> Array:
    return _stops(sampler)(state)


@jax.jit
def _advance(sampler: Sampler, observer: Any, keys: Array, cond: PyTree, carry: Carry, start: Any, stop: Any) -> Carry:
    """Rows start to stop; both traced, so that pieces of any length are one program."""
    steps = jax.tree.map(jnp.asarray, sampler.steps)

    def body(j: Array, carry: Carry) -> Carry:
        return _row(sampler, observer, keys, cond, carry, j, jax.tree.map(lambda leaf: leaf[j], steps))

    done = _stops(sampler)
    if done is None:
        return jax.lax.fori_loop(start, stop, body, carry)

    def going(at: tuple) -> Array:
        return (at[0] < stop) & ~done(at[1].state)

    return jax.lax.while_loop(going, lambda at: (at[0] + 1, body(*at)), (jnp.asarray(start), carry))[1]


def _with_progress(
    sampler: Sampler, key: Array, first: Any, x: Any, cond: PyTree, observer: Any, shape: Any, dtype: Any
):
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("progress=True needs tqdm: pip install 'diffsample[progress]'") from error
    keys, carry = _jit_begin(sampler, key, first, x, observer, shape, dtype, cond)
    rows = _rows(sampler)
    done, piece = 0, 1
    with tqdm(total=rows, unit="call") as bar:
        while done < rows and not _over(sampler, carry.state):
            stop, began = min(done + piece, rows), time.perf_counter()
            carry = jax.block_until_ready(_advance(sampler, observer, keys, cond, carry, done, stop))
            bar.update(stop - done)
            spent = (time.perf_counter() - began) / (stop - done)
            # the first piece pays the compile; from then on each piece lasts a tenth of a second or more
            piece, done = (1 if done == 0 else max(1, round(0.1 / spent))), stop
    return _jit_end(sampler, keys, carry, cond, dtype), carry.record


def _debug(sampler: Sampler, key: Array, first: Any, x: Any, cond: PyTree, observer: Any, shape: Any, dtype: Any):
    sampler = jax.tree.map(jnp.asarray, sampler)
    keys, carry = _begin(sampler, key, first, x, observer, shape, dtype, cond)
    steps = sampler.steps
    for j in range(_rows(sampler)):
        if _over(sampler, carry.state):
            break
        carry = _row(sampler, observer, keys, cond, carry, j, jax.tree.map(lambda leaf, j=j: leaf[j], steps))
    return _end(sampler, keys, carry, cond, dtype), carry.record


def _locate(
    out: Array, sampler: Any, key: Array, first: Any, x: Any, cond: PyTree, observer: Any, shape: Any, dtype: Any
):
    """Repeat a failed run row by row and say where it first went wrong; runs only after a failure."""
    keys, carry = _jit_begin(sampler, key, first, x, observer, shape, dtype, cond)
    for j in range(_rows(sampler)):
        carry = _advance(sampler, observer, keys, cond, carry, j, j + 1)
        view = sampler.view(carry.state)
        bad = ~np.isfinite(np.asarray(view.x0) + np.asarray(view.eps)).reshape(shape[0], -1).all(axis=1)
        if bad.any():
            samples = [int(i) + int(first) for i in np.flatnonzero(bad)]
            level = ", ".join(f"{name}={float(np.ravel(v)[0]):.6g}" for name, v in view.level._asdict().items())
            message = (
                f"the denoiser returned a non-finite value first at call {j} ({level}), in "
                f"{len(samples)} of {shape[0]} samples (numbers {samples[:5]}{'...' if len(samples) > 5 else ''}); "
                f"the exception's .x holds all samples"
            )
            return NonFiniteError(message, out, j, samples)
    return NonFiniteError("a sample became non-finite in the closing update; .x holds all samples", out, -1, [])


@jax.jit
def _all_finite(x: Array) -> Array:
    return jnp.isfinite(x).all()


def _in_chunks(again: Any, shape: tuple, x: Any, cond: PyTree, first: int, chunk: int) -> Any:
    n, parts = shape[0], []
    for low in range(0, n, chunk):
        at = min(low, n - chunk)  # the last chunk overlaps its neighbour, so that all chunks have one shape
        cut = functools.partial(jax.tree.map, lambda leaf, at=at: leaf[at : at + chunk])
        start = {"shape": (chunk, *shape[1:])} if x is None else {"x": x[at : at + chunk]}
        out = again(**start, cond=cut(cond), first=first + at)
        parts.append(jax.tree.map(lambda leaf, at=at, low=low: leaf[(low - at) * len(leaf) // chunk :], out))
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)  # of particles, some have a row a group


def _check_key(key: Any) -> None:
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        raise TypeError(f"key must be a typed key, jax.random.key(seed); got {type(key).__name__}"
                        f"{f' of dtype {key.dtype}' if hasattr(key, 'dtype') else ''}")  # fmt: skip
    if key.ndim:
        raise ValueError(f"key must be one key, got an array of {key.shape}; sample i gets its own by fold_in")
    if str(jax.random.key_impl(key)) != "threefry2x32":
        raise ValueError(f"key implementation {jax.random.key_impl(key)} draws differently in different batches under "
                         f"vmap; use jax.random.key(seed, impl='threefry2x32')")  # fmt: skip


def _start(shape: Any, x: Any, dtype: Any, check: bool) -> tuple[tuple[int, ...], Any]:
    if (shape is None) == (x is None):
        raise ValueError("give either shape=(batch, ...) or x=initial states, not both or neither")
    if x is None:
        if not isinstance(shape, (tuple, list)) or not all(isinstance(s, (int, np.integer)) for s in shape):
            raise TypeError(f"shape must be a tuple of ints (batch, ...), got {shape!r}")
        if not shape or min(shape) < 1:
            raise ValueError(f"shape={tuple(shape)} must have a batch axis and no empty axis")
        return tuple(int(s) for s in shape), jnp.dtype(dtype)
    if not hasattr(x, "dtype") or not x.ndim:
        raise TypeError(f"x must be an array [batch, ...], got {x!r}")
    if check and is_concrete(x) and not bool(_all_finite(x)):
        bad = np.argwhere(~np.isfinite(np.asarray(x)))[0]
        raise ValueError(f"x is not finite: x{bad.tolist()} = {np.asarray(x)[tuple(bad)]}")
    return x.shape, jnp.dtype(x.dtype)


def _check_cond(cond: PyTree, batch: int) -> None:
    for path, leaf in jax.tree.leaves_with_path(cond):
        shape = jnp.shape(leaf)
        if not shape or shape[0] != batch:
            raise ValueError(f"cond{jax.tree_util.keystr(path)} has shape {shape}; every leaf of the condition needs "
                             f"the batch axis first, here {batch}")  # fmt: skip
