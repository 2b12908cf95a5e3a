"""The exact law of what a decoder puts out, on spaces small enough to enumerate: no Monte Carlo.

Every random choice of a decoder is asked of a `Draws`. Here the answer is every outcome of positive probability: the
update is replayed once for each question, with the outcomes so far given and the rows multiplied, and equal states are
merged. So the code that is checked is the code that samples.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.discrete.draws import CERTAIN

PyTree: TypeAlias = Any


class OutputLaw(NamedTuple):
    """A law over sequences, on the host."""

    x: np.ndarray  # int32 [n, L], distinct sequences
    p: np.ndarray  # float64 [n], their probabilities
    calls: float  # expected network evaluations a sequence

    def total_variation(self, log_prob: Callable[[Array], Array]) -> float:
        """TV distance to the law with this log-probability: half the sum of |q - p|, over all sequences."""
        p = np.exp(np.asarray(log_prob(jnp.asarray(self.x)), np.float64))
        return 0.5 * float(np.abs(self.p - p).sum() + max(0.0, 1.0 - p.sum()))

    def divergence(self, log_prob: Callable[[Array], Array]) -> float:
        """KL(p || q) from the law with this log-probability, infinite where the decoder misses some of it."""
        log_p = np.asarray(log_prob(jnp.asarray(self.x)), np.float64)
        p = np.exp(log_p)
        if p.sum() < 1 - 1e-9:
            return float("inf")
        return float(np.sum(np.where(p > 0, p * (log_p - np.log(self.p)), 0.0)))

    def entropy(self) -> float:
        """In nats."""
        return float(-np.sum(self.p * np.log(self.p)))


def output_law(
    sampler: Any, x: np.ndarray | Array, cond: PyTree = None, *, rows: int = 2048, limit: int = 2**21
) -> OutputLaw:
    """The law of `sample(key, sampler, x=x, cond=cond).x` for one starting sequence, by exact propagation.

    Args:
        sampler: a `diffsample.discrete` sampler; its model must be time-free where the decoder draws clocks.
        x: int32 [L], the start with its masks. cond: condition of one sequence, leaves [1, ...].
        rows: smallest batch that is compiled; batches are padded to powers of four times this.
        limit: largest batch; beyond it the space is too large to enumerate.

    Raises:
        ValueError: more than `limit` outcomes at once; a start that is not one sequence.

    >>> from diffsample import discrete
    >>> from diffsample.exact import markov_chain, output_law
    >>> chain = markov_chain([0.5, 0.5], [[0.9, 0.1], [0.2, 0.8]], 2)
    >>> law = output_law(discrete.Decoder(chain.model(), discrete.first_hitting(2)), np.array([2, 2]))
    >>> round(law.total_variation(chain.log_prob), 6), round(law.calls, 6)
    (0.0, 2.0)
    """
    every = _Replay(cond, rows, limit)
    state, weights = every.play(_init, sampler, _start(x), np.array([[1.0, 0.0]]), None)
    for j, row in enumerate(_rows(sampler)):
        state, weights = every.play(_step, sampler, state, weights, row)
        weights[:, 1] += weights[:, 0] * np.asarray(state.calls)
        state, weights = _merge(state._replace(calls=np.zeros_like(state.calls)), weights)
        if j and sampler.settled(state):
            break
    sequences, index = np.unique(np.asarray(state.x), axis=0, return_inverse=True)
    return OutputLaw(sequences, np.bincount(index.ravel(), weights[:, 0]), float(weights[:, 1].sum()))


def every_path(
    sampler: Any, x: np.ndarray | Array, cond: PyTree = None, *, rows: int = 256, limit: int = 2**18
) -> tuple[PyTree, np.ndarray]:
    """Every way a sampler can go from one starting sequence: its final states and their probabilities, none merged.

    For what depends on the path, such as the weights that a sampler carries in its state (`tests/token_paths.py`).

    Args:
        sampler: anything with `steps`, `init(draws, x, cond)` and `step(draws, state, row, cond)` that asks a
            `diffsample.discrete` `Draws` for all that is random.
        x, cond, rows, limit: as for `output_law`.

    Returns:
        (state after the last row with the paths as first axis, on the host; probabilities, float64 [n]).

    Raises:
        ValueError: more than `limit` outcomes at once; a start that is not one sequence.

    >>> from diffsample import discrete
    >>> from diffsample.exact import every_path, markov_chain
    >>> chain = markov_chain([0.5, 0.5], [[0.9, 0.1], [0.2, 0.8]], 2)
    >>> state, p = every_path(discrete.Decoder(chain.model(), discrete.given_order([0, 1])), np.array([2, 2]))
    >>> state.x.tolist(), p.round(3).tolist()
    ([[0, 0], [0, 1], [1, 0], [1, 1]], [0.45, 0.05, 0.1, 0.4])
    """
    every = _Replay(cond, rows, limit)
    state, weights = every.play(_init, sampler, _start(x), np.ones((1, 1)), None)
    for row in _rows(sampler):
        state, weights = every.play(_step, sampler, state, weights, row)
    return state, weights[:, 0]


class Site(NamedTuple):
    """A question: each slot's outcome probabilities [R, slots, outcomes], or log-weights of an order."""

    p: Array
    order: Array | None = None  # [R, L] log-weights


class Unanswered(Exception):
    """A question beyond the script."""

    def __init__(self, site: Site):
        self.site = site


class Script:
    """Draws that answer from a script, and stop at the first question after it."""

    def __init__(self, answers: tuple[Array, ...]):
        self.answers, self.asked = answers, 0

    def at(self, stream: Any) -> "Script":
        return self

    def _answer(self, site: Callable[[], Site]) -> Array:
        self.asked += 1
        if self.asked > len(self.answers):
            raise Unanswered(site())
        return self.answers[self.asked - 1]

    def tokens(self, log_p: Array, valid: Array) -> Array:
        nothing = jnp.arange(log_p.shape[-1])[None, None, :] == 0
        return self._answer(lambda: Site(jnp.where(valid[..., None], jnp.exp(log_p), nothing.astype(log_p.dtype))))

    def coins(self, p: Array) -> Array:
        p = jnp.clip(p, 0.0, 1.0)
        return self._answer(lambda: Site(jnp.stack([1 - p, p], axis=-1))) > 0

    def ranks(self, log_w: Array) -> Array:
        return self._answer(lambda: Site(log_w, log_w))

    def cells(self, edges: Array, valid: Array) -> Array:
        p = jnp.where(valid[..., None], -jnp.diff(edges)[None, None, :], jnp.arange(edges.shape[0] - 1) == 0)
        return self._answer(lambda: Site(p))

    def waits(self, hazard: Array, since: Array, valid: Array) -> Array:
        n = hazard.shape[0] - 1
        before = _survived(jnp.maximum(hazard[None, None, :] - hazard[jnp.minimum(since, n)][..., None], 0.0))
        p = jnp.append(before[..., :-1] - before[..., 1:], before[..., -1:], axis=-1)  # none before since: 1 - 1
        never = (jnp.arange(n + 1) == n)[None, None, :]
        return self._answer(lambda: Site(jnp.where(valid[..., None], p, never.astype(p.dtype))))

    def clocks(self, count: Array, length: int) -> Array:
        """Their means: a continuous draw, which a time-free model does not read."""
        i = jnp.arange(length)[None, :]
        return jnp.where(i < count[:, None], (count[:, None] - i) / (count[:, None] + 1.0), 0.0)


def _survived(hazard: Array) -> Array:
    """exp(-hazard), and nothing where the hazard is certain to have struck."""
    return jnp.where(hazard > CERTAIN * (1 - 1e-6), 0.0, jnp.exp(-hazard))


def _start(x: np.ndarray | Array) -> Array:
    if np.ndim(x) != 1:
        raise ValueError(f"x must be one sequence [L], got shape {np.shape(x)}")
    return jnp.asarray(np.asarray(x, np.int32)[None])


def _rows(sampler: Any) -> list[PyTree]:
    steps = jax.tree.map(np.asarray, sampler.steps)
    return [jax.tree.map(lambda leaf, j=j: leaf[j], steps) for j in range(len(jax.tree.leaves(steps)[0]))]


def _init(sampler: Any, draws: Script, state: Array, row: None, cond: PyTree) -> PyTree:
    return sampler.init(draws, state, cond)


def _step(sampler: Any, draws: Script, state: PyTree, row: PyTree, cond: PyTree) -> PyTree:
    return sampler.step(draws, state, row, cond)


@functools.partial(jax.jit, static_argnums=0)
def _replay(function: Any, sampler: Any, answers: tuple, state: PyTree, row: PyTree, cond: PyTree) -> PyTree:
    """(the next question, or None; the new state, or None)."""
    try:
        return None, function(sampler, Script(answers), state, row, cond)
    except Unanswered as stop:
        return stop.site, None


class _Replay:
    """Plays one function over all outcomes of its questions."""

    def __init__(self, cond: PyTree, rows: int, limit: int):
        self.cond, self.rows, self.limit = cond, rows, limit

    def play(self, function: Any, sampler: Any, state: PyTree, weights: np.ndarray, row: PyTree) -> tuple:
        """(new state, weights [n, 2]: probability, and probability times calls); rows are all possible outcomes."""
        answers: tuple[np.ndarray, ...] = ()
        while True:
            batch = len(weights)
            size = self._padded(batch)
            spread = np.arange(size) % batch
            cond = jax.tree.map(lambda leaf, size=size: jnp.repeat(leaf, size, axis=0), self.cond)
            given = tuple(jnp.asarray(a[spread]) for a in answers)
            site, new = _replay(function, sampler, given, take(state, spread, batch), row, cond)
            if site is None:
                return take(new, np.arange(batch), size), weights
            cut = take(site, np.arange(batch), size)
            parent, outcome, p = _orders(cut.order) if cut.order is not None else _products(cut.p, self.limit)
            state, weights = take(state, parent, batch), weights[parent] * p[:, None]
            answers = (*(a[parent] for a in answers), outcome)

    def _padded(self, n: int) -> int:
        if n > self.limit:
            raise ValueError(f"{n} outcomes at once are more than limit={self.limit}: the space is too large")
        size = self.rows
        while size < n:
            size *= 4
        return size


def take(tree: PyTree, index: np.ndarray, batch: int) -> PyTree:
    """Rows of every leaf that has the batch axis first, on the host."""
    return jax.tree.map(
        lambda leaf: np.asarray(leaf)[index] if np.ndim(leaf) and np.shape(leaf)[0] == batch else leaf, tree
    )


def _products(p: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row it came from, outcome of every slot, probability) of all joint outcomes of positive probability."""
    p = p.astype(np.float64)
    parent, weight = np.arange(len(p)), np.ones(len(p))
    outcomes = np.zeros((len(p), 0), np.int32)
    for slot in range(p.shape[1]):
        here = p[parent, slot]
        row, value = np.nonzero(here > 0)
        if len(row) > 4 * limit:
            raise ValueError(f"more than limit={limit} outcomes at once: the space is too large")
        outcomes = np.concatenate([outcomes[row], value[:, None].astype(np.int32)], axis=1)
        weight, parent = weight[row] * here[row, value], parent[row]
    return parent, outcomes, weight


def _orders(log_w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row, ranks, probability) of all orders drawn without replacement with these weights."""
    log_w, length = log_w.astype(np.float64), log_w.shape[1]
    parent, weight = np.arange(len(log_w)), np.ones(len(log_w))
    ranks = np.full(log_w.shape, length, np.int32)
    for turn in range(length):
        open_w = np.where(ranks == length, log_w[parent], -np.inf)
        largest = open_w.max(axis=1, keepdims=True)
        left = np.exp(open_w - np.where(largest > -np.inf, largest, 0.0))
        total = left.sum(axis=1, keepdims=True)
        idle = np.zeros_like(left)
        idle[:, 0] = 1.0  # nothing left to draw: one outcome
        chance = np.where(total > 0, left / np.where(total > 0, total, 1.0), idle)
        row, position = np.nonzero(chance > 0)
        drawn = total[row, 0] > 0
        ranks, weight, parent = ranks[row].copy(), weight[row] * chance[row, position], parent[row]
        ranks[np.flatnonzero(drawn), position[drawn]] = turn
    return parent, ranks, weight


def _merge(state: PyTree, weights: np.ndarray) -> tuple[PyTree, np.ndarray]:
    """Equal futures as one row of their total weight."""
    n = len(weights)
    columns = [np.asarray(leaf).reshape(n, -1) for leaf in jax.tree.leaves(state.future())]
    key = np.concatenate([np.round(c.astype(np.float64), 9) for c in columns], axis=1)
    _, first, index = np.unique(key, axis=0, return_index=True, return_inverse=True)
    total = np.stack([np.bincount(index.ravel(), column) for column in weights.T], axis=1)
    return take(state, first, n), total
