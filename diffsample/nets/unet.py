"""A small conditional U-Net in Flax NNX for images whose side is even.

Two resolutions: residual blocks at full size, and residual blocks with self-attention at half size. Noise level and
class enter every block as a scale and a shift of its normalised features (FiLM). The raw network is F of the
preconditioned denoiser D(x; s) = c_skip x + c_out F(c_in x, c_noise) (Karras et al. 2022, arXiv 2206.00364, eq. 7).
"""

import math

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import nnx
from jax import Array


class ResidualBlock(nnx.Module):
    """x + conv(film(conv(x))), with the skip projected where the number of channels changes."""

    def __init__(self, channels_in: int, channels: int, embedding: int, rngs: nnx.Rngs):
        zeros = nnx.initializers.zeros_init()
        self.norm_in = nnx.GroupNorm(channels_in, num_groups=8, rngs=rngs)
        self.conv_in = nnx.Conv(channels_in, channels, (3, 3), rngs=rngs)
        self.film = nnx.Linear(embedding, 2 * channels, rngs=rngs)
        self.norm_out = nnx.GroupNorm(channels, num_groups=8, rngs=rngs)
        self.conv_out = nnx.Conv(channels, channels, (3, 3), kernel_init=zeros, rngs=rngs)
        self.skip = nnx.Linear(channels_in, channels, rngs=rngs) if channels_in != channels else None

    def __call__(self, x: Array, embedding: Array) -> Array:
        """x [B, H, W, channels_in], embedding [B, E] -> [B, H, W, channels]."""
        scale, shift = jnp.split(self.film(embedding)[:, None, None, :], 2, axis=-1)
        h = self.conv_in(nnx.silu(self.norm_in(x)))
        h = self.conv_out(nnx.silu(self.norm_out(h) * (1 + scale) + shift))
        return h + (x if self.skip is None else self.skip(x))


class SelfAttention(nnx.Module):
    """x + attention over all positions (Vaswani et al. 2017, arXiv 1706.03762)."""

    def __init__(self, channels: int, heads: int, rngs: nnx.Rngs):
        self.heads = heads
        self.norm = nnx.GroupNorm(channels, num_groups=8, rngs=rngs)
        self.qkv = nnx.Linear(channels, 3 * channels, use_bias=False, rngs=rngs)
        self.out = nnx.Linear(channels, channels, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """x [B, H, W, C] -> [B, H, W, C]."""
        qkv = self.qkv(self.norm(x))
        q, k, v = rearrange(qkv, "b h w (three heads c) -> three b (h w) heads c", three=3, heads=self.heads)
        h = jax.nn.dot_product_attention(q, k, v)
        return x + self.out(rearrange(h, "b (h w) heads c -> b h w (heads c)", h=x.shape[1]))


class Conditioning(nnx.Module):
    """Noise level and class -> one embedding, through Fourier features of c_noise and a table of classes."""

    def __init__(self, classes: int, features: int, rngs: nnx.Rngs):
        self.features = features
        self.label = nnx.Embed(classes + 1, features, rngs=rngs)  # the last row is the null class
        self.level = nnx.Linear(features, features, rngs=rngs)
        self.mix = nnx.Linear(features, features, rngs=rngs)

    def __call__(self, c_noise: Array, label: Array) -> Array:
        """c_noise float32 [B], label int32 [B] -> [B, features]."""
        frequencies = jnp.geomspace(0.5, 16.0, self.features // 2, dtype=jnp.float32)
        angles = c_noise[:, None] * frequencies[None, :]
        waves = math.sqrt(2.0) * jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
        return nnx.silu(self.mix(nnx.silu(self.level(waves) + self.label(label))))


class UNet(nnx.Module):
    """Class-conditional U-Net F(x, c_noise, label) at two resolutions, with label == classes as the null class.

    Args:
        shape: (H, W, C) of an image; H and W even.
        classes: number of classes; label `classes` means "no condition".
        width: channels at full resolution, a multiple of 8; half resolution has twice as many.
        rngs: parameter initialisation keys.

    Reference: Ronneberger et al. 2015, arXiv 1505.04597; conditioning as in Dhariwal and Nichol 2021, arXiv 2105.05233.

    >>> net = UNet((8, 8, 1), classes=10, width=8, rngs=nnx.Rngs(0))
    >>> net(jnp.zeros((2, 8, 8, 1)), jnp.float32(0.0), jnp.array([3, 10])).shape
    (2, 8, 8, 1)
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, width: int, rngs: nnx.Rngs):
        height, breadth, channels = shape
        if height % 2 or breadth % 2 or width % 8:
            raise ValueError(f"need an even image side and a width that is a multiple of 8, got {shape} and {width}")
        wide, embedding = 2 * width, 2 * width
        self.condition = Conditioning(classes, embedding, rngs)
        self.stem = nnx.Conv(channels, width, (3, 3), rngs=rngs)
        self.position = nnx.Param(jnp.zeros((height, breadth, width)))
        self.encode = ResidualBlock(width, width, embedding, rngs)
        self.down = nnx.Linear(4 * width, wide, rngs=rngs)
        self.middle_in = ResidualBlock(wide, wide, embedding, rngs)
        self.attend_in = SelfAttention(wide, 4, rngs)
        self.middle = ResidualBlock(wide, wide, embedding, rngs)
        self.attend_out = SelfAttention(wide, 4, rngs)
        self.middle_out = ResidualBlock(wide, wide, embedding, rngs)
        self.up = nnx.Linear(wide, 4 * width, rngs=rngs)
        self.decode = ResidualBlock(2 * width, width, embedding, rngs)
        self.norm = nnx.GroupNorm(width, num_groups=8, rngs=rngs)
        self.out = nnx.Conv(width, channels, (3, 3), kernel_init=nnx.initializers.zeros_init(), rngs=rngs)

    def __call__(self, x: Array, c_noise: Array, label: Array) -> Array:
        """F at a noise level.

        Args:
            x: [B, H, W, C] scaled noisy images c_in x; any float dtype, computed in the parameters' dtype or wider.
            c_noise: scalar or [B], ln(s) / 4 of the noise-to-signal ratio s.
            label: int32 scalar or [B]; `classes` is the null class.

        Returns: [B, H, W, C] in the dtype of x.
        """
        batch = x.shape[:1]
        level = jnp.broadcast_to(jnp.asarray(c_noise, jnp.float32), batch)
        embedding = self.condition(level, jnp.broadcast_to(jnp.asarray(label, jnp.int32), batch))
        position = repeat(self.position[...], "h w c -> b h w c", b=x.shape[0])
        fine = self.encode(self.stem(x) + position, embedding)
        h = self.down(rearrange(fine, "b (h i) (w j) c -> b h w (i j c)", i=2, j=2))
        h = self.attend_in(self.middle_in(h, embedding))
        h = self.attend_out(self.middle(h, embedding))
        h = self.up(self.middle_out(h, embedding))
        h = rearrange(h, "b h w (i j c) -> b (h i) (w j) c", i=2, j=2)
        h = self.decode(jnp.concatenate([h, fine], axis=-1), embedding)
        return self.out(nnx.silu(self.norm(h))).astype(x.dtype)
