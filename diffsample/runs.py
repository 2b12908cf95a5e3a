"""A run in the middle: state that can be advanced, saved, and continued on other devices."""

import dataclasses
import hashlib
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from diffsample.denoiser import PyTree
from diffsample.identity import as_on_device, code, fingerprint, is_key
from diffsample.loop import Carry, Job, advance, begin_compiled, end_compiled, is_over, rows_of
from diffsample.placing import automatic_axes, spread, whole


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that stands after `row` of its rows; made by `start`, never changed: `advance` gives another."""

    job: Job
    keys: Array  # [B], of the samples
    carry: Carry
    row: int

    @property
    def rows(self) -> int:
        """Rows of the whole run."""
        return rows_of(self.job.sampler)

    @property
    def done(self) -> bool:
        """Whether no row is left, or the sampler ended early."""
        return self.row >= self.rows or is_over(self.job, self.carry)

    @property
    def view(self) -> Any:
        """What the sampler shows of its state: x, level, prediction, ..."""
        return self.job.sampler.view(self.carry.state)

    def advance(self, rows: int | None = None) -> "Run":
        """The run so many rows on, or at its end; any number of rows is one compiled program.

        Raises:
            ValueError: fewer than 1 row.
        """
        if rows is not None and rows < 1:
            raise ValueError(f"rows={rows} must be at least 1; None goes to the end")
        stop = self.rows if rows is None else min(self.row + rows, self.rows)
        with automatic_axes():
            carry = advance(self.job, self.keys, self.carry, self.row, stop)
        return dataclasses.replace(self, carry=carry, row=stop)

    def end(self) -> tuple[Any, PyTree]:
        """(what the sampler makes of its present state, the record), on the devices and without a check."""
        with automatic_axes():
            return end_compiled(self.job, self.keys, self.carry), self.carry.record

    def finish(self) -> Any:
        """What `sample` returns, after the rows that are left; not checked for NaN."""
        going = self if self.done else self.advance()
        out, record = going.end()
        return out if self.job.observer is None else (out, record)

    def save(self, path: str | Path) -> None:
        """Writes state and place to a directory (orbax), whole or not at all; under jax.distributed all processes call.

        Weights and condition are not written: `restore` is called on a run that has them.
        """
        from diffsample import checkpoint  # imports orbax, which takes a second

        of, by = _identity(self.job), _letters(code(self.job))
        checkpoint.save(path, {"of": of, "code": by, "row": self.row, "carry": _on_host(self.carry)})

    def restore(self, path: str | Path) -> "Run":
        """The run saved at `path`, on the devices of this one: `start(...).restore(path)` with the same arguments.

        Raises:
            FileNotFoundError: nothing is saved there.
            ValueError: it is of another sampler, key, condition, shape or first sample.

        Warns:
            UserWarning: a function of the sampler was edited since, so that it computes something else.
        """
        from diffsample import checkpoint

        of, by, fresh = _identity(self.job), _letters(code(self.job)), _on_host(self.carry)
        try:
            found = checkpoint.restore(path, {"of": of, "code": by, "row": 0, "carry": fresh})
        except ValueError as error:
            raise ValueError(f"{path} holds a run of another sampler or shape: {error}") from error
        if found["of"].tolist() != of.tolist():
            raise ValueError(f"{path} holds a run of another sampler, key, condition or first sample; start(...) needs "
                             f"the arguments of the run that was saved")  # fmt: skip
        if found["code"].tolist() != by.tolist():
            warnings.warn(f"{path} was saved by other code: a function of the sampler computes something else now, and "
                          f"the run goes on with it", stacklevel=2)  # fmt: skip
        leaves, structure = jax.tree.flatten(self.carry)
        found_leaves = [_placed_as(value, leaf) for value, leaf in zip(found["carry"], leaves, strict=True)]
        return dataclasses.replace(self, carry=jax.tree.unflatten(structure, found_leaves), row=found["row"])


def begun(job: Job) -> Run:
    """A run before its first row."""
    keys, carry = begin_compiled(job)
    return Run(job, keys, carry, 0)


def _on_host(carry: Carry) -> list[np.ndarray]:
    return [whole(jax.random.key_data(leaf) if is_key(leaf) else leaf) for leaf in jax.tree.leaves(carry)]


def _placed_as(value: np.ndarray, like: Any) -> Any:
    """The array where `like` lies."""
    if not is_key(like):
        return spread(value, like.sharding)
    data = spread(value, jax.random.key_data(like).sharding)
    return jax.random.wrap_key_data(data, impl=str(jax.random.key_impl(like)))


def _identity(job: Job) -> np.ndarray:
    """Letters that tell apart what would continue differently."""
    of = (job.sampler, job.key, job.first, job.x, job.cond, job.observer)
    return _letters(f"{fingerprint(as_on_device(of))} {job.plan.shape} {job.plan.dtype}")


def _letters(text: str) -> np.ndarray:
    """A hash of a text, as an array that checkpoints take."""
    return np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
