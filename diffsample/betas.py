"""Processes given by a table of betas, as discrete-time models are trained."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from diffsample.process import Cosine, Numbers, Process, backend, log


@dataclass(frozen=True)
class DiscreteBetas(Process):
    """A table of N betas, alpha^2 = prod(1 - beta) at index i, laid at time t = (i + 1)/N; clean data at t = 0.

    Between indices log alpha is linear in t, and the inverse interpolates log alpha (not log-SNR). A table whose last
    beta is 1 ends at alpha = 0; there, in the last cell only, alpha itself is linear in t, and t_start is index N - 2.

    Args:
        betas: the table, each in (0, 1); the last may be 1.

    Reference: Ho et al. 2020, arXiv:2006.11239, equation 4; the interpolation: Lu et al. 2022, arXiv:2206.00927.

    >>> print(f"{DiscreteBetas.linear().alpha(1.0) ** 2:.6e}")
    4.035830e-05
    """

    betas: tuple[float, ...]
    t_max: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        betas = np.asarray(self.betas, np.float64)
        object.__setattr__(self, "betas", tuple(betas.ravel().tolist()))
        if betas.ndim != 1 or betas.size < 2:
            raise ValueError(f"DiscreteBetas needs a flat table of two betas or more, got shape {betas.shape}")
        allowed = (betas > 0) & (betas < 1)
        allowed[-1] |= betas[-1] == 1
        if not allowed.all():
            i = int(np.argmin(allowed))
            rule = "each must lie in (0, 1), and only the last may be 1 (see zero_terminal_snr)"
            raise ValueError(f"betas[{i}] = {betas[i]}: {rule}")

    def __repr__(self) -> str:
        return f"DiscreteBetas({len(self.betas)} betas from {self.betas[0]:.6g} to {self.betas[-1]:.6g})"

    @classmethod
    def linear(cls, steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> "DiscreteBetas":
        """Betas linear in the index (DDPM: Ho et al. 2020, arXiv:2006.11239, section 4)."""
        return cls(tuple(np.linspace(first, last, steps)))

    @classmethod
    def scaled_linear(cls, steps: int = 1000, first: float = 0.00085, last: float = 0.012) -> "DiscreteBetas":
        """Square roots of betas linear in the index (Stable Diffusion: Rombach et al. 2022, arXiv:2112.10752)."""
        return cls(tuple(np.linspace(math.sqrt(first), math.sqrt(last), steps) ** 2))

    @classmethod
    def cosine(cls, steps: int = 1000, offset: float = 0.008, clip: float = 0.999) -> "DiscreteBetas":
        """Betas of the cosine schedule, at most `clip` (Nichol & Dhariwal 2021, arXiv:2102.09672, equation 17)."""
        alpha = Cosine(offset).alpha(np.arange(steps + 1) / steps)
        return cls(tuple(np.minimum(1 - (alpha[1:] / alpha[:-1]) ** 2, clip)))

    def zero_terminal_snr(self) -> "DiscreteBetas":
        """The table with alpha shifted and scaled so that the last is 0 and the first unchanged.

        The network must predict v or x0, for noise says nothing about the data at alpha = 0.
        Reference: Lin et al. 2024, arXiv:2305.08891, algorithm 1.
        """
        alpha = np.exp(self._log_alpha[1:])
        alpha = alpha - alpha[-1]  # the scale cancels in the ratios; the first beta is kept
        return DiscreteBetas((self.betas[0], *(1 - (alpha[1:] / alpha[:-1]) ** 2)))

    def time(self, index: Numbers) -> Numbers:
        """The time t = (index + 1)/N of a table index, whole or fractional."""
        return (backend(index)[1] + 1) / len(self.betas)

    @property
    def t_min(self) -> float:
        return 1 / len(self.betas)

    @property
    def t_start(self) -> float:
        return 1 - 1 / len(self.betas) if self._ends_at_zero else 1.0

    def alpha(self, t: Numbers) -> Numbers:
        xp, t = backend(t)
        return xp.exp(self._interpolate(xp, t))

    def sigma(self, t: Numbers) -> Numbers:
        xp, t = backend(t)
        return xp.sqrt(0.0 - xp.expm1(2 * self._interpolate(xp, t)))  # 0.0 - 0.0 is 0.0, where -0.0 would stay

    def t_from_half_logsnr(self, half_logsnr: Numbers) -> Numbers:
        xp, half_logsnr = backend(half_logsnr)
        log_alpha = -0.5 * xp.logaddexp(0.0, -2 * half_logsnr)
        knots, slopes = self._tables(xp, half_logsnr.dtype)
        cell = xp.clip(xp.searchsorted(-knots, -log_alpha, side="right") - 1, 0, len(self.betas) - 1)
        rise = log_alpha - knots[cell]
        part = rise / slopes[cell]
        if self._ends_at_zero:
            part = xp.where(cell == len(self.betas) - 1, -xp.expm1(rise), part)
        return ((cell + part) / len(self.betas)).astype(half_logsnr.dtype)[()]

    @property
    def _ends_at_zero(self) -> bool:
        return self.betas[-1] == 1

    @cached_property
    def _log_alpha(self) -> np.ndarray:
        """log alpha at t = 0, 1/N, ..., 1."""
        return np.concatenate([[0.0], 0.5 * np.cumsum(log(1.0 - np.asarray(self.betas)))])

    def _tables(self, xp: Any, dtype: Any) -> tuple[Any, Any]:
        """log alpha where each cell starts, and its rise across the cell (1, unused, across a cell that ends at 0)."""
        rises = np.diff(self._log_alpha)
        rises = np.where(np.isfinite(rises), rises, 1.0)
        return xp.asarray(self._log_alpha[:-1], dtype), xp.asarray(rises, dtype)

    def _interpolate(self, xp: Any, t: Numbers) -> Numbers:
        knots, rises = self._tables(xp, t.dtype)
        place = t * len(self.betas)
        cell = xp.clip(xp.floor(place), 0, len(self.betas) - 1).astype(int)
        part = place - cell.astype(t.dtype)
        log_alpha = knots[cell] + part * rises[cell]
        if not self._ends_at_zero:
            return log_alpha
        last = cell == len(self.betas) - 1
        return xp.where(last, knots[-1] + log(1 - part), log_alpha)[()]
