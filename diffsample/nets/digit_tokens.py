"""A trained masked model of 8x8 digits as 64 tokens of 17 grey levels, shipped with the package.

The data are the 1797 real scans of scikit-learn's `load_digits` (Alpaydin and Kaynak 1998), grey levels 0..16, row by
row. The network is time-free, and conditional on the class or on none. Made by `python -m diffsample.training
digit-tokens`.
"""

from functools import lru_cache
from importlib import resources
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffsample.discrete.model import MaskedModel
from diffsample.nets.transformer import TokenTransformer

PyTree: TypeAlias = Any

LENGTH, VOCAB = 64, 17  # pixels, grey levels
MASK = VOCAB  # id of the mask
NULL = 10  # the label that means "no condition"


class DigitTokens(NamedTuple):
    """The shipped model, and how well it fits digits that were held out from its training."""

    params: PyTree
    bits: float  # any-order bound on the bits a token of held-out digits, given their class
    bits_training: float  # the same on the digits it was trained on


def net(rngs: nnx.Rngs) -> TokenTransformer:
    """The architecture, with fresh parameters."""
    return TokenTransformer(VOCAB, LENGTH, classes=NULL, width=80, depth=4, heads=4, rngs=rngs)


def features(params: PyTree, x: Array, t: None, cond: Array | None) -> Array:
    """Features [B, 64, width] of tokens x [B, 64] with masks; cond int32 [B] is the class or NULL, None is NULL."""
    label = jnp.full(x.shape[:1], NULL, jnp.int32) if cond is None else cond
    return nnx.merge(_blank()[0], params).trunk(x, label)


def head(params: PyTree, h: Array, positions: Array) -> Array:
    """Logits [B, k, 17]."""
    return nnx.merge(_blank()[0], params).head(h)


def model(params: PyTree | None = None) -> MaskedModel:
    """The network as a `MaskedModel`, conditional on int32 [B] classes 0..9 or `NULL`; the shipped one by default.

    >>> model().mask_id
    17
    """
    return MaskedModel(features, head, load().params if params is None else params, VOCAB, MASK)


@lru_cache(maxsize=1)
def load() -> DigitTokens:
    """The trained parameters, read once from the files of the package.

    >>> load().bits < 4.0875  # bits of a uniform grey level
    True
    """
    from diffsample import checkpoint

    with resources.as_file(resources.files("diffsample.nets") / "weights" / "digit_tokens") as path:
        tree = checkpoint.restore(path)
    state = jax.tree.map(lambda a: a, _blank()[1])
    nnx.replace_by_pure_dict(state, tree["net"])
    with jax.ensure_compile_time_eval():  # the cache must hold arrays even where the first call is inside a trace
        params = jax.tree.map(jnp.asarray, state)
    return DigitTokens(params, float(tree["bits"]), float(tree["bits_training"]))


def to_images(x: Array) -> Array:
    """Tokens [B, 64] as images [B, 8, 8, 1] in [-1, 1], the values of `diffsample.nets.digits`."""
    return (x.astype(jnp.float32) / 8 - 1).reshape(-1, 8, 8, 1)


def to_tokens(images: Array) -> Array:
    """Images [B, 8, 8, 1] in [-1, 1] as tokens int32 [B, 64].

    >>> to_tokens(to_images(jnp.arange(64)[None] % 17))[0, :3].tolist()
    [0, 1, 2]
    """
    return jnp.round((jnp.asarray(images) + 1) * 8).astype(jnp.int32).reshape(-1, LENGTH)


@lru_cache(maxsize=1)
def _blank() -> tuple[nnx.GraphDef, nnx.State]:
    """Structure and abstract parameters, computed without allocating them."""
    return nnx.split(nnx.eval_shape(lambda: net(nnx.Rngs(0))), nnx.Param)
