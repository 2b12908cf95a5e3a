"""A hidden Markov model over tokens as a masked model: long-range dependence with exact conditionals.

Hidden z_1 ~ start, z_{l+1} ~ T[z_l], token x_l ~ O[z_l]. A masked position has no evidence. The law of a position uses
the messages from both sides and not its own evidence, so it is hollow.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from diffsample.discrete.model import MaskedModel
from diffsample.exact.chain import check_rows, law_of, log_of
from diffsample.struct import pytree, static


@pytree
class HiddenMarkov:
    """K hidden states, V tokens, the mask is id V; made by `hidden_markov`."""

    start: Array  # [K]
    transition: Array  # [K, K]
    emission: Array  # [K, V]
    messages: Callable[..., tuple[Array, Array, Array]] = static()

    @property
    def vocab(self) -> int:
        """V, which is also the mask's id."""
        return self.emission.shape[1]

    def law(self, x: Array) -> Array:
        """p(x_l = v | the other observed positions) at every l, [B, L, V]."""
        forward, backward, _ = self._messages(x)
        hidden = forward * backward
        hidden = hidden / jnp.sum(hidden, axis=-1, keepdims=True)
        return jnp.matmul(hidden, self.emission, precision="highest")

    def log_prob(self, x: Array) -> Array:
        """log p of the observed tokens, the masked ones summed out, [B]."""
        return self._messages(x)[2]

    def model(self) -> MaskedModel:
        """As a hollow, time-free masked model.

        >>> hidden_markov([1.0], [[1.0]], [[0.25, 0.75]]).model().vocab
        2
        """
        return MaskedModel(law_of, log_of, self, self.vocab, self.vocab, hollow=True)

    def _messages(self, x: Array) -> tuple[Array, Array, Array]:
        table = jnp.concatenate([self.emission, jnp.ones_like(self.emission[:, :1])], axis=1)
        return jax.vmap(self.messages, (None, None, 0))(self.start, self.transition, table.T[x])


def by_scan(start: Array, transition: Array, evidence: Array) -> tuple[Array, Array, Array]:
    """(forward predictive [L, K], backward [L, K], log-evidence) by two scans: O(L K^2) work, O(L) depth."""

    def forward(carry: Array, e: Array) -> tuple[Array, tuple[Array, Array]]:
        weight = carry * e
        total = jnp.sum(weight)
        return jnp.matmul(weight / total, transition, precision="highest"), (carry, jnp.log(total))

    def backward(carry: Array, e: Array) -> tuple[Array, Array]:
        new = jnp.matmul(transition, e * carry, precision="highest")
        return new / jnp.sum(new), carry

    _, (ahead, logs) = jax.lax.scan(forward, start, evidence)
    _, behind = jax.lax.scan(backward, jnp.ones_like(start), evidence, reverse=True)
    return ahead, behind, jnp.sum(logs)


def by_associative_scan(start: Array, transition: Array, evidence: Array) -> tuple[Array, Array, Array]:
    """The same by products of matrices diag(e_l) T: O(L K^3) work, O(log L) depth, for accelerators and small K."""
    ones, log_zero = jnp.ones_like(start), jnp.zeros(evidence.shape[0], evidence.dtype)
    moves = (evidence[:, :, None] * transition[None], log_zero)

    def join(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
        product = jnp.matmul(a[0], b[0], precision="highest")
        size = jnp.max(product, axis=(-2, -1))
        return product / size[..., None, None], a[1] + b[1] + jnp.log(size)

    prefix, log_size = jax.lax.associative_scan(join, moves)
    suffix, _ = jax.lax.associative_scan(lambda a, b: join(b, a), moves, reverse=True)
    ahead = jnp.concatenate([start[None], jnp.matmul(start, prefix[:-1], precision="highest")])
    behind = jnp.concatenate([jnp.matmul(suffix[1:], ones, precision="highest"), ones[None]])
    # suffix[l] = E_l T ... E_L T, and T (suffix[l + 1] 1) is the backward message; the last T sums to one
    behind = jnp.concatenate([jnp.matmul(behind[:-1], transition.T, precision="highest"), ones[None]])
    evidence_of_all = jnp.log(jnp.sum(jnp.matmul(start, prefix[-1], precision="highest"))) + log_size[-1]
    ahead, behind = (m / jnp.sum(m, axis=-1, keepdims=True) for m in (ahead, behind))
    return ahead, behind, evidence_of_all


def hidden_markov(
    start: ArrayLike, transition: ArrayLike, emission: ArrayLike, *, messages: Callable[..., Any] = by_scan
) -> HiddenMarkov:
    """A hidden Markov model from start [K], transition [K, K] and emission [K, V].

    Args:
        messages: `by_scan`, best on a CPU, or `by_associative_scan`, best on accelerators.

    Raises:
        ValueError: rows that are no probabilities, shapes that do not fit.

    >>> hidden_markov([1.0], [[1.0]], [[0.25, 0.75]]).law(jnp.array([[2, 0]])).tolist()
    [[[0.25, 0.75], [0.25, 0.75]]]
    """
    tables = {"start": start, "transition": transition, "emission": emission}
    arrays = {name: np.asarray(value, np.float64) for name, value in tables.items()}
    for name, value in arrays.items():
        check_rows(name, value)
    k = arrays["start"].size
    if arrays["transition"].shape != (k, k) or arrays["emission"].shape[0] != k:
        raise ValueError(f"shapes {[a.shape for a in arrays.values()]} must be [K], [K, K], [K, V]")
    tables = (jnp.asarray(arrays[name], float) for name in ("start", "transition", "emission"))
    return HiddenMarkov(*tables, messages)  # pyright: ignore[reportCallIssue]
