"""Likelihood of a masked model: four equal losses, the any-order bound, a tighter one, and exact sums on small lengths.

For clean x and a set S of masked positions let l(S) = sum_{i in S} -log c(x_i | x outside S). Training losses of masked
diffusion are all sum_S w(S) l(S) with w(S) = (|S| - 1)! (L - |S|)! / L!, which equals E_order[-log p_order(x)] and
bounds -log E_order p_order(x), the likelihood of first-hitting sampling (Ou et al. 2024, arXiv 2406.03736, section 3).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.discrete.decoder import of_token
from diffsample.discrete.model import Laws, MaskedModel
from diffsample.discrete.schedules import Schedule
from diffsample.sampler import fold

PyTree: TypeAlias = Any


class Estimate(NamedTuple):
    """An average over independent draws."""

    value: Array  # [B], nats
    standard_error: Array  # [B]


def masked_loss(model: MaskedModel, x: Array, masked: Array, cond: PyTree = None, *, chunk: int = 64) -> Array:
    """l(S) = sum over the masked positions of -log c(x_l | the others), nats [B].

    Args:
        x: int32 [B, L] clean tokens. masked: bool [B, L], the set S. chunk: positions whose logits exist at a time.
    """
    hidden = jnp.where(masked, model.mask_id, x)
    clock = jnp.mean(masked, axis=1, dtype=jnp.float32)
    laws = Laws(model, model(hidden, clock, cond), hidden, chunk)
    log_c = laws.everywhere(lambda log_p, at: of_token(log_p, jnp.take_along_axis(x, at, axis=1)))
    return -jnp.sum(jnp.where(masked, log_c, 0.0), axis=1)


def set_weights(length: int) -> np.ndarray:
    """w(S) by the size of S, [L + 1]; w of the empty set is 0.

    >>> set_weights(3).round(4).tolist()
    [0.0, 0.3333, 0.1667, 0.3333]
    """
    k = np.arange(1, length + 1)
    logs = [math.lgamma(i) + math.lgamma(length - i + 1) - math.lgamma(length + 1) for i in k]
    return np.append(0.0, np.exp(logs))


def score_entropy(
    model: MaskedModel, x: Array, masked: Array, schedule: Schedule, t: Array, cond: PyTree = None
) -> Array:
    """Integrand of the denoising score entropy at time t, masks drawn with m(t): SEDD's loss, with s = c /
    expm1(sigma).

    sigma'(t) sum_masked [sum_v s_v - a log s_x + a (log a - 1)], a = 1 / expm1(sigma). Equal to `cross_entropy` at
    every t and mask, because sum_v c = 1; here the sum is the network's own.

    Args:
        x, masked: as for `masked_loss`. t: [B] noise times.

    Reference: Lou et al. 2024, arXiv 2310.16834, eq. 9; Ou et al. 2024, arXiv 2406.03736, eq. 3.3.
    """
    rate, a = _rates(schedule, t)
    hidden = jnp.where(masked, model.mask_id, x)
    laws = Laws(model, model(hidden, 1 - schedule.alpha(t), cond), hidden)

    def terms(log_p: Array, at: Array) -> Array:
        log_a = jnp.log(a)[:, None]
        total = jnp.exp(log_a) * jnp.sum(jnp.exp(log_p), axis=-1)
        log_s = log_a + of_token(log_p, jnp.take_along_axis(x, at, axis=1))
        return total - jnp.exp(log_a) * log_s + jnp.exp(log_a) * (log_a - 1)

    return rate * jnp.sum(jnp.where(masked, laws.everywhere(terms), 0.0), axis=1)


def cross_entropy(
    model: MaskedModel, x: Array, masked: Array, schedule: Schedule, t: Array, cond: PyTree = None
) -> Array:
    """Integrand of the denoising cross-entropy at time t, masks drawn with m(t): sigma' / expm1(sigma) l(S).

    With the linear schedule it is l(S) / t, the loss of MDLM, MD4 and LLaDA.

    Reference: Ou et al. 2024, arXiv 2406.03736, eq. 3.4; Shi et al. 2024, arXiv 2406.04329, eq. 5.
    """
    rate, a = _rates(schedule, t)
    return rate * a * masked_loss(model, x, masked, cond)


def any_order_bound(
    key: Array, model: MaskedModel, x: Array, cond: PyTree = None, *, draws: int = 128, frozen: Array | None = None
) -> Estimate:
    """Unbiased estimate of the any-order bound on -log p(x): mean of (L / k) l(S), |S| = k, k stratified over 1 .. L.

    Stratifying k removes most of the variance; drawing a mask ratio instead of k has infinite variance.

    Args:
        key: typed key. model, x [B, L], cond: as elsewhere. draws: masks a sequence, a call each.
        frozen: bool [B, L], prompt or padding, given and not counted.

    Returns: nats a sequence and their standard error, [B]. Divide by L log 2 for bits a token.

    Raises:
        ValueError: fewer than two draws.

    Reference: Ou et al. 2024, arXiv 2406.03736, eq. 3.5; Nie et al. 2025, arXiv 2502.09992, eq. 14.

    >>> from diffsample.discrete import from_logits
    >>> model = from_logits(lambda p, x, cond: jnp.zeros((*x.shape, 4)), (), 4, 4)
    >>> bound = any_order_bound(jax.random.key(0), model, jnp.zeros((1, 8), int), draws=4)
    >>> round(float(bound.value[0]) / 8 / math.log(2), 4)
    2.0
    """
    if draws < 2:
        raise ValueError(f"draws={draws} must be at least 2")
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(x.shape[0], dtype=jnp.uint32))
    free = jnp.ones(x.shape, bool) if frozen is None else ~frozen
    count = jnp.sum(free, axis=1)
    offset = jax.vmap(jax.random.uniform)(fold(keys, 0))

    def one(j: Array) -> Array:
        k = jnp.floor((j + offset) / draws * count).astype(jnp.int32) + 1
        noise = jax.vmap(lambda key: jax.random.uniform(key, x.shape[1:]))(fold(keys, 1 + j))
        ranks = jnp.argsort(jnp.argsort(jnp.where(free, noise, 2.0), axis=1), axis=1)
        return count / k * masked_loss(model, x, free & (ranks < k[:, None]), cond)

    losses = jax.lax.map(one, jnp.arange(draws))
    return Estimate(jnp.mean(losses, axis=0), jnp.std(losses, axis=0, ddof=1) / math.sqrt(draws))


def importance_weighted_bound(
    key: Array, model: MaskedModel, x: Array, cond: PyTree = None, *, orders: int = 16
) -> Array:
    """-log mean_j p_order_j(x) over random orders, [B]: tighter than the any-order bound, and converging to -log p(x).

    Costs L calls an order. The same estimate with other orders is lower in expectation with more of them.

    Args:
        key: typed key. orders: M.

    Reference: Burda et al. 2016, arXiv 1509.00519; for orders Liu et al. 2024, arXiv 2310.12920, section 4.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(x.shape[0], dtype=jnp.uint32))

    def order(j: Array) -> Array:
        noise = jax.vmap(lambda key: jax.random.uniform(key, x.shape[1:]))(fold(keys, j))
        ranks = jnp.argsort(jnp.argsort(noise, axis=1), axis=1)

        def step(i: Array, total: Array) -> Array:
            hidden = jnp.where(ranks >= i, model.mask_id, x)
            at = jnp.argmax(ranks == i, axis=1)[:, None].astype(jnp.int32)
            features = model(hidden, jnp.mean(ranks >= i, axis=1, dtype=jnp.float32), cond)
            token = jnp.take_along_axis(x, at, axis=1)
            return total + of_token(model.log_probs(features, at), token)[:, 0]

        start = jnp.zeros(x.shape[0], jnp.result_type(float))
        return jax.lax.fori_loop(0, x.shape[1], step, start)

    logs = jax.lax.map(order, jnp.arange(orders))
    return math.log(orders) - jax.nn.logsumexp(logs, axis=0)


def enumerated(model: MaskedModel, x: Array, combine: Callable[[np.ndarray], float], cond: PyTree = None) -> np.ndarray:
    """combine(l or laws of all 2^L masks) a sequence, on the host; see `log_likelihood` and `exact_bound`."""
    length = x.shape[1]
    if length > 16:
        raise ValueError(f"enumeration of all masks of {length} positions is too large; at most 16")
    masks = jnp.asarray((np.arange(2**length)[:, None] >> np.arange(length)[None, :]) & 1, bool)
    rows = []
    for i in range(x.shape[0]):
        clean = jnp.broadcast_to(x[i : i + 1], masks.shape)
        hidden = jnp.where(masks, model.mask_id, clean)
        given = jax.tree.map(lambda leaf, i=i: jnp.repeat(leaf[i : i + 1], len(masks), axis=0), cond)
        laws = Laws(model, model(hidden, jnp.mean(masks, axis=1, dtype=jnp.float32), given), hidden)
        rows.append(np.asarray(of_token(laws.everywhere(lambda log_p, at: log_p), clean), np.float64))
    return np.array([combine(row) for row in rows])


def log_likelihood(model: MaskedModel, x: Array, cond: PyTree = None) -> np.ndarray:
    """log E_order p_order(x), the exact log-likelihood of first-hitting sampling, [B]: 2^L rows a sequence, L <= 16.

    >>> from diffsample.discrete import from_logits
    >>> model = from_logits(lambda p, x, cond: jnp.zeros((*x.shape, 4)), (), 4, 4)
    >>> log_likelihood(model, jnp.zeros((1, 3), int)).round(4).tolist()
    [-4.1589]
    """
    length = x.shape[1]

    def combine(log_c: np.ndarray) -> float:
        p = np.zeros(2**length)  # of the masked tokens given the others, in a random order
        p[0] = 1.0
        for mask in range(1, 2**length):
            members = [i for i in range(length) if mask >> i & 1]
            p[mask] = np.mean([np.exp(log_c[mask, i]) * p[mask ^ (1 << i)] for i in members])
        return float(np.log(p[-1]))

    return enumerated(model, x, combine, cond)


def exact_bound(model: MaskedModel, x: Array, cond: PyTree = None) -> np.ndarray:
    """sum_S w(S) l(S), the any-order bound itself, [B]: 2^L rows a sequence, L <= 16.

    >>> from diffsample.discrete import from_logits
    >>> model = from_logits(lambda p, x, cond: jnp.zeros((*x.shape, 4)), (), 4, 4)
    >>> exact_bound(model, jnp.zeros((1, 3), int)).round(4).tolist()
    [4.1589]
    """
    length = x.shape[1]
    masks = (np.arange(2**length)[:, None] >> np.arange(length)[None, :]) & 1
    weights = set_weights(length)[masks.sum(axis=1)]
    return enumerated(model, x, lambda log_c: float(-np.sum(weights[:, None] * masks * log_c)), cond)


def _rates(schedule: Schedule, t: Array) -> tuple[Array, Array]:
    """(sigma'(t), 1 / expm1(sigma)) = (-alpha' / alpha, alpha / (1 - alpha)), [B]."""
    alpha, slope = schedule.alpha(t), jax.vmap(jax.grad(schedule.alpha))(t)
    return -slope / alpha, alpha / (1 - alpha)
