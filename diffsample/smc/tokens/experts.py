"""Products of masked models: the law that a masked decoder reveals from, and the mass that normalising it took away.

Experts with laws mu_i and exponents beta_i give position l the law prod_i mu_i(v)^beta_i / U_l. The sum U_l is what an
exact particle weight needs, `TokenWeights`.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.denoiser import PyTree
from diffsample.discrete.model import AroundModel, MaskedModel
from diffsample.smc.functions import Plain
from diffsample.struct import pytree, static


@pytree
class GivenCondition(AroundModel):
    """A masked model that always sees the same condition, for example the null one; see `token_guidance`."""

    model: MaskedModel
    cond: PyTree  # leaves of one sequence

    def __call__(self, x: Array, clock: Array, cond: PyTree) -> PyTree:
        """Features under the fixed condition."""
        own = jax.tree.map(lambda leaf: jnp.broadcast_to(jnp.asarray(leaf), (x.shape[0], *jnp.shape(leaf))), self.cond)
        return self.model(x, clock, own)

    def log_probs(self, features: PyTree, positions: Array) -> Array:
        """Those of the model."""
        return self.model.log_probs(features, positions)


@pytree
class TokenProduct:
    """prod_i mu_i^beta_i, normalised position by position; made by `token_product`."""

    models: tuple[Any, ...]
    exponents: Array  # [E]
    vocab: int = static()
    mask_id: int = static()

    @property
    def time(self) -> Any:
        return next((model.time for model in self.models if model.time is not None), None)

    @property
    def hollow(self) -> bool:
        return all(model.hollow for model in self.models)

    @property
    def evaluations(self) -> int:
        """Those of all experts."""
        return sum(model.evaluations for model in self.models)

    def __call__(self, x: Array, clock: Array, cond: PyTree) -> tuple[PyTree, ...]:
        """Features of each expert."""
        return tuple(model(x, clock, cond) for model in self.models)

    def log_probs(self, features: PyTree, positions: Array) -> Array:
        """Log-law of the product at positions `[B, k]`: `[B, k, vocab]`."""
        return jax.nn.log_softmax(self.log_weighted(features, positions), axis=-1)

    def log_weighted(self, features: PyTree, positions: Array) -> Array:
        """sum_i beta_i log mu_i, `[B, k, vocab]`, not normalised; -inf where a token is impossible for an expert.

        A factor 0^0 counts as 1, so that an expert of exponent zero is none.
        """
        total = jnp.zeros(())
        for i, (model, own) in enumerate(zip(self.models, features, strict=True)):
            log_p = model.log_probs(own, positions)
            exponent = jnp.asarray(self.exponents)[i].astype(log_p.dtype)
            total = total + jnp.where(exponent == 0, 0.0, exponent * jnp.where(exponent == 0, 0.0, log_p))
        is_mask = jnp.arange(self.vocab) == self.mask_id
        return jnp.where(is_mask[None, None], -jnp.inf, total)

    def log_total(self, features: PyTree, positions: Array) -> Array:
        """log U_l, `[B, k]`."""
        return jax.nn.logsumexp(self.log_weighted(features, positions), axis=-1)


def token_product(models: Sequence[Any], exponents: Any) -> TokenProduct:
    """The product of masked models with exponents, as the model of any decoder.

    Tempering is one model with exponent beta; classifier-free guidance is `token_guidance`. Revealing from the product
    alone does not sample the product of the joint laws; `feynman_kac` with `token_weights` does. An exponent below zero
    needs an expert that excludes no token.

    Args:
        models: masked models over the same tokens, each called at every state.
        exponents: `[E]`, a leaf.

    Raises:
        ValueError: none, or vocabularies that differ, or not one exponent each.

    >>> from diffsample import discrete
    >>> model = discrete.from_logits(lambda p, x, cond: jnp.zeros((*x.shape, 3)), (), vocab=3, mask_id=3)
    >>> token_product([model, model], [0.5, 1.5]).evaluations
    2
    """
    kinds = {(model.vocab, model.mask_id) for model in models}
    if len(kinds) != 1:
        raise ValueError(f"experts must share one vocabulary and mask, got (vocab, mask_id) = {sorted(kinds)}")
    exponents = jnp.asarray(exponents, float)
    if exponents.shape != (len(models),):
        raise ValueError(f"exponents of shape {exponents.shape} for {len(models)} experts; give one each")
    return TokenProduct(tuple(models), exponents, *next(iter(kinds)))


def token_guidance(model: MaskedModel, null: PyTree, scale: Any) -> TokenProduct:
    """Classifier-free guidance of a masked model, p(v | cond)^scale p(v | null)^(1 - scale) at every position.

    With `token_weights` the output law is the joint p(x | cond)^scale p(x)^(1 - scale), debiased.

    Args:
        model: conditional masked model. null: the null condition of one sequence. scale: 1 is the conditional model.

    Reference: Lee et al. 2025, Debiasing Guidance for Discrete Diffusion with Sequential Monte Carlo, arXiv 2502.06079.

    >>> from diffsample import discrete
    >>> model = discrete.from_logits(lambda p, x, cond: jnp.zeros((*x.shape, 3)), (), vocab=3, mask_id=3)
    >>> token_guidance(model, null=0, scale=2.5).exponents.tolist()
    [2.5, -1.5]
    """
    return token_product([model, GivenCondition(model, null)], jnp.stack([jnp.asarray(scale), 1 - jnp.asarray(scale)]))


@pytree
class RewardTilted:
    """The proposal proportional to the law times exp(rho of x with v at l): the best for one position an update.

    With `token_weights` of the same reward the weight of an update is log sum_v law(v) exp(rho(x') - rho(x)), whatever
    token is drawn. V rewards a position.

    Args:
        log_reward: function of partly masked sequences `[B, L]` -> `[B]`.

    >>> from diffsample.discrete import Context
    >>> x, slot = jnp.array([[2, 0]]), jnp.zeros((1, 1), int)
    >>> at = Context(x, slot, slot == 0, jnp.zeros((1, 1, 2)), slot[0], slot[0], None, None)
    >>> jnp.exp(RewardTilted(lambda x: jnp.log(3.0) * (x[:, 0] == 1))(jnp.log(jnp.full((1, 1, 2), 0.5)), at)).tolist()
    [[[0.25, 0.75]]]
    """

    log_reward: Any

    def __post_init__(self) -> None:
        if inspect.isfunction(self.log_reward):
            vars(self)["log_reward"] = Plain(self.log_reward)

    def __call__(self, log_p: Array, context: Any) -> Array:
        x, at = context.x, jnp.arange(context.x.shape[1])

        def with_token(v: Array) -> Array:
            def at_slot(position: Array) -> Array:
                return self.log_reward(jnp.where(at[None] == position[:, None], v.astype(x.dtype), x))

            return jax.vmap(at_slot, 1, 1)(context.positions)

        rewards = jax.lax.map(with_token, jnp.arange(log_p.shape[-1]))
        return jax.nn.log_softmax(log_p + jnp.moveaxis(rewards, 0, -1), axis=-1)
