"""The masked engine: one step for every decoder, a choice of policy (which positions, when), proposal (what) and
corrector.

A row is an update, then a call, as everywhere in this library: the policy picks positions from the laws at x, the
proposal draws their tokens, and the network is called at the new x, where something changed and something is left to
reveal. Row 0 only calls. So after every row the state holds x and fresh features of x: rewards and weights need no
call of their own.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.discrete.categorical import inverse_cdf
from diffsample.discrete.draws import FIX, WHAT, WHEN, Categorical, Draws, as_draws
from diffsample.discrete.masked_sampler import TokenSampler, first_bad, first_bad_slot, unknown
from diffsample.discrete.model import Laws, broken, gather
from diffsample.discrete.policy import Place, Policy, Reveal, Selection
from diffsample.discrete.proposals import Context, as_leaves
from diffsample.discrete.slots import of_token, pack, write
from diffsample.process import Level
from diffsample.struct import pytree, static

PyTree: TypeAlias = Any


class Corrector(Protocol):
    """Redraws of what is already there, after a call."""

    def __call__(self, draws: Draws, laws: Laws, place: Place) -> Array:
        """New x [B, L]."""
        ...


class State(NamedTuple):
    """What the loop carries."""

    x: Array  # int32 [B, L]
    free: Array  # bool [B, L]
    features: PyTree  # of the model at x
    before: PyTree  # features one update earlier; () where nothing reads them
    memory: PyTree  # the policy's
    clock: Array  # [B]
    stale: Array  # bool [B], x changed since the last call
    reveal: Reveal
    count: Array  # int32 [B], positions revealed by the newest update
    calls: Array  # int32 [B], network evaluations that this sequence needed
    fault: Array  # int32 [B], first position whose law was broken, -1 if none
    left: Array  # bool scalar, whether any sequence still has a mask
    executed: Array  # int32 scalar, calls of the network made for the batch
    index: Array  # int32 scalar, updates done

    def future(self) -> PyTree:
        """What decides the law of what follows, and whether it needs a call."""
        return self.x, self.before, self.memory, self.stale


class DecoderView(NamedTuple):
    """What observers, potentials and plots may read after a row."""

    x: Array  # int32 [B, L]
    masked: Array  # bool [B, L]
    level: Level  # t (the mask probability), alpha = 1 - t, sigma = t, each [B]
    features: PyTree  # of the model at x, for `laws`
    reveal: Reveal  # the newest update
    memory: PyTree  # the policy's
    calls: Array  # int32 [B]
    executed: Array  # int32 scalar
    index: Array  # int32 scalar
    fresh: Array  # bool scalar, always true here
    cond: PyTree = None  # the run's condition, for potentials; recorders see None


class Decoded(NamedTuple):
    """The result of a decoder."""

    x: Array  # int32 [B, L]
    calls: Array  # int32 [B], network evaluations that each sequence needed
    fault: Array  # int32 [B], first position where the model gave no law or x no token, -1 if none


@pytree
class Decoder(TokenSampler):
    """A sampler over x int32 [B, L] from a masked model, a policy, a proposal and a corrector.

    Functions of this package (`first_hitting`, `ancestral`, `maskgit`, ...) build the published ones.

    Args:
        model: `MaskedModel`, or any rule around one.
        policy: which positions, when.
        proposal: `(log_p [B, k, vocab], Context) -> log_q`: temperature, top-p, extrapolation, guidance; None draws
            from the model. A pytree, so that its numbers are leaves.
        corrector: redraws after every update, or None. corrections: how often, a call each.
        categorical: how tokens are drawn, `inverse_cdf` or `gumbel_max`.
        chunk: positions whose logits exist at a time, where an update reads laws at more or reveals more.

    >>> import jax, diffsample as ds
    >>> from diffsample import discrete
    >>> model = discrete.from_logits(lambda p, x, cond: jnp.zeros((*x.shape, 3)), (), vocab=3, mask_id=3)
    >>> out = ds.sample(jax.random.key(0), discrete.Decoder(model, discrete.first_hitting(5)), (2, 5))
    >>> out.x.shape, out.calls.tolist()
    ((2, 5), [5, 5])
    """

    model: Any
    policy: Policy
    proposal: Any = None
    corrector: Any = None
    corrections: int = static(default=1)
    categorical: Categorical = static(default=inverse_cdf)
    chunk: int = static(default=64)

    def __post_init__(self) -> None:
        vars(self)["proposal"] = as_leaves(self.proposal)
        if getattr(self.corrector, "hollow", False) and not self.model.hollow:
            raise ValueError("this corrector redraws observed positions from the law given the others: it needs a "
                             "model declared hollow=True")  # fmt: skip
        if self.chunk < 1:
            raise ValueError(f"chunk={self.chunk} must be at least 1, the positions whose logits exist at a time")

    @property
    def steps(self) -> PyTree:
        """Row 0, which only calls, and a row an update."""
        rows = self.policy.steps
        first = jax.tree.map(lambda leaf: leaf[:1], rows)
        n = jax.tree.leaves(rows)[0].shape[0]
        return (jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, rows), jnp.arange(n + 1) > 0)

    @property
    def draws(self) -> Array:
        """Which rows draw: all but row 0, which only calls."""
        return self.steps[1]

    @property
    def nfe(self) -> int:
        """The most network evaluations a sequence; `Decoded.calls` says how many it needed."""
        updates = len(jax.tree.leaves(self.policy.steps)[0])
        return updates * self.model.evaluations * (1 if self.corrector is None else 1 + self.corrections)

    @property
    def longest(self) -> int | None:
        """What the policy was planned for."""
        return getattr(self.policy, "length", None)

    @property
    def done(self) -> Callable[[State], Array] | None:
        """Whether every sequence is finished; None where the number of rows is fixed."""
        return self._finished if self.policy.adaptive else None

    def admit(self, shape: tuple[int, ...], x: Array | None) -> None:
        """Raise before a run of what is no policy, and as every sampler over tokens."""
        if not hasattr(self.policy, "select"):
            raise TypeError(f"a decoder needs a policy, for example discrete.first_hitting(length); got a "
                            f"{type(self.policy).__name__}")  # fmt: skip
        super().admit(shape, x)

    def init(self, keys: Array | Draws, x: Array, cond: PyTree) -> State:
        """Before the first call: what is not a mask is prompt or padding, and stays."""
        self.admit(x.shape, x)
        batch, length = x.shape
        masked = x == self.model.mask_id
        zero = jnp.zeros(batch, jnp.int32)
        place = Place(masked, masked, jnp.ones(batch), jnp.int32(-1))
        memory, clock = self.policy.init(as_draws(keys, self.categorical).at(WHEN), place)
        shapes = jax.eval_shape(self.model, x, clock, cond)
        features = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        k = min(self.policy.width(length), length)
        empty = jnp.zeros((batch, k), jnp.int32)
        logs = jnp.zeros((batch, k), jax.eval_shape(self.model.log_probs, features, empty).dtype)
        reveal = Reveal(empty, empty > 0, empty, logs, logs)
        fault = first_bad(unknown(x, self.model), zero - 1)  # of traced ids, which `admit` cannot read
        return State(x, masked, features, features if self._looks_back else (), memory, clock, jnp.ones(batch, bool),
                     reveal, zero, zero, fault, jnp.bool(True), jnp.int32(0), jnp.int32(-1))  # fmt: skip

    def step(self, keys: Array | Draws, state: State, step: PyTree, cond: PyTree) -> State:
        """One update, then one call; with a corrector, its redraw and another call."""
        draws, (row, active) = as_draws(keys, self.categorical), step
        state = self._call(self._update(draws, state, row, active, cond), cond)
        if self.corrector is None:
            return state
        for i in range(self.corrections):
            laws = Laws(self.model, state.features, state.x, self.chunk)
            x = self.corrector(draws.at(FIX).at(i), laws, self._place(state, active))
            changed = jnp.any(x != state.x, axis=1)
            state = self._call(state._replace(x=x, stale=state.stale | changed), cond)
        return state

    def finish(self, keys: Array | Draws, state: State, cond: PyTree) -> Decoded:
        """The tokens; a mask that is left is a fault at its position."""
        return Decoded(state.x, state.calls, first_bad(state.x == self.model.mask_id, state.fault))

    def view(self, state: State) -> DecoderView:
        clock = state.clock
        return DecoderView(state.x, state.x == self.model.mask_id, Level(clock, 1 - clock, clock), state.features,
                           state.reveal, state.memory, state.calls, state.executed, state.index,
                           jnp.ones((), bool))  # fmt: skip

    @property
    def _looks_back(self) -> bool:
        return getattr(self.proposal, "looks_back", False)

    def settled(self, state: State) -> bool:
        """Whether no row can change a concrete state any more."""
        again = self.corrector is not None or getattr(self.policy, "remask", None) is not None
        return not again and not bool(jnp.any(state.x == self.model.mask_id))

    def _finished(self, state: State) -> Array:
        return (state.index >= 0) & ~state.left

    def _place(self, state: State, active: Array) -> Place:
        """In row 0 nothing is eligible."""
        masked = (state.x == self.model.mask_id) & active
        return Place(masked, state.free & active, state.clock, state.index, state.reveal)

    def _update(self, draws: Draws, state: State, row: PyTree, active: Array, cond: PyTree) -> State:
        state = state._replace(index=state.index + 1)
        place, laws = self._place(state, active), Laws(self.model, state.features, state.x, self.chunk)
        chosen, memory = self.policy.select(draws.at(WHEN), laws, place, state.memory, row)
        shown = chosen.reveal & place.masked
        k = state.reveal.positions.shape[1]
        positions, valid = pack(shown, k, in_place=k <= self.chunk)
        reveal, bad = self._reveal(draws.at(WHAT), laws, state, chosen, positions, valid, cond)
        x = write(state.x, positions, valid, reveal.tokens)
        if chosen.remask is not None:
            x = jnp.where(chosen.remask & place.free, self.model.mask_id, x)
        fault = first_bad_slot(bad, positions, state.fault)
        return state._replace(
            x=x,
            before=state.features if self._looks_back else (),
            memory=jax.tree.map(functools.partial(jnp.where, active), memory, state.memory),
            clock=jnp.where(active, chosen.clock.astype(state.clock.dtype), state.clock),
            stale=state.stale | jnp.any(x != state.x, axis=1),
            reveal=reveal,
            count=jnp.sum(shown, axis=1, dtype=jnp.int32),
            fault=fault,
        )

    def _reveal(
        self,
        draws: Draws,
        laws: Laws,
        state: State,
        chosen: Selection,
        positions: Array,
        valid: Array,
        cond: PyTree,
    ) -> tuple[Reveal, Array]:
        """(tokens for the slots, slots whose law was broken), in pieces of `chunk` slots, those that hold one."""
        count = jnp.sum(valid, axis=1, dtype=jnp.int32)
        fill = functools.partial(self._fill, laws, state, chosen, count, cond)
        batch, k = positions.shape
        if k <= self.chunk:
            return fill(draws, positions, valid)
        pieces, short = -(-k // self.chunk), -k % self.chunk

        def padded(slots: Array) -> Array:
            return jnp.pad(slots, ((0, 0), (0, short)))

        def piece(slots: Array, i: Any) -> Array:
            return jax.lax.dynamic_slice_in_dim(slots, i * self.chunk, self.chunk, axis=1)

        def body(i: Array, filled: Any) -> Any:
            found = fill(draws.at(i), piece(padded(positions), i), piece(padded(valid), i))
            return jax.tree.map(
                lambda all_, new: jax.lax.dynamic_update_slice_in_dim(all_, new, i * self.chunk, axis=1), filled, found
            )

        shapes = jax.eval_shape(lambda: fill(draws, positions[:, : self.chunk], valid[:, : self.chunk]))
        blank = jax.tree.map(lambda s: jnp.zeros((batch, pieces * self.chunk), s.dtype), shapes)
        needed = -(-jnp.max(count) // self.chunk)
        filled, bad = jax.tree.map(lambda slots: slots[:, :k], jax.lax.fori_loop(0, needed, body, blank))
        return filled._replace(positions=positions, valid=valid), bad

    def _fill(
        self,
        laws: Laws,
        state: State,
        chosen: Selection,
        count: Array,
        cond: PyTree,
        draws: Draws,
        positions: Array,
        valid: Array,
    ) -> tuple[Reveal, Array]:
        """The same for slots whose laws exist at once; `count` [B] is that of all slots."""
        raw = self.model.log_probs(state.features, positions)
        log_p, bad = laws.at(positions), broken(raw) & valid
        log_q = log_p
        if self.proposal is not None and chosen.tokens is None:
            before = self.model.log_probs(state.before, positions) if self._looks_back else log_p
            context = Context(state.x, positions, valid, before, count, state.count, chosen.weight, cond)
            log_q = self.proposal(log_p, context)
            bad = bad | (broken(log_q) & valid)
        tokens = draws.tokens(log_q, valid) if chosen.tokens is None else gather(chosen.tokens, positions)
        if chosen.tokens is not None:
            log_q = jnp.full_like(log_p, jnp.nan)  # its positions may depend on its tokens: no weight is exact
        logs = (jnp.where(valid, of_token(log, tokens), 0.0) for log in (log_p, log_q))
        return Reveal(positions, valid, jnp.where(valid, tokens, 0), *logs), bad

    def _call(self, state: State, cond: PyTree) -> State:
        """Features at x, where a sequence that is not finished changed, or the network reads the clock."""
        masked = jnp.any(state.x == self.model.mask_id, axis=1)
        waiting = masked if self.corrector is None else masked | jnp.any(state.free, axis=1)
        need = waiting & (state.stale | (self.model.time is not None))
        execute, left = jnp.any(jnp.stack([need, masked]), axis=1)  # of all sequences at once: one message a row
        features = jax.lax.cond(execute, lambda: self.model(state.x, state.clock, cond), lambda: state.features)
        return state._replace(
            features=features,
            stale=state.stale & ~need,
            calls=state.calls + need * jnp.int32(self.model.evaluations),
            left=left,
            executed=state.executed + execute,
        )
