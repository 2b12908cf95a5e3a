"""Exact weights of masked decoders: products of experts, tempering, guidance and rewards over tokens.

An update reveals positions that were chosen from the state alone, and draws their tokens from a law k. Then

    log G = sum_revealed [sum_i beta_i log mu_i(v) - log k(v)] + rho(x') - rho(x)

weighs paths so that the output law is prod_i p_i(x)^beta_i exp(rho(x)) for every order of reveal: exactly, if one
position is revealed an update and the mu_i are true conditionals; several positions an update add the experts' own
error of factorising. k is the decoder's proposal, whatever it is. Choosing positions by the tokens drawn (MaskGIT,
LLaDA) breaks this; such decoders report no law of their tokens (NaN), so that the run is refused.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.discrete.categorical import invert
from diffsample.smc.functions import as_pytree
from diffsample.smc.potentials import Potential, Transition
from diffsample.struct import pytree, static


@pytree
class TokenWeights(Potential):
    """The potential; see `token_weights`."""

    model: Any
    log_reward: Any

    def check(self, sampler: Any) -> None:
        """Only decoders that choose positions before tokens, and touch no token twice, have these weights."""
        name = type(getattr(sampler, "policy", sampler)).__name__
        if not hasattr(sampler, "policy"):
            raise ValueError(f"token weights belong to a masked decoder, got a {type(sampler).__name__}")
        if sampler.corrector is not None or getattr(sampler.policy, "remask", None) is not None:
            raise ValueError(f"{name} redraws or masks tokens again, which these weights do not know; use a decoder "
                             f"without corrector and remasking")  # fmt: skip

    def start(self, view: Any) -> tuple[Array, Array]:
        """rho of the first state."""
        reward = self._reward(view)
        return reward, reward

    def __call__(self, transition: Transition, memory: Array) -> tuple[Array, Array]:
        """The weight of one update; memory holds rho."""
        before, after = _views(transition)
        reveal, reward = after.reveal, self._reward(after)
        gained = reveal.log_p - reveal.log_q
        if hasattr(self.model, "log_total"):
            gained = gained + self.model.log_total(before.features, reveal.positions)
        log_g = jnp.sum(jnp.where(reveal.valid, gained, 0.0), axis=1) + reward - memory
        masked_again = jnp.any(after.masked & ~before.masked, axis=1)
        return jnp.where(masked_again, jnp.nan, log_g), reward

    def _reward(self, view: Any) -> Array:
        return jnp.zeros(view.x.shape[0], view.reveal.log_p.dtype) if self.log_reward is None else self.log_reward(view)


def token_weights(decoder: Any, log_reward: Any = None) -> TokenWeights:
    """The potential that makes a decoder of a product of experts exact, tilted by a reward.

    `feynman_kac(decoder, token_weights(decoder, reward), particles=K)` targets prod_i p_i(x)^beta_i exp(reward(x)), a
    plain model being one expert of exponent 1. Costs no network call; the reward is called once an update.

    Args:
        decoder: `discrete.Decoder` over a model or a `token_product`, that reveals one position an update to be exact
            (`first_hitting`, `given_order`, `best_first`), with any proposal.
        log_reward: function view -> `[B]` of partly masked sequences, for example `x0_reward`; only its value at the
            finished sequence enters the target, the rest guides. None for none.

    Raises:
        ValueError: from `feynman_kac`, a sampler that is no decoder, or redraws tokens.

    >>> from diffsample import discrete
    >>> model = discrete.from_logits(lambda p, x, cond: jnp.zeros((*x.shape, 3)), (), vocab=3, mask_id=3)
    >>> decoder = discrete.Decoder(model, discrete.first_hitting(4))
    >>> token_weights(decoder, lambda view: jnp.sum(view.x == 0, axis=1) * 1.0).log_reward is None
    False
    """
    return TokenWeights(decoder.model, None if log_reward is None else as_pytree(log_reward))


@pytree
class MaskTempering(Potential):
    """The masks' share in a product of noised laws, for `combine` with `token_weights`.

    A product of experts' *noised* laws, prod_i q_i,t^beta_i, tempers the mask pattern too. Its kernel-ratio weight has,
    with B = sum beta and kappa = (alpha_s - alpha_t) / (1 - alpha_t), beside the tokens' part

        (B - 1) [n_new log kappa + n_still log(1 - kappa)
                 - n_new log(1 - alpha_t/alpha_s) - n_seen log(alpha_t/alpha_s)].

    The final target is the same with and without it; without (the default elsewhere) the weights vary less. Positions
    must be revealed independently with probability kappa: `ancestral`.

    Args:
        total: B, a leaf.

    >>> MaskTempering(2.0).total
    2.0
    """

    total: Any

    def start(self, view: Any) -> tuple[Array, Array]:
        """Nothing at alpha = 0; memory holds which positions are free."""
        return jnp.zeros(view.x.shape[0], view.level.alpha.dtype), view.masked

    def __call__(self, transition: Transition, memory: Array) -> tuple[Array, Array]:
        before, after = _views(transition)
        count = [
            jnp.sum(here & memory, axis=1) for here in (before.masked & ~after.masked, after.masked, ~before.masked)
        ]
        older, newer = before.level.alpha, after.level.alpha
        odds = [(newer - older) / (1 - older), (1 - newer) / (1 - older), 1 - older / newer, older / newer]
        moved = newer > older
        new, still, fresh, kept = (
            jnp.where(moved & (n > 0), n * jnp.log(jnp.where(moved & (n > 0), p, 1.0)), 0.0)
            for n, p in zip((count[0], count[1], count[0], count[2]), odds, strict=True)
        )
        return (self.total - 1) * (new + still - fresh - kept), memory


@pytree
class SampledReward:
    """alpha log mean_m exp(reward(x0^m) / alpha) over M completions of a partly masked sequence; see `x0_reward`."""

    model: Any
    reward: Any
    key: Array
    alpha: Any
    samples: int = static(default=4)

    def __call__(self, view: Any, cond: Any = None) -> Array:
        length = view.x.shape[1]
        positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None], view.x.shape)
        p = jnp.exp(self.model.log_probs(view.features, positions))

        def completed(key: Array) -> Array:
            tokens = invert(p, jax.random.uniform(key, (1, length), p.dtype)).astype(view.x.dtype)
            return self.reward(jnp.where(view.masked, tokens, view.x))

        keys = jax.random.split(jax.random.fold_in(self.key, view.index), self.samples)
        rewards = jax.vmap(completed)(keys)
        alpha = jnp.asarray(self.alpha, rewards.dtype)
        mean = jax.nn.logsumexp(rewards / alpha, axis=0) - jnp.log(jnp.asarray(self.samples, rewards.dtype))
        return jnp.where(jnp.any(view.masked, axis=1), alpha * mean, self.reward(view.x))


@pytree
class PosteriorMode:
    """The reward of a partly masked sequence completed by its most probable tokens; see `posterior_mode`."""

    model: Any
    reward: Any

    def __call__(self, view: Any, cond: Any = None) -> Array:
        positions = jnp.broadcast_to(jnp.arange(view.x.shape[1], dtype=jnp.int32)[None], view.x.shape)
        best = jnp.argmax(self.model.log_probs(view.features, positions), axis=-1)
        return self.reward(jnp.where(view.masked, best, view.x).astype(view.x.dtype))


def posterior_mode(model: Any, reward: Callable[[Array], Array]) -> PosteriorMode:
    """SVDD-PM's value of a partly masked sequence: the reward with every mask replaced by its most probable token.

    For `svdd` and `token_weights`; no network call, no training, any reward.

    Args:
        model: the decoder's. reward: function of complete sequences `[B, L]` -> `[B]`.

    Reference: Li et al. 2024, arXiv 2408.08252.

    >>> from diffsample import discrete
    >>> model = discrete.from_logits(lambda p, x, cond: jnp.zeros((*x.shape, 3)), (), vocab=3, mask_id=3)
    >>> posterior_mode(model, lambda x: x.sum(axis=1) * 1.0).model.vocab
    3
    """
    return PosteriorMode(model, as_pytree(reward))


def x0_reward(
    model: Any, reward: Callable[[Array], Array], key: Array, *, samples: int = 4, alpha: Any = 1.0
) -> SampledReward:
    """FK steering's value of a partly masked sequence: the log-mean-exp reward of M completions drawn from the laws.

    For `token_weights`: the differences telescope, so that the target is p(x) exp(reward(x)) for every M and every key.
    All particles of a row share the uniforms of the completions.

    Args:
        model: the decoder's. reward: function of complete sequences `[B, L]` -> `[B]`. key: typed key, of these draws
            only. samples: M. alpha: of alpha log mean exp(reward / alpha), the soft value for `svdd` at the same alpha.

    Raises:
        ValueError: no samples, an alpha that is not positive.

    Reference: Singhal et al. 2025, arXiv 2501.06848.

    >>> from diffsample import discrete
    >>> model = discrete.from_logits(lambda p, x, cond: jnp.zeros((*x.shape, 3)), (), vocab=3, mask_id=3)
    >>> x0_reward(model, lambda x: x.sum(axis=1) * 1.0, jax.random.key(0), samples=8).samples
    8
    """
    if samples < 1:
        raise ValueError(f"samples={samples} must be at least 1")
    if isinstance(alpha, int | float) and not alpha > 0:
        raise ValueError(f"alpha={alpha} must be positive")
    return SampledReward(model, as_pytree(reward), key, alpha, samples)


def _views(transition: Transition) -> tuple[Any, Any]:
    """Before and after, which are a decoder's."""
    return transition.before, transition.after
