"""What tells samplers, keys and conditions apart on a disk: the same in every process."""

import hashlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffsample.denoiser import PyTree
from diffsample.placing import whole


def fingerprint(sampler: PyTree, seen: dict[int, bytes] | None = None) -> str:
    """Sixteen letters that tell samplers apart: all numbers of the tree and what its static parts print as.

    The same in every process, so that results on a disk can be told to be of this sampler. Not read is the code of
    functions, only their names.

    >>> fingerprint({"scale": 2.0}) == fingerprint({"scale": 2.0}), fingerprint({"scale": 2.0}) == fingerprint({})
    (True, False)
    """
    leaves, treedef = jax.tree.flatten(sampler)
    text = re.sub(r" at 0x[0-9a-f]+", "", str(treedef))  # functions print their place in memory
    found = hashlib.sha256(text.encode())
    for leaf in leaves:
        found.update(digest(leaf, seen))
    return found.hexdigest()[:16]


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
