"""Importance sampling with control variates: several expectations under one density from one sample.

I_j = E_f[phi_j] for j = 1..J, from x_n ~ h:

    I_j ~ mean_n [phi_j f / h - sum_k B_kj c_k](x_n),   c_k of mean zero under h, for example q_k / h - 1.

Unbiased for any h, c and B that were fixed before the sample was drawn. With q_j = phi_j f / I_j and B = diag(I) the
variance is zero for all j under the same h, which is what `adaptive_importance_sampling` works towards.

Reference: Demange-Chryst, Bachoc & Morio 2022, arXiv 2212.00568.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn import logsumexp

from diffsample.smc.estimators.estimates import Estimate


def density_controls(log_q: Array, log_h: Array) -> Array:
    """q_k / h - 1, `[N, m]`: zero mean under h for every normalised density q_k.

    If h is a mixture of these q_k, one of them is a combination of the others, which the regression allows.

    Args:
        log_q: `[N, m]` log-densities. log_h: `[N]`.

    >>> density_controls(jnp.zeros((2, 1)), jnp.zeros(2)).tolist()
    [[0.0], [0.0]]
    """
    return jnp.expm1(log_q - log_h[:, None])


def importance_sampling(
    values: Array, log_ratio: Array, controls: Array | None = None, coefficients: Array | None = None
) -> Estimate:
    """Importance sampling of J expectations from one sample of h, with control variates.

    Args:
        values: `[N, J]`, phi_j at the sample.
        log_ratio: `[N]`, log f - log h, both normalised.
        controls: `[N, m]`, of mean zero under h; `density_controls` makes them.
        coefficients: B, `[m, J]`, fixed before the sample was drawn, which keeps the estimate unbiased; None is least
            squares on this sample, with a bias of O(1/N).

    Returns:
        `Estimate` with leaves `[J]`.

    Raises:
        ValueError: shapes that do not belong together; coefficients without controls.

    >>> importance_sampling(jnp.array([[1.0], [3.0]]), jnp.zeros(2)).value.tolist()
    [2.0]
    """
    n = log_ratio.shape[0]
    if values.ndim != 2 or values.shape[0] != n:
        raise ValueError(f"values {values.shape} must be [N, J] for log_ratio {log_ratio.shape}")
    products, lost = values * jnp.exp(log_ratio)[:, None], 1
    if controls is not None:
        if controls.ndim != 2 or controls.shape[0] != n:
            raise ValueError(f"controls {controls.shape} must be [{n}, m]")
        fitted = coefficients is None
        coefficients = regression(products, controls) if coefficients is None else coefficients
        lost += controls.shape[1] if fitted else 0
        products = products - controls @ coefficients
    elif coefficients is not None:
        raise ValueError("coefficients multiply controls; none were given")
    spread = jnp.sum((products - products.mean(axis=0)[None]) ** 2, axis=0) / (n - lost)
    return Estimate(products.mean(axis=0), jnp.sqrt(spread / n))


def regression(products: Array, controls: Array) -> Array:
    """Least-squares coefficients `[m, J]` of products `[N, J]` on controls `[N, m]`, both centred."""
    centred = controls - controls.mean(axis=0)[None]
    return jnp.linalg.lstsq(centred, products - products.mean(axis=0)[None])[0]


class GaussianMixture(NamedTuple):
    """A proposal: C Gaussians."""

    weights: Array  # [C], sum 1
    means: Array  # [C, d]
    roots: Array  # [C, d, d], lower triangular, covariance = root root'

    def log_components(self, x: Array) -> Array:
        """log-density of each component, `[N, C]`."""

        def one(mean: Array, root: Array) -> Array:
            z = jax.scipy.linalg.solve_triangular(root, (x - mean[None]).T, lower=True)
            volume = jnp.sum(jnp.log(jnp.diag(root))) + 0.5 * x.shape[1] * jnp.log(2 * jnp.pi).astype(x.dtype)
            return -0.5 * jnp.sum(z**2, axis=0) - volume

        return jax.vmap(one, out_axes=1)(self.means, self.roots)

    def log_prob(self, x: Array) -> Array:
        """`[N]`."""
        return logsumexp(self.log_components(x) + jnp.log(self.weights)[None], axis=1)

    def draw(self, key: Array, n: int) -> Array:
        """`[n, d]`."""
        pick, noise = jax.random.split(key)
        index = jax.random.categorical(pick, jnp.log(self.weights), shape=(n,))
        z = jax.random.normal(noise, (n, self.means.shape[1]), self.means.dtype)
        return self.means[index] + jnp.einsum("nij,nj->ni", self.roots[index], z)


class Adapted(NamedTuple):
    """What adaptive importance sampling found."""

    estimate: Estimate  # leaves [J], from the last sample alone
    proposal: GaussianMixture  # its h: the start, then one component a function
    coefficients: Array  # [J + 1, J], of the controls component / h - 1
    rounds: int  # of adaptation
    samples: int  # in the last sample


def adaptive_importance_sampling(
    key: Array,
    log_f: Callable[[Array], Array],
    functions: Callable[[Array], Array],
    start: GaussianMixture,
    *,
    budget: int,
    round_size: int = 1000,
    safety: float = 0.1,
) -> Adapted:
    """Adaptive importance sampling with control variates, J expectations from one final sample.

    Each round draws from h, fits one Gaussian g_j a function to the moments under |phi_j| f / h, sets
    h = safety * start + (1 - safety) * mean_j g_j, and regresses on the controls g / h - 1. Rounds go on while the
    variance predicted for the samples that would be left still falls. The estimate uses only a fresh sample, drawn with
    everything frozen, so it is unbiased and its standard error is that of independent draws.

    Args:
        key: typed key.
        log_f: function x `[N, d]` -> `[N]`, the normalised log-density.
        functions: function x `[N, d]` -> `[N, J]`.
        start: first proposal; keep it wide, it also bounds f / h in the tails.
        budget: evaluations of f and the functions in all.
        round_size: of each round of adaptation.
        safety: weight of the start in h, in (0, 1).

    Raises:
        ValueError: a budget below three rounds; a weight outside (0, 1).

    Reference: Demange-Chryst, Bachoc & Morio 2022, arXiv 2212.00568 (the family and the stopping rule's idea; the
        Gaussian fit, the safety component and the least squares are this library's choice).

    >>> start = GaussianMixture(jnp.ones(1), jnp.zeros((1, 1)), 2 * jnp.eye(1)[None])
    >>> found = adaptive_importance_sampling(jax.random.key(0), lambda x: -x[:, 0]**2 / 2 - 0.918939, lambda x: x**2,
    ...                                      start, budget=4000)
    >>> found.estimate.value.shape
    (1,)
    """
    if budget < 3 * round_size:
        raise ValueError(f"budget={budget} must hold two rounds of {round_size} and a last sample")
    if not 0 < safety < 1:
        raise ValueError(f"safety={safety} must lie in (0, 1): the start is what bounds the weights in the tails")
    best, cost, left, rounds, h = (start, jnp.zeros(())), math.inf, budget, 0, start
    while left >= 2 * round_size:
        left, rounds = left - round_size, rounds + 1
        coefficients, variance, fitted = _round(
            jax.random.fold_in(key, rounds), log_f, functions, h, start, safety, round_size
        )
        predicted = float(variance) / left
        if not predicted < cost:
            break
        best, cost, h = (h, coefficients), predicted, fitted
    estimate = _final(jax.random.fold_in(key, 0), log_f, functions, *best, left)
    return Adapted(estimate, *best, rounds, left)


class _Sampled(NamedTuple):
    x: Array  # [N, d]
    values: Array  # [N, J]
    log_ratio: Array  # [N]
    controls: Array  # [N, C]

    @property
    def products(self) -> Array:
        """phi f / h, `[N, J]`."""
        return self.values * jnp.exp(self.log_ratio)[:, None]


@functools.partial(jax.jit, static_argnums=(1, 2, 6))
def _round(
    key: Array,
    log_f: Callable,
    functions: Callable,
    h: GaussianMixture,
    start: GaussianMixture,
    safety: Any,
    n: int,
) -> tuple[Array, Array, GaussianMixture]:
    """(coefficients under h, relative variance of one draw with them, the next h)."""
    sampled = _drawn(key, log_f, functions, h, n)
    coefficients = regression(sampled.products, sampled.controls)
    return coefficients, _relative_variance(sampled, coefficients), _fitted(sampled, start, safety)


@functools.partial(jax.jit, static_argnums=(1, 2, 5))
def _final(
    key: Array, log_f: Callable, functions: Callable, h: GaussianMixture, coefficients: Array, n: int
) -> Estimate:
    final = _drawn(key, log_f, functions, h, n)
    return importance_sampling(final.values, final.log_ratio, final.controls, coefficients)


def _drawn(key: Array, log_f: Callable, functions: Callable, h: GaussianMixture, n: int) -> _Sampled:
    x = h.draw(key, n)
    log_h = h.log_prob(x)
    return _Sampled(x, functions(x), log_f(x) - log_h, density_controls(h.log_components(x), log_h))


def _relative_variance(sampled: _Sampled, coefficients: Array) -> Array:
    """Mean over the functions of variance / value^2, of one draw."""
    residual = sampled.products - sampled.controls @ coefficients
    return jnp.mean(jnp.var(residual, axis=0) / jnp.mean(residual, axis=0) ** 2)


def _fitted(sampled: _Sampled, start: GaussianMixture, safety: Any) -> GaussianMixture:
    """One Gaussian a function, by the moments of the sample under |phi_j| f / h, beside the start."""
    share = jnp.abs(sampled.products)
    share = share / share.sum(axis=0, keepdims=True)
    means = share.T @ sampled.x
    centred = sampled.x[:, None] - means[None]
    covariance = jnp.einsum("nj,nja,njb->jab", share, centred, centred)
    small = jnp.trace(covariance, axis1=1, axis2=2) / sampled.x.shape[1] * 1e-6
    roots = jnp.linalg.cholesky(covariance + small[:, None, None] * jnp.eye(sampled.x.shape[1])[None])
    count = means.shape[0]
    weights = jnp.concatenate([safety * start.weights, jnp.full(count, (1 - safety) / count)])
    return GaussianMixture(weights, jnp.concatenate([start.means, means]), jnp.concatenate([start.roots, roots]))
