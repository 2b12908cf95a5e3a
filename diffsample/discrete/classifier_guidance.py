"""Classifier guidance of masked models: a proposal that asks a classifier what each token would say of the class.

log_q(v) = log c(v | x, l) + scale log p(y | x with l <- v), renormalised at each position (D-CBG). Revealed one by one
with an exact classifier and scale 1 the output law is exactly p(x | y). At other scales it is not p(x | y)^scale
p(x)^(1 - scale).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.discrete.decoder import Context, as_leaves, write
from diffsample.struct import pytree, static


@pytree
class ByEnumeration:
    """The classifier at every token of every position to reveal: B k V rows; see `classifier_guided`."""

    log_prob: Any
    scale: Any

    def __call__(self, log_p: Array, context: Context) -> Array:
        batch, k, vocab = log_p.shape
        tokens = jnp.broadcast_to(jnp.arange(vocab, dtype=jnp.int32)[None, None], (batch, k, vocab)).reshape(-1, 1)
        x, at, cond = jax.tree.map(
            lambda a: jnp.repeat(a, k * vocab, axis=0), (context.x, context.positions, context.cond)
        )
        slot = jnp.tile(jnp.repeat(jnp.arange(k), vocab), batch)[:, None]
        rows = write(x, jnp.take_along_axis(at, slot, axis=1), jnp.ones_like(tokens, bool), tokens)
        says = self.log_prob(rows, cond).reshape(log_p.shape).astype(log_p.dtype)
        tilt = jnp.where(log_p > -jnp.inf, jnp.asarray(self.scale, log_p.dtype) * says, 0.0)
        return jax.nn.log_softmax(log_p + tilt, axis=-1)


@pytree
class ByGradient:
    """The classifier's first-order change, one backward pass for all tokens; see `classifier_guided_by_gradient`."""

    log_prob: Any
    scale: Any
    ids: int = static()

    def __call__(self, log_p: Array, context: Context) -> Array:
        hot = jax.nn.one_hot(context.x, self.ids, dtype=log_p.dtype)
        slope = jax.grad(lambda h: jnp.sum(self.log_prob(h, context.cond)))(hot)
        here = jnp.take_along_axis(slope, context.positions[..., None], axis=1)[..., : log_p.shape[-1]]
        tilt = jnp.where(log_p > -jnp.inf, jnp.asarray(self.scale, log_p.dtype) * here, 0.0)
        return jax.nn.log_softmax(log_p + tilt, axis=-1)


def classifier_guided(log_prob: Any, scale: Any = 1.0) -> ByEnumeration:
    """Guide by a classifier of partially masked sequences, at every candidate token.

    Args:
        log_prob: `(x int32 [N, L], cond) -> log p(y | x_S) [N]`, a pytree or a function that is kept; y is in `cond`.
        scale: 1 is Bayes' rule; a leaf.

    Reference: Schiff et al. 2024, arXiv 2412.10193, section 3.2; Nisonoff et al. 2024, arXiv 2406.01572.

    >>> guide = classifier_guided(lambda x, cond: -1.0 * x[:, 0])
    >>> context = Context(jnp.array([[2, 0]]), jnp.array([[0]]), *[None] * 6)
    >>> jnp.exp(guide(jnp.log(jnp.array([[[0.5, 0.5]]])), context)).round(3).tolist()
    [[[0.731..., 0.269...]]]
    """
    return ByEnumeration(as_leaves(log_prob), scale)


def classifier_guided_by_gradient(log_prob: Any, ids: int, scale: Any = 1.0) -> ByGradient:
    """Guide by the gradient of a classifier in one-hot tokens: log p(y | x_v) changes by grad[l, v] up to a constant.

    Exact where the classifier's log-probability is linear in the token.

    Args:
        log_prob: `(one-hot tokens [B, L, ids], cond) -> log p(y | x) [B]`, differentiable.
        ids: number of ids, the mask's included. scale: a leaf.

    Reference: Nisonoff et al. 2024, arXiv 2406.01572, section 4 (TAG).

    >>> guide = classifier_guided_by_gradient(lambda h, cond: -h[:, 0, 1], ids=3)
    >>> context = Context(jnp.array([[2, 0]]), jnp.array([[0]]), *[None] * 6)
    >>> jnp.exp(guide(jnp.log(jnp.array([[[0.5, 0.5]]])), context)).round(3).tolist()
    [[[0.731..., 0.269...]]]
    """
    return ByGradient(as_leaves(log_prob), scale, ids)
