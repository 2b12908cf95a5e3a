"""Policies that choose positions by what the model says of them: confidence, margin, entropy, thresholds, entropy
bounds.

A score is a function of log-laws [..., V]; the most confident positions go first. Scores of the *law* keep
token-by-token decoding exact, whatever the score, because positions are chosen before their tokens are drawn. The
rules that score the *sampled* token (LLaDA, Dream, MaskGIT) are in `drafted`, and are biased.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.discrete.draws import Draws
from diffsample.discrete.model import Laws
from diffsample.discrete.ordered import Sizes, planned_sizes
from diffsample.discrete.policy import Counted, Place, Policy, Selection, masked_share
from diffsample.discrete.proposals import by_sequence
from diffsample.discrete.schedules import check_length
from diffsample.struct import pytree, static

PyTree: TypeAlias = Any
Score: TypeAlias = Callable[[Array], Array]


def confidence(log_p: Array) -> Array:
    """log max_v c(v)."""
    return jnp.max(log_p, axis=-1)


def margin(log_p: Array) -> Array:
    """c of the most probable token less c of the second.

    Reference: Kim et al. 2025, arXiv 2502.06768 (top-k probability margin).

    >>> float(margin(jnp.log(jnp.array([0.5, 0.3, 0.2]))).round(3))
    0.2...
    """
    if log_p.shape[-1] == 1:  # there is no second
        return jnp.exp(log_p[..., 0])
    two = jax.lax.top_k(log_p, 2)[0]
    return jnp.exp(two[..., 0]) - jnp.exp(two[..., 1])


def negative_entropy(log_p: Array) -> Array:
    """sum_v c log c."""
    return jnp.sum(jnp.where(log_p > -jnp.inf, jnp.exp(log_p) * jnp.where(log_p > -jnp.inf, log_p, 0.0), 0.0), axis=-1)


class Scored(Policy, Protocol):
    """What the policies of this file share: they end where nothing is masked, and count what was at the start."""

    @property
    def adaptive(self) -> bool:
        """They stop where nothing is masked."""
        return True

    def init(self, draws: Draws, place: Place) -> tuple[PyTree, Array]:
        """The number of masked positions."""
        return jnp.sum(place.masked, axis=1, dtype=jnp.int32), masked_share(place.masked)


class Grouped(Scored, Counted, Protocol):
    """Those that reveal a bounded number of positions in each of K updates."""


@pytree
class Best(Grouped):
    """Reveal the positions of the highest scores, group after group; see `best_first`."""

    updates: Array
    sizes: Any
    temperature: Any
    score: Score = static()
    most: int = static()
    length: int = static()

    def select(self, draws: Draws, laws: Laws, place: Place, memory: Array, row: Array) -> tuple[Selection, PyTree]:
        score = laws.everywhere(lambda log_p, _: self.score(log_p))
        start, stop = (self.sizes(memory, row + d, self.updates.shape[0]).astype(jnp.int32) for d in (0, 1))
        ranks = ranked(draws, score, place.masked, self.temperature)
        reveal = place.masked & (ranks < (stop - start)[:, None])
        return Selection(reveal, masked_share(place.masked & ~reveal)), memory


def best_first(
    length: int,
    score: Score = confidence,
    *,
    updates: int | None = None,
    sizes: Sequence[int] | Sizes | None = None,
    temperature: float | Array | None = None,
) -> Best:
    """Choose, then sample: the positions with the highest scores of their laws, then tokens for them.

    Exact token by token, with any score and any temperature.

    Args:
        length: L. score: function of log-laws: `confidence`, `margin`, `negative_entropy`, or yours, kept.
        updates, sizes: groups, as for `first_hitting`.
        temperature: of the order: positions drawn without replacement with weights exp(score / temperature); a leaf,
            or one a sequence [B]. None takes the best, the first among equals.

    Raises:
        ValueError: a temperature that is not positive; sizes as for `first_hitting`.

    Reference: Kim et al. 2025, arXiv 2502.06768; Dream's `alg_temp` is this temperature.

    >>> best_first(6, margin, updates=3).width(6)
    2
    """
    rule, count, most = planned_sizes(length, updates, sizes)
    if isinstance(temperature, (int, float)) and not temperature > 0:
        raise ValueError(f"temperature={temperature} must be positive; None takes the best")
    return Best(jnp.arange(count, dtype=jnp.int32), rule, temperature, score, most, length)


@pytree
class Threshold(Grouped):
    """Reveal every position whose score passes a threshold, and always the best one; see `threshold`."""

    updates: Array
    at_least: Any
    score: Score = static()
    most: int = static()
    length: int = static()

    def select(self, draws: Draws, laws: Laws, place: Place, memory: PyTree, row: Array) -> tuple[Selection, PyTree]:
        score = laws.everywhere(lambda log_p, _: self.score(log_p))
        ranks = ranked(draws, score, place.masked, None)
        at_least = by_sequence(self.at_least, score)
        passes = (settle_ties(score) >= settle_ties(at_least)) & (ranks < self.most)
        reveal = place.masked & (passes | (ranks == 0))
        return Selection(reveal, masked_share(place.masked & ~reveal)), memory


def threshold(length: int, at_least: float | Array, score: Score = confidence, *, most: int | None = None) -> Threshold:
    """Every position whose score is at least a threshold, and always the best one; as many calls as that takes.

    Args:
        length: L. at_least: threshold on the score; log 0.9 for a probability of 0.9 with `confidence`; a leaf, or one
            a sequence [B].
        score: function of log-laws. most: positions revealed at once at most, which bounds the logits.

    Raises:
        ValueError: no length, a bound below 1.

    Reference: Wu et al. 2025, Fast-dLLM, arXiv 2505.22618 (there with the confidence of the drawn token).

    >>> threshold(5, -0.1).adaptive
    True
    """
    updates, most = _one_by_one(length, most)
    return Threshold(updates, jnp.asarray(at_least, float), score, most, length)


@pytree
class EntropyBounded(Grouped):
    """Reveal the longest prefix, by score, whose entropies sum to at most gamma over their largest one."""

    updates: Array
    gamma: Any
    score: Score = static()
    most: int = static()
    length: int = static()

    def select(self, draws: Draws, laws: Laws, place: Place, memory: PyTree, row: Array) -> tuple[Selection, PyTree]:
        score, entropy = laws.everywhere(lambda log_p, _: (self.score(log_p), -negative_entropy(log_p)))
        ranks = ranked(draws, score, place.masked, None)
        order = jnp.argsort(ranks, axis=1)
        sorted_entropy = jnp.where(
            jnp.take_along_axis(place.masked, order, axis=1), jnp.take_along_axis(entropy, order, axis=1), jnp.inf
        )
        excess = jnp.cumsum(sorted_entropy, axis=1) - jax.lax.cummax(sorted_entropy, axis=1)
        size = jnp.sum(excess <= by_sequence(self.gamma, excess), axis=1)
        reveal = place.masked & (ranks < jnp.clip(size, 1, self.most)[:, None])
        return Selection(reveal, masked_share(place.masked & ~reveal)), memory


def entropy_bounded(
    length: int, gamma: float | Array, score: Score = negative_entropy, *, most: int | None = None
) -> EntropyBounded:
    """The longest prefix of the positions sorted by score with sum H - max H <= gamma, always at least one.

    sum H - max H bounds the total correlation of the group, so the KL of the whole run is at most gamma times its
    calls; gamma = 0 reveals one at a time (more only if they are certain) and is exact.

    Args:
        length: L. gamma: bound in nats, a leaf, or one a sequence [B].
        score: function of log-laws. most: as for `threshold`.

    Raises:
        ValueError: a negative gamma; no length, a bound below 1.

    Reference: Ben-Hamu et al. 2025, arXiv 2505.24857.

    >>> entropy_bounded(5, 0.5).width(5)
    5
    """
    if not np.all(np.asarray(gamma) >= 0):
        raise ValueError(f"gamma={gamma} must be at least 0")
    updates, most = _one_by_one(length, most)
    return EntropyBounded(updates, jnp.asarray(gamma, float), score, most, length)


def _one_by_one(length: int, most: int | None) -> tuple[Array, int]:
    """(numbers of the updates, one a position at most; the largest group)."""
    check_length(length)
    if most is not None and most < 1:
        raise ValueError(f"most={most} must be at least 1")
    return jnp.arange(length, dtype=jnp.int32), length if most is None else most


def ranked(draws: Draws, score: Array, eligible: Array, temperature: Any) -> Array:
    """Ranks [B, L] of the eligible positions by score, the first among equals; at random with a temperature."""
    if temperature is not None:
        return draws.ranks(jnp.where(eligible, score / by_sequence(temperature, score), -jnp.inf))
    order = jnp.argsort(jnp.where(eligible, -settle_ties(score), jnp.inf), axis=1, stable=True)
    return jnp.argsort(order, axis=1).astype(jnp.int32)


def settle_ties(score: Array) -> Array:
    """Scores to 16 binary digits, so that among equals the first is taken and rounding errors do not choose.

    Equal laws reached by different sums differ in their last bits, which would order them by batch, device and dtype.
    """
    return jax.lax.reduce_precision(score, exponent_bits=jnp.finfo(score.dtype).nexp, mantissa_bits=16)
