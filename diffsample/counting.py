"""Counting network evaluations on the host, also where what is called depends on the noise level.

A rule that calls one denoiser here and another there (guidance in an interval) says which by `branch_at`; everything
built around it needs no counting of its own.
"""

from typing import Protocol, runtime_checkable

import jax
import numpy as np

from diffsample.denoiser import Denoiser, PyTree
from diffsample.process import Level
from diffsample.tableau import Tableau


@runtime_checkable
class LevelChoice(Protocol):
    """A denoiser that, at a level, is one of several."""

    def branch_at(self, level: Level, began: Level) -> Denoiser:
        """What is called at a concrete level, inside a step whose first call was at the level `began`."""
        ...


def settle(denoiser: PyTree, level: Level, began: Level) -> PyTree:
    """The denoiser with every choice by level made, those inside others too."""

    def choose(part: PyTree) -> PyTree:
        return settle(part.branch_at(level, began), level, began) if isinstance(part, LevelChoice) else part

    return jax.tree.map(choose, denoiser, is_leaf=lambda part: isinstance(part, LevelChoice))


def evaluations(denoiser: Denoiser, tableau: Tableau) -> int:
    """Network evaluations a sample that a concrete table makes with this denoiser; rows of padding make none.

    >>> import diffsample as ds
    >>> law, process = ds.exact.Gaussian(0.0, 1.0), ds.VarianceExploding()
    >>> some = ds.guidance.during(ds.guidance.cfg(law, 0, 2.0), law, low=1.0, high=10.0)
    >>> evaluations(some, ds.solvers.ddim(process, [80.0, 10.0, 2.0, 1.0, 0.0]))  # two at 10 and at 2
    6
    """
    if not any(isinstance(part, LevelChoice) for part in _parts(denoiser)):
        return tableau.calls * denoiser.evaluations
    stage, active, now = np.asarray(tableau.stage), np.asarray(tableau.active), jax.tree.map(np.asarray, tableau.now)
    first = np.maximum.accumulate(np.where(stage == 0, np.arange(len(stage)), 0))
    levels = [Level(*(leaf[i] for leaf in now)) for i in range(len(stage))]
    rows = np.flatnonzero(active)
    return sum(settle(denoiser, levels[i], levels[first[i]]).evaluations for i in rows)


def _parts(denoiser: PyTree) -> list[PyTree]:
    return jax.tree.leaves(denoiser, is_leaf=lambda part: isinstance(part, LevelChoice))
