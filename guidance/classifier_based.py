"""Classifier guidance: the gradient of a log-probability of x_t, added to the score."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.denoiser import Denoiser, Point, Prediction, PyTree, expand
from diffsample.guidance.gradients import add_score
from diffsample.guidance.measurement import one_a_sample, refuse_pure_noise
from diffsample.guidance.schedules import scheduled, value_at
from diffsample.process import Level, Process
from diffsample.struct import pytree
from diffsample.wrapping import Wrapper

LogProb = Callable[[Array, Level, PyTree], Array]  # (x_t [B, ...], level, condition) -> [B]


@pytree
class ClassifierBased(Wrapper):
    """score + scale grad log p(y | x_t); see `classifier`."""

    denoiser: Denoiser
    log_prob: Any
    scale: Any

    def check(self, process: Process | None, levels: Level) -> None:
        """What the denoiser refuses, and alpha = 0, by which the rule divides."""
        self.denoiser.check(process, levels)
        refuse_pure_noise(levels)

    def __call__(self, x: Array, at: Point, cond: PyTree, state: PyTree) -> tuple[Prediction, PyTree]:
        prediction, state = self.denoiser(x, at, cond, state)
        slope = gradient(lambda x: self.log_prob(x, at.now, cond), x)
        return add_score(prediction, value_at(self.scale, at.now, x) * slope, at), state


@pytree
class MeanShifted(Wrapper):
    """The mean of the coming DDPM step shifted by its variance times the gradient; see `mean_shift`."""

    denoiser: Denoiser
    log_prob: Any
    scale: Any

    @property
    def coupled(self) -> bool:
        """Never: eps stays, and the state follows the pair."""
        return False

    def __call__(self, x: Array, at: Point, cond: PyTree, state: PyTree) -> tuple[Prediction, PyTree]:
        prediction, state = self.denoiser(x, at, cond, state)
        slope = gradient(lambda x: self.log_prob(x, at.now, cond), x)
        return shift_mean(prediction, value_at(self.scale, at.now, x) * posterior_variance(at, x) * slope, at), state


def classifier(denoiser: Denoiser, log_prob: LogProb, scale: Any = 1.0) -> ClassifierBased:
    """Classifier guidance: score + scale grad log p(y | x_t), so x0 + (sigma^2 / alpha) g and eps - sigma g.

    One evaluation of the denoiser and one gradient of the classifier a call, none through the denoiser. With the exact
    classifier and scale 1 it is the conditional law; `minority_score` and `quantile_labels` give the labels for which
    it is minority guidance.

    Args:
        denoiser: usually unconditional: `fixed(network, null)`.
        log_prob: (x_t [B, ...], level, condition) -> log-probabilities [B] of what the condition asks for; sample i
            may depend on x_t[i] only.
        scale: a number, [B] or a schedule.

    Raises:
        ValueError: a grid that starts at alpha = 0; at trace time, log-probabilities that are not [B].

    Reference: Dhariwal & Nichol 2021, arXiv 2105.05233, algorithm 2; Song et al. 2021, arXiv 2011.13456, eq. 14.

    >>> import diffsample as ds
    >>> rule = classifier(ds.exact.Gaussian(0.0, 1.0), lambda x, level, cond: -0.5 * (x - cond) ** 2)
    >>> sampler = ds.solvers.linear(rule, ds.solvers.ddim(ds.VarianceExploding(), [1.0, 0.5]))
    >>> ds.sample(jax.random.key(0), sampler, x=jnp.zeros(1), cond=jnp.ones(1)).tolist()
    [0.5]
    """
    return ClassifierBased(denoiser, scheduled(log_prob), scheduled(scale))


def mean_shift(denoiser: Denoiser, log_prob: LogProb, scale: Any = 1.0) -> MeanShifted:
    """ADM's mean shift: the coming DDPM step's mean moves by its posterior variance times scale grad log p(y | x_t).

    As released for DDPM with the small variance, and for minority guidance; meant for `solvers.ddpm`. `classifier`
    adds the gradient to the score, whose step moves by more: beta / sqrt(1 - beta) in place of the posterior variance.
    Costs and arguments as for `classifier`; eps is kept, and a last step to clean data is not guided.

    Reference: Dhariwal & Nichol 2021, arXiv 2105.05233, algorithm 1.

    >>> import diffsample as ds
    >>> mean_shift(ds.exact.Gaussian(0.0, 1.0), lambda x, level, cond: -0.5 * (x - cond) ** 2).coupled
    False
    """
    return MeanShifted(denoiser, scheduled(log_prob), scheduled(scale))


def gradient(value: Callable[[Array], Array], x: Array) -> Array:
    """Gradient of each sample's value [B] with respect to that sample."""
    return jax.grad(lambda x: jnp.sum(one_a_sample("the log-probability", value(x), x)))(x).astype(x.dtype)


def posterior_variance(at: Point, x: Array) -> Array:
    """Variance of the DDPM step to the next level: sigma_s^2 (1 - (alpha_t sigma_s / (alpha_s sigma_t))^2)."""
    ratio = jnp.asarray(at.now.alpha) * at.next.sigma / (jnp.asarray(at.next.alpha) * at.now.sigma)
    return expand(jnp.asarray(at.next.sigma) ** 2 * (1 - ratio**2), x)


def shift_mean(prediction: Prediction, shift: Array, at: Point) -> Prediction:
    """The pair whose first-order step lands `shift` further: x0 + shift / alpha_s, the same eps."""
    return Prediction(prediction.x0 + shift / expand(at.next.alpha, shift), prediction.eps)
