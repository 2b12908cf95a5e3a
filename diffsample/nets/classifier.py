"""A small convolutional classifier in Flax NNX, for rewards, guidance and for scoring conditional samples."""

import jax.numpy as jnp
from flax import nnx
from jax import Array


class Classifier(nnx.Module):
    """Three convolutions, one halving of the resolution, average pooling and a linear head.

    Args:
        shape: (H, W, C) of an image.
        classes: number of classes.
        width: channels of the first convolution, a multiple of 8; twice as many after the halving.
        rngs: parameter initialisation keys.

    >>> net = Classifier((8, 8, 1), classes=10, width=8, rngs=nnx.Rngs(0))
    >>> net(jnp.zeros((2, 8, 8, 1))).shape
    (2, 10)
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, width: int, rngs: nnx.Rngs):
        height, breadth, channels = shape
        self.stem = nnx.Conv(channels, width, (3, 3), rngs=rngs)
        self.norm_in = nnx.GroupNorm(width, num_groups=8, rngs=rngs)
        self.halve = nnx.Conv(width, 2 * width, (3, 3), strides=(2, 2), rngs=rngs)
        self.norm_out = nnx.GroupNorm(2 * width, num_groups=8, rngs=rngs)
        self.squeeze = nnx.Conv(2 * width, width, (3, 3), rngs=rngs)
        self.head = nnx.Linear(-(-height // 2) * -(-breadth // 2) * width, classes, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """x [B, H, W, C] clean images -> float32 logits [B, classes], differentiable in x."""
        h = nnx.silu(self.norm_in(self.stem(x)))
        h = nnx.silu(self.norm_out(self.halve(h)))
        h = nnx.silu(self.squeeze(h))
        return self.head(h.reshape(h.shape[0], -1)).astype(jnp.float32)
