"""What diffsample costs beside a hand-written loop and beside the bare network calls, all measured in one run.

    python benchmarks/overhead.py [--quick]

Loops are repeated in turn, twice each, and the fastest repeat of each counts. On the trivial model (eps = 0.999 x) the
cost of a step is the slope between 50 steps and many, and the cost of a call what is left at 50 steps. On the real
networks all is divided by the number of calls; there the CPU time of the process is the steadier figure.
"""

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import handwritten
import jax
import jax.numpy as jnp
import models
import numpy as np
import peers
from ratios import Ratio, shown

import diffsample as ds
from diffsample import solvers
from diffsample.compiles import count_compiles

SHORT, LONG = 50, {(4, 32, 32, 3): 550, (64, 2): 2050}
SHAPES = tuple(LONG)
PROCESS = ds.VariancePreserving()
KEY = jax.random.key(0)
NO_NOISE, NOISE = "hand-written ddim", "hand-written ddim(eta=1), a key a sample"
BY_HAND = {
    "ddim": NO_NOISE,
    "dpmpp": "hand-written dpmpp",
    "ghvb": "hand-written dpmpp",
    "heun": NO_NOISE,
    "eta=1": NOISE,
}


class Loop(NamedTuple):
    run: Callable[[], Any]
    calls: int  # network calls
    by_hand: str  # the loop to compare with


class Times(NamedTuple):
    """Seconds, or a ratio of them."""

    wall: float
    cpu: float  # of this process, all threads

    def over(self, n: float) -> "Times":
        return Times(self.wall / n, self.cpu / n)

    def minus(self, other: "Times", n: float = 1) -> "Times":
        return Times((self.wall - other.wall) / n, (self.cpu - other.cpu) / n)

    def ratio(self, other: "Times") -> "Times":
        return Times(self.wall / other.wall, self.cpu / other.cpu)


@jax.jit
def in_outer_jit(sampler: Any, key: jax.Array, x: jax.Array) -> jax.Array:
    """diffsample inside a program of the user's own."""
    return ds.sample(key, sampler, x=x)


def written_by_hand(apply: Callable, params: Any, x: jax.Array, steps: int) -> dict[str, Loop]:
    rows = handwritten.columns(ds.times.uniform(PROCESS, steps))
    keys = jax.random.split(KEY, len(x))
    one_key, per_sample = handwritten.one_key, handwritten.key_per_sample
    runs = {
        "bare network calls": lambda: handwritten.bare(apply, params, x, rows),
        NO_NOISE: lambda: handwritten.ddim(apply, params, x, rows),
        BY_HAND["dpmpp"]: lambda: handwritten.dpmpp(apply, params, x, rows),
        "hand-written ddim(eta=1), one key": lambda: handwritten.ancestral(apply, params, x, rows, KEY, one_key),
        NOISE: lambda: handwritten.ancestral(apply, params, x, rows, keys, per_sample),
    }
    return {name: Loop(run, steps, name) for name, run in runs.items()}


def from_diffsample(apply: Callable, params: Any, x: jax.Array, steps: int) -> dict[str, Loop]:
    network = ds.Network(apply, params, predicts="noise")
    grid, halved = ds.times.uniform(PROCESS, steps), ds.times.uniform(PROCESS, steps // 2)
    tables = {
        "ddim": solvers.ddim(PROCESS, grid),
        "dpmpp": solvers.dpmpp(PROCESS, grid),
        "ghvb": solvers.ghvb(PROCESS, grid),
        "heun": solvers.heun(PROCESS, halved),
        "eta=1": solvers.ddim(PROCESS, grid, eta=1.0),
    }
    loops = {}
    for name, table in tables.items():
        sampler = solvers.linear(network, table)
        on_device = jax.tree.map(jnp.asarray, sampler)
        label, by_hand = "ddim(eta=1)" if name == "eta=1" else name, BY_HAND[name]
        public = Loop(lambda s=sampler: ds.sample(KEY, s, x=x), table.calls, by_hand)
        outer = Loop(lambda s=on_device: in_outer_jit(s, KEY, x), table.calls, by_hand)
        loops |= {f"ds.sample {label}": public, f"outer jit {label}": outer}
    return loops


def by_hand_and_ours(apply: Callable, params: Any, x: jax.Array, steps: int) -> dict[str, Loop]:
    return written_by_hand(apply, params, x, steps) | from_diffsample(apply, params, x, steps)


def measure(runs: dict[Any, Callable[[], Any]], repeats: int) -> tuple[dict[Any, Times], dict[Any, int]]:
    """Fastest of interleaved repeats, and the programs that each first call compiled."""
    compiles, seen = {}, {name: [] for name in runs}
    for name, run in runs.items():
        with count_compiles() as counted:
            jax.block_until_ready(run())
        compiles[name] = counted.count
    with count_compiles() as counted:
        for _ in range(repeats):
            for name, run in runs.items():
                for _ in range(2):  # the first may find caches that the loop before has filled
                    cpu, wall = time.process_time(), time.perf_counter()
                    jax.block_until_ready(run())
                    seen[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    if counted.count:
        raise RuntimeError(f"{counted.count} programs were compiled in repeated calls; there should be none")
    return {name: Times(*np.min(pairs, axis=0)) for name, pairs in seen.items()}, compiles


def on_trivial_model(shape: tuple[int, ...], repeats: int) -> dict[str, Times]:
    """Prints the table; returns what the verdicts need: two ratios, and the seconds of a call beside its steps."""
    x, params = jax.random.normal(KEY, shape), jnp.float32(0.999)
    loops = {n: by_hand_and_ours(models.trivial, params, x, n) for n in (SHORT, LONG[shape])}
    times, compiles = measure({(name, n): loop.run for n in loops for name, loop in loops[n].items()}, repeats)
    short, long = loops.values()
    step = {
        name: times[name, LONG[shape]].minus(times[name, SHORT], long[name].calls - short[name].calls) for name in short
    }
    beside = {name: times[name, SHORT].minus(step[name].over(1 / short[name].calls)) for name in short}
    print(f"\nTrivial model, x {shape}{'':{20 - len(str(shape))}}{HEADER[0]}   us a call beside   compiles")
    for name, loop in short.items():
        tail = f"{1e6 * beside[name].wall:19.0f} {compiles[name, SHORT]:10d}"
        line(name, step[name], step[loop.by_hand], step["bare network calls"], tail)
    others, notes = peers.loops(shape, SHORT)
    for name, total in measure(others, max(3, repeats // 8))[0].items():
        line(name, total.over(SHORT), step[NO_NOISE], step["bare network calls"], "")
    print("\n".join(notes))
    ours = step["outer jit ddim"].ratio(step[NO_NOISE]), step["outer jit ddim(eta=1)"].ratio(step[NOISE])
    return {"ddim": ours[0], "eta=1": ours[1], "beside": beside["ds.sample ddim"].over(1e-6)}


def on_real_network(shape: tuple[int, ...], repeats: int) -> dict[str, Times]:
    """Prints the table; returns what the verdicts need: the ratio to the bare calls, and that of the progress bar."""
    image = len(shape) == 4
    apply = models.convnet if image else models.mlp
    params = models.init(KEY, 3, 32, 8, (3, 3)) if image else models.init(KEY, shape[-1], 384, 6)
    x, plain, bar = jax.random.normal(KEY, shape), "ds.sample ddim", "ds.sample ddim, progress=True"
    network = ds.Network(apply, params, predicts="noise")
    sampler = solvers.linear(network, solvers.ddim(PROCESS, ds.times.uniform(PROCESS, SHORT)))
    loops = by_hand_and_ours(apply, params, x, SHORT) | {bar: Loop(lambda: with_bar(sampler, x), SHORT, plain)}
    times, _ = measure({name: loop.run for name, loop in loops.items()}, repeats)
    call = {name: times[name].over(loop.calls) for name, loop in loops.items()}
    print(f"\n{apply.__name__}, x {shape}{'':{31 - len(apply.__name__ + str(shape))}}{HEADER[0]}{HEADER[1]}")
    for name, loop in loops.items():
        line(name, call[name], call[loop.by_hand], call["bare network calls"])
    spent = times[bar].minus(times[plain])
    print(f"progress=True adds {1e3 * spent.wall:.1f} ms to a run, {1e3 * spent.cpu:.1f} ms of CPU")
    return {"bare": call["outer jit ddim"].ratio(call["bare network calls"]), "bar": call[bar].ratio(call[plain])}


HEADER = "       us a step / by hand    / bare", "      CPU us / by hand    / bare"


def line(name: str, mine: Times, by_hand: Times, bare: Times, tail: str | None = None) -> None:
    """One row of a table; with CPU time where there is no tail."""
    cells = [
        f"{1e6 * value:12.2f} {value / hand:9.3f} {value / calls:9.3f}"
        for value, hand, calls in zip(mine, by_hand, bare, strict=True)
    ]
    print(f"{name:38}{''.join(cells) if tail is None else cells[0] + tail}")


def with_bar(sampler: Any, x: jax.Array) -> jax.Array:
    with contextlib.redirect_stderr(io.StringIO()):
        return ds.sample(KEY, sampler, x=x, progress=True)


def first_call() -> None:
    """In a fresh process: seconds of the first and of the second `ds.sample`, as JSON."""
    network = ds.Network(models.trivial, jnp.float32(0.999), predicts="noise")
    sampler = solvers.linear(network, solvers.ddim(PROCESS, ds.times.uniform(PROCESS, SHORT)))
    seconds = []
    for _ in range(2):
        cpu, wall = time.process_time(), time.perf_counter()
        ds.sample(KEY, sampler, SHAPES[0]).block_until_ready()
        seconds.append((time.perf_counter() - wall, time.process_time() - cpu))
    print(json.dumps(seconds))


def in_fresh_process(repeats: int) -> tuple[Times, Times]:
    """(first, second) call, fastest of a few processes."""
    command = [sys.executable, __file__, "--first-call"]
    outputs = [subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(repeats)]
    first, second = np.min([json.loads(out) for out in outputs], axis=0)
    return Times(*first), Times(*second)


def rows(quick: bool) -> Iterator[Ratio]:
    """Prints the tables, and gives what has a target."""
    print(f"jax {jax.__version__}, {jax.devices()[0]}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    trivial = {shape: on_trivial_model(shape, 3 if quick else 12) for shape in SHAPES}
    real = {shape: on_real_network(shape, 1 if quick else 4) for shape in SHAPES}
    first, second = in_fresh_process(1 if quick else 5)
    print(f"\nFresh process, ds.sample x {SHAPES[0]}: first call {first.wall:.2f} s ({first.cpu:.2f} s of CPU), second "
          f"{1e3 * second.wall:.2f} ms. Load now {os.getloadavg()[0]:.1f}.\n\nTargets")  # fmt: skip
    for shape in SHAPES:
        ours = trivial[shape] | real[shape]
        yield Ratio(f"trivial {shape}: a step of ddim", "by hand", ours["ddim"].wall, 1.5)
        yield Ratio(f"trivial {shape}: a step of ddim(eta=1)", "by hand, a key a sample", ours["eta=1"].wall, 1.1)
        yield Ratio(f"trivial {shape}: ds.sample(ddim) beside its steps", "in us", ours["beside"].wall, 1000)
        yield Ratio(f"real {shape}: ddim, CPU time", "bare calls", ours["bare"].cpu, 1.02)
        yield Ratio(f"real {shape}: progress=True, CPU time", "progress=False", ours["bar"].cpu, 1.01)
    yield Ratio("first call in a fresh process", "in s of CPU", first.cpu, 1.0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repeats: does it run, not how fast is it")
    parser.add_argument("--first-call", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    first_call() if arguments.first_call else shown(rows(arguments.quick))
