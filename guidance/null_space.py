"""Rules that take what y measures from y and the rest from the denoiser, axis by axis: DDNM, DDNM+, DDRM.

No gradient. They return decoupled pairs made for `ddim` with eta = 0, whose step alpha_next x0 + sigma_next eps puts
fresh noise, drawn here, where each method wants it.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array

from diffsample.denoiser import Denoiser, Point, Prediction, PyTree
from diffsample.guidance.measurement import (
    Measured,
    Spectral,
    apply,
    batch_of,
    check_in_range,
    check_noise,
    each,
    invertible,
    pinv,
    spectral,
    spread,
)
from diffsample.guidance.schedules import known, scheduled, value_at
from diffsample.sampler import fold, normal
from diffsample.struct import pytree


@pytree
class NullSpace(Measured):
    """DDNM; see `ddnm`."""

    denoiser: Denoiser
    operator: Any
    y: Any
    eta: Any

    def __call__(self, x: Array, at: Point, cond: PyTree, state: PyTree) -> tuple[Prediction, PyTree]:
        (x0, eps), state = self.denoiser(x, at._replace(keys=fold(at.keys, 1)), cond, state)
        residual = batch_of(self.operator, self.y, x) - apply(self.operator, x0)
        return Prediction(x0 + pinv(self.operator, residual), _renoised(eps, self.eta, at)), state


@pytree
class NoisyNullSpace(Measured):
    """DDNM+; see `ddnm_plus`."""

    denoiser: Denoiser
    operator: Any
    y: Any
    sigma_y: Any
    eta: Any

    def __call__(self, x: Array, at: Point, cond: PyTree, state: PyTree) -> tuple[Prediction, PyTree]:
        (x0, eps), state = self.denoiser(x, at._replace(keys=fold(at.keys, 1)), cond, state)
        y, z = batch_of(self.operator, self.y, x), normal(fold(at.keys, 0), x.shape, x.dtype)
        numbers = (spread(v, at.now, x) for v in (_noise_ahead(at), self.sigma_y, self.eta))
        return Prediction(*each(self.operator, _null_space_in_axes, x0, eps, y, z, *numbers)), state


@pytree
class Restoration(Measured):
    """DDRM; see `ddrm`."""

    denoiser: Denoiser
    operator: Any
    y: Any
    sigma_y: Any
    eta: Any
    eta_b: Any

    def __call__(self, x: Array, at: Point, cond: PyTree, state: PyTree) -> tuple[Prediction, PyTree]:
        (x0, eps), state = self.denoiser(x, at._replace(keys=fold(at.keys, 1)), cond, state)
        y, z = batch_of(self.operator, self.y, x), normal(fold(at.keys, 0), x.shape, x.dtype)
        numbers = (spread(v, at.now, x) for v in (_noise_ahead(at), self.sigma_y, self.eta, self.eta_b))
        return Prediction(*each(self.operator, _restored_in_axes, x0, eps, y, z, *numbers)), state


def ddnm(denoiser: Denoiser, operator: Any, y: Any, *, eta: Any = 0.85) -> NullSpace:
    """DDNM: the range of A+ comes from y, the null space from the denoiser: x0' = D + A+ (y - A D).

    eps stays the network's, mixed with fresh noise: sqrt(1 - eta^2) eps + eta z. Run it under `ddim` with eta = 0,
    whose step is then alpha_next x0' + sigma_next (sqrt(1 - eta^2) eps + eta z): the method's own split of the noise,
    not DDIM's. No gradient. At the end A x0 = y.

    Args:
        denoiser: what is corrected.
        operator: A with a pseudo-inverse: one of `guidance.operators`, or `operators.function(A, pinv)`.
        y: [B, ...] noiseless measurements, or one for all.
        eta: share of fresh noise, 0 to 1, a number or [B].

    Raises:
        TypeError: an operator without a pseudo-inverse.
        ValueError: y outside the operator's range, eta outside [0, 1]; at trace time, y that does not fit.

    Reference: Wang, Yu, Zhang 2023, arXiv 2212.00490, algorithm 1.

    >>> import diffsample as ds
    >>> A = ds.guidance.operators.mask([1.0, 0.0])
    >>> ds.guidance.ddnm(ds.exact.Gaussian([0.0, 0.0], 1.0), A, jnp.array([2.0, 0.0])).vjps
    0
    """
    operator = invertible(operator)
    check_share("eta", eta)
    check_in_range(operator, y)
    return NullSpace(denoiser, operator, y, scheduled(eta))


def ddnm_plus(denoiser: Denoiser, operator: Any, y: Any, sigma_y: Any, *, eta: Any = 0.85) -> NoisyNullSpace:
    """DDNM+: `ddnm` with measurement noise, axis by axis of the SVD.

    An axis with singular value s takes y whole while sigma_next / alpha_next >= sigma_y / s, with less fresh noise by
    as much as y brings; below, it takes the share of y whose noise fills what eta leaves. Run it under `ddim` with
    eta = 0. No gradient. With sigma_y = 0 the measured axes get fresh noise only.

    Args:
        denoiser, y, eta: as for `ddnm`.
        operator: A with its SVD: one of `guidance.operators`.
        sigma_y: standard deviation of the measurement's noise, a number or [B].

    Raises:
        TypeError: an operator without an SVD.
        ValueError: negative sigma_y, eta outside [0, 1]; at trace time, y that does not fit.

    Reference: Wang, Yu, Zhang 2023, arXiv 2212.00490, section 3.3 and appendix I.

    >>> import diffsample as ds
    >>> A = ds.guidance.operators.mask([1.0, 0.0])
    >>> ds.guidance.ddnm_plus(ds.exact.Gaussian([0.0, 0.0], 1.0), A, jnp.array([2.0, 0.0]), 0.1).vjps
    0
    """
    operator = spectral(operator)
    check_share("eta", eta)
    check_noise(sigma_y)
    return NoisyNullSpace(denoiser, operator, y, scheduled(sigma_y), scheduled(eta))


def ddrm(
    denoiser: Denoiser, operator: Any, y: Any, sigma_y: Any = 0.0, *, eta: Any = 0.85, eta_b: Any = 1.0
) -> Restoration:
    """DDRM: every axis of the SVD restored by its own rule, by how the noise ahead compares with that of y.

    With rho = sigma_next / alpha_next, in coordinates x / alpha along an axis of singular value s:
    not measured: D + sqrt(1 - eta^2) rho eps + eta rho z;  rho < sigma_y / s: D + sqrt(1 - eta^2) rho (U'y - s D) /
    sigma_y + eta rho z;  else (1 - eta_b) D + eta_b U'y / s + sqrt(rho^2 - (eta_b sigma_y / s)^2) z. Equality, and with
    it sigma_y = 0 at the end, belongs to the last. Run it under `ddim` with eta = 0, from `ds.diffuse(key, A+ y,
    level)`. No gradient.

    Args:
        denoiser, sigma_y: as for `ddnm_plus`.
        operator: A with its SVD: one of `guidance.operators`.
        y: [B, ...] measurements, or one for all.
        eta, eta_b: shares of fresh noise and of y, 0 to 1, numbers or [B].

    Raises:
        TypeError: an operator without an SVD.
        ValueError: negative sigma_y, eta or eta_b outside [0, 1]; at trace time, y that does not fit.

    Reference: Kawar et al. 2022, arXiv 2201.11793, eq. 7 to 8.

    >>> import diffsample as ds
    >>> A = ds.guidance.operators.mask([1.0, 0.0])
    >>> ds.guidance.ddrm(ds.exact.Gaussian([0.0, 0.0], 1.0), A, jnp.array([2.0, 0.0])).evaluations
    1
    """
    operator = spectral(operator)
    check_share("eta", eta)
    check_share("eta_b", eta_b)
    check_noise(sigma_y)
    return Restoration(denoiser, operator, y, scheduled(sigma_y), scheduled(eta), scheduled(eta_b))


def check_share(name: str, value: Any) -> None:
    """Raise ValueError unless a share lies in [0, 1]; traced numbers pass."""
    if known(value) and not bool(jnp.all((jnp.asarray(value) >= 0) & (jnp.asarray(value) <= 1))):
        raise ValueError(f"{name}={value} must lie in [0, 1]")


def _renoised(eps: Array, eta: Any, at: Point) -> Array:
    """sqrt(1 - eta^2) eps + eta z."""
    eta = value_at(eta, at.now, eps)
    return jnp.sqrt(1 - eta**2) * eps + eta * normal(fold(at.keys, 0), eps.shape, eps.dtype)


def _noise_ahead(at: Point) -> Array:
    """sigma / alpha of the level that the step leads to."""
    return jnp.asarray(at.next.sigma) / jnp.asarray(at.next.alpha)


def _floors(A: Spectral, sigma_y: Array) -> tuple[Array, Array, Array]:
    """(measured axes, their singular values made safe, the noise sigma_y / s of y along them; infinite elsewhere)."""
    s = jnp.asarray(A.singular_values, sigma_y.dtype)
    seen = s > 0
    safe = jnp.where(seen, s, 1)
    return seen, safe, jnp.where(seen, sigma_y / safe, jnp.inf)


def _remaining(floor: Array, ahead: Array) -> Array:
    """sqrt(1 - (floor / ahead)^2) where floor <= ahead; 1 where both are 0."""
    ratio = jnp.where(jnp.isfinite(floor), floor, 0) / jnp.where(ahead > 0, ahead, 1)
    return jnp.sqrt(jnp.maximum(1 - ratio**2, 0))


def _null_space_in_axes(
    A: Spectral, x0: Array, eps: Array, y: Array, z: Array, ahead: Array, sigma_y: Array, eta: Array
) -> tuple[Array, Array]:
    seen, s, floor = _floors(A, sigma_y)
    c0, ce, cy, cz = A.to_axes(x0), A.to_axes(eps), A.measured(y) / s, A.to_axes(z)
    clear, shared = ahead >= floor, jnp.sqrt(1 - eta**2)
    trust = jnp.where(clear, 1, jnp.where(seen, shared * ahead / jnp.where(clear | ~seen, 1, floor), 0))
    kept = jnp.where(clear, _remaining(floor, ahead), eta)
    noise = jnp.where(seen, kept * cz, eta * cz + shared * ce)
    return A.from_axes(c0 + trust * (cy - c0)), A.from_axes(noise)


def _restored_in_axes(
    A: Spectral, x0: Array, eps: Array, y: Array, z: Array, ahead: Array, sigma_y: Array, eta: Array, eta_b: Array
) -> tuple[Array, Array]:
    seen, s, floor = _floors(A, sigma_y)
    c0, ce, cy, cz = A.to_axes(x0), A.to_axes(eps), A.measured(y) / s, A.to_axes(z)
    clear, shared = ahead >= floor, jnp.sqrt(1 - eta**2)
    towards = (cy - c0) / jnp.where(clear | ~seen, 1, floor)  # (U'y - s V'x0) / sigma_y
    noise = eta * cz + shared * jnp.where(seen, towards, ce)
    noise = jnp.where(clear, _remaining(eta_b * floor, ahead) * cz, noise)
    return A.from_axes(jnp.where(clear, c0 + eta_b * (cy - c0), c0)), A.from_axes(noise)
