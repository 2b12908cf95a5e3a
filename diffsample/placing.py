"""Where samples lie: the batch axis over the devices of a mesh; everything else where the user put it.

What is computed of a sample stays on the sample's device, since computation follows the arrays: a sampler that treats
samples apart runs without communication.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from diffsample.denoiser import PyTree

WITHIN = (
    "a mesh with explicit axes, whose sharding the compiler may not choose: call it outside jit, or make the mesh with "
    "axis_types=(jax.sharding.AxisType.Auto,)"
)


def auto(mesh: Any) -> Mesh:
    """The same devices with axes that the compiler may shard over, whatever kind of axes the mesh was made with."""
    return Mesh(mesh.devices, mesh.axis_names)


def batch_sharding(sharding: NamedSharding | str, batch: int) -> NamedSharding:
    """The sharding of a batch, on automatic axes.

    Raises:
        TypeError, ValueError: as `over_devices`; the devices do not divide the batch.
    """
    place = over_devices(sharding)
    parts = parts_of(place)
    if batch % parts:
        raise ValueError(f"a batch of {batch} does not divide over {parts} devices; draw a multiple and keep what is "
                         f"needed (sample i is the same in any batch), or use sample_many, which does so")  # fmt: skip
    return place


def over_devices(sharding: NamedSharding | str) -> NamedSharding:
    """The sharding of batches of any size, on automatic axes.

    Args:
        sharding: `NamedSharding(mesh, PartitionSpec(axis))`, or the name of an axis of the mesh set by `jax.set_mesh`.

    Raises:
        TypeError: neither of the two.
        ValueError: no such axis; the first axis is not sharded.
    """
    if isinstance(sharding, str):
        mesh = jax.sharding.get_mesh()
        if sharding not in mesh.axis_names:
            raise ValueError(f"sharding={sharding!r} is no axis of the mesh in use, which has {mesh.axis_names}: give "
                             f"a NamedSharding, or call under jax.set_mesh(mesh)")  # fmt: skip
        sharding = NamedSharding(mesh, PartitionSpec(sharding))
    if not isinstance(sharding, NamedSharding):
        raise TypeError(f"sharding must be NamedSharding(mesh, PartitionSpec(axis)) or the name of a mesh axis, got "
                        f"{sharding!r}")  # fmt: skip
    if not sharding.spec or sharding.spec[0] is None:
        raise ValueError(f"{sharding.spec} leaves the batch axis whole; name a mesh axis for it first")
    return NamedSharding(auto(sharding.mesh), sharding.spec)


def parts_of(sharding: NamedSharding) -> int:
    """Into how many parts the batch is cut."""
    names = sharding.spec[0]
    return math.prod(sharding.mesh.shape[name] for name in (names if isinstance(names, tuple) else (names,)))


def of_leading_axis(place: NamedSharding | None) -> NamedSharding | None:
    """The sharding of what has the batch axis and no other of x's."""
    return None if place is None else NamedSharding(place.mesh, PartitionSpec(place.spec[0]))


def constrained(tree: PyTree, place: NamedSharding | None) -> PyTree:
    """Arrays that lie as said, inside a compiled program."""
    return tree if place is None else jax.lax.with_sharding_constraint(tree, place)


def spread(tree: PyTree, place: Any) -> PyTree:
    """Arrays put where said; values that every process holds whole are cut without communication."""

    def put(leaf: Any) -> Any:
        if isinstance(leaf, Tracer) or place is None or place.is_fully_addressable:
            return jax.device_put(leaf, place)
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jax.device_put(leaf, place)
        value = np.asarray(leaf)
        return jax.make_array_from_callback(value.shape, place, lambda index: value[index])

    return tree if place is None else jax.tree.map(put, tree)


def everywhere(tree: PyTree, place: NamedSharding) -> PyTree:
    """Arrays of one device on all devices of the mesh; those that lie on the mesh already stay as they are."""
    devices, whole_array = place.device_set, NamedSharding(place.mesh, PartitionSpec())

    def needs(leaf: Any) -> bool:
        return not isinstance(leaf, Tracer) and isinstance(leaf, jax.Array) and leaf.sharding.device_set != devices

    def put(leaf: Any) -> Any:
        if not needs(leaf):
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) and not place.is_fully_addressable:
            data = spread(jax.random.key_data(leaf), whole_array)
            return jax.random.wrap_key_data(data, impl=str(jax.random.key_impl(leaf)))
        return spread(leaf, whole_array)

    return jax.tree.map(put, tree)


def settled(tree: PyTree) -> PyTree:
    """The same arrays; those of a mesh with explicit axes on the same mesh with automatic ones, where they lie."""

    def settle(leaf: Any) -> Any:
        if not _explicit(leaf):
            return leaf
        if isinstance(leaf, Tracer):
            raise ValueError(f"sample was called inside jit on arrays of {WITHIN}")
        return jax.device_put(leaf, NamedSharding(auto(leaf.sharding.mesh), leaf.sharding.spec))

    return jax.tree.map(settle, tree) if any(map(_explicit, jax.tree.leaves(tree))) else tree


@contextmanager
def automatic_axes() -> Iterator[None]:
    """Inside, the mesh set by `jax.set_mesh` has automatic axes."""
    if AxisType.Explicit not in jax.sharding.get_abstract_mesh().axis_types:
        yield
        return
    try:
        mesh = jax.sharding.get_mesh()
    except ValueError as error:
        raise ValueError(f"sample was called inside jit under {WITHIN}") from error
    with jax.set_mesh(auto(mesh)):
        yield


def on_mesh(tree: PyTree, like: Any) -> PyTree:
    """Results on the user's own mesh, `like` an array or a sharding of it, so that they meet his arrays again."""
    mesh = getattr(getattr(like, "sharding", like), "mesh", None)
    if not isinstance(mesh, Mesh) or AxisType.Explicit not in mesh.axis_types:
        return tree

    def back(leaf: Any) -> Any:
        own = getattr(leaf, "sharding", None)
        return jax.device_put(leaf, NamedSharding(mesh, own.spec)) if isinstance(own, NamedSharding) else leaf

    return jax.tree.map(back, tree)


def whole(tree: PyTree) -> PyTree:
    """NumPy arrays of everything, on every process, from arrays that lie over devices and processes."""

    def fetch(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(leaf)

    return jax.tree.map(fetch, tree)


def together(label: str) -> None:
    """Waits until all processes of jax.distributed are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(label)


def _explicit(leaf: Any) -> bool:
    sharding = jax.typeof(leaf).sharding if isinstance(leaf, Tracer) else getattr(leaf, "sharding", None)
    return isinstance(sharding, NamedSharding) and AxisType.Explicit in sharding.mesh.axis_types
