"""The two networks of the benchmarks: one that costs nothing, and a small real one for each shape."""

import jax
import jax.numpy as jnp
from jax import Array


def trivial(params: Array, x: Array, t: Array, cond: None) -> Array:
    """eps = params * x: what is left is the sampler."""
    return params * x


def convnet(params: dict, x: Array, t: Array, cond: None) -> Array:
    """3x3 convolutions with a time embedding added in every layer; x [B, H, W, C]."""
    shifts = _embed(t) @ params["time"]
    for i, kernel in enumerate(params["layers"]):
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        if i + 1 < len(params["layers"]):
            x = jnp.tanh(x + shifts[:, None, None, :])
    return x


def mlp(params: dict, x: Array, t: Array, cond: None) -> Array:
    """Dense layers with a time embedding added in every layer; x [B, D]."""
    shifts = _embed(t) @ params["time"]
    for i, kernel in enumerate(params["layers"]):
        x = x @ kernel
        if i + 1 < len(params["layers"]):
            x = jnp.tanh(x + shifts)
    return x


def init(key: Array, channels: int, width: int, depth: int, window: tuple[int, ...] = ()) -> dict:
    """Weights of `depth` layers; window=(3, 3) for convolutions, () for dense layers."""
    sizes = [channels, *[width] * (depth - 1), channels]
    keys = jax.random.split(key, depth + 1)
    scale = [1 / jnp.sqrt(fan * jnp.prod(jnp.array(window or (1,)))) for fan in sizes[:-1]]
    layers = [
        s * jax.random.normal(k, (*window, a, b))
        for k, s, a, b in zip(keys[1:], scale, sizes[:-1], sizes[1:], strict=True)
    ]
    return {"time": jax.random.normal(keys[0], (16, width)) / 4, "layers": layers}


def _embed(t: Array) -> Array:
    angles = t[:, None] * 2.0 ** jnp.arange(8)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)
