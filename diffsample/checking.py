"""What went wrong in a run, said with the call, the samples and the sampler: not finite, or diverged.

After a run its result is looked at once; where that fails the run is repeated row by row to find the first bad call.
`Check(every_row=True)` looks inside the program instead and leaves the loop at the first bad row, by
`jax.experimental.checkify`, which also works where `sample` is called inside a jitted function.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import checkify

from diffsample.denoiser import PyTree
from diffsample.loop import Job, advance, begin_compiled, rows_of, run_traced, samples_of
from diffsample.placing import whole
from diffsample.struct import pytree, static


class NonFiniteError(FloatingPointError):
    """A sample became NaN or infinite; nothing is lost: `x` holds all samples, `row` and `samples` say where."""

    def __init__(self, message: str, x: Array, row: int, samples: list[int]):
        super().__init__(message)
        self.x, self.row, self.samples = x, row, samples


class DivergenceError(NonFiniteError):
    """A sample grew beyond the limit of a `Check`."""


@pytree
class Check:
    """What `sample(..., check=Check(...))` refuses in its samples.

    Args:
        limit: largest root mean square of a sample, and of its predicted x0, in units of the data; beyond it the sample
            diverged. Infinity refuses only what is not finite.
        every_row: look after every row, inside the program, and leave the loop at the first row that fails, so that a
            run of many calls does not go on with NaNs. Inside a function of your own under jit, wrap that in
            `checkify.checkify`, which returns the error; elsewhere `sample` raises it.

    >>> import jax, diffsample as ds
    >>> process = ds.VarianceExploding()
    >>> sampler = ds.solvers.linear(ds.exact.PointMass(50.0), ds.solvers.ddim(process, [10.0, 1.0, 0.0]))
    >>> ds.sample(jax.random.key(0), sampler, (2, 3), check=ds.Check(limit=10.0))
    Traceback (most recent call last):
    diffsample.checking.DivergenceError: ...beyond the limit 10 first at call 0 (...), in 2 of 2 samples ...
    """

    limit: Any = float("inf")
    every_row: bool = static(default=False)

    def __post_init__(self) -> None:
        if isinstance(self.limit, int | float) and not self.limit > 0:
            raise ValueError(f"limit={self.limit} must be positive, a root mean square in units of the data")


class Watched(NamedTuple):
    """The record of a run that is looked at after every row."""

    row: Array  # int32, first bad row, or the number of rows
    bad: Array  # [B] bool, the samples that were bad there
    record: PyTree  # the observer's


@pytree
class Watch:
    """The observer that looks, around another."""

    observer: Any
    limit: Any
    first: Any
    name: str = static()

    def init(self, view: Any, rows: int) -> Watched:
        if not hasattr(view, "prediction"):
            raise TypeError(f"every_row watches predictions, and {self.name} makes none that are numbers; its own "
                            f"checks come with the result")  # fmt: skip
        record = () if self.observer is None else self.observer.init(view, rows)
        return Watched(jnp.int32(rows), jnp.zeros(view.x.shape[0], bool), record)

    def update(self, watched: Watched, view: Any, row: Array) -> Watched:
        bad = broken(view, self.limit)
        text = f"{self.name}: sample {{sample}} is not finite or beyond the limit at call {{row}}, one of {{count}}"
        number = jnp.argmax(bad).astype(jnp.uint32) + jnp.uint32(self.first)
        checkify.check(~bad.any(), text, sample=number, row=jnp.asarray(row), count=bad.sum())
        record = () if self.observer is None else self.observer.update(watched.record, view, row)
        return Watched(jnp.where(bad.any(), jnp.asarray(row, jnp.int32), watched.row), bad, record)

    def done(self, watched: Watched) -> Array:
        """Ends the loop."""
        return watched.bad.any()


@jax.jit
def run_checked(job: Job) -> Any:
    """(error, (result, record)) of a run whose observer is a `Watch`."""
    return checkify.checkify(run_traced)(job)


@jax.jit
def is_sound(x: Array, limit: Any) -> Array:
    """Whether all samples are finite and within the limit."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.ones((), bool)
    return jnp.isfinite(x).all() & ~_beyond(x, limit).any()


@jax.jit
def broken(view: Any, limit: Any) -> Array:
    """[B] bool, samples whose newest prediction is not finite or beyond the limit."""
    x0, eps = view.prediction
    finite = jnp.isfinite(x0) & jnp.isfinite(eps)
    return ~finite.reshape(len(x0), -1).all(axis=1) | _beyond(x0, limit)


def _beyond(x: Array, limit: Any) -> Array:
    flat = x.reshape(len(x), -1).astype(jnp.promote_types(x.dtype, jnp.float32))
    return jnp.sqrt(jnp.mean(flat**2, axis=1)) > jnp.asarray(limit, flat.dtype)


def located(job: Job, out: Any, limit: Any) -> NonFiniteError:
    """Repeats a failed run row by row and says where it first went wrong; runs only after a failure."""
    keys, carry = begin_compiled(job)
    for j in range(rows_of(job.sampler)):
        carry = advance(job, keys, carry, j, j + 1)
        view = job.sampler.view(carry.state)
        bad = whole(broken(view, limit))
        if bad.any():
            return report(job, out, j, bad, limit, view)
    x = samples_of(out)
    message = (
        f"{title(job.sampler)}: a sample became non-finite or too large in the closing update; .x holds all samples"
    )
    return NonFiniteError(message, x, -1, [])


def report(job: Job, out: Any, row: int, bad: np.ndarray, limit: Any, view: Any = None) -> NonFiniteError:
    """The error that names sampler, call, level and samples."""
    samples = [int(i) + int(job.first) for i in np.flatnonzero(bad)]
    x0 = None if view is None else whole(view.prediction.x0)
    diverged = x0 is not None and bool(np.isfinite(x0[bad]).all())
    level = ""
    if view is not None:
        fields = view.level._asdict().items()
        level = f" ({', '.join(f'{name}={float(np.ravel(whole(v))[0]):.6g}' for name, v in fields)})"
    what = f"a prediction of x0 went beyond the limit {float(limit):g}" if diverged else (
        "the denoiser returned a non-finite value")  # fmt: skip
    message = (
        f"{title(job.sampler)}: {what} first at call {row}{level}, in {len(samples)} of {len(bad)} samples (numbers "
        f"{samples[:5]}{'...' if len(samples) > 5 else ''}); the exception's .x holds all samples"
    )
    return (DivergenceError if diverged else NonFiniteError)(message, samples_of(out), row, samples)


def report_watched(job: Job, out: Any, watched: Watched, error: checkify.Error) -> NonFiniteError:
    """The error of a run that was left at its first bad row."""
    bad = whole(watched.bad)
    samples = [int(i) + int(job.first) for i in np.flatnonzero(bad)]
    x = samples_of(out)
    kind = DivergenceError if bool(np.isfinite(whole(x)[bad]).all()) else NonFiniteError
    return kind(f"{error.get()}; the run was left there, and .x holds all samples", x, int(watched.row), samples)


def title(sampler: Any) -> str:
    """A sampler in a few words: its kind, its table's name and the sampler or denoiser inside."""
    about = getattr(getattr(sampler, "tableau", None), "about", None)
    inside = getattr(sampler, "sampler", getattr(sampler, "denoiser", getattr(sampler, "model", None)))
    parts = [*([about.name] if about is not None else []), *([title(inside)] if inside is not None else [])]
    return type(sampler).__name__ + (f"({', '.join(parts)})" if parts else "")
