"""`python -m diffsample search`: finds a solver schedule for the shipped digits, and prints it beside fixed solvers.

Schedules are compared from a few samples' noise, and judged on other noise at the end. `--solver FILE` samples with
what was found, `--solver s3` with the schedules that ship with the model.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import diffsample as ds
from diffsample import demo, search, solvers, times
from diffsample.command import SIGMA_MAX, SIGMA_MIN, Setting, default_of, model_of, model_parser, time_at, versions
from diffsample.nets import digits
from diffsample.sampler import sample_keys

ACCURATE = 80  # steps of the reference
CONFIRMING_STREAM, HELD_OUT_STREAM = 2**31 + 1, 2**31
FIXED: Mapping[str, Callable[..., ds.Tableau]] = {
    "ddim": solvers.ddim,
    "dpmpp": solvers.dpmpp,
    "unipc": solvers.unipc,
    "unipc(order=3)": lambda process, grid: solvers.unipc(process, grid, order=3),
}
GRIDS: Mapping[str, Callable[..., ds.Grid]] = {
    "logsnr": times.uniform_logsnr,
    "uniform": times.uniform,
    "karras": times.karras,
}
ENCODED: tuple[dict[str, Any], ...] = (  # the fixed solvers as decisions
    {"order": 1},
    {"relaxation": solvers.Relaxation("bh2")},
    {"relaxation": solvers.Relaxation("bh2"), "corrector": "pseudo"},
    {"relaxation": solvers.Relaxation("bh2"), "corrector": "pseudo", "order": 3},
)


class Judged(NamedTuple):
    """A solver on noise that no search has seen."""

    name: str
    frechet: float
    agreement: float


def parser() -> argparse.ArgumentParser:
    """Options of `python -m diffsample search`."""
    found = model_parser("find a solver schedule for the shipped digits by evolution and a learned predictor", "search")
    add = found.add_argument
    add("--calls", type=int, default=5, help=default_of("network calls of the schedule"))
    what = "what is made small: the distance to an accurate run from the same noise, or the Frechet distance"
    add("--objective", choices=["reference", "frechet"], default="reference", help=default_of(what))
    add("--samples", type=int, default=200, help=default_of("samples that a schedule is evaluated on"))
    add("--generations", type=int, default=14, help=default_of("batches evaluated"))
    add("--batch", type=int, default=32, help=default_of("schedules in a batch"))
    add("--no-predictor", action="store_true", help="evolve by true values alone")
    what = "schedules compared once more at the end, on other noise and four times the samples; 0 keeps the first"
    add("--confirm", type=int, default=16, help=default_of(what))
    add("--checkpoint", type=Path, help="directory to resume from, written after every generation (default: none)")
    add("--progress", action="store_true", help="show a bar (needs tqdm)")
    add("--out", type=Path, default=Path("schedule.json"), help=default_of("file to write"))
    return found


def plan(options: argparse.Namespace) -> Callable[[], None]:
    """Everything checked, ready to run."""
    if options.out.suffix != ".json" or options.out.is_dir() or not options.out.parent.is_dir():
        raise ValueError(f"--out {options.out} must be a file name that ends in .json, in a folder that exists")
    if options.samples < 2 or options.samples % len(options.labels):
        raise ValueError(f"--samples {options.samples} must be a multiple of the {len(options.labels)} classes")
    if min(options.calls, options.generations) < 1:
        raise ValueError(f"--calls {options.calls} and --generations {options.generations} must be at least 1")
    if options.confirm < 0:
        raise ValueError(f"--confirm {options.confirm} is a number of schedules, 0 or more")
    known = known_schedules(ds.VariancePreserving(), 1)
    if options.batch < len(known):
        raise ValueError(f"--batch {options.batch} has no room for the {len(known)} known schedules it starts with")
    return partial(run, options, model_of(options))


def run(options: argparse.Namespace, setting: Setting) -> None:
    """Searches, writes the schedule, judges it on other noise beside the fixed solvers, and prints."""
    key, begun = jax.random.key(options.seed), time.perf_counter()
    size = f"{options.generations} generations of {options.batch} schedules, {options.samples} samples each"
    print(f"{versions()}\nsearch            {options.calls} calls, {size}, objective {options.objective}", flush=True)

    def report(step: search.Progress) -> None:
        tau = "" if np.isnan(step.tau) else f", tau of the predictor {step.tau:.2f}"
        print(f"generation {step.generation:6d} best {step.best:.5f}{tau}", flush=True)

    found = find(options, setting, report)
    evaluated = len(found.history.values)
    if options.confirm:
        found = confirm(options, setting, found)
        evaluated += len(found.history.values)
    found.best.save(options.out)
    evaluated = f"{evaluated} schedules in {time.perf_counter() - begun:.0f} s"
    print(f"found             {options.out}, {evaluated}\n{found.best.to_json()}")
    print(f"on other noise    {'Frechet':>9}   class agreement, {len(setting.labels)} samples", flush=True)
    for row in judged(setting, held_out(key), options.calls, {"found": found.best}):
        print(f"{row.name:26}{row.frechet:.4f}   {row.agreement:7.1%}")
    print(f"{'perfect samples':26}{demo.frechet_floor(setting.labels, setting.judge):.4f}")


def find(options: argparse.Namespace, setting: Setting, report: Callable[[search.Progress], None]) -> search.Found:
    """The search that the options ask for."""
    key = jax.random.key(options.seed)
    return search.search(
        key,
        population_of(setting, options.labels, key, options.samples, options.objective),
        options.calls,
        space=space_of(setting.process),
        start=known_schedules(setting.process, options.calls),
        stages=search.Stages(options.generations, options.batch),
        ranker=None if options.no_predictor else search.Ranker(hidden=64, width=100, epochs=200),
        checkpoint=options.checkpoint,
        progress=options.progress,
        report=report,
    )


def confirm(options: argparse.Namespace, setting: Setting, found: search.Found) -> search.Found:
    """The best on other noise, the known schedules among those that are compared."""
    key = jax.random.fold_in(jax.random.key(options.seed), CONFIRMING_STREAM)
    evaluate = population_of(setting, options.labels, key, 4 * options.samples, options.objective)
    known = known_schedules(setting.process, options.calls)
    return search.confirmed(found, evaluate, count=options.confirm, also=known)


def space_of(process: ds.Process) -> search.Space:
    """Schedules from the demo's noise to clean data."""
    return search.Space(time_at(process, SIGMA_MAX), (0.0, 0.0))


def known_schedules(process: ds.Process, calls: int) -> list[solvers.Decisions]:
    """The fixed solvers on the three grids, as decisions."""
    grids = [grid_of(process, name, calls) for name in GRIDS]
    return [solvers.multistep_decisions(grid, **options) for options in ENCODED for grid in grids]


def grid_of(process: ds.Process, name: str, calls: int) -> ds.Grid:
    """A grid of the demo's levels."""
    return GRIDS[name](process, calls, start=time_at(process, SIGMA_MAX), stop=time_at(process, SIGMA_MIN))


def population_of(setting: Setting, classes: list[int], key: Array, samples: int, objective: str) -> search.Population:
    """Schedules from the noise of this key."""
    process, start = setting.process, time_at(setting.process, SIGMA_MAX)
    labels = jnp.asarray(np.resize(classes, samples), jnp.int32)
    draws = jax.vmap(lambda key: jax.random.normal(key, digits.SHAPE))(sample_keys(key, 0, samples))
    x = jnp.float32(process.sigma(start)) * draws
    if objective == "frechet":
        value: Any = search.Frechet(*demo.moments_of_classes(labels, setting.judge))
    else:
        reference = search.accurate_samples(
            setting.denoiser, process, x, start, time_at(process, SIGMA_MIN), cond=labels, steps=ACCURATE, zero=True
        )
        value = search.ReferenceDistance(reference)
    return search.Population(setting.denoiser, process, x, value, cond=labels, chunk=1)


def held_out(key: Array) -> Array:
    """A key whose noise no search has seen."""
    return jax.random.fold_in(key, HELD_OUT_STREAM)


def judged(setting: Setting, key: Array, calls: int, found: Mapping[str, solvers.Decisions]) -> list[Judged]:
    """The schedules, then the fixed solvers on each grid, all from the same noise, the best of each kind first."""
    process = setting.process
    tables = {name: [solvers.usf(process, schedule)] for name, schedule in found.items()}
    fixed = {f"{name}, {grid}": [solve(process, grid_of(process, grid, calls))]
             for name, solve in FIXED.items() for grid in GRIDS}  # fmt: skip
    attach = partial(solvers.linear, setting.denoiser)
    scores = demo.compare(key, attach, tables | fixed, setting.labels, digits.SHAPE, setting.judge)
    rows = [Judged(score.solver, score.frechet, score.agreement) for score in scores]
    return sorted(rows[: len(found)], key=lambda row: row.frechet) + sorted(rows[len(found) :], key=lambda r: r.frechet)
