"""Gaussian laws as denoisers, and the point mass they shrink to.

x0 ~ N(mu, S) makes x_t ~ N(alpha mu, alpha^2 S + sigma^2 I), so the denoiser, the score, the probability flow, the
posterior under a linear measurement and its denoiser are all closed forms, at any level of any process.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from diffsample.denoiser import Denoiser, Point, Prediction, PyTree
from diffsample.exact.covariance import Covariance, as_host, factor, single
from diffsample.exact.measuring import measure
from diffsample.exact.noising import given, marginal, per_sample, rows
from diffsample.process import Level
from diffsample.struct import pytree


@pytree
class Gaussian(Denoiser):
    """The law N(mean, cov) of one datum.

    States are `[B, *copies, *event]`: axes between the batch and the event are independent copies, so a scalar law
    applies elementwise to data of any shape. Exact in float32 at least; results have the dtype of x.

    Args:
        mean: `[*event]`.
        cov: variance, `[*event]` variances, or `[d, d]` over the flattened event; singular is allowed.

    Raises:
        ValueError: a covariance that is asymmetric, indefinite or of another shape; a number that is not finite.

    >>> prediction = Gaussian(0.0, 1.0).predict(jnp.array([[2.0, 4.0]]), Level(None, 1.0, 1.0))
    >>> prediction.x0.tolist(), prediction.eps.tolist()
    ([[1.0, 2.0]], [[1.0, 2.0]])
    """

    mean: Array  # [*event]
    cov: Covariance  # of one component

    def __init__(self, mean: ArrayLike, cov: ArrayLike | Covariance) -> None:
        # JAX rebuilds the law with a factored cov and anything for leaves; only numbers from a caller are checked
        if not isinstance(cov, Covariance):
            mean = as_host(mean, "mean")
            cov = factor(single(cov), np.shape(mean), 1)
        vars(self).update(mean=mean, cov=cov)

    @property
    def coupled(self) -> bool:
        return True

    def __call__(self, x: Array, at: Point, cond: PyTree, state: PyTree) -> tuple[Prediction, PyTree]:
        """The denoiser: `predict` at the present level; the condition is not read."""
        return self.predict(x, at.now), state

    def predict(self, x: Array, level: Level) -> Prediction:
        """E[x0 | x_t] and E[eps | x_t], for x `[B, ..., *event]` and scalar or `[B]` scales."""
        found = given(x, level, self.mean[None], self.cov)
        return Prediction(found.x0.reshape(x.shape).astype(x.dtype), found.eps.reshape(x.shape).astype(x.dtype))

    def log_prob(self, x: Array, level: Level | None = None) -> Array:
        """Log-density of x_t, `[B]`; of the data where level is None (minus infinity or worse off a singular law).

        >>> float(Gaussian([1.0, 0.0], 1.0).log_prob(jnp.array([[1.0, 0.0]]))[0])
        -1.837877...
        """
        return per_sample(given(x, level, self.mean[None], self.cov).log_density[:, 0], x, self.mean.shape)

    def score(self, x: Array, level: Level | None = None) -> Array:
        """Gradient of `log_prob` with respect to x, shaped like x.

        >>> Gaussian(1.0, 3.0).score(jnp.array([5.0]), Level(None, 1.0, 1.0)).tolist()
        [-1.0]
        """
        return given(x, level, self.mean[None], self.cov).score.reshape(x.shape).astype(x.dtype)

    def flow(self, x: Array, level_from: Level, level_to: Level) -> Array:
        """Exact solution of the probability-flow ODE from x at one level to another.

        x_t = alpha_t mu + sqrt((alpha_t^2 S + sigma_t^2) / (alpha_s^2 S + sigma_s^2)) (x_s - alpha_s mu).

        >>> Gaussian(0.0, 9.0).flow(jnp.array([5.0]), Level(None, 1.0, 4.0), Level(None, 1.0, 0.0)).tolist()
        [3.0]
        """
        old, new = (marginal(x, level, self.mean[None], self.cov) for level in (level_from, level_to))
        u = self.cov.to_axes(rows(x, self.mean.shape)[:, None, :] - old.alpha * old.mean)
        moved = new.alpha * new.mean + self.cov.from_axes(jnp.sqrt(new.var / old.var) * u)
        return moved.reshape(x.shape).astype(x.dtype)

    def sample(self, key: Array, n: int) -> Array:
        """n independent data, `[n, *event]`, in JAX's default float.

        >>> Gaussian([1.0, 2.0], 0.0).sample(jax.random.key(0), 1).tolist()
        [[1.0, 2.0]]
        """
        z = jax.random.normal(key, (n, 1, math.prod(self.mean.shape)))
        spread = jnp.sqrt(jnp.asarray(self.cov.values, z.dtype))[None]
        return jnp.asarray(self.mean, z.dtype)[None] + self.cov.from_axes(spread * z).reshape(n, *self.mean.shape)

    def posterior(self, operator: ArrayLike, y: ArrayLike, noise_cov: ArrayLike) -> "Gaussian":
        """Law of x0 given y = A x0 + N(0, R): as a denoiser it is E[x0 | x_t, y].

        Args:
            operator: A, `[m, d]` over the flattened event, or `[d]` for one number measured.
            y: `[m]`, or a scalar.
            noise_cov: R: variance, `[m]` variances, or `[m, m]`; 0 where A S A' is invertible.

        >>> Gaussian(0.0, 1.0).posterior(1.0, 2.0, noise_cov=1.0).mean.tolist()
        1.0
        """
        mean, cov, _ = measure(self.mean[None], self.cov, operator, y, noise_cov)
        return Gaussian(mean[0], cov[0])


@pytree
class PointMass(Denoiser):
    """The law of one fixed datum: x0 is always x0, eps = (x_t - alpha x0) / sigma.

    Args:
        x0: `[*event]`; it broadcasts over the axes of x before the event.

    Its density, score and flow are those of `Gaussian(x0, 0.0)`.

    >>> PointMass(3.0).predict(jnp.array([[5.0, 1.0]]), Level(None, 1.0, 2.0)).eps.tolist()
    [[1.0, -1.0]]
    """

    x0: Array

    def __init__(self, x0: ArrayLike) -> None:
        vars(self).update(x0=np.asarray(x0, np.float64) if isinstance(x0, int | float | list | tuple) else x0)

    @property
    def coupled(self) -> bool:
        return True

    def __call__(self, x: Array, at: Point, cond: PyTree, state: PyTree) -> tuple[Prediction, PyTree]:
        """The denoiser: `predict` at the present level; the condition is not read."""
        return self.predict(x, at.now), state

    def predict(self, x: Array, level: Level) -> Prediction:
        """x0, and the noise that leads from it to x (zero where sigma = 0)."""
        point = Covariance(jnp.zeros((1, math.prod(jnp.shape(self.x0)))), None)
        return Gaussian(self.x0, point).predict(x, level)
