"""The best schedules of a search once more, on other noise: the least of many noisy values is too small."""

from collections.abc import Sequence

import numpy as np

from diffsample.arguments import positive
from diffsample.search.history import History
from diffsample.search.staged import Evaluate, Found
from diffsample.solvers.decisions import Decisions


def confirmed(found: Found, evaluate: Evaluate, *, count: int = 16, also: Sequence[Decisions] = ()) -> Found:
    """The best of the `count` best schedules by values that the search has not seen.

    A search keeps what happens to suit its own noise: its winner's value is too small, and a schedule beside it, or one
    that it started from, may be better. Costs `count` more evaluations, on more samples if `evaluate` has more.

    Args:
        found: the result of `search`.
        evaluate: schedules -> values, as for `search`; a `Population` from other noise.
        count: schedules of the search. also: others to compare with, such as known ones that it started from.

    Returns: the best, its value by this `evaluate` (again the least of several, if fewer), and the history of these.

    Raises:
        ValueError: a count below 1, values of the wrong shape.

    >>> from diffsample.solvers import multistep_decisions
    >>> schedules = [multistep_decisions([1.0, t, 0.1]) for t in (0.3, 0.4, 0.5)]
    >>> lucky = History(schedules, [0.1, 0.2, 0.3], [0, 0, 0], [float("nan")])
    >>> later = lambda schedules: np.array([-schedule.times[1] for schedule in schedules])
    >>> confirmed(Found(schedules[0], 0.1, lucky), later, count=2).best.times[1]
    0.4
    """
    positive("count", count)
    schedules = list(dict.fromkeys([*found.history.ranked(count), *also]))
    values = np.asarray(evaluate(schedules), np.float64)
    if values.shape != (len(schedules),):
        raise ValueError(f"evaluate returned shape {values.shape} for {len(schedules)} schedules")
    history = History()
    history.add(schedules, np.where(np.isnan(values), np.inf, values).tolist(), float("nan"))
    return Found(history.ranked(1)[0], float(np.min(history.values)), history)
