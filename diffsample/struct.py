"""The one decorator of the house: a frozen dataclass that is a JAX pytree.

Fields are leaves (what varies: traced, differentiated, swept) unless declared with `static()` (what shapes the
program: compared and hashed, a change compiles anew).

Not by `jax.tree_util.register_dataclass`: up to jax 0.10 at least, tree structures of two such classes with as many
fields are equal, so that `jax.jit` now and then, and `equinox.filter_jit` always, runs the program of another class.
"""

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import jax
from jax.tree_util import GetAttrKey

T = TypeVar("T")


def static(**options: Any) -> Any:
    """A dataclass field that shapes the program: hashable, compared by value, never traced."""
    return dataclasses.field(metadata={"static": True}, **options)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, static))
def pytree(cls: type[T]) -> type[T]:
    """Class decorator: frozen dataclass, registered as a pytree whose structure knows its class."""
    kind: Any = dataclasses.dataclass(frozen=True)(cls)
    leaves, fixed = ([f.name for f in dataclasses.fields(kind) if bool(f.metadata.get("static")) == is_static]
                     for is_static in (False, True))  # fmt: skip
    keys = [GetAttrKey(name) for name in leaves]

    def flatten(tree: Any) -> tuple[list[Any], tuple[Any, ...]]:
        return [getattr(tree, name) for name in leaves], tuple(getattr(tree, name) for name in fixed)

    def flatten_with_keys(tree: Any) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
        children, values = flatten(tree)
        return list(zip(keys, children, strict=True)), values

    def unflatten(values: tuple[Any, ...], children: Any) -> Any:
        return kind(**dict(zip(leaves, children, strict=True)), **dict(zip(fixed, values, strict=True)))

    jax.tree_util.register_pytree_with_keys(kind, flatten_with_keys, unflatten, flatten)
    return kind
