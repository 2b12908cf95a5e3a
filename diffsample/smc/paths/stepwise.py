"""Rewards scored at every step of a path, as a model whose target is the final reward alone.

A score r_k(x_k) of each partial solution steers the particles; the potentials are the differences r_k - r_k-1, which
telescope, so the target is base(x_0:n) exp(r_n(x_n) / T) whatever the intermediate scores. Weighing by exp(r_k / T)
itself at every step would instead target the product of all steps' scores.

Reference: Puri et al. 2025, arXiv 2502.01618 (particle Gibbs and parallel tempering over partial solutions; there the
weights do not telescope).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.denoiser import PyTree
from diffsample.smc.paths.conditional import ConditionalSMC
from diffsample.smc.paths.filter import Path
from diffsample.smc.paths.gibbs import states
from diffsample.smc.paths.models import PathModel
from diffsample.struct import pytree, static


class Scored(NamedTuple):
    """What the base model sees, and the score there."""

    seen: PyTree
    log_reward: Array  # [N]


@pytree
class StepwiseReward(PathModel):
    """A path model tilted by the final reward at a temperature, guided by the rewards of partial paths.

    Q(x_0:n) is proportional to base(x_0:n) exp(r_n(x_n) / temperature).

    Args:
        model: the base model; its own potentials stay.
        log_reward: function (seen, row) -> `[N]`, r_k, for example the logit of a reward model's probability.
        temperature: T > 0, a leaf.

    >>> from diffsample.smc import GaussianModel
    >>> walk = GaussianModel(jnp.zeros(1), 1.0, lambda x, y: x, 0.5, lambda x, y: 0 * x[:, 0], jnp.ones(4))
    >>> tilted = StepwiseReward(walk, lambda x, row: -jnp.sum(x**2, 1), temperature=0.5)
    >>> tilted.log_start(tilted.look(jnp.ones((2, 1)), (1.0, 0.5)), (1.0, 0.5)).tolist()
    [-2.0, -2.0]
    """

    model: PathModel
    log_reward: Callable[[PyTree, PyTree], Array] = static()
    temperature: Any = 1.0

    @property
    def rows(self) -> PyTree:
        return self.model.rows

    def draw(self, keys: Array, row: PyTree) -> PyTree:
        return self.model.draw(keys, row)

    def look(self, x: PyTree, row: PyTree) -> Scored:
        seen = self.model.look(x, row)
        return Scored(seen, self.log_reward(seen, row))

    def move(self, keys: Array, before: Scored, row: PyTree) -> PyTree:
        return self.model.move(keys, before.seen, row)

    def log_transition(self, before: Scored, x: PyTree, row: PyTree) -> Array:
        return self.model.log_transition(before.seen, x, row)

    def log_start(self, after: Scored, row: PyTree) -> Array:
        return self.model.log_start(after.seen, row) + after.log_reward / self.temperature

    def log_potential(self, before: Scored, after: Scored, row: PyTree) -> Array:
        gained = (after.log_reward - before.log_reward) / self.temperature
        return self.model.log_potential(before.seen, after.seen, row) + gained


class Tempered(NamedTuple):
    """A parallel tempering run; chain i has temperature i."""

    paths: Path  # leaves [M, n + 1, ...]: the last references
    kept: PyTree  # leaves [sweeps, M, ...]: what was kept of each path, after the exchange
    accepted: Array  # [M - 1], share of the proposed exchanges of chains i and i + 1 that were made


def parallel_tempering(
    key: Array,
    model: StepwiseReward,
    temperatures: Array,
    paths: Path,
    sweeps: int,
    kernel: ConditionalSMC,
    *,
    keep: Callable[[Path], PyTree] = states,
) -> Tempered:
    """M particle Gibbs chains at rising temperatures that exchange references.

    After each sweep neighbours (0,1), (2,3), ... or, every other time, (1,2), (3,4), ... exchange paths with
    probability min(1, exp((1/T_i - 1/T_j) (R_j - R_i))), R the path's final reward. Chain i keeps the target of
    temperature i exactly; hot chains move between modes. Costs M N looks a generation and sweep.

    Args:
        key: typed key.
        model: the tilted model; its own temperature is not read.
        temperatures: `[M]`, positive; usually the first is the one wanted.
        paths: the first references, leaves `[M, n + 1, ...]`, from `jax.vmap(path_of)`.
        sweeps, kernel, keep: as for `particle_gibbs`; `keep` sees one path.

    Raises:
        ValueError: fewer than two temperatures.

    Reference: Puri et al. 2025, arXiv 2502.01618; Geyer 1991 (the exchange).

    >>> from diffsample.smc import GaussianModel, path_of
    >>> walk = GaussianModel(jnp.zeros(1), 1.0, lambda x, y: x, 0.5, lambda x, y: 0 * x[:, 0], jnp.ones(4))
    >>> tilted = StepwiseReward(walk, lambda x, row: -jnp.sum(x**2, 1))
    >>> starts = jax.vmap(lambda x: path_of(tilted, x))(jnp.zeros((2, 4, 1)))
    >>> made = parallel_tempering(jax.random.key(0), tilted, jnp.array([1.0, 4.0]), starts, 10, ConditionalSMC(8))
    >>> made.kept.shape
    (10, 2, 4, 1)
    """
    chains = jnp.shape(temperatures)[0]
    if chains < 2:
        raise ValueError(f"temperatures has {chains} entries; parallel tempering exchanges at least 2 chains")
    inverse = 1 / jnp.asarray(temperatures)

    def at(temperature: Array, key: Array, path: Path) -> Path:
        return kernel(key, dataclasses.replace(model, temperature=temperature), path).path

    def sweep(carry: tuple[Path, Array], step: tuple[Array, Array]) -> tuple[tuple[Path, Array], PyTree]:
        (paths, made), (k, key) = carry, step
        run, exchange = jax.random.split(key)
        paths = jax.vmap(at)(jnp.asarray(temperatures), jax.random.split(run, chains), paths)
        reward = paths.seen.log_reward[:, -1]
        lower = jnp.arange(chains - 1)
        log_odds = (inverse[:-1] - inverse[1:]) * (reward[1:] - reward[:-1])
        uniform = jax.random.uniform(exchange, log_odds.shape, log_odds.dtype)
        swap = (jnp.log(uniform) < log_odds) & (lower % 2 == k % 2)
        source = jnp.arange(chains).at[:-1].add(swap).at[1:].add(-swap.astype(int))
        paths = jax.tree.map(lambda leaf: leaf[source], paths)
        return (paths, made + swap), jax.vmap(keep)(paths)

    steps = (jnp.arange(sweeps), jax.random.split(key, sweeps))
    (paths, made), kept = jax.lax.scan(sweep, (paths, jnp.zeros(chains - 1, int)), steps)
    proposed = (sweeps + 1 - jnp.arange(chains - 1) % 2) // 2
    return Tempered(paths, kept, made / jnp.maximum(proposed, 1))
