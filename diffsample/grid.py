"""A grid: strictly decreasing times of a process, checked once, printed and used as they are."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from diffsample.process import Level, Process

SHOWN = 40  # rows printed of a long grid


@dataclass(frozen=True, eq=False, repr=False)
class Grid:
    """Strictly decreasing times of a process, on the host in float64; it prints as the table that will be used.

    Args:
        process: the process that the times belong to.
        t: two or more finite times in [0, process.t_max], strictly decreasing; kept as a read-only float64 copy.

    Raises:
        ValueError: times that break one of these rules; the message names the first offender.

    >>> from diffsample.process import FlowMatching
    >>> Grid(FlowMatching(), [1.0, 0.5, 0.0])
    2 steps of FlowMatching()
        i             t         alpha         sigma  half_logsnr
        0             1             0             1         -inf
        1           0.5           0.5           0.5            0
        2             0             1             0          inf
    """

    process: Process
    t: np.ndarray

    def __post_init__(self) -> None:
        t = np.array(self.t, np.float64)
        _check_times(self.process, t)
        t.setflags(write=False)
        object.__setattr__(self, "t", t)

    @property
    def steps(self) -> int:
        """Number of moves."""
        return len(self.t) - 1

    @property
    def alpha(self) -> np.ndarray:
        return self.process.alpha(self.t)

    @property
    def sigma(self) -> np.ndarray:
        return self.process.sigma(self.t)

    @property
    def half_logsnr(self) -> np.ndarray:
        return self.process.half_logsnr(self.t)

    @property
    def levels(self) -> Level:
        """All points as one Level of arrays."""
        return self.process.level(self.t)

    def __len__(self) -> int:
        return len(self.t)

    def __getitem__(self, where: slice) -> "Grid":
        if not isinstance(where, slice):
            raise TypeError(f"a grid is cut with a slice, as in grid[2:5], got {where!r}; single times are in grid.t")
        return Grid(self.process, self.t[where])

    def __iter__(self) -> Iterator[float]:
        return iter(self.t)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.t, dtype)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grid) and self.process == other.process and np.array_equal(self.t, other.t)

    def __hash__(self) -> int:
        return hash((self.process, self.t.tobytes()))

    def __repr__(self) -> str:
        head = f"{self.steps} steps of {self.process}\n    i {'t':>13} {'alpha':>13} {'sigma':>13}  half_logsnr"
        columns = zip(self.t, self.alpha, self.sigma, self.half_logsnr, strict=True)
        rows = [f"{i:5d} {t:13.7g} {a:13.7g} {s:13.7g} {x:12.6g}" for i, (t, a, s, x) in enumerate(columns)]
        if len(rows) > SHOWN:
            rows[SHOWN // 2 : -SHOWN // 2] = [f"  ... {len(rows) - SHOWN} more ..."]
        return "\n".join([head, *rows])


def custom(process: Process, t: ArrayLike) -> Grid:
    """Grid of times given one by one, checked and otherwise used as they are.

    >>> from diffsample.process import VariancePreserving
    >>> print(custom(VariancePreserving(), [1.0, 0.4, 0.1, 0.0]).steps)
    3
    """
    return Grid(process, np.asarray(t))


def as_grid(process: Process, times: Grid | ArrayLike) -> Grid:
    """The door of every solver: a grid of this very process passes through, plain times become one.

    Raises:
        ValueError: the grid was made for another process.

    >>> from diffsample.process import VarianceExploding
    >>> print(as_grid(VarianceExploding(), [80.0, 1.0, 0.0]).steps)
    2
    """
    if not isinstance(times, Grid):
        return custom(process, times)
    if times.process != process:
        raise ValueError(f"mismatched process: the grid was made for {times.process}, the solver for {process}; "
                         f"make both with one process")  # fmt: skip
    return times


def check_process(process: Process) -> None:
    """Raise TypeError where the class is given in place of a process."""
    if isinstance(process, type):
        raise TypeError(f"{process.__name__} is a class; a process is made of it, as in {process.__name__}()")


def _check_times(process: Process, t: np.ndarray) -> None:
    check_process(process)
    if t.ndim != 1 or t.size < 2:
        raise ValueError(f"a grid needs a flat list of at least two times, got shape {t.shape}; "
                         f"ds.times.uniform(process, steps) makes one")  # fmt: skip
    if not np.isfinite(t).all():
        i = int(np.argmin(np.isfinite(t)))
        raise ValueError(f"times must be finite, got t[{i}] = {t[i]}")
    if (np.diff(t) >= 0).any():
        i = int(np.argmax(np.diff(t) >= 0))
        raise ValueError(f"times must be strictly decreasing, got t[{i}] = {t[i]} and t[{i + 1}] = {t[i + 1]}")
    if t[0] > process.t_max or t[-1] < 0:
        outside = t[0] if t[0] > process.t_max else t[-1]
        raise ValueError(f"times must lie in [0, {process.t_max}] for {process}, got {outside}")
