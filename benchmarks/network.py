"""What diffsample adds to a diffusion transformer in bfloat16: time a call, compiling, memory; against the bare calls.

    python benchmarks/network.py [--quick]

On a GPU or TPU the network has the size of DiT-XL/2 (Peebles & Xie 2023, arXiv 2212.09748, table 1: 28 blocks of width
1152, 16 heads, 256 tokens of 2 x 2 x 4), with random weights; on a CPU a small one runs through the same code.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import handwritten
import jax
import jax.numpy as jnp
import overhead
from jax import Array
from ratios import Ratio, shown

import diffsample as ds
from diffsample import solvers

PROCESS = ds.VariancePreserving()
KEY = jax.random.key(0)
PATCH, CHANNELS = 2, 4


class Size(NamedTuple):
    depth: int
    width: int
    heads: int
    side: int  # of the latent image
    batch: int
    steps: int


XL, SMALL = Size(28, 1152, 16, 32, 8, 50), Size(2, 64, 4, 8, 2, 50)


def weights(size: Size, dtype: Any = jnp.bfloat16) -> dict[str, Any]:
    """Random weights, those of the blocks stacked on a leading axis."""
    n, d, patch = size.depth, size.width, PATCH * PATCH * CHANNELS
    shapes = {
        "embed": (patch, d),
        "place": ((size.side // PATCH) ** 2, d),
        "time": (64, d),
        "out": (d, patch),
        "blocks": {
            "modulate": (n, d, 6 * d),
            "qkv": (n, d, 3 * d),
            "project": (n, d, d),
            "up": (n, d, 4 * d),
            "down": (n, 4 * d, d),
        },
    }
    leaves, treedef = jax.tree.flatten(shapes, is_leaf=lambda shape: isinstance(shape, tuple))
    keys = jax.random.split(KEY, len(leaves))
    drawn = [jax.random.normal(k, s, dtype) / s[-2] ** 0.5 for k, s in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(treedef, drawn)


def transformer(heads: int, params: dict[str, Any], x: Array, t: Array, cond: None) -> Array:
    """DiT with adaptive layer norms, x [B, H, W, 4] -> the same; the blocks are scanned over."""
    dtype, (b, side, _, _) = params["embed"].dtype, x.shape
    cells = x.astype(dtype).reshape(b, side // PATCH, PATCH, side // PATCH, PATCH, CHANNELS)
    tokens = cells.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, PATCH * PATCH * CHANNELS)
    angles = t[:, None] * 2.0 ** jnp.arange(32)
    time_code = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1).astype(dtype) @ params["time"]
    h = tokens @ params["embed"] + params["place"][None]
    h, _ = jax.lax.scan(lambda h, block: (_block(heads, h, jax.nn.silu(time_code), block), None), h, params["blocks"])
    patches = (_norm(h) @ params["out"]).reshape(b, side // PATCH, side // PATCH, PATCH, PATCH, CHANNELS)
    return patches.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape).astype(x.dtype)


def _block(heads: int, h: Array, time_code: Array, block: dict[str, Array]) -> Array:
    shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split((time_code @ block["modulate"])[:, None], 6, axis=-1)
    q, k, v = jnp.split((_norm(h) * (1 + scale1) + shift1) @ block["qkv"], 3, axis=-1)
    split = (*h.shape[:2], heads, h.shape[2] // heads)
    mixed = jax.nn.dot_product_attention(q.reshape(split), k.reshape(split), v.reshape(split)).reshape(h.shape)
    h = h + gate1 * (mixed @ block["project"])
    return h + gate2 * (jax.nn.gelu((_norm(h) * (1 + scale2) + shift2) @ block["up"]) @ block["down"])


def _norm(h: Array) -> Array:
    wide = h.astype(jnp.float32)
    spread = jnp.sqrt(jnp.var(wide, axis=-1, keepdims=True) + 1e-6)
    return ((wide - wide.mean(axis=-1, keepdims=True)) / spread).astype(h.dtype)


def rows(quick: bool) -> Iterator[Ratio]:
    """Prints the size, and gives the ratios."""
    size = SMALL if jax.default_backend() == "cpu" else XL
    if quick:
        size = size._replace(steps=10)
    params, apply = weights(size), partial(transformer, size.heads)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, load {os.getloadavg()[0]:.1f}\n"
          f"transformer of {count / 1e6:.1f} M weights in bfloat16, {size}", flush=True)  # fmt: skip
    x = jax.random.normal(KEY, (size.batch, size.side, size.side, CHANNELS))
    yield from _times(apply, params, x, size.steps, 2 if quick else 10)
    yield from _compiling(apply, params, x, size.steps)


def _samplers(apply: Callable, params: Any, steps: int) -> dict[str, Any]:
    network = ds.Network(apply, params, predicts="noise", dtype=jnp.bfloat16)
    grid = ds.times.uniform(PROCESS, steps)
    tables = {
        "ddim": solvers.ddim(PROCESS, grid),
        "dpmpp": solvers.dpmpp(PROCESS, grid),
        "unipc(order=3)": solvers.unipc(PROCESS, grid, order=3),
        "ddpm": solvers.ddpm(PROCESS, grid),
    }
    return {name: jax.tree.map(jnp.asarray, solvers.linear(network, table)) for name, table in tables.items()}


def _times(apply: Callable, params: Any, x: Array, steps: int, repeats: int) -> Iterator[Ratio]:
    columns = handwritten.columns(ds.times.uniform(PROCESS, steps))
    drawn, samplers = jnp.ones(steps, bool), _samplers(apply, params, steps)
    runs: dict[str, Callable[[], Any]] = {
        "bare calls": lambda: handwritten.bare(apply, params, x, columns),
        "bare calls and draws": lambda: handwritten.bare_and_draws(apply, params, x, columns, KEY, drawn),
    }
    for name, sampler in samplers.items():
        runs[name] = lambda sampler=sampler: overhead.in_outer_jit(sampler, KEY, x)
    found, _ = overhead.measure(runs, repeats)
    print(f"a bare call takes {1e3 * found['bare calls'].wall / steps:.3f} ms")
    for name in samplers:
        least = "bare calls and draws" if name == "ddpm" else "bare calls"
        target = None if jax.default_backend() == "cpu" else 1.02  # of the small network a call is over in no time
        yield Ratio(f"transformer in bfloat16: {name}", least, found[name].wall / found[least].wall, target)


def _compiling(apply: Callable, params: Any, x: Array, steps: int) -> Iterator[Ratio]:
    """Seconds from tracing to a program, and bytes of its temporaries."""
    columns = handwritten.columns(ds.times.uniform(PROCESS, steps))
    jax.config.update("jax_enable_compilation_cache", False)
    bare = _compiled(lambda: handwritten.bare.lower(apply, params, x, columns))
    for name, sampler in _samplers(apply, params, steps).items():
        ours = _compiled(lambda sampler=sampler: overhead.in_outer_jit.lower(sampler, KEY, x))
        yield Ratio(f"tracing and compiling {name} ({ours[0]:.2f} s)", "the bare calls", ours[0] / bare[0])
        yield Ratio(f"temporaries of {name} ({ours[1] / 1e6:.1f} MB)", "the bare calls", ours[1] / bare[1])


def _compiled(lower: Callable[[], Any]) -> tuple[float, float]:
    jax.clear_caches()
    start = time.perf_counter()
    memory: Any = lower().compile().memory_analysis()
    return time.perf_counter() - start, float(memory.temp_size_in_bytes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps and repeats: does it run")
    shown(rows(parser.parse_args().quick))
