"""Ready measurement operators, each with its adjoint (by VJP), pseudo-inverse and singular value decomposition.

They act on one sample, images [H, W, C]; rules map them over the batch. Any other function of one sample is an
operator too: differentiable for rules with gradients, with a `pinv` for projections (`function`).

>>> import jax.numpy as jnp
>>> jnp.array(downsample((4, 4, 1), 2)(jnp.ones((4, 4, 1)))).shape
(2, 2, 1)
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax import Array

from diffsample.guidance.decomposed import (
    CUTOFF,
    Downsample,
    Filter,
    Fourier,
    Grayscale,
    Mask,
    Matrix,
    WithPinv,
)
from diffsample.guidance.measurement import PerSample, as_operator
from diffsample.tableau import is_concrete


def function(apply: Callable[[Array], Array], pinv: Callable[[Array], Array] | None = None) -> Any:
    """A function of one sample as an operator, with its pseudo-inverse where rules without gradients need it.

    Args:
        apply: A, one sample -> one real measurement; a plain function or a callable pytree (`jax.tree_util.Partial`
            makes arrays that it uses leaves of the program).
        pinv: A+, one measurement -> one sample.

    >>> import jax.numpy as jnp
    >>> every_other = function(lambda x0: x0[::2], lambda y: jnp.repeat(y, 2) * jnp.array([1.0, 0.0] * len(y)))
    >>> import jax.numpy as jnp
    >>> every_other.pinv(every_other(jnp.array([3.0, 4.0]))).tolist()
    [3.0, 0.0]
    """
    return as_operator(apply) if pinv is None else WithPinv(as_operator(apply), as_operator(pinv))


def per_sample(operator: Any) -> PerSample:
    """One operator a sample, for example masks [B, H, W, C] in `mask`: every leaf has the batch axis first.

    >>> import jax.numpy as jnp
    >>> per_sample(mask(jnp.ones((5, 8, 8, 1)))).operator.shape
    (5, 8, 8, 1)
    """
    return PerSample(as_operator(operator))


def mask(mask: Any) -> Mask:
    """Inpainting: y = mask * x0, with zeros where nothing is measured.

    Args:
        mask: shaped like one sample, 1 where measured and 0 elsewhere; a leaf, so that another mask compiles nothing.

    Raises:
        ValueError: values other than 0 and 1.

    >>> import jax.numpy as jnp
    >>> mask([1.0, 0.0]).pinv(jnp.array([3.0, 0.0])).tolist()
    [3.0, 0.0]
    """
    if is_concrete(mask):
        mask = np.asarray(mask, np.float32)
        if not np.isin(mask, (0, 1)).all():
            raise ValueError(f"a mask holds 0 and 1 only, got {np.setdiff1d(mask, (0, 1))[:3]}")
    return Mask(mask, tuple(mask.shape))


def downsample(shape: Sequence[int], factor: int) -> Downsample:
    """Average pooling by square blocks: [H, W, C] -> [H / factor, W / factor, C]. Its singular values are 1 / factor.

    Args:
        shape: (H, W, C) of one sample.
        factor: side of a block; divides H and W.

    Raises:
        ValueError: it does not.

    >>> import jax.numpy as jnp
    >>> downsample((2, 2, 1), 2)(jnp.array([[[1.0], [2.0]], [[3.0], [6.0]]])).ravel().tolist()
    [3.0]
    """
    shape = _image(shape)
    if factor < 1 or shape[0] % factor or shape[1] % factor:
        raise ValueError(f"factor={factor} must be positive and divide the sides of {shape}")
    return Downsample(_completed(np.ones(factor**2)), 1 / factor, shape, factor)


def grayscale(shape: Sequence[int], weights: Sequence[float] = (1 / 3, 1 / 3, 1 / 3)) -> Grayscale:
    """Weighted mean over channels, [H, W, C] -> [H, W, 1]: as a measurement, its inversion is colourisation.

    The axes are channels turned by an orthogonal matrix whose first axis is gray (Song et al. 2021, arXiv 2011.13456,
    appendix I.2).

    Args:
        shape: (H, W, C) of one sample.
        weights: one a channel, not all zero.

    Raises:
        ValueError: another number of weights than channels, or zeros only.

    >>> import jax.numpy as jnp
    >>> grayscale((1, 1, 3))(jnp.array([[[1.0, 2.0, 6.0]]])).ravel().tolist()
    [3.0]
    """
    shape, row = _image(shape), np.asarray(weights, np.float64)
    if row.shape != shape[2:] or not row.any():
        raise ValueError(f"weights={weights} must be {shape[2]} numbers for {shape}, not all zero")
    return Grayscale(_completed(row), float(np.linalg.norm(row)), shape)


def blur(shape: Sequence[int], kernel: Any) -> Filter:
    """Circular convolution of every channel with a kernel, the kernel's middle on the pixel.

    Frequencies that the kernel damps below 1e-6 of the strongest count as not measured.

    Args:
        shape: (H, W, C) of one sample.
        kernel: [h, w], no larger than the image, for example `gaussian_kernel(5, 1.0)`.

    Raises:
        ValueError: a kernel of another rank, or too large.

    >>> import jax.numpy as jnp
    >>> bool(jnp.allclose(blur((4, 4, 1), gaussian_kernel(3, 1.0))(jnp.ones((4, 4, 1))), 1.0))
    True
    """
    shape, kernel = _image(shape), np.asarray(kernel, np.float64)
    if kernel.ndim != 2 or kernel.shape[0] > shape[0] or kernel.shape[1] > shape[1]:
        raise ValueError(f"the kernel {kernel.shape} must be [h, w] and fit into {shape}")
    padded = np.zeros(shape[:2])
    padded[: kernel.shape[0], : kernel.shape[1]] = kernel
    padded = np.roll(padded, (-(kernel.shape[0] // 2), -(kernel.shape[1] // 2)), axis=(0, 1))
    transfer = np.fft.fft2(padded)[..., None]
    return Filter(np.stack([transfer.real, transfer.imag]), shape)


def gaussian_kernel(size: int, width: float) -> np.ndarray:
    """A Gaussian of standard deviation `width` pixels on [size, size], sum 1.

    >>> gaussian_kernel(3, 1e-3).tolist()[1]
    [0.0, 1.0, 0.0]
    """
    line = np.exp(-0.5 * ((np.arange(size) - (size - 1) / 2) / width) ** 2)
    return np.outer(line, line) / line.sum() ** 2


def fourier(shape: Sequence[int], mask: Any) -> Fourier:
    """Some coefficients of the unitary 2-D Fourier transform of every channel: [H, W, C] -> [H, W, C, 2].

    The last axis holds real and imaginary parts, zeros where nothing is measured (magnetic resonance, one coil).

    Args:
        shape: (H, W, C) of one sample.
        mask: [H, W] of 0 and 1, in the order of `jnp.fft.fft2` (frequency 0 first); a leaf.

    Raises:
        ValueError: another shape, or other values.

    >>> import jax.numpy as jnp
    >>> fourier((2, 2, 1), [[1, 0], [0, 0]])(jnp.ones((2, 2, 1)))[0, 0, 0].tolist()
    [2.0, 0.0]
    """
    shape = _image(shape)
    mask = np.asarray(mask, np.float32) if is_concrete(mask) else mask
    if mask.shape != shape[:2] or (is_concrete(mask) and not np.isin(mask, (0, 1)).all()):
        raise ValueError(f"the mask must be {shape[:2]} of 0 and 1, got shape {mask.shape}")
    return Fourier(mask[..., None], shape)


def matrix(A: Any, shape: Sequence[int] | None = None, out: Sequence[int] | None = None) -> Matrix:
    """y = A x0 over flattened samples; the SVD is made here, on the host in float64, and all of it is leaves.

    Args:
        A: [m, d], m <= d or not.
        shape: of one sample, d numbers; None is (d,).
        out: of one measurement, m numbers; None is (m,).

    Raises:
        ValueError: shapes that do not fit, or numbers that are not finite.

    >>> import jax.numpy as jnp
    >>> matrix([[2.0, 0.0]]).pinv(jnp.array([3.0])).tolist()
    [1.5, 0.0]
    """
    A = np.asarray(A, np.float64)
    if A.ndim != 2 or not np.isfinite(A).all():
        raise ValueError(f"A must be a finite matrix [m, d], got shape {A.shape}")
    shape, out = tuple(shape or A.shape[1:]), tuple(out or A.shape[:1])
    if math.prod(shape) != A.shape[1] or math.prod(out) != A.shape[0]:
        raise ValueError(f"A {A.shape} does not map samples of shape {shape} to measurements of shape {out}")
    left, s, right = np.linalg.svd(A)
    values = np.zeros(A.shape[1])
    values[: len(s)] = np.where(s > CUTOFF * s.max(initial=0), s, 0)
    return Matrix(A, left[:, : len(s)], values, right, shape, out)


def radon(shape: Sequence[int], angles: Sequence[float]) -> Matrix:
    """Parallel-beam tomography of a small image [H, W, 1]: line integrals at angles, [angles, bins].

    Every pixel's mass falls on the two detector bins next to its projection (linear interpolation), so that the sum
    over bins is that of the image at every angle. A dense matrix: for images up to some thousand pixels.

    Args:
        shape: (H, W, 1) of one sample.
        angles: in degrees; 0 sums over columns.

    Raises:
        ValueError: an image of more than one channel; no angle.

    >>> import jax.numpy as jnp
    >>> radon((2, 2, 1), [0.0])(jnp.ones((2, 2, 1))).sum().tolist()
    4.0
    """
    height, width, channels = _image(shape)
    if not len(angles):
        raise ValueError("radon needs at least one angle")
    if channels != 1:
        raise ValueError(f"radon takes images of one channel, got {tuple(shape)}")
    bins = math.ceil(math.hypot(height, width)) + 1
    rows, columns = np.mgrid[:height, :width].reshape(2, -1) - np.array([[height - 1], [width - 1]]) / 2
    A = np.zeros((len(angles), bins, height * width))
    for i, angle in enumerate(np.deg2rad(angles)):
        place = columns * np.cos(angle) + rows * np.sin(angle) + (bins - 1) / 2
        low = np.minimum(np.floor(place).astype(int), bins - 2)
        pixel = np.arange(height * width)
        A[i, low, pixel], A[i, low + 1, pixel] = low + 1 - place, place - low
    return matrix(A.reshape(-1, height * width), shape, (len(angles), bins))


def _image(shape: Sequence[int]) -> tuple[int, ...]:
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape={tuple(shape)} must be that of one image (H, W, C), without the batch axis")
    return tuple(int(side) for side in shape)


def _completed(row: np.ndarray) -> np.ndarray:
    """An orthogonal matrix [n, n] whose first row points along `row`."""
    square = np.eye(len(row))
    square[:, 0] = row
    if not row[0]:  # keep the columns independent
        square[0, np.flatnonzero(row)[0]] = 1.0
    columns, _ = np.linalg.qr(square)
    columns[:, 0] *= np.sign(columns[:, 0] @ row)
    return columns.T
