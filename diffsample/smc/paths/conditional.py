"""Conditional SMC: a cloud of particles around a reference path, and the choice of a new path from it.

Slot 0 holds the reference at every generation. One sweep (cloud, then choice) is a Markov kernel on paths that leaves
Q invariant for every N >= 2; how fast it mixes depends on the choice. `ancestral_tracing` follows the genealogy, which
near x_0 is almost always the reference's own; `backward_sampling` draws each parent anew; ancestor sampling draws the
reference's parent anew on the way forward.

Reference: Andrieu, Doucet & Holenstein 2010 (JRSS B 72, 269); Whiteley 2010 (its discussion: backward sampling);
Lindsten, Jordan & Schoen 2014, arXiv 1401.0604 (ancestor sampling).
"""

import inspect
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.denoiser import PyTree
from diffsample.smc.functions import Plain
from diffsample.smc.paths.conditional_resampling import conditional_multinomial
from diffsample.smc.paths.filter import Collector, Generation, Path, run_filter
from diffsample.smc.paths.models import PathModel, later_rows, log_link, take
from diffsample.smc.policies import Policy, always
from diffsample.smc.resamplers.resampling import Resampler
from diffsample.struct import pytree, static


class Sweep(NamedTuple):
    """What one sweep leaves."""

    path: Path  # the new reference
    last: Generation  # the final generation
    statistic: PyTree  # the collector's, for each particle of the final generation


def ancestral_tracing(key: Array, model: PathModel, cloud: Generation) -> Path:
    """A final particle drawn by its weight, and its ancestors by genealogy; needs no density."""
    last = jax.random.categorical(key, cloud.log_w[-1]).astype(jnp.int32)

    def parent(index: Array, ancestors: Array) -> tuple[Array, Array]:
        return ancestors[index], index

    return _along(cloud, jax.lax.scan(parent, last, cloud.ancestors, reverse=True)[1])


def backward_sampling(key: Array, model: PathModel, cloud: Generation) -> Path:
    """A final particle drawn by its weight, and each parent drawn anew with odds W_k-1 M_k(x_k | x_k-1) G_k.

    Backward sampling costs N densities a generation and no network call.
    """
    end, back = jax.random.split(key)
    last = jax.random.categorical(end, cloud.log_w[-1]).astype(jnp.int32)
    before, after = jax.tree.map(lambda leaf: leaf[:-1], cloud), later_rows(cloud)

    def parent(index: Array, step: tuple) -> tuple[Array, Array]:
        key, before, after, row = step
        x, seen = take((after.x, after.seen), index)
        link = before.log_w + log_link(model, before.seen, x, seen, row)
        return jax.random.categorical(key, link).astype(jnp.int32), index

    rows = later_rows(model.rows)
    steps = (jax.random.split(back, cloud.log_w.shape[0] - 1), before, after, rows)
    first, rest = jax.lax.scan(parent, last, steps, reverse=True)
    return _along(cloud, jnp.concatenate([first[None], rest]))


def _along(cloud: Generation, indices: Array) -> Path:
    return jax.vmap(take)(Path(cloud.x, cloud.seen), indices)


@pytree
class ConditionalSMC:
    """The conditional SMC kernel: (key, model, path) -> `Sweep` with a new path; leaves Q invariant.

    Costs N looks (network calls) a generation.

    Args:
        particles: N >= 2, the reference's included.
        choose: `backward_sampling` (default), `ancestral_tracing`, or any function (key, model, generations) -> `Path`.
        resample: `conditional_multinomial`, `conditional_systematic` or `conditional_killing`.
        ancestor_sampling: draw the reference's parent anew wherever the cloud is resampled.
        policy: (log_w `[N]`, k) -> bool, when to resample; without resampling the weights are carried on. It must not
            depend on the order of the particles.

    `backward_sampling` and ancestor sampling need the model's `log_transition`. Where the moves are narrow against the
    distance of particles (images, many small steps) both choose the true parent almost surely; see `Renoise`.

    Raises:
        ValueError: fewer than two particles.

    >>> def log_g(x, y):
    ...     return -jnp.sum((x - y)**2, 1)
    >>> from diffsample.smc import GaussianModel, path_of
    >>> walk = GaussianModel(jnp.zeros(1), 1.0, lambda x, y: x, 0.5, log_g, jnp.ones(4))
    >>> kernel = ConditionalSMC(8)
    >>> kernel(jax.random.key(0), walk, path_of(walk, jnp.zeros((4, 1)))).path.x.shape
    (4, 1)
    """

    particles: int = static()
    choose: Callable[[Array, PathModel, Generation], Path] = static(default=backward_sampling)
    resample: Resampler = static(default=conditional_multinomial)
    ancestor_sampling: bool = static(default=False)
    policy: Policy = Plain(always)

    def __post_init__(self) -> None:
        if self.particles < 2:
            raise ValueError(f"particles={self.particles}: a cloud around a reference needs at least 2")
        if inspect.isfunction(self.policy):
            vars(self)["policy"] = Plain(self.policy)

    def __call__(self, key: Array, model: PathModel, path: Path, collector: Collector | None = None) -> Sweep:
        forward, end = jax.random.split(key)
        cloud, statistic = run_filter(
            forward, model, self.particles, self.resample, self.policy, path, self.ancestor_sampling, collector
        )
        last = jax.tree.map(lambda leaf: leaf[-1], cloud)
        return Sweep(self.choose(end, model, cloud), last, statistic)
