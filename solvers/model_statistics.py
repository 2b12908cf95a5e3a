"""DPM-Solver-v3's prediction: f = (sigma eps - l x) / alpha, integrated with the kernel exp(int l + int s).

l, s, b are functions of half log-SNR measured on a model, by which the remaining non-linear part of its flow varies
least: (1, 0, 0) gives back the data prediction, (0, -1, 0) the noise prediction.
"""

from collections.abc import Sequence
from math import exp, factorial, inf
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from diffsample.process import Level
from diffsample.solvers.expansion import Step
from diffsample.solvers.moves import gain, rescaled_noise

ROOTS, WEIGHTS = (np.polynomial.legendre.leggauss(24)[i] for i in (0, 1))
LONGEST = 2.0  # in half log-SNR, of a stretch that one quadrature covers


class ModelStatistics:
    """Coefficients of DPM-Solver-v3, piecewise linear in half log-SNR; the prediction "v3" of `Decisions`.

    A table's entries are numbers that multiply whole states, so l and s are one number a level, the mean over pixels of
    what the authors tabulate. Where they differ from pixel to pixel every coefficient of a step would be an image.
    b enters as a constant, and may be an image: it becomes the table's shift.

    Args:
        half_logsnr: [K] strictly increasing; the schedule must lie inside.
        l, s: [K].
        b: [K] or [K, *event]; None is zero.

    Raises:
        ValueError: shapes that do not fit, or half_logsnr that does not increase.

    Reference: Zheng et al. 2023, arXiv 2310.13268; Liu et al. 2024, arXiv 2312.07243.

    >>> as_data = ModelStatistics([-10.0, 10.0], l=[1.0, 1.0], s=[0.0, 0.0])
    >>> as_data.channel(Level(0.5, 0.8, 0.6))
    (-1.0, 0.0)
    """

    def __init__(self, half_logsnr: ArrayLike, l: ArrayLike, s: ArrayLike, b: ArrayLike | None = None):  # noqa: E741
        self.knots, self.l, self.s = (np.asarray(value, np.float64) for value in (half_logsnr, l, s))
        self.b = None if b is None else np.asarray(b, np.float64)
        n = self.knots.shape
        if len(n) != 1 or n[0] < 2 or self.l.shape != n or self.s.shape != n:
            raise ValueError(f"half_logsnr, l and s need one shape [K] of two or more, got {n}, {self.l.shape} and "
                             f"{self.s.shape}; average l and s over pixels")  # fmt: skip
        if self.b is not None and self.b.shape[:1] != n:
            raise ValueError(f"b has shape {self.b.shape}, expected ({n[0]}, ...)")
        if not (np.diff(self.knots) > 0).all():
            raise ValueError(f"half_logsnr must increase strictly, got {self.knots}")

    def channel(self, level: Level) -> tuple[float, float]:
        """f as a combination of x0 and eps: -l x0 + (1 - l) (sigma / alpha) eps."""
        linear = float(np.interp(self._place(level), self.knots, self.l))
        return -linear, (1 - linear) * rescaled_noise(level)

    def step(self, s: Level, t: Level, count: int) -> Step:
        """The step of `count` moments of the kernel."""
        start, h = self._place(s), gain(s, t)
        if h == inf:
            raise ValueError(f"the prediction 'v3' needs finite log-SNR, got a step to t = {t.t:g}; end the schedule "
                             f"before sigma = 0, or make the last step 'data'")  # fmt: skip
        at, weights = self._nodes(start, self._place(t))
        kernel = weights * np.exp(self._between(self.l + self.s, start, at))
        keep = t.alpha * exp(-float(self._between(self.l, start, self._place(t))))
        moments = [float((kernel * ((at - start) / h) ** k).sum() / factorial(k)) for k in range(count)]
        return Step(keep / s.alpha, -keep * moments[0], h, tuple(m / moments[0] for m in moments))

    def gauge(self, s: Level, level: Level) -> float:
        """exp(S_s - S_level)."""
        return exp(-float(self._between(self.s, self._place(s), self._place(level))))

    def shift(self, s: Level, t: Level, total: float, weighted: Sequence[tuple[float, Level]]) -> Any:
        """The constant that b adds to a step with these weights on the predictions at these levels."""
        if self.b is None:
            return None
        start, end = self._place(s), self._place(t)
        at, weights = self._nodes(start, end)
        kernel = weights * np.exp(self._between(self.l + self.s, start, at))
        driven = np.array([self._driven(start, value) for value in at])
        whole = np.tensordot(kernel, driven, axes=1)
        known = sum(weight * self._driven(start, self._place(level)) for weight, level in weighted)
        return total * (whole / kernel.sum() - known)

    def _driven(self, start: float, end: float) -> np.ndarray:
        """int exp(S_start - S) b from start to end."""
        at, weights = self._nodes(start, end)
        assert self.b is not None
        right = np.clip(np.searchsorted(self.knots, at), 1, len(self.knots) - 1)
        share = (at - self.knots[right - 1]) / (self.knots[right] - self.knots[right - 1])
        factors = weights * np.exp(-self._between(self.s, start, at))
        coefficients = np.zeros(len(self.knots))
        np.add.at(coefficients, right, factors * share)
        np.add.at(coefficients, right - 1, factors * (1 - share))
        return np.tensordot(coefficients, self.b, axes=1)

    def _place(self, level: Level) -> float:
        found = -np.log(rescaled_noise(level)) if level.sigma else inf
        if not self.knots[0] <= found <= self.knots[-1]:
            raise ValueError(f"statistics are known for half log-SNR {self.knots[0]:g} to {self.knots[-1]:g}, and the "
                             f"schedule reaches {found:g} at t = {level.t:g}")  # fmt: skip
        return float(found)

    def _between(self, values: np.ndarray, start: float, ends: Any) -> np.ndarray:
        """Integrals of a piecewise linear function from start to each end, exact."""
        steps = np.diff(self.knots)
        whole = np.concatenate([[0.0], np.cumsum(steps * (values[1:] + values[:-1]) / 2)])

        def primitive(x: Any) -> np.ndarray:
            i = np.clip(np.searchsorted(self.knots, x) - 1, 0, len(steps) - 1)
            into = x - self.knots[i]
            slope = (values[i + 1] - values[i]) / steps[i]
            return whole[i] + into * (values[i] + slope * into / 2)

        return primitive(np.asarray(ends)) - primitive(np.asarray(start))

    def _nodes(self, start: float, end: float) -> tuple[np.ndarray, np.ndarray]:
        """Gauss-Legendre between the knots, signed like end - start."""
        low, high = min(start, end), max(start, end)
        even = np.linspace(low, high, int(np.ceil((high - low) / LONGEST)) + 1)
        inside = self.knots[(self.knots > low) & (self.knots < high)]
        ends = np.unique(np.concatenate([even, inside, [low, high]]))
        half = np.diff(ends)[:, None] / 2
        at = (ends[:-1, None] + half * (1 + ROOTS)).ravel()
        return at, np.copysign(1.0, end - start) * (half * WEIGHTS).ravel()
