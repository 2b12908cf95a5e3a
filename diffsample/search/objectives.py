"""What a schedule is worth: functions of the samples it draws, lower is better.

An objective is any function of samples [B, ...] that JAX can trace. Where the value needs the host (an
eigendecomposition in float64, a metric of another library), an `Objective` has two parts: a `summary` on the device, of
all schedules at once, and the `value` of each summary on the host.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from diffsample import metrics
from diffsample.denoiser import Denoiser
from diffsample.process import Process
from diffsample.sampling import sample
from diffsample.solvers.tabular import linear
from diffsample.solvers.unified import unipc
from diffsample.struct import pytree, static
from diffsample.times import uniform_logsnr

PyTree: TypeAlias = Any


@runtime_checkable
class Objective(Protocol):
    """A value in two parts; a pytree, so that another reference of the same shape does not compile."""

    def summary(self, samples: Array) -> PyTree:
        """What the host needs of the samples [B, ...] of one schedule; traced, under vmap."""
        ...

    def value(self, summary: Any) -> float:
        """The value of a summary (NumPy arrays), lower is better; by default the summary is the value."""
        return float(summary)


def flat(samples: Array) -> Array:
    """Pixels: the features [B, D] of samples [B, ...] where the user has no better."""
    return jnp.asarray(samples, jnp.float32).reshape(samples.shape[0], -1)


@pytree
class OnDevice(Objective):
    """A plain function of the samples, traced."""

    function: Callable[[Array], Array] = static()

    def summary(self, samples: Array) -> Array:
        return self.function(samples)


@pytree
class OnHost(Objective):
    """A function of NumPy samples [B, ...], for metrics that JAX cannot trace; it runs once a schedule.

    >>> float(OnHost(np.mean).value(np.ones((2, 3))))
    1.0
    """

    function: Callable[[np.ndarray], float] = static()

    def summary(self, samples: Array) -> Array:
        return samples

    def value(self, summary: np.ndarray) -> float:
        return float(self.function(summary))


@pytree
class ReferenceDistance(Objective):
    """Root mean square distance to where an accurate run takes the same noise; `accurate_samples` makes it.

    Paired noise makes it nearly free of sampling error: a few dozen samples rank schedules.

    Args:
        reference: [B, ...], sample i from the same initial state as sample i of the schedule.

    >>> distance = ReferenceDistance(jnp.zeros((2, 3)))
    >>> distance.value(distance.summary(jnp.full((2, 3), 2.0)))
    2.0
    """

    reference: Array

    def summary(self, samples: Array) -> Array:
        return jnp.sqrt(jnp.mean((flat(samples) - flat(self.reference)) ** 2))


@pytree
class Frechet(Objective):
    """Squared Frechet distance of the samples' features to data, `metrics.frechet_distance`.

    Args:
        mean, cov: [D], [D, D] moments of the data's features, float64 on the host.
        features: samples [B, ...] -> [B, D]; pixels by default.

    >>> x = jnp.array([[-1.0], [1.0]])
    >>> distance = Frechet.of(x)
    >>> round(distance.value(distance.summary(x + 3.0)), 5)
    9.0
    """

    mean: Any
    cov: Any
    features: Callable[[Array], Array] = static(default=flat)

    @classmethod
    def of(cls, data: ArrayLike, features: Callable[[Array], Array] = flat) -> "Frechet":
        """To the moments of data [N, ...]."""
        return cls(*metrics.moments(features(jnp.asarray(data))), features)

    def summary(self, samples: Array) -> tuple[Array, Array]:
        found = self.features(samples)
        mean = jnp.mean(found, axis=0)
        centred = found - mean[None, :]
        return mean, jnp.matmul(centred.T, centred, precision="highest") / (len(found) - 1)

    def value(self, summary: tuple[np.ndarray, np.ndarray]) -> float:
        if not all(np.isfinite(part).all() for part in summary):
            return float("inf")
        return metrics.frechet_distance(*summary, self.mean, self.cov)


@pytree
class Discrepancy(Objective):
    """Unbiased squared maximum mean discrepancy of the samples' features to data, `metrics.mmd`.

    Args:
        data: [N, ...].
        bandwidth: of the Gaussian kernel. It is fixed, so that schedules are compared by one measure; `of` takes the
            median distance between the data.
        features: as for `Frechet`.
    """

    data: Array
    bandwidth: Any
    features: Callable[[Array], Array] = static(default=flat)

    @classmethod
    def of(cls, data: Array, features: Callable[[Array], Array] = flat) -> "Discrepancy":
        """With the median distance between the data's features as bandwidth.

        >>> float(Discrepancy.of(jnp.array([[0.0], [3.0], [6.0]])).bandwidth)
        3.0
        """
        found = np.asarray(features(data), np.float64)
        apart = np.sqrt(((found[:, None] - found[None]) ** 2).sum(axis=-1))
        return cls(data, jnp.float32(np.median(apart[np.triu_indices(len(found), 1)])), features)

    def summary(self, samples: Array) -> Array:
        return metrics.mmd(self.features(samples), self.features(self.data), self.bandwidth)


@pytree
class SlicedWasserstein(Objective):
    """Sliced Wasserstein-2 distance of the samples' features to as many data, `metrics.sliced_wasserstein`.

    Args:
        key: typed key of the directions, the same for all schedules.
        data: [B, ...]. slices: number of directions. features: as for `Frechet`.
    """

    key: Array
    data: Array
    slices: int = static(default=128)
    features: Callable[[Array], Array] = static(default=flat)

    def summary(self, samples: Array) -> Array:
        return metrics.sliced_wasserstein(self.key, self.features(samples), self.features(self.data), self.slices)


@pytree
class Sinkhorn(Objective):
    """Wasserstein-2 distance of the samples' features to data by Sinkhorn's algorithm, `metrics.sinkhorn_wasserstein`.

    Args:
        data: [N, ...]. epsilon: entropic regularisation in units of the squared distance, the same for all schedules.
        features: as for `Frechet`. It needs ott-jax, the extra `metrics`.
    """

    data: Array
    epsilon: Any
    features: Callable[[Array], Array] = static(default=flat)

    def summary(self, samples: Array) -> Array:
        return metrics.sinkhorn_wasserstein(self.features(samples), self.features(self.data), self.epsilon)


def as_objective(objective: Any) -> Objective:
    """The objective itself, or a plain function of the samples as one."""
    if isinstance(objective, Objective):
        return objective
    if not callable(objective):
        raise TypeError(f"an objective is a function of samples or has `summary` and `value`; got {objective!r}")
    function: Any = objective
    return OnDevice(function)


def accurate_samples(
    denoiser: Denoiser,
    process: Process,
    x: Array,
    start: float,
    stop: float,
    *,
    cond: PyTree = None,
    steps: int = 100,
    zero: bool = False,
) -> Array:
    """Where many steps of UniPC-3, uniform in log-SNR, take the states x at time `start`: the reference of a search.

    Args:
        denoiser, process, x, cond: as for the schedules.
        start, stop: first and last time of the schedules; for those that end on clean data, zero=True adds t = 0 behind
            `stop`, a time of so little noise that the last step no longer matters.
        steps: network calls.

    >>> import diffsample as ds
    >>> process, x = ds.VariancePreserving(), jnp.ones(1)
    >>> accurate_samples(ds.exact.PointMass(2.0), process, x, 1.0, 0.01, zero=True).tolist()
    [2.0]
    """
    grid = uniform_logsnr(process, steps, start=start, stop=stop, zero=zero)
    return sample(jax.random.key(0), linear(denoiser, unipc(process, grid, order=3)), x=x, cond=cond)
