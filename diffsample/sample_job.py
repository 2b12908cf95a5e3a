"""What a large job is: everything that decides its samples, any few of them alone, and how a disk remembers it."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.arguments import is_whole, positive
from diffsample.checking import title
from diffsample.denoiser import PyTree
from diffsample.identity import as_on_device, code, fingerprint
from diffsample.sampling import prepared

Given: TypeAlias = PyTree | Callable[[np.ndarray], PyTree]  # leaves [n, ...], or a function of numbers of samples
FEW = 64  # samples whose starts and conditions identify a function
CODE = "code"  # what the sampler's functions compute, in a description


class SampleJob(NamedTuple):
    """The arguments of `sample_many` that decide its samples."""

    key: Array
    sampler: Any
    n: int
    shape: tuple[int, ...] | None  # of one sample; None where states are given
    x: Given
    cond: Given
    first: int
    dtype: Any

    def arguments(self, start: int, size: int) -> dict[str, Any]:
        """Of `sample` for so many samples; behind the end of the job, with start and condition of the last again."""
        numbers = np.minimum(np.arange(start, start + size), self.n - 1)
        return {
            "shape": None if self.shape is None else (size, *self.shape),
            "x": self._x(numbers),
            "cond": _rows(self.cond, numbers, self.first),
            "first": self.first + start,
            "dtype": self.dtype,
        }

    def description(self, group: int) -> dict[str, Any]:
        """What must be equal for two runs to be of one job; one line each, for people too.

        Args:
            group: samples that belong together, 1 but for particles.
        """
        import diffsample

        device = jax.local_devices()[0]
        shapes = [f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}" for leaf in jax.tree.leaves(self.sampler)]
        return {
            "key": np.asarray(jax.random.key_data(self.key)).tolist(),
            "sampler": title(self.sampler),
            "parameters": fingerprint(as_on_device(self.sampler)),
            CODE: self._code(group),
            "leaves": shapes if len(shapes) <= FEW else [*shapes[:FEW], f"and {len(shapes) - FEW} more"],
            "start": self._print_of(self.x),
            "condition": self._print_of(self.cond),
            "n": self.n,
            "shape": None if self.shape is None else list(self.shape),
            "first": self.first,
            "versions": {"diffsample": diffsample.__version__, "jax": jax.__version__},
            "device": f"{device.platform} {device.device_kind}",
        }

    def _code(self, group: int) -> str:
        """Of the program for one group, so that chunk and devices play no part."""
        few = self.arguments(0, group)
        return code(prepared(self.key, self.sampler, record=None, check=False, sharding=None, **few))

    def _print_of(self, given: Given) -> str:
        few = _rows(given, np.arange(min(self.n, FEW)), self.first) if callable(given) else given
        return fingerprint(as_on_device(few))

    def _x(self, numbers: np.ndarray) -> Any:
        x = _rows(self.x, numbers, self.first)
        if x is not None and np.shape(x)[:1] != (len(numbers),):
            raise ValueError(f"x of {len(numbers)} numbers has shape {np.shape(x)}; it needs a row for each of them")
        return x


def checked(key: Array, sampler: Any, n: Any, shape: Any, x: Given, cond: Given, first: Any, dtype: Any) -> SampleJob:
    """The arguments of a job, looked at.

    Raises:
        ValueError, TypeError: bad input, named.
    """
    n = positive("n", n)
    if (shape is None) == (x is None):
        raise ValueError("give either the shape of one sample or x=initial states, not both or neither")
    if shape is not None and not (isinstance(shape, tuple | list) and all(map(is_whole, shape))):
        raise TypeError(f"shape must be the shape of one sample, a tuple of ints, got {shape!r}")
    if not is_whole(first) or first < 0 or first + n > 2**32:
        raise ValueError(f"first={first!r} must be a whole number, and the {n} samples from it on lie in the 2**32 "
                         f"numbers that keys are folded with")  # fmt: skip
    for name, given in (("x", x), ("cond", cond)):
        for path, leaf in [] if callable(given) else jax.tree.leaves_with_path(given):
            if np.shape(leaf)[:1] != (n,):
                raise ValueError(f"{name}{jax.tree_util.keystr(path)} has shape {np.shape(leaf)}; it needs a row for "
                                 f"each of the {n} samples, or give a function of their numbers")  # fmt: skip
    one = None if shape is None else tuple(int(size) for size in shape)
    return SampleJob(key, sampler, n, one, x, cond, int(first), dtype)


def _rows(given: Given, numbers: np.ndarray, first: int) -> Any:
    """Rows of all that is given that belong to some samples of the job."""
    if callable(given):
        return given(numbers + first)
    return jax.tree.map(lambda leaf: leaf[numbers] if isinstance(leaf, jax.Array) else np.asarray(leaf)[numbers], given)
