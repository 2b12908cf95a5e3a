"""Save and restore pytrees with orbax, for weights, sampler states and sweeps.

A checkpoint is a directory. It is written under a temporary name and renamed when complete, so that a run that is
killed leaves the old checkpoint or none, never half of one.
"""

import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from diffsample.placing import together

PyTree: TypeAlias = Any


def save(path: str | Path, tree: PyTree) -> None:
    """Writes a pytree of arrays, numbers and typed keys to the directory `path`; an existing checkpoint is replaced.

    Under jax.distributed all processes call it, with a directory that all of them see.

    Args:
        path: directory to write; its parents are made.
        tree: pytree with arrays (any dtype), Python numbers or typed PRNG keys as leaves. Arrays without elements are
            not written, and come back from `like`.

    Raises:
        FileExistsError: `path` exists and is not a checkpoint.

    Reference: orbax-checkpoint, https://orbax.readthedocs.io

    >>> import tempfile
    >>> save(tempfile.mkdtemp() + "/weights", {"w": jnp.ones(3)})
    """
    path = Path(path).absolute()
    if path.exists() and not _is_checkpoint(path):
        raise FileExistsError(f"{path} exists and is not a checkpoint; choose another path, nothing was written")
    path.parent.mkdir(parents=True, exist_ok=True)
    old, new = (path.with_name(f"{path.name}.{suffix}") for suffix in ("old", "new"))
    with _quiet(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(new, args=ocp.args.PyTreeSave(jax.tree.map(_storable, tree)), force=True)
    if jax.process_index() == 0:
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
        new.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    together(f"checkpoint {path}")


def restore(path: str | Path, like: PyTree = None) -> PyTree:
    """Reads the pytree at `path`.

    Args:
        path: directory written by `save`.
        like: a tree of the same structure, arrays or `jax.ShapeDtypeStruct`: gives the containers, dtypes and, where
            its leaves have one, the sharding. None: nested dicts and lists of NumPy arrays, whatever the devices.

    Returns: the tree; typed keys come back as keys with `like`, as their uint32 data without.

    Raises:
        FileNotFoundError: there is no checkpoint at `path`.
        ValueError: structure or shapes differ from those of `like`.

    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/weights"
    >>> save(path, {"w": jnp.ones(3)})
    >>> restore(path)["w"].sum()
    np.float32(3.0)
    """
    path = Path(path).absolute()
    if not _is_checkpoint(path):
        raise FileNotFoundError(f"no checkpoint at {path}" + ("" if path.exists() else " (it does not exist)"))
    with _quiet(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        saved = checkpointer.metadata(path).item_metadata.tree
        plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
        tree = checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=plain))
    return tree if like is None else _match(tree, like)


def _match(tree: PyTree, like: PyTree) -> PyTree:
    """Leaves of `tree` in the containers of `like`: both are compared by the names on the way to each leaf."""
    wanted, structure = jax.tree_util.tree_flatten_with_path(like)
    names = [_names(path) for path, _ in wanted]
    saved = {name: leaf for name, (_, leaf) in zip(names, wanted, strict=True) if getattr(leaf, "size", 1) == 0}
    saved |= {_names(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    if set(names) != set(saved):
        missing, extra = sorted(set(names) - set(saved)), sorted(set(saved) - set(names))
        raise ValueError(f"the checkpoint has another structure than `like`: lacks {missing}, has also {extra}")
    leaves = [_as(saved[name], leaf, name) for name, (_, leaf) in zip(names, wanted, strict=True)]
    return jax.tree.unflatten(structure, leaves)


def _names(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _as(value: Any, like: Any, name: str) -> Any:
    """`value` with the dtype, sharding and kind of `like`."""
    if isinstance(like, int | float):
        return type(like)(value)
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        value = jax.random.wrap_key_data(value, impl=str(jax.random.key_impl(like)))
    if value.shape != like.shape:
        raise ValueError(f"{name} has shape {value.shape} in the checkpoint and {like.shape} in `like`")
    if isinstance(like, np.ndarray | np.generic):
        return np.asarray(value, like.dtype)
    value = value if jnp.issubdtype(like.dtype, jax.dtypes.prng_key) else jnp.asarray(value, like.dtype)
    sharding = getattr(like, "sharding", None)
    return value if sharding is None else jax.device_put(value, sharding)


def _storable(leaf: Any) -> Any:
    """What orbax can hold: keys as integers, and None for an array without elements."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return None if getattr(leaf, "size", 1) == 0 else leaf


def _is_checkpoint(path: Path) -> bool:
    return (path / "_METADATA").is_file()


@contextmanager
def _quiet() -> Iterator[None]:
    """Orbax speaks of shardings and asynchronous threads that one local directory does not have."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
