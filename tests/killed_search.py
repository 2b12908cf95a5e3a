"""Run by test_staged.py in a process of its own, which it kills: a search over a synthetic objective."""

import sys
import time
from pathlib import Path

import jax
import numpy as np

from diffsample.search import Found, Ranker, Space, Stages, search

SPACE = Space(1.0, (0.01, 0.01))
STAGES = Stages(generations=8, batch=12, first=3, each=2)
SMALL = Ranker(hidden=8, width=8, epochs=5)


def worth(schedules):
    """Least for noise predictions of order 2 at times that halve."""
    found = []
    for s in schedules:
        wrong = sum(order != min(2, i + 1) for i, order in enumerate(s.orders)) + s.predictions.count("data")
        apart = sum(abs(np.log2(a / b) - 1) for a, b in zip(s.times[:-2], s.times[1:-1], strict=True))
        found.append(wrong + apart + 0.3 * (s.first == "zero") + 0.2 * s.correctors.count("pseudo"))
    return np.array(found)


def run(directory: Path | None, pause: float = 0.0) -> Found:
    """The search; with a pause in every generation, so that it can be killed in the middle."""

    def slow(schedules):
        time.sleep(pause)
        return worth(schedules)

    return search(jax.random.key(5), slow, 4, space=SPACE, stages=STAGES, ranker=SMALL, checkpoint=directory)


if __name__ == "__main__":
    run(Path(sys.argv[1]), pause=0.2)
