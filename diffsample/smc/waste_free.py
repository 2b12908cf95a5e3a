"""Waste-free particles: every state of the Markov chains that refresh the cloud is kept as a particle."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.denoiser import PyTree
from diffsample.smc.resamplers.resampling import Resampler, systematic


def refresh(
    key: Array,
    x: PyTree,
    log_w: Array,
    move: Callable[[Array, PyTree], PyTree],
    chains: int,
    resample: Resampler = systematic,
) -> PyTree:
    """Waste-free move: M ancestors by resampling, K / M - 1 steps of a Markov kernel from each, all K states kept.

    The new cloud has equal weights; the kernel leaves the weighted law invariant. Against resampling all K and moving
    each K / M - 1 times, it costs a fraction M / K of the kernel calls.

    Args:
        key: typed key.
        x: particles of one group, leaves [K, ...].
        log_w: [K] log-weights.
        move: function (keys [M], x [M, ...]) -> x, a Markov kernel for the present law, for example Langevin or HMC.
        chains: M, which divides K and is less than it.
        resample: function (key, log_w [K]) -> ancestors [K]; M of them are taken, at equal strides from a random one.

    Returns:
        particles [K, ...], state p of chain m at p M + m.

    Raises:
        ValueError: chains that do not divide K.

    Reference: Dau, Chopin 2022, arXiv 2011.02328, algorithm 2.

    >>> x = jnp.arange(6.0)
    >>> refresh(jax.random.key(0), x, jnp.zeros(6), lambda keys, x: x + 10.0, 2).tolist()
    [2.0, 5.0, 12.0, 15.0, 22.0, 25.0]
    """
    k = len(log_w)
    if not 1 <= chains < k or k % chains:
        raise ValueError(f"chains={chains} must divide the {k} particles and be fewer")
    choose, offset, chain = jax.random.split(key, 3)
    stride = k // chains
    taken = jax.random.randint(offset, (), 0, stride) + stride * jnp.arange(chains)
    ancestors = resample(choose, log_w)[taken]
    start = jax.tree.map(lambda leaf: leaf[ancestors], x)

    def step(x: PyTree, number: Array) -> tuple[PyTree, PyTree]:
        keys = jax.random.split(jax.random.fold_in(chain, number), chains)
        x = move(keys, x)
        return x, x

    _, moved = jax.lax.scan(step, start, jnp.arange(stride - 1))
    states = jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), start, moved)
    return jax.tree.map(lambda leaf: leaf.reshape(k, *leaf.shape[2:]), states)


def chain_variance(values: Array, log_w: Array, chains: int) -> Array:
    """Variance of the weighted mean of a waste-free cloud, from its M chains, by Geyer's initial positive sequence.

    Args:
        values: [K] phi of each particle, state p of chain m at p M + m.
        log_w: [K] log-weights of the refreshed cloud.
        chains: M.

    Returns:
        the estimate, a scalar.

    Reference: Dau, Chopin 2022, arXiv 2011.02328, section 3.4; Geyer 1992, Stat. Sci. 7.

    >>> float(chain_variance(jnp.array([1.0, -1.0, 1.0, -1.0]), jnp.zeros(4), 2).round(2))
    0.5
    """
    k, length = len(log_w), len(log_w) // chains
    w = jax.nn.softmax(log_w)
    terms = (k * w * (values - w @ values)).reshape(length, chains)
    lagged = [(terms[: length - lag] * terms[lag:]).sum() / k for lag in range(length)]
    pairs = [lagged[i] + lagged[i + 1] for i in range(0, length - 1, 2)] or [lagged[0]]
    kept, total = jnp.ones((), bool), -lagged[0]
    for pair in pairs:
        kept = kept & (pair > 0)
        total = total + jnp.where(kept, 2 * pair, jnp.zeros_like(pair))
    return jnp.maximum(total, 0) / k
