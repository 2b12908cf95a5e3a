"""What the command line runs: timed sampling, its judgement against real data, and solvers compared in one program.

Nothing here knows a solver, a guidance rule or a model: samplers, tableaus and the data's moments come from the caller.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax import Array

from diffsample import metrics
from diffsample.compiles import count_compiles
from diffsample.sampler import Sampler
from diffsample.sampling import sample
from diffsample.tableau import Tableau, alike

CHUNK = 1000  # samples at a time, which bounds the memory


class Judge(NamedTuple):
    """Real data, class by class, and a classifier."""

    means: np.ndarray  # [K, D]
    covs: np.ndarray  # [K, D, D]
    classifier: Callable[[Array], Array]  # images [B, ...] -> logits [B, K]


class Timed(NamedTuple):
    """Samples, and what two equal calls cost."""

    images: Array  # [B, ...]
    seconds: tuple[float, float]  # first call, second call
    compiles: tuple[int, int]  # programs compiled in each


class Score(NamedTuple):
    """One row of a comparison."""

    solver: str
    calls: int  # network calls a sample
    frechet: float
    agreement: float  # share of samples that the classifier reads as the class asked for


def sample_twice(key: Array, sampler: Sampler, labels: Array, shape: tuple[int, ...], progress: bool = False) -> Timed:
    """The same samples twice, to tell compiling from running.

    Args:
        key: typed key.
        sampler: what to run.
        labels: int32 [B] condition.
        shape: of one sample.
        progress: show a bar.
    """
    seconds, compiles = [], []
    for _ in range(2):
        with count_compiles() as counted:
            start = time.perf_counter()
            images = sample(key, sampler, (len(labels), *shape), cond=labels, chunk=CHUNK, progress=progress)
            images.block_until_ready()
            seconds.append(time.perf_counter() - start)
        compiles.append(counted.count)
    return Timed(images, (seconds[0], seconds[1]), (compiles[0], compiles[1]))


def quality(images: Array, labels: Array, judge: Judge) -> tuple[float, float]:
    """(Frechet distance in pixel space to the real data of these classes, share read as the class asked for)."""
    real = moments_of_classes(labels, judge)
    agreement = metrics.accuracy(judge.classifier(images), labels)
    return metrics.frechet_distance(*metrics.moments(images), *real), float(agreement)


def frechet_floor(labels: Array, judge: Judge, repeats: int = 4) -> float:
    """Frechet distance that as many perfect samples would measure, because their moments are estimates too.

    The mean over draws from Gaussians with each class's moments; falls like 1 / N.
    """
    rng, asked, distances = np.random.default_rng(0), np.asarray(labels), []
    for _ in range(repeats):
        drawn = [
            rng.multivariate_normal(judge.means[k], judge.covs[k], count, check_valid="ignore", method="eigh")
            for k, count in zip(*np.unique(asked, return_counts=True), strict=True)
        ]
        moments = metrics.moments(np.concatenate(drawn))
        distances.append(metrics.frechet_distance(*moments, *moments_of_classes(labels, judge)))
    return float(np.mean(distances))


def compare(
    key: Array,
    attach: Callable[[Tableau], Sampler],
    tableaus: Mapping[str, Sequence[Tableau]],
    labels: Array,
    shape: tuple[int, ...],
    judge: Judge,
) -> Iterator[Score]:
    """Scores of every tableau from the same noise, all padded to one shape and so run by one compiled program."""
    padded = iter(alike([table for tables in tableaus.values() for table in tables]))
    for name, tables in tableaus.items():
        for _ in tables:
            sampler = attach(next(padded))
            images = sample(key, sampler, (len(labels), *shape), cond=labels, chunk=CHUNK)
            yield Score(name, sampler.nfe, *quality(images, labels, judge))


def most_steps(build: Callable[[int], Tableau], calls: int) -> Tableau:
    """The table of the most steps that makes at most this many network calls.

    Raises:
        ValueError: even one step makes more.
    """
    for steps in range(calls, 0, -1):
        table = build(steps)
        if table.calls <= calls:
            return table
    raise ValueError(f"no number of steps makes at most {calls} network calls")


def tabulated(title: str, table: Sequence[Any], column: str, budgets: Sequence[int]) -> str:
    """A line a solver, a column a budget of calls; where fewer calls were made, their number follows in brackets."""
    lines = [title, f"{'calls':16}" + "".join(f"{budget:>13}" for budget in budgets)]
    for name in dict.fromkeys(score.solver for score in table):
        line = f"{name:16}"
        for score, budget in zip((s for s in table if s.solver == name), budgets, strict=True):
            fewer = f" ({score.calls})" if score.calls != budget else ""
            line += f"{f'{getattr(score, column):.4f}{fewer}':>13}"
        lines.append(line)
    return "\n".join(lines)


def moments_of_classes(labels: Array, judge: Judge) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of real data with the labels' class frequencies."""
    means, covs = np.asarray(judge.means, np.float64), np.asarray(judge.covs, np.float64)
    weights = np.bincount(np.asarray(labels), minlength=len(means)) / len(labels)
    mean = weights @ means
    apart = means - mean
    return mean, np.einsum("k,kij->ij", weights, covs) + (weights[:, None] * apart).T @ apart
