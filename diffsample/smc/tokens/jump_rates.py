"""Feynman-Kac correctors on discrete states: jump rates and weights whose weighted law follows a chosen path.

The path is p_t(x), up to a factor, prod_i q_i,t(x)^beta_i exp(rho_t(x)): noised laws of experts that share forward
rates Q(x -> y), exponents, a reward. Time tau runs from noise to data. Particles jump with rates R and their
log-weights grow at g.

Reference: Hasan et al. 2026, Discrete Feynman-Kac Correctors, arXiv 2601.10403 (derived anew here, see the tests).
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array


class Jumps(NamedTuple):
    """Where a particle jumps and how its weight grows."""

    rates: Array  # [B, ...], to each neighbour, 0 where there is none
    growth: Array  # [B], of the log-weight


def corrected_jumps(
    forward: Array,
    backward: Array,
    log_ratios: Array,
    exponents: Any,
    *,
    gain: Any = 0.0,
    drift: Any = 0.0,
    scale: Any = None,
) -> Jumps:
    """Jump rates and weights of a product of experts with a reward, for any forward process.

    With B = sum beta, y over the neighbours of x, and p(y)/p(x) = prod_i (q_i(y)/q_i(x))^beta_i e^(rho(y) - rho(x)):

        R(x -> y) = c Q(y -> x) p(y)/p(x),
        g = sum_y [(B - c) Q(x -> y) + Q(y -> x) (c p(y)/p(x) - sum_i beta_i q_i(y)/q_i(x))] + drift.

    Args:
        forward: `[B, ...]`, or what broadcasts to it: Q(x -> y) to the neighbours, axes `[L, V]` for sequences; 0 where
            y is x.
        backward: the same of Q(y -> x).
        log_ratios: `[E, B, ...]`, log q_i(y) - log q_i(x): the experts' concrete scores.
        exponents: beta, `[E]`.
        gain: `[B, ...]`, rho(y) - rho(x).
        drift: `[B]`, the time derivative of rho plus sum_i (d beta_i / d tau) log q_i, where they move.
        scale: c > 0; None is B, where no forward rate enters g. Any c has the same weighted law.

    Returns:
        `Jumps`, rates `[B, ...]`.

    >>> jumps = corrected_jumps(jnp.ones(2), jnp.ones(2), jnp.zeros((1, 1, 2)), jnp.ones(1))
    >>> jumps.rates.tolist(), jumps.growth.tolist()
    ([[1.0, 1.0]], [0.0])
    """
    beta = jnp.asarray(exponents)
    total = jnp.sum(beta)
    scale = total if scale is None else scale
    forward, backward = (jnp.broadcast_to(rate, log_ratios.shape[1:]) for rate in (forward, backward))
    tilted = jnp.exp(jnp.tensordot(beta, log_ratios, axes=1) + gain)
    own = jnp.tensordot(beta, jnp.exp(log_ratios), axes=1)
    flow = (total - scale) * forward + backward * (scale * tilted - own)
    return Jumps(scale * backward * tilted, jnp.sum(flow, axis=range(1, flow.ndim)) + drift)


def unmasking_jumps(
    log_p: Array, masked: Array, exponents: Any, hazard: Any, *, gain: Any = 0.0, drift: Any = 0.0
) -> Jumps:
    """Masked diffusion with the masks' law left as it is (path B): the recommended form.

    The path is P_t(masks) prod_i q_i,0(tokens)^beta_i e^rho. With U_l = sum_v prod_i mu_i^l(v)^beta_i e^(gain),

        R(l <- v) = hazard prod_i mu_i^l(v)^beta_i e^(gain),      g = hazard sum_masked (U_l - 1) + drift.

    Args:
        log_p: `[E, B, L, V]` log-laws mu_i. masked: `[B, L]`. exponents: `[E]`.
        hazard: a/(1 - alpha), a = -d alpha/dt; 1/t on the linear schedule. Scalar or `[B]`.
        gain: `[B, L, V]`, rho of x with v at l, minus rho(x); `neighbour_gains`.
        drift: `[B]`, the time derivative of rho.

    Returns:
        `Jumps`, rates `[B, L, V]`.

    >>> jumps = unmasking_jumps(jnp.log(jnp.full((1, 1, 1, 2), 0.5)), jnp.ones((1, 1), bool), [2.0], 1.0)
    >>> jumps.rates.tolist(), jumps.growth.tolist()
    ([[[0.25, 0.25]]], [-0.5])
    """
    tilted = _tilted(log_p, exponents, gain, masked)
    hazard = jnp.broadcast_to(jnp.asarray(hazard, tilted.dtype), masked.shape[:1])
    excess = jnp.sum(jnp.where(masked, jnp.sum(tilted, axis=-1) - 1, 0.0), axis=1)
    return Jumps(hazard[:, None, None] * tilted, hazard * excess + drift)


def tempered_unmasking_jumps(
    log_p: Array, masked: Array, exponents: Any, alpha: Any, slope: Any, *, gain: Any = 0.0, drift: Any = 0.0
) -> Jumps:
    """Masked diffusion along prod_i q_i,t^beta_i e^rho, masks tempered too (path A), as published.

    With a = -d alpha/dt, r = alpha/(1 - alpha), B = sum beta and U_l as in `unmasking_jumps`,

        R(l <- v) = B (a/alpha) r^B prod_i mu_i^l(v)^beta_i e^(gain),
        g = sum_masked [B (a/alpha) r^B U_l - B a/(1 - alpha)] + drift.

    The end is that of `unmasking_jumps`; for B other than 1 the rates are stiff at both ends.

    Args:
        log_p, masked, exponents, gain, drift: as for `unmasking_jumps`.
        alpha: probability that a token is unmasked, in (0, 1). slope: a. Scalars or `[B]`.

    Returns:
        `Jumps`, rates `[B, L, V]`.

    Reference: Hasan et al. 2026, arXiv 2601.10403.

    >>> law = jnp.log(jnp.full((1, 1, 1, 2), 0.5))
    >>> tempered_unmasking_jumps(law, jnp.ones((1, 1), bool), [1.0], 0.5, 1.0).growth.tolist()
    [0.0]
    """
    tilted = _tilted(log_p, exponents, gain, masked)
    total = jnp.sum(jnp.asarray(exponents))
    alpha, slope = (jnp.broadcast_to(jnp.asarray(v, tilted.dtype), masked.shape[:1]) for v in (alpha, slope))
    rate = total * slope / alpha * (alpha / (1 - alpha)) ** total
    leaving = (total * slope / (1 - alpha))[:, None]
    flow = jnp.where(masked, rate[:, None] * jnp.sum(tilted, axis=-1) - leaving, 0.0)
    return Jumps(rate[:, None, None] * tilted, jnp.sum(flow, axis=1) + drift)


def _tilted(log_p: Array, exponents: Any, gain: Any, masked: Array) -> Array:
    """prod_i mu_i^beta_i e^gain at masked positions, 0 elsewhere, `[B, L, V]`; 0^0 is 1."""
    beta = jnp.asarray(exponents)[:, None, None, None]
    log_tilted = jnp.sum(jnp.where(beta == 0, 0.0, beta * jnp.where(beta == 0, 0.0, log_p)), axis=0) + gain
    return jnp.where(masked[..., None], jnp.exp(log_tilted), 0.0)


def kernel_ratio(log_p: Array, log_r: Array, log_k: Array, exponents: Any) -> Array:
    """log-weight of one step of a product of experts, exact at any step size on any state space.

    sum_i beta_i log p_i(x_s | x_t) + (1 - B) log r(x_t | x_s) - log K(x_s | x_t), for reverse kernels p_i, the common
    forward kernel r and the proposal K. With exact reversals p_i the weighted law goes from prod_i q_i,t^beta_i to
    prod_i q_i,s^beta_i.

    Args:
        log_p: `[E, ...]`. log_r, log_k: `[...]`. exponents: beta, `[E]`.

    >>> kernel_ratio(jnp.zeros((2, 1)), jnp.ones(1), jnp.zeros(1), jnp.ones(2)).tolist()
    [-1.0]
    """
    beta = jnp.asarray(exponents)
    return jnp.tensordot(beta, log_p, axes=1) + (1 - jnp.sum(beta)) * log_r - log_k
