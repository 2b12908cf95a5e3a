"""Taylor expansion of a prediction in half log-SNR: one step s -> t of the unified sampling framework.

    x_t = carry x_s + total (F_s + sum_k moments[k] h^k F_s^(k)),    k = 1, ..., order - 1,

where h is the gain in half log-SNR, F the prediction and moments[k] the integral of the kernel that F is met with,
against (u h)^k / k! over u in [0, 1]. A derivative is that of the polynomial through F_s and F at some points. Levels
may be floats, or traced JAX scalars of finite log-SNR.
"""

from collections.abc import Callable, Sequence
from math import expm1, factorial, inf, prod
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from diffsample.process import Level
from diffsample.solvers.decisions import Derivative, Relaxation
from diffsample.solvers.exponential import DATA, NOISE, Form
from diffsample.solvers.moves import decay, gain

TERMS = 18  # of the series of phi, for arguments below 1
INVERSE = [1.0 / factorial(k) for k in range(30)]


class Step(NamedTuple):
    """What a step does with a prediction."""

    carry: Any
    total: Any
    z: Any  # argument of the published relaxations
    moments: tuple[Any, ...]  # moments[0] = 1


class Kind(Protocol):
    """A prediction that may be expanded."""

    def channel(self, level: Level) -> tuple[Any, Any]:
        """(u, w): the prediction is u x0 + w eps."""
        ...

    def step(self, s: Level, t: Level, count: int) -> Step:
        """The step of `count` moments; a step of infinite gain has one."""
        ...

    def gauge(self, s: Level, level: Level) -> Any:
        """Factor on the prediction made at a level, where a step from s expands it."""
        ...

    def shift(self, s: Level, t: Level, total: Any, weighted: Sequence[tuple[Any, Level]]) -> Any:
        """A constant that the step adds, given its weights on the predictions at levels; None is nothing."""
        ...


class Plain(NamedTuple):
    """The data or the noise prediction."""

    form: Form
    sign: float  # of z: the kernel is exp(-z u)

    def channel(self, level: Level) -> tuple[float, float]:
        return self.form.x0, self.form.eps

    def step(self, s: Level, t: Level, count: int) -> Step:
        if isinstance(decay(s, t), jax.Array):
            carry = t.sigma / s.sigma if self.form.x0 else t.alpha / s.alpha
            total = t.alpha - carry * s.alpha if self.form.x0 else t.sigma - carry * s.sigma
            z = self.sign * distance(s, t)
        else:
            carry, total, z, _ = self.form.move(s, t)
        if count == 1 or (not isinstance(z, jax.Array) and abs(z) == inf):
            return Step(carry, total, z, (1.0,))
        first, *others = phis(count, z)
        return Step(carry, total, z, (1.0, *(value / first for value in others)))

    def gauge(self, s: Level, level: Level) -> float:
        return 1.0

    def shift(self, s: Level, t: Level, total: Any, weighted: Sequence[tuple[Any, Level]]) -> None:
        return None


NOISE_KIND, DATA_KIND = Plain(NOISE, 1.0), Plain(DATA, -1.0)


def distance(s: Level, t: Level) -> Any:
    """h, the gain in half log-SNR, infinite into sigma = 0 or from alpha = 0."""
    ends = (t.sigma, s.alpha)  # numbers there, also where the other levels are traced
    if any(not isinstance(end, jax.Array) and end == 0 for end in ends):
        return inf
    ratio = decay(s, t)
    return -jnp.log(ratio) if isinstance(ratio, jax.Array) else gain(s, t)


def place_of(level: Level, s: Level, h: Any, after: bool) -> Any:
    """Where a level lies on the way of a step h from s: 0 is s, 1 the end, below 0 the past, -inf alpha = 0."""
    away = distance(s, level) if after else distance(level, s)
    return away / h if after else -inf if not isinstance(away, jax.Array) and away == inf else -away / h


def phis(count: int, z: Any) -> list[Any]:
    """phi_1(z), ..., phi_count(z), with phi_k(z) = sum_j z^j / (j + k)!; from the series of the last where z is small.

    >>> phis(2, 0.0)
    [1.0, 0.5]
    """
    if isinstance(z, jax.Array):
        small = jnp.abs(z) < 1
        pairs = zip(
            _by_series(count, jnp.where(small, z, 0.0)), _by_recurrence(count, jnp.where(small, 1.0, z)), strict=True
        )
        return [jnp.where(small, near, far) for near, far in pairs]
    return _by_series(count, z) if abs(z) < 1 else _by_recurrence(count, z)


def estimate(places: Sequence[Any], k: int) -> list[Any]:
    """Weights on F_j - F_0 of the k-th derivative at 0 of the polynomial through the places 0, r_1, ..., r_m.

    >>> estimate([-1.0], 1), estimate([-1.0, 1.0], 2)
    ([-1.0], [1.0, 1.0])
    """
    found = []
    for j, r in enumerate(places):
        others = [q for i, q in enumerate(places) if i != j]
        found.append((-1) ** (len(places) - k) * factorial(k) * _symmetric(others, len(places) - k)
                     / (r * prod((r - q for q in others), start=1.0)))  # fmt: skip
    return found


def weigh(
    step: Step,
    derivatives: Sequence[Derivative],
    place: Callable[[int], Any],
    factor: Callable[[int], Any],
) -> tuple[Any, dict[int, Any]]:
    """Weights of sum 1: on the output at the start, and on those at the points of the derivatives.

    Points infinitely far away are left out, and so is a derivative left with too few.

    Args:
        step: with a moment a derivative and one more.
        derivatives: first, second, ...
        place: of an output, in units of the step: the start is at 0 and the end at 1.
        factor: the relaxation of the k-th derivative.
    """
    first, weights = 1.0, {}
    for k, (derivative, moment) in enumerate(zip(derivatives, step.moments[1:], strict=False), 1):
        points = [(point, r) for point in derivative.points if isinstance(r := place(point), jax.Array) or abs(r) < inf]
        if len(points) < k:
            continue
        scale = moment * factor(k)
        for (point, _), a in zip(points, estimate([r for _, r in points], k), strict=True):
            weights[point] = weights.get(point, 0.0) + scale * a
            first = first - scale * a
    return first, weights


def relaxed(relaxation: Relaxation | None, z: Any, h: Any, gamma: Any = None) -> Any:
    """The factor of a relaxation; gamma in place of its own where given."""
    if relaxation is None:
        return 1.0
    if relaxation.kind == "linear":
        return 1 + (relaxation.gamma if gamma is None else gamma) * h**relaxation.power
    first, second = phis(2, z)  # (exp(z) - 1) / z, (exp(z) - 1 - z) / z^2
    scales = {
        "bh1": 1 / (2 * second),
        "bh2": first / (2 * second),
        "half_exp": 1 + z * first / 2,
        "minus_half_exp": 1 - z * first / 2,
    }
    return scales[relaxation.kind]


def _symmetric(values: Sequence[Any], degree: int) -> Any:
    """Elementary symmetric polynomial."""
    table = [1.0] + [0.0] * degree
    for value in values:
        for d in range(degree, 0, -1):
            table[d] = table[d] + value * table[d - 1]
    return table[degree]


def _by_series(count: int, z: Any) -> list[Any]:
    last = 0.0 * z
    for j in reversed(range(TERMS)):
        last = last * z + INVERSE[j + count]
    found = [last]
    for k in reversed(range(1, count)):
        found.insert(0, z * found[0] + INVERSE[k])
    return found


def _by_recurrence(count: int, z: Any) -> list[Any]:
    found = [jnp.expm1(z) / z if isinstance(z, jax.Array) else expm1(z) / z]
    for k in range(1, count):
        found.append((found[-1] - INVERSE[k]) / z)
    return found
