"""Every path of a decoder with its probability and weight, by exact propagation; and the chains of the token tests."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffsample import exact
from diffsample.smc.potentials import Transition
from diffsample.struct import pytree

START, MOVE = [0.5, 0.3, 0.2], [[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.25, 0.25, 0.5]]
OTHER_START, OTHER_MOVE = [0.2, 0.2, 0.6], [[0.1, 0.1, 0.8], [0.3, 0.4, 0.3], [0.5, 0.4, 0.1]]


def chain(length: int = 3):
    return exact.markov_chain(START, MOVE, length)


def other_chain(length: int = 3):
    return exact.markov_chain(OTHER_START, OTHER_MOVE, length)


def sequences(length: int = 3) -> np.ndarray:
    """All sequences of three tokens, [3^length, length]."""
    return np.stack(np.meshgrid(*[np.arange(3)] * length, indexing="ij"), axis=-1).reshape(-1, length)


@pytree
class Weighed:
    """A decoder that carries its log-weight, without resampling: state (decoder's, log_w, potential's memory)."""

    decoder: Any
    potential: Any

    @property
    def steps(self):
        rows = self.decoder.steps
        return rows, np.arange(len(jax.tree.leaves(rows)[0]))

    def init(self, draws, x, cond):
        inner = self.decoder.init(draws, x, cond)
        shapes = jax.eval_shape(lambda: self.potential.start(self.decoder.view(inner)))
        return inner, *jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def step(self, draws, state, row, cond):
        inner, log_w, memory = state
        new = self.decoder.step(draws, inner, row[0], cond)
        before, after = self.decoder.view(inner), self.decoder.view(new)
        log_g, memory = jax.lax.cond(
            row[1] == 0,  # which calls, and starts the weight
            lambda: self.potential.start(after),
            lambda: self.potential(Transition(before, after, _no_kernel), memory),
        )
        return new, log_w + log_g, memory


def _no_kernel():
    raise ValueError("a decoder has no transition density")


def weighted_paths(decoder, potential, length: int = 3, cond=None):
    """(x [n, L], probability [n], log-weight [n]) of every path."""
    masks = np.full(length, decoder.model.mask_id)
    (inner, log_w, _), p = exact.every_path(Weighed(decoder, potential), masks, cond)
    return np.asarray(inner.x), p, np.asarray(log_w)


def tilted_law(decoder, potential, length: int = 3, cond=None) -> np.ndarray:
    """sum over paths to each of `sequences` of probability times weight, [3^length]."""
    x, p, log_w = weighted_paths(decoder, potential, length, cond)
    place = x @ 3 ** np.arange(length)[::-1]
    return np.bincount(place, p * np.exp(log_w), minlength=3**length)
