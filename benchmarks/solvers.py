"""Every method of the catalogue on the shipped digits at about 10 network calls, and what a step of each costs.

    python benchmarks/solvers.py [--quick] [--real] [--methods ddim dpmpp ...]

Fréchet distance in pixel space of 1000 samples from the same noise, on three grids from sigma / alpha = 80 to 0.05;
in brackets the calls, where no number of steps makes 10. All tables are padded to one shape: one compiled program. The
cost of a step is measured on the trivial model (eps = 0.999 x), unpadded, as the slope between 50 moves and many, each
the fastest of interleaved repeats, beside DDIM's. It is wall time: CPU time lags behind in runs under a millisecond. A
method that calls twice a step pays twice. Last, runs of about 20 calls of the shipped U-Net and of a convolutional
network over as many bare calls, and over as many calls and draws of normals (one key for the batch) as the method
makes; by CPU time, which is the steadier figure there. The U-Net's many small kernels make a reading stray by 0.03 from
one process to the next: repeat the rows that miss.
"""

import argparse
import math
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import handwritten
import jax
import jax.numpy as jnp
import models
import numpy as np
import overhead
from ratios import Ratio, shown

import diffsample as ds
from diffsample import demo, solvers, times
from diffsample.catalogue import METHODS, PROCESSES
from diffsample.compiles import count_compiles
from diffsample.nets import digits

CALLS, SAMPLES = 10, 1000
REAL_CALLS = 20  # about, in a run of the real network
HIGH, LOW = 80.0, 0.05  # sigma / alpha at the start and before the last step
GRIDS: dict[str, Callable[..., ds.Grid]] = {"log-SNR": times.uniform_logsnr, "Karras": times.karras, "t": times.uniform}
TARGETS = {"dpmpp": 2.0, "unipc(order=3)": 5.0}  # a step, beside DDIM's
KEY = jax.random.key(0)


def table_on(method: str, grid: str, steps: int) -> ds.Tableau:
    """The method on the process that the catalogue gives it, between the two noise levels."""
    process = PROCESSES.get(method, ds.VariancePreserving())
    start, stop = (float(process.t_from_half_logsnr(-math.log(sigma))) for sigma in (HIGH, LOW))
    return METHODS[method](process, GRIDS[grid](process, steps, start=min(start, process.t_start), stop=stop))


def on_digits(methods: Sequence[str], samples: int) -> None:
    """Prints a line a method as soon as it is known."""
    model = digits.load()
    judge = demo.Judge(model.class_means, model.class_covs, model.classifier)
    labels = jnp.arange(samples, dtype=jnp.int32) % digits.NULL
    tables = {m: [demo.most_steps(partial(table_on, m, grid), CALLS) for grid in GRIDS] for m in methods}
    attach, floor = partial(solvers.linear, digits.network()), demo.frechet_floor(labels, judge)
    print(f"\nFréchet distance of {samples} digits ({floor:.4f} expected of perfect samples)")
    print(f"{'':50}" + "".join(f"{grid:>16}" for grid in GRIDS), flush=True)
    with count_compiles() as compiles:
        for i, score in enumerate(demo.compare(KEY, attach, tables, labels, digits.SHAPE, judge)):
            first, last = i % len(GRIDS) == 0, i % len(GRIDS) == len(GRIDS) - 1
            print(f"{score.solver if first else '':{50 * first}}{distance(score):>16}", end="\n" * last, flush=True)
    print(f"{compiles.count} programs compiled, those of the metrics counted")


def step_times(methods: Sequence[str], shape: tuple[int, ...], repeats: int) -> dict[str, tuple[overhead.Times, float]]:
    """Per method: the cost of a step on the trivial model, and network calls a step."""
    network = ds.Network(models.trivial, jnp.float32(0.999), predicts="noise")
    x, lengths, calls, runs = jax.random.normal(KEY, shape), (overhead.SHORT, overhead.LONG[shape]), {}, {}
    for method in methods:
        for steps in lengths:
            table = table_on(method, "t", steps)
            sampler = jax.tree.map(jnp.asarray, solvers.linear(network, table))
            calls[method, steps] = table.calls
            runs[method, steps] = lambda s=sampler: overhead.in_outer_jit(s, KEY, x)
    found, _ = overhead.measure(runs, repeats)
    few, many = lengths
    return {
        m: (found[m, many].minus(found[m, few], many - few), (calls[m, many] - calls[m, few]) / (many - few))
        for m in methods
    }


def on_trivial_model(methods: Sequence[str], repeats: int) -> Iterator[Ratio]:
    """Prints what a step costs, and gives what has a target."""
    found = {shape: step_times(methods, shape, repeats) for shape in overhead.SHAPES}
    heads = "".join(f"{f'{shape}, us':>20}{'/ ddim':>8}" for shape in found)
    print(f"\n{'a step on the trivial model':50}{'calls':>8}{heads}")
    for method in methods:
        cells = f"{found[overhead.SHAPES[0]][method][1]:8.3g}"
        for cost in found.values():
            mine, ddim = cost[method][0].wall, cost["ddim"][0].wall
            cells += f"{1e6 * mine:20.2f}{mine / ddim:8.2f}"
        print(f"{method:50}{cells}")
    print(f"\nTargets (load now {os.getloadavg()[0]:.1f})")
    for shape, cost in found.items():
        for method, limit in TARGETS.items():
            if method in cost:
                ratio = cost[method][0].ratio(cost["ddim"][0])
                yield Ratio(f"{shape}: a step of {method}", "a step of ddim", ratio.wall, limit)


def sevens(params: Any, x: jax.Array, c_noise: jax.Array, cond: None) -> jax.Array:
    """The shipped U-Net at one condition."""
    return digits.apply(params, x, c_noise, jnp.full(len(x), 7))


def on_digits_network(methods: Sequence[str], repeats: int) -> Iterator[Ratio]:
    """The same for the shipped U-Net at the demo's batch."""
    model = digits.load()
    network = ds.Network(sevens, model.params, predicts="edm", sigma_data=model.sigma_data)
    return on_real_network("digits U-Net", network, jax.random.normal(KEY, (64, *digits.SHAPE)), methods, repeats)


def on_convnet(methods: Sequence[str], repeats: int) -> Iterator[Ratio]:
    """A network so cheap that a call costs what fifty draws of its input do."""
    network = ds.Network(models.convnet, models.init(KEY, 3, 32, 8, (3, 3)), predicts="noise")
    return on_real_network("convnet", network, jax.random.normal(KEY, overhead.SHAPES[0]), methods, repeats)


def on_real_network(
    said: str, network: ds.Network, x: jax.Array, methods: Sequence[str], repeats: int
) -> Iterator[Ratio]:
    """Prints and gives what a call costs beside the bare calls of the network, and beside calls and draws."""
    apply, params = network.apply, network.params
    runs: dict[object, Callable[[], object]] = {}
    calls, draws = {}, {}
    for method in methods:
        table = demo.most_steps(partial(table_on, method, "t"), REAL_CALLS)
        sampler = jax.tree.map(jnp.asarray, solvers.linear(network, table))
        calls[method], draws[method] = table.calls, int((table.c != 0).any(axis=1).sum())
        runs[method] = lambda s=sampler: overhead.in_outer_jit(s, KEY, x)
        rows = handwritten.columns(times.uniform(overhead.PROCESS, table.calls))
        runs.setdefault((table.calls, 0), lambda rows=rows: handwritten.bare(apply, params, x, rows))
        drawn = jnp.arange(table.calls) < draws[method]
        if draws[method]:
            least = partial(handwritten.bare_and_draws, apply, params, x, rows, KEY, drawn)
            runs.setdefault((table.calls, draws[method]), least)
    found, _ = overhead.measure(runs, repeats)
    bare = {method: found[method].ratio(found[calls[method], 0]) for method in methods}
    least = {method: found[method].ratio(found[calls[method], draws[method]]) for method in methods}
    dearest = sorted(methods, key=lambda method: -least[method].cpu)
    head = f"{apply.__name__}, x {x.shape}: CPU time, wall"
    print(f"\n{head:50}{'calls':>8}{'draws':>8}{'/ calls':>10}{'':8}{'/ calls and draws':>20}")
    for method in dearest:
        cells = "".join(f"{ratio[method].cpu:10.4f}{ratio[method].wall:8.4f}" for ratio in (bare, least))
        print(f"{method:50}{calls[method]:8d}{draws[method]:8d}{cells}")
    print(f"(load now {os.getloadavg()[0]:.1f})")
    yield Ratio(f"{said}, CPU time of the dearest, {dearest[0]}", "calls and draws", least[dearest[0]].cpu, 1.02)
    dearest.sort(key=lambda method: -bare[method].cpu)
    yield Ratio(f"{said}, CPU time of the dearest, {dearest[0]}", "calls", bare[dearest[0]].cpu, 1.02)


def rows(quick: bool) -> Iterator[Ratio]:
    """All methods."""
    return measured(list(METHODS), quick, only_real=False)


def measured(methods: Sequence[str], quick: bool, only_real: bool) -> Iterator[Ratio]:
    print(f"jax {jax.__version__}, {jax.devices()[0]}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    if not only_real:
        on_digits(methods, 100 if quick else SAMPLES)
        yield from on_trivial_model(methods, 2 if quick else 20)
    yield from on_digits_network(methods, 1 if quick else 10)
    yield from on_convnet(methods, 1 if quick else 20)


def distance(score: demo.Score) -> str:
    calls = "" if score.calls == CALLS else f" ({score.calls})"
    return f"{score.frechet:.4f}{calls}" if np.isfinite(score.frechet) else f"exploded{calls}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few samples and repeats: does it run")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="rows; ddim is added")
    parser.add_argument("--real", action="store_true", help="only the comparison with bare calls of a real network")
    arguments = parser.parse_args()
    chosen = list(dict.fromkeys(["ddim", *arguments.methods]))
    shown(measured(chosen, arguments.quick, arguments.real))
