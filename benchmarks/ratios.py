"""What every benchmark hands back: ratios measured in one run. A benchmark is a file with `rows(quick)`."""

from collections.abc import Iterable
from typing import NamedTuple


class Ratio(NamedTuple):
    """One figure, measured against another in the same run; or, where `over` says so, in a unit."""

    name: str
    over: str  # what it is divided by, or its unit
    value: float
    target: float | None = None
    at_least: bool = False  # whether the target is a floor, not a ceiling

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        if self.target is None:
            return None
        if self.at_least:
            return bool(self.value >= self.target)
        return bool(0 <= self.value <= self.target)  # a slope below zero was lost in the noise of a busy machine

    @property
    def aim(self) -> str:
        """The target in words."""
        return "" if self.target is None else f"{'at least' if self.at_least else 'at most'} {self.target:g}"


def shown(rows: Iterable[Ratio]) -> None:
    """Prints a line a ratio, as soon as it is known."""
    for row in rows:
        verdict = {None: "", True: ": met", False: ": MISSED"}[row.met]
        what = f"{row.name}{', ' if row.over.startswith('in ') else ' / '}{row.over}"
        print(f"  {what:78} {row.value:9.4g}   {row.aim}{verdict}", flush=True)
