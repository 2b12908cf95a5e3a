"""The one loop that runs any sampler: begin, rows, end, as one compiled scan or in pieces of the same rows.

Randomness belongs to the sample: sample i has the key fold_in(key, i), its row j the key fold_in(key_i, j), whatever
the batch, the device or the chunking.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding

from diffsample.denoiser import PyTree
from diffsample.placing import constrained, of_leading_axis
from diffsample.sampler import Sampler, fold, sample_keys
from diffsample.struct import pytree, static

PRIOR_STREAM, CLOSING_STREAM = 2**32 - 1, 2**32 - 2  # row numbers that no table has


class Plan(NamedTuple):
    """What shapes the program besides the sampler."""

    shape: tuple[int, ...]  # (B, ...)
    dtype: Any  # of the result
    place: NamedSharding | None  # of the batch


@pytree
class Job:
    """One call of `sample`, as the compiled program takes it."""

    sampler: Any
    key: Array
    first: Any  # uint32 scalar, number of the first sample
    x: Array | None  # initial states; None draws them from the prior
    cond: PyTree
    observer: Any
    plan: Plan = static()


class Carry(NamedTuple):
    """What the loop carries: the sampler's state and the observer's record."""

    state: PyTree
    record: PyTree


@jax.jit
def _steps(sampler: Sampler) -> PyTree:
    return sampler.steps


def rows_of(sampler: Sampler) -> int:
    """How many rows a sampler has."""
    return jax.tree.leaves(_steps.eval_shape(sampler))[0].shape[0]  # traced once a shape of sampler


def begin(job: Job) -> tuple[Array, Carry]:
    """The key of every sample, and the state before the first row."""
    sampler, (shape, dtype, place) = job.sampler, job.plan
    keys = constrained(sample_keys(job.key, job.first, shape[0]), of_leading_axis(place))
    working = jnp.promote_types(dtype, jnp.float32) if jnp.issubdtype(dtype, jnp.floating) else dtype
    x = sampler.prior(fold(keys, PRIOR_STREAM), shape, working) if job.x is None else job.x.astype(working)
    state = sampler.init(keys, constrained(x, place), job.cond)
    rows = rows_of(sampler)
    record = () if job.observer is None else job.observer.init(jax.eval_shape(sampler.view, state), rows)
    return keys, Carry(state, record)


def one_row(job: Job, keys: Array, carry: Carry, j: Any, step: PyTree) -> Carry:
    """The sampler's row j, then the observer's."""
    state = job.sampler.step(fold(keys, j), carry.state, step, job.cond)
    record = carry.record if job.observer is None else job.observer.update(carry.record, job.sampler.view(state), j)
    return Carry(state, record)


def end(job: Job, keys: Array, carry: Carry) -> Any:
    """What the sampler makes of its last state, in the dtype asked for."""
    out = job.sampler.finish(fold(keys, CLOSING_STREAM), carry.state, job.cond)
    x = constrained(samples_of(out).astype(job.plan.dtype), job.plan.place)
    return out._replace(x=x) if hasattr(out, "_fields") else x


def samples_of(out: Any) -> Array:
    """The samples of a result, which may be a NamedTuple with more."""
    return out.x if hasattr(out, "_fields") else out


def run_traced(job: Job) -> tuple[Any, PyTree]:
    """The result and the record of a whole run."""
    keys, carry = begin(job)
    rows = rows_of(job.sampler)

    def body(carry: Carry, row: tuple) -> tuple[Carry, None]:
        return one_row(job, keys, carry, *row), None

    if _stop(job) is None:
        carry, _ = jax.lax.scan(body, carry, (jnp.arange(rows, dtype=jnp.uint32), job.sampler.steps))
    else:
        carry = advance(job, keys, carry, 0, rows)
    return end(job, keys, carry), carry.record


run = jax.jit(run_traced)
begin_compiled = jax.jit(begin)
end_compiled = jax.jit(end)


@jax.jit
def advance(job: Job, keys: Array, carry: Carry, start: Any, stop: Any) -> Carry:
    """Rows start to stop; both traced, so that pieces of any length are one program."""
    steps = jax.tree.map(jnp.asarray, job.sampler.steps)

    def body(j: Array, carry: Carry) -> Carry:
        return one_row(job, keys, carry, j, jax.tree.map(lambda leaf: leaf[j], steps))

    over = _stop(job)
    if over is None:
        return jax.lax.fori_loop(start, stop, body, carry)

    def going(at: tuple) -> Array:
        return (at[0] < stop) & ~over(at[1])

    return jax.lax.while_loop(going, lambda at: (at[0] + 1, body(*at)), (jnp.asarray(start), carry))[1]


def is_over(job: Job, carry: Carry) -> bool:
    """Whether a concrete run has ended before its last row."""
    return _stop(job) is not None and bool(_finished(job, carry))


def _stop(job: Job) -> Any:
    """The condition on the carry to end before the last row; None where all rows are run, by a scan."""
    done, broken = getattr(job.sampler, "done", None), getattr(job.observer, "done", None)
    if done is None and broken is None:
        return None

    def over(carry: Carry) -> Array:
        of_sampler = jnp.zeros((), bool) if done is None else done(carry.state)
        return of_sampler if broken is None else of_sampler | broken(carry.record)

    return over


@jax.jit
def _finished(job: Job, carry: Carry) -> Array:
    return _stop(job)(carry)


def run_in_python(job: Job) -> tuple[Any, PyTree]:
    """Row by row in Python, operation by operation."""
    sampler = jax.tree.map(jnp.asarray, job.sampler)
    job = Job(sampler, job.key, job.first, job.x, job.cond, job.observer, job.plan)
    keys, carry = begin(job)
    steps = sampler.steps
    for j in range(rows_of(sampler)):
        if is_over(job, carry):
            break
        carry = one_row(job, keys, carry, j, jax.tree.map(lambda leaf, j=j: leaf[j], steps))
    return end(job, keys, carry), carry.record
