"""Training of the digits as tokens: `python -m diffsample.training digit-tokens`.

The loss is the any-order one: k uniform on 1 .. L, k positions masked at random, the mean over them of -log c(x_l).
Times L it bounds -log p(x), and equals the expected negative log-likelihood over orders (Ou et al. 2024, arXiv
2406.03736, eq. 3.5; Hoogeboom et al. 2022, arXiv 2110.02037). k is stratified over the batch.
"""

import math
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from diffsample.nets import digit_tokens
from diffsample.training import Data, drop_labels, fit

PyTree: TypeAlias = Any

HELD_OUT = 360


def mask_at_random(key: Array, x: Array) -> Array:
    """Masked positions bool [B, L]: k of each row, uniformly chosen; k stratified over 1 .. L by the row."""
    key_offset, key_order, key_rows = jax.random.split(key, 3)
    batch, length = x.shape
    spread = (jax.random.permutation(key_rows, batch) + jax.random.uniform(key_offset, ())) / batch
    k = jnp.floor(spread * length).astype(jnp.int32) + 1
    ranks = jnp.argsort(jnp.argsort(jax.random.uniform(key_order, x.shape), axis=1), axis=1)
    return ranks < k[:, None]


def token_loss(params: PyTree, x: Array, masked: Array, label: Array) -> Array:
    """Mean over the masked positions of -log c(x_l), a row: nats a token, [B]."""
    h = digit_tokens.features(params, jnp.where(masked, digit_tokens.MASK, x), None, label)
    log_p = jax.nn.log_softmax(digit_tokens.head(params, h, jnp.zeros(x.shape, jnp.int32)))
    loss = -jnp.take_along_axis(log_p, x[..., None], axis=-1)[..., 0]
    return jnp.sum(jnp.where(masked, loss, 0.0), axis=1) / jnp.sum(masked, axis=1)


def masked_loss(params: PyTree, key: Array, data: Data, batch: int = 64, dropout: float = 0.15) -> Array:
    """The any-order loss of one batch, the label dropped now and then."""
    key_index, key_mask, key_drop = jax.random.split(key, 3)
    index = jax.random.randint(key_index, (batch,), 0, data.labels.shape[0])
    x = digit_tokens.to_tokens(data.images[index])
    label = drop_labels(key_drop, data.labels[index], dropout)
    return jnp.mean(token_loss(params, x, mask_at_random(key_mask, x), label))


def bits_a_token(key: Array, params: PyTree, data: Data, repeats: int = 16) -> float:
    """The any-order bound on -log2 p(x | label) / L, averaged over the data and over masks."""

    @jax.jit
    def one(key: Array) -> Array:
        x = digit_tokens.to_tokens(data.images)
        return jnp.mean(token_loss(params, x, mask_at_random(key, x), data.labels))

    return float(np.mean([one(k) for k in jax.random.split(key, repeats)])) / math.log(2.0)


def train_digit_tokens(key: Array, steps: int, data: Data) -> PyTree:
    """Trains on all but 360 digits; returns the tree that `digit_tokens.load` reads."""
    key_split, key_net, key_fit, key_judge = jax.random.split(key, 4)
    order = jax.random.permutation(key_split, data.labels.shape[0])
    held, kept = (jax.tree.map(lambda a, i=i: a[i], data) for i in (order[:HELD_OUT], order[HELD_OUT:]))
    start = nnx.state(digit_tokens.net(nnx.Rngs(key_net)), nnx.Param)
    result = fit(key_fit, masked_loss, start, kept, steps)
    bits, bits_training = (bits_a_token(key_judge, result.params, part) for part in (held, kept))
    print(f"tokens: {bits:.3f} bits a token of {HELD_OUT} held-out digits, {bits_training:.3f} of the others")
    return {
        "net": jax.tree.map(np.asarray, nnx.to_pure_dict(result.params)),
        "bits": np.float32(bits),
        "bits_training": np.float32(bits_training),
    }
