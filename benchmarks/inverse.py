"""Every inverse-problem rule against exact posterior samples of a mixture of 25 Gaussians, per network call.

    python benchmarks/inverse.py [--quick] [--d 8 80 800] [--measured 1] [--problems 3] [--samples 500]
                                 [--steps 20 100 1000] [--methods mmps dps ...] [--out inverse.png]

The problems of Boys et al. 2023 (arXiv 2310.06721, section 4.1): means (-8i, -8j, -8i, ...) with i, j in -2..2, unit
covariances, y = A x0 + N(0, 1) with A of random singular vectors and singular values in (0, 1), the VP process with
beta from 0.1 to 25. The denoiser is exact, so what is measured is the rule's own error. Numbers are sliced Wasserstein
distances to exact posterior samples, the mean over problems; "exact" is the sampler with E[x0 | x_t, y] itself, and the
floor what two exact sets measure. Operator, y and weights change without compiling: one program a rule and step count.
"""

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ratios import Ratio

import diffsample as ds
from diffsample import guidance, metrics, plot, solvers
from diffsample.compiles import count_compiles

PROCESS = ds.VariancePreserving(0.1, 25.0)
SIGMA_Y = 1.0
DATA_VAR = 129.0  # of every coordinate: 64 (mean of i^2 = 2) + 1
SLICES = 1000
KEY = jax.random.key(0)


class Problem(NamedTuple):
    """One linear measurement of a datum."""

    law: ds.exact.Mixture
    posterior: ds.exact.Mixture
    operator: Any
    y: np.ndarray


class Score(NamedTuple):
    """One rule at one number of steps; rules with more than one evaluation a call cost as many more."""

    name: str
    evaluations: int
    vjps: int
    distances: list[float]  # one a problem


def likelihood(A: Any, x0: jax.Array, y: jax.Array) -> jax.Array:
    """-log N(y; A x0, SIGMA_Y^2) up to a constant, for one sample."""
    return jnp.sum((y - A(x0)) ** 2) / (2 * SIGMA_Y**2)


def spread_out(p: Problem, samples: int) -> jax.Array:
    return jnp.tile(jnp.asarray(p.y, jnp.float32)[None], (samples, 1))


# name -> rule of (problem, steps, samples). Scales of published gradients are those of 1000 steps, times 1000 / steps.
NOISY: dict[str, Callable[[Problem, int, int], Any]] = {
    "exact": lambda p, n, b: p.posterior,
    "tmpd": lambda p, n, b: guidance.tmpd(p.law, p.operator, p.y, SIGMA_Y, size=len(p.y)),
    "tmpd_diagonal": lambda p, n, b: guidance.tmpd_diagonal(p.law, p.operator, p.y, SIGMA_Y),
    "mmps(1)": lambda p, n, b: guidance.mmps(p.law, p.operator, p.y, SIGMA_Y),
    "mmps(3)": lambda p, n, b: guidance.mmps(p.law, p.operator, p.y, SIGMA_Y, iterations=3),
    "pigdm": lambda p, n, b: guidance.pigdm(p.law, p.operator, p.y, SIGMA_Y),
    "pigdm(var=129)": lambda p, n, b: guidance.pigdm(p.law, p.operator, p.y, SIGMA_Y, data_var=DATA_VAR),
    "jfps(var=129)": lambda p, n, b: guidance.jfps(p.law, p.operator, p.y, SIGMA_Y, data_var=DATA_VAR),
    "diffpir": lambda p, n, b: guidance.diffpir(p.law, p.operator, p.y, SIGMA_Y),
    "lgd_mc(8, var=129)": lambda p, n, b: guidance.lgd_mc(
        p.law, jax.tree_util.Partial(likelihood, p.operator), spread_out(p, b), data_var=DATA_VAR
    ),
    "dps": lambda p, n, b: guidance.dps(p.law, p.operator, p.y, 0.05 * 1000 / n),
    "dps_gaussian": lambda p, n, b: guidance.dps_gaussian(p.law, p.operator, p.y, SIGMA_Y),
    "stsl": lambda p, n, b: guidance.stsl(p.law, p.operator, p.y, scale=0.05 * 1000 / n, curvature=0.02 * 1000 / n),
    "mcg": lambda p, n, b: guidance.mcg(p.law, p.operator, p.y, 0.05 * 1000 / n),
    "replacement": lambda p, n, b: guidance.replacement(p.law, p.operator, p.y),
}
SPLIT: dict[str, Callable[[Problem, int, int], Any]] = {  # those that split the noise themselves, under DDIM
    "exact, ddim": lambda p, n, b: p.posterior,
    "ddnm": lambda p, n, b: guidance.ddnm(p.law, p.operator, p.y),
    "ddnm_plus": lambda p, n, b: guidance.ddnm_plus(p.law, p.operator, p.y, SIGMA_Y),
    "ddrm": lambda p, n, b: guidance.ddrm(p.law, p.operator, p.y, SIGMA_Y),
    "mpgd": lambda p, n, b: guidance.mpgd(p.law, p.operator, p.y),
    "pigdm_as_coded": lambda p, n, b: guidance.pigdm_as_coded(p.law, p.operator, p.y),
    "red_diff": lambda p, n, b: guidance.red_diff(p.law, p.operator, p.y),
}
METHODS = NOISY | SPLIT
NOISELESS = ("mcg", "replacement", "ddnm", "pigdm_as_coded")  # take y for noiseless; marked in the table


def problem(d: int, measured: int, seed: int) -> Problem:
    """A random operator, a datum of the mixture and its measurement."""
    rng = np.random.default_rng([d, measured, seed])
    centres = [(-8.0 * i, -8.0 * j) for i in range(-2, 3) for j in range(-2, 3)]
    means = np.array([np.resize(centre, d) for centre in centres])
    left, _, right = np.linalg.svd(rng.normal(size=(measured, d)), full_matrices=False)
    A = left @ np.diag(np.sort(rng.uniform(size=measured))[::-1]) @ right
    x0 = means[rng.integers(25)] + rng.normal(size=d)
    y = A @ x0 + SIGMA_Y * rng.normal(size=measured)
    law = ds.exact.Mixture(np.full(25, 1 / 25), means, 1.0)
    return Problem(law, law.posterior(A, y, SIGMA_Y**2), guidance.operators.matrix(A), y)


def score(name: str, problems: Sequence[Problem], steps: int, samples: int) -> Score:
    """The rule on every problem, same noise for all rules."""
    solver = solvers.ddim if name in SPLIT else solvers.ddpm
    table = solver(PROCESS, ds.times.uniform(PROCESS, steps))
    distances, rule = [], None
    for i, p in enumerate(problems):
        rule = METHODS[name](p, steps, samples)
        key = jax.random.fold_in(KEY, i)
        out = ds.sample(key, solvers.linear(rule, table), (samples, p.law.means.shape[1]), check=False)
        distances.append(distance(i, out, p.posterior.sample(jax.random.fold_in(key, 1), samples)))
    assert rule is not None
    return Score(name, table.calls * rule.evaluations, table.calls * rule.vjps, distances)


def distance(i: int, x: jax.Array, y: jax.Array) -> float:
    return float(metrics.sliced_wasserstein(jax.random.fold_in(KEY, 100 + i), x, y, SLICES))


def floor(problems: Sequence[Problem], samples: int) -> float:
    """What two sets of exact posterior samples measure."""
    sets = ([p.posterior.sample(jax.random.key(s), samples) for p in problems] for s in (1, 2))
    return float(np.mean([distance(i, *pair) for i, pair in enumerate(zip(*sets, strict=True))]))


def ranked(scores: dict[str, list[Score]]) -> list[str]:
    """Names, best first by the most steps; what exploded last."""
    found = {name: float(np.mean(several[-1].distances)) for name, several in scores.items()}
    return sorted(found, key=lambda name: found[name] if np.isfinite(found[name]) else np.inf)


def shown(score: Score) -> str:
    mean = np.mean(score.distances)
    return f"{mean:11.3f}" if np.isfinite(mean) and mean < 1e4 else f"{'exploded':>11}"


def compare(methods: Sequence[str], d: int, measured: int, options: argparse.Namespace) -> dict[str, list[Score]]:
    """Runs one setting and prints its table, best first."""
    problems = [problem(d, measured, seed) for seed in range(options.problems)]
    with count_compiles() as compiles:
        scores = {m: [score(m, problems, steps, options.samples) for steps in options.steps] for m in methods}
    size = f"{options.problems} problems of {options.samples} samples, {compiles.count} programs compiled"
    print(f"\nd = {d}, {measured} measured: sliced Wasserstein (floor {floor(problems, options.samples):.3f}); {size}")
    heads = "".join(f"{f'{steps} steps':>11}" for steps in options.steps)
    print(f"{'rank':>4}  {'rule':22}{heads}{'evaluations':>13}{'VJPs':>7}")
    for rank, name in enumerate(ranked(scores), 1):
        label, last = f"{name}{' *' * (name in NOISELESS)}", scores[name][-1]
        numbers = "".join(map(shown, scores[name]))
        print(f"{rank:4d}  {label:22}{numbers}{last.evaluations:13d}{last.vjps:7d}", flush=True)
    print("* takes y for noiseless")
    return scores


def draw(found: dict[tuple[int, int], dict[str, list[Score]]], path: str) -> None:
    """Distance against network evaluations, one panel a setting."""
    figure = plot.figure_class()(figsize=(6.5 * len(found), 5.2), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, ((d, measured), scores) in zip(panels, found.items(), strict=True):
        for name in ranked(scores):
            i = list(METHODS).index(name)  # one style a rule, in every panel
            kept = [s for s in scores[name] if np.mean(s.distances) < 100]  # what exploded is left out
            calls, means = [s.evaluations for s in kept], [float(np.mean(s.distances)) for s in kept]
            style = {"color": "k", "lw": 2.5} if name.startswith("exact") else {"color": f"C{i % 10}", "lw": 1}
            line = ("-", "--", ":")[i // 10]
            axes.loglog(calls, means, line, marker=plot.MARKERS[i % 8], ms=5, label=name, **style)
        axes.set(xlabel="network evaluations a sample", ylabel="sliced Wasserstein to the posterior",
                 title=f"d = {d}, {measured} measured")  # fmt: skip
        axes.xaxis.set_minor_formatter("")
    panels[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8, title="best first")
    plot.save(figure, path)


def rows(quick: bool) -> Iterator[Ratio]:
    """Prints the tables; gives, for the most steps, the distance of the exact sampler and of the five best rules."""
    options = parsed(["--quick"] if quick else [])
    for d, m in product(options.d, options.measured):
        problems = [problem(d, m, seed) for seed in range(options.problems)]
        scores, least = compare(options.methods, d, m, options), floor(problems, options.samples)
        best = [name for name in ranked(scores) if name not in ("exact", "exact, ddim")][:5]
        for name in ("exact", *best):
            far = float(np.mean(scores[name][-1].distances))
            said = f"d = {d}, {m} measured, {options.steps[-1]} steps: {name}"
            yield Ratio(said, "two exact sets", far / least)


def main(options: argparse.Namespace) -> None:
    print(f"jax {jax.__version__}, {jax.devices()[0]}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    found = {(d, m): compare(options.methods, d, m, options) for d in options.d for m in options.measured}
    draw(found, options.out)
    print(f"\nplot: {options.out}")


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small problem: does it run")
    parser.add_argument("--d", type=int, nargs="+", default=[8, 80], help="dimensions; 800 takes patience")
    parser.add_argument("--measured", type=int, nargs="+", default=[1], help="numbers measured: 1, 2, 4 in the paper")
    parser.add_argument("--problems", type=int, default=3, help="random problems (20 in the paper)")
    parser.add_argument("--samples", type=int, default=500, help="samples a problem (1000 in the paper)")
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 100, 1000], help="steps (1000 in the paper)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--out", default="inverse.png")
    options = parser.parse_args(arguments)
    if options.quick:
        options.d, options.problems, options.samples, options.steps = [8], 1, 100, [10, 30]
    return options


if __name__ == "__main__":
    main(parsed())
