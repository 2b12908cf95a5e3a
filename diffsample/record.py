"""Observers: user functions of the view, stacked at a stride or folded into one value, inside the compiled loop."""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.denoiser import PyTree
from diffsample.sampler import View
from diffsample.struct import pytree, static


class Observer(Protocol):
    """init before the loop, update after every row."""

    def init(self, view: View, rows: int) -> PyTree:
        """The record before the first row; `view` may be abstract."""
        ...

    def update(self, record: PyTree, view: View, row: Array) -> PyTree: ...


@pytree
class Stack(Observer):
    """Keep function(view) of every `every`-th row, the first included: leaves [ceil(n / every), ...].

    >>> import jax, diffsample as ds
    >>> process = ds.VariancePreserving()
    >>> toy = ds.exact.Gaussian(0.0, 0.25)
    >>> sampler = ds.solvers.linear(toy, ds.solvers.ddim(process, ds.times.uniform(process, 10)))
    >>> x, x0 = ds.sample(jax.random.key(0), sampler, (4, 3), record=ds.Stack(lambda view: view.x0, every=5))
    >>> x0.shape
    (2, 4, 3)
    """

    function: Callable[[View], PyTree] = static()
    every: int = static(default=1)

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"record must be a function of the view, got {self.function!r}")
        if not isinstance(self.every, int) or self.every < 1:
            raise ValueError(f"every={self.every!r} must be a whole number of at least 1")

    def init(self, view: View, rows: int) -> PyTree:
        shapes = jax.eval_shape(self.function, view)
        return jax.tree.map(lambda s: jnp.zeros((-(-rows // self.every), *s.shape), s.dtype), shapes)

    def update(self, record: PyTree, view: View, row: Array) -> PyTree:
        def write(record: PyTree) -> PyTree:
            return jax.tree.map(lambda r, v: r.at[row // self.every].set(v), record, self.function(view))

        if self.every == 1:
            return write(record)
        return jax.lax.cond(row % self.every == 0, write, lambda record: record, record)


@pytree
class Fold(Observer):
    """Carry one value: carry = function(carry, view) after every call, from `start`; memory O(1) in the steps."""

    function: Callable[[Any, View], PyTree] = static()
    start: PyTree

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"a Fold needs a function of (carry, view), got {self.function!r}")

    def init(self, view: View, rows: int) -> PyTree:
        return jax.tree.map(jnp.asarray, self.start)

    def update(self, record: PyTree, view: View, row: Array) -> PyTree:
        new = self.function(record, view)
        return jax.tree.map(lambda old, value: jnp.where(view.fresh, value, old), record, new)


def as_observer(record: Any) -> Observer | None:
    """None, an observer, or a function of the view, which is stacked at every row."""
    return record if record is None or hasattr(record, "update") else Stack(record)
