"""Likelihood of a masked model: the any-order bound, a tighter one, and exact sums over all masks on small lengths.

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
from diffsample.discrete.losses import check_clean, loss_and_fault, set_weights
from diffsample.discrete.model import Laws, MaskedModel
from diffsample.sampler import fold
from diffsample.tableau import is_concrete

PyTree: TypeAlias = Any


class Estimate(NamedTuple):
    """An average over independent draws."""

    value: Array  # [B], nats
    standard_error: Array  # [B]


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
        ValueError: fewer than two draws; tokens out of range, or masks, named.
        FloatingPointError: the model gave no law, with the sequence and the position.

    Reference: Ou et al. 2024, arXiv 2406.03736, eq. 3.5; Nie et al. 2025, arXiv 2502.09992, eq. 14.

    >>> from diffsample.discrete import from_logits
    >>> model = from_logits(lambda p, x, cond: jnp.zeros((*x.shape, 4)), (), 4, 4)
    >>> bound = any_order_bound(jax.random.key(0), model, jnp.zeros((1, 8), int), draws=4)
    >>> round(float(bound.value[0]) / 8 / math.log(2), 4)
    2.0
    """
    if draws < 2:
        raise ValueError(f"draws={draws} must be at least 2")
    check_clean(model, x, frozen)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(x.shape[0], dtype=jnp.uint32))
    free = jnp.ones(x.shape, bool) if frozen is None else ~frozen
    count = jnp.sum(free, axis=1)
    offset = jax.vmap(jax.random.uniform)(fold(keys, 0))

    def one(j: Array) -> tuple[Array, Array]:
        k = jnp.floor((j + offset) / draws * count).astype(jnp.int32) + 1
        noise = jax.vmap(lambda key: jax.random.uniform(key, x.shape[1:]))(fold(keys, 1 + j))
        ranks = jnp.argsort(jnp.argsort(jnp.where(free, noise, 2.0), axis=1), axis=1)
        loss, fault = loss_and_fault(model, x, free & (ranks < k[:, None]), cond)
        return count / k * loss, fault

    losses, faults = jax.lax.map(one, jnp.arange(draws))
    refuse_broken(jnp.max(faults, axis=0))
    return Estimate(jnp.mean(losses, axis=0), jnp.std(losses, axis=0, ddof=1) / math.sqrt(draws))


def importance_weighted_bound(
    key: Array, model: MaskedModel, x: Array, cond: PyTree = None, *, orders: int = 16
) -> Array:
    """-log mean_j p_order_j(x) over random orders, [B]: tighter than the any-order bound, and converging to -log p(x).

    Costs L calls an order. The same estimate with other orders is lower in expectation with more of them.

    Args:
        key: typed key. model, x [B, L], cond: as elsewhere. orders: M, at least 1.

    Raises:
        ValueError: no order; tokens out of range, or masks, named.
        FloatingPointError: the model gave no law, with the sequence and the position.

    Reference: Burda et al. 2016, arXiv 1509.00519; for orders Liu et al. 2024, arXiv 2310.12920, section 4.

    >>> from diffsample.discrete import from_logits
    >>> model = from_logits(lambda p, x, cond: jnp.zeros((*x.shape, 4)), (), 4, 4)
    >>> importance_weighted_bound(jax.random.key(0), model, jnp.zeros((1, 3), int), orders=2).round(3).tolist()
    [4.15...]
    """
    if orders < 1:
        raise ValueError(f"orders={orders} must be at least 1")
    check_clean(model, x)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(x.shape[0], dtype=jnp.uint32))

    def order(j: Array) -> tuple[Array, Array]:
        noise = jax.vmap(lambda key: jax.random.uniform(key, x.shape[1:]))(fold(keys, j))
        ranks = jnp.argsort(jnp.argsort(noise, axis=1), axis=1)

        def step(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            hidden = jnp.where(ranks >= i, model.mask_id, x)
            at = jnp.argmax(ranks == i, axis=1)[:, None].astype(jnp.int32)
            features = model(hidden, jnp.mean(ranks >= i, axis=1, dtype=jnp.float32), cond)
            token = jnp.take_along_axis(x, at, axis=1)
            log_c = of_token(model.log_probs(features, at), token)[:, 0]
            total, fault = carry
            return total + log_c, jnp.where(jnp.isnan(log_c) & (fault < 0), at[:, 0], fault)

        start = jnp.zeros(x.shape[0], jnp.result_type(float)), jnp.full(x.shape[0], -1, jnp.int32)
        return jax.lax.fori_loop(0, x.shape[1], step, start)

    logs, faults = jax.lax.map(order, jnp.arange(orders))
    refuse_broken(jnp.max(faults, axis=0))
    return math.log(orders) - jax.nn.logsumexp(logs, axis=0)


def enumerated(model: MaskedModel, x: Array, combine: Callable[[np.ndarray], float], cond: PyTree = None) -> np.ndarray:
    """combine(l or laws of all 2^L masks) a sequence, on the host; see `log_likelihood` and `exact_bound`."""
    check_clean(model, x)
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
        log_c = of_token(laws.everywhere(lambda mended, at, laws=laws: model.log_probs(laws.features, at)), clean)
        rows.append(np.where(masks, np.asarray(log_c, np.float64), 0.0))
    bad = np.any(np.isnan(np.stack(rows)), axis=1)  # [B, L]
    refuse_broken(np.where(np.any(bad, axis=1), np.argmax(bad, axis=1), -1))
    return np.array([combine(row) for row in rows])


def log_likelihood(model: MaskedModel, x: Array, cond: PyTree = None) -> np.ndarray:
    """log E_order p_order(x), the exact log-likelihood of first-hitting sampling, [B]: 2^L rows a sequence, L <= 16.

    >>> from diffsample.discrete import from_logits
    >>> model = from_logits(lambda p, x, cond: jnp.zeros((*x.shape, 4)), (), 4, 4)
    >>> log_likelihood(model, jnp.zeros((1, 3), int)).round(4).tolist()
    [-4.1589]
    """

    def combine(log_c: np.ndarray) -> float:
        length = log_c.shape[1]
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

    def combine(log_c: np.ndarray) -> float:
        length = log_c.shape[1]
        masks = (np.arange(2**length)[:, None] >> np.arange(length)[None, :]) & 1
        return float(-np.sum(set_weights(length)[masks.sum(axis=1), None] * log_c))

    return enumerated(model, x, combine, cond)


def refuse_broken(faults: Any) -> None:
    """Raise FloatingPointError where a concrete fault [B] names a position, for the first such sequence."""
    if is_concrete(faults) and (np.asarray(faults) >= 0).any():
        i = int(np.flatnonzero(np.asarray(faults) >= 0)[0])
        raise FloatingPointError(f"the model gave NaN logits or no possible token at position {int(faults[i])} of "
                                 f"sequence {i}: there is no likelihood")  # fmt: skip
