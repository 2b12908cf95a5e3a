"""PaRIS: the smoothed value of an additive functional, carried forward with every particle.

For h = h_0(x_0) + sum_k h_k(x_k-1, x_k) each new particle draws M parents anew, J ~ W_k-1 M_k(x_k | .) G_k, and
averages their statistics: beta_k = (1/M) sum_m [beta_k-1(J_m) + h_k(x_J_m, x_k)]. The estimate of Q(h) is the weighted
mean of beta_n. Nothing of the past is stored. M = 1 degenerates with n; M >= 2 does not.

Reference: Olsson & Westerborn 2017, arXiv 1412.7550; Dau & Chopin 2022, arXiv 2207.00976 (rejection with an exact
draw after a given number of trials).
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.denoiser import PyTree
from diffsample.smc.paths.filter import Collector, Generation
from diffsample.smc.paths.models import PathModel, log_link, take
from diffsample.struct import pytree, static

# (key, model, before, now, row, M) -> int32 [N, M], parents of each particle
ParentDraw: TypeAlias = Callable[[Array, PathModel, Generation, Generation, PyTree, int], Array]


def dense(key: Array, model: PathModel, before: Generation, now: Generation, row: PyTree, draws: int) -> Array:
    """Parents from all N odds of each particle: N^2 densities a generation, in bulk."""

    def parents(key: Array, x: PyTree, seen: PyTree) -> Array:
        link = before.log_w + log_link(model, before.seen, x, seen, row)
        return jax.random.categorical(key, link, shape=(draws,))

    n = before.log_w.shape[0]
    return jax.vmap(parents)(jax.random.split(key, n), now.x, now.seen).astype(jnp.int32)


@pytree
class Rejection:
    """Parents by rejection from the weights; what `trials` trials leave undecided is drawn densely. The same law.

    Costs about N M densities a trial. Under `vmap` the dense draw is always computed as well.

    Args:
        bound: function (seen `[N]`, row) -> `[N]`: an upper bound over all x_k-1 of log M_k(x_k | x_k-1) +
            log G_k(x_k-1, x_k), in the model's own constants. A pair above it makes the statistic NaN.
        trials: before the dense draw.
    """

    bound: Callable[[PyTree, PyTree], Array] = static()
    trials: int = static(default=16)

    def __call__(
        self, key: Array, model: PathModel, before: Generation, now: Generation, row: PyTree, draws: int
    ) -> Array:
        last, trial = jax.random.split(key)
        n, bound = before.log_w.shape[0], self.bound(now.seen, row)

        def log_accept(parents: Array) -> Array:
            seen = take(before.seen, parents)
            density = model.log_transition(seen, now.x, row) + model.log_potential(seen, now.seen, row)
            return density - bound

        def attempt(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
            i, chosen, done, broken = carry
            propose, decide = jax.random.split(jax.random.fold_in(trial, i))
            parents = jax.random.categorical(propose, before.log_w, shape=(n, draws)).astype(jnp.int32)
            odds = jax.vmap(log_accept, 1, 1)(parents)
            accept = jnp.log(jax.random.uniform(decide, odds.shape, odds.dtype)) < odds
            broken |= jnp.any(odds > 1e-4)
            return i + 1, jnp.where(done, chosen, parents), done | accept, broken

        nothing = (
            jnp.zeros((), int),
            jnp.zeros((n, draws), jnp.int32),
            jnp.zeros((n, draws), bool),
            jnp.zeros((), bool),
        )
        _, chosen, done, broken = jax.lax.while_loop(
            lambda carry: (carry[0] < self.trials) & ~jnp.all(carry[2]), attempt, nothing
        )
        exact = jax.lax.cond(jnp.all(done), lambda: chosen, lambda: dense(last, model, before, now, row, draws))
        return jnp.where(broken, -1, jnp.where(done, chosen, exact))


@pytree
class Paris(Collector):
    """The collector of PaRIS, for `particle_filter` and for `ConditionalSMC`, where the reference is redrawn too.

    Args:
        step: function (seen_k-1, seen_k, row) -> `[N, ...]`, h_k of pairs, batched over particles.
        start: function (seen_0, row) -> `[N, ...]`, h_0.
        draws: M, parents of each particle; at least 2.
        parents: `dense` or a `Rejection`.

    Raises:
        ValueError: fewer than two draws.

    >>> Paris(lambda before, after, row: before * after, lambda after, row: 0 * after).draws
    2
    """

    step: Callable[[PyTree, PyTree, PyTree], Array] = static()
    start: Callable[[PyTree, PyTree], Array] = static()
    draws: int = static(default=2)
    parents: ParentDraw = static(default=dense)

    def __post_init__(self) -> None:
        if self.draws < 2:
            raise ValueError(
                f"draws={self.draws}: with one parent PaRIS degenerates like the genealogy; use at least 2"
            )

    def init(self, now: Generation, row: PyTree) -> Array:
        return self.start(now.seen, row)

    def update(
        self, key: Array, model: PathModel, before: Generation, now: Generation, row: PyTree, stat: Array
    ) -> Array:
        parents = self.parents(key, model, before, now, row, self.draws)

        def once(parents: Array) -> Array:
            return take(stat, parents) + self.step(take(before.seen, parents), now.seen, row)

        averaged = jnp.mean(jax.vmap(once, 1)(parents), axis=0)
        return jnp.where(jnp.any(parents < 0), jnp.nan, averaged)


def weighted_mean(values: Array, log_w: Array) -> Array:
    """sum_i W_i values_i, [...]: with the statistic of `Paris`, its estimate of Q(h)."""
    return jnp.tensordot(jax.nn.softmax(log_w), values, axes=1)
