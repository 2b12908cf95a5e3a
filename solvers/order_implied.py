"""The order that a schedule's decisions imply: what repeating them on ever finer grids converges with."""

from collections.abc import Sequence
from math import factorial, inf

from diffsample.process import Level
from diffsample.solvers.decisions import Decisions, Derivative, Relaxation
from diffsample.solvers.expansion import Step, distance, place_of, weigh
from diffsample.solvers.liveness import corrected_derivatives, inner_levels, start_level

ROUNDING = 1e-6  # relative, of a moment that is met
HIDDEN = 2  # orders by which a first step from almost pure noise seems higher than it is


def implied_order(decisions: Decisions, levels: Sequence[Level]) -> int | None:
    """The order of repeating these decisions on finer grids; None where the first call is replaced.

    A step is of order p if what it expands, what it estimates and how it relaxes leave an error h^(p + 1); so is one
    whose inner points are of order p - 1. The lowest order of all steps counts, one more where it occurs once. Orders
    that rise at the start for want of history are left out, as they are from almost pure noise, within two; so are
    steps into sigma = 0 and from alpha = 0.

    >>> import diffsample as ds
    >>> from diffsample.solvers.decisions import multistep_decisions
    >>> grid = ds.times.uniform_logsnr(ds.VariancePreserving(), 8, zero=False)
    >>> levels = [Level(*level) for level in zip(*grid.levels)]
    >>> implied_order(multistep_decisions(grid, order=3, corrector="pseudo"), levels)
    4
    """
    if decisions.first != "call":
        return None
    inner, of_state = inner_levels(decisions), {0: inf}
    for i in range(decisions.steps):
        of_state[i + 1] = _step_order(decisions, levels, i, {k: p for k, p in of_state.items() if k in inner})
    found = {i: int(of_state[i + 1]) for i in range(decisions.steps) if i + 1 not in inner}
    found = {i: order for i, order in found.items() if distance(levels[i], levels[i + 1]) < inf} or found
    first = min(found)
    later = [order for i, order in found.items() if not _rises(decisions, i)] or [max(found.values())]
    return min(max(later), *(order + (later.count(order) == 1) for order in later), found[first] + HIDDEN)


def _rises(decisions: Decisions, step: int) -> bool:
    """Whether a step has all the order that history allows, and less than a later one."""
    order = decisions.orders[step]
    return order == step + 1 < max(decisions.orders) and decisions.starts[step] == -1


def _step_order(d: Decisions, levels: Sequence[Level], i: int, inner: dict[int, float]) -> float:
    start, order = start_level(d, i), d.orders[i]
    predicted = _formula_order(
        levels, i, start, d.derivatives[i], [k.relaxation for k in d.derivatives[i]], order, inner)  # fmt: skip
    if d.correctors[i] == "none" or distance(levels[start], levels[i + 1]) == inf:
        return predicted
    derivatives = corrected_derivatives(d, i)
    relaxations = [d.corrector_relaxations[i]] + [None] * (len(derivatives) - 1)
    corrected = _formula_order(levels, i, start, derivatives, relaxations, d.corrector_orders[i], inner)
    return min(corrected, predicted + 1)


def _formula_order(
    levels: Sequence[Level],
    i: int,
    start: int,
    derivatives: Sequence[Derivative],
    relaxations: Sequence[Relaxation | None],
    order: int,
    inner: dict[int, float],
) -> float:
    """The order of one expansion; inner holds the orders of inner states, by level."""
    h = distance(levels[start], levels[i + 1])
    if h == inf:
        return 1
    found = order
    for k, (derivative, relaxation) in enumerate(zip(derivatives, relaxations, strict=True), 1):
        points = [point for point in derivative.points if _place(levels, i, start, point, h) > -inf]
        found = min(found, k if len(points) < k else len(points) + 1)
        if relaxation is not None and (relaxation.kind != "linear" or relaxation.gamma):
            found = min(found, k + (relaxation.power if relaxation.kind == "linear" else 1))
    used = {i + 1 + point for derivative in derivatives for point in derivative.points} & set(inner)
    if used and not any(relaxations) and _moment_met(levels, i, start, derivatives, h, found):
        found += 1
    return min([found, *(inner[level] + 1 for level in used)])


def _moment_met(
    levels: Sequence[Level], i: int, start: int, derivatives: Sequence[Derivative], h: float, moment: int
) -> bool:
    """Whether the weights of small steps meet one moment more than they are made to (Radau's 2/3, for one).

    It takes a point strictly inside the step: otherwise the product of distances to the points keeps one sign there.
    """
    flat = Step(1.0, 1.0, 0.0, tuple(1 / factorial(k + 1) for k in range(len(derivatives) + 1)))
    _, weights = weigh(flat, derivatives, lambda point: _place(levels, i, start, point, h), lambda k: 1.0)
    value = sum(w * _place(levels, i, start, point, h) ** moment for point, w in weights.items())
    return abs(value * (moment + 1) - 1) < ROUNDING


def _place(levels: Sequence[Level], i: int, start: int, point: int, h: float) -> float:
    return place_of(levels[i + 1 + point], levels[start], h, after=i + 1 + point > start)
