"""The four equal losses of masked diffusion: score entropy, cross-entropy in t, in the mask ratio, and any order.

For clean x and a set S of masked positions let l(S) = sum_{i in S} -log c(x_i | x outside S). Each is in expectation
sum_S w(S) l(S) with w(S) = (|S| - 1)! (L - |S|)! / L!, the bound that `diffsample.discrete.likelihood` estimates. The
cross-entropy in the mask ratio is that of the linear schedule.
"""

import math
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.discrete.decoder import of_token
from diffsample.discrete.draws import Draws, draws_of
from diffsample.discrete.model import Laws, MaskedModel
from diffsample.discrete.schedules import Schedule
from diffsample.tableau import is_concrete

PyTree: TypeAlias = Any

WHEN, HOW_MANY = 0, 1  # streams


def masked_loss(model: MaskedModel, x: Array, masked: Array, cond: PyTree = None, *, chunk: int = 64) -> Array:
    """l(S) = sum over the masked positions of -log c(x_l | the others), nats [B].

    Args:
        x: int32 [B, L] clean tokens. masked: bool [B, L], the set S. chunk: positions whose logits exist at a time.

    Returns: [B]; infinite where the model excludes a token, NaN where it gives no law at a masked position.

    Raises:
        ValueError: tokens out of range, or masks, named.
    """
    check_clean(model, x, masked)
    return loss_and_fault(model, x, masked, cond, chunk)[0]


def loss_and_fault(
    model: MaskedModel, x: Array, masked: Array, cond: PyTree = None, chunk: int = 64
) -> tuple[Array, Array]:
    """(l(S), the first masked position where the model gives no law, -1 if none), [B] each."""
    hidden = jnp.where(masked, model.mask_id, x)
    clock = jnp.mean(masked, axis=1, dtype=jnp.float32)
    laws = Laws(model, model(hidden, clock, cond), hidden, chunk)

    def raw(mended: Array, at: Array) -> Array:
        return of_token(model.log_probs(laws.features, at), jnp.take_along_axis(x, at, axis=1))

    log_c = jnp.where(masked, laws.everywhere(raw), 0.0)
    bad = jnp.isnan(log_c)
    return -jnp.sum(log_c, axis=1), jnp.where(jnp.any(bad, axis=1), jnp.argmax(bad, axis=1), -1).astype(jnp.int32)


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
    check_clean(model, x, masked)
    rate, a = _rates(schedule, t)
    hidden = jnp.where(masked, model.mask_id, x)
    laws = Laws(model, model(hidden, 1 - schedule.alpha(t), cond), hidden)

    def terms(mended: Array, at: Array) -> Array:
        log_p = model.log_probs(laws.features, at)
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


def any_order_loss(
    key: Array | Draws, model: MaskedModel, x: Array, cond: PyTree = None, *, frozen: Array | None = None
) -> Array:
    """The training loss of masked models, (L / k) l(S) of one random set of k positions, k uniform on 1 .. L; [B].

    Equal in expectation to the score entropy and the cross-entropy of every schedule: `exact_bound`. `any_order_bound`
    averages it over many sets, k stratified.

    Args:
        key: typed key. x: int32 `[B, L]` clean. frozen: bool `[B, L]`, prompt or padding, given and not counted.

    Raises:
        ValueError: tokens out of range, or masks, named.

    Reference: Ou et al. 2024, arXiv 2406.03736, eq. 3.5; Hoogeboom et al. 2022, arXiv 2110.02037.

    >>> from diffsample.discrete import from_logits
    >>> model = from_logits(lambda p, x, cond: jnp.zeros((*x.shape, 4)), (), 4, 4)
    >>> any_order_loss(jax.random.key(0), model, jnp.zeros((2, 8), int)).round(3).tolist()
    [11.09..., 11.09...]
    """
    check_clean(model, x, frozen)
    source = draws_of(key, len(x))
    free = jnp.ones(x.shape, bool) if frozen is None else ~frozen
    count = jnp.sum(free, axis=1)
    ranks = source.at(WHEN).ranks(jnp.where(free, 0.0, -jnp.inf))
    log_k = jnp.where(jnp.arange(x.shape[1])[None] < count[:, None], -jnp.log(jnp.maximum(count, 1))[:, None], -jnp.inf)
    k = source.at(HOW_MANY).tokens(log_k[:, None], (count > 0)[:, None]) + 1
    return jnp.where(count > 0, count / k[:, 0] * masked_loss(model, x, free & (ranks < k), cond), 0.0)


def check_clean(model: Any, x: Array, positions: Array | None = None) -> None:
    """Raise where concrete x is not clean tokens [B, L] of the model, naming the first id and its position."""
    if jnp.ndim(x) != 2 or not jnp.issubdtype(jnp.asarray(x).dtype, jnp.integer):
        raise TypeError(f"x must be integer tokens [batch, length], got {jnp.asarray(x).dtype} of shape {jnp.shape(x)}")
    if positions is not None and jnp.shape(positions) != jnp.shape(x):
        raise ValueError(f"positions of shape {jnp.shape(positions)} for x of shape {jnp.shape(x)}; masked and frozen "
                         f"are bool, one a token of x")  # fmt: skip
    if not is_concrete(x):
        return
    ids = np.asarray(x)
    bad = (ids < 0) | (ids >= model.vocab) | (ids == model.mask_id)
    if bad.any():
        i, at = (int(n[0]) for n in np.nonzero(bad))
        kind = "the mask" if ids[i, at] == model.mask_id else f"outside 0 .. {model.vocab - 1}"
        raise ValueError(f"x must be clean: sequence {i} holds {ids[i, at]} at position {at}, which is {kind}")


def _rates(schedule: Schedule, t: Array) -> tuple[Array, Array]:
    """(sigma'(t), 1 / expm1(sigma)) = (-alpha' / alpha, alpha / (1 - alpha)), [B]."""
    alpha, slope = schedule.alpha(t), jax.vmap(jax.grad(schedule.alpha))(t)
    return -slope / alpha, alpha / (1 - alpha)
