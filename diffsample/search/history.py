"""The record of a search, and its checkpoints: one directory a generation, complete or not there at all."""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from diffsample import checkpoint
from diffsample.search.encoding import Encoded, encode
from diffsample.solvers.decisions import Decisions

PyTree: TypeAlias = Any
KEPT = 2  # checkpoints


@dataclasses.dataclass
class History:
    """Everything that was evaluated, in order.

    Args:
        schedules: M of them. values: [M], lower is better, infinite where a schedule failed.
        generations: [M], in which each was evaluated.
        taus: one a generation, Kendall's tau between the predictor's scores of its schedules and their values, before
            it was trained on them; nan where there was no predictor.
    """

    schedules: list[Decisions] = dataclasses.field(default_factory=list)
    values: list[float] = dataclasses.field(default_factory=list)
    generations: list[int] = dataclasses.field(default_factory=list)
    taus: list[float] = dataclasses.field(default_factory=list)

    @property
    def generation(self) -> int:
        """Generations evaluated so far."""
        return len(self.taus)

    def add(self, schedules: Sequence[Decisions], values: Sequence[float], tau: float) -> None:
        """A generation more."""
        self.generations += [self.generation] * len(schedules)
        self.schedules += schedules
        self.values += [float(value) for value in values]
        self.taus.append(float(tau))

    def ranked(self, count: int | None = None) -> list[Decisions]:
        """The best schedules, best first; earlier ones first among equals."""
        return [self.schedules[i] for i in np.argsort(self.values, kind="stable")[:count]]

    def best_so_far(self) -> np.ndarray:
        """[generations] the least value up to each."""
        ends = np.searchsorted(self.generations, np.arange(self.generation), side="right")
        return np.minimum.accumulate(self.values)[ends - 1]

    def arrays(self) -> tuple[Encoded, np.ndarray, np.ndarray]:
        """(the schedules as plain arrays, values [M], generations [M])."""
        return encode(self.schedules), np.array(self.values), np.array(self.generations)


def write(directory: Path, history: History, settings: dict, weights: PyTree) -> None:
    """The state after a generation; older checkpoints go when it is complete."""
    schedules = [json.loads(schedule.to_json()) for schedule in history.schedules]
    text = json.dumps({"settings": settings, "schedules": schedules})
    tree = {
        "text": np.frombuffer(text.encode(), np.uint8),
        "values": np.array(history.values, np.float64),
        "generations": np.array(history.generations, np.int64),
        "taus": np.array(history.taus, np.float64),
    }
    checkpoint.save(directory / f"{history.generation:06d}", tree | ({} if weights is None else {"predictor": weights}))
    for old in _complete(directory)[:-KEPT]:
        shutil.rmtree(old)


def read(directory: Path, settings: dict) -> tuple[History, PyTree]:
    """(history, predictor's weights or None) of the newest checkpoint; an empty history where there is none.

    Raises:
        FileExistsError: the checkpoint is of another search; names what differs.
    """
    found = _complete(directory)
    if not found:
        return History(), None
    tree = checkpoint.restore(found[-1])
    saved = json.loads(tree["text"].tobytes())
    settings = json.loads(json.dumps(settings))
    differ = [name for name in settings if saved["settings"].get(name) != settings[name]]
    if differ:
        there, here = ({name: of.get(name) for name in differ} for of in (saved["settings"], settings))
        raise FileExistsError(f"{directory} holds another search: {there} there, {here} here; choose another directory")
    schedules = [Decisions.from_json(json.dumps(schedule)) for schedule in saved["schedules"]]
    lists = (tree[name].tolist() for name in ("values", "generations", "taus"))
    return History(schedules, *lists), tree.get("predictor")


def _complete(directory: Path) -> list[Path]:
    """Checkpoints, oldest first; `checkpoint.save` gives a directory its name when it is whole."""
    return sorted(path for path in directory.glob("*") if path.name.isdigit()) if directory.is_dir() else []
