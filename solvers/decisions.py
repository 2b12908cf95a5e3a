"""Solver schedules as data: what a solver decides at every step, in the unified sampling framework (USF).

A schedule is a grid and, for each of its steps, the order of the Taylor expansion, the prediction that is expanded,
the state it starts from, how each derivative is estimated, and a corrector. A `Decisions` checks itself, is hashable,
and is JSON on disk; `usf` makes a tableau of it.

Outputs and states are counted from the newest: -1 is that of the last level reached, -2 the one before, ...
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffsample.arguments import is_whole
from diffsample.grid import Grid, as_grid
from diffsample.process import Level, Process
from diffsample.solvers.levels import between

PREDICTIONS = ("noise", "data", "v3")
CORRECTORS = ("none", "pseudo", "implicit")
FIRST = ("call", "zero", "mean")
RELAXATIONS = ("linear", "bh1", "bh2", "half_exp", "minus_half_exp")
HIGHEST = 4


@dataclasses.dataclass(frozen=True)
class Relaxation:
    """A factor 1 + O(h) on an estimated derivative, h the step in half log-SNR; z = h, or -h on the data prediction.

    Args:
        kind: "linear" is 1 + gamma h^power; "bh1" is z^2 / 2 over exp(z) - 1 - z, "bh2" z (exp(z) - 1) / 2 over the
            same (DPM-Solver's and UniPC's fixed 1/2); "half_exp" is 1 + (exp(z) - 1) / 2, "minus_half_exp" has a minus.
        gamma, power: of "linear". On the k-th derivative of an expansion of order q, power = q - k keeps order q.

    >>> Relaxation("linear", -1 / 6).gamma
    -0.16666666666666666
    """

    kind: str = "linear"
    gamma: float = 0.0
    power: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "gamma", float(self.gamma))
        if self.kind not in RELAXATIONS:
            raise ValueError(f"relaxation {self.kind!r} is not one of {RELAXATIONS}")
        if not math.isfinite(self.gamma) or (self.gamma and self.kind != "linear"):
            raise ValueError(f"gamma={self.gamma} must be finite, and 0 where the relaxation is not 'linear', which is "
                             f"{self.kind!r}")  # fmt: skip
        if self.power < 1:
            raise ValueError(f"power={self.power} must be at least 1")


@dataclasses.dataclass(frozen=True)
class Derivative:
    """How a derivative of the prediction is estimated: from its differences at some points to the start, relaxed.

    Args:
        points: outputs used beside that at the start, by their place from the newest.
        relaxation: a factor on the estimate, None for 1.
    """

    points: tuple[int, ...]
    relaxation: Relaxation | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", _whole("points", self.points))


@dataclasses.dataclass(frozen=True)
class Decisions:
    """A solver schedule: N steps along N + 1 times, each with decisions of its own.

    Step i goes to times[i + 1]. It expands the prediction `predictions[i]` around the state `starts[i]` to order
    `orders[i]`, with derivatives 1, ..., order - 1 estimated as `derivatives[i]` says. A corrector then repeats the
    step, one order higher, with the output at the state reached as one point more.

    Args:
        times: [N + 1] strictly decreasing, process times.
        orders: [N] 1 to 4, at most i + 1.
        predictions: [N] "noise", "data", or "v3" (DPM-Solver-v3's, which needs statistics of the model).
        starts: [N] -1 starts at the newest state (multistep), -p at the p-th newest (singlestep); default -1.
        derivatives: [N] of orders[i] - 1 `Derivative`; default: all from the order - 1 nearest outputs, those after
            the start first.
        correctors: [N] "none", "pseudo" (PEC, no further call) or "implicit" (PECE, one call more); the last "none".
        first: "call", or what stands for the first call: "zero" (x0 = 0) or "mean" (the data's mean image).
        corrector_orders: [N] of the corrector's expansion, 2 to orders[i] + 1, which is the default; a lower one uses
            fewer of the predictor's points. 0 where there is no corrector.
        corrector_relaxations: [N] of the corrector's first derivative; default None.

    Raises:
        ValueError: a decision outside its range; names the step and the value.

    Reference: Liu et al. 2024, arXiv 2312.07243, section 3, and the authors' code.

    >>> import diffsample as ds
    >>> Decisions(times=(1.0, 0.5, 0.1), orders=(1, 2), predictions=("data", "noise")).nfe
    2
    """

    times: Sequence[float]  # kept as a tuple, and so are all the others
    orders: Sequence[int]
    predictions: Sequence[str]
    starts: Sequence[int] = ()
    derivatives: Sequence[Sequence[Derivative]] = ()
    correctors: Sequence[str] = ()
    first: str = "call"
    corrector_orders: Sequence[int] = ()
    corrector_relaxations: Sequence[Relaxation | None] = ()

    def __post_init__(self) -> None:
        n = len(self.times) - 1
        put = lambda name, value: object.__setattr__(self, name, tuple(value))  # noqa: E731
        put("times", map(float, self.times))
        put("orders", _whole("orders", self.orders))
        put("predictions", self.predictions)
        put("starts", _whole("starts", self.starts or (-1,) * n))
        put("correctors", self.correctors or ("none",) * n)
        put("corrector_relaxations", self.corrector_relaxations or (None,) * n)
        _check_lengths(self, n)
        put("corrector_orders", self.corrector_orders or (
            order + 1 if kind != "none" else 0 for order, kind in zip(self.orders, self.correctors, strict=True)
        ))  # fmt: skip
        if not self.derivatives:
            put("derivatives", map(nearest, self.orders, self.starts))
        put("derivatives", map(tuple, self.derivatives))
        _check(self)

    @property
    def steps(self) -> int:
        """N."""
        return len(self.orders)

    @property
    def nfe(self) -> int:
        """Calls: one a step, one more for every implicit corrector, one less where the first is not made."""
        return self.steps - (self.first != "call") + self.correctors.count("implicit")

    def to_json(self) -> str:
        """The schedule as a JSON object, one line a field."""
        rows = (f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in dataclasses.asdict(self).items())
        return "{\n" + ",\n".join(rows) + "\n}\n"

    @classmethod
    def from_json(cls, text: str) -> "Decisions":
        """The schedule that `to_json` wrote, checked again.

        Raises:
            ValueError: it is none, or one that breaks a rule.

        >>> schedule = Decisions((1.0, 0.5, 0.1), (1, 2), ("data", "noise"))
        >>> Decisions.from_json(schedule.to_json()) == schedule
        True
        """
        found = json.loads(text)
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(found, dict) or not {"times", "orders", "predictions"} <= set(found) <= names:
            raise ValueError(f"not a schedule: it needs times, orders and predictions, and may have {sorted(names)}; "
                             f"got {sorted(found) if isinstance(found, dict) else found!r}")  # fmt: skip
        try:
            for name, read in (("derivatives", _derivatives), ("corrector_relaxations", _relaxation)):
                if name in found:
                    found[name] = [read(entry) for entry in found[name]]
            return cls(**found)
        except (TypeError, KeyError) as error:
            raise ValueError(f"not a schedule: {error}") from error

    def save(self, path: str | Path) -> None:
        """Writes the JSON file `path`."""
        Path(path).write_text(self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> "Decisions":
        """Reads the JSON file `path`."""
        return cls.from_json(Path(path).read_text())


def multistep_decisions(
    times: Grid | Sequence[float],
    *,
    order: int = 2,
    prediction: str = "data",
    relaxation: Relaxation | None = None,
    corrector: str = "none",
) -> Decisions:
    """A multistep method as decisions: orders 1, 2, ..., `order`, then `order`.

    With relaxation=None it is the exact exponential integrator (`exp_multistep`, `deis_log_rho`); bh2 at order 2 is
    DPM-Solver(++) 2M; bh1 or bh2 with corrector="pseudo" is UniPC.

    Args:
        times: [N + 1] strictly decreasing process times, or a grid.
        order: 1 to 4.
        prediction: as for `Decisions`.
        relaxation: of the first derivative where two outputs are used, which is where the published methods differ.
        corrector: of every step but the last.

    >>> multistep_decisions([1.0, 0.5, 0.2, 0.1], order=3).orders
    (1, 2, 3)
    """
    n = len(times) - 1
    orders = [min(order, i + 1) for i in range(n)]
    derivatives = [nearest(q, -1, relaxation if q == 2 else None) for q in orders]
    corrected = [corrector] * (n - 1) + ["none"]
    relaxed = [relaxation if q == 1 and kind != "none" else None for q, kind in zip(orders, corrected, strict=True)]
    return Decisions(tuple(times), orders, [prediction] * n, derivatives=derivatives, correctors=corrected,
                     corrector_relaxations=relaxed)  # fmt: skip


def singlestep_decisions(
    process: Process, times: Grid | Sequence[float], *, orders: Sequence[int], prediction: str = "data"
) -> Decisions:
    """DPM-Solver(++) singlestep as decisions: a step a call, the inner ones at 1/2, or at 1/3 and 2/3, of the gain.

    Args:
        process: places the inner times.
        times: [M + 1] ends of the moves.
        orders: [M] 1, 2 or 3, the calls of each move; `singlestep_orders` spends a number of calls. 1 into sigma = 0.
        prediction: "noise" or "data".

    Raises:
        ValueError: another order; inner points in a move of infinite gain.

    >>> import diffsample as ds
    >>> singlestep_decisions(ds.VariancePreserving(), [1.0, 0.5, 0.1], orders=[2, 1]).starts
    (-1, -2, -1)
    """
    grid = as_grid(process, times)
    if len(orders) != grid.steps or not set(orders) <= {1, 2, 3}:
        raise ValueError(f"orders={orders} must be 1, 2 or 3 for each of {grid.steps} moves")
    levels = [Level(*map(float, level)) for level in zip(*grid.levels, strict=True)]
    found, expanded, starts, derivatives = [levels[0].t], [], [], []
    for s, t, order in zip(levels, levels[1:], orders, strict=False):
        if order > 1 and not (s.alpha and t.sigma):
            raise ValueError(f"the move from t = {s.t:g} to {t.t:g} has no inner points; give it order 1")
        found += [between(process, s, t, k / order).t for k in range(1, order)] + [t.t]
        expanded += [1, 2, 2][:order]
        starts += range(-1, -order - 1, -1)
        half = Relaxation("bh2") if order == 2 else None
        derivatives += [(), *(((Derivative((-1,), half)),) for _ in range(1, order))]
    return Decisions(found, expanded, [prediction] * len(expanded), starts, derivatives)


def nearest(order: int, start: int, relaxation: Relaxation | None = None) -> tuple[Derivative, ...]:
    """All derivatives from the order - 1 outputs nearest the start, those after it first; the first one relaxed."""
    after, before = range(start + 1, 0), range(start - 1, start - order, -1)
    points = (*after, *before)[: order - 1]
    return tuple(Derivative(points, relaxation if k == 1 else None) for k in range(1, order))


def _relaxation(entry: Mapping[str, Any] | None) -> Relaxation | None:
    return None if entry is None else Relaxation(**entry)


def _derivatives(entries: Sequence[Mapping[str, Any]]) -> list[Derivative]:
    return [Derivative(entry["points"], _relaxation(entry.get("relaxation"))) for entry in entries]


def _whole(name: str, values: Sequence[Any]) -> tuple[int, ...]:
    if not all(map(is_whole, values)):
        raise TypeError(f"{name}={values!r} must be whole numbers")
    return tuple(map(int, values))


def _check_lengths(d: Decisions, n: int) -> None:
    if n < 1:
        raise ValueError(f"a schedule needs at least two times, got times={d.times}")
    for name in ("orders", "predictions", "starts", "derivatives", "correctors", "corrector_orders",
                 "corrector_relaxations"):  # fmt: skip
        found = getattr(d, name)
        if len(found) != n and (found or name in ("orders", "predictions")):
            raise ValueError(f"{name} has {len(found)} entries for {n} steps (times has {n + 1})")


def _check(d: Decisions) -> None:
    for i, (early, late) in enumerate(zip(d.times, d.times[1:], strict=False)):
        if not (math.isfinite(early) and early > late >= 0):
            raise ValueError(f"times must fall to 0 or above, got times[{i}] = {early} and times[{i + 1}] = {late}")
    if d.first not in FIRST:
        raise ValueError(f"first={d.first!r} is not one of {FIRST}")
    if d.nfe < 1:
        raise ValueError(f"first={d.first!r} leaves no call in a schedule of {d.steps} step; add a step")
    if d.correctors[-1] != "none":
        raise ValueError(f"the last step has corrector {d.correctors[-1]!r}, which needs a call that nothing else "
                         f"uses; make it 'none', or add a step")  # fmt: skip
    for i in range(d.steps):
        _check_step(d, i)


def _check_step(d: Decisions, i: int) -> None:
    order, start = d.orders[i], d.starts[i]
    if d.predictions[i] not in PREDICTIONS:
        raise ValueError(f"step {i} expands {d.predictions[i]!r}, which is not one of {PREDICTIONS}")
    if order not in range(1, min(HIGHEST, i + 1) + 1):
        raise ValueError(
            f"step {i} has order {order}; with {i + 1} outputs known it may have 1 to {min(HIGHEST, i + 1)}"
        )
    if start not in range(-i - 1, 0):
        raise ValueError(f"step {i} starts at {start}; states are known from -1 (the newest) to {-i - 1}")
    if len(d.derivatives[i]) != order - 1:
        raise ValueError(f"step {i} of order {order} needs {order - 1} derivatives, got {len(d.derivatives[i])}")
    for k, derivative in enumerate(d.derivatives[i], 1):
        points = derivative.points
        if len(set(points)) != len(points) or start in points or not set(points) <= set(range(-i - 1, 0)):
            raise ValueError(f"derivative {k} of step {i} uses outputs {points}; they must differ, lie in {-i - 1}..-1 "
                             f"and leave out the start {start}")  # fmt: skip
        if not k <= len(points) < order:
            raise ValueError(
                f"derivative {k} of step {i} of order {order} needs {k} to {order - 1} points, got {points}"
            )
    kind, corrected = d.correctors[i], d.corrector_orders[i]
    if kind not in CORRECTORS:
        raise ValueError(f"step {i} has corrector {kind!r}, which is not one of {CORRECTORS}")
    allowed = range(2, order + 2) if kind != "none" else (0,)
    if corrected not in allowed:
        raise ValueError(f"the corrector {kind!r} of step {i} has order {corrected}; it may have {[*allowed]}")
    if d.corrector_relaxations[i] is not None and kind == "none":
        raise ValueError(f"step {i} has no corrector to relax, got corrector_relaxations[{i}] = "
                         f"{d.corrector_relaxations[i]}")  # fmt: skip
