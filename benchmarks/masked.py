"""Masked decoding at a language model's vocabulary: time, calls and memory against the usual ancestral loop.

    python benchmarks/masked.py                     V = 50257, L = N = 1024, a small transformer, batch 1
    python benchmarks/masked.py --quick             the same at L = N = 128, for a first look

The reference is the loop of the released samplers: at every step logits of all positions, [B, L, V], and one
categorical draw over V + 1 classes at every position. Every one of its steps costs the same, so `--reference-steps` of
them are timed and scaled to N. The decoders run whole. All are timed in one process, one after another, after a
warm-up call.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from ratios import Ratio

import diffsample as ds
from diffsample import discrete
from diffsample.nets.transformer import TokenTransformer

VOCAB = 50257
MASK = VOCAB
WIDTH, DEPTH, HEADS = 64, 2, 2


class Row(NamedTuple):
    """One line of the table."""

    name: str
    calls: float  # network calls for the batch
    logits: float  # positions whose logits were computed, a sequence
    seconds: float
    megabytes: float  # temporaries of the compiled program


def small_model(length: int) -> discrete.MaskedModel:
    """A transformer whose head, like that of every language model at this vocabulary, dwarfs its trunk."""
    net = TokenTransformer(VOCAB, length, classes=0, width=WIDTH, depth=DEPTH, heads=HEADS, rngs=nnx.Rngs(0))
    net.project.kernel[...] = 0.02 * jax.random.normal(jax.random.key(1), net.project.kernel.shape)
    graph, params = nnx.split(net, nnx.Param)
    return discrete.MaskedModel(partial(_trunk, graph), partial(_head, graph), params, VOCAB, MASK)


def _trunk(graph: Any, params: Any, x: Array, t: None, cond: Any) -> Array:
    return nnx.merge(graph, params).trunk(x, jnp.zeros(x.shape[0], jnp.int32))


def _head(graph: Any, params: Any, h: Array, positions: Array) -> Array:
    return nnx.merge(graph, params).head(h)


@partial(jax.jit, static_argnums=(2, 3))
def reference(model: discrete.MaskedModel, key: Array, shape: tuple[int, int], steps: int, levels: Array) -> Array:
    """`steps` steps of ancestral sampling as it is usually written."""
    everywhere = jnp.broadcast_to(jnp.arange(shape[1]), shape)

    def step(x: Array, row: tuple[Array, Array, Array]) -> tuple[Array, None]:
        key, now, following = row
        log_p = model.log_probs(model(x, jnp.full(shape[0], now), None), everywhere)
        rho = (now - following) / now
        joint = jnp.concatenate([log_p + jnp.log(rho), jnp.full((*shape, 1), jnp.log1p(-rho))], axis=-1)
        return jnp.where(x == MASK, jax.random.categorical(key, joint), x), None

    start = jnp.full(shape, MASK)
    rows = (jax.random.split(key, steps), levels[:steps], levels[1 : steps + 1])
    return jax.lax.scan(step, start, rows)[0]


def timed(run: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """(least seconds of some runs after a warm-up, the result)."""
    out, seconds = jax.block_until_ready(run()), []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return min(seconds), out


def measure_reference(
    model: discrete.MaskedModel, batch: int, length: int, steps: int, levels: np.ndarray, repeats: int
) -> Row:
    """Seconds scaled from the steps that were run to all of them."""
    arguments = (model, jax.random.key(0), (batch, length), steps, jnp.asarray(levels, jnp.float32))
    seconds, _ = timed(lambda: reference(*arguments), repeats)
    memory: Any = reference.lower(*arguments).compile().memory_analysis()
    n = len(levels) - 1
    return Row("ancestral loop, full logits", n, n * length, seconds * n / steps, memory.temp_size_in_bytes / 1e6)


def measure(name: str, sampler: discrete.Decoder, batch: int, length: int, most: int, repeats: int) -> Row:
    """A decoder, run whole."""
    run = partial(ds.sample, jax.random.key(0), sampler, (batch, length), check=False)
    seconds, out = timed(run, repeats)
    compiled = jax.jit(lambda key, sampler: ds.sample(key, sampler, (batch, length), check=False).x)
    memory: Any = compiled.lower(jax.random.key(0), sampler).compile().memory_analysis()
    calls = float(np.max(out.calls))
    return Row(name, calls, calls * most, seconds, memory.temp_size_in_bytes / 1e6)


def table(batch: int, length: int, reference_steps: int, repeats: int) -> list[Row]:
    """All rows; prints each as it is known."""
    model, levels = small_model(length), discrete.levels(discrete.Polynomial(), length)
    decoders = {
        "first-hitting, one a call": (discrete.first_hitting(length), 1),
        "first-hitting, 8 a call": (discrete.first_hitting(length, updates=length // 8), 8),
        "asynchronous, N = L": (discrete.asynchronous(levels, length, most=8), 8),
        "asynchronous, N = 4 L": (
            discrete.asynchronous(discrete.levels(discrete.Polynomial(), 4 * length), length, most=8),
            8,
        ),
    }
    rows = [measure_reference(model, batch, length, reference_steps, levels, repeats)]
    show(rows[0], rows[0])
    for name, (policy, most) in decoders.items():
        rows.append(measure(name, discrete.Decoder(model, policy), batch, length, most, repeats))
        show(rows[-1], rows[0])
    return rows


def show(row: Row, first: Row) -> None:
    """One line, with the ratio to the reference."""
    ratio = first.seconds / row.seconds
    print(f"{row.name:30} {row.calls:7.0f} calls {row.logits:10.0f} logit rows {row.seconds:9.2f} s "
          f"{ratio:7.1f} x {row.megabytes:9.1f} MB", flush=True)  # fmt: skip


def rows(quick: bool) -> Iterator[Ratio]:
    """Times faster than the ancestral loop, and the share of its memory."""
    first, *others = run(128 if quick else 1024, batch=1, reference_steps=4, repeats=2)
    for row in others:
        target = 20.0 if row.name == "first-hitting, one a call" and not quick else None
        yield Ratio("ancestral loop", row.name, first.seconds / row.seconds, target, at_least=True)
    yield Ratio(f"{others[0].name}: temporaries", "those of the ancestral loop", others[0].megabytes / first.megabytes)


def run(length: int, batch: int, reference_steps: int, repeats: int) -> list[Row]:
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}; V = {VOCAB}, L = N = {length}, "
          f"batch {batch}, trunk of {DEPTH} blocks of width {WIDTH}")  # fmt: skip
    return table(batch, length, reference_steps, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="L = N = 128 instead of 1024")
    parser.add_argument("--batch", type=int, default=1, help="sequences (default: 1)")
    parser.add_argument("--reference-steps", type=int, default=4, help="steps of the reference timed (default: 4)")
    parser.add_argument("--repeats", type=int, default=2, help="runs of which the fastest counts (default: 2)")
    options = parser.parse_args()
    run(128 if options.quick else 1024, options.batch, options.reference_steps, options.repeats)


if __name__ == "__main__":
    main()
