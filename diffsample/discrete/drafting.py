"""Building blocks of speculative decoding: accept or redraw, the best of several drafts (K-SEQ), and when to stop
drafting.

A draft x ~ q is accepted as a sample of the target p with probability min(1, p/q), and otherwise replaced by a draw
from max(p - q, 0), renormalised: the result has the law p. K-SEQ tries k drafts with acceptance min(1, p / (rho q)).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.discrete.draws import Draws
from diffsample.discrete.scored import negative_entropy
from diffsample.struct import pytree


def acceptance(log_p: Array, log_q: Array) -> Array:
    """min(1, p / q) of the tokens with these log-probabilities under target and draft."""
    return jnp.exp(jnp.minimum(log_p - jnp.where(log_q > -jnp.inf, log_q, 0.0), 0.0))


def residual(log_p: Array, log_q: Array) -> Array:
    """log of max(p - q, 0), renormalised, [..., V]; the target itself where the two are equal.

    >>> jnp.exp(residual(jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1])))).tolist()
    [0.0, 1.0]
    """
    excess = jnp.maximum(jnp.exp(log_p) - jnp.exp(log_q), 0.0)
    total = jnp.sum(excess, axis=-1, keepdims=True)
    some = total > 1e-6 * (1 + 0 * total)
    law = jnp.where(some, excess / jnp.where(some, total, 1.0), jnp.exp(log_p))
    return jnp.log(law)


class KSeq(NamedTuple):
    """The constants of K-SEQ for a pair of laws."""

    rho: Array  # [...], the factor in min(1, target / (rho draft))
    accepted: Array  # [...], probability that one of the k drafts is accepted
    residual: Array  # [..., V], log-law drawn from if none is


def k_seq(log_target: Array, log_draft: Array, k: int | Array) -> KSeq:
    """Optimal sequential selection among k independent drafts, with the law of the target.

    beta(rho) = sum min(draft, target / rho); rho in [1, k] solves 1 - (1 - beta)^k = rho beta, by 40 bisections.
    Accepts at least 1 - 1/e of what the best selection could.

    Args:
        log_target, log_draft: [..., V] log-laws. k: number of drafts, at least 1; an array [...] where they differ.

    Raises:
        ValueError: no drafts.

    Reference: Sun et al. 2023, SpecTr, arXiv 2310.15141, algorithm 2.

    >>> draft, target = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05])), jnp.log(jnp.array([0.2, 0.2, 0.3, 0.3]))
    >>> round(float(k_seq(target, draft, 2).accepted), 4)
    0.7081
    """
    if isinstance(k, int) and k < 1:
        raise ValueError(f"k={k} must be at least 1")
    target, draft = jnp.exp(log_target), jnp.exp(log_draft)

    def beta(rho: Array) -> Array:
        return jnp.sum(jnp.minimum(draft, target / rho[..., None]), axis=-1)

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        above = 1 - (1 - beta(middle)) ** k > middle * beta(middle)
        return jnp.where(above, middle, low), jnp.where(above, high, middle)

    one = jnp.ones(target.shape[:-1], target.dtype)
    _, rho = jax.lax.fori_loop(0, 40, halve, (one, k * one))
    each = beta(rho)
    accepted = 1 - (1 - each) ** k
    left = target - jnp.minimum(draft, target / rho[..., None]) * (accepted / each)[..., None]
    certain = (1 - accepted < 1e-6)[..., None]
    law = jnp.where(certain, target, jnp.maximum(left, 0.0))
    return KSeq(rho, accepted, jnp.log(law / jnp.sum(law, axis=-1, keepdims=True)))


def select_draft(draws: Draws, log_target: Array, log_draft: Array, drafts: Array) -> tuple[Array, Array]:
    """One token of the target's law from k drafts of the draft's: (token [B], whether it is a draft [B]).

    Args:
        draws: two streams are asked. log_target, log_draft: [B, V]. drafts: int32 [B, k], independent.

    Raises:
        ValueError: shapes that do not fit.
    """
    if log_target.shape != log_draft.shape or drafts.ndim != 2 or len(drafts) != len(log_target):
        raise ValueError(f"drafts of shape {drafts.shape} need two laws [{len(drafts)}, V], got {log_target.shape} and "
                         f"{log_draft.shape}")  # fmt: skip
    plan = k_seq(log_target, log_draft, drafts.shape[1])
    log_p, log_q = (jnp.take_along_axis(law, drafts, axis=1) for law in (log_target, log_draft))
    coins = draws.at(0).coins(acceptance(log_p - jnp.log(plan.rho)[:, None], log_q))
    fallback = draws.at(1).tokens(plan.residual[:, None], jnp.ones((len(drafts), 1), bool))[:, 0]
    any_taken, first = jnp.any(coins, axis=1), jnp.argmax(coins, axis=1)
    return jnp.where(any_taken, jnp.take_along_axis(drafts, first[:, None], axis=1)[:, 0], fallback), any_taken


@pytree
class EntropyStop:
    """Draft while sum H - max H of the drafted laws is at most gamma: what rejections a round may cost, without
    training.

    sum H - max H bounds the total correlation, and the expected number of rejections is at most sqrt(k TC / 2).

    >>> EntropyStop(0.5)(jnp.log(jnp.full((1, 3, 2), 0.5))).tolist()
    [[True, False, False]]
    """

    gamma: Any

    def __call__(self, log_q: Array) -> Array:
        """Which drafts [B, k] to verify, a prefix with at least one."""
        entropy = -negative_entropy(log_q)
        excess = jnp.cumsum(entropy, axis=1) - jax.lax.cummax(entropy, axis=1)
        return excess <= self.gamma


@pytree
class AcceptanceStop:
    """SpecDec++: draft while the probability 1 - prod_j a_j of a rejection stays at most h, a_j from a predictor.

    Args:
        predict: pytree or kept function from drafted log-laws [B, k, V] to acceptance probabilities [B, k]; the first
            is taken as 1. h: threshold, a leaf.

    Reference: Huang et al. 2024, SpecDec++, arXiv 2405.19715, section 3.

    >>> AcceptanceStop(jax.tree_util.Partial(lambda log_q: jnp.full((1, 4), 0.8)), 0.3)(None).tolist()
    [[True, True, False, False]]
    """

    predict: Any
    h: Any = 0.3

    def __call__(self, log_q: Array) -> Array:
        """Which drafts [B, k] to verify, a prefix with at least one."""
        a = self.predict(log_q)
        a = jnp.concatenate([jnp.ones_like(a[:, :1]), a[:, 1:]], axis=1)
        return 1 - jnp.cumprod(a, axis=1) <= self.h
