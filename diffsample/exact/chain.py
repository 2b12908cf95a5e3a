"""Markov chains over tokens as masked models: every joint, marginal and conditional probability in closed form.

p(x) = pi[x_1] prod_l P[x_l, x_{l+1}]. With the powers of P in a table, the law of a position given any observed ones
is the product of the power that reaches it from its left observed neighbour and the power from it to its right one.
Neighbours
are strict, so the law at an observed position is the one given the others: the model is hollow.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from diffsample.discrete.model import MaskedModel
from diffsample.struct import pytree


@pytree
class MarkovChain:
    """A chain of fixed length, made by `markov_chain`; V tokens, the mask is id V."""

    marginals: Array  # [L, V], the law of every position
    powers: Array  # [L + 1, V, V], P^d

    @property
    def vocab(self) -> int:
        """V, which is also the mask's id."""
        return self.marginals.shape[-1]

    def law(self, x: Array) -> Array:
        """p(x_l = v | the other observed positions) at every l: [B, L, V] from x [B, L] with masks.

        >>> markov_chain([0.5, 0.5], [[0.9, 0.1], [0.2, 0.8]], 2).law(jnp.array([[0, 2]]))[0, 1]
        Array([0.9, 0.1], dtype=float32)
        """
        left, right = _neighbours(x != self.vocab)
        at = jnp.arange(x.shape[1])[None, :]
        length, token = x.shape[1], jnp.minimum(x, self.vocab - 1)
        x_left, x_right = (jnp.take_along_axis(token, jnp.clip(n, 0, length - 1), axis=1) for n in (left, right))
        marginals = jnp.broadcast_to(self.marginals[None], (*x.shape, self.vocab))
        from_left = jnp.where((left >= 0)[..., None], self.powers[jnp.maximum(at - left, 0), x_left], marginals)
        to_right = self.powers[jnp.where(right < length, right - at, 0), :, x_right]
        both = from_left * jnp.where((right < length)[..., None], to_right, 1.0)
        return both / jnp.sum(both, axis=-1, keepdims=True)

    def log_prob(self, x: Array) -> Array:
        """log p of the observed tokens of x [B, L], the masked ones summed out: [B].

        >>> chain = markov_chain([0.5, 0.5], [[0.9, 0.1], [0.2, 0.8]], 2)
        >>> chain.log_prob(jnp.array([[2, 2], [0, 2]])).round(3).tolist()
        [0.0, -0.693...]
        """
        observed = x != self.vocab
        left, _ = _neighbours(observed)
        at, token = jnp.arange(x.shape[1])[None, :], jnp.minimum(x, self.vocab - 1)
        x_left = jnp.take_along_axis(token, jnp.maximum(left, 0), axis=1)
        step = self.powers[jnp.maximum(at - left, 0), x_left, token]
        p = jnp.where(left >= 0, step, self.marginals[at, token])
        return jnp.sum(jnp.where(observed, jnp.log(jnp.where(observed, p, 1.0)), 0.0), axis=1)

    def sample(self, key: Array, n: int) -> Array:
        """n sequences, int32 [n, L]."""
        keys = jax.random.split(key, self.marginals.shape[0])
        first = jax.random.categorical(keys[0], jnp.log(self.marginals[0]), shape=(n,))

        def step(token: Array, key: Array) -> tuple[Array, Array]:
            following = jax.random.categorical(key, jnp.log(self.powers[1])[token])
            return following, following

        _, rest = jax.lax.scan(step, first, keys[1:])
        return jnp.concatenate([first[None], rest]).T.astype(jnp.int32)

    def model(self) -> MaskedModel:
        """The chain as a hollow, time-free masked model; its features are its laws.

        >>> markov_chain([0.5, 0.5], [[0.9, 0.1], [0.2, 0.8]], 2).model().mask_id
        2
        """
        return MaskedModel(law_of, log_of, self, self.vocab, self.vocab, hollow=True)


def law_of(law: Any, x: Array, t: Array | None, cond: Any) -> Array:
    """Features of a closed-form model: its law at every position, the condition not read."""
    return law.law(x)


def log_of(law: Any, h: Array, positions: Array) -> Array:
    """Logits of a closed-form model from the probabilities."""
    return jnp.where(h > 0, jnp.log(jnp.where(h > 0, h, 1.0)), -jnp.inf)


def markov_chain(start: ArrayLike, transition: ArrayLike, length: int) -> MarkovChain:
    """A chain from its first law pi [V], its transitions P [V, V] and its length.

    Raises:
        ValueError: a row that is negative or does not sum to one, or shapes that do not fit.

    >>> markov_chain([0.5, 0.5], [[0.9, 0.1], [0.2, 0.8]], 3).marginals[1]
    Array([0.55, 0.45], dtype=float32)
    """
    pi, P = np.asarray(start, np.float64), np.asarray(transition, np.float64)
    if pi.ndim != 1 or P.shape != (len(pi), len(pi)) or length < 1:
        raise ValueError(f"start {pi.shape} and transition {P.shape} must be [V] and [V, V], length={length} positive")
    check_rows("start", pi)
    check_rows("transition", P)
    powers = [np.eye(len(pi))]
    for _ in range(length):
        powers.append(powers[-1] @ P)
    table = np.stack(powers)
    return MarkovChain(jnp.asarray(pi @ table[:length], float), jnp.asarray(table, float))


def golden_chain() -> MarkovChain:
    """The reference model of the tests: V = 3, L = 5; its table of output laws is in tests/test_discrete_laws.py.

    >>> round(float(golden_chain().log_prob(jnp.zeros((1, 5), int))[0]), 4)
    -2.1198
    """
    return markov_chain([0.5, 0.3, 0.2], [[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.25, 0.25, 0.5]], 5)


@pytree
class ChainMixture:
    """Chains of one length, chosen by a class: p(x) = sum_y prior[y] p(x | y). Made by `chain_mixture`.

    The condition of its model is the class int32 [B], or `null`, the number of classes, for the unconditional law; the
    two are consistent, and the class of a partially masked sequence has a closed form.
    """

    chains: MarkovChain  # leaves with a leading axis of classes
    log_prior: Array  # [C]

    @property
    def null(self) -> int:
        """The condition that means none."""
        return self.log_prior.shape[0]

    @property
    def vocab(self) -> int:
        """V, which is also the mask's id."""
        return self.chains.marginals.shape[-1]

    def log_joint(self, x: Array) -> Array:
        """log p(x_observed, y), [B, C]."""
        return jax.vmap(MarkovChain.log_prob, (0, None), 1)(self.chains, x) + self.log_prior[None, :]

    def log_prob(self, x: Array) -> Array:
        """log p(x_observed), [B]."""
        return jax.nn.logsumexp(self.log_joint(x), axis=1)

    def log_class(self, x: Array) -> Array:
        """log p(y | x_observed), [B, C]: the exact classifier of partially masked sequences."""
        return jax.nn.log_softmax(self.log_joint(x), axis=1)

    def law(self, x: Array, cond: Array | None = None) -> Array:
        """Hollow laws [B, L, V] given the class cond [B], or given none."""
        laws = jax.vmap(MarkovChain.law, (0, None), 1)(self.chains, x)  # [B, C, L, V]
        without = jnp.where(jnp.eye(x.shape[1], dtype=bool)[None], self.vocab, x[:, None, :])  # position l masked
        weights = jax.vmap(self.log_class, 1, 1)(without)  # [B, L, C]
        mixed = jnp.einsum("blc,bclv->blv", jnp.exp(weights), laws, precision="highest")
        if cond is None:
            return mixed
        chosen = jnp.take_along_axis(laws, jnp.minimum(cond, self.null - 1)[:, None, None, None], axis=1)[:, 0]
        return jnp.where((cond < self.null)[:, None, None], chosen, mixed)

    def model(self) -> MaskedModel:
        """As a hollow, time-free masked model, conditioned on the class."""
        return MaskedModel(conditional_law_of, log_of, self, self.vocab, self.vocab, hollow=True)


def conditional_law_of(law: Any, x: Array, t: Array | None, cond: Any) -> Array:
    """Features of a closed-form model with a condition."""
    return law.law(x, cond)


def chain_mixture(chains: list[MarkovChain], prior: ArrayLike) -> ChainMixture:
    """A mixture of chains of equal shapes with class probabilities prior [C].

    >>> chain = markov_chain([0.5, 0.5], [[0.9, 0.1], [0.2, 0.8]], 2)
    >>> chain_mixture([chain, chain], [0.7, 0.3]).log_class(jnp.array([[0, 2]])).shape
    (1, 2)
    """
    weights = np.asarray(prior, np.float64)
    check_rows("prior", weights)
    if len(chains) != len(weights):
        raise ValueError(f"{len(chains)} chains and {len(weights)} prior probabilities")
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *chains)
    return ChainMixture(stacked, jnp.asarray(np.log(weights), float))


def check_rows(name: str, p: np.ndarray) -> None:
    """Raise where a row of probabilities is not one."""
    if not (np.isfinite(p).all() and (p >= 0).all() and np.allclose(p.sum(axis=-1), 1.0, atol=1e-6)):
        raise ValueError(f"{name} must be probabilities that sum to 1, got {p.tolist()}")


def _neighbours(observed: Array) -> tuple[Array, Array]:
    """Indices of the nearest observed positions strictly left (-1: none) and right (L: none), [B, L]."""
    length = observed.shape[1]
    at = jnp.arange(length)[None, :]
    left = jax.lax.cummax(jnp.where(observed, at, -1), axis=1)
    right = jax.lax.cummin(jnp.where(observed, at, length), axis=1, reverse=True)
    return jnp.pad(left, ((0, 0), (1, 0)), constant_values=-1)[:, :-1], jnp.pad(
        right, ((0, 0), (0, 1)), constant_values=length
    )[:, 1:]
