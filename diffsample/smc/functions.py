"""Plain functions among pytrees: a function shapes the program, so it is static; an object with leaves stays itself."""

from collections.abc import Callable
from typing import Any

import jax

from diffsample.struct import pytree, static


@pytree
class Plain:
    """A function as a pytree without leaves; equal functions share one program."""

    function: Callable[..., Any] = static()

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)


def as_pytree(value: Any) -> Any:
    """A function wrapped as static, or the pytree itself.

    Raises:
        TypeError: neither.

    >>> as_pytree(abs)
    Plain(function=<built-in function abs>)
    """
    leaves = jax.tree.leaves(value)
    if len(leaves) != 1 or leaves[0] is not value:
        return value
    if not callable(value):
        raise TypeError(f"expected a function, or a pytree that can be called, got {value!r}")
    return Plain(value)
