"""Noising processes: how signal and noise scale with time, x_t = alpha(t) x0 + sigma(t) eps.

half_logsnr(t) = ln(alpha/sigma) falls strictly with t, from +inf at t = 0 (clean data: alpha = 1, sigma = 0). Python
and NumPy numbers in give NumPy float64 out, for planning grids and tables on the host; JAX arrays in give JAX arrays of
the same dtype out, jittable and differentiable for t > 0. Processes are plain hashable values, compared by their
numbers, so that they can be static metadata of a compiled program; they are not pytrees.
"""

import math
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

Numbers: TypeAlias = (
    Any  # numbers of any shape: Python or NumPy (float64 comes back), or a JAX array (its dtype is kept)
)


class Level(NamedTuple):
    """A noise level: x_t = alpha x0 + sigma eps."""

    t: Any  # process time
    alpha: Any  # signal scale
    sigma: Any  # noise scale


class Process(Protocol):
    """What every process offers; a class that inherits it writes the times, alpha, sigma and the inverse."""

    @property
    def t_min(self) -> float:
        """Smallest positive time that grids go to by default."""
        ...

    @property
    def t_max(self) -> float:
        """Largest time, where sampling starts; the process is valid on [0, t_max]."""
        ...

    @property
    def t_start(self) -> float:
        """Where grids spaced in log-SNR start by default: t_max where its log-SNR is finite, else a time before it."""
        ...

    def alpha(self, t: Numbers) -> Numbers:
        """Signal scale, 1 at t = 0."""
        ...

    def sigma(self, t: Numbers) -> Numbers:
        """Noise scale, 0 at t = 0; accurate to rounding in float32 too, however small t is."""
        ...

    def t_from_half_logsnr(self, half_logsnr: Numbers) -> Numbers:
        """The inverse of `half_logsnr`; it is not clipped, so a value outside the process gives a time outside it."""
        ...

    def half_logsnr(self, t: Numbers) -> Numbers:
        """ln(alpha/sigma): +inf where sigma = 0, -inf where alpha = 0."""
        return _log(self.alpha(t)) - _log(self.sigma(t))

    def level(self, t: Numbers) -> Level:
        """Time and both scales together."""
        return Level(_backend(t)[1], self.alpha(t), self.sigma(t))


@dataclass(frozen=True)
class VariancePreserving(Process):
    """VP SDE, beta linear in t: alpha = exp(-B/2), sigma^2 = 1 - exp(-B), B = beta_min t + (beta_max - beta_min) t^2/2.

    Args:
        beta_min, beta_max: the rate at t = 0 and t = 1, 0 < beta_min <= beta_max.

    Reference: Song et al. 2021, arXiv:2011.13456, equation 32.

    >>> print(f"{VariancePreserving().alpha(1.0):.8f}")
    0.00657159
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: ClassVar[float] = 1e-3
    t_max: ClassVar[float] = 1.0
    t_start: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        _freeze(self)
        _check_rates(self.beta_min, self.beta_max)

    def alpha(self, t: Numbers) -> Numbers:
        xp, t = _backend(t)
        return xp.exp(-0.5 * _integrated_rate(t, self.beta_min, self.beta_max))

    def sigma(self, t: Numbers) -> Numbers:
        xp, t = _backend(t)
        return xp.sqrt(-xp.expm1(-_integrated_rate(t, self.beta_min, self.beta_max)))

    def t_from_half_logsnr(self, half_logsnr: Numbers) -> Numbers:
        xp, half_logsnr = _backend(half_logsnr)
        return _time_of_rate(xp, xp.logaddexp(0.0, -2 * half_logsnr), self.beta_min, self.beta_max)


@dataclass(frozen=True)
class SubVP(Process):
    """Sub-VP SDE: the alpha of `VariancePreserving`, with the smaller noise sigma = 1 - alpha^2.

    Args:
        beta_min, beta_max: the rate at t = 0 and t = 1, 0 < beta_min <= beta_max.

    Reference: Song et al. 2021, arXiv:2011.13456, equation 29.

    >>> print(SubVP().sigma(1e-3) < VariancePreserving().sigma(1e-3))
    True
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: ClassVar[float] = 1e-3
    t_max: ClassVar[float] = 1.0
    t_start: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        _freeze(self)
        _check_rates(self.beta_min, self.beta_max)

    def alpha(self, t: Numbers) -> Numbers:
        xp, t = _backend(t)
        return xp.exp(-0.5 * _integrated_rate(t, self.beta_min, self.beta_max))

    def sigma(self, t: Numbers) -> Numbers:
        xp, t = _backend(t)
        return -xp.expm1(-_integrated_rate(t, self.beta_min, self.beta_max))

    def t_from_half_logsnr(self, half_logsnr: Numbers) -> Numbers:
        xp, half_logsnr = _backend(half_logsnr)  # sigma/alpha = 2 sinh(B/2)
        return _time_of_rate(xp, 2 * xp.arcsinh(0.5 * xp.exp(-half_logsnr)), self.beta_min, self.beta_max)


@dataclass(frozen=True)
class Cosine(Process):
    """Cosine schedule in continuous time: alpha = cos(pi/2 (t + offset)/(1 + offset)) / cos(pi/2 offset/(1 + offset)).

    It stops at t_max = 0.9946, before alpha gets too small to divide by.

    Args:
        offset: the small shift that keeps the noise from starting too slowly, in (0, 1).

    Reference: Nichol & Dhariwal 2021, arXiv:2102.09672, equation 17; t_max from Lu et al. 2022, arXiv:2206.00927.

    >>> print(Cosine().t_max, Cosine().alpha(0.0), Cosine().sigma(0.0))
    0.9946 1.0 0.0
    """

    offset: float = 0.008
    t_min: ClassVar[float] = 1e-3
    t_max: ClassVar[float] = 0.9946
    t_start: ClassVar[float] = 0.9946

    def __post_init__(self) -> None:
        _freeze(self)
        if not 0 < self.offset < 1:
            raise ValueError(f"Cosine needs 0 < offset < 1, got {self.offset}; the usual value is 0.008")

    @property
    def _angle(self) -> float:
        return 0.5 * math.pi / (1 + self.offset)  # alpha = sin(angle (1 - t)) / sin(angle), accurate up to t = 1

    def alpha(self, t: Numbers) -> Numbers:
        xp, t = _backend(t)
        return xp.sin(self._angle * (1 - t)) / math.sin(self._angle)

    def sigma(self, t: Numbers) -> Numbers:
        xp, t = _backend(t)
        turn = self._angle * t
        one_minus_alpha = 2 * xp.sin(0.5 * turn) ** 2 + xp.sin(turn) / math.tan(self._angle)
        return xp.sqrt(one_minus_alpha * (2 - one_minus_alpha))

    def t_from_half_logsnr(self, half_logsnr: Numbers) -> Numbers:
        xp, half_logsnr = _backend(half_logsnr)
        alpha = xp.exp(-0.5 * xp.logaddexp(0.0, -2 * half_logsnr))
        sigma = xp.exp(-0.5 * xp.logaddexp(0.0, 2 * half_logsnr))
        sin, cos = math.sin(self._angle), math.cos(self._angle)
        cos_rest = xp.sqrt(sigma**2 + (alpha * cos) ** 2)  # cos(angle (1 - t)), written without 1 - alpha^2
        turn = xp.arctan2(sin * sigma**2 / (cos_rest + alpha * cos), cos * cos_rest + sin**2 * alpha)
        return turn / self._angle


@dataclass(frozen=True)
class VarianceExploding(Process):
    """VE process in EDM's form: alpha = 1, and time is the noise level itself, sigma = t.

    Args:
        sigma_min, sigma_max: the range that grids span by default (t_min and t_max), 0 < sigma_min < sigma_max.

    Reference: Karras et al. 2022, arXiv:2206.00364, table 1 (last column).

    >>> print(VarianceExploding().sigma(80.0), VarianceExploding().half_logsnr(1.0))
    80.0 0.0
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        _freeze(self)
        if not 0 < self.sigma_min < self.sigma_max:
            given = f"sigma_min={self.sigma_min}, sigma_max={self.sigma_max}"
            raise ValueError(f"VarianceExploding needs 0 < sigma_min < sigma_max, got {given}; zero is added by grids")

    @property
    def t_min(self) -> float:
        return self.sigma_min

    @property
    def t_max(self) -> float:
        return self.sigma_max

    @property
    def t_start(self) -> float:
        return self.sigma_max

    def alpha(self, t: Numbers) -> Numbers:
        xp, t = _backend(t)
        return xp.ones_like(t)[()]

    def sigma(self, t: Numbers) -> Numbers:
        return _backend(t)[1]

    def t_from_half_logsnr(self, half_logsnr: Numbers) -> Numbers:
        xp, half_logsnr = _backend(half_logsnr)
        return xp.exp(-half_logsnr)


@dataclass(frozen=True)
class FlowMatching(Process):
    """Straight path of rectified flow: alpha = 1 - t, sigma = t; pure noise at t_max = 1, log-SNR grids start at 0.999.

    Reference: Lipman et al. 2023, arXiv:2210.02747, example II; Liu et al. 2023, arXiv:2209.03003, equation 1.

    >>> print(FlowMatching().level(0.25))
    Level(t=np.float64(0.25), alpha=np.float64(0.75), sigma=np.float64(0.25))
    """

    t_min: ClassVar[float] = 1e-3
    t_max: ClassVar[float] = 1.0
    t_start: ClassVar[float] = 0.999

    def alpha(self, t: Numbers) -> Numbers:
        return 1 - _backend(t)[1]

    def sigma(self, t: Numbers) -> Numbers:
        return _backend(t)[1]

    def t_from_half_logsnr(self, half_logsnr: Numbers) -> Numbers:
        xp, half_logsnr = _backend(half_logsnr)
        return xp.exp(-xp.logaddexp(0.0, half_logsnr))


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
        alpha = (alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))
        return DiscreteBetas((self.betas[0], *(1 - (alpha[1:] / alpha[:-1]) ** 2)))

    def time(self, index: Numbers) -> Numbers:
        """The time t = (index + 1)/N of a table index, whole or fractional."""
        return (_backend(index)[1] + 1) / len(self.betas)

    @property
    def t_min(self) -> float:
        return 1 / len(self.betas)

    @property
    def t_start(self) -> float:
        return 1 - 1 / len(self.betas) if self._ends_at_zero else 1.0

    def alpha(self, t: Numbers) -> Numbers:
        xp, t = _backend(t)
        return xp.exp(self._interpolate(xp, t))

    def sigma(self, t: Numbers) -> Numbers:
        xp, t = _backend(t)
        return xp.sqrt(0.0 - xp.expm1(2 * self._interpolate(xp, t)))  # 0.0 - 0.0 is 0.0, where -0.0 would stay

    def t_from_half_logsnr(self, half_logsnr: Numbers) -> Numbers:
        xp, half_logsnr = _backend(half_logsnr)
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
        return np.concatenate([[0.0], 0.5 * np.cumsum(_log(1.0 - np.asarray(self.betas)))])

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
        return xp.where(last, knots[-1] + _log(1 - xp.where(last, part, 0.0)), log_alpha)[()]


def _backend(x: Numbers) -> tuple[Any, Any]:
    """The array module that x belongs to, and x as one of its floating-point arrays (NumPy scalars stay scalars)."""
    if isinstance(x, jax.Array):
        return jnp, x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float)
    return np, np.asarray(x, np.float64)[()]


def _log(x: Numbers) -> Numbers:
    """Logarithm that is -inf at 0 without a NumPy warning."""
    xp, x = _backend(x)
    with np.errstate(divide="ignore"):
        return xp.log(x)


def _freeze(process: Any) -> None:
    """Make every field a finite Python float, so that the process hashes and compares by value."""
    for field in fields(process):
        value = float(getattr(process, field.name))
        if not math.isfinite(value):
            raise ValueError(f"{type(process).__name__} needs a finite {field.name}, got {value}")
        object.__setattr__(process, field.name, value)


def _check_rates(beta_min: float, beta_max: float) -> None:
    if not 0 < beta_min <= beta_max:
        given = f"beta_min={beta_min}, beta_max={beta_max}"
        raise ValueError(f"a process with linear beta needs 0 < beta_min <= beta_max, got {given}; usual: 0.1 and 20")


def _integrated_rate(t: Numbers, beta_min: float, beta_max: float) -> Numbers:
    """B(t), the integral of beta from 0 to t."""
    return t * (beta_min + t * (0.5 * (beta_max - beta_min)))


def _time_of_rate(xp: Any, rate: Numbers, beta_min: float, beta_max: float) -> Numbers:
    """The t with B(t) = rate; the root is written without cancellation."""
    return 2 * rate / (beta_min + xp.sqrt(beta_min**2 + 2 * (beta_max - beta_min) * rate))
