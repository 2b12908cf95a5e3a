"""What a particle run returns, and what one does with it: weights, one sample a group, an unweighted cloud."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.denoiser import PyTree
from diffsample.smc.diagnosing import Diagnostics
from diffsample.smc.resamplers.resampling import Resampler, rotated


class Particles(NamedTuple):
    """Weighted samples: G groups of K, particle k of group g in row g K + k."""

    x: Array  # [G*K, ...]
    log_w: Array  # [G, K], not normalised
    log_z: Array  # [G] estimate of the log-normaliser; exp(log_z) is unbiased
    diagnostics: Diagnostics
    inner: PyTree = None  # what the sampler returns, where that is more than x (a decoder's calls and faults)

    @property
    def grouped(self) -> Array:
        """The samples as [G, K, ...]."""
        return self.x.reshape(self.log_w.shape + self.x.shape[1:])

    @property
    def weights(self) -> Array:
        """Normalised weights [G, K]."""
        return jax.nn.softmax(self.log_w, axis=-1)

    def mean(self, values: Array) -> Array:
        """Weighted means [G, ...] of values [G*K, ...] of the particles; bias O(1/K).

        Args:
            values: a number, or an array, for each particle, in the order of `x`.

        Raises:
            ValueError: values of another number of particles.
        """
        if values.shape[:1] != (self.log_w.size,):
            raise ValueError(
                f"values of shape {values.shape} for {self.log_w.size} particles: one a particle, first axis"
            )
        grouped = values.reshape(self.log_w.shape + values.shape[1:])
        return jnp.einsum("gk,gk...->g...", self.weights, grouped, precision="highest")


def select_one(key: Array, particles: Particles) -> Array:
    """One sample a group, particle k with probability W_k: [G, ...].

    Args:
        key: typed key, used for this only; group g draws with fold_in(key, g).
        particles: the result of a run.

    >>> import jax, jax.numpy as jnp
    >>> cloud = Particles(jnp.arange(4.0), jnp.array([[0.0, -jnp.inf], [-jnp.inf, 0.0]]), jnp.zeros(2), None)
    >>> select_one(jax.random.key(0), cloud).tolist()
    [0.0, 3.0]
    """
    keys = _group_keys(key, particles)
    chosen = jax.vmap(jax.random.categorical)(keys, particles.log_w)
    return jax.vmap(lambda cloud, k: cloud[k])(particles.grouped, chosen)


def select_best(particles: Particles, values: Array) -> Array:
    """The particle of the largest value a group: [G, ...]. Best of N where values are rewards and nothing resampled.

    No sample of any law: the values' tails are all that it sees. Particles of weight 0 are never chosen while another
    has some.

    Args:
        particles: the result of a run; `feynman_kac(..., policy=never)` leaves N independent draws.
        values: [G*K] rewards, in the order of `particles.x`; or `particles.log_w`, for the heaviest particle.

    Raises:
        ValueError: values of another number of particles.

    >>> import jax.numpy as jnp
    >>> cloud = Particles(jnp.arange(4.0), jnp.zeros((2, 2)), jnp.zeros(2), None)
    >>> select_best(cloud, jnp.array([1.0, 0.0, 3.0, 7.0])).tolist()
    [0.0, 3.0]
    """
    if values.size != particles.log_w.size:
        raise ValueError(
            f"values of shape {values.shape} for {particles.log_w.size} particles: one a particle, in order"
        )
    lives = particles.log_w > -jnp.inf
    best = jnp.argmax(jnp.where(lives, values.reshape(particles.log_w.shape), -jnp.inf), axis=-1)
    return jax.vmap(lambda cloud, k: cloud[k])(particles.grouped, best)


def final_resample(key: Array, particles: Particles, resample: Resampler = rotated) -> Particles:
    """An equally weighted cloud of the same law: the particles resampled once more, log_w 0.

    Adds the resampling's variance; keep the weights where an expectation is wanted.

    Args:
        key: typed key, used for this only; group g draws with fold_in(key, g).
        particles: the result of a run.
        resample: function (key, log_w [K]) -> ancestors [K]; `rotated` gives every slot the law of the cloud.

    >>> import jax, jax.numpy as jnp
    >>> cloud = Particles(jnp.arange(2.0), jnp.array([[-jnp.inf, 0.0]]), jnp.zeros(1), None)
    >>> final_resample(jax.random.key(0), cloud).x.tolist()
    [1.0, 1.0]
    """
    ancestors = jax.vmap(resample)(_group_keys(key, particles), particles.log_w)
    x = gather(particles.grouped, ancestors).reshape(particles.x.shape)
    return particles._replace(x=x, log_w=jnp.zeros_like(particles.log_w))


def repeat(cond: PyTree, particles: int) -> PyTree:
    """One condition a group -> one a particle: each leaf [G, ...] becomes [G*K, ...].

    >>> import jax.numpy as jnp
    >>> repeat(jnp.array([3, 8]), 2).tolist()
    [3, 3, 8, 8]
    """
    return jax.tree.map(lambda leaf: jnp.repeat(jnp.asarray(leaf), particles, axis=0), cond)


def gather(tree: PyTree, ancestors: Array) -> PyTree:
    """Leaves [G, K, ...] -> leaf[g, ancestors[g, k]]; groups stay on their devices."""
    return jax.tree.map(lambda leaf: jax.vmap(lambda part, index: part[index])(leaf, ancestors), tree)


def _group_keys(key: Array, particles: Particles) -> Array:
    groups = jnp.arange(len(particles.log_w), dtype=jnp.uint32)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, groups)
