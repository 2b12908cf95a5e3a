"""The particle filter over paths: one cloud of N particles, free or around a reference path in slot 0.

Row k is: decide, resample, move, look, weigh. log Z is estimated as `feynman_kac` does, without bias where there is no
reference.
"""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn import logsumexp

from diffsample.denoiser import PyTree
from diffsample.smc.paths.models import PathModel, first_row, later_rows, log_link, spread, take
from diffsample.smc.policies import Policy, always
from diffsample.smc.resamplers.resampling import Resampler
from diffsample.smc.weights import log_mean


class Path(NamedTuple):
    """One path: leaves [n + 1, ...]."""

    x: PyTree
    seen: PyTree  # what the model's `look` returned at each x


class Generation(NamedTuple):
    """N particles at one k; stacked over k, the particles of a whole filter."""

    x: PyTree  # [N, ...]
    seen: PyTree  # [N, ...]
    log_w: Array  # [N]
    ancestors: Array  # [N] int32, parents in the generation before; 0, ..., N - 1 at k = 0
    log_z: Array  # [], normaliser up to k, exp of it unbiased without a reference; NaN after a NaN or +inf potential


class Collector(Protocol):
    """A statistic of each particle's past, carried by the filter."""

    def init(self, now: Generation, row: PyTree) -> PyTree:
        """Of the particles of generation 0."""
        ...

    def update(self, key: Array, model: PathModel, before: Generation, now: Generation, row: PyTree, stat: PyTree):
        """Of the particles of `now`, from that of the particles of `before`."""
        ...


def path_of(model: PathModel, x: PyTree) -> Path:
    """The path through given states, leaves `[n + 1, ...]`: looks at each once."""

    def look(_: None, pair: tuple) -> tuple[None, PyTree]:
        return None, first_row(model.look(spread(pair[0], 1), pair[1]))

    return Path(x, jax.lax.scan(look, None, (x, model.rows))[1])


def run_filter(
    key: Array,
    model: PathModel,
    particles: int,
    resample: Resampler,
    policy: Policy,
    path: Path | None = None,
    ancestor_sampling: bool = False,
    collector: Collector | None = None,
) -> tuple[Generation, PyTree]:
    """(all generations, leaves [n + 1, N, ...]; the collector's statistic), with or without a reference path."""
    if particles < 2:
        raise ValueError(f"particles={particles} must be at least 2")
    rows, n = model.rows, particles
    first = _first(jax.random.fold_in(key, 0), model, n, path)
    statistic = collector.init(first, first_row(rows)) if collector else ()

    def advance(carry: tuple[Generation, PyTree], k_row: tuple) -> tuple[tuple[Generation, PyTree], Generation]:
        (before, statistic), (k, row, held) = carry, k_row
        forward, collect = jax.random.split(jax.random.fold_in(key, k))
        now = _advance(forward, model, before, k, row, held, resample, policy, ancestor_sampling)
        if collector:
            statistic = collector.update(collect, model, before, now, row, statistic)
        return (now, statistic), now

    ks = jnp.arange(1, jax.tree.leaves(rows)[0].shape[0])
    held = None if path is None else later_rows(path)
    (_, statistic), rest = jax.lax.scan(advance, (first, statistic), (ks, later_rows(rows), held))
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest), statistic


def _first(key: Array, model: PathModel, n: int, path: Path | None) -> Generation:
    row = first_row(model.rows)
    x = model.draw(jax.random.split(key, n), row)
    x = x if path is None else _pin(x, first_row(path.x))
    seen = model.look(x, row)
    log_w = model.log_start(seen, row)
    log_w = log_w.astype(jnp.promote_types(log_w.dtype, jnp.float32))
    return Generation(x, seen, log_w, jnp.arange(n, dtype=jnp.int32), _valid(log_mean(log_w), log_w))


def _advance(
    key: Array,
    model: PathModel,
    before: Generation,
    k: Array,
    row: PyTree,
    held: Path | None,
    resample: Resampler,
    policy: Policy,
    ancestor_sampling: bool,
) -> Generation:
    """Resample, move, hold the reference in slot 0, look, weigh."""
    n = before.log_w.shape[0]
    pick, parent, step = jax.random.split(key, 3)
    pivot = jnp.zeros((), jnp.int32)
    if ancestor_sampling and held is not None:
        link = before.log_w + log_link(model, before.seen, held.x, held.seen, row)
        pivot = jax.random.categorical(parent, link).astype(jnp.int32)
    resampled = policy(before.log_w, k)
    # around the circle, so that the reference's parent comes first in the same cyclic order
    chosen = (resample(pick, jnp.roll(before.log_w, -pivot)) + pivot) % n
    ancestors = jnp.where(resampled, chosen, jnp.arange(n)).astype(jnp.int32)
    parents = take(before.seen, ancestors)
    x = model.move(jax.random.split(step, n), parents, row)
    x = x if held is None else _pin(x, held.x)
    seen = model.look(x, row)
    log_w = jnp.where(resampled, jnp.zeros_like(before.log_w), before.log_w)
    weighed = log_w + model.log_potential(parents, seen, row)
    log_z = before.log_z + logsumexp(weighed) - logsumexp(log_w)
    return Generation(x, seen, weighed, ancestors, _valid(log_z, weighed))


def _valid(log_z: Array, log_w: Array) -> Array:
    """log Z, or NaN where a weight is NaN or infinite (logsumexp would hide it)."""
    return jnp.where(jnp.any(jnp.isnan(log_w) | (log_w == jnp.inf)), jnp.nan, log_z)


def _pin(x: PyTree, held: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf, value: leaf.at[0].set(value), x, held)


def particle_filter(
    key: Array,
    model: PathModel,
    particles: int,
    *,
    resample: Resampler,
    policy: Policy = always,
    collector: Collector | None = None,
) -> tuple[Generation, PyTree]:
    """A particle filter over a path model: all generations, and the collector's statistic of the last particles.

    Costs N looks (network calls) a generation. exp(log_z[-1]) is unbiased for Z.

    Args:
        key: typed key.
        model: the path model.
        particles: N.
        resample: any resampler (key, log_w `[N]`) -> int32 `[N]`, for example `systematic`.
        policy: (log_w `[N]`, k) -> bool.
        collector: statistic carried by the particles, for example `Paris`; generations that nothing reads afterwards
            are not stored when the call is jit-compiled.

    Returns:
        (`Generation` with leaves [n + 1, ...], the statistic or ()).

    >>> from diffsample.smc import GaussianModel, systematic
    >>> def log_g(x, y):
    ...     return -jnp.sum((x - y)**2, 1)
    >>> walk = GaussianModel(jnp.zeros(1), 1.0, lambda x, y: x, 0.5, log_g, jnp.ones(4))
    >>> particle_filter(jax.random.key(0), walk, 16, resample=systematic)[0].x.shape
    (4, 16, 1)
    """
    return run_filter(key, model, particles, resample, policy, collector=collector)
