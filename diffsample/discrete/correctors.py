"""Correctors: redraw what is already there, from hollow laws, after every update of a policy.

A uniformly chosen position redrawn from its law given the others is a step of the Gibbs sampler and leaves the model's
law invariant. Choosing it by how improbable its token is does not, and nor do several redraws at once: such correctors
help where the policy's own error is larger than what they add, at coarse steps, and hurt at fine ones.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array

from diffsample.discrete.draws import Draws
from diffsample.discrete.model import Laws, broken, mend
from diffsample.discrete.policy import Place
from diffsample.discrete.proposals import by_sequence
from diffsample.discrete.slots import of_token, write
from diffsample.struct import pytree, static

WHERE, REDRAW = 0, 1  # streams


@pytree
class Gibbs:
    """Redraw one observed free position, chosen uniformly, from its law given all others: exact, 1 call.

    >>> Gibbs().hollow
    True
    """

    hollow: bool = static(default=True)  # it reads laws at observed positions

    def __call__(self, draws: Draws, laws: Laws, place: Place) -> Array:
        """New x [B, L]."""
        eligible = place.free & ~place.masked
        log_w = jnp.where(eligible, 0.0, -jnp.inf).astype(jnp.float32)
        valid = jnp.any(eligible, axis=1, keepdims=True)
        at = draws.at(WHERE).tokens(jnp.log(_normal(log_w))[:, None, :], valid)
        return redraw(draws.at(REDRAW), laws, at, valid)


@pytree
class Informed:
    """Redraw at once the k observed positions of lowest log c(x_l | rest) - temperature Gumbel. Not invariant.

    Args:
        k: positions redrawn. temperature: of the choice; a leaf.

    Reference: Zhao et al. 2024, arXiv 2407.21243, section 4 (k-Gibbs with confidence scores).

    >>> Informed(4).hollow
    True
    """

    k: int = static(default=4)
    temperature: Any = 1.0
    hollow: bool = static(default=True)

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k={self.k} must be at least 1")
        if isinstance(self.temperature, (int, float)) and not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature} must be positive: a small one takes the least probable")

    def __call__(self, draws: Draws, laws: Laws, place: Place) -> Array:
        """New x [B, L]."""
        eligible = place.free & ~place.masked
        seen = jnp.minimum(laws.x, laws.model.vocab - 1)
        score = laws.everywhere(lambda log_p, at: of_token(log_p, jnp.take_along_axis(seen, at, axis=1)))
        log_w = jnp.where(eligible, -jnp.maximum(score, -1e6) / by_sequence(self.temperature, score), -jnp.inf)
        if self.k == 1:
            valid = jnp.any(eligible, axis=1, keepdims=True)
            at = draws.at(WHERE).tokens(jnp.log(_normal(log_w))[:, None, :], valid)
            return redraw(draws.at(REDRAW), laws, at, valid)
        ranks = draws.at(WHERE).ranks(log_w)
        at = jnp.argsort(ranks, axis=1)[:, : self.k].astype(jnp.int32)
        valid = jnp.take_along_axis(ranks, at, axis=1) < self.k
        return redraw(draws.at(REDRAW), laws, at, valid)


def redraw(draws: Draws, laws: Laws, positions: Array, valid: Array) -> Array:
    """x with tokens at the valid positions [B, k] drawn afresh from the laws there; the mask where a law is none."""
    log_p = laws.model.log_probs(laws.features, positions)
    tokens = jnp.where(broken(log_p), laws.model.mask_id, draws.tokens(mend(log_p), valid))
    return write(laws.x, positions, valid, tokens)


def _normal(log_w: Array) -> Array:
    """Weights [B, L] that sum to one; uniform where there are none."""
    w = jnp.exp(log_w - jnp.max(jnp.where(log_w > -jnp.inf, log_w, -1e30), axis=1, keepdims=True))
    total = jnp.sum(w, axis=1, keepdims=True)
    return jnp.where(total > 0, w / jnp.where(total > 0, total, 1.0), 1.0 / w.shape[1])
