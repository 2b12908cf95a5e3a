"""Exact speculative sampling: several steps of a stochastic sampler checked in one network call.

A table with one register and one slot, whose rows draw noise, is a Markov chain of Gaussian steps: x_{p+1} ~ N(m(x_p,
p), c_{p+1}^2 I), where m needs a network call at x_p. A round drafts a window of steps with means that cost little,
calls the network once at all drafted states, and turns the drafts into draws of the chain by `reflection_coupling`, in
order, up to the first that was not kept. Each round makes at least one step.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.coupling import Coupled, reflection_coupling
from diffsample.denoiser import Denoiser, Point, Prediction, PyTree, eps_from_x0, expand
from diffsample.process import Level
from diffsample.sampler import View, fold, normal
from diffsample.sampling import CLOSING_STREAM
from diffsample.solvers.tabular import DENOISER_STREAM, Linear
from diffsample.struct import pytree, static

ACCEPT_STREAM = 2**32 - 2  # never a counter of the row's normal draw, which has fewer elements


class Effort(NamedTuple):
    """What a sample has cost so far; the memory that views of `speculative` show."""

    rounds: Array  # [B] int32
    evaluations: Array  # [B] int32, states at which the denoiser was evaluated for this sample


class SpeculativeState(NamedTuple):
    keys: Array  # [B] the samples' own
    x: Array  # [B, ...]
    done: Array  # [B] int32, calls that the chain has behind it: x is the state of call number `done`
    called: Array  # [B, ...] the newest state of the chain with a prediction
    prediction: Prediction  # the one there
    effort: Effort
    fresh: Array  # bool


class Window(NamedTuple):
    """A drafted window; leaves [L, B, ...]."""

    x: Array  # states before each step
    mean: Array  # of the draft
    z: Array


class Reached(NamedTuple):
    """What a round found for each step of its window; leaves [L, B, ...]."""

    x: Array  # the state after the step
    called: Array  # the state before it
    prediction: Prediction  # the denoiser's, there


@pytree
class Speculative:
    """A Markov chain of Gaussian steps, drafted ahead and checked; see `speculative`."""

    sampler: Linear
    draft: Denoiser | None = None
    window: int = static(default=8)
    refresh: bool = static(default=False)

    @property
    def nfe(self) -> int:
        """Evaluations per sample at most, those of a draft denoiser included; the view's memory has what it took."""
        n = self.sampler.tableau.rows
        checked = sum(min(self.window, n - p) for p in range(n))
        return checked * (self.sampler.denoiser.evaluations + (0 if self.draft is None else self.draft.evaluations))

    @property
    def steps(self) -> Array:
        """Rounds, as many as there can be."""
        return jnp.arange(self.sampler.tableau.rows)

    def prior(self, keys: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        return self.sampler.prior(keys, shape, dtype)

    def init(self, keys: Array, x: Array, cond: PyTree) -> SpeculativeState:
        for denoiser in (self.sampler.denoiser, *([] if self.draft is None else [self.draft])):
            if jax.tree.leaves(jax.eval_shape(denoiser.init, x)):
                raise ValueError(
                    f"{type(denoiser).__name__} has memory (its init returns arrays), which drafts that are thrown "
                    f"away would enter; speculative sampling needs denoisers without memory (apg: momentum=None)"
                )
        t, zeros = self.sampler.tableau, jnp.zeros(x.shape[:1], jnp.int32)
        x = jnp.asarray(t.A[0, 0, 0], x.dtype) * x
        if t.noise == "some":
            x += jnp.asarray(t.c[0, 0], x.dtype) * normal(fold(keys, 0), x.shape, x.dtype)
        blank = Prediction(jnp.zeros_like(x), jnp.zeros_like(x))
        return SpeculativeState(keys, x, zeros, x, blank, Effort(zeros, zeros), jnp.ones((), bool))

    def step(self, keys: Array, state: SpeculativeState, step: Array, cond: PyTree) -> SpeculativeState:
        """One round; nothing is called once all samples have arrived."""
        waiting = (state.done < self.sampler.tableau.rows).any()
        idle = state._replace(fresh=jnp.zeros((), bool))
        return jax.lax.cond(waiting, lambda: self._round(state, cond), lambda: idle)

    def finish(self, keys: Array, state: SpeculativeState, cond: PyTree) -> Array:
        return state.x

    def view(self, state: SpeculativeState) -> View:
        row = jnp.maximum(state.done - 1, 0)
        at, rows = self._place(row, state.keys), self.sampler.steps
        return View(state.called, at.now, state.prediction, state.effort, jnp.asarray(rows.gain)[row],
                    jnp.asarray(rows.std)[row], at.index, at.stage, state.fresh)  # fmt: skip

    def _round(self, state: SpeculativeState, cond: PyTree) -> SpeculativeState:
        n = self.sampler.tableau.rows
        rows = state.done[None, :] + jnp.arange(self.window, dtype=jnp.int32)[:, None]  # [L, B]
        calls = jnp.minimum(rows, n - 1)
        fresh = self._call(self.sampler.denoiser, state.x, calls[0], state.keys, cond) if self.refresh else None
        window = self._draft(state, calls, (fresh or state.prediction).x0, cond)
        prediction = self._predict(state, window, calls, fresh, cond)

        def verify(drafted: Window, prediction: Prediction, row: Array) -> Coupled:
            decide = fold(self._row_keys(state.keys, row + 1), ACCEPT_STREAM)
            mean, std = self._mean(drafted.x, prediction, row), self._std(row, drafted.x)
            return reflection_coupling(decide, drafted.z, drafted.mean, mean, std)

        moved, accepted = jax.vmap(verify)(window, prediction, calls)
        return _advance(state, accepted, rows < n, Reached(moved, window.x, prediction))

    def _draft(self, state: SpeculativeState, calls: Array, x0: Array, cond: PyTree) -> Window:
        """L steps from the draft denoiser's predictions, or all from one predicted x0."""

        def ahead(x: Array, row: Array) -> tuple[Array, Window]:
            if self.draft is not None:
                prediction = self._call(self.draft, x, row, state.keys, cond)
            else:
                prediction = Prediction(x0, eps_from_x0(x, x0, self._level(row)))
            z = normal(self._row_keys(state.keys, row + 1), x.shape, x.dtype)
            mean = self._mean(x, prediction, row)
            return mean + expand(self._std(row, x), x) * z, Window(x, mean, z)

        return jax.lax.scan(ahead, state.x, calls)[1]

    def _predict(
        self, state: SpeculativeState, window: Window, calls: Array, fresh: Prediction | None, cond: PyTree
    ) -> Prediction:
        """The denoiser at all states of the window, [L, B, ...], in one call; the first may be known."""

        def predict(x: Array, row: Array) -> Prediction:
            return self._call(self.sampler.denoiser, x, row, state.keys, cond)

        if fresh is None:
            return jax.vmap(predict)(window.x, calls)
        known = jax.tree.map(lambda leaf: leaf[None], fresh)
        if self.window == 1:
            return known
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), known, jax.vmap(predict)(window.x[1:], calls[1:]))

    def _call(self, denoiser: Denoiser, x: Array, row: Array, keys: Array, cond: PyTree) -> Prediction:
        at = self._place(row, fold(self._row_keys(keys, row), DENOISER_STREAM))
        return denoiser(x, at, cond, denoiser.init(x))[0]

    def _mean(self, x: Array, prediction: Prediction, row: Array) -> Array:
        """Mean of the step that follows call number `row`, one a sample."""
        t = self.sampler.tableau
        if not self.sampler.denoiser.coupled or (self.draft is not None and not self.draft.coupled):
            level = self._level(row)
            x = expand(level.alpha, x) * prediction.x0 + expand(level.sigma, x) * prediction.eps
        A, B, store = (jnp.asarray(v, x.dtype) for v in (t.A[:, 0, 0], t.B[:, 0, 0], t.store))
        kept = expand(store[row, 0], x) * prediction.x0 + expand(store[row, 1], x) * prediction.eps
        return expand(A[row + 1], x) * x + expand(B[row + 1], x) * kept

    def _std(self, row: Array, x: Array) -> Array:
        """Scale of the draw of that step."""
        return jnp.abs(jnp.asarray(self.sampler.tableau.c, x.dtype)[row + 1, 0])

    def _place(self, row: Array, keys: Array) -> Point:
        """The point of call number `row`, one a sample."""
        t = self.sampler.tableau
        to = Level(*(jnp.asarray(v)[row] for v in t.next))
        return Point(self._level(row), to, jnp.asarray(t.index)[row], jnp.asarray(t.stage)[row], keys)

    def _level(self, row: Array) -> Level:
        """The level of call number `row`, one a sample."""
        return Level(*(jnp.asarray(v)[row] for v in self.sampler.tableau.now))

    def _row_keys(self, keys: Array, row: Array) -> Array:
        """The keys that the plain sampler gives to table row `row`, one a sample."""
        number = jnp.where(row == self.sampler.tableau.rows, jnp.uint32(CLOSING_STREAM), row.astype(jnp.uint32))
        return jax.vmap(jax.random.fold_in)(keys, number)


def speculative(
    sampler: Linear, *, window: int = 8, draft: Denoiser | None = None, refresh: bool = False
) -> Speculative:
    """Exact speculative sampling: `window` steps drafted, then checked by one network call of window times the batch.

    The samples have the law of `sampler` exactly, for every window and every draft: each step is a maximal coupling of
    the draft's Gaussian with the chain's own (`diffsample.coupling`). A good draft makes fewer network calls in
    sequence, at the price of more evaluations. Draws belong to the sample and the row, so that with window=1 and
    refresh the samples are those of `sampler` itself. It gains most where steps are many and their noise is large;
    into sigma = 0 nothing is drawn, and the last step takes a round of its own.

    Every sample advances at its own pace, with its own noise levels, so denoisers get levels, index and stage [B]; the
    call of a window is a `vmap` over it, so that guidance scales and measurements of each sample fit.
    `sample(..., record=lambda view: view.memory)` stacks rounds and evaluations of each sample, whose last entries are
    the totals. Rounds that no sample needs make no call.

    Args:
        sampler: `linear(denoiser, tableau)` of one register and one slot that draws noise: `ddim` with eta > 0, `ddpm`,
            `euler_ancestral`, `euler_maruyama`, `ald`, ...; denoiser without memory.
        window: steps drafted in a round.
        draft: a cheaper denoiser, called `window` times in sequence a round. None: every drafted step takes the x0
            of the sampler's newest call, without calls (x0 = 0 before the first).
        refresh: one more call in sequence, at the round's first state alone, whose x0 drafts the window; its first step
            is then always kept. Evaluations do not change. For use without a draft denoiser.

    Raises:
        TypeError: not a `linear` sampler.
        ValueError: a table without noise, of several registers or slots, or padded; a Brownian path; a window below 1;
            refresh with a draft; at trace time, a denoiser with memory.

    Reference: De Bortoli, Galashov, Gretton, Doucet 2025, arXiv 2501.05370; their frozen draft is `refresh`.

    >>> import diffsample as ds
    >>> process = ds.VariancePreserving()
    >>> plain = ds.solvers.linear(ds.exact.Gaussian(0.0, 1.0), ds.solvers.ddpm(process, ds.times.uniform(process, 50)))
    >>> x, effort = ds.sample(jax.random.key(0), speculative(plain), (4, 2), record=lambda view: view.memory)
    >>> bool((effort.rounds[-1] < 25).all())
    True
    """
    if not isinstance(sampler, Linear):
        raise TypeError(f"speculative(sampler) needs solvers.linear(denoiser, tableau), got {type(sampler).__name__}")
    t = sampler.tableau
    if t.noise == "never":
        raise ValueError(f"the table {t.about.name!r} draws no noise, and a deterministic step cannot be drafted "
                         f"ahead: use a stochastic one, for example ddim(eta=1)")  # fmt: skip
    if t.registers > 1 or t.slots > 1 or t.padded:
        raise ValueError(f"the table {t.about.name!r} has {t.registers} registers, {t.slots} slots, padded={t.padded}; "
                         f"speculative sampling needs a Markov chain of one register and one slot, not padded: ddim, "
                         f"ddpm, euler_ancestral, euler_maruyama, ...")  # fmt: skip
    if sampler.path is not None:
        raise ValueError("speculative sampling draws by row and cannot follow a Brownian path: linear(..., path=None)")
    if window < 1:
        raise ValueError(f"window={window} must be at least 1")
    if refresh and draft is not None:
        raise ValueError("refresh=True drafts from the sampler's own denoiser; it has no use with a draft denoiser")
    return Speculative(sampler, draft, window, refresh)


def _advance(state: SpeculativeState, accepted: Array, possible: Array, reached: Reached) -> SpeculativeState:
    """The state after a round: every sample moves through its kept steps and the first that was not kept."""
    kept = jnp.cumprod(accepted & possible, axis=0, dtype=jnp.int32).sum(axis=0)
    most = possible.sum(axis=0, dtype=jnp.int32)
    moves = jnp.minimum(kept + 1, most)
    last = jnp.maximum(moves - 1, 0)

    def newest(leaf: Array, old: Array) -> Array:
        axes = (1,) * (old.ndim - 1)
        picked = jnp.take_along_axis(leaf, last.reshape(1, -1, *axes), axis=0)[0]
        return jnp.where(moves.reshape(-1, *axes) > 0, picked, old)

    x, called, prediction = jax.tree.map(newest, reached, Reached(state.x, state.called, state.prediction))
    effort = Effort(state.effort.rounds + (moves > 0), state.effort.evaluations + most)
    return SpeculativeState(state.keys, x, state.done + moves, called, prediction, effort, jnp.ones((), bool))
