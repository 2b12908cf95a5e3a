"""Noising processes: how signal and noise scale with time, x_t = alpha(t) x0 + sigma(t) eps.

half_logsnr(t) = ln(alpha/sigma) falls strictly with t, from +inf at t = 0 (clean data: alpha = 1, sigma = 0). Python
and NumPy numbers in give NumPy float64 out, for planning grids and tables on the host; JAX arrays in give JAX arrays of
the same dtype out, jittable and differentiable for t > 0. Processes are plain hashable values, compared by their
numbers, so that they can be static metadata of a compiled program; they are not pytrees.
"""

import math
from dataclasses import dataclass, fields
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
        return log(self.alpha(t)) - log(self.sigma(t))

    def level(self, t: Numbers) -> Level:
        """Time and both scales together."""
        return Level(backend(t)[1], self.alpha(t), self.sigma(t))


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
        xp, t = backend(t)
        return xp.exp(-0.5 * _integrated_rate(t, self.beta_min, self.beta_max))

    def sigma(self, t: Numbers) -> Numbers:
        xp, t = backend(t)
        return xp.sqrt(-xp.expm1(-_integrated_rate(t, self.beta_min, self.beta_max)))

    def t_from_half_logsnr(self, half_logsnr: Numbers) -> Numbers:
        xp, half_logsnr = backend(half_logsnr)
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
        xp, t = backend(t)
        return xp.exp(-0.5 * _integrated_rate(t, self.beta_min, self.beta_max))

    def sigma(self, t: Numbers) -> Numbers:
        xp, t = backend(t)
        return -xp.expm1(-_integrated_rate(t, self.beta_min, self.beta_max))

    def t_from_half_logsnr(self, half_logsnr: Numbers) -> Numbers:
        xp, half_logsnr = backend(half_logsnr)  # sigma/alpha = 2 sinh(B/2)
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
        xp, t = backend(t)
        return xp.sin(self._angle * (1 - t)) / math.sin(self._angle)

    def sigma(self, t: Numbers) -> Numbers:
        xp, t = backend(t)
        turn = self._angle * t
        one_minus_alpha = 2 * xp.sin(0.5 * turn) ** 2 + xp.sin(turn) / math.tan(self._angle)
        return xp.sqrt(one_minus_alpha * (2 - one_minus_alpha))

    def t_from_half_logsnr(self, half_logsnr: Numbers) -> Numbers:
        xp, half_logsnr = backend(half_logsnr)
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
        xp, t = backend(t)
        return xp.ones_like(t)[()]

    def sigma(self, t: Numbers) -> Numbers:
        return backend(t)[1]

    def t_from_half_logsnr(self, half_logsnr: Numbers) -> Numbers:
        xp, half_logsnr = backend(half_logsnr)
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
        return 1 - backend(t)[1]

    def sigma(self, t: Numbers) -> Numbers:
        return backend(t)[1]

    def t_from_half_logsnr(self, half_logsnr: Numbers) -> Numbers:
        xp, half_logsnr = backend(half_logsnr)
        return xp.exp(-xp.logaddexp(0.0, half_logsnr))


def backend(x: Numbers) -> tuple[Any, Any]:
    """The array module that x belongs to, and x as one of its floating-point arrays (NumPy scalars stay scalars)."""
    if isinstance(x, jax.Array):
        return jnp, x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float)
    return np, np.asarray(x, np.float64)[()]


def log(x: Numbers) -> Numbers:
    """Logarithm that is -inf at 0 without a NumPy warning."""
    xp, x = backend(x)
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
