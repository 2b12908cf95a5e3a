"""Forty modes in the plane, annealed to q^3: distances to the exact law, with the corrector's weights and without.

The mixture of specs/smc.md 9.2b: 40 equal components of standard deviation softplus(2), means uniform on [-40, 40]^2.
The third power of a mixture of one variance is a mixture again, of 40^3 components, so exact samples are at hand.

Every cloud, weighted or not, is measured in one way: all its points are put in Hilbert order and thinned to three
tenths by systematic draws along it, which moves mass within a mode only; the law itself is 200,000 exact points,
thinned to as many. W2 is then an exact assignment. Independent groups of particles are the repeats.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ratios import Ratio
from scipy.optimize import linear_sum_assignment

import diffsample as ds
from diffsample import smc, solvers
from diffsample.smc.resamplers.ordering import hilbert_index

MEANS = np.random.default_rng(0).uniform(-40, 40, (40, 2))
VARIANCE, BETA = 2.126928**2, 3
LOG_Z = -14.637837  # of q^3
LAW = ds.exact.Mixture(jnp.full(40, 1 / 40), jnp.asarray(MEANS, jnp.float32), VARIANCE)
PROCESS = ds.VarianceExploding(sigma_max=300.0)
SEEDS = 5


class Cloud(NamedTuple):
    x: np.ndarray  # [n, 2]
    w: np.ndarray  # [n], sum 1
    log_z: float


class Row(NamedTuple):
    """Means of the repeats, and the deviation from repeat to repeat of W2 and log Z."""

    name: str
    w2: tuple[float, float]
    mmd: float
    histogram: float
    masses: float
    log_z: tuple[float, float]
    seconds: float


class Truth(NamedTuple):
    thinned: np.ndarray  # [points, 2]
    histogram: np.ndarray
    masses: np.ndarray  # [40] of what is nearest to each mean


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


def thinned(cloud: Cloud, points: int) -> np.ndarray:
    """Points of equal weight: systematic draws of a weighted cloud in Hilbert order."""
    cells = np.clip((cloud.x + 200) / 400 * 2**15, 0, 2**15 - 1).astype(np.uint32)
    order = np.argsort(np.asarray(hilbert_index(jnp.asarray(cells), 15)))
    reached = np.cumsum(cloud.w[order])
    places = np.searchsorted(reached / reached[-1], (np.arange(points) + 0.5) / points, side="right")
    return cloud.x[order[np.minimum(places, len(order) - 1)]]


def w2(x: np.ndarray, y: np.ndarray) -> float:
    """Wasserstein-2 distance of as many points, by exact assignment."""
    cost = ((x[:, None] - y[None]) ** 2).sum(axis=-1)
    return float(np.sqrt(cost[linear_sum_assignment(cost)].mean()))


def mmd2(x: np.ndarray, y: np.ndarray, bandwidth: float = 5.0) -> float:
    """Squared maximum mean discrepancy of two sets taken as laws (thinned points are not independent)."""

    def mean(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(((a[:, None] - b[None]) ** 2).sum(axis=-1) / (-2 * bandwidth**2)).mean())

    return mean(x, x) + mean(y, y) - 2 * mean(x, y)


def histogram(cloud: Cloud) -> np.ndarray:
    """Masses of 50 x 50 cells over [-45, 45]^2."""
    return np.histogram2d(*cloud.x.T, bins=50, range=[[-45, 45]] * 2, weights=cloud.w)[0]


def masses(cloud: Cloud) -> np.ndarray:
    """Of what is nearest to each of the 40 means."""
    nearest = ((cloud.x[:, None] - MEANS[None]) ** 2).sum(axis=-1).argmin(axis=1)
    return np.bincount(nearest, cloud.w, minlength=40)


def equal(x: Any) -> Cloud:
    x = np.asarray(x, np.float64)
    return Cloud(x, np.full(len(x), 1 / len(x)), math.nan)


def truth(points: int) -> Truth:
    cloud = equal(exact_samples(np.random.default_rng(1), 200_000))
    return Truth(thinned(cloud, points), histogram(cloud), masses(cloud))


def row(name: str, clouds: list[Cloud], exact: Truth, seconds: float) -> Row:
    points = [thinned(cloud, len(exact.thinned)) for cloud in clouds]
    distances = [w2(x, exact.thinned) for x in points]
    gaps = [mmd2(x, exact.thinned) for x in points]
    cells = [0.5 * np.abs(histogram(cloud) - exact.histogram).sum() for cloud in clouds]
    modes = [0.5 * np.abs(masses(cloud) - exact.masses).sum() for cloud in clouds]
    log_z = [cloud.log_z for cloud in clouds]
    spread = [float(np.std(v, ddof=1)) if len(clouds) > 1 else math.nan for v in (distances, log_z)]
    distance, gap, cell, mode, z = (float(np.mean(v)) for v in (distances, gaps, cells, modes, log_z))
    return Row(name, (distance, spread[0]), gap, cell, mode, (z, spread[1]), seconds)


def log_density(x: jax.Array, level: ds.Level) -> jax.Array:
    return LAW.log_prob(x, level)[:, None]


def known(target: smc.Product) -> smc.Corrector:
    return smc.corrector(target, log_density=log_density)


def samplers(particles: int, steps: int) -> Iterator[tuple[str, Any]]:
    """(name, sampler) of every way, those without weights before those with them."""
    mean, spread = MEANS.mean(axis=0), float(MEANS.var() + VARIANCE)
    grid = ds.times.uniform_logsnr(PROCESS, steps, stop=0.02)
    rate = 1 / BETA  # of the noise, relative to target score; the gauge matches fully at 2 / (1 + rate)
    tables = {
        "target score": (solvers.ddpm(PROCESS, grid, large=True), 1.0),
        "tempered noise": (solvers.ddim(PROCESS, grid, eta=math.sqrt(rate)), 2 / (1 + rate)),
        "noise rate 10": (solvers.sde_dpmpp(PROCESS, grid, order=1, eta=10.0), 2 / 11),
    }
    rise = smc.rising(float(BETA), high=2.0, low=0.5)  # the modes are 2.1 wide

    def driven(beta: Any, table: ds.Tableau, gauge: float) -> Any:
        return solvers.linear(smc.annealed(LAW, beta, mean=mean, variance=spread, gauge=gauge), table)

    for name, (table, full) in tables.items():
        yield f"{name}, no weights", smc.start_of(driven(float(BETA), table, 0.0))
        for gauge, said in ((0.0, ""), (full, ", gauge")):
            yield f"{name}, weights{said}", smc.corrected(driven(float(BETA), table, gauge), particles=particles)
    table, full = tables["target score"]
    yield "rising, no weights", smc.start_of(driven(rise, table, full))
    yield "rising, weights", smc.corrected(driven(rise, table, full), particles=particles)
    yield "rising, weights, log q known", smc.corrected(driven(rise, table, full), particles=particles, weights=known)


def measured(
    particles: int, steps: int, ways: Callable[[int, int], Iterator[tuple[str, Any]]] = samplers
) -> Iterator[Row]:
    """The exact law against itself, then each way of sampling."""
    exact, rng = truth(3 * particles // 10), np.random.default_rng(3)
    yield row("exact samples", [equal(exact_samples(rng, particles)) for _ in range(SEEDS)], exact, 0.0)
    for name, sampler in ways(particles, steps):
        out, seconds = _timed(sampler, particles)
        yield row(name, _clouds(out, particles), exact, seconds)


def rows(quick: bool) -> Iterator[Ratio]:
    """Prints the table, and gives how much nearer the corrected laws are."""
    particles, steps = (1000, 200) if quick else (10_000, 1000)
    print(f"\nForty modes to the third power, {SEEDS} groups of {particles} particles, {steps} steps, "
          f"log Z = {LOG_Z:.3f}")  # fmt: skip
    print(f"{'':31}{'W2':>7}{'sd':>6}{'MMD^2':>10}{'TV':>7}{'modes':>7}{'log Z':>9}{'sd':>6}{'s a group':>11}")
    found = {}
    for r in measured(particles, steps):
        found[r.name] = r.w2[0]
        print(f"{r.name:31}{r.w2[0]:7.2f}{r.w2[1]:6.2f}{r.mmd:10.6f}{r.histogram:7.3f}{r.masses:7.3f}{r.log_z[0]:9.3f}"
              f"{r.log_z[1]:6.2f}{r.seconds:11.2f}", flush=True)  # fmt: skip
    target = None if quick else 3  # of ten thousand particles
    for plain in ("target score", "tempered noise", "noise rate 10"):
        for way in ("noise rate 10, weights, gauge", "rising, weights", "exact samples"):
            ratio = found[f"{plain}, no weights"] / found[way]
            yield Ratio(f"{plain}: W2 without weights", way, ratio, None if way == "exact samples" else target, True)


def _clouds(out: Any, particles: int) -> list[Cloud]:
    """One a group."""
    if not isinstance(out, smc.Particles):
        return [equal(x) for x in np.asarray(out).reshape(-1, particles, 2)]
    weights = np.asarray(out.weights, np.float64)
    return [
        Cloud(np.asarray(x, np.float64), w, float(z)) for x, w, z in zip(out.grouped, weights, out.log_z, strict=True)
    ]


def _timed(sampler: Any, particles: int) -> tuple[Any, float]:
    """(result of SEEDS groups, seconds of the compiled program a group)."""
    run = jax.jit(lambda key, sampler: ds.sample(key, sampler, (SEEDS * particles, 2)))
    key = jax.random.key(0)
    compiled = run.lower(key, sampler).compile()
    start = time.perf_counter()
    out = jax.block_until_ready(compiled(key, sampler))
    return out, (time.perf_counter() - start) / SEEDS
