"""SVDD: at every row each sample draws several candidates and keeps one by its soft value; samples never meet.

The same code selects among continuous states and among tokens: a candidate is whatever the sampler's step makes.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.counting import evaluations
from diffsample.denoiser import PyTree
from diffsample.sampler import Sampler, View, fold, with_cond
from diffsample.smc.batches import follows_batch, refuse_keys
from diffsample.smc.functions import as_pytree
from diffsample.struct import pytree, static
from diffsample.tableau import is_concrete
from diffsample.wrapping import SamplerWrapper

COUNTERS = ("calls", "executed", "rows")
SELECTION_STREAM, CANDIDATE_STREAM = 2**32 - 4, 2**31  # beside the denoiser's and the resampling's


class Row(NamedTuple):
    """One row as the scan sees it."""

    inner: PyTree  # the sampler's own row
    draws: Any  # bool, whether its move draws noise


@pytree
class Selecting(SamplerWrapper):
    """A sampler that keeps one of M candidates a row; see `svdd`."""

    sampler: Any
    value: Any  # (view, condition) -> [B]
    alpha: Any
    candidates: int = static()
    sequential: bool = static(default=False)

    @property
    def nfe(self) -> int:
        """Network evaluations per sample: M in every row that draws."""
        draws = np.asarray(self.sampler.draws)
        once = _calls(self.sampler, ~draws)
        return self.candidates * (self.sampler.nfe - once) + once

    @property
    def steps(self) -> Row:
        return Row(self.sampler.steps, self.sampler.draws)

    def step(self, keys: Any, state: PyTree, step: Row, cond: PyTree) -> PyTree:
        if not isinstance(keys, jax.Array):  # draws of the exact law cannot cross a branch
            return self._selected(keys, state, step.inner, cond)
        return jax.lax.cond(
            step.draws,
            lambda: self._selected(keys, state, step.inner, cond),
            lambda: self.sampler.step(keys, state, step.inner, cond),
        )

    def _selected(self, keys: Any, state: PyTree, row: PyTree, cond: PyTree) -> PyTree:
        def draw(keys: Any) -> tuple[PyTree, Array]:
            moved = self.sampler.step(keys, state, row, cond)
            view = with_cond(self.sampler.view(moved), cond)
            value = self.value(view, cond)
            if jnp.shape(value) != view.x.shape[:1]:
                raise ValueError(f"the value has shape {jnp.shape(value)}, expected {view.x.shape[:1]}, one a sample")
            return moved, value

        jax.tree.map_with_path(partial(refuse_keys, what="all candidates of a row would be one"), state)
        moved, values = self._candidates(draw, keys)
        if jnp.shape(self.alpha) not in ((), values.shape[1:]):
            raise ValueError(f"alpha has shape {jnp.shape(self.alpha)} in a batch of {values.shape[1]}: it may be a "
                             f"number, or one a sample")  # fmt: skip
        none = jnp.isnan(values).any(axis=0) | ((self.alpha > 0) & (values == -jnp.inf).all(axis=0))
        return self._pick(state, moved, cond, self._choose(keys, values.T), none)

    def _candidates(self, draw: Callable[[Any], tuple[PyTree, Array]], keys: Any) -> tuple[PyTree, Array]:
        """(states, values) of all candidates, leading axis M; the first is the sampler's own."""
        if not isinstance(keys, jax.Array):
            every = [draw(keys.at(CANDIDATE_STREAM + m)) for m in range(self.candidates)]
            return jax.tree.map(lambda *leaves: jnp.stack(leaves), *every)
        numbers = jnp.arange(1, self.candidates, dtype=jnp.uint32)
        others = jax.vmap(lambda m: fold(keys, jnp.uint32(CANDIDATE_STREAM) + m))(numbers)
        every = jnp.concatenate([keys[None], others])
        return jax.lax.map(draw, every) if self.sequential else jax.vmap(draw)(every)

    def _choose(self, keys: Any, values: Array) -> Array:
        """One of M for each sample, in proportion to exp(value / alpha); the largest at alpha = 0."""
        alpha = jnp.asarray(self.alpha, values.dtype)
        alpha = jnp.broadcast_to(alpha, values.shape[:1])
        soft = values / jnp.where(alpha > 0, alpha, 1.0)[:, None]
        if isinstance(keys, jax.Array):
            drawn = jax.vmap(jax.random.categorical)(fold(keys, SELECTION_STREAM), soft)
        else:
            log_p = jax.nn.log_softmax(soft)[:, None]
            drawn = keys.at(SELECTION_STREAM).tokens(log_p, jnp.ones(log_p.shape[:2], bool))[:, 0]
        return jnp.where(alpha > 0, drawn, jnp.argmax(values, axis=-1))

    def _pick(self, state: PyTree, moved: PyTree, cond: PyTree, chosen: Array, none: Array) -> PyTree:
        """The chosen candidate of every leaf that belongs to a sample, NaN or a fault where `none` could be chosen; one
        for all of what does not.
        """
        own, x = jnp.arange(len(chosen)), self.sampler.view(state).x
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), len(x)))
        marks = follows_batch(self.sampler.init, keys, x, jax.tree.map(jnp.asarray, cond))
        picked = jax.tree.map(lambda leaf, mark: leaf[chosen, own] if mark else leaf[0], moved, marks)
        if not hasattr(_noting(state), "fault"):
            picked = jax.tree.map(lambda leaf, mark: _without(none, leaf) if mark else leaf, picked, marks)
        return _noted(state, moved, picked, none)


def svdd(
    sampler: Sampler,
    value: Callable[[View, PyTree], Array],
    alpha: Any,
    *,
    candidates: int,
    sequential: bool = False,
) -> Selecting:
    """SVDD, soft value-based decoding: M moves a row, one of them kept with probability prop. to exp(value / alpha).

    Targets p(x) exp(r(x) / alpha) / Z, exactly as M grows with the soft value alpha log E[exp(r / alpha) | x_t]; with
    the posterior-mean value r(x0) it is biased for rewards that are not linear. Bias O(1 / M) a row, no weights: `tds`
    and `fk_difference` are the unbiased relatives. M network calls a row that draws; the closing move selects nothing.

    Args:
        sampler: any stochastic sampler, a `discrete.Decoder` included.
        value: (view, condition) -> [B]: `posterior_mean(reward)`, of tokens `posterior_mode(model, reward)` (SVDD-PM,
            no training, any reward); a value function trained by `soft_value_loss` (SVDD-MC); of tokens also
            `x0_reward`, the soft value of a few completions, as is `sampled_value` of continuous states.
        alpha: temperature >= 0, a leaf, one for all or one a sample [B]; 0 keeps the best candidate, as the authors'
            code always does.
        candidates: M.
        sequential: one candidate at a time, with the memory of a plain run.

    Raises:
        ValueError: fewer than 1 candidate, a negative alpha, a sampler that draws no noise. From `sample`: one whose
            noise is not the row's own (a Brownian path), so that all candidates would be one.
        NonFiniteError, FloatingPointError: from `sample`, which names row and sample: a value that is NaN, or -inf for
            all candidates at alpha > 0. The sample is NaN from there on; tokens have a fault at position 0.

    Reference: Li et al. 2024, arXiv 2408.08252, algorithm 1.

    >>> import jax, diffsample as ds
    >>> process = ds.VariancePreserving()
    >>> table = ds.solvers.ddpm(process, ds.times.uniform_logsnr(process, 20), large=True)
    >>> sampler = ds.solvers.linear(ds.exact.Gaussian(0.0, 1.0), table)
    >>> best = svdd(sampler, ds.smc.posterior_mean(lambda x0, cond: -(x0 - 2) ** 2), 0.0, candidates=8)
    >>> bool(abs(ds.sample(jax.random.key(0), best, (64,)).mean() - 2) < 0.1)
    True
    """
    if not isinstance(candidates, int | np.integer) or candidates < 1:
        raise ValueError(f"candidates={candidates!r} must be a whole number of at least 1")
    if is_concrete(alpha) and np.any(np.asarray(alpha) < 0):
        raise ValueError(f"alpha={alpha} must not be negative; 0 keeps the best candidate")
    draws = getattr(sampler, "draws", None)
    if draws is None:
        raise TypeError(f"svdd needs a stochastic sampler that says which rows draw, got {type(sampler).__name__}")
    if is_concrete(draws) and not np.any(np.asarray(draws)):
        raise ValueError("the sampler draws no noise, so that all candidates are the same: use ddpm or ddim(eta=1)")
    return Selecting(sampler, as_pytree(value), alpha, candidates=int(candidates), sequential=sequential)


def _calls(sampler: Any, rows: np.ndarray) -> int:
    """Network evaluations a sample in some rows that draw nothing, in which wrappers add none."""
    while hasattr(sampler, "sampler"):
        sampler = sampler.sampler
    table = getattr(sampler, "tableau", None)
    if table is None or len(table.active) != len(rows):
        return int(rows.sum()) * (sampler.nfe // len(rows))
    return evaluations(sampler.denoiser, dataclasses.replace(table, active=np.asarray(table.active) & rows))


def _noting(state: PyTree) -> PyTree:
    """The state that notes faults or calls, inside of wrappers that carry it as `inner`; the innermost if none does."""
    while not any(hasattr(state, name) for name in ("fault", *COUNTERS)) and hasattr(state, "inner"):
        state = state.inner
    return state


def _noted(state: PyTree, moved: PyTree, picked: PyTree, none: Array) -> PyTree:
    """`picked`, with a fault where no candidate could be chosen, and the calls of all candidates, which were made."""
    if state is not _noting(state):
        return picked._replace(inner=_noted(state.inner, moved.inner, picked.inner, none))
    if hasattr(state, "fault"):
        picked = picked._replace(fault=jnp.where(none & (picked.fault < 0), 0, picked.fault))

    def of_all(name: str) -> Array:
        before, after = getattr(state, name), getattr(moved, name)
        return before + jnp.sum(after - before[None], axis=0)

    counters = [name for name in COUNTERS if hasattr(state, name)]
    return picked._replace(**{name: of_all(name) for name in counters}) if counters else picked


def _without(none: Array, leaf: Array) -> Array:
    """NaN for the samples in `none`, where the leaf can hold it."""
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    return jnp.where(none.reshape(-1, *(1,) * (leaf.ndim - 1)), jnp.asarray(jnp.nan, leaf.dtype), leaf)
