"""A learned ranking of schedules: an LSTM over the decisions of the steps, trained on pairs by a hinge loss.

Every decision of a step is embedded, the LSTM reads the steps in order, and the mean of its normalised outputs gives
one number, the higher the worse. Only the order of these numbers is trained: pairs (i, j) whose values differ clearly
cost max(0, margin - sign(value_i - value_j) (score_i - score_j)).
"""

import dataclasses
import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from numpy.typing import ArrayLike
from scipy.stats import kendalltau

from diffsample.search.encoding import Encoded, encode
from diffsample.solvers.decisions import CORRECTORS, FIRST, HIGHEST, PREDICTIONS, RELAXATIONS, Decisions

Weights: TypeAlias = list[Array]  # leaves of the network's parameters, in its order
SCORED = 256  # schedules scored at a time, so that any number is one program
WORST = 1e30  # a value that is not finite; only its rank matters


class Rows(NamedTuple):
    """Features of schedules, padded to one length."""

    times: Any  # [M, L, 2] where each step ends, in units of the first time: itself, and its logarithm from 1 to 0
    kinds: Any  # [M, L, 10] int32 categories
    gammas: Any  # [M, L, 1]
    mask: Any  # [M, L] bool


SIZES = (HIGHEST + 1, len(PREDICTIONS), HIGHEST + 2, HIGHEST, HIGHEST, HIGHEST, len(RELAXATIONS) + 1, len(CORRECTORS),
         HIGHEST + 2, len(FIRST))  # fmt: skip


class ScheduleNet(nnx.Module):
    """The network: one score a schedule."""

    def __init__(self, hidden: int, width: int, rngs: nnx.Rngs):
        self.kinds = nnx.List([nnx.Embed(size, 16, rngs=rngs) for size in SIZES])
        self.time_in, self.time_out = nnx.Linear(128, 64, rngs=rngs), nnx.Linear(64, 64, rngs=rngs)
        self.gamma = nnx.Linear(1, 16, rngs=rngs)
        self.lstm = nnx.OptimizedLSTMCell(16 * len(SIZES) + 64 + 16, hidden, rngs=rngs)
        widths = (hidden, width, width, width)
        self.head = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(widths)])
        self.last = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, rows: Rows) -> Array:
        """[M] scores."""
        frequencies = jnp.geomspace(0.5, 20.0, 32)  # higher ones, as for 1000 steps, learn single schedules by heart
        angles = (rows.times[..., None] * frequencies[None, None, None, :]).reshape(*rows.mask.shape, 64)
        waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        time = self.time_out(nnx.silu(self.time_in(waves)))
        kinds = [embed(rows.kinds[..., i]) for i, embed in enumerate(self.kinds)]
        inputs = jnp.concatenate([*kinds, time, self.gamma(rows.gammas)], axis=-1)
        zero = jnp.zeros((len(inputs), self.lstm.hidden_features))
        _, outputs = jax.lax.scan(self.lstm, (zero, zero), jnp.swapaxes(inputs, 0, 1))
        mask = rows.mask.T[..., None].astype(inputs.dtype)
        h = _normalised((_normalised(outputs) * mask).sum(axis=0))
        for layer in self.head:
            h = nnx.relu(layer(h))
        return self.last(h)[:, 0]


@dataclasses.dataclass(frozen=True)
class Ranker:
    """How the predictor is built and trained; it holds no weights, so that it is compared and hashed.

    Args:
        hidden, width: sizes of the LSTM and of the three layers after it.
        epochs, batch, rate: passes over the data, pairs are made within batches, Adam's rate.
        margin: of the hinge loss.
        apart: pairs count whose values differ by this share of the interquartile range.

    Reference: Liu et al. 2023, OMS-DPM, arXiv 2306.08860, section 4; used in Liu et al. 2024, arXiv 2312.07243.
    """

    hidden: int = 128
    width: int = 200
    epochs: int = 1000
    batch: int = 512
    rate: float = 1e-3
    margin: float = 1.0
    apart: float = 0.1

    def fit(self, key: Array, schedules: Sequence[Decisions], values: ArrayLike, longest: int, room: int) -> Weights:
        """Weights trained from fresh ones on evaluated schedules.

        Args:
            key: typed key.
            schedules, values: what was evaluated, lower is better.
            longest: steps of the longest schedule that will ever be scored.
            room: schedules that will ever be trained on, so that one program serves.

        Raises:
            ValueError: fewer than two schedules, or more than there is room for.
        """
        count, given = len(schedules), np.asarray(values, np.float64)
        if count != len(given) or not 2 <= count <= room:
            raise ValueError(f"need two or more schedules, as many values, and room for them; got {count}, "
                             f"{len(given)} and {room}")  # fmt: skip
        rows = _fill(rows_of(schedules, longest), room)
        known = np.where(np.isfinite(given), given, WORST)
        low, high = np.percentile(known, [25, 75])
        # values enter by rank and by whether they are clearly apart, so their scale is free
        scaled = np.clip((known - low) / max(high - low, 1e-30), -1e6, 1e6).astype(np.float32)
        epoch = -(-count // self.batch)
        padded = np.pad(scaled, (0, room - count))
        return _train(self, key, rows, padded, count, self.epochs * epoch)

    def score(self, weights: Weights, schedules: Sequence[Decisions], longest: int) -> np.ndarray:
        """[M] float32, the lower the better the schedule is predicted to be; no unit."""
        scores = []
        for low in range(0, len(schedules), SCORED):
            rows = rows_of(schedules[low : low + SCORED], longest)
            scores.append(np.asarray(_score(self, weights, _fill(rows, SCORED)))[: len(rows.mask)])
        return np.concatenate(scores)


def kendall_tau(scores: Any, values: Any) -> float:
    """Kendall's tau-b of predicted scores and true values, 1 where all pairs are ordered alike; nan if undefined.

    >>> kendall_tau([1.0, 2.0, 3.0], [10.0, 20.0, 40.0])
    1.0
    """
    found: Any = kendalltau(scores, values)
    return float(found.statistic)


def rows_of(schedules: Sequence[Decisions], longest: int) -> Rows:
    """Features on the host."""
    code: Encoded = encode(schedules, longest)
    share = (code.times / code.times[:, :1])[:, 1:]
    times = np.stack([share, np.log1p(1e4 * share) / np.log1p(1e4)], axis=-1)
    first = np.repeat(code.first[:, None], longest, axis=1)
    starts, points = np.minimum(code.starts, HIGHEST - 1), np.moveaxis(code.points, -1, 0)
    kinds = [code.orders, code.predictions, starts, *points, code.relaxations, code.correctors, code.corrector_orders,
             first]  # fmt: skip
    mask = np.arange(longest) < code.steps[:, None]
    return Rows(times.astype(np.float32), np.stack(kinds, axis=-1), code.gammas[..., None], mask)


def _fill(rows: Rows, length: int) -> Rows:
    """Rows repeated from the first up to a length."""
    index = np.arange(length) % len(rows.mask)
    return Rows(*(leaf[index] for leaf in rows))


def _normalised(h: Array) -> Array:
    return h * jax.lax.rsqrt(jnp.sum(h**2, axis=-1, keepdims=True) + 1e-12)


def _net(ranker: Ranker, key: Array) -> ScheduleNet:
    return ScheduleNet(ranker.hidden, ranker.width, nnx.Rngs(key))


def _apply(ranker: Ranker, weights: Weights, rows: Rows) -> Array:
    graph, state = nnx.split(nnx.eval_shape(lambda: _net(ranker, jax.random.key(0))), nnx.Param)
    return nnx.merge(graph, jax.tree.unflatten(jax.tree.structure(state), weights))(rows)


@partial(jax.jit, static_argnums=0)
def _score(ranker: Ranker, weights: Weights, rows: Rows) -> Array:
    return _apply(ranker, weights, rows)


@partial(jax.jit, static_argnums=0)
def _train(ranker: Ranker, key: Array, rows: Rows, values: Array, count: Array, steps: Array) -> Weights:
    """Adam on batches drawn with replacement from the first `count` rows; each row meets two others of its batch."""
    start, draws = jax.random.split(key)
    weights = jax.tree.leaves(nnx.state(_net(ranker, start), nnx.Param))
    optimizer = optax.adam(ranker.rate)
    batch = min(ranker.batch, len(values))

    def loss(weights: Weights, index: Array) -> Array:
        scores = _apply(ranker, weights, jax.tree.map(lambda leaf: jnp.asarray(leaf)[index], rows))
        value = values[index]
        apart, gap = (jnp.stack([v - jnp.roll(v, 1), v - jnp.roll(v, 2)]) for v in (value, scores))
        counts = jnp.abs(apart) > ranker.apart
        hinge = jnp.maximum(0.0, ranker.margin - jnp.sign(apart) * gap)
        return jnp.sum(jnp.where(counts, hinge, 0.0)) / jnp.maximum(counts.sum(), 1)

    def step(i: Array, carry: tuple) -> tuple:
        weights, state = carry
        index = jax.random.randint(jax.random.fold_in(draws, i), (batch,), 0, count)
        updates, state = optimizer.update(jax.grad(loss)(weights, index), state, weights)
        return optax.apply_updates(weights, updates), state

    return jax.lax.fori_loop(0, steps, step, (weights, optimizer.init(weights)))[0]
