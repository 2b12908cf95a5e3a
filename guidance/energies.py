"""Guidance by any differentiable loss of the clean sample: FreeDoM's descent, and LGD-MC's average around it."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.denoiser import Denoiser, Point, Prediction, PyTree, expand
from diffsample.guidance.gradients import Descending, add_score, descend, posterior_var
from diffsample.guidance.measurement import as_operator, each, refuse_pure_noise
from diffsample.guidance.schedules import scheduled, value_at
from diffsample.process import Level, Process
from diffsample.sampler import fold, normal
from diffsample.struct import pytree, static
from diffsample.wrapping import Wrapper


@pytree
class LossGuided(Descending):
    """Descent of a loss of your own; see `loss_guidance`."""

    denoiser: Denoiser
    loss: Any
    target: PyTree
    scale: Any

    def energy(self, x0: Array, level: Level) -> Array:
        return losses(self.loss, x0, self.target)


@pytree
class MonteCarloLossGuided(Wrapper):
    """The loss averaged over draws around the prediction; see `lgd_mc`."""

    denoiser: Denoiser
    loss: Any
    target: PyTree
    scale: Any
    data_var: Any
    draws: int = static()

    @property
    def vjps(self) -> int:
        """One through every evaluation, whatever the number of draws, and the denoiser's own."""
        return self.denoiser.evaluations + self.denoiser.vjps

    def check(self, process: Process | None, levels: Level) -> None:
        """What the denoiser refuses, and alpha = 0, by which the rule divides."""
        self.denoiser.check(process, levels)
        refuse_pure_noise(levels)

    def __call__(self, x: Array, at: Point, cond: PyTree, state: PyTree) -> tuple[Prediction, PyTree]:
        radius = jnp.sqrt(posterior_var(at.now, self.data_var, x))
        keys = jax.vmap(lambda key: jax.random.split(key, self.draws))(fold(at.keys, 0)).T  # [draws, B]
        noise = jax.vmap(lambda keys: normal(keys, x.shape, x.dtype))(keys)

        def energy(x0: Array) -> Array:
            around = x0[None] + expand(radius, x0)[None] * noise
            every = jax.vmap(lambda x0: losses(self.loss, x0, self.target))(around)
            return math.log(self.draws) - jax.nn.logsumexp(-every, axis=0)

        inner = at._replace(keys=fold(at.keys, 1))
        prediction, state, gradient = descend(self.denoiser, energy, x, inner, cond, state)
        return add_score(prediction, -value_at(self.scale, at.now, x) * gradient, at), state


def loss_guidance(denoiser: Denoiser, loss: Any, target: PyTree = None, scale: Any = 1.0) -> LossGuided:
    """Training-free guidance by any loss of the clean sample: x_next = step(x) - scale grad_x loss(D(x)).

    FreeDoM's rule, and universal guidance's forward half; add `solvers.time_travel` for their recurrence. One
    evaluation and one VJP a call.

    Args:
        denoiser: what is guided.
        loss: (x0, target) -> scalar for one sample; a function, or a callable pytree whose arrays are leaves.
        target: pytree that the loss compares with, leaves [B, ...]; None where it needs none.
        scale: a number or [B].

    Raises:
        ValueError: at trace time, a loss that is not a scalar, or a target without the batch axis.

    Reference: Yu et al. 2023, arXiv 2303.09833, algorithm 1; Bansal et al. 2023, arXiv 2302.07121.

    >>> import diffsample as ds
    >>> ds.guidance.loss_guidance(ds.exact.Gaussian(0.0, 1.0), lambda x0, target: abs(x0 - 3.0), scale=0.1).vjps
    1
    """
    return LossGuided(denoiser, as_operator(loss), target, scheduled(scale))


def lgd_mc(
    denoiser: Denoiser, loss: Any, target: PyTree = None, *, draws: int = 8, scale: Any = 1.0, data_var: Any = 1.0
) -> MonteCarloLossGuided:
    """LGD-MC, loss-guided diffusion: the score gains scale grad_x log E[exp(-loss(x0))], x0 ~ N(D(x), r^2 I).

    The mean is over `draws` samples, with r^2 = sigma^2 v / (sigma^2 + alpha^2 v) for data of variance v. With a
    Gaussian likelihood as loss and many draws it is `pigdm`; with r = 0 it is `dps_gaussian`. One evaluation and one
    VJP a call, whatever the number of draws.

    Args:
        denoiser, loss, target: as for `loss_guidance`.
        draws: samples around the prediction.
        scale: a number or [B].
        data_var: v, a number or [B].

    Raises:
        ValueError: as for `loss_guidance`; draws < 1; a grid that starts at alpha = 0.

    Reference: Song et al. 2023, Loss-guided diffusion models for plug-and-play controllable generation, ICML.

    >>> import diffsample as ds
    >>> ds.guidance.lgd_mc(ds.exact.Gaussian(0.0, 1.0), lambda x0, target: (x0 - 3.0) ** 2, draws=4).evaluations
    1
    """
    if draws < 1:
        raise ValueError(f"draws={draws} must be at least 1")
    return MonteCarloLossGuided(denoiser, as_operator(loss), target, scheduled(scale), scheduled(data_var), draws)


def losses(loss: Any, x0: Array, target: PyTree) -> Array:
    """The loss of every sample, [B].

    Raises:
        ValueError: a loss that is not one number a sample, or a target without the batch axis.
    """
    for leaf in jax.tree.leaves(target):
        if jnp.shape(leaf)[:1] != x0.shape[:1]:
            raise ValueError(f"target has a leaf of shape {jnp.shape(leaf)}; it needs the batch axis, {x0.shape[0]}")
    out = each(loss, lambda loss, x0, target: loss(x0, target), x0, target)
    if out.shape != x0.shape[:1]:
        raise ValueError(f"the loss of one sample must be a scalar, got shape {out.shape[1:]}")
    return out
