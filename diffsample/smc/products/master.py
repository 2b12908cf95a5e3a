"""The master formula of Feynman-Kac correctors, on plain arrays.

Coordinates are y = x / alpha, where every forward process only adds noise: y_t = x0 + rho z with rho = sigma / alpha,
and time is the variance u = rho^2, which falls while sampling. For experts q_i with scores s_i, exponents beta_i, and a
reward r, the path of targets p = prod_i q_i^beta_i e^r and S = sum_i beta_i s_i, the particles

    dy = ((1 + rate) / 2 S + rate / 2 grad r) du + sqrt(rate) dW_u,        du > 0 towards the data,

carry p when each is weighted by d log w = g du,

    g = (|S|^2 - sum_i beta_i |s_i|^2) / 2 + sum_i beta_i' log q_i + r' + grad r . S / 2,

at any noise `rate` >= 0: 1 is called target score, 1 / beta tempered noise (Skreta et al. 2025, arXiv 2503.02819,
propositions for annealing, products and guidance in one). A drift w du added to the particles adds
(div w + w . (S + grad r)) du to log w: the gauge freedom that `gauge` uses.

The normaliser belongs to densities of y. In x, densities differ by alpha^d, which is the term (sum_i beta_i - 1) div f
of the papers.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array


class Spread(NamedTuple):
    """Vectors v_i weighted by exponents, told by their differences from the first: nothing large cancels."""

    first: Array  # [B, ...] v_0
    shift: Array  # [B, ...] sum_i beta_i (v_i - v_0)
    square: Array  # [B, ...] sum_i beta_i (v_i - v_0)^2, elementwise


def spread(vectors: Array, exponents: Array) -> Spread:
    """The weighted differences of vectors [E, B, ...] from the first, under exponents [E]."""
    weights = exponents.reshape(-1, *(1,) * (vectors.ndim - 1))
    away = vectors - vectors[:1]
    return Spread(vectors[0], (weights * away).sum(axis=0), (weights * away**2).sum(axis=0))


def total(values: Array) -> Array:
    """Sum over all axes but the batch."""
    return values.reshape(len(values), -1).sum(axis=1)


def weight_rate(scores: Array, exponents: Any) -> Array:
    """(|S|^2 - sum_i beta_i |s_i|^2) / 2, the rate of log w for fixed exponents and no reward, [B].

    For one expert beta (beta - 1) |s|^2 / 2, for two with exponents 1 s_1 . s_2, for guidance of scale w
    w (w - 1) |s_c - s_u|^2 / 2, which is computed from the difference.

    Args:
        scores: [E, B, ...], float32 at least. exponents: [E].

    >>> import jax.numpy as jnp
    >>> weight_rate(jnp.array([[[2.0]], [[3.0]]]), jnp.array([1.0, 1.0])).tolist()
    [6.0]
    """
    exponents = jnp.asarray(exponents, scores.dtype)
    first, shift, square = spread(scores, exponents)
    excess = exponents.sum() - 1
    return 0.5 * total(excess * (excess + 1) * first**2 + 2 * excess * first * shift + shift**2 - square)


def master_rate(
    scores: Array, exponents: Any, slopes: Any, log_q: Array, reward_slope: Array, reward_gradient: Array
) -> Array:
    """The whole g [B] for exponents that change and a reward.

    Args:
        scores: [E, B, ...]. exponents, slopes: [E], beta_i and d beta_i / du towards the data.
        log_q: [E, B] log-densities of the experts. reward_slope: [B] partial derivative of r by u towards the data.
        reward_gradient: [B, ...] gradient of r.
    """
    exponents, slopes = jnp.asarray(exponents, scores.dtype), jnp.asarray(slopes, scores.dtype)
    S = jnp.tensordot(exponents, scores, 1)
    moving = reward_slope + 0.5 * total(reward_gradient * S)
    return weight_rate(scores, exponents) + jnp.tensordot(slopes, log_q, 1) + moving


def log_kernel_ratio(
    step: Array, scores: Array, exponents: Any, gap: Array, law: tuple[Array, tuple[Array, Array]]
) -> Array:
    """log of prod_i p_i(y'|y)^beta_i r(y|y')^(1 - sum beta) / K(y'|y), the corrector of one step of any size, [B].

    p_i = N(y + gap s_i, wide) are the experts' reverse kernels, r = N(y'; gap) their common forward kernel and
    K = N(mean, law) what y' was drawn from. Exact where the p_i are, at any step. Quadratics are differenced
    element by element.

    Args:
        step: [B, ...] y' - y. scores: [E, B, ...] at y. exponents: [E].
        gap: u - u', as [B, 1, ...] or a scalar: the variance of the forward kernel.
        law: the mean of y' - y under K, [B, ...], and pair of variances (wide, that of K) shaped as gap.

    Reference: Skreta et al. 2025, arXiv 2503.02819, in discrete time.
    """
    mean, (wide, narrow) = law
    exponents = jnp.asarray(exponents, step.dtype)
    count = exponents.sum()
    first, shift, square = spread(scores, exponents)
    off = step - gap * first
    experts = count * off**2 - 2 * gap * off * shift + gap**2 * square
    quadratic = -experts / wide + (step - mean) ** 2 / narrow + (count - 1) * step**2 / gap
    scale = (count - 1) * jnp.log(gap) - count * jnp.log(wide) + jnp.log(narrow)
    return 0.5 * total(quadratic + scale)
