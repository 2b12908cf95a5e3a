"""What tells samplers, keys, conditions and code apart on a disk: the same in every process."""

import dataclasses
import enum
import hashlib
import itertools
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from diffsample.denoiser import PyTree
from diffsample.loop import Job, run_traced
from diffsample.placing import automatic_axes, whole


def fingerprint(sampler: PyTree, seen: dict[int, bytes] | None = None) -> str:
    """Sixteen letters that tell samplers apart: all numbers of the tree and what its static parts print as.

    The same in every process, so that results on a disk can be told to be of this sampler. Not read is the code of
    functions, only their names; that is `program`'s part.

    >>> fingerprint({"scale": 2.0}) == fingerprint({"scale": 2.0}), fingerprint({"scale": 2.0}) == fingerprint({})
    (True, False)
    """
    leaves, treedef = jax.tree.flatten(sampler)
    found = hashlib.sha256(printed(treedef).encode())
    for leaf in leaves:
        found.update(digest(leaf, seen))
    return found.hexdigest()[:16]


def printed(thing: Any) -> str:
    """What it prints as, without the places in memory that functions print."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(thing))


def program(jaxpr: ClosedJaxpr) -> str:
    """Sixteen letters that tell programs apart: what is computed, in order, with all constants that code brought in.

    The same in every process, and wherever arrays lie. An edited function gives others, if it computes something else;
    not read is what runs on the host in a callback.

    >>> one, other = (jax.make_jaxpr(lambda x, c=c: c * x)(1.0) for c in (2.0, 3.0))
    >>> program(one) == program(one), program(one) == program(other)
    (True, False)
    """
    return _read(jaxpr, {}).hex()[:16]


def code(job: Job) -> str:
    """`program` of a whole run, wherever it lies."""
    return code_of(run_traced, dataclasses.replace(job, plan=job.plan._replace(place=None)))


def code_of(function: Callable[..., Any], *arguments: PyTree) -> str:
    """`program` of a function of arrays, wherever they lie; a function of a module, so that it is traced once."""
    leaves, treedef = jax.tree.flatten(arguments)
    kinds = [jax.typeof(leaf) for leaf in leaves]
    plain = [jax.ShapeDtypeStruct(kind.shape, kind.dtype, weak_type=kind.weak_type) for kind in kinds]
    with automatic_axes():
        return program(_of_leaves.trace(function, treedef, plain).jaxpr)


@partial(jax.jit, static_argnums=(0, 1))
def _of_leaves(function: Callable[..., Any], treedef: Any, leaves: list) -> Any:
    return function(*jax.tree.unflatten(treedef, leaves))


def digest(leaf: Any, seen: dict[int, bytes] | None = None) -> bytes:
    """Hash of one leaf's dtype, shape and values; `seen` remembers those of objects that are still alive."""
    if seen is not None and id(leaf) in seen:
        return seen[id(leaf)]
    array = np.ascontiguousarray(whole(jax.random.key_data(leaf) if is_key(leaf) else leaf))
    found = hashlib.sha256(f"{array.dtype}{np.shape(leaf)}".encode() + array.tobytes()).digest()
    if seen is not None:
        seen[id(leaf)] = found
    return found


def as_on_device(tree: PyTree) -> PyTree:
    """The leaves on the host in the dtypes that JAX would give them, so that NumPy's and JAX's arrays are the same."""

    def convert(leaf: Any) -> Any:
        leaf = jax.random.key_data(leaf) if is_key(leaf) else leaf
        return np.asarray(whole(leaf), jnp.result_type(leaf))

    return jax.tree.map(convert, tree)


def is_key(leaf: Any) -> bool:
    """Whether a leaf is an array of typed keys."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _read(value: Any, seen: dict[int, bytes]) -> bytes:
    """Hash of a value inside a program; `seen` remembers inner programs, which are often the same."""
    if isinstance(value, Jaxpr):
        if id(value) not in seen:  # from jax 0.12 on it holds its constants, and is its own ClosedJaxpr
            seen[id(value)] = _sum(*_lines(value, seen), *map(digest, getattr(value, "consts", ())))
        return seen[id(value)]
    if isinstance(value, ClosedJaxpr):
        return _sum(_read(value.jaxpr, seen), *map(digest, value.consts))
    if isinstance(value, tuple | list):
        return _sum(*(_read(part, seen) for part in value))
    if isinstance(value, np.ndarray | jax.Array):
        return digest(value)
    plain = str | bool | int | float | complex | np.generic | np.dtype | enum.Enum | None
    return repr(value).encode() if isinstance(value, plain) else b""  # where things lie, and functions, are not read


def _lines(jaxpr: Jaxpr, seen: dict[int, bytes]) -> Iterator[bytes]:
    """The equations of a program, variables by their number.

    Whether a type is weak is not read, nor what changes this alone: arrays of several processes have no weak types.
    """
    numbers = map(str, itertools.count())
    names = dict(zip([*jaxpr.constvars, *jaxpr.invars], numbers, strict=False))

    def name(variable: Any) -> str:
        return str(np.asarray(variable.val).tolist()) if isinstance(variable, Literal) else names[variable]

    def typed(variable: Any) -> str:
        return f"{name(variable)} {_dtype(variable)}{getattr(variable.aval, 'shape', '')}"

    for equation in jaxpr.eqns:
        operation, given, made = equation.primitive.name, equation.invars, equation.outvars
        if operation == "convert_element_type" and _dtype(given[0]) == _dtype(made[0]):
            names[made[0]] = name(given[0])
            continue
        names |= zip(made, numbers, strict=False)
        yield " ".join([operation, *map(typed, given), "to", *map(typed, made)]).encode()
        labels = sorted(set(equation.params) - {"weak_type"})
        yield from (label.encode() + _read(equation.params[label], seen) for label in labels)
    yield " ".join(map(typed, jaxpr.outvars)).encode()


def _dtype(variable: Any) -> str:
    return str(getattr(variable.aval, "dtype", ""))


def _sum(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()
