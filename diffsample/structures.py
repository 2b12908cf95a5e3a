"""Samplers that differ in numbers alone, brought together: one compiled program runs them side by side.

A sampler is a pytree whose leaves vary and whose structure shapes the program. Samplers of equal structure and equal
shapes of leaves are stacked leaf by leaf on a new axis and vmapped over; a leaf that is the same in all of them, such
as the weights of the network, is there once.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding

from diffsample.denoiser import PyTree
from diffsample.identity import digest, is_key
from diffsample.sampler import Sampler
from diffsample.sampling import sample
from diffsample.tableau import Tableau, alike


class Structure(NamedTuple):
    """Samplers of one structure."""

    treedef: Any
    members: list[int]  # their places in the sequence that was sorted
    columns: list[list[Any]]  # of each leaf the values, one a member
    shared: tuple[bool, ...]  # leaves that are the same in all members


def sort_by_structure(samplers: Sequence[Sampler]) -> list[Structure]:
    """The samplers in groups that share a compiled program, in the order of their first members.

    >>> import diffsample as ds
    >>> grid = ds.times.uniform(ds.VariancePreserving(), 4)
    >>> tables = [f(ds.VariancePreserving(), grid) for f in (ds.solvers.ddim, ds.solvers.heun, ds.solvers.euler)]
    >>> [s.members for s in sort_by_structure([ds.solvers.linear(ds.exact.Gaussian(0.0, 1.0), t) for t in tables])]
    [[0, 2], [1]]
    """
    groups: dict[Any, list[int]] = {}
    flat = [jax.tree.flatten(sampler) for sampler in samplers]
    for i, (leaves, treedef) in enumerate(flat):
        kinds = jax.eval_shape(lambda *leaves: leaves, *leaves)  # dtypes as on the device
        groups.setdefault((treedef, tuple((leaf.shape, str(leaf.dtype)) for leaf in kinds)), []).append(i)
    seen: dict[int, bytes] = {}
    found = []
    for (treedef, _), members in groups.items():
        columns = [list(column) for column in zip(*(flat[i][0] for i in members), strict=True)]
        shared = tuple(len({digest(leaf, seen) for leaf in column}) == 1 for column in columns)
        found.append(Structure(treedef, members, columns, shared))
    return found


def run_together(
    structure: Structure,
    members: Sequence[int],
    keys: Array,
    shape: tuple,
    cond: PyTree,
    first: int = 0,
    sharding: NamedSharding | None = None,
) -> Any:
    """What `sample` gives for some members of a structure, each with its own key: leaves get a leading axis.

    Args:
        structure: from `sort_by_structure`.
        members: positions in `structure.members`, which may repeat.
        keys: [len(members)] typed keys.
        shape, cond, first: as for `sample`, the same for all.
        sharding: of the new axis over devices, which must divide it; what is shared goes to all of them.

    Returns: results on the device, not checked for NaN.
    """
    leaves = [
        column[0] if same else _placed(_stacked([column[i] for i in members]), sharding)
        for column, same in zip(structure.columns, structure.shared, strict=True)
    ]
    keys = _placed(keys, sharding)
    return _program(structure.treedef, structure.shared, shape, leaves, keys, np.uint32(first), cond)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _program(treedef: Any, shared: tuple, shape: tuple, leaves: list, keys: Array, first: Any, cond: PyTree) -> Any:
    def one(leaves: list, key: Array) -> Any:
        return sample(key, jax.tree.unflatten(treedef, leaves), shape, cond=cond, first=first, check=False)

    return jax.vmap(one, ([None if same else 0 for same in shared], 0))(leaves, keys)


def compiled_programs() -> int:
    """Programs of `run_together` that this process has compiled so far."""
    program: Any = _program
    return program._cache_size()


def tables_alike(samplers: Sequence[Sampler]) -> list[Sampler]:
    """The samplers with all their tables padded to one shape, so that different solvers have one structure.

    Samples stay what they were; run together, each costs as many rows as the longest.

    Raises:
        ValueError: no sampler holds a table, or one holds rows of its own beside it, which stay as they are.
    """
    flat = [jax.tree.flatten(sampler, is_leaf=_is_table) for sampler in samplers]
    tables = [leaf for leaves, _ in flat for leaf in leaves if _is_table(leaf)]
    if not tables:
        raise ValueError("padding brings tables to one shape, and these samplers hold none: leave pad=False")
    padded = iter(alike(tables))
    together = [
        jax.tree.unflatten(treedef, [next(padded) if _is_table(leaf) else leaf for leaf in leaves])
        for leaves, treedef in flat
    ]
    for sampler in together:
        if not _rows_agree(sampler):
            raise ValueError(f"padding brings tables to one shape, and a {type(sampler).__name__} holds rows of its "
                             f"own beside its table, which stay as they are: leave pad=False")  # fmt: skip
    return together


def _rows_agree(sampler: Sampler) -> bool:
    """Whether all that a sampler scans over has as many rows as its table."""
    try:
        steps = jax.eval_shape(lambda sampler: sampler.steps, sampler)
    except (TypeError, ValueError):  # made of rows that do not fit each other
        return False
    return len({leaf.shape[0] for leaf in jax.tree.leaves(steps)}) == 1


def _stacked(leaves: list[Any]) -> Any:
    if is_key(leaves[0]):
        return jnp.stack(leaves)
    return np.stack([np.asarray(leaf) for leaf in leaves])  # on the host, where stacking compiles nothing


def _placed(array: Any, sharding: NamedSharding | None) -> Any:
    return array if sharding is None else jax.device_put(array, sharding)


def _is_table(node: Any) -> bool:
    return isinstance(node, Tableau)
