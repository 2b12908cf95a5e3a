"""A small bidirectional transformer over tokens in Flax NNX, cut at its last layer: a trunk and a head."""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax import Array


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)) (Vaswani et al. 2017, arXiv 1706.03762, normalised before)."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        zeros = nnx.initializers.zeros_init()
        self.heads = heads
        self.norm_attention = nnx.LayerNorm(width, rngs=rngs)
        self.qkv = nnx.Linear(width, 3 * width, use_bias=False, rngs=rngs)
        self.out = nnx.Linear(width, width, kernel_init=zeros, rngs=rngs)
        self.norm_mlp = nnx.LayerNorm(width, rngs=rngs)
        self.widen = nnx.Linear(width, 4 * width, rngs=rngs)
        self.narrow = nnx.Linear(4 * width, width, kernel_init=zeros, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """x [B, L, width] -> [B, L, width]."""
        qkv = rearrange(self.qkv(self.norm_attention(x)), "b l (three h c) -> three b l h c", three=3, h=self.heads)
        mixed = jax.nn.dot_product_attention(*qkv)
        x = x + self.out(rearrange(mixed, "b l h c -> b l (h c)"))
        return x + self.narrow(nnx.gelu(self.widen(self.norm_mlp(x))))


class TokenTransformer(nnx.Module):
    """Laws of all tokens given the observed ones and a label; token id `vocab` is the mask, label `classes` is none.

    Args:
        vocab: number of tokens. length: of the sequences. classes: number of labels.
        width: a multiple of heads. depth: blocks. heads: of the attention.
        rngs: parameter initialisation keys.

    >>> net = TokenTransformer(vocab=17, length=64, classes=10, width=8, depth=1, heads=2, rngs=nnx.Rngs(0))
    >>> net.head(net.trunk(jnp.full((2, 64), 17), jnp.array([3, 10]))[:, :5]).shape
    (2, 5, 17)
    """

    def __init__(
        self, vocab: int, length: int, classes: int, width: int, depth: int, heads: int, rngs: nnx.Rngs
    ) -> None:
        if width % heads:
            raise ValueError(f"width={width} must be a multiple of heads={heads}")
        small = nnx.initializers.normal(0.02)
        self.token = nnx.Embed(vocab + 1, width, embedding_init=small, rngs=rngs)
        self.label = nnx.Embed(classes + 1, width, embedding_init=small, rngs=rngs)
        self.position = nnx.Embed(length, width, embedding_init=small, rngs=rngs)
        self.blocks = nnx.List([Block(width, heads, rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.project = nnx.Linear(width, vocab, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)

    def trunk(self, x: Array, label: Array) -> Array:
        """Tokens int32 [B, L] and labels int32 [B] -> features [B, L, width]."""
        h = self.token(x) + self.position(jnp.arange(x.shape[1]))[None] + self.label(label)[:, None]
        for block in self.blocks:
            h = block(h)
        return h

    def head(self, h: Array) -> Array:
        """Features [B, k, width] -> float32 logits [B, k, vocab]."""
        return self.project(self.norm(h)).astype(jnp.float32)
