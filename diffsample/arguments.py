"""What public functions are given alike, checked at their doors: keys, conditions, dtypes, states, whole numbers."""

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffsample.denoiser import PyTree


def check_key(key: Any) -> None:
    """Raise TypeError or ValueError unless this is one typed key that draws alike in every batch."""
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        raise TypeError(f"key must be a typed key, jax.random.key(seed); got {type(key).__name__}"
                        f"{f' of dtype {key.dtype}' if hasattr(key, 'dtype') else ''}")  # fmt: skip
    if key.ndim:
        raise ValueError(f"key must be one key, got an array of {key.shape}; sample i gets its own by fold_in")
    if str(jax.random.key_impl(key)) != "threefry2x32":
        raise ValueError(f"key implementation {jax.random.key_impl(key)} draws differently in different batches under "
                         f"vmap; use jax.random.key(seed, impl='threefry2x32')")  # fmt: skip


def check_cond(cond: PyTree, batch: int) -> None:
    """Raise ValueError unless every leaf of the condition has the batch axis first."""
    for path, leaf in jax.tree.leaves_with_path(cond):
        shape = jnp.shape(leaf)
        if not shape or shape[0] != batch:
            raise ValueError(f"cond{jax.tree_util.keystr(path)} has shape {shape}; every leaf of the condition needs "
                             f"the batch axis first, here {batch}")  # fmt: skip


def check_dtype(dtype: Any) -> Any:
    """A dtype that this process can compute in; 64 bits need jax_enable_x64."""
    dtype = jnp.dtype(dtype)
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(f"dtype={dtype} needs jax.config.update('jax_enable_x64', True) before it is used")
    return dtype


def as_states(x: Any, name: str = "x") -> Any:
    """States [B, ...] as they are; NumPy's float64 becomes JAX's float, as everywhere in JAX.

    Raises:
        TypeError: not an array with a batch axis.
        ValueError: an empty axis.
    """
    if not hasattr(x, "dtype") or not x.ndim:
        raise TypeError(f"{name} must be an array [batch, ...], got {x!r}")
    if 0 in x.shape:
        raise ValueError(f"{name} of shape {x.shape} has an empty axis")
    return x if isinstance(x, jax.Array) else x.astype(jax.dtypes.canonicalize_dtype(x.dtype), copy=False)


def sample_number(first: Any) -> Any:
    """The number of a sample as uint32: an int, or a traced one.

    Raises:
        TypeError: not a whole number.
        ValueError: outside 0 to 2^32 - 1.
    """
    if isinstance(first, jax.Array) and jnp.issubdtype(first.dtype, jnp.integer):
        return first.astype(jnp.uint32)
    try:
        number = operator.index(first)
    except TypeError:
        raise TypeError(f"first={first!r} must be a whole number, that of the first sample") from None
    if not 0 <= number < 2**32:
        raise ValueError(f"first={number} must lie in 0 to 2^32 - 1; for more samples take another key")
    return np.uint32(number)  # of an int, jnp's is an eager operation


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number.

    >>> is_whole(3), is_whole(np.int64(3)), is_whole(3.0), is_whole(True)
    (True, True, False, False)
    """
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def positive(name: str, value: Any) -> int:
    """A whole number of at least 1.

    Raises:
        ValueError: it is none.

    >>> positive("n", np.int64(3))
    3
    """
    if not is_whole(value) or value < 1:
        raise ValueError(f"{name}={value!r} must be a whole number of at least 1")
    return int(value)
