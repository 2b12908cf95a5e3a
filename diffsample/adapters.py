"""Other people's models as a `Network`: bare callables, Flax NNX, Flax Linen and Equinox-style modules.

Each adapter splits a model into a hashable function (static) and its arrays (leaves), so that new weights of the same
shapes never compile anew. `call(model, x, time, cond)` says how the model is called; the default passes the condition
only where there is one. All other keyword arguments are those of `Network`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypedDict, Unpack

import jax
import numpy as np
from jax import Array

from diffsample.denoiser import Network, PyTree
from diffsample.process import Level, Process


class Options(TypedDict, total=False):
    """The keyword arguments of `Network` beside apply and params."""

    predicts: str
    time: Callable[[Level], Array] | None
    process: Process | None
    sigma_data: Any
    dtype: Any


def call_model(model: Callable[..., Array], x: Array, time: Array, cond: PyTree) -> Array:
    """model(x, time), or model(x, time, cond) where there is a condition."""
    return model(x, time) if cond is None else model(x, time, cond)


def from_callable(function: Callable[..., Array], **options: Unpack[Options]) -> Network:
    """A network from a plain function of (x, time) or (x, time, cond).

    Arrays that the function closes over become constants of the compiled program; pass weights with
    `Network(apply, params)` instead.

    >>> import diffsample as ds
    >>> ds.from_callable(lambda x, t: 0 * x, predicts="data").predicts
    'data'
    """
    return Network(_Bare(function), (), **options)


def from_nnx(module: Any, call: Callable[..., Array] = call_model, **options: Unpack[Options]) -> Network:
    """A network from a Flax NNX module, in the mode (`module.eval()`) that it is in."""
    from flax import nnx

    graphdef, params = nnx.split(module)
    return Network(_NNX(graphdef, call), params, **options)


def from_linen(
    module: Any, variables: PyTree, call: Callable[..., Array] = call_model, **options: Unpack[Options]
) -> Network:
    """A network from a Flax Linen module and its variables; `call` receives the bound `module.apply`."""
    if not hasattr(module, "apply"):
        raise TypeError(f"from_linen needs an unbound Linen module, got {type(module).__name__}")
    return Network(_Linen(module, call), variables, **options)


def from_equinox(
    model: Any, call: Callable[..., Array] = call_model, *, batched: bool = False, **options: Unpack[Options]
) -> Network:
    """A network from any callable pytree (an Equinox module); `batched=False` maps it over the batch axis."""
    leaves, treedef = jax.tree.flatten(model)
    is_array = [isinstance(leaf, (jax.Array, np.ndarray)) for leaf in leaves]
    fixed = tuple(None if array else leaf for leaf, array in zip(leaves, is_array, strict=True))
    params = tuple(leaf if array else None for leaf, array in zip(leaves, is_array, strict=True))
    return Network(_Pytree(treedef, fixed, call, batched), params, **options)


@dataclasses.dataclass(frozen=True)
class _Bare:
    function: Callable[..., Array]

    def __call__(self, params: PyTree, x: Array, time: Array, cond: PyTree) -> Array:
        return call_model(self.function, x, time, cond)


@dataclasses.dataclass(frozen=True)
class _NNX:
    graphdef: Any
    call: Callable[..., Array]

    def __call__(self, params: PyTree, x: Array, time: Array, cond: PyTree) -> Array:
        from flax import nnx

        return self.call(nnx.merge(self.graphdef, params), x, time, cond)


@dataclasses.dataclass(frozen=True)
class _Linen:
    module: Any
    call: Callable[..., Array]

    def __call__(self, params: PyTree, x: Array, time: Array, cond: PyTree) -> Array:
        return self.call(lambda *inputs: self.module.apply(params, *inputs), x, time, cond)


@dataclasses.dataclass(frozen=True)
class _Pytree:
    treedef: Any
    fixed: tuple[Any, ...]
    call: Callable[..., Array]
    batched: bool

    def __call__(self, params: PyTree, x: Array, time: Array, cond: PyTree) -> Array:
        leaves = [p if p is not None else f for p, f in zip(params, self.fixed, strict=True)]
        model = jax.tree.unflatten(self.treedef, leaves)
        if self.batched:
            return self.call(model, x, time, cond)
        return jax.vmap(lambda *inputs: self.call(model, *inputs))(x, time, cond)
