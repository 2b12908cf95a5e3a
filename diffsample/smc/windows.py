"""Weights that count on some rows only. Resampling on some rows only is `window`, a policy, and stays exact."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.denoiser import PyTree
from diffsample.sampler import Sampler, View
from diffsample.smc.potentials import Closing, Potential, Transition, as_potential
from diffsample.struct import pytree
from diffsample.tableau import is_concrete


@pytree
class WeightWindow(Potential):
    """Weights of rows low to high; see `weight_window`."""

    potential: Any
    low: Any
    high: Any

    def check(self, sampler: Sampler) -> None:
        self.potential.check(sampler)

    def start(self, view: View) -> tuple[Array, PyTree]:
        log_g, memory = self.potential.start(view)
        return log_g, (memory, jnp.zeros((), jnp.int32))

    def __call__(self, transition: Transition, memory: PyTree) -> tuple[Array, PyTree]:
        own, row = memory
        log_g, own = self.potential(transition, own)
        inside = (self.low <= row + 1) & (row + 1 <= self.high)
        return jnp.where(inside, log_g, jnp.zeros_like(log_g)), (own, row + 1)

    def finish(self, closing: Closing, memory: PyTree) -> Array:
        log_g = self.potential.finish(closing, memory[0])
        inside = (self.low <= memory[1] + 1) & (memory[1] + 1 <= self.high)
        return jnp.where(inside, log_g, jnp.zeros_like(log_g))


def weight_window(potential: Any, low: Any, high: Any) -> WeightWindow:
    """The potential on rows low to high only; weights of the rows outside are dropped.

    BIASED: the law is no longer the target's. It is what published code does to calm weights at low noise; `window`
    keeps all weights and restricts resampling instead. The first call always counts (it corrects the start); rows count
    from 1, the closing update is the row behind the last.

    Args:
        potential: a potential or function. low, high: rows, both included; leaves.

    Raises:
        ValueError: an empty window.

    >>> weight_window(lambda before, after: after.x, 2, 5).high
    5
    """
    if is_concrete((low, high)) and np.any(np.asarray(low) > np.asarray(high)):
        raise ValueError(f"weight_window(low={low}, high={high}) holds no row")
    return WeightWindow(as_potential(potential), low, high)
