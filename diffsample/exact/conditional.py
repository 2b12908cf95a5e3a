"""Exact laws that depend on an integer condition, one a sample: what a class-conditional network would have learned."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from diffsample.denoiser import Denoiser, Point, Prediction, PyTree
from diffsample.exact.covariance import Covariance
from diffsample.exact.gaussian import Gaussian, PointMass
from diffsample.exact.mixture import Mixture
from diffsample.process import Level
from diffsample.struct import pytree, static


@pytree
class ClassMixture(Denoiser):
    """A mixture whose components belong to classes: p(x0, class), given the class or not.

    The condition is an integer a sample: a class, or `null` (the number of classes) for the unconditional law. The two
    are consistent, sum_c p(c | x_t) D_c(x_t) = D_null(x_t), as no trained pair of networks is. Any other condition
    gives NaN.

    Args:
        weights: `[K]`, sum 1.
        means: `[K, *event]`.
        covs: as for `Mixture`.
        labels: `[K]` class of each component, each of 0..max at least once.

    Raises:
        ValueError: as `Mixture`; labels that do not fit, or a class without components.

    >>> law = ClassMixture([0.5, 0.5], [-1.0, 1.0], 0.0, labels=[0, 1])
    >>> law.predict(jnp.zeros(3), Level(None, 1.0, 9.0), cond=jnp.array([0, 1, law.null])).x0.tolist()
    [-1.0, 1.0, 0.0]
    """

    weights: Array  # [K]
    means: Array  # [K, *event]
    covs: Covariance  # of K components, or one for all
    labels: tuple[int, ...] = static()

    def __init__(
        self, weights: ArrayLike, means: ArrayLike, covs: ArrayLike | Covariance, labels: ArrayLike | tuple[int, ...]
    ) -> None:
        law = Mixture(weights, means, covs)
        if not isinstance(covs, Covariance):
            labels = _check_labels(labels, law.means.shape[0])
        vars(self).update(weights=law.weights, means=law.means, covs=law.covs, labels=labels)

    @property
    def null(self) -> int:
        """The condition that means no condition: the number of classes."""
        return max(self.labels) + 1

    @property
    def coupled(self) -> bool:
        return True

    def __call__(self, x: Array, at: Point, cond: PyTree, state: PyTree) -> tuple[Prediction, PyTree]:
        """The denoiser: `predict` at the present level."""
        return self.predict(x, at.now, cond), state

    def given(self, cond: ArrayLike) -> Mixture:
        """The law of the data given a class: weights `[K]` for an integer, `[B, K]` for integers `[B]`.

        >>> ClassMixture([0.2, 0.2, 0.6], [1.0, 2.0, 3.0], 1.0, labels=[0, 0, 1]).given(0).weights.tolist()
        [0.5, 0.5, 0.0]
        """
        which = _integers(cond)[..., None]
        labels = jnp.asarray(self.labels).reshape((1,) * (which.ndim - 1) + (-1,))
        weights = jnp.asarray(self.weights, float).reshape(labels.shape)
        weights = jnp.where((which == labels) | (which == self.null), weights, 0.0)
        return Mixture(weights / weights.sum(axis=-1, keepdims=True), self.means, self.covs)

    def predict(self, x: Array, level: Level, cond: ArrayLike) -> Prediction:
        """E[x0 | x_t, class] and E[eps | x_t, class], for integers cond `[B]` or one for all."""
        return self.given(cond).predict(x, level)

    def log_prob(self, x: Array, level: Level | None, cond: ArrayLike) -> Array:
        """Log-density of x_t given the class, `[B]`; of the data where level is None."""
        return self.given(cond).log_prob(x, level)

    def score(self, x: Array, level: Level | None, cond: ArrayLike) -> Array:
        """Gradient of `log_prob` with respect to x, shaped like x."""
        return self.given(cond).score(x, level)

    def sample(self, key: Array, n: int, cond: ArrayLike) -> Array:
        """n data `[n, *event]`, of classes cond `[n]` or one for all."""
        return self.given(cond).sample(key, n)

    def posterior(self, operator: ArrayLike, y: ArrayLike, noise_cov: ArrayLike) -> "ClassMixture":
        """Joint law of x0 and class given y = A x0 + N(0, R); arguments as for `Mixture.posterior`."""
        law = Mixture(self.weights, self.means, self.covs).posterior(operator, y, noise_cov)
        return ClassMixture(law.weights, law.means, law.covs, self.labels)


@pytree
class Switch(Denoiser):
    """One exact law a condition: sample i is denoised by `laws[cond[i]]`, an integer outside the list gives NaN.

    For pairs of laws that no joint law connects, as two networks trained apart: guidance experiments with a free choice
    of the conditional and the unconditional law. Laws keep no memory and do not see the condition.

    Args:
        laws: denoisers without memory, in the order of the condition.

    >>> law = Switch((PointMass(0.0), PointMass(7.0)))
    >>> law.predict(jnp.zeros(2), Level(None, 1.0, 1.0), cond=jnp.array([1, 0])).x0.tolist()
    [7.0, 0.0]
    """

    laws: tuple[Gaussian | Mixture | PointMass, ...]

    @property
    def coupled(self) -> bool:
        return True

    def __call__(self, x: Array, at: Point, cond: PyTree, state: PyTree) -> tuple[Prediction, PyTree]:
        """The denoiser: `predict` at the present level."""
        return self.predict(x, at.now, cond), state

    def predict(self, x: Array, level: Level, cond: ArrayLike) -> Prediction:
        """Each sample's own law, for integers cond `[B]` or one for all."""
        which = _integers(cond)
        which = which.reshape(which.shape + (1,) * (x.ndim - which.ndim)) if which.ndim else which
        chosen = Prediction(jnp.full_like(x, jnp.nan), jnp.full_like(x, jnp.nan))
        for i, law in enumerate(self.laws):
            mine = law.predict(x, level)
            chosen = Prediction(*(jnp.where(which == i, new, old) for new, old in zip(mine, chosen, strict=True)))
        return chosen


def _integers(cond: Any) -> Array:
    """The condition as an integer array, [] or [B]."""
    if cond is None or not jnp.issubdtype(jnp.result_type(cond), jnp.integer) or jnp.ndim(cond) > 1:
        raise TypeError(f"cond must be an integer or integers [B], got {cond!r}")
    return jnp.asarray(cond)


def _check_labels(labels: Any, k: int) -> tuple[int, ...]:
    array = np.asarray(labels)
    if array.shape != (k,) or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"labels must be {k} integers, one a component, got {labels}")
    if sorted(set(array.tolist())) != list(range(array.max() + 1)):
        raise ValueError(f"labels must use every class from 0 to the largest, got {labels}")
    return tuple(array.tolist())
