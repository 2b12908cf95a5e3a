"""Counting compilations, so that tests, benchmarks and the command line can show that nothing compiles anew."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax

EVENT = "/jax/core/compile/backend_compile_duration"  # recorded once for every program handed to XLA

_open: list["Compiles"] = []


@dataclass(eq=False)
class Compiles:
    """Programs compiled so far inside a `count_compiles` block."""

    count: int = 0


@contextmanager
def count_compiles() -> Iterator[Compiles]:
    """Counts the programs that XLA compiles inside the block, in any thread; blocks may be nested.

    Every program counts, also the small ones of single operations outside `jit`.

    >>> import jax.numpy as jnp
    >>> double, x = jax.jit(lambda x: 2 * x), jnp.ones(7)
    >>> with count_compiles() as first:
    ...     _ = double(x)
    >>> with count_compiles() as second:
    ...     _ = double(x)
    >>> first.count, second.count
    (1, 0)
    """
    _listen()
    compiles = Compiles()
    _open.append(compiles)
    try:
        yield compiles
    finally:
        _open.remove(compiles)


@cache
def _listen() -> None:
    """Registers the one listener; it stays, and costs nothing while no block is open."""
    jax.monitoring.register_event_duration_secs_listener(_count)


def _count(event: str, duration_secs: float, **details: Any) -> None:
    if event == EVENT:
        for compiles in _open:
            compiles.count += 1
