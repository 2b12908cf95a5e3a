"""Search for solver schedules: S3, with populations of schedules evaluated in one compiled program."""

from diffsample.search.confirming import confirmed
from diffsample.search.encoding import Encoded, encode
from diffsample.search.history import History
from diffsample.search.mutation import crossover, mutate, random_schedule
from diffsample.search.objectives import (
    Discrepancy,
    Frechet,
    Objective,
    OnHost,
    ReferenceDistance,
    Sinkhorn,
    SlicedWasserstein,
    accurate_samples,
)
from diffsample.search.population import Population
from diffsample.search.predictor import Ranker, kendall_tau
from diffsample.search.proposing import Evolution
from diffsample.search.space import Rates, Space
from diffsample.search.staged import Found, Progress, Stages, search

__all__ = [
    "Discrepancy",
    "Encoded",
    "Evolution",
    "Found",
    "Frechet",
    "History",
    "Objective",
    "OnHost",
    "Population",
    "Progress",
    "Ranker",
    "Rates",
    "ReferenceDistance",
    "Sinkhorn",
    "SlicedWasserstein",
    "Space",
    "Stages",
    "accurate_samples",
    "confirmed",
    "crossover",
    "encode",
    "kendall_tau",
    "mutate",
    "random_schedule",
    "search",
]
