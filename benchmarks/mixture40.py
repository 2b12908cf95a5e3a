"""Forty modes in the plane, annealed to q^3: distances to exact samples, with the corrector's weights and without.

The mixture of specs/smc.md 9.2b: 40 equal components of standard deviation softplus(2), means uniform on [-40, 40]^2.
The third power of a mixture of one variance is a mixture again, of 40^3 components, so exact samples are at hand.
"""

import itertools
import math
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ratios import Ratio
from scipy.optimize import linear_sum_assignment

import diffsample as ds
from diffsample import metrics, smc, solvers

MEANS = np.random.default_rng(0).uniform(-40, 40, (40, 2))
VARIANCE, BETA = 2.126928**2, 3
LOG_Z = -14.637837  # of q^3
PROCESS = ds.VarianceExploding(sigma_max=300.0)
PAIRED = 1500  # samples of either side in the exact assignment that W2 is


class Row(NamedTuple):
    name: str
    w2: float
    mmd: float
    tv: float
    log_z: float
    seconds: float


def exact_samples(rng: np.random.Generator, n: int) -> np.ndarray:
    """Draws of q^3: components are triples of means, weighted by how near they are to each other."""
    triples = np.array(list(itertools.combinations_with_replacement(range(40), BETA)))
    ways = [math.factorial(BETA) / math.prod(math.factorial(c) for c in np.bincount(t)) for t in triples]
    points = MEANS[triples]
    apart = sum(((points[:, a] - points[:, b]) ** 2).sum(axis=1) for a, b in itertools.combinations(range(BETA), 2))
    log_w = np.log(ways) - apart / (2 * VARIANCE * BETA)
    w = np.exp(log_w - log_w.max())
    chosen = rng.choice(len(w), n, p=w / w.sum())
    return points[chosen].mean(axis=1) + rng.standard_normal((n, 2)) * np.sqrt(VARIANCE / BETA)


def w2(x: np.ndarray, y: np.ndarray) -> float:
    """Wasserstein-2 distance of the first PAIRED samples of each, by exact assignment."""
    x, y = x[:PAIRED], y[:PAIRED]
    cost = ((x[:, None] - y[None]) ** 2).sum(axis=-1)
    return float(np.sqrt(cost[linear_sum_assignment(cost)].mean()))


def total_variation(x: np.ndarray, y: np.ndarray) -> float:
    """Of histograms of 50 x 50 cells over [-45, 45]^2."""
    cells = [np.histogram2d(*z.T, bins=50, range=[[-45, 45]] * 2)[0] / len(z) for z in (x, y)]
    return 0.5 * float(np.abs(cells[0] - cells[1]).sum())


def row(name: str, x: Any, truth: np.ndarray, seconds: float, log_z: float = math.nan) -> Row:
    points = np.random.default_rng(2).permutation(np.asarray(x, np.float64))
    distance = float(metrics.mmd(jnp.asarray(points[:2000]), jnp.asarray(truth[:2000]), bandwidth=5.0))
    return Row(name, w2(points, truth), distance, total_variation(points, truth), log_z, seconds)


def measured(particles: int, steps: int) -> Iterator[Row]:
    """The exact law against itself, then each way of sampling."""
    truth = exact_samples(np.random.default_rng(1), particles)
    law = ds.exact.Mixture(jnp.full(40, 1 / 40), jnp.asarray(MEANS, jnp.float32), VARIANCE)
    mean, spread = MEANS.mean(axis=0), float(MEANS.var() + VARIANCE)
    grid = ds.times.uniform_logsnr(PROCESS, steps, stop=0.02)
    rate = 1 / BETA  # of the noise, relative to target score; the gauge matches fully at 2 / (1 + rate)
    tables = {
        "target score": (solvers.ddpm(PROCESS, grid, large=True), 1.0),
        "tempered noise": (solvers.ddim(PROCESS, grid, eta=math.sqrt(rate)), 2 / (1 + rate)),
    }
    kinds = {}
    for name, (table, full) in tables.items():
        for gauge, said in ((0.0, ""), (full, ", gauge")):
            target = smc.annealed(law, float(BETA), mean=mean, variance=spread, gauge=gauge)
            sampler = solvers.linear(target, table)
            if not gauge:
                kinds[f"{name}, no weights"] = smc.start_of(sampler)
            kinds[f"{name}, weights{said}"] = smc.corrected(sampler, particles=particles)
    yield row("exact samples", exact_samples(np.random.default_rng(3), particles), truth, 0.0, LOG_Z)
    for name, sampler in kinds.items():
        out, seconds = _timed(sampler, particles)
        if isinstance(out, smc.Particles):
            x = smc.final_resample(jax.random.key(9), out, smc.systematic).x
            yield row(name, x, truth, seconds, float(out.log_z[0]))
        else:
            yield row(name, out, truth, seconds)


def rows(quick: bool) -> Iterator[Ratio]:
    """Prints the table, and gives how much nearer the corrected law is."""
    particles, steps = (1000, 200) if quick else (10_000, 1000)
    print(f"\nForty modes to the third power, {particles} particles, {steps} steps, log Z = {LOG_Z:.3f}")
    print(f"{'':34}{'W2':>8}{'MMD^2':>10}{'TV':>8}{'log Z':>10}{'seconds':>10}")
    found = {}
    for r in measured(particles, steps):
        found[r.name] = r
        print(f"{r.name:34}{r.w2:8.3f}{r.mmd:10.5f}{r.tv:8.3f}{r.log_z:10.3f}{r.seconds:10.2f}", flush=True)
    for kind in ("target score", "tempered noise"):
        ratio = found[f"{kind}, no weights"].w2 / found[f"{kind}, weights, gauge"].w2
        target = None if quick else 3  # of ten thousand particles
        yield Ratio(f"{kind}: W2 without weights", "W2 with weights and gauge", ratio, target, at_least=True)


def _timed(sampler: Any, particles: int) -> tuple[Any, float]:
    """(result, seconds of the compiled program)."""
    run = jax.jit(lambda key, sampler: ds.sample(key, sampler, (particles, 2)))
    key = jax.random.key(0)
    compiled = run.lower(key, sampler).compile()
    start = time.perf_counter()
    out = jax.block_until_ready(compiled(key, sampler))
    return out, time.perf_counter() - start
