"""The one decorator of the house: a frozen dataclass that is a JAX pytree.

Fields are leaves (what varies: traced, differentiated, swept) unless declared with `static()` (what shapes the
program: compared and hashed, a change compiles anew).
"""

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import jax

T = TypeVar("T")


def static(**options: Any) -> Any:
    """A dataclass field that shapes the program: hashable, compared by value, never traced."""
    return dataclasses.field(metadata={"static": True}, **options)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, static))
def pytree(cls: type[T]) -> type[T]:
    """Class decorator: frozen dataclass, registered with `jax.tree_util.register_dataclass`."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))
