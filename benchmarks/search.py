"""The search for solver schedules: throughput, what its predictor knows, and what it finds, on other noise.

    python benchmarks/search.py [--quick] [--no-digits]

P1 is the closed-form mixture of one number on the variance preserving process, from t = 1 to 0.01. Throughput counts
all that turns schedules into values: their tables built in Python on one core, and run in one program. It stands beside
the loop that one writes by hand, a jitted function a schedule with the coefficients as constants. On digits the search
runs with three seeds, each judged on noise of its own; the best of twelve fixed solvers is chosen on that noise.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ratios import Ratio, shown

import diffsample as ds
from diffsample import demo, search, search_command, solvers
from diffsample.command import Setting
from diffsample.nets import digits

PROCESS = ds.VariancePreserving()
WEIGHTS, MEANS, SPREADS = [0.3, 0.45, 0.25], [-1.0, 0.3, 1.1], np.array([0.35, 0.25, 0.4])
LAW = ds.exact.Mixture(WEIGHTS, MEANS, SPREADS**2)
START, STOP = 1.0, 0.01
SPACE = search.Space(START, (STOP, STOP), rates=search.Rates(jitter=0.05))
KEY = jax.random.key(0)
RANKER = search.Ranker(hidden=64, width=100, epochs=200)


def noise(seed: int, count: int) -> tuple[jax.Array, jax.Array]:
    """(states at the start, where 200 steps of UniPC-3 take them)."""
    x = jax.random.normal(jax.random.key(seed), (count,))
    return x, search.accurate_samples(LAW, PROCESS, x, START, STOP, steps=200)


def population() -> search.Population:
    x, reference = noise(0, 64)
    return search.Population(LAW, PROCESS, x, search.ReferenceDistance(reference))


def drawn(seed: int, count: int, calls: int) -> list[solvers.Decisions]:
    rng = np.random.default_rng(seed)
    return [search.random_schedule(rng, SPACE, calls) for _ in range(count)]


def seconds(run: Callable[[], Any], repeats: int = 1) -> float:
    """Fastest of the repeats."""
    found = []
    for _ in range(repeats):
        begun = time.perf_counter()
        run()
        found.append(time.perf_counter() - begun)
    return min(found)


def throughput(quick: bool) -> Iterator[Ratio]:
    """Schedules a second of 10 calls and 64 points, together and one compile each."""
    together, schedules = population(), drawn(0, 512 if quick else 2048, 10)
    together(schedules[:64])
    whole = len(schedules) / seconds(lambda: together(schedules), 5)
    building = len(schedules) / seconds(lambda: [solvers.usf(PROCESS, schedule) for schedule in schedules], 5)
    tables = {schedule: solvers.usf(PROCESS, schedule) for schedule in schedules}
    ready = search.Population(LAW, PROCESS, together.x, together.objective, build=lambda process, s: tables[s])
    running = len(schedules) / seconds(lambda: ready(schedules), 5)

    def alone(schedule: solvers.Decisions) -> float:
        sampler = solvers.linear(LAW, tables[schedule])
        run = jax.jit(lambda x: together.objective.summary(ds.sample(KEY, sampler, x=x, check=False)))
        return float(run(together.x))

    some = schedules[: 3 if quick else 10]
    values: list[float] = []
    each = len(some) / seconds(lambda: values.extend(map(alone, some)))
    gap = np.abs(np.array(values) / together(some) - 1).max()
    parts = f"{building:.0f} tables built, {running:.0f} run"
    print(
        f"{whole:.0f} schedules a second ({parts}), {each:.2f} by a compile each; values agree to {gap:.1e}", flush=True
    )
    yield Ratio("P1, 10 calls, 64 points", "in schedules a second", whole, 1000, at_least=True)
    yield Ratio("P1: one compiled program", "a compile a schedule", whole / each, 100, at_least=True)


def predictor(quick: bool) -> Iterator[Ratio]:
    """Kendall's tau on schedules of random draws and of an evolution, which the predictor has not seen."""
    evaluate = population()
    stages = search.Stages(generations=6 if quick else 15, batch=64)
    history = search.search(KEY, evaluate, 5, space=SPACE, stages=stages, ranker=None).history
    random = drawn(9, len(history.values), 5)
    schedules, values = [*history.schedules, *random], np.array([*history.values, *evaluate(random)])
    order = np.random.default_rng(0).permutation(len(schedules))
    held_out, kept = np.split(order, [len(order) // 4])
    weights = RANKER.fit(KEY, [schedules[i] for i in kept], values[kept], 6, len(kept))
    scores = RANKER.score(weights, [schedules[i] for i in held_out], 6)
    evolved = held_out < len(history.values)
    parts = [search.kendall_tau(scores[mask], values[held_out][mask]) for mask in (evolved, ~evolved)]
    print(f"predictor trained on {len(kept)} schedules; tau of {evolved.sum()} evolved {parts[0]:.3f}, of "
          f"{(~evolved).sum()} random ones {parts[1]:.3f}", flush=True)  # fmt: skip
    tau = search.kendall_tau(scores, values[held_out])
    yield Ratio(f"P1, 5 calls, {len(held_out)} held-out schedules", "in Kendall's tau", tau, 0.5, at_least=True)


def on_mixture(calls: int, quick: bool) -> Iterator[Ratio]:
    """Error on other noise, beside the best of twelve fixed solvers there."""
    x, reference = noise(1, 2000)

    def error(table: ds.Tableau) -> float:
        out = ds.sample(KEY, solvers.linear(LAW, ds.pad(table, registers=6, slots=5)), x=x)
        return float(jnp.sqrt(jnp.mean((out - reference) ** 2)))

    fixed = {
        f"{name}, {grid}": error(solve(PROCESS, make(PROCESS, calls, start=START, stop=STOP, zero=False)))
        for name, solve in search_command.FIXED.items()
        for grid, make in search_command.GRIDS.items()
    }
    stages = search.Stages(generations=8 if quick else 24, batch=64, each=5)
    for name, ranker in (("with its predictor", RANKER), ("evolution alone", None)):
        found = search.search(KEY, population(), calls, space=SPACE, stages=stages, ranker=ranker)
        best, ours = min(fixed, key=fixed.__getitem__), error(solvers.usf(PROCESS, found.best))
        print(f"{calls} calls, {name}: error {ours:.5f}, best fixed {fixed[best]:.5f} ({best})", flush=True)
        yield Ratio(f"P1, {calls} calls: error of {best}", f"S3, {name}", fixed[best] / ours, 2.0, at_least=True)


def on_digits(quick: bool) -> Iterator[Ratio]:
    """Frechet distance at 5 calls on other noise, three seeds."""
    model = digits.load()
    labels = jnp.arange(100 if quick else 1000, dtype=jnp.int32) % digits.NULL
    judge = demo.Judge(model.class_means, model.class_covs, model.classifier)
    setting = Setting(PROCESS, digits.network(), labels, judge)
    sizes = ["--generations", "2", "--samples", "20", "--batch", "12"] if quick else ["--generations", "14"]
    for seed in (0, 1, 2):
        options = search_command.parser().parse_args(["--seed", str(seed), *sizes])
        found = search_command.find(options, setting, report=lambda step: None)
        key = search_command.held_out(jax.random.key(seed))
        ours, best, *_ = search_command.judged(setting, key, options.calls, {"found": found.best})
        print(f"digits, seed {seed}: {ours.frechet:.4f}, best fixed {best.frechet:.4f} ({best.name})", flush=True)
        target = None if quick else 1.0  # of 14 generations
        name = f"digits, 5 calls, seed {seed}: Frechet distance, S3"
        yield Ratio(name, best.name, ours.frechet / best.frechet, target)


def rows(quick: bool, digits_too: bool = True) -> Iterator[Ratio]:
    """Everything; the digits take minutes."""
    print(f"jax {jax.__version__}, {jax.devices()[0]}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    jax.config.update("jax_enable_compilation_cache", False)
    parts: Sequence[Callable[[bool], Iterator[Ratio]]] = (throughput, predictor, partial(on_mixture, 5))
    for part in (*parts, partial(on_mixture, 6), *([on_digits] if digits_too else [])):
        yield from part(quick)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run")
    parser.add_argument("--no-digits", action="store_true", help="leave out the digits, which take minutes")
    arguments = parser.parse_args()
    shown(rows(arguments.quick, not arguments.no_digits))
