"""Resampling that gradients pass through: soft, stop-gradient, optimal transport."""

from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.sampler import View
from diffsample.smc.functions import as_pytree
from diffsample.smc.particles import gather
from diffsample.smc.resamplers.resampling import Moved, Resampler, multinomial, systematic
from diffsample.struct import pytree, static
from diffsample.tableau import is_concrete


@pytree
class Soft:
    """Resampling from weights mixed with uniform ones; see `soft`."""

    mix: Any
    resample: Any

    def move(self, keys: Array, log_w: Array, cloud: list[Array], view: View) -> Moved:
        log_w = jax.nn.log_softmax(log_w, axis=-1)
        mix = jnp.asarray(self.mix, log_w.dtype)
        log_q = jnp.logaddexp(jnp.log(mix) + log_w, jnp.log1p(-mix) - jnp.log(log_w.shape[-1]))
        ancestors = jax.vmap(self.resample)(keys, log_q)
        left = jnp.take_along_axis(log_w - log_q, ancestors, axis=1)
        return Moved(gather(cloud, ancestors), left, ancestors)


def soft(mix: Any = 0.5, resample: Resampler = systematic) -> Soft:
    """Soft resampling: ancestors from Q = mix W + (1 - mix) / K, and weights W / Q left over.

    Unbiased for any mix; gradients pass through the weights that are left.

    Args:
        mix: share of the weights in Q, in (0, 1]; 1 is plain resampling; a leaf.
        resample: what draws from Q.

    Raises:
        ValueError: mix outside (0, 1].

    Reference: Karkus, Hsu, Lee 2018, arXiv 1805.08975, eq. 6.

    >>> soft(0.5).mix
    0.5
    """
    if is_concrete(mix) and not np.all((0 < np.asarray(mix)) & (np.asarray(mix) <= 1)):
        raise ValueError(f"soft(mix={mix}) must lie in (0, 1]: at 0 the ancestors would not depend on the weights")
    return Soft(mix, as_pytree(resample))


@pytree
class StopGradient:
    """Plain resampling with the score-function gradient; see `stop_gradient`."""

    resample: Any

    def move(self, keys: Array, log_w: Array, cloud: list[Array], view: View) -> Moved:
        log_w = jax.nn.log_softmax(log_w, axis=-1)
        ancestors = jax.vmap(self.resample)(keys, jax.lax.stop_gradient(log_w))
        chosen = jnp.take_along_axis(log_w, ancestors, axis=1)
        return Moved(gather(cloud, ancestors), chosen - jax.lax.stop_gradient(chosen), ancestors)


def stop_gradient(resample: Resampler = multinomial) -> StopGradient:
    """Stop-gradient resampling: log_w = log W_A - stop_gradient(log W_A), 0 with a gradient.

    The particles are those of `resample`; the gradient of exp(log_z) is then an unbiased estimate of that of Z.

    Args:
        resample: what draws the ancestors.

    Reference: Scibior, Wood 2021, arXiv 2106.10314, algorithm 2.

    >>> stop_gradient().resample
    Plain(function=<function multinomial ...>)
    """
    return StopGradient(as_pytree(resample))


@pytree
class Transport:
    """Particles moved by an entropic transport plan; see `transport`."""

    epsilon: Any
    max_iterations: int = static(default=1000)

    def move(self, keys: Array, log_w: Array, cloud: list[Array], view: View) -> Moved:
        groups, k = log_w.shape
        kinds = {str(leaf.dtype) for leaf in cloud if not jnp.issubdtype(leaf.dtype, jnp.floating)}
        if kinds:
            raise ValueError(f"optimal transport averages particles, and these hold {kinds}: use another resampler")
        plan = jax.vmap(self._plan)(view.x.reshape(groups, k, -1), jax.nn.softmax(log_w, axis=-1))

        def moved(leaf: Array) -> Array:
            flat, weights = leaf.reshape(groups, k, -1), k * plan.astype(leaf.dtype)
            return jnp.einsum("gij,gid->gjd", weights, flat, precision="highest").reshape(leaf.shape)

        return Moved([moved(leaf) for leaf in cloud], jnp.zeros_like(log_w), plan.argmax(axis=1).astype(jnp.int32))

    def _plan(self, x: Array, w: Array) -> Array:
        """[K, K] with row sums w, and column sums 1/K up to the tolerance of the iterations."""
        from ott.geometry import pointcloud
        from ott.solvers import linear

        with jax.numpy_rank_promotion("allow"):  # ott relies on it
            geometry = pointcloud.PointCloud(x * np.sqrt(0.5), epsilon=self.epsilon)
            plan = linear.solve(geometry, a=w, max_iterations=self.max_iterations).matrix
        rows = plan.sum(axis=1)
        return plan * (w / jnp.where(rows > 0, rows, 1))[:, None]


def transport(epsilon: Any, *, max_iterations: int = 1000) -> Transport:
    """Optimal-transport resampling: x_j <- K sum_i P_ij x_i, P the entropic plan from the weights to equal ones.

    P minimises <P, |x_i - x_j|^2 / 2> + epsilon KL(P). Deterministic, differentiable; keeps sum W x, but shrinks the
    cloud, so that log_z is biased. All that belongs to a particle is averaged alike. O(K^2) an iteration; not for
    discrete states.

    Args:
        epsilon: entropic regularisation, in units of x^2; a leaf.
        max_iterations: of Sinkhorn's algorithm.

    Raises:
        ImportError: ott-jax is not installed.
        ValueError: epsilon not positive; at trace time, particles that hold integers.

    Reference: Corenflos et al. 2021, arXiv 2102.07850, section 3; Reich 2013, SIAM J. Sci. Comput. 35.

    >>> transport(0.0)
    Traceback (most recent call last):
    ValueError: transport(epsilon=0.0) must be positive
    """
    if is_concrete(epsilon) and not np.all(np.asarray(epsilon) > 0):
        raise ValueError(f"transport(epsilon={epsilon}) must be positive")
    if find_spec("ott") is None:
        raise ImportError("optimal-transport resampling needs ott-jax: pip install 'diffsample[metrics]'")
    return Transport(epsilon, max_iterations)
