"""Block verification of several drafts (SpecTr): k sequences of g draft tokens, and the longest run that they support.

At each depth the drafts that agree with everything accepted so far are independent draws of the draft's next law, so
K-SEQ picks the next token from them, with as many drafts as are left. The first depth at which all fail is redrawn from
the residual, and after g accepted tokens one more is drawn from the target itself. What comes out has the target's law.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from diffsample.discrete.drafting import acceptance, k_seq
from diffsample.discrete.draws import Draws

COIN, RESIDUAL, BONUS = 0, 1, 2  # streams of a depth


class Verified(NamedTuple):
    """What a block of drafts came to."""

    tokens: Array  # int32 [B, g + 1]; those from `count` on are of no meaning
    count: Array  # int32 [B], tokens of the target's law: the accepted ones and one more, 1 .. g + 1


def verify_block(draws: Draws, log_target: Array, log_draft: Array, drafts: Array) -> Verified:
    """Tokens of the target's law from k draft sequences of g tokens: SpecTr, k-sequential selection depth by depth.

    With one draft it is speculative sampling. The laws at a depth are those given the draft's own tokens before it,
    so drafts that agree so far must bring equal laws: rows of one batched call, one for each distinct prefix.

    Args:
        draws: of coins and of the tokens that no draft gave.
        log_target: [B, k, g + 1, V], target log-laws after each prefix of each draft, depth g being after all of it.
        log_draft: [B, k, g, V], the laws that the drafts were drawn from.
        drafts: int32 [B, k, g], independent given the start.

    Raises:
        ValueError: shapes that do not fit.

    Reference: Sun et al. 2023, SpecTr, arXiv 2310.15141, section 4 (k-sequential selection of drafts).

    >>> import jax
    >>> from diffsample.discrete import Keyed
    >>> law = jnp.log(jnp.full((1, 2, 3, 4), 0.25))
    >>> drafts = jnp.array([[[1, 2], [3, 0]]])
    >>> out = verify_block(Keyed(jax.random.split(jax.random.key(0), 1)), law, law[:, :, :2], drafts)
    >>> out.count.tolist(), out.tokens[0, :2].tolist()  # equal laws: the first draft is accepted whole
    ([3], [1, 2])
    """
    batch, k, depth = drafts.shape
    vocab = log_target.shape[-1]
    if log_draft.shape != (batch, k, depth, vocab) or log_target.shape != (batch, k, depth + 1, vocab):
        raise ValueError(f"drafts of shape {drafts.shape} need draft laws {(batch, k, depth, vocab)} and target laws "
                         f"{(batch, k, depth + 1, vocab)}; got {log_draft.shape} and {log_target.shape}")  # fmt: skip
    active, going = jnp.ones((batch, k), bool), jnp.ones(batch, bool)
    tokens, count = [], jnp.zeros(batch, jnp.int32)
    for j in range(depth):
        target, draft = _of_first(active, log_target[:, :, j]), _of_first(active, log_draft[:, :, j])
        token, taken = _pick(draws.at(j), target, draft, drafts[:, :, j], active, going)
        tokens.append(token)
        count = count + going  # a redrawn token counts as well, and ends the run
        active = active & (drafts[:, :, j] == token[:, None])
        going = going & taken
    last = draws.at(depth).at(BONUS).tokens(_of_first(active, log_target[:, :, depth])[:, None], going[:, None])
    return Verified(jnp.stack([*tokens, last[:, 0]], axis=1).astype(jnp.int32), count + going)


def _of_first(active: Array, laws: Array) -> Array:
    """The laws [B, V] of the first active draft of each row, from [B, k, V]."""
    return jnp.take_along_axis(laws, jnp.argmax(active, axis=1)[:, None, None], axis=1)[:, 0]


def _pick(
    draws: Draws, log_target: Array, log_draft: Array, drafts: Array, active: Array, going: Array
) -> tuple[Array, Array]:
    """(a token of the target's law [B], whether it is a draft's [B]) from the active drafts [B, k]."""
    plan = k_seq(log_target, log_draft, jnp.maximum(jnp.sum(active, axis=1), 1))
    log_p, log_q = (jnp.take_along_axis(law, drafts, axis=1) for law in (log_target, log_draft))
    chance = acceptance(log_p - jnp.log(plan.rho)[:, None], log_q)
    coins = draws.at(COIN).coins(jnp.where(active & going[:, None], chance, 0.0))
    taken = jnp.any(coins, axis=1)
    redraw = (going & ~taken)[:, None]
    fallback = draws.at(RESIDUAL).tokens(plan.residual[:, None], redraw)[:, 0]
    first = jnp.take_along_axis(drafts, jnp.argmax(coins, axis=1)[:, None], axis=1)[:, 0]
    return jnp.where(taken, first, fallback).astype(jnp.int32), taken
