"""A sweep of 16 guidance scales and 8 solvers on the shipped digits against the loop that compiles every cell.

    python benchmarks/sweeps.py [--quick]

Both start cold, without a compilation cache, and measure the contrast of the same samples (10 steps, two of each class
a cell). The loop is what one writes by hand: a jitted function a cell, with scale and coefficients as
constants in it and the weights as an argument. It runs two scales of every solver, and its time is scaled to all.
"""

import argparse
import dataclasses
import os
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import overhead
from ratios import Ratio, shown

import diffsample as ds
from diffsample import guidance, metrics, solvers, structures
from diffsample.choices import SOLVERS
from diffsample.nets import digits

PROCESS = ds.VariancePreserving()
GRID = ds.times.uniform_logsnr(PROCESS, 10, start=0.9999, stop=0.006)
TABLES = {name: SOLVERS[name](PROCESS, GRID) for name in "ddim dpmpp deis ddpm plms ghvb heavy-ball unipc".split()}
SCALES = np.linspace(1.0, 4.0, 16)
SAMPLES, CHUNK = 20, 16
LABELS = jnp.arange(SAMPLES, dtype=jnp.int32) % digits.NULL
SHAPE = (SAMPLES, *digits.SHAPE)


def judged(x: Any) -> float:
    return float(metrics.contrast(x))


def together(scales: np.ndarray) -> tuple[Any, overhead.Times]:
    """(the Dataset, what it took)."""
    network = digits.network()

    def sampler_of(scale: float, solver: ds.Tableau) -> ds.Sampler:
        return solvers.linear(guidance.cfg(network, digits.NULL, scale), solver)

    start = now()
    grid = {"scale": scales, "solver": TABLES}
    found = ds.sweep(sampler_of, grid, {"contrast": judged}, SHAPE, cond=LABELS, pad=True, chunk=CHUNK)
    return found, now().minus(start)


def one_by_one(scales: np.ndarray) -> tuple[dict[tuple[float, str], float], overhead.Times]:
    """(contrasts, what it took) of the loop."""
    network, found = digits.network(), {}
    start = now()
    for scale in scales:
        for name, table in TABLES.items():

            def run(key: jax.Array, params: Any, scale: float = scale, table: ds.Tableau = table) -> jax.Array:
                denoiser = guidance.cfg(dataclasses.replace(network, params=params), digits.NULL, scale)
                return ds.sample(key, solvers.linear(denoiser, table), SHAPE, cond=LABELS)

            found[scale, name] = judged(jax.jit(run)(jax.random.key(0), network.params))
    return found, now().minus(start)


def now() -> overhead.Times:
    return overhead.Times(time.perf_counter(), time.process_time())


def rows(quick: bool) -> Iterator[Ratio]:
    """Prints both, and gives how much faster the sweep is."""
    print(f"jax {jax.__version__}, {jax.devices()[0]}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    jax.config.update("jax_enable_compilation_cache", False)
    judged(jnp.zeros(SHAPE))  # the metric's own programs belong to neither
    some = SCALES[[5]] if quick else SCALES[[2, 11]]
    before = structures.compiled_programs()
    found, fast = together(SCALES)
    programs = structures.compiled_programs() - before
    contrasts, slow = one_by_one(some)
    slow = slow.over(len(some) / len(SCALES))
    gap = max(abs(float(found["contrast"].sel(scale=s, solver=n)[0]) - d) for (s, n), d in contrasts.items())
    cells = found["contrast"].size
    print(f"{cells} cells of {SAMPLES}: sweep {fast.wall:.1f} s ({fast.cpu:.1f} of CPU) with {programs} program, "
          f"loop {slow.wall:.1f} s ({slow.cpu:.1f} of CPU; {len(contrasts)} cells run, scaled to {cells}); largest "
          f"difference {gap:.1e}", flush=True)  # fmt: skip
    ratio, what = slow.ratio(fast), "16 scales x 8 solvers: a loop that compiles each cell"
    yield Ratio(what, "ds.sweep", ratio.wall, 10.0, at_least=True)
    yield Ratio(f"{what}, CPU time", "ds.sweep", ratio.cpu)
    yield Ratio("16 scales x 8 solvers", "in programs", programs, 1)
    _, warm = together(SCALES + 0.05)
    yield Ratio("16 scales x 8 solvers, other scales", "the first sweep", warm.ratio(fast).wall)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the loop runs one scale instead of two")
    shown(rows(parser.parse_args().quick))
