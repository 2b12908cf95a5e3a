"""Couplings: draws from one law that are, as often as can be, the draws already made from another.

A maximal coupling of p and q gives (x ~ p, y ~ q) with P(x = y) = 1 - TV(p, q), the most that any pair can reach.
Speculative methods draft y from a cheap q and keep it where they may, so that what comes out has the law p exactly.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.denoiser import PyTree, expand


class Coupled(NamedTuple):
    """A draw from the target, and whether it is the draft."""

    x: Array  # [B, ...] exactly N(mean, std^2 I)
    accepted: Array  # [B] bool, x is the draft


class Residual(NamedTuple):
    """A draw from what the draft leaves of the target."""

    x: PyTree
    tries: Array  # int32, proposals made
    accepted: Array  # bool; False where the tries ran out and x is the last proposal, a draw from p


def reflection_coupling(keys: Array, z: Array, draft_mean: Array, mean: Array, std: Any) -> Coupled:
    """Reflection maximal coupling: the draft N(draft_mean, std² I) turned into a draw from N(mean, std² I).

    Δ = (draft_mean - mean) / std, e = Δ / ‖Δ‖. The draft draft_mean + std z is kept with probability
    min(1, exp(-z·Δ - ‖Δ‖² / 2)), otherwise x = mean + std (z - 2 e e·z). x has the target law exactly, and is the
    draft with probability 2 Φ(-‖Δ‖ / 2), the most possible. Where std = 0 it is the mean, kept if the draft equals it.

    Args:
        keys: [B] typed keys, independent of z.
        z: [B, ...] the standard normals that made the draft.
        draft_mean, mean: [B, ...].
        std: of both laws, a number or [B].

    Reference: De Bortoli, Galashov, Gretton, Doucet 2025, arXiv 2501.05370.

    >>> one = jnp.ones((2, 5))
    >>> same = reflection_coupling(jax.random.split(jax.random.key(0), 2), one, one, one, 0.5)
    >>> same.accepted.tolist(), same.x[0, 0].tolist()
    ([True, True], 1.5)
    """
    std = jnp.broadcast_to(jnp.asarray(std, mean.dtype), mean.shape[:1])
    gap = (draft_mean - mean) / expand(jnp.where(std > 0, std, 1), mean)
    square = _inner(gap, gap)
    along = _inner(z, gap)
    u = jax.vmap(lambda key: jax.random.uniform(key, (), mean.dtype))(keys)
    accepted = (jnp.log(u) <= -along - square / 2) & ((std > 0) | (square == 0))
    mirrored = z - expand(2 * along / jnp.where(square > 0, square, 1), z) * gap
    kept, turned = draft_mean + expand(std, mean) * z, mean + expand(std, mean) * mirrored
    return Coupled(jnp.where(expand(accepted, mean).astype(bool), kept, turned), accepted)


def coupling_probability(draft_mean: Array, mean: Array, std: Any) -> Array:
    """Probability 2 Φ(-‖draft_mean - mean‖ / (2 std)) that `reflection_coupling` keeps the draft, [B]; std > 0.

    >>> float(coupling_probability(jnp.zeros((1, 4)), jnp.ones((1, 4)), 2.0)[0])
    0.6170...
    """
    gap = (draft_mean - mean) / expand(std, mean)
    return jax.scipy.special.erfc(jnp.sqrt(_inner(gap, gap) / 8))


def residual_sample(
    key: Array,
    logp: Callable[[PyTree], Array],
    logq: Callable[[PyTree], Array],
    sample_p: Callable[[Array], PyTree],
    max_tries: int = 100,
) -> Residual:
    """Residual sampling: one draw from max(0, p - q) / TV(p, q), by rejection from p.

    Propose x ~ p and keep it with probability max(0, 1 - q(x) / p(x)). A draft y ~ q that was refused with probability
    1 - min(1, p(y) / q(y)) and is replaced by such a draw leaves a sample from p exactly. Once needed, the proposals
    have mean 1 / TV(p, q). They are needed with probability TV(p, q), so that their mean all in all is 1, and their
    variance grows without bound as q nears p: hence `max_tries`. `reflection_coupling` needs no tries.

    Args:
        key: typed key.
        logp, logq: normalised log-densities or log-probabilities of one draw, scalars; any laws, discrete ones too.
        sample_p: (key) -> one draw from p, an array or a pytree.
        max_tries: proposals at most; past them x is a plain draw from p, and `accepted` is False.

    Raises:
        ValueError: max_tries < 1.

    Reference: Leviathan, Kalman, Matias 2023, arXiv 2211.17192, for the law of the replacement.

    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.1, 0.9]))
    >>> draw = lambda key: jax.random.categorical(key, p)
    >>> int(residual_sample(jax.random.key(0), lambda x: p[x], lambda x: q[x], draw).x)
    0
    """
    if max_tries < 1:
        raise ValueError(f"max_tries={max_tries} must be at least 1")

    def attempt(state: Residual) -> Residual:
        propose, decide = jax.random.split(jax.random.fold_in(key, state.tries))
        x = sample_p(propose)
        u = jax.random.uniform(decide, (), jnp.result_type(logp(x)))
        return Residual(x, state.tries + 1, u < -jnp.expm1(logq(x) - logp(x)))

    blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(sample_p, key))
    start = Residual(blank, jnp.zeros((), jnp.int32), jnp.zeros((), bool))
    return jax.lax.while_loop(lambda state: ~state.accepted & (state.tries < max_tries), attempt, start)


def _inner(a: Array, b: Array) -> Array:
    """Inner product per sample, [B]."""
    return jnp.sum(a * b, axis=tuple(range(1, a.ndim)))
