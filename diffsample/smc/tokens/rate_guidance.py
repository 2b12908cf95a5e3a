"""Discrete guidance: the rates of a jump process times what they say of a property, R(x -> y) [p(c|y) / p(c|x)]^scale.

On masked models the guided rates are a model of their own, with a law at every position and a total rate, which
`discrete.tau_leaping` and `discrete.next_jump` follow, and which `token_weights` makes exact. On any other jump process
`guided_rates` multiplies the rates that `jump_process` is given.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.denoiser import PyTree
from diffsample.discrete.model import AroundModel, gather
from diffsample.smc.functions import as_pytree
from diffsample.smc.tokens.jump_sampler import neighbour_gains
from diffsample.struct import pytree, static

LARGEST = 80.0  # of scale log-ratio, as published: exp of more overflows float32


@pytree
class EnumeratedGains:
    """log p(c|y) - log p(c|x) at every neighbour: L V rows of the classifier; see `rate_guided`."""

    log_prob: Any
    batch_size: int | None = static(default=None)

    def __call__(self, x: Array, masked: Array, vocab: int, cond: PyTree) -> Array:
        return neighbour_gains(lambda x: self.log_prob(x, cond), x, masked, vocab, batch_size=self.batch_size)


@pytree
class FirstOrderGains:
    """Their first-order expansion in one-hot tokens, one backward pass; see `rate_guided_by_gradient`."""

    log_prob: Any
    ids: int = static()

    def __call__(self, x: Array, masked: Array, vocab: int, cond: PyTree) -> Array:
        return first_order_gains(lambda hot: self.log_prob(hot, cond), x, masked, vocab, ids=self.ids)


@pytree
class RateGuided(AroundModel):
    """A masked model with guided rates c(v) ratio(v)^scale; made by `rate_guided` and `rate_guided_by_gradient`.

    The classifier's evaluations are not counted.
    """

    model: Any
    gains: Any
    scale: Any

    @property
    def hollow(self) -> bool:
        """Not: at observed positions there is no gain."""
        return False

    def __call__(self, x: Array, clock: Array, cond: PyTree) -> tuple[PyTree, Array]:
        """(features of the model, log-ratios [B, L, vocab])."""
        return self.model(x, clock, cond), self.gains(x, x == self.mask_id, self.vocab, cond)

    def log_probs(self, features: PyTree, positions: Array) -> Array:
        """The guided law at positions `[B, k]`: `[B, k, vocab]`."""
        return jax.nn.log_softmax(self.log_weighted(features, positions), axis=-1)

    def log_weighted(self, features: PyTree, positions: Array) -> Array:
        """Log of the rates in the clock -log m, `[B, k, vocab]`: not normalised."""
        inner, gains = features
        log_rates = getattr(self.model, "log_weighted", self.model.log_probs)(inner, positions)
        tilt = _tilt(gather(gains, positions), self.scale).astype(log_rates.dtype)
        return jnp.where(log_rates > -jnp.inf, log_rates + tilt, log_rates)

    def log_total(self, features: PyTree, positions: Array) -> Array:
        """log U_l, `[B, k]`: the rate at which the position leaves."""
        return jax.nn.logsumexp(self.log_weighted(features, positions), axis=-1)


def rate_guided(
    model: Any, log_prob: Callable[[Array, PyTree], Array], scale: Any = 1.0, *, batch_size: int | None = None
) -> RateGuided:
    """Discrete guidance (DG) of a masked model by a predictor, exactly: rates c(v) [p(c | x with v) / p(c | x)]^scale.

    Decode with `discrete.tau_leaping` or `discrete.next_jump`, which follow the rates; any other policy takes the
    tokens but not the times. At scale 1 with an exact predictor the rates are those of the conditional model; above it
    they are larger in total and reveal sooner. Predictor-free guidance of rates is `token_guidance`. L V rows of the
    predictor a network call; with `token_weights` over `next_jump` exactly p(x) p(c | x)^scale.

    Args:
        model: the unconditional masked model, or a product.
        log_prob: function (partly masked x int32 `[B, L]`, cond) -> log p(c | x) `[B]`; c is in `cond`. Of masked
            diffusion it does not depend on the time.
        scale: guidance strength, the inverse of the paper's temperature; a leaf. 1 is Bayes' rule.
        batch_size: neighbours evaluated at a time; None is one.

    Raises:
        TypeError: a predictor that is no function.

    Reference: Nisonoff et al. 2024, arXiv 2406.01572.

    >>> from diffsample import discrete
    >>> plain = discrete.from_logits(lambda p, x, cond: jnp.zeros((*x.shape, 2)), (), vocab=2, mask_id=2)
    >>> model = rate_guided(plain, lambda x, cond: jnp.log(3.0) * jnp.sum(x == 1, axis=1))
    >>> features = model(jnp.array([[2, 2]]), jnp.ones(1), None)
    >>> jnp.exp(model.log_weighted(features, jnp.array([[0]]))).round(3).tolist()
    [[[0.5, 1.500...]]]
    """
    return RateGuided(model, EnumeratedGains(_function(log_prob), batch_size), scale)


def rate_guided_by_gradient(
    model: Any, log_prob: Callable[[Array, PyTree], Array], scale: Any = 1.0, *, ids: int | None = None
) -> RateGuided:
    """Discrete guidance with log-ratios to first order in one-hot tokens (TAG): one backward pass a network call.

    As `rate_guided` otherwise; equal to it where the log-probability is linear in the tokens.

    Args:
        log_prob: function (one-hot tokens `[B, L, ids]`, cond) -> log p(c | x) `[B]`, differentiable.
        ids: number of ids, the mask's included; None is the smallest that holds all.

    Reference: Nisonoff et al. 2024, arXiv 2406.01572.

    >>> from diffsample import discrete
    >>> plain = discrete.from_logits(lambda p, x, cond: jnp.zeros((*x.shape, 2)), (), vocab=2, mask_id=2)
    >>> model = rate_guided_by_gradient(plain, lambda hot, cond: jnp.log(3.0) * jnp.sum(hot[..., 1], axis=1))
    >>> features = model(jnp.array([[2, 2]]), jnp.ones(1), None)
    >>> jnp.exp(model.log_weighted(features, jnp.array([[0]]))).round(3).tolist()
    [[[0.5, 1.500...]]]
    """
    ids = int(max(model.vocab, model.mask_id + 1)) if ids is None else ids
    if ids <= model.mask_id or ids < model.vocab:
        raise ValueError(f"ids={ids} must hold {model.vocab} tokens and the mask, id {model.mask_id}")
    return RateGuided(model, FirstOrderGains(_function(log_prob), ids), scale)


def guided_rates(rates: Array, log_ratios: Array, scale: Any = 1.0) -> Array:
    """R^scale(x -> y) = R(x -> y) exp(scale log-ratio): discrete guidance of the rates of any jump process.

    Guidance by a predictor with log_ratios log p(c|y) - log p(c|x), from `neighbour_gains` or `first_order_gains`;
    predictor-free, R_cond^scale R^(1 - scale), with log R_cond - log R. scale log-ratio is at most 80.

    Args:
        rates: `[B, L, V]` to each neighbour, 0 where there is none, as for `jump_process`. log_ratios: the same shape.
        scale: a leaf.

    Returns: rates `[B, L, V]`.

    Reference: Nisonoff et al. 2024, arXiv 2406.01572.

    >>> guided_rates(jnp.array([[[0.0, 1.0]]]), jnp.log(jnp.array([[[1.0, 3.0]]])), 2.0).round(3).tolist()
    [[[0.0, 9.0]]]
    """
    return jnp.where(rates > 0, rates * jnp.exp(jnp.where(rates > 0, _tilt(log_ratios, scale), 0.0)), 0.0)


def first_order_gains(
    log_reward: Callable[[Array], Array], x: Array, masked: Array, vocab: int, *, ids: int | None = None
) -> Array:
    """grad log_reward (one-hot y - one-hot x) for the neighbours of `neighbour_gains`, `[B, L, V]`; one backward pass.

    Args:
        log_reward: function of one-hot sequences `[B, L, ids]` -> `[B]`. x: `[B, L]`. masked: `[B, L]`, the positions
            that may move. vocab: V. ids: number of ids in x, the mask's included; None is V + 1.

    >>> first_order_gains(lambda hot: 2.0 * hot[:, 0, 1], jnp.array([[2, 0]]), jnp.array([[True, False]]), 2).tolist()
    [[[0.0, 2.0], [0.0, 0.0]]]
    """
    hot = jax.nn.one_hot(x, vocab + 1 if ids is None else ids)
    slope = jax.grad(lambda hot: jnp.sum(log_reward(hot)))(hot)
    gain = slope[..., :vocab] - jnp.sum(slope * hot, axis=-1, keepdims=True)
    return jnp.where(masked[..., None], gain, 0.0)


def _tilt(log_ratios: Array, scale: Any) -> Array:
    """scale log_ratios, at most `LARGEST`; a ratio of zero to the power of zero is one."""
    scale = jnp.asarray(scale, log_ratios.dtype)
    return jnp.minimum(jnp.where(scale == 0, 0.0, scale * jnp.where(scale == 0, 0.0, log_ratios)), LARGEST)


def _function(log_prob: Any) -> Any:
    if not callable(log_prob):
        raise TypeError(f"log_prob must be a function (x, cond) -> log p(c | x), got {log_prob!r}")
    return as_pytree(log_prob)
