"""Particle Gibbs: chains of conditional SMC sweeps, plain and with PaRIS on top.

Every chain here has Q as its stationary law for any number of particles; more particles mix faster.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import Array

from diffsample.denoiser import PyTree
from diffsample.smc.estimators.estimates import Estimate, chain_mean
from diffsample.smc.paths.conditional import ConditionalSMC
from diffsample.smc.paths.filter import Collector, Path
from diffsample.smc.paths.models import PathModel
from diffsample.smc.paths.paris import Paris, weighted_mean


class Chain(NamedTuple):
    """A particle Gibbs run."""

    path: Path  # the last reference, to go on from
    kept: PyTree  # leaves [sweeps, ...]: what was kept of each sweep's new path
    estimates: PyTree  # leaves [sweeps, ...]: weighted means of the collector's statistic
    log_z: Array  # [sweeps], of each cloud around its reference; NaN where a potential was NaN


def states(path: Path) -> PyTree:
    """The path's x."""
    return path.x


def particle_gibbs(
    key: Array,
    model: PathModel,
    path: Path,
    sweeps: int,
    kernel: ConditionalSMC,
    *,
    collector: Collector | None = None,
    refresh: Callable[[Array, Path], Path] | None = None,
    keep: Callable[[Path], PyTree] = states,
) -> Chain:
    """Particle Gibbs: each sweep runs conditional SMC around the last path and chooses the next from the cloud.

    Costs N looks (network calls) a generation and sweep. One chain; `jax.vmap` over key and path runs many.

    Args:
        key: typed key.
        path: the first reference, from `path_of` or a former chain.
        sweeps: how many.
        kernel: the conditional SMC kernel.
        collector: statistic carried by the particles, for example `Paris`.
        refresh: move (key, path) -> path that leaves Q invariant, made before each sweep; see `Renoise`.
        keep: what to keep of each new path; the whole is n + 1 states.

    Returns:
        `Chain`.

    Reference: Andrieu, Doucet & Holenstein 2010 (JRSS B 72, 269).

    >>> def log_g(x, y):
    ...     return -jnp.sum((x - y)**2, 1)
    >>> import jax.numpy as jnp
    >>> from diffsample.smc import GaussianModel, path_of
    >>> walk = GaussianModel(jnp.zeros(1), 1.0, lambda x, y: x, 0.5, log_g, jnp.ones(4))
    >>> start = path_of(walk, jnp.zeros((4, 1)))
    >>> particle_gibbs(jax.random.key(0), walk, start, 5, ConditionalSMC(8)).kept.shape
    (5, 4, 1)
    """

    def sweep(path: Path, key: Array) -> tuple[Path, tuple[PyTree, PyTree, Array]]:
        renew, run = jax.random.split(key)
        path = refresh(renew, path) if refresh else path
        made = kernel(run, model, path, collector)
        estimate = jax.tree.map(lambda leaf: weighted_mean(leaf, made.last.log_w), made.statistic)
        return made.path, (keep(made.path), estimate, made.last.log_z)

    last, (kept, estimates, log_z) = jax.lax.scan(sweep, path, jax.random.split(key, sweeps))
    return Chain(last, kept, estimates, log_z)


def parisian_particle_gibbs(
    key: Array, model: PathModel, path: Path, sweeps: int, kernel: ConditionalSMC, functional: Paris, *, burn_in: int
) -> tuple[Estimate, Chain]:
    """PPG: particle Gibbs whose every sweep estimates Q(h) by PaRIS over all particles, the reference included.

    Pi = mean of the sweeps' estimates after burn-in. With a reference from Q one sweep's estimate is unbiased; from any
    other its bias falls geometrically with the sweeps. k sweeps of N particles cost as much as PaRIS with kN and have
    far less bias.

    Args:
        key, model, path, sweeps, kernel: as for `particle_gibbs`; choose by `backward_sampling`.
        functional: `Paris`, the additive functional h and how it draws parents.
        burn_in: first sweeps left out of the mean.

    Returns:
        (the estimate with the standard error of batch means, the chain with every sweep's own estimate).

    Reference: Cardoso, Janati, Le Corff, Moulines & Olsson 2023, arXiv 2301.00900.

    >>> import jax.numpy as jnp
    >>> from diffsample.smc import GaussianModel, Paris, path_of
    >>> walk = GaussianModel(jnp.zeros(1), 1.0, lambda x, y: x, 0.5, lambda x, y: -(x[:, 0] - y)**2, jnp.ones(4))
    >>> last = Paris(lambda before, after, row: after[:, 0] - before[:, 0], lambda after, row: after[:, 0])
    >>> start = path_of(walk, jnp.zeros((4, 1)))
    >>> parisian_particle_gibbs(jax.random.key(0), walk, start, 20, ConditionalSMC(8), last, burn_in=4)[0].value.shape
    ()
    """
    chain = particle_gibbs(key, model, path, sweeps, kernel, collector=functional)
    return chain_mean(chain.estimates, burn_in, min(16, sweeps - burn_in)), chain
