"""The space of solver schedules that a search draws from, and how often a child differs from its parent.

Defaults are those of the authors' released search, without DPM-Solver-v3's prediction, which needs statistics of the
model; `Space(predictions=(("noise", 0.3), ("data", 0.3), ("v3", 0.4)))` brings it back.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from diffsample.solvers.decisions import CORRECTORS, FIRST, HIGHEST, PREDICTIONS, Relaxation

Weighted: TypeAlias = tuple[tuple[Any, float], ...]  # (choice, weight), ...


@dataclasses.dataclass(frozen=True)
class Rates:
    """Probabilities with which a child differs from its parent.

    Args:
        insert, delete: of a step more and a step less; the number of calls is mended afterwards.
        jitter: standard deviation of the factor 1 + N(0, jitter^2) on every inner time.
        order, prediction, points, corrector: of redrawing that decision of one step.
        gamma, gamma_std: of adding N(0, gamma_std^2) to a relaxation 1 + gamma h, none has gamma 0.
        relaxation: of redrawing a relaxation altogether.
        first: of redrawing what stands for the first call.
        crossover, stepwise: of two parents in place of one, and then of coin flips step by step.
    """

    insert: float = 0.2
    delete: float = 0.2
    jitter: float = 0.03
    order: float = 0.3
    prediction: float = 0.3
    points: float = 0.3
    gamma: float = 0.09
    gamma_std: float = 0.03
    relaxation: float = 0.09
    corrector: float = 0.3
    first: float = 0.3
    crossover: float = 0.3
    stepwise: float = 0.5

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not (value >= 0 and (value <= 1 or name in ("jitter", "gamma_std"))):
                raise ValueError(f"{name}={value} must lie in [0, 1]")


@dataclasses.dataclass(frozen=True)
class Space:
    """What may be decided, with the weights of random choices.

    Args:
        start: the first time of every schedule.
        stop: (lowest, highest) last time, drawn uniformly; equal numbers keep it; (0, 0) ends on clean data.
        orders, predictions, correctors: (choice, weight) pairs for a step.
        points: (number of outputs, weight) for the estimate of a first derivative.
        relaxations: (`Relaxation` or None, weight) for a first derivative.
        first: (choice, weight) pairs for the first call.
        warp: a random schedule is uniform in t^(1/rho) before jitter, rho uniform in this range.
        margin: least distance of an inner time to the ends, in units of t.
        rates: of mutation and crossover.

    Raises:
        ValueError: a range that is empty, an unknown choice, or weights that are negative or all zero.

    >>> Space(start=1.0, stop=(1e-3, 1e-3)).ends_clean
    False
    """

    start: float
    stop: tuple[float, float]
    orders: Weighted = ((1, 0.2), (2, 0.4), (3, 0.3), (4, 0.1))
    predictions: Weighted = (("noise", 0.5), ("data", 0.5))
    correctors: Weighted = (("none", 0.5), ("pseudo", 0.5))
    points: Weighted = ((1, 0.5), (2, 0.5))
    relaxations: Weighted = ((None, 0.5), (Relaxation("bh2"), 0.25), (Relaxation("bh1"), 0.25))
    first: Weighted = (("call", 0.5), ("zero", 0.5))
    warp: tuple[float, float] = (1.0, 3.0)
    margin: float = 1e-3
    rates: Rates = Rates()

    def __post_init__(self) -> None:
        low, high = self.stop
        if not 0 <= low <= high < self.start - 2 * self.margin:
            raise ValueError(f"stop={self.stop} must be (lowest, highest) last time, between 0 and start={self.start}")
        if not 0 < self.warp[0] <= self.warp[1]:
            raise ValueError(f"warp={self.warp} must be (lowest, highest) exponent, above 0")
        for name, known in (("orders", range(1, HIGHEST + 1)), ("predictions", PREDICTIONS),
                            ("correctors", CORRECTORS), ("points", range(1, HIGHEST)), ("first", FIRST),
                            ("relaxations", None)):  # fmt: skip
            _check_weights(name, getattr(self, name), known)

    @property
    def ends_clean(self) -> bool:
        """Whether the last time is 0, where a step has order 1."""
        return self.stop[1] == 0.0


def pick(rng: np.random.Generator, choices: Weighted) -> Any:
    """One choice, by weight."""
    weights = np.array([weight for _, weight in choices])
    return choices[int(rng.choice(len(choices), p=weights / weights.sum()))][0]


def _check_weights(name: str, choices: Weighted, known: Sequence[Any] | None) -> None:
    for choice, weight in choices:
        if known is not None and choice not in known:
            raise ValueError(f"{name} offers {choice!r}, which is not one of {list(known)}")
        if not weight >= 0:
            raise ValueError(f"{name} gives {choice!r} the weight {weight}, which must not be negative")
    if not sum(weight for _, weight in choices) > 0:
        raise ValueError(f"{name}={choices} leaves nothing to choose from: some weight must be positive")
