"""Mixtures of Gaussians as denoisers: every density on a grid of one number, many modes in many dimensions.

x0 ~ sum_k w_k N(mu_k, S_k). At a noise level the responsibility of component k is r_k = softmax_k(log w_k +
log N(x_t; alpha mu_k, alpha^2 S_k + sigma^2 I)), and E[x0|x_t], E[eps|x_t] and the score are the r-weighted averages of
those of the components. Responsibilities are formed from logarithms, so no level underflows.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from diffsample.denoiser import Denoiser, Point, Prediction, PyTree
from diffsample.exact.covariance import HIGHEST, Covariance, as_host, factor, is_traced, namespace
from diffsample.exact.measuring import measure
from diffsample.exact.noising import Given, given, per_sample
from diffsample.process import Level
from diffsample.struct import pytree


@pytree
class Mixture(Denoiser):
    """The law sum_k weights[k] N(means[k], covs[k]) of one datum.

    States are `[B, *copies, *event]`: axes between the batch and the event are independent copies, so a mixture of
    scalars (means `[K]`) applies elementwise to data of any shape. With covs 0 and equal weights it is the optimal
    denoiser of a finite data set. Exact in float32 at least; results have the dtype of x.

    Args:
        weights: `[K]`, sum 1.
        means: `[K, *event]`.
        covs: one variance; `[K]` variances; `[K or 1, *event]` variances a coordinate; `[K or 1, d, d]` full matrices
            over the flattened event. A leading 1 shares one covariance between all components.

    Raises:
        ValueError: weights that are negative or do not sum to 1; shapes that do not fit; a covariance that is
            asymmetric or indefinite; a number that is not finite.

    >>> Mixture([0.5, 0.5], [-1.0, 1.0], 0.0).predict(jnp.array([0.0, 40.0]), Level(None, 1.0, 1.0)).x0.tolist()
    [0.0, 1.0]
    """

    weights: Array  # [K]; or [B, K], one row a sample, where a conditional law made it
    means: Array  # [K, *event]
    covs: Covariance  # of K components, or one for all

    def __init__(self, weights: ArrayLike, means: ArrayLike, covs: ArrayLike | Covariance) -> None:
        # JAX rebuilds the law with factored covs and anything for leaves; only numbers from a caller are checked
        if not isinstance(covs, Covariance):
            weights, means = as_host(weights, "weights"), as_host(means, "means")
            _check(weights, means)
            covs = factor(covs, np.shape(means)[1:], np.shape(means)[0])
        vars(self).update(weights=weights, means=means, covs=covs)

    @property
    def coupled(self) -> bool:
        return True

    def __call__(self, x: Array, at: Point, cond: PyTree, state: PyTree) -> tuple[Prediction, PyTree]:
        """The denoiser: `predict` at the present level; the condition is not read."""
        return self.predict(x, at.now), state

    def predict(self, x: Array, level: Level) -> Prediction:
        """E[x0 | x_t] and E[eps | x_t], for x `[B, ..., *event]` and scalar or `[B]` scales."""
        found, weights = self._weigh(x, level)
        return Prediction(_average(found.x0, weights, x), _average(found.eps, weights, x))

    def log_prob(self, x: Array, level: Level | None = None) -> Array:
        """Log-density of x_t, `[B]`; of the data where level is None.

        >>> float(Mixture([0.5, 0.5], [-1.0, 1.0], 1.0).log_prob(jnp.array([0.0]))[0])
        -1.418938...
        """
        found = given(x, level, self.means, self.covs)
        joint = found.log_density + self._log_weights(x)
        return per_sample(jax.nn.logsumexp(joint, axis=-1), x, self.means.shape[1:])

    def score(self, x: Array, level: Level | None = None) -> Array:
        """Gradient of `log_prob` with respect to x, shaped like x.

        >>> float(Mixture([0.5, 0.5], [-1.0, 1.0], 0.0).score(jnp.array([9.0]), Level(None, 1.0, 1.0))[0])
        -8.0
        """
        found, weights = self._weigh(x, level)
        return _average(found.score, weights, x)

    def responsibilities(self, x: Array, level: Level | None = None) -> Array:
        """p(component | x_t), `[B, *copies, K]`.

        >>> Mixture([0.5, 0.5], [-1.0, 1.0], 1.0).responsibilities(jnp.array([0.0])).tolist()
        [[0.5, 0.5]]
        """
        _, weights = self._weigh(x, level)
        lead = x.shape[: x.ndim - self.means.ndim + 1]
        return weights.reshape(*lead, self.means.shape[0]).astype(x.dtype)

    def sample(self, key: Array, n: int) -> Array:
        """n independent data, `[n, *event]`, in JAX's default float.

        >>> Mixture([0.0, 1.0], [3.0, 4.0], 0.0).sample(jax.random.key(0), 2).tolist()
        [4.0, 4.0]
        """
        which, noise = jax.random.split(key)
        flat = jnp.asarray(self.means, float).reshape(self.means.shape[0], -1)
        z = jax.random.normal(noise, (n, 1, flat.shape[1]))
        spread = jnp.sqrt(jnp.asarray(self.covs.values, z.dtype))[None]
        every = flat[None] + self.covs.from_axes(spread * z)  # [n, K, d]: cheaper than a gather of matrices
        index = jax.random.categorical(which, _log(self.weights), shape=(n,))
        return jnp.take_along_axis(every, index[:, None, None], axis=1).reshape(n, *self.means.shape[1:])

    def posterior(self, operator: ArrayLike, y: ArrayLike, noise_cov: ArrayLike) -> "Mixture":
        """Law of x0 given y = A x0 + N(0, R), again a mixture: as a denoiser it is E[x0 | x_t, y].

        Args:
            operator: A, `[m, d]` over the flattened event, or `[d]` for one number measured.
            y: `[m]`, or a scalar.
            noise_cov: R: variance, `[m]` variances, or `[m, m]`; 0 where every A S_k A' is invertible.

        >>> Mixture([0.5, 0.5], [-1.0, 1.0], 1.0).posterior(1.0, 3.0, noise_cov=1.0).means.tolist()
        [1.0, 2.0]
        """
        means, covs, log_evidence = measure(self.means, self.covs, operator, y, noise_cov)
        return Mixture(_update(self.weights, log_evidence), means, covs)

    def moments(self) -> tuple[Array, Array]:
        """Mean `[*event]` and covariance `[d, d]` of the data.

        >>> [m.tolist() for m in Mixture([0.5, 0.5], [-2.0, 2.0], 0.25).moments()]
        [0.0, [[4.25]]]
        """
        xp = namespace(self.weights, self.means, self.covs.values)
        flat = self.means.reshape(self.means.shape[0], -1)
        mean = xp.sum(self.weights[:, None] * flat, axis=0)
        second = self.covs.dense() + (flat - mean[None])[:, :, None] * (flat - mean[None])[:, None, :]
        return mean.reshape(self.means.shape[1:]), xp.sum(self.weights[:, None, None] * second, axis=0)

    def _log_weights(self, x: Array) -> Array:
        """Log-weights of the rows of x, [n or 1, K]."""
        log_w = jnp.atleast_2d(_log(self.weights).astype(jnp.promote_types(x.dtype, jnp.float32)))
        copies = math.prod(x.shape[1 : x.ndim - self.means.ndim + 1])
        return jnp.repeat(log_w, copies if log_w.shape[0] > 1 else 1, axis=0)

    def _weigh(self, x: Array, level: Level | None) -> tuple[Given, Array]:
        """What every component says of each row, and the responsibilities [n, K]."""
        found = given(x, level, self.means, self.covs)
        return found, jax.nn.softmax(found.log_density + self._log_weights(x), axis=-1)


def _average(values: Array, weights: Array, x: Array) -> Array:
    """Weighted average of [n, K, d] over components, shaped like x."""
    return jnp.einsum("nk,nkd->nd", weights, values, precision=HIGHEST).reshape(x.shape).astype(x.dtype)


def _log(weights: Any) -> Array:
    """Log-weights in JAX's default float, minus infinity for a weight of zero."""
    weights = jnp.asarray(weights, float)
    dead = weights <= 0
    return jnp.where(dead, -jnp.inf, jnp.log(jnp.where(dead, 1.0, weights)))  # gradient 0, not NaN, where dead


def _update(weights: Any, log_evidence: Any) -> Any:
    """Bayes: weights times evidence, normalised in logarithms; float64 on the host where nothing is traced."""
    xp = namespace(weights, log_evidence)
    alive = weights > 0
    log_w = xp.where(alive, xp.log(xp.where(alive, weights, 1.0)) + log_evidence, -math.inf)
    updated = xp.exp(log_w - log_w.max())
    return updated / updated.sum()


def _check(weights: Any, means: Any) -> None:
    if weights.ndim != 1 or means.shape[:1] != weights.shape:
        raise ValueError(
            f"weights {weights.shape} and means {means.shape} do not fit: they must be (K,) and (K, *event)"
        )
    if not is_traced(weights) and (weights.min() < 0 or abs(weights.sum() - 1) > 1e-6):
        raise ValueError(f"weights must be nonnegative and sum to 1, got {weights} with sum {weights.sum()}")
