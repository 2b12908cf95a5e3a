"""Generative marginalization models: a network that gives log p(x_S) of any subset of tokens in one call.

A masked input x stands for its observed tokens S. The likelihood of a sequence is then one difference of two rows, a
conditional law V of them, and a block of positions can be redrawn jointly by enumerating its completions.
"""

import itertools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.discrete.decoder import Place, write
from diffsample.discrete.draws import Draws
from diffsample.discrete.model import Laws
from diffsample.struct import pytree, static

PyTree: TypeAlias = Any


@pytree
class MarginalModel:
    """A marginal model as the model of any decoder: its conditionals are differences of marginals, V rows a position.

    Hollow, because the position asked for is masked first.

    Args:
        log_marginal: `(params, x [N, L], cond) -> log p(x_S) [N]`, up to a constant shared by all x.
        params: pytree of weights. vocab: V. mask_id: of the mask, `vocab` if it is no token.

    Reference: Liu et al. 2023, arXiv 2310.12920, section 3.

    >>> model = MarginalModel(lambda p, x, cond: -jnp.log(2.0) * jnp.sum(x < 2, axis=1), (), vocab=2, mask_id=2)
    >>> model.log_likelihood(jnp.array([[0, 1, 0]])).round(3).tolist()
    [-2.07...]
    """

    log_marginal: Callable[..., Array] = static()
    params: PyTree
    vocab: int = static()
    mask_id: int = static()

    def __post_init__(self) -> None:
        if not callable(self.log_marginal):
            raise TypeError(f"log_marginal must be a function, got {self.log_marginal!r}")
        if not isinstance(self.mask_id, int) or not 0 <= self.mask_id <= self.vocab:
            raise ValueError(f"mask_id={self.mask_id!r} must be an id in 0 .. {self.vocab}")

    @property
    def time(self) -> None:
        """It reads no time."""
        return None

    @property
    def hollow(self) -> bool:
        """Conditionals never read the position itself."""
        return True

    @property
    def evaluations(self) -> int:
        """A row for each token of the position to reveal."""
        return self.vocab

    def __call__(self, x: Array, clock: Array, cond: PyTree) -> PyTree:
        """There is nothing to compute before a position is asked for."""
        return x, cond

    def log_probs(self, features: PyTree, positions: Array) -> Array:
        """log p(x_l = v | the others) at positions [B, k]: [B, k, vocab], from B k vocab rows."""
        x, cond = features
        batch, k = positions.shape
        tokens = jnp.broadcast_to(jnp.arange(self.vocab, dtype=jnp.int32), (batch, k, self.vocab))
        logits = self._rows(x, cond, positions[:, :, None, None], tokens[..., None])
        return jax.nn.log_softmax(jnp.where(tokens == self.mask_id, -jnp.inf, logits), axis=-1)

    def log_likelihood(self, x: Array, cond: PyTree = None) -> Array:
        """log p(x) - log p(nothing), [B]: two rows; of a masked x, the marginal of its observed tokens."""
        nothing = jnp.full_like(x, self.mask_id)
        return self.log_marginal(self.params, x, cond) - self.log_marginal(self.params, nothing, cond)

    def residual(self, log_probs: Callable[[Array, Array], Array], x: Array, at: Array, cond: PyTree = None) -> Array:
        """What self-consistency with another network's conditionals leaves: log p(x) - log p(x without l) - log c(x_l).

        Args:
            log_probs: function (x [B, L], positions [B, 1]) -> log-laws [B, 1, vocab]. x: [B, L]. at: int32 [B],
            observed.
        """
        without = write(x, at[:, None], jnp.ones((len(x), 1), bool), jnp.full((len(x), 1), self.mask_id))
        token = jnp.take_along_axis(x, at[:, None], axis=1)
        log_c = jnp.take_along_axis(log_probs(without, at[:, None])[:, 0], token, axis=1)[:, 0]
        both = (self.log_marginal(self.params, a, cond) for a in (x, without))
        return next(both) - next(both) - log_c

    def log_joint(self, x: Array, cond: PyTree, at: Array, completions: Array) -> Array:
        """log p with each completion [n, b] at positions [B, b]: [B, n], from B n rows."""
        tokens = jnp.broadcast_to(completions[None, None], (len(x), 1, *completions.shape))
        return self._rows(x, cond, at[:, None, None, :], tokens)[:, 0]

    def _rows(self, x: Array, cond: PyTree, at: Array, tokens: Array) -> Array:
        """log-marginals of x with tokens [B, k, n, b] at positions [B, k, 1, b]: [B, k, n]."""
        shape = tokens.shape
        repeat = shape[1] * shape[2]
        wide_x, wide_cond = jax.tree.map(lambda a: jnp.repeat(a, repeat, axis=0), (x, cond))
        where = jnp.broadcast_to(at, shape).reshape(-1, shape[3])
        rows = write(wide_x, where, jnp.ones(where.shape, bool), tokens.reshape(-1, shape[3]))
        return self.log_marginal(self.params, rows, wide_cond).reshape(shape[:3])


@pytree
class BlockGibbs:
    """Redraw a block of b observed positions jointly, chosen uniformly: exact, V^b rows of a `MarginalModel`.

    >>> BlockGibbs(2).hollow
    True
    """

    block: int = static()
    hollow: bool = static(default=True)

    def __post_init__(self) -> None:
        if self.block < 1:
            raise ValueError(f"block={self.block} must be at least 1")

    def __call__(self, draws: Draws, laws: Laws, place: Place) -> Array:
        """New x [B, L]; sequences with fewer observed free positions than the block stay."""
        model: Any = laws.model
        ranks = draws.at(0).ranks(jnp.where(place.free & ~place.masked, 0.0, -jnp.inf))
        at = jnp.argsort(ranks, axis=1)[:, : self.block].astype(jnp.int32)
        valid = jnp.all(jnp.take_along_axis(ranks, at, axis=1) < self.block, axis=1, keepdims=True)
        ids = [v for v in range(model.vocab) if v != model.mask_id]
        completions = jnp.asarray(np.array(list(itertools.product(ids, repeat=self.block))), jnp.int32)
        law = jax.nn.log_softmax(model.log_joint(laws.x, laws.features[1], at, completions), axis=-1)
        chosen = draws.at(1).tokens(law[:, None], valid)[:, 0]
        return write(laws.x, at, jnp.broadcast_to(valid, at.shape), completions[chosen])
