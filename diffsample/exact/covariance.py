"""Covariances in their own axes: S = Q diag(values) Q', so that every function of S is elementwise.

The law of x_t under N(mu, S) needs (alpha^2 S + sigma^2 I)^-1 at every noise level, and one level a sample. In the
axes of S that is a division. The factorisation is done once, when a law is built: on the host in float64 from
concrete numbers, by JAX from traced ones (whose gradient is undefined where a full matrix has equal eigenvalues).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from numpy.typing import ArrayLike

from diffsample.struct import pytree

HIGHEST = jax.lax.Precision.HIGHEST


@pytree
class Covariance:
    """k covariance matrices over d numbers; k = 1 where all components of a law share one.

    It is made by `factor` and checks nothing itself, so that JAX may rebuild it with anything inside.

    >>> Covariance(np.array([[1.0, 4.0]]), None).dense()[0].tolist()
    [[1.0, 0.0], [0.0, 4.0]]
    """

    values: Array  # [k, d] variances along the axes
    basis: Array | None  # [k, d, d] orthonormal axes, one a column; None: the coordinate axes

    def to_axes(self, z: Array) -> Array:
        """Coordinates Q'z of vectors z [n, k, d]."""
        if self.basis is None:
            return z
        return jnp.einsum("kij,nki->nkj", *self._matching(z), precision=HIGHEST)

    def from_axes(self, z: Array) -> Array:
        """Vectors Qz of coordinates z [n, k, d]."""
        if self.basis is None:
            return z
        return jnp.einsum("kij,nkj->nki", *self._matching(z), precision=HIGHEST)

    def dense(self) -> Array:
        """The matrices, [k, d, d]; NumPy float64 where the factors are."""
        if self.basis is None:
            xp = namespace(self.values)
            return self.values[:, :, None] * xp.eye(self.values.shape[-1])[None]
        with jax.default_matmul_precision("highest"):
            return (self.basis * self.values[:, None, :]) @ self.basis.swapaxes(-1, -2)

    def _matching(self, z: Array) -> tuple[Array, Array]:
        """The axes and z with the same k: a shared basis serves every component, and the other way round."""
        basis = jnp.asarray(self.basis, z.dtype)
        k = max(basis.shape[0], z.shape[1])
        return jnp.broadcast_to(basis, (k, *basis.shape[1:])), jnp.broadcast_to(z, (z.shape[0], k, z.shape[2]))


def factor(cov: ArrayLike | Covariance, event: tuple[int, ...], k: int) -> Covariance:
    """Factorise the covariances of k components over an event shape; a `Covariance` passes unchanged.

    Args:
        cov: `[]` one variance for all; `[k]` a variance a component; `[k or 1, *event]` or `[k or 1, d]` variances a
            coordinate; `[k or 1, d, d]` full matrices over the flattened event. Singular is allowed, indefinite is not.
        event: shape of one datum, of d numbers.
        k: number of components.

    Returns:
        The factors, float64 NumPy unless `cov` is traced.

    Raises:
        ValueError: wrong shape, not finite, a negative variance or eigenvalue, an asymmetric matrix.

    >>> factor([[2.0, 1.0], [1.0, 2.0]], event=(2,), k=2).values.shape, factor(0.5, event=(2, 3), k=4).values.shape
    ((2, 2), (1, 6))
    """
    if isinstance(cov, Covariance):
        return cov
    matrix, eps = as_host(cov, "cov"), rounding(cov)
    d, shape = math.prod(event), tuple(matrix.shape)
    if shape in {(), (k,)}:
        return Covariance(_nonnegative(_repeat(matrix.reshape(-1, 1), d), eps), None)
    if shape[0] in {1, k} and (shape[1:] in {event, (d,)} or (d == 1 and shape[1:] == (1, 1))):
        return Covariance(_nonnegative(matrix.reshape(-1, d), eps), None)
    if shape[0] in {1, k} and shape[1:] == (d, d):
        return _factor_full(matrix, eps)
    raise ValueError(
        f"cov has shape {shape}; for {k} component(s) of event shape {event} it may be (), ({k},), "
        f"({k} or 1, *{event}) or ({k} or 1, {d}, {d}) (a single Gaussian leaves the first axis out)"
    )


def single(cov: ArrayLike) -> Any:
    """The covariance of one Gaussian, as the list of one that `factor` reads; a scalar stays one.

    >>> single([1.0, 2.0]).shape, single(3.0)
    ((1, 2), 3.0)
    """
    xp = namespace(cov)
    return cov if xp.ndim(cov) == 0 else xp.asarray(cov)[None]


def is_traced(*arrays: Any) -> bool:
    """Whether any of the arrays is being traced by JAX, so that its numbers are not known.

    >>> is_traced(np.ones(3), jnp.ones(3))
    False
    """
    return any(isinstance(a, Tracer) for a in arrays)


def namespace(*arrays: Any) -> Any:
    """The array module for these inputs: `jax.numpy` where one of them is traced, else NumPy.

    >>> namespace(1.0, jnp.ones(3)).__name__
    'numpy'
    """
    return jnp if is_traced(*arrays) else np


def as_host(value: Any, name: str) -> Any:
    """A traced array unchanged; anything else as a finite float64 NumPy array.

    >>> as_host(jnp.ones(2), "mean").dtype
    dtype('float64')
    """
    if is_traced(value):
        return value
    array = np.asarray(value, np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got {array}")
    return array


def rounding(value: Any) -> float:
    """Machine epsilon of the numbers as they were given (float64 for Python numbers).

    >>> rounding(np.float32(1.0)), rounding([1, 2])
    (1.1920928955078125e-07, 2.220446049250313e-16)
    """
    dtype = jnp.result_type(value) if hasattr(value, "dtype") else np.dtype(np.float64)
    return float(jnp.finfo(dtype if jnp.issubdtype(dtype, jnp.floating) else np.float64).eps)


def _repeat(variance: Any, d: int) -> Any:
    return namespace(variance).broadcast_to(variance, (variance.shape[0], d))


def _nonnegative(values: Any, eps: float) -> Any:
    """Variances, with rounding below zero set to zero and anything lower refused."""
    if is_traced(values):
        return jnp.maximum(values, 0)
    lowest, scale = values.min(initial=0.0), np.abs(values).max(initial=0.0)
    if lowest < -16 * eps * values.shape[-1] * scale:
        raise ValueError(f"cov must be positive semi-definite; its lowest variance or eigenvalue is {lowest}")
    return np.maximum(values, 0.0)


def _factor_full(cov: Any, eps: float) -> Covariance:
    xp, transpose = namespace(cov), cov.swapaxes(-1, -2)
    if xp is np and np.abs(cov - transpose).max() > 16 * eps * np.abs(cov).max():
        raise ValueError(f"cov must be symmetric; it differs from its transpose by {np.abs(cov - transpose).max()}")
    values, basis = xp.linalg.eigh((cov + transpose) / 2)
    return Covariance(_nonnegative(values, eps), basis)
