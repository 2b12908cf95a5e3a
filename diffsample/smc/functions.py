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

    >>> as_pytree(abs)
    Plain(function=<built-in function abs>)
    """
    return Plain(value) if jax.tree.leaves(value) == [value] else value
