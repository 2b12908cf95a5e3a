"""Optimal boundary conditions: one initial state, chosen once, for a deterministic conditional sampler."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.denoiser import PyTree
from diffsample.sampler import Sampler, fold
from diffsample.sampling import PRIOR_STREAM, sample
from diffsample.tableau import is_concrete

Metric = Callable[[Array, Array], Array]  # (samples [R, ...], references [R, ...]) -> [R], smaller is better


class Boundary(NamedTuple):
    """What `search_boundary` found."""

    x: Array  # [...] the best initial state, without batch axis: broadcast it to sample from it
    best: Array  # int32, its number
    scores: Array  # [K] mean metric of every candidate


def search_boundary(
    key: Array,
    sampler: Sampler,
    conds: PyTree,
    references: Array,
    metric: Metric,
    candidates: int,
    *,
    chunk: int = 1,
) -> Boundary:
    """Optimal boundary condition: of K draws from the prior, the x_T whose samples come nearest to references.

    x* = argmin_k mean_i metric(h(x_k, cond_i), reference_i), h the map of a deterministic sampler. The best x_T depends
    little on the condition, so one found on a small set of pairs serves new ones at no cost: sample(key, sampler,
    x=jnp.broadcast_to(found.x, (B, *found.x.shape)), cond=...). The search makes K R nfe network evaluations in one
    compiled program. Where data given the condition are Gaussian and the metric is the squared error, it picks the
    candidate nearest to the posterior mean: a distortion metric chooses blur, so take a perceptual one.

    Args:
        key: typed key; candidate k is the state that sample number k of `sample(key, sampler, ...)` starts from.
        sampler: deterministic, for example `linear(denoiser, ddim(process, times))`.
        conds: conditions of the references, every leaf [R, ...].
        references: [R, ...] good samples.
        metric: (samples [R, ...], references [R, ...]) -> [R]; differentiability is not needed. A function made anew
            each time compiles anew each time.
        candidates: K.
        chunk: candidates run side by side, so that the network's batch is chunk R.

    Raises:
        ValueError: a sampler that draws noise; a condition without R rows; a metric that does not return [R]; numbers
            below 1.

    Reference: Ma et al. 2024, arXiv 2305.15357.

    >>> import diffsample as ds
    >>> process, law = ds.VarianceExploding(), ds.exact.Gaussian([0.0, 0.0], 1.0)
    >>> sampler = ds.solvers.linear(law, ds.solvers.ddim(process, ds.times.karras(process, 5)))
    >>> error = lambda x, reference: ((x - reference) ** 2).sum(axis=1)
    >>> search_boundary(jax.random.key(0), sampler, None, jnp.zeros((1, 2)), error, candidates=4).scores.shape
    (4,)
    """
    rows = jnp.shape(references)[0] if jnp.ndim(references) else 0
    if min(candidates, chunk, rows) < 1:
        raise ValueError(f"candidates={candidates}, chunk={chunk} and the number of references {rows} must be positive")
    for path, leaf in jax.tree.leaves_with_path(conds):
        if jnp.shape(leaf)[:1] != (rows,):
            raise ValueError(f"conds{jax.tree_util.keystr(path)} has shape {jnp.shape(leaf)}; every leaf needs one row "
                             f"a reference, {rows}")  # fmt: skip
    scored = jax.eval_shape(metric, references, references).shape
    if scored != (rows,):
        raise ValueError(f"the metric must return one number a sample, [{rows}], got shape {scored}")
    if is_concrete((key, sampler, conds, references)):
        _refuse_noise(sampler, conds, references)
    return _search(key, sampler, conds, references, metric, candidates, min(chunk, candidates))


@partial(jax.jit, static_argnums=(4, 5, 6))
def _search(key: Array, sampler: Sampler, conds: PyTree, references: Array, metric: Metric, K: int, chunk: int):
    def score(number: Array) -> Array:
        x = jnp.broadcast_to(_start(key, sampler, references, number), references.shape)
        return metric(sample(key, sampler, x=x, cond=conds, check=False), references).mean()

    scores = jax.lax.map(score, jnp.arange(K, dtype=jnp.uint32), batch_size=chunk)
    best = jnp.argmin(scores)
    return Boundary(_start(key, sampler, references, best), best, scores)


def _refuse_noise(sampler: Sampler, conds: PyTree, references: Array) -> None:
    """One start, twice: a deterministic sampler gives one sample, and stochastic ones cannot share a start."""
    cond = jax.tree.map(lambda leaf: jnp.repeat(leaf[:1], 2, axis=0), conds)
    x = _start(jax.random.key(0), sampler, references, 0)
    first, second = sample(jax.random.key(0), sampler, x=jnp.stack([x, x]), cond=cond)
    if not np.allclose(first, second, rtol=1e-5, atol=1e-5):
        raise ValueError("the sampler draws noise: one start gave two different samples. A boundary condition needs a "
                         "deterministic sampler, for example ddim with eta=0")  # fmt: skip


def _start(key: Array, sampler: Sampler, references: Array, number: Array | int) -> Array:
    """The state that sample number `number` starts from."""
    own = fold(jax.random.fold_in(key, jnp.uint32(number))[None], PRIOR_STREAM)
    return sampler.prior(own, (1, *references.shape[1:]), jnp.promote_types(references.dtype, jnp.float32))[0]
