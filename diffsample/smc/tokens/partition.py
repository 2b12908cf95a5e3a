"""Bounds of the partition function of an energy over a masked model's factorised law, and the likelihood they give.

EDLM's joint law of the masked tokens is prod_l mu_l(x0_l | x) exp(-E(x0, x)) / Z(x). With draws from prod mu,
log mean exp(-E) is at most log Z in expectation (Jensen); with one of them replaced by a draw from the joint law itself
it is at least log Z (the law of the others is size-biased, and Jensen in the other direction).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.denoiser import PyTree
from diffsample.discrete.decoder import of_token
from diffsample.discrete.draws import Draws, draws_of
from diffsample.discrete.model import Laws, MaskedModel
from diffsample.tableau import is_concrete


class Bounds(NamedTuple):
    """Estimates, nats [B]: one that is at most the truth in expectation, one that is at least the truth."""

    lower: Array
    upper: Array


def partition_bounds(
    key: Array | Draws,
    model: MaskedModel,
    energy: Callable[[Array, Array, Array], Array],
    x: Array,
    tilted: Array,
    cond: PyTree = None,
    *,
    draws: int = 16,
) -> Bounds:
    """Stochastic bounds of log Z(x); both come closer to it with more draws. One network call, draws + 1 energies.

    Args:
        key: typed key. model: `MaskedModel`.
        energy: function (x0, x, log prod mu(x0)) -> E `[B]`, as for `energy_pick`.
        x: int32 `[B, L]` with masks.
        tilted: int32 `[B, L]`, completions of x drawn from the joint law, which the upper bound needs: the data that x
            was masked from, where the energy is exact; else picked by `energy_pick`, and then biased as that is.
        draws: n, at least 1.

    Raises:
        ValueError: no draw; completions that differ from x at an observed position or hold a mask.

    Reference: Xu et al. 2024, arXiv 2410.21357.

    >>> from diffsample import discrete
    >>> model = discrete.from_logits(lambda p, x, cond: jnp.zeros((*x.shape, 3)), (), vocab=3, mask_id=3)
    >>> x, x0 = jnp.array([[3, 3]]), jnp.array([[0, 1]])
    >>> partition_bounds(jax.random.key(0), model, lambda x0, x, log_mu: 0.0 * log_mu - 2.0, x, x0).upper.tolist()
    [2.0]
    """
    if draws < 1:
        raise ValueError(f"draws={draws} must be at least 1")
    masked = x == model.mask_id
    check_completions(model, x, tilted)
    log_p = masked_laws(model, x, cond)
    source = draws_of(key, len(x))
    drawn = [jnp.where(masked, source.at(i).tokens(log_p, masked), x) for i in range(draws)]
    every = jnp.stack([tilted.astype(x.dtype), *(one.astype(x.dtype) for one in drawn)])
    minus = jax.lax.map(lambda x0: -energy(x0, x, log_mass(log_p, x0, masked)), every)
    count = jnp.log(jnp.asarray(draws, minus.dtype))
    lower, upper = (jax.nn.logsumexp(part, axis=0) - count for part in (minus[1:], minus[:-1]))
    whole = ~jnp.any(jnp.isnan(jnp.where(masked[..., None], log_p, 0.0)), axis=(1, 2))  # a broken law is reported
    return Bounds(jnp.where(whole, lower, jnp.nan), jnp.where(whole, upper, jnp.nan))


def joint_loss(
    key: Array | Draws,
    model: MaskedModel,
    energy: Callable[[Array, Array, Array], Array],
    x0: Array,
    masked: Array,
    cond: PyTree = None,
    *,
    tilted: Array | None = None,
    draws: int = 16,
) -> Bounds:
    """-log p(x0 at the masked positions | the others) of the joint law: l(S) + E + log Z, between its bounds, nats.

    With all positions masked it is the likelihood of the law that reveals everything at once from picked candidates.
    Weighing the joint losses of all masks by `discrete.set_weights` bounds nothing: a set's joint entropy is less than
    the sum of its tokens' entropies, and two equal bits would get half of their log 2.

    Args:
        x0: int32 `[B, L]` clean. masked: bool `[B, L]`. tilted: completions drawn from the joint law given the observed
            tokens, as for `partition_bounds`; None takes x0 itself, right where the energy is exact.
        key, model, energy, draws: as for `partition_bounds`.

    Reference: Xu et al. 2024, arXiv 2410.21357.

    >>> from diffsample import discrete
    >>> model = discrete.from_logits(lambda p, x, cond: jnp.zeros((*x.shape, 3)), (), vocab=3, mask_id=3)
    >>> x0, none = jnp.array([[0, 1]]), lambda x0, x, log_mu: 0.0 * log_mu
    >>> joint_loss(jax.random.key(0), model, none, x0, x0 >= 0).lower.round(4).tolist()
    [2.1972...]
    """
    x = jnp.where(masked, model.mask_id, x0).astype(x0.dtype)
    check_completions(model, x, x0)
    log_mu = log_mass(masked_laws(model, x, cond), x0, masked)
    log_z = partition_bounds(key, model, energy, x, x0 if tilted is None else tilted, cond, draws=draws)
    return Bounds(*(energy(x0, x, log_mu) - log_mu + bound for bound in log_z))


def masked_laws(model: MaskedModel, x: Array, cond: PyTree) -> Array:
    """log mu at every position, [B, L, vocab], from one call; NaN where the model gives no law."""
    clock = jnp.mean(x == model.mask_id, axis=1, dtype=jnp.float32)
    laws = Laws(model, model(x, clock, cond), x)
    return laws.everywhere(lambda mended, at: model.log_probs(laws.features, at))


def log_mass(log_p: Array, x0: Array, masked: Array) -> Array:
    """log prod mu(x0) over the masked positions, [B]."""
    return jnp.sum(jnp.where(masked, of_token(log_p, jnp.where(masked, x0, 0)), 0.0), axis=1)


def check_completions(model: MaskedModel, x: Array, x0: Array) -> None:
    """Raise ValueError where concrete x0 is no completion of x, naming the sequence and position."""
    if jnp.shape(x) != jnp.shape(x0) or jnp.ndim(x) != 2:
        raise ValueError(f"sequences of shape {jnp.shape(x0)} for x of shape {jnp.shape(x)}; both must be [B, L]")
    if is_concrete((x, x0)):
        given, full = np.asarray(x), np.asarray(x0)
        bad = (
            (full == model.mask_id) | (full < 0) | (full >= model.vocab) | ((given != model.mask_id) & (given != full))
        )
        if bad.any():
            i, at = (int(n[0]) for n in np.nonzero(bad))
            raise ValueError(f"sequence {i} holds {full[i, at]} at position {at}, where x holds {given[i, at]}; it "
                             f"must be a token, and x's own where x is observed")  # fmt: skip
