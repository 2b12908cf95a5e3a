"""Masking schedules: alpha(t), the probability that a token is still clean at noise time t, and the inverse.

t runs from 0 (clean) to 1 (all masked). The mask probability m = 1 - alpha is the natural clock: position l with its
own uniform U_l is masked at t iff U_l < m(t), so a decoder needs only a falling grid of m, and t only to feed a network
that was conditioned on it. Formulas use NumPy float64 for NumPy input and JAX for JAX input.
"""

import math
import numbers
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from diffsample.struct import pytree


class Schedule(Protocol):
    """alpha(t) falls from 1 at t = 0 to (almost) 0 at t = 1."""

    def alpha(self, t: Any) -> Any:
        """Probability that a token is still clean."""
        ...

    def time(self, m: Any) -> Any:
        """The noise time at which the mask probability is m; the ends of [0, 1] where no time has it."""
        ...


def _namespace(value: Any) -> Any:
    return jnp if isinstance(value, jax.Array) else np


@pytree
class Polynomial:
    """alpha = 1 - t^w; w = 1 is the linear schedule of MDLM, LLaDA and D3PM, w > 1 MD4's polynomial.

    Reference: Shi et al. 2024, arXiv 2406.04329, table 1.

    >>> float(Polynomial(2.0).alpha(0.5)), float(Polynomial(2.0).time(0.25))
    (0.75, 0.5)
    """

    power: Any = 1.0

    def alpha(self, t: Any) -> Any:
        return 1.0 - t**self.power

    def time(self, m: Any) -> Any:
        return m ** (1.0 / self.power)


@pytree
class LogLinear:
    """alpha = 1 - (1 - floor) t, the noise of SEDD, MDLM and RADD: sigma = -log alpha.

    Reference: Lou et al. 2024, arXiv 2310.16834.

    >>> float(LogLinear().alpha(1.0))
    0.001...
    """

    floor: Any = 1e-3

    def alpha(self, t: Any) -> Any:
        return 1.0 - (1.0 - self.floor) * t

    def time(self, m: Any) -> Any:
        return _namespace(m).clip(m / (1.0 - self.floor), 0.0, 1.0)


@pytree
class Geometric:
    """-log alpha = low^(1 - t) high^t, the geometric noise of SEDD and RADD; alpha(0) < 1.

    Reference: Lou et al. 2024, arXiv 2310.16834.

    >>> round(float(Geometric().time(Geometric().alpha(np.float64(0.3)) * 0 + 0.5)), 3)
    0.725
    """

    low: Any = 1e-4
    high: Any = 20.0

    def alpha(self, t: Any) -> Any:
        return _namespace(t).exp(-(self.low ** (1.0 - t)) * self.high**t)

    def time(self, m: Any) -> Any:
        xp = _namespace(m)
        noise = -xp.log1p(-xp.clip(m, 1e-12, 1 - 1e-7))
        return xp.clip(xp.log(noise / self.low) / math.log(self.high / self.low), 0.0, 1.0)


@pytree
class Cosine:
    """alpha = 1 - cos(pi / 2 (1 - t)), MD4's cosine: few tokens revealed early.

    The linear schedule on the grid cos(pi / 2 (1 - t_i)) is the same.

    Reference: Shi et al. 2024, arXiv 2406.04329, table 1.

    >>> round(float(Cosine().time(Cosine().alpha(np.float64(0.3)) * -1 + 1)), 6)
    0.3
    """

    def alpha(self, t: Any) -> Any:
        return 1.0 - _namespace(t).cos(math.pi / 2 * (1.0 - t))

    def time(self, m: Any) -> Any:
        xp = _namespace(m)
        return 1.0 - 2.0 / math.pi * xp.arccos(xp.clip(m, 0.0, 1.0))


@pytree
class ReverseCosine:
    """alpha = floor + (1 - floor) cos(pi t / 2), MDLM's cosine: of the opposite curvature to MD4's.

    Reference: Sahoo et al. 2024, arXiv 2406.07524, released code.

    >>> round(float(ReverseCosine().time(1 - ReverseCosine().alpha(np.float64(0.3)))), 6)
    0.3
    """

    floor: Any = 1e-3

    def alpha(self, t: Any) -> Any:
        return self.floor + (1.0 - self.floor) * _namespace(t).cos(math.pi / 2 * t)

    def time(self, m: Any) -> Any:
        xp = _namespace(m)
        return 2.0 / math.pi * xp.arccos(xp.clip((1.0 - m - self.floor) / (1.0 - self.floor), 0.0, 1.0))


@pytree
class Bounded:
    """alpha of another schedule squeezed into [edge, 1 - edge], as MD4 trains.

    >>> round(float(Bounded(Polynomial(), 0.25).alpha(0.0)), 6)
    0.75
    """

    schedule: Schedule
    edge: Any = 1e-4

    def alpha(self, t: Any) -> Any:
        return (1.0 - 2.0 * self.edge) * self.schedule.alpha(t) + self.edge

    def time(self, m: Any) -> Any:
        alpha = (1.0 - m - self.edge) / (1.0 - 2.0 * self.edge)
        return self.schedule.time(_namespace(m).clip(1.0 - alpha, 0.0, 1.0))


def levels(schedule: Schedule, steps: int, times: Any = None) -> np.ndarray:
    """Falling mask probabilities [steps + 1] from 1 to 0: all masked at the start, nothing masked at the end.

    Schedules whose alpha does not reach 0 or 1 (log-linear, geometric) start from all masks and reveal all that is
    left in the last step, as their authors' samplers do.

    Args:
        schedule: the masking schedule.
        steps: number of steps, at least 1.
        times: [steps + 1] falling noise times in [0, 1]; None is a uniform grid from 1 to 0.

    Raises:
        ValueError: no steps; times that do not fall or leave [0, 1].

    >>> levels(Polynomial(), 4).tolist()
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1")
    t = np.linspace(1.0, 0.0, steps + 1) if times is None else np.asarray(times, np.float64)
    if t.shape != (steps + 1,) or not (np.diff(t) < 0).all() or t[0] > 1 or t[-1] < 0:
        raise ValueError(f"times must be {steps + 1} falling numbers in [0, 1], got {t.tolist()}")
    m = 1.0 - np.asarray(schedule.alpha(t), np.float64)
    m[0], m[-1] = 1.0, 0.0
    return m


def check_length(length: Any) -> None:
    """Raise ValueError for what is no number of positions."""
    if not isinstance(length, numbers.Integral) or length < 1:
        raise ValueError(f"length={length!r} must be the number of positions")


def check_levels(m: Any) -> np.ndarray:
    """Mask probabilities that fall from at most 1 to exactly 0, as float64.

    Raises:
        ValueError, TypeError: they rise, leave [0, 1], do not end clean, or are no numbers.
    """
    if hasattr(m, "alpha"):
        raise TypeError(f"levels must be numbers, got {m!r}: discrete.levels(schedule, steps) makes them")
    m = np.asarray(m, np.float64)
    if m.ndim != 1 or len(m) < 2 or not np.isfinite(m).all() or (np.diff(m) > 0).any() or m[0] > 1 or m[0] <= 0:
        raise ValueError(f"levels must be falling mask probabilities in [0, 1], at least two, got {m.tolist()}")
    if m[-1] != 0.0:
        raise ValueError(f"the schedule ends at mask probability {m[-1]:g}: masks would be left; end it at 0")
    return m
