"""SVDD: at every row each sample draws several candidates and keeps one by its soft value; samples never meet.

The same code selects among continuous states and among tokens: a candidate is whatever the sampler's step makes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.denoiser import PyTree
from diffsample.sampler import Sampler, View, fold
from diffsample.smc.functions import as_pytree
from diffsample.struct import pytree, static
from diffsample.tableau import is_concrete

SELECTION_STREAM, CANDIDATE_STREAM = 2**32 - 4, 2**31  # beside the denoiser's and the resampling's


class Row(NamedTuple):
    """One row as the scan sees it."""

    inner: PyTree  # the sampler's own row
    draws: Any  # bool, whether its move draws noise


@pytree
class Selecting:
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
        once = int((~draws).sum()) * (self.sampler.nfe // len(draws))
        return self.candidates * (self.sampler.nfe - once) + once

    @property
    def steps(self) -> Row:
        return Row(self.sampler.steps, self.sampler.draws)

    def prior(self, keys: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        return self.sampler.prior(keys, shape, dtype)

    def init(self, keys: Array, x: Array, cond: PyTree) -> PyTree:
        return self.sampler.init(keys, x, cond)

    @property
    def dtype(self) -> Any:
        """That of the sampler's states."""
        return getattr(self.sampler, "dtype", jnp.float32)

    @property
    def done(self) -> Any:
        """The sampler's, where it may stop early."""
        return getattr(self.sampler, "done", None)

    def settled(self, state: PyTree) -> bool:
        """The sampler's."""
        return self.sampler.settled(state)

    def admit(self, shape: tuple[int, ...], x: Array | None) -> None:
        """The sampler's, where it has one."""
        getattr(self.sampler, "admit", _accept)(shape, x)

    def verify(self, out: Any) -> None:
        """The sampler's, where it has one."""
        getattr(self.sampler, "verify", _accept)(out)

    def step(self, keys: Any, state: PyTree, step: Row, cond: PyTree) -> PyTree:
        if not isinstance(keys, jax.Array):  # draws of the exact law cannot cross a branch
            return self._selected(keys, state, step.inner, cond)
        return jax.lax.cond(
            step.draws,
            lambda: self._selected(keys, state, step.inner, cond),
            lambda: self.sampler.step(keys, state, step.inner, cond),
        )

    def finish(self, keys: Array, state: PyTree, cond: PyTree) -> Any:
        return self.sampler.finish(keys, state, cond)

    def view(self, state: PyTree) -> View:
        return self.sampler.view(state)

    def _selected(self, keys: Any, state: PyTree, row: PyTree, cond: PyTree) -> PyTree:
        def draw(keys: Any) -> tuple[PyTree, Array]:
            moved = self.sampler.step(keys, state, row, cond)
            view = self.sampler.view(moved)
            value = self.value(view._replace(cond=cond), cond)
            if jnp.shape(value) != view.x.shape[:1]:
                raise ValueError(f"the value has shape {jnp.shape(value)}, expected {view.x.shape[:1]}, one a sample")
            return moved, value

        moved, values = self._candidates(draw, keys)
        return self._pick(state, moved, cond, self._choose(keys, values.T))

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
        soft = values / jnp.where(alpha > 0, alpha, 1.0)
        if isinstance(keys, jax.Array):
            drawn = jax.vmap(jax.random.categorical)(fold(keys, SELECTION_STREAM), soft)
        else:
            log_p = jax.nn.log_softmax(soft)[:, None]
            drawn = keys.at(SELECTION_STREAM).tokens(log_p, jnp.ones(log_p.shape[:2], bool))[:, 0]
        return jnp.where(alpha > 0, drawn, jnp.argmax(values, axis=-1))

    def _pick(self, state: PyTree, moved: PyTree, cond: PyTree, chosen: Array) -> PyTree:
        """The chosen candidate of every leaf that belongs to a sample; one for all of what does not."""
        own = jnp.arange(len(chosen))
        marks = follows_batch(self.sampler, self.sampler.view(state).x, cond)
        picked = jax.tree.map(lambda leaf, mark: leaf[chosen, own] if mark else leaf[0], moved, marks)
        if not hasattr(state, "calls"):
            return picked
        before, after = (state.calls, state.executed), (moved.calls, moved.executed)  # those of all were made
        calls, executed = (old + jnp.sum(new - old[None], axis=0) for old, new in zip(before, after, strict=True))
        return picked._replace(calls=calls, executed=executed)


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
        alpha: temperature >= 0, a leaf; 0 keeps the best candidate, as the authors' code always does.
        candidates: M.
        sequential: one candidate at a time, with the memory of a plain run.

    Raises:
        ValueError: fewer than 1 candidate, a negative alpha, a sampler that draws no noise.

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


def _accept(*given: Any) -> None:
    """Nothing to refuse."""


def follows_batch(sampler: Any, x: Array, cond: PyTree) -> PyTree:
    """Which leaves of a sampler's state belong to a sample: those whose first axis follows the batch."""
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), len(x)))

    def shapes(times: int) -> PyTree:
        def longer(leaf: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((times * leaf.shape[0], *leaf.shape[1:]), leaf.dtype)

        return jax.eval_shape(sampler.init, *jax.tree.map(longer, (keys, x, jax.tree.map(jnp.asarray, cond))))

    return jax.tree.map(lambda one, two: one.shape != two.shape, shapes(1), shapes(2))
