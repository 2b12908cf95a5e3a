"""The next schedules to evaluate: random ones, children of the best, and children that a predictor has chosen."""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np

from diffsample.search.mutation import crossover, mutate, random_schedule
from diffsample.search.space import Space
from diffsample.solvers.decisions import Decisions

Score = Callable[[Sequence[Decisions]], np.ndarray]
TRIES = 200  # mutations for one child before a random schedule takes its place, and draws of that


class Evolution(NamedTuple):
    """Sizes of the evolutionary loop.

    `elite` parents of true value; inside the predictor's loop `population` schedules are kept and `children` made in
    each of `rounds`; `explore` is the share of a predicted batch that are plain children all the same.
    """

    elite: int = 15
    population: int = 40
    children: int = 40
    rounds: int = 10
    explore: float = 0.25


def random_batch(rng: np.random.Generator, space: Space, nfe: int, count: int, seen: Collection[Decisions]) -> list:
    """`count` random schedules that were not seen.

    Raises:
        ValueError: the space seems to have no more of them.
    """
    fresh: dict[Decisions, None] = {}
    for _ in range(count):
        drawn = (random_schedule(rng, space, nfe) for _ in range(TRIES))
        schedule = next((new for new in drawn if new not in seen and new not in fresh), None)
        if schedule is None:
            raise ValueError(f"{TRIES} random schedules of {nfe} calls were all seen before: the space holds few more "
                             f"than {len(seen) + len(fresh)}; search less, or let more be decided")  # fmt: skip
        fresh[schedule] = None
    return list(fresh)


def children(
    rng: np.random.Generator, parents: Sequence[Decisions], space: Space, count: int, seen: Collection[Decisions]
) -> list[Decisions]:
    """`count` new schedules, each mutated from a parent or from a crossover of two of equal length.

    Reference: the loop released with Liu et al. 2024, arXiv 2312.07243.
    """
    fresh: dict[Decisions, None] = {}
    for _ in range(count):
        for _ in range(TRIES):
            child = _child(rng, parents, space)
            if child not in seen and child not in fresh:
                break
        else:
            (child,) = random_batch(rng, space, parents[0].nfe, 1, {*seen, *fresh})
        fresh[child] = None
    return list(fresh)


def predicted_children(
    rng: np.random.Generator,
    parents: Sequence[Decisions],
    score: Score,
    space: Space,
    count: int,
    seen: Collection[Decisions],
    sizes: Evolution,
) -> list[Decisions]:
    """`count` new schedules: the predictor's favourites of its own evolution, and a share of plain children.

    Args:
        parents: evaluated schedules, best first; the evolution starts from them.
        score: the predictor, lower is better.
        seen: what was evaluated.
    """
    pool = dict(zip(parents, score(parents), strict=True))
    found: dict[Decisions, float] = {}
    for _ in range(sizes.rounds):
        fresh = children(rng, list(pool), space, sizes.children, {*pool, *found, *seen})
        scored = dict(zip(fresh, map(float, score(fresh)), strict=True))
        found |= scored
        pool = dict(sorted((pool | scored).items(), key=lambda item: item[1])[: sizes.population])
    plain = round(sizes.explore * count)
    chosen = sorted(found, key=found.__getitem__)[: count - plain]
    return [*chosen, *children(rng, parents[: sizes.elite], space, count - len(chosen), {*seen, *found})]


def _child(rng: np.random.Generator, parents: Sequence[Decisions], space: Space) -> Decisions:
    parent = parents[int(rng.integers(len(parents)))]
    if rng.random() < space.rates.crossover:
        alike = [p for p in parents if p != parent and (p.steps, p.nfe) == (parent.steps, parent.nfe)]
        if alike:
            parent = crossover(rng, parent, alike[int(rng.integers(len(alike)))], space)
    return mutate(rng, parent, space)
