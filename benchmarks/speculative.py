"""Speculative sampling of the digits model: calls in sequence, and states evaluated, for steps and windows.

python benchmarks/speculative.py  prints a table in a few minutes on two CPU cores.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from ratios import Ratio

import diffsample as ds
from diffsample import solvers
from diffsample.nets import digits
from diffsample.solvers import Effort
from diffsample.solvers.tabular import Linear

PROCESS = ds.VariancePreserving()
SAMPLES = 16


def chain(steps: int) -> Linear:
    """DDPM from sigma / alpha = 80 to 0.05, and to clean digits."""
    first, last = (float(PROCESS.t_from_half_logsnr(-np.log(noise))) for noise in (80.0, 0.05))
    grid = ds.times.uniform_logsnr(PROCESS, steps, start=min(first, PROCESS.t_start), stop=last)
    return solvers.linear(digits.network(), solvers.ddpm(PROCESS, grid))


def effort(steps: int, window: int, refresh: bool) -> Effort:
    """What each of the samples took."""
    sampler = solvers.speculative(chain(steps), window=window, refresh=refresh)
    shape, labels = (SAMPLES, *digits.SHAPE), jnp.arange(SAMPLES) % 10
    _, found = ds.sample(jax.random.key(0), sampler, shape, cond=labels, record=lambda view: view.memory)
    return jax.tree.map(lambda leaf: leaf[-1], found)


def rows(quick: bool) -> Iterator[Ratio]:
    """Prints the table; gives calls in sequence beside the steps that they replace."""
    print(f"{'steps':>6} {'window':>6} {'refresh':>8} {'rounds':>7} {'slowest':>7} {'calls':>6} {'states':>7}")
    for steps in (100,) if quick else (100, 200, 1000):
        for window, refresh in ((4, False), (8, False), (8, True), (16, False)):
            rounds, states = effort(steps, window, refresh)
            slowest = int(rounds.max())
            calls = slowest * (1 + refresh)
            print(f"{steps:6} {window:6} {refresh!s:>8} {float(rounds.mean()):7.1f} {slowest:7} "
                  f"{calls:6} {float(states.mean()):7.0f}", flush=True)  # fmt: skip
            name = f"calls in sequence, window {window}{', refreshed' if refresh else ''}"
            yield Ratio(name, f"{steps} steps", calls / steps, 1.0)


if __name__ == "__main__":
    list(rows(quick=False))
