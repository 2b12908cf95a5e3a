"""PSLD: posterior sampling in the latent space of an autoencoder."""

from typing import Any

import jax
from jax import Array

from diffsample.denoiser import Denoiser
from diffsample.guidance.gradients import Descending, distance
from diffsample.guidance.measurement import (
    apply,
    as_operator,
    differentiable_batch_of,
    spread,
)
from diffsample.guidance.schedules import scheduled
from diffsample.process import Level
from diffsample.struct import pytree


@pytree
class LatentPosteriorSampling(Descending):
    """DPS on decoded latents, pulled to the encoder's fixed points; see `psld`."""

    denoiser: Denoiser
    operator: Any
    y: Any
    encode: Any
    decode: Any
    omega: Any
    gamma: Any

    @property
    def scale(self) -> float:
        """The two weights are the energy's own."""
        return 1.0

    def energy(self, x0: Array, level: Level) -> Array:
        image = apply(self.decode, x0)
        y = differentiable_batch_of(self.operator, self.y, image)
        predicted, push = jax.linearize(lambda image: apply(self.operator, image), image)
        (difference,) = jax.linear_transpose(push, image)(y - predicted)
        glued = apply(self.encode, image + difference)  # A'y + (I - A'A) image
        omega, gamma = (spread(hyper, level, x0) for hyper in (self.omega, self.gamma))
        return omega * distance(y, predicted) + gamma * distance(x0, glued)


def psld(
    denoiser: Denoiser, operator: Any, y: Any, *, encode: Any, decode: Any, omega: Any = 1.0, gamma: Any = 0.1
) -> LatentPosteriorSampling:
    """PSLD: x_next = step(x) - grad_x [omega |A dec(D) - y| + gamma |D - enc(A'y + (I - A'A) dec(D))|], x a latent.

    As a decoupled pair, like `dps`. The second term glues the measured part into the decoded image and asks for a
    latent that the autoencoder keeps. One evaluation and one VJP a call, through the decoder and the encoder too.

    Args:
        denoiser: of latents.
        operator: A over decoded images, linear with A A' = I (a mask; `downsample` times its factor).
        y: [B, ...] measurements, or one for all.
        encode, decode: one image -> one latent and back; functions, or callable pytrees whose arrays are leaves.
        omega, gamma: weights, numbers or [B]; 1 and 0.1 published, 0.1 and 0.01 to 0.1 for box inpainting.

    Raises:
        ValueError: at trace time, as for `dps`.

    Reference: Rout et al. 2023, arXiv 2307.00619, algorithm 2.

    >>> import jax.numpy as jnp, diffsample as ds
    >>> law, same = ds.exact.Gaussian([0.0, 0.0], 1.0), lambda v: v
    >>> ds.guidance.psld(law, lambda x0: x0[:1], jnp.ones(1), encode=same, decode=same).vjps
    1
    """
    return LatentPosteriorSampling(
        denoiser, as_operator(operator), y, as_operator(encode), as_operator(decode), scheduled(omega), scheduled(gamma)
    )
