"""Saturation and contrast of images, which rise where guidance is too strong (Sadat et al. 2025, arXiv 2410.02416)."""

import jax.numpy as jnp
from jax import Array

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601


def saturation(images: Array, limits: tuple[float, float] = (-1.0, 1.0)) -> Array:
    """Mean saturation: over pixels and images, (max - min) / max of the three colours, 0 where all are 0.

    The S of hue, saturation and value: 0 for grey, 1 where a colour is absent.

    Args:
        images: [N, H, W, 3].
        limits: values of a dark and of a full colour; beyond them is clipped, as in a picture that is written.

    Returns: float32 scalar in 0 .. 1.

    Reference: Smith 1978, Color gamut transform pairs, SIGGRAPH 12.

    >>> float(saturation(jnp.array([1.0, 0.5, 0.0]).reshape(1, 1, 1, 3), limits=(0.0, 1.0)))
    1.0
    """
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"saturation is of colours [N, H, W, 3], got shape {images.shape}")
    colours = _unit(images, limits)
    high, low = colours.max(axis=-1), colours.min(axis=-1)
    return jnp.mean(jnp.where(high > 0, (high - low) / jnp.where(high > 0, high, 1.0), 0.0))


def contrast(images: Array, limits: tuple[float, float] = (-1.0, 1.0)) -> Array:
    """Root-mean-square contrast: the standard deviation of an image's grey values in 0 .. 1, averaged over images.

    Args:
        images: [N, H, W, 3], whose grey value is the luma of ITU-R BT.601, or [N, H, W, 1].
        limits: as for `saturation`.

    Returns: float32 scalar in 0 .. 0.5.

    Reference: Peli 1990, Contrast in complex images, J. Opt. Soc. Am. A 7, eq. 4.

    >>> float(contrast(jnp.array([-1.0, 1.0]).reshape(1, 1, 2, 1)))
    0.5
    """
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(f"contrast is of images [N, H, W, 1 or 3], got shape {images.shape}")
    colours = _unit(images, limits)
    grey = colours[..., 0] if images.shape[-1] == 1 else jnp.tensordot(colours, jnp.array(LUMA), 1, precision="highest")
    return jnp.mean(jnp.std(grey, axis=(1, 2)))


def _unit(images: Array, limits: tuple[float, float]) -> Array:
    low, high = limits
    return jnp.clip((jnp.asarray(images, jnp.float32) - low) / (high - low), 0.0, 1.0)
