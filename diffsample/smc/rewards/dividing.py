"""Divide-and-conquer posterior sampling (DCPS): a way to p(x | y) by blocks, each with a posterior of its own to reach.

The levels are cut into blocks. At the level e where a block ends the target is p_e(x) g_e(x), g_e a tempered likelihood
of x / alpha_e,

    log g_e(x) = w_e log p(y | x / alpha_e),      w_e = alpha_e^2 / (alpha_e^2 + sigma_e^2),

and g_e is what a state x_t of the block is worth, psi(x_t) = g_e(E[x_e | x_t, x0]), through the bridge of the forward
process between x_t and its predicted x0. A block opens with tamed Langevin steps on p_t psi; each of its moves then
draws from the diagonal Gaussian nearest, by KL divergence, to the solver's own kernel times g_e of the bridge.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.denoiser import Point, PyTree, expand
from diffsample.sampler import Kernel, Sampler, View, fold, normal
from diffsample.smc.functions import as_pytree
from diffsample.smc.potentials import Closing, Potential, Transition
from diffsample.smc.products.master import total
from diffsample.smc.rewards.own_moves import all_levels, call_at, refuse_padding
from diffsample.struct import pytree, static
from diffsample.tableau import is_concrete

FIT_STREAM, LANGEVIN_STREAM = 2**30, 2**29  # beside the denoiser's, the resampling's and the candidates'


class Bridge(NamedTuple):
    """From a level to the end of a block: x_e = state x + clean x0 + std z; scalars, or [n]."""

    state: Any
    clean: Any
    std: Any
    strength: Any  # w_e
    alpha: Any  # of the end


class DividedRow(NamedTuple):
    """One row as the scan sees it."""

    inner: PyTree
    draws: Any  # bool, whether its move draws noise
    opens: Any  # bool, whether Langevin steps stand before its call
    reached: Bridge  # from its level to the end of the block that its move belongs to
    coming: Bridge  # to the end of the block that follows; the same inside of a block


class Conquest(NamedTuple):
    """Memory of a divided sampler, with the network's."""

    log_psi: Array  # [B] of the state
    log_ratio: Array  # [B] log p - log K of the move that led to it
    inner: PyTree


class DividedState(NamedTuple):
    inner: PyTree
    log_psi: Array
    log_ratio: Array


@pytree
class Divided:
    """A one-register linear solver whose moves are fitted to the blocks' posteriors; see `dcps`."""

    linear: Any
    log_likelihood: Any
    reached: Bridge  # [n] each
    coming: Bridge
    opens: Any  # [n] bool
    step_size: Any
    rate: Any
    langevin: int = static()
    fits: int = static()

    @property
    def nfe(self) -> int:
        """Calls of the table, of the fits in rows that draw, and of the Langevin steps."""
        extra = self.fits * int(np.sum(np.asarray(self.draws))) + self.langevin * int(np.sum(np.asarray(self.opens)))
        return self.linear.nfe + extra * self.linear.denoiser.evaluations

    @property
    def draws(self) -> Any:
        return self.linear.draws

    @property
    def steps(self) -> DividedRow:
        return DividedRow(self.linear.steps, self.draws, jnp.asarray(self.opens), self.reached, self.coming)

    def prior(self, keys: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        return self.linear.prior(keys, shape, dtype)

    def init(self, keys: Array, x: Array, cond: PyTree) -> DividedState:
        zero = jnp.zeros(x.shape[:1], x.dtype)
        return DividedState(self.linear.init(keys, x, cond), zero, zero)

    def step(self, keys: Array, state: DividedState, step: DividedRow, cond: PyTree) -> DividedState:
        law = self.linear.kernel(state.inner, step.inner)
        x, log_ratio = jax.lax.cond(
            step.draws,
            lambda: self._fitted(keys, law, state.inner.memory, step, cond),
            lambda: (law.mean, jnp.zeros_like(state.log_ratio)),
        )
        if self.langevin:
            memory = state.inner.memory
            x = jax.lax.cond(step.opens, lambda: self._opened(keys, x, memory, step, cond), lambda: x)
        inner = call_at(self.linear, keys, state.inner, x, step.inner, cond)
        return DividedState(inner, self._log_psi(x, inner.prediction.x0, step.coming, cond), log_ratio)

    def finish(self, keys: Array, state: DividedState, cond: PyTree) -> Array:
        """The table's own closing move."""
        return self.linear.finish(keys, state.inner, cond)

    def view(self, state: DividedState) -> View:
        view = self.linear.view(state.inner)
        return view._replace(memory=Conquest(state.log_psi, state.log_ratio, view.memory))

    def _log_psi(self, x: Array, x0: Array, bridge: Bridge, cond: PyTree, z: Any = 0.0) -> Array:
        """log g_e of the bridge at its mean, or at a draw z."""
        state, clean, std, strength, alpha = (jnp.asarray(v, x.dtype) for v in bridge)
        value = self.log_likelihood((state * x + clean * x0 + std * z) / alpha, cond)
        if jnp.shape(value) != x.shape[:1]:
            raise ValueError(f"the log-likelihood has shape {jnp.shape(value)}; it must be one a sample, {x.shape[:1]}")
        return strength * value

    def _fitted(self, keys: Array, law: Kernel, memory: PyTree, step: DividedRow, cond: PyTree) -> tuple[Array, Array]:
        """(a draw of K = N(mean + std u, std^2 exp(2 v)) after the fit of u and v, log p - log K of it)."""
        mean, std, length = law.mean, expand(law.std, law.mean), self.rate * math.sqrt(law.mean[0].size)

        def lost(u: Array, v: Array, keys: Array) -> Array:
            z, other = (normal(fold(keys, i), mean.shape, mean.dtype) for i in range(2))
            x = mean + std * (u + jnp.exp(v) * z)
            x0 = self._predict(x, keys, memory, step, cond)[0]
            divergence = 0.5 * total(u**2 + jnp.exp(2 * v) - 2 * v - 1)
            return (divergence - self._log_psi(x, x0, step.reached, cond, other)).sum()

        def improved(i: Array, fit: tuple[Array, Array]) -> tuple[Array, Array]:
            slopes = jax.grad(lost, (0, 1))(*fit, fold(keys, FIT_STREAM + jnp.uint32(i)))
            u, v = (value - length * _direction(slope) for value, slope in zip(fit, slopes, strict=True))
            return u, v

        u, v = jax.lax.fori_loop(0, self.fits, improved, (jnp.zeros_like(mean), jnp.zeros_like(mean)))
        z = normal(keys, mean.shape, mean.dtype)
        moved = u + jnp.exp(v) * z
        return mean + std * moved, total(0.5 * (z**2 - moved**2) + v)

    def _opened(self, keys: Array, x: Array, memory: PyTree, step: DividedRow, cond: PyTree) -> Array:
        """Tamed Langevin steps on p_t psi."""
        level = step.inner.now
        size = jnp.asarray(self.step_size * (level.alpha**2 + level.sigma**2), x.dtype)

        def value(x: Array, keys: Array) -> tuple[Array, Array]:
            x0, eps = self._predict(x, keys, memory, step, cond)
            return self._log_psi(x, x0, step.coming, cond).sum(), eps

        def moved(i: Array, x: Array) -> Array:
            own = fold(keys, LANGEVIN_STREAM + jnp.uint32(i))
            slope, eps = jax.grad(value, has_aux=True)(x, own)
            slope = slope - eps / expand(level.sigma, x)
            tamed = size / (1 + size * jnp.sqrt(total(slope**2)))
            return x + expand(tamed, x) * slope + jnp.sqrt(2 * size) * normal(own, x.shape, x.dtype)

        return jax.lax.fori_loop(0, self.langevin, moved, x)

    def _predict(self, x: Array, keys: Array, memory: PyTree, step: DividedRow, cond: PyTree) -> Any:
        row = step.inner
        return self.linear.denoiser(x, Point(row.now, row.next, row.index, row.stage, keys), cond, memory)[0]


@pytree
class DividedWeight(Potential):
    """The weights that make a divided sampler exact; see `dcps_weight`."""

    log_likelihood: Any

    def check(self, sampler: Sampler) -> None:
        if not isinstance(sampler, Divided):
            raise ValueError(f"dcps_weight weighs the moves of dcps, and found a {type(sampler).__name__}")
        if sampler.langevin:
            raise ValueError(f"langevin={sampler.langevin} steps have no density to be weighed by: use "
                             f"dcps(..., langevin=0)")  # fmt: skip

    def start(self, view: View) -> tuple[Array, PyTree]:
        return view.memory.log_psi, ()

    def __call__(self, transition: Transition, memory: PyTree) -> tuple[Array, PyTree]:
        before, after = transition.before.memory, transition.after.memory
        return after.log_ratio + after.log_psi - before.log_psi, memory

    def finish(self, closing: Closing, memory: PyTree) -> Array:
        return self.log_likelihood(closing.x, closing.before.cond) - closing.before.memory.log_psi


def dcps(
    linear: Any,
    log_likelihood: Callable[[Array, PyTree], Array],
    *,
    blocks: int = 4,
    langevin: int = 10,
    step_size: Any = 1e-3,
    fits: int = 2,
    rate: Any = 0.2,
) -> Divided:
    """DCPS, divide-and-conquer posterior sampling: blocks with posteriors of their own, Langevin steps, fitted moves.

    A sampler of p(x | y), biased as its fits and its bridges are; less with more blocks. With langevin=0,
    `feynman_kac(sampler, dcps_weight(sampler), particles=K)` makes it exact. A row calls the network 1 + fits times, a
    block langevin times more; all but one of them with a vector-Jacobian product.

    Args:
        linear: `solvers.linear(denoiser, table)` of one register and with noise: `ddpm`, `ddim(eta=1)`.
        log_likelihood: (x [B, ...], condition) -> log p(y | x) [B], with a gradient; for y = A x + n the second of
            `linear_twist`.
        blocks: L, of about equally many rows.
        langevin: steps that open a block. step_size: gamma of them, in units of alpha^2 + sigma^2; a leaf.
        fits: gradient steps on mean and log-variance of a move, each with draws of its own.
        rate: root mean square length of such a step, of the mean in units of the kernel's deviation; a leaf. The
            released code takes steps of length 1 in d dimensions: 1 / (std sqrt(d)) and 1 / sqrt(d).

    Raises:
        TypeError: a wrapped sampler.
        ValueError: a table of several registers, without noise or with padding, more blocks than rows, negative counts
            or sizes.

    Reference: Janati et al. 2024, arXiv 2403.11407, algorithm 1 and its released code.

    >>> import jax, diffsample as ds
    >>> process = ds.VariancePreserving()
    >>> linear = ds.solvers.linear(ds.exact.Gaussian(0.0, 1.0), ds.solvers.ddpm(process, ds.times.uniform(process, 8)))
    >>> dcps(linear, lambda x, cond: -((x - 1.0) ** 2), blocks=2, langevin=5).nfe
    32
    """
    levels, n = all_levels(linear), linear.tableau.rows
    refuse_padding(linear, "blocks")
    if not 1 <= blocks <= n or min(langevin, fits) < 0:
        raise ValueError(f"blocks={blocks} must be 1 to {n} rows, langevin={langevin} and fits={fits} not negative")
    if is_concrete((step_size, rate)) and not (np.all(np.asarray(step_size) > 0) and np.all(np.asarray(rate) > 0)):
        raise ValueError(f"step_size={step_size} and rate={rate} must be positive")
    if not np.any(np.asarray(linear.draws)):
        raise ValueError(f"{linear.tableau.about.name} draws no noise, so that no move can be fitted: use ddpm")
    ends = np.round(np.linspace(0, n, blocks + 1)[1:]).astype(int)
    at = np.arange(n)
    reached = _bridge(levels, at, ends[np.searchsorted(ends, at)])
    coming = _bridge(levels, at, ends[np.searchsorted(ends, at, side="right")])
    opens = (at == 0) | np.isin(at, ends)
    return Divided(linear, as_pytree(log_likelihood), reached, coming, opens, step_size, rate, langevin, fits)


def dcps_weight(sampler: Divided) -> DividedWeight:
    """The potential under which `feynman_kac` over `dcps(..., langevin=0)` is exact: kernel ratios and ratios of psi.

    exp(log_z) is an unbiased estimate of p(y) under the plain sampler, for any fit and any number of blocks. psi knows
    nothing of how uncertain x0 is, like the `naive` twist, so that weights have heavy tails where y is precise: for
    log p(y) itself `tds` with the `inflated` twist varies less.

    Args:
        sampler: from `dcps`.

    >>> import jax, diffsample as ds
    >>> process = ds.VariancePreserving()
    >>> table = ds.solvers.ddpm(process, ds.times.uniform_logsnr(process, 12), large=True)
    >>> linear = ds.solvers.linear(ds.exact.Gaussian(0.0, 1.0), table)
    >>> one = dcps(linear, lambda x, cond: -0.5 * (x - 1.0) ** 2, blocks=2, langevin=0)
    >>> out = ds.sample(jax.random.key(0), ds.smc.feynman_kac(one, dcps_weight(one), particles=256), (256,))
    >>> bool(abs(out.mean(out.x)[0] - 0.5) < 0.2)
    True
    """
    return DividedWeight(sampler.log_likelihood)


def _bridge(levels: Any, at: np.ndarray, end: np.ndarray) -> Bridge:
    """q(x_e | x_t, x0) of the forward process between the levels `at` and `end`."""
    (_, a, s), (_, b, r) = ([np.asarray(v)[i] for v in levels] for i in (at, end))
    same = at == end
    share = np.where(same, 1.0, a / b * (r / s) ** 2)
    std = np.where(same, 0.0, r * np.sqrt(np.maximum(1 - (a * r / (b * s)) ** 2, 0.0)))
    clean = np.where(same, 0.0, b - share * a)
    return Bridge(*map(jnp.asarray, (share, clean, std, b**2 / (b**2 + r**2), b)))


def _direction(slope: Array) -> Array:
    """The slope over its norm, of every sample; 0 where there is none."""
    square = total(slope**2)
    return slope / expand(jnp.sqrt(jnp.where(square > 0, square, 1.0)), slope)
