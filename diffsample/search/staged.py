"""Multi-stage search for solver schedules: random and evolved ones first, then a predictor inside the evolution."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jax import Array

from diffsample.arguments import positive
from diffsample.progress import progress_bar
from diffsample.search.history import History, read, write
from diffsample.search.predictor import Ranker, kendall_tau
from diffsample.search.proposing import Evolution, children, predicted_children, random_batch
from diffsample.search.space import Space
from diffsample.solvers.decisions import Decisions

PyTree: TypeAlias = Any
Evaluate: TypeAlias = Callable[[Sequence[Decisions]], np.ndarray]
TRAINING_STREAM = 2**32 - 1  # apart from the numbers of generations


class Stages(NamedTuple):
    """How a search is laid out.

    `batch` schedules are evaluated in each of `generations`. The first `first` make the first stage, which has no
    predictor: one generation is random, `start` included, the others are children of the best. Later stages last
    `each` generations; the predictor is trained on all evaluated schedules where one begins.
    """

    generations: int = 20
    batch: int = 40
    first: int = 4
    each: int = 2


class Found(NamedTuple):
    """The result of a search."""

    best: Decisions
    value: float  # its value by `evaluate`
    history: History


class Progress(NamedTuple):
    """What `report` is told after every generation."""

    generation: int  # from 0
    best: float
    tau: float  # of the predictor on this generation, nan without one
    schedule: Decisions  # the best so far


STAGES, EVOLUTION, RANKER = Stages(), Evolution(), Ranker()


def search(
    key: Array,
    evaluate: Evaluate,
    nfe: int,
    *,
    space: Space,
    start: Sequence[Decisions] = (),
    stages: Stages = STAGES,
    evolution: Evolution = EVOLUTION,
    ranker: Ranker | None = RANKER,
    checkpoint: str | Path | None = None,
    progress: bool = False,
    report: Callable[[Progress], None] | None = None,
) -> Found:
    """S3: the schedule of `nfe` network calls with the least value, by evolution and a learned predictor in stages.

    Each generation is one call of `evaluate`. In the first stage schedules are random, then mutated from the best; in
    every later one the predictor, trained on all that was evaluated, chooses among many children (its own evolution).
    The search is decided by its key, whatever happens in between: with a checkpoint, a run that is killed and started
    again loses at most one generation and ends with the same result.

    Args:
        key: typed key.
        evaluate: schedules -> values, lower is better; a `Population`, or any function that is deterministic. A
            checkpoint tells it apart by its `fingerprint`, where it has one as a `Population` does.
        nfe: network calls of every schedule.
        space: what may be decided.
        start: known schedules of `nfe` calls to begin with, such as `multistep_decisions` of the usual grids.
        stages, evolution: sizes.
        ranker: the predictor; None evolves by true values alone.
        checkpoint: directory that is written after every generation, and resumed from where it holds this search.
        progress: show a tqdm bar.
        report: called after every generation, also with those read from a checkpoint.

    Returns: the best schedule, its value, and the history of all.

    Raises:
        ValueError: a start of another number of calls or another first time; values of the wrong shape; a space that is
            smaller than the search.
        FileExistsError: a directory of another search, or of another population.

    Reference: Liu et al. 2024, arXiv 2312.07243 (S3); its predictor is Liu et al. 2023, arXiv 2306.08860.

    >>> earliest = lambda schedules: np.array([schedule.times[1] for schedule in schedules])
    >>> space, small = Space(1.0, (0.01, 0.01)), Stages(generations=3, batch=8)
    >>> search(jax.random.key(0), earliest, 2, space=space, stages=small, ranker=None).best.nfe
    2
    """
    _check(nfe, space, start, stages, evolution)
    directory, settings = None if checkpoint is None else Path(checkpoint), {}
    history, weights = History(), None
    if directory is not None:
        settings = _settings(key, nfe, evaluate, space, start, stages, evolution, ranker)
        history, weights = read(directory, settings)
    plan = _Plan(key, evaluate, nfe, space, start, stages, evolution, ranker)
    tell = report or _ignore
    for g in range(history.generation):
        tell(_progress(history, g))
    with progress_bar(stages.generations - history.generation, "generation", progress) as advance:
        while history.generation < stages.generations:
            weights = plan.advance(history, weights)
            if directory is not None:
                write(directory, history, settings, weights)
            advance(1)
            tell(_progress(history, history.generation - 1))
    return Found(history.ranked(1)[0], float(np.min(history.values)), history)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What a generation is made from: the arguments of the search, and nothing that changes."""

    key: Array
    evaluate: Evaluate
    nfe: int
    space: Space
    start: Sequence[Decisions]
    stages: Stages
    evolution: Evolution
    ranker: Ranker | None

    @property
    def longest(self) -> int:
        """Most steps that a schedule of so many calls has."""
        return self.nfe + 1

    def advance(self, history: History, weights: PyTree) -> PyTree:
        """One generation more; returns the weights of the predictor that it used."""
        later = history.generation - self.stages.first
        if self.ranker is not None and later >= 0 and (weights is None or later % self.stages.each == 0):
            weights = self._train(history, later // self.stages.each)
        batch = self._propose(history, weights)
        values = np.asarray(self.evaluate(batch), np.float64)
        if values.shape != (len(batch),):
            raise ValueError(f"evaluate returned shape {values.shape} for {len(batch)} schedules")
        values = np.where(np.isnan(values), np.inf, values)
        tau = float("nan")
        if weights is not None and self.ranker is not None:
            tau = kendall_tau(self.ranker.score(weights, batch, self.longest), values)
        history.add(batch, values.tolist(), tau)
        return weights

    def _train(self, history: History, stage: int) -> PyTree:
        assert self.ranker is not None
        key = jax.random.fold_in(jax.random.fold_in(self.key, TRAINING_STREAM), stage)
        room = self.stages.generations * self.stages.batch
        return jax.device_get(self.ranker.fit(key, history.schedules, history.values, self.longest, room))

    def _propose(self, history: History, weights: PyTree) -> list[Decisions]:
        rng = _generator(jax.random.fold_in(self.key, history.generation))
        seen, batch = set(history.schedules), self.stages.batch
        if not history.generation:
            start = list(dict.fromkeys(self.start))[:batch]
            return [*start, *random_batch(rng, self.space, self.nfe, batch - len(start), set(start))]
        if weights is None or self.ranker is None:
            return children(rng, history.ranked(self.evolution.elite), self.space, batch, seen)
        score = partial(self.ranker.score, weights, longest=self.longest)
        parents = history.ranked(self.evolution.population)
        return predicted_children(rng, parents, score, self.space, batch, seen, self.evolution)


def _generator(key: Array) -> np.random.Generator:
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())


def _check(nfe: int, space: Space, start: Sequence[Decisions], stages: Stages, evolution: Evolution) -> None:
    sizes = evolution._asdict()
    explore = sizes.pop("explore")
    for name, value in {"nfe": nfe, **stages._asdict(), **sizes}.items():
        positive(name, value)
    if not 0 <= explore <= 1:
        raise ValueError(f"explore={explore} is a share, between 0 and 1")
    for schedule in start:
        if not np.isclose(schedule.times[0], space.start):
            raise ValueError(f"a schedule to start from begins at t={schedule.times[0]}, the space at {space.start}")
        if schedule.nfe != nfe:
            raise ValueError(f"a schedule to start from makes {schedule.nfe} calls, the search is for nfe={nfe}")
    if len(set(start)) > stages.batch:
        raise ValueError(f"{len(set(start))} schedules to start from do not fit in a batch of {stages.batch}")


def _settings(key: Array, nfe: int, evaluate: Any, *others: Any) -> dict:
    """What decides a search, as JSON, to tell whether a checkpoint is its own."""
    names = ("space", "start", "stages", "evolution", "ranker")
    found = {name: repr(value) for name, value in zip(names, others, strict=True)}
    told = {"nfe": nfe, "evaluate": getattr(evaluate, "fingerprint", None)}
    return {"key": np.asarray(jax.random.key_data(key)).tolist(), **told, **found}


def _progress(history: History, g: int) -> Progress:
    values = np.array(history.values)
    until = int(np.searchsorted(history.generations, g, side="right"))
    best = int(np.argmin(values[:until]))
    return Progress(g, float(values[best]), history.taus[g], history.schedules[best])


def _ignore(step: Progress) -> None:
    """Where nobody asked for a report."""
