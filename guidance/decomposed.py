"""Linear operators that know their singular value decomposition; `guidance.operators` makes them."""

from collections.abc import Callable
from typing import Any, Protocol

import jax.numpy as jnp
from einops import rearrange
from jax import Array

from diffsample.guidance.measurement import Operator, Spectral
from diffsample.struct import pytree, static

CUTOFF = 1e-6  # singular values below this share of the largest count as zero


@pytree
class WithPinv:
    """A function and its pseudo-inverse; see `function`."""

    apply: Operator
    inverse: Callable[[Array], Array]

    def __call__(self, x0: Array) -> Array:
        return self.apply(x0)

    def pinv(self, y: Array) -> Array:
        return self.inverse(y)


@pytree
class Mask(Spectral):
    """y = mask * x0; see `mask`."""

    mask: Any
    shape: tuple[int, ...] = static()

    @property
    def singular_values(self) -> Any:
        return self.mask

    def __call__(self, x0: Array) -> Array:
        return jnp.asarray(self.mask, x0.dtype) * x0

    def to_axes(self, x0: Array) -> Array:
        return x0

    def from_axes(self, c: Array) -> Array:
        return c

    def measured(self, y: Array) -> Array:
        return jnp.asarray(self.mask, y.dtype) * y


class Blocks(Spectral, Protocol):
    """One number measured of every block of n: gain times its coordinate along the first of n orthonormal rows."""

    basis: Any  # [n, n], rows orthonormal
    gain: Any

    def split(self, x0: Array) -> Array:
        """The blocks of a sample, [..., n]."""
        ...

    def join(self, blocks: Array) -> Array:
        """The sample again."""
        ...

    @property
    def singular_values(self) -> Any:
        n = self.basis.shape[0]
        first = jnp.asarray(self.gain) * (jnp.arange(n) == 0)
        return first.reshape((1,) * len(self.shape) + (n,))

    def __call__(self, x0: Array) -> Array:
        row = jnp.asarray(self.gain * self.basis[0], x0.dtype)
        return jnp.matmul(self.split(x0), row[:, None], precision="highest")[..., 0]

    def to_axes(self, x0: Array) -> Array:
        return jnp.matmul(self.split(x0), jnp.asarray(self.basis, x0.dtype).T, precision="highest")

    def from_axes(self, c: Array) -> Array:
        return self.join(jnp.matmul(c, jnp.asarray(self.basis, c.dtype), precision="highest"))

    def measured(self, y: Array) -> Array:
        return y[..., None] * (jnp.arange(self.basis.shape[0]) == 0).astype(y.dtype).reshape((1,) * y.ndim + (-1,))


@pytree
class Downsample(Blocks):
    """Means of square blocks; see `downsample`."""

    basis: Any
    gain: Any
    shape: tuple[int, ...] = static()
    factor: int = static()

    def split(self, x0: Array) -> Array:
        return rearrange(x0, "(h a) (w b) c -> h w c (a b)", a=self.factor, b=self.factor)

    def join(self, blocks: Array) -> Array:
        return rearrange(blocks, "h w c (a b) -> (h a) (w b) c", a=self.factor, b=self.factor)


@pytree
class Grayscale(Blocks):
    """Weighted means over channels; see `grayscale`."""

    basis: Any
    gain: Any
    shape: tuple[int, ...] = static()

    def split(self, x0: Array) -> Array:
        return x0[..., None, :]

    def join(self, blocks: Array) -> Array:
        return blocks[..., 0, :]


@pytree
class Filter(Spectral):
    """Circular convolution by its transfer function; see `blur`."""

    transfer: Any  # [2, H, W, 1], real and imaginary part
    shape: tuple[int, ...] = static()

    @property
    def singular_values(self) -> Any:
        size = jnp.hypot(*jnp.asarray(self.transfer))
        return jnp.where(size > CUTOFF * size.max(), size, 0)

    def __call__(self, x0: Array) -> Array:
        return self.from_axes(self._complex(x0) * self.to_axes(x0)).astype(x0.dtype)

    def to_axes(self, x0: Array) -> Array:
        return jnp.fft.fft2(x0, axes=(0, 1), norm="ortho")

    def from_axes(self, c: Array) -> Array:
        return jnp.fft.ifft2(c, axes=(0, 1), norm="ortho").real

    def measured(self, y: Array) -> Array:
        s, transfer = self.singular_values, self._complex(y)
        return jnp.where(s > 0, transfer.conj() / jnp.where(s > 0, s, 1), 0) * self.to_axes(y)

    def _complex(self, x: Array) -> Array:
        real, imaginary = jnp.asarray(self.transfer, x.dtype)
        return real + 1j * imaginary


@pytree
class Fourier(Spectral):
    """Some Fourier coefficients; see `fourier`."""

    mask: Any  # [H, W, 1]
    shape: tuple[int, ...] = static()

    @property
    def singular_values(self) -> Any:
        """Coefficients k and -k of a real image are one pair, measured once or twice."""
        mask = jnp.asarray(self.mask, float)
        return jnp.sqrt((mask + _mirrored(mask)) / 2)

    def __call__(self, x0: Array) -> Array:
        c = jnp.asarray(self.mask, x0.dtype) * self.to_axes(x0)
        return jnp.stack([c.real, c.imag], axis=-1)

    def to_axes(self, x0: Array) -> Array:
        return jnp.fft.fft2(x0, axes=(0, 1), norm="ortho")

    def from_axes(self, c: Array) -> Array:
        return jnp.fft.ifft2(c, axes=(0, 1), norm="ortho").real

    def measured(self, y: Array) -> Array:
        s = self.singular_values.astype(y.dtype)
        c = jnp.asarray(self.mask, y.dtype) * (y[..., 0] + 1j * y[..., 1])
        return jnp.where(s > 0, (c + _mirrored(c).conj()) / jnp.where(s > 0, 2 * s, 1), 0)


@pytree
class Matrix(Spectral):
    """A matrix over flattened samples; see `matrix`."""

    A: Any  # [m, d]
    left: Any  # [m, r]
    values: Any  # [d], zero beyond the rank
    right: Any  # [d, d], rows orthonormal
    shape: tuple[int, ...] = static()
    out: tuple[int, ...] = static()

    @property
    def singular_values(self) -> Any:
        return self.values

    def __call__(self, x0: Array) -> Array:
        return _matvec(self.A, x0.reshape(-1)).reshape(self.out)

    def to_axes(self, x0: Array) -> Array:
        return _matvec(self.right, x0.reshape(-1))

    def from_axes(self, c: Array) -> Array:
        return _matvec(self.right.T, c).reshape(self.shape)

    def measured(self, y: Array) -> Array:
        c = _matvec(self.left.T, y.reshape(-1))
        return jnp.where(jnp.asarray(self.values) > 0, jnp.pad(c, (0, self.values.shape[0] - c.shape[0])), 0)


def _mirrored(c: Array) -> Array:
    """Coefficients at -k in the place of those at k."""
    return jnp.roll(jnp.flip(c, (0, 1)), 1, (0, 1))


def _matvec(A: Any, x: Array) -> Array:
    return jnp.matmul(jnp.asarray(A, x.dtype), x, precision="highest")
