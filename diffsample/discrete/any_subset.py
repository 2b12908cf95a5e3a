"""Any-subset speculative decoding: draft several positions at once, verify them in one batched call, stay exact.

Along an order, k tokens are drafted from the factorised laws q_j at x; p_j, the law of position j given x and the
drafts before it, comes from k rows of one batch. Drafts are accepted in order while their coins min(1, p_j / q_j)
fall; the first rejection is redrawn from max(p_j - q_j, 0). The first draft is always accepted (p_1 = q_1), so L
tokens take at most L calls, and the output law is exactly that of token-by-token decoding. The last row of an accepted
round is the next draft's.
"""

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.discrete.categorical import inverse_cdf
from diffsample.discrete.drafting import acceptance, residual
from diffsample.discrete.draws import CHECK, FIX, WHAT, WHEN, Categorical, Draws, as_draws
from diffsample.discrete.masked_sampler import TokenSampler, first_bad, first_bad_slot, unknown
from diffsample.discrete.model import MaskedModel, broken, mend
from diffsample.discrete.slots import of_token, write
from diffsample.struct import pytree, static

PyTree: TypeAlias = Any


class Round(NamedTuple):
    """What the loop carries."""

    x: Array  # int32 [B, L]
    features: PyTree  # of the model at x
    stale: Array  # bool [B], features are of an older x
    queue: Array  # int32 [B, L], positions in the order of their reveal, the masked ones first
    done: Array  # int32 [B], how many of them are revealed
    count: Array  # int32 [B], how many there are
    calls: Array  # int32 [B]
    rows: Array  # int32 [B], sequences put through the network
    accepted: Array  # int32 [B], drafts accepted in the newest round
    fault: Array  # int32 [B]

    def future(self) -> PyTree:
        """What decides the law of what follows."""
        return self.x, self.queue, self.done, self.stale


class Speculated(NamedTuple):
    """The result: as `Decoded`, and the rows put through the network for each sequence."""

    x: Array
    calls: Array
    fault: Array
    rows: Array


class RoundView(NamedTuple):
    """What observers may read after a round."""

    x: Array
    masked: Array
    accepted: Array
    calls: Array
    fresh: Array
    cond: PyTree = None  # the run's condition, for potentials; recorders see None


@pytree
class Speculative(TokenSampler):
    """See `speculative`."""

    model: MaskedModel
    order: Array | None
    stop: Any
    numbers: Array  # int32 [L + 1] row numbers; row 0 only calls
    drafts: int = static()
    reuse: bool = static(default=True)
    categorical: Categorical = static(default=inverse_cdf)

    @property
    def steps(self) -> Array:
        return self.numbers

    @property
    def draws(self) -> Array:
        """Which rows draw: all but row 0, which only calls."""
        return self.numbers > 0

    @property
    def nfe(self) -> int:
        """At most one call a token."""
        return (self.numbers.shape[0] - 1) * self.model.evaluations

    @property
    def longest(self) -> int:
        """A row a token."""
        return self.numbers.shape[0] - 1

    def done(self, state: Round) -> Array:
        """Whether every sequence is finished; not before the first row."""
        return jnp.all(state.done >= state.count)

    def settled(self, state: Round) -> bool:
        """Whether no row can change a concrete state any more."""
        return bool(np.all(np.asarray(state.done) >= np.asarray(state.count)))

    def init(self, keys: Array | Draws, x: Array, cond: PyTree) -> Round:
        """Before the first call."""
        self.admit(x.shape, x)
        batch, length = x.shape
        masked = x == self.model.mask_id
        if self.order is None:
            ranks = as_draws(keys, self.categorical).at(WHEN).ranks(jnp.where(masked, 0.0, -jnp.inf))
        else:
            ranks = jnp.where(masked, jnp.argsort(self.order)[None, :], length)
        shapes = jax.eval_shape(self.model, x, jnp.ones(batch, jnp.float32), cond)
        features = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        zero, count = jnp.zeros(batch, jnp.int32), jnp.sum(masked, axis=1, dtype=jnp.int32)
        queue = jnp.argsort(ranks, axis=1).astype(jnp.int32)
        fault = first_bad(unknown(x, self.model), zero - 1)
        return Round(x, features, count > 0, queue, zero, count, zero, zero, zero, fault)

    def step(self, keys: Array | Draws, state: Round, step: Array, cond: PyTree) -> Round:
        """A round, then a call where the round ended in a rejection."""
        return self._call(self._round(as_draws(keys, self.categorical), state, step > 0, cond), cond)

    def finish(self, keys: Array | Draws, state: Round, cond: PyTree) -> Speculated:
        """The tokens."""
        return Speculated(state.x, state.calls, first_bad(state.x == self.model.mask_id, state.fault), state.rows)

    def view(self, state: Round) -> RoundView:
        return RoundView(state.x, state.x == self.model.mask_id, state.accepted, state.calls, jnp.ones((), bool))

    def _round(self, draws: Draws, state: Round, active: Array, cond: PyTree) -> Round:
        x, length, k = state.x, state.x.shape[1], self.drafts
        slot = state.done[:, None] + jnp.arange(k, dtype=jnp.int32)[None, :]
        valid = (slot < state.count[:, None]) & active
        at = jnp.take_along_axis(state.queue, jnp.minimum(slot, length - 1), axis=1)
        raw = self.model.log_probs(state.features, at)
        log_q = mend(raw)
        if self.stop is not None:
            valid = valid & jnp.cumprod(self.stop(log_q), axis=1).astype(bool)
        tokens = draws.at(WHAT).tokens(log_q, valid)
        log_p, after, bad = self._verify(x, state.features, log_q, at, valid, tokens, cond)
        chance = acceptance(of_token(log_p, tokens), of_token(log_q, tokens)).at[:, 0].set(1.0)
        coins = draws.at(CHECK).coins(jnp.where(valid, chance, 0.0))
        run = jnp.cumprod(coins & valid, axis=1).astype(bool)
        accepted, asked = jnp.sum(run, axis=1, dtype=jnp.int32), jnp.sum(valid, axis=1, dtype=jnp.int32)
        rejected = accepted < asked
        here = jnp.minimum(accepted, k - 1)[:, None]
        pick = jnp.take_along_axis(residual(log_p, log_q), here[..., None], axis=1)
        redrawn = draws.at(FIX).tokens(pick, rejected[:, None])
        x = write(write(x, at, run, tokens), jnp.take_along_axis(at, here, axis=1), rejected[:, None], redrawn)
        verified = (asked > 1) & active
        keep = verified & ~rejected if self.reuse else jnp.zeros_like(verified)
        features = jax.tree.map(lambda new, old: _where(keep, new, old), after, state.features)
        return state._replace(
            x=x,
            features=features,
            stale=jnp.where(asked > 0, ~keep, state.stale),
            done=state.done + accepted + rejected,
            calls=state.calls + verified * self.model.evaluations,
            rows=state.rows + jnp.where(verified, asked - (0 if self.reuse else 1), 0),
            accepted=accepted,
            fault=first_bad_slot((broken(raw) | bad) & valid, at, state.fault),
        )

    def _verify(
        self, x: Array, features: PyTree, log_q: Array, at: Array, valid: Array, tokens: Array, cond: PyTree
    ) -> tuple[Array, PyTree, Array]:
        """(p_j [B, k, V]; features after the last valid draft; slots of broken laws), from one batch of k rows."""
        batch, k = at.shape
        upto = jnp.tril(jnp.ones((k, k), bool))[None] & valid[:, None, :]  # row j holds drafts 1 .. j

        def look() -> tuple[Array, PyTree]:
            wide_x, wide_at, wide_tokens, wide_cond = jax.tree.map(
                lambda a: jnp.repeat(a, k, axis=0), (x, at, tokens, cond)
            )
            filled = write(wide_x, wide_at, upto.reshape(-1, k), wide_tokens)
            clock = jnp.mean(filled == self.model.mask_id, axis=1, dtype=jnp.float32)
            seen = self.model(filled, clock, wide_cond)
            following = jnp.roll(at, -1, axis=1).reshape(-1, 1)  # row j gives the law of draft j + 1
            laws = self.model.log_probs(seen, following).reshape(batch, k, -1)
            last = jnp.maximum(jnp.sum(valid, axis=1) - 1, 0)
            kept = jax.tree.map(
                lambda h: jax.vmap(jnp.take, (0, 0, None))(h.reshape(batch, k, *h.shape[1:]), last, 0), seen
            )
            return jnp.concatenate([log_q[:, :1], laws[:, :-1]], axis=1), kept

        some = jnp.any(jnp.sum(valid, axis=1) > 1)
        log_p, after = jax.lax.cond(some, look, lambda: (log_q, features))
        return mend(log_p), after, broken(log_p)

    def _call(self, state: Round, cond: PyTree) -> Round:
        need = state.stale & (state.done < state.count)
        clock = jnp.mean(state.x == self.model.mask_id, axis=1, dtype=jnp.float32)
        fresh = jax.lax.cond(jnp.any(need), lambda: self.model(state.x, clock, cond), lambda: state.features)
        features = jax.tree.map(lambda new, old: _where(need, new, old), fresh, state.features)
        return state._replace(features=features, stale=state.stale & ~need, rows=state.rows + need,
                              calls=state.calls + need * self.model.evaluations)  # fmt: skip


def speculative(
    model: MaskedModel,
    length: int,
    *,
    drafts: int = 4,
    order: Any = None,
    stop: Any = None,
    reuse: bool = True,
    categorical: Categorical = inverse_cdf,
) -> Speculative:
    """Speculative decoding with the model as its own draft; exact for every order and number of drafts.

    Trades rows for latency: a verification is one call of `drafts` rows. Far-apart positions first are accepted more
    often.

    Args:
        model: `MaskedModel`. length: L. drafts: k, positions drafted a round.
        order: [L] positions in the order of their reveal; None draws one for each sequence.
        stop: rule that shortens a round, such as `EntropyStop(gamma)`: log-laws [B, k, V] -> bool [B, k].
        reuse: take the next round's laws from the verified row instead of another call.
        categorical: how tokens are drawn.

    Raises:
        ValueError: an order that is no permutation, or no drafts.

    Reference: Guo and Ermon 2025, arXiv 2504.20456 (there one pass of a two-stream network verifies).

    >>> import diffsample as ds
    >>> from diffsample.discrete import from_logits
    >>> model = from_logits(lambda p, x, cond: jnp.zeros((*x.shape, 3)), (), vocab=3, mask_id=3)
    >>> ds.sample(jax.random.key(0), speculative(model, 6, drafts=3), (2, 6)).calls.tolist()
    [3, 3]
    """
    if drafts < 1:
        raise ValueError(f"drafts={drafts} must be at least 1")
    if order is not None and sorted(np.asarray(order).tolist()) != list(range(length)):
        raise ValueError(f"order={order} must be a permutation of 0 .. {length - 1}")
    numbers = jnp.arange(length + 1, dtype=jnp.int32)
    ranks = None if order is None else jnp.asarray(order, jnp.int32)
    return Speculative(model, ranks, stop, numbers, min(drafts, length), reuse, categorical)


def _where(rows: Array, new: Array, old: Array) -> Array:
    return jnp.where(rows.reshape(rows.shape + (1,) * (new.ndim - 1)), new, old)
