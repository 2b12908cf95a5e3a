"""How a corrector weighs one move of a product of experts: four rules, functions of a `Move` that give log G [B]."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from diffsample.denoiser import expand
from diffsample.sampler import Kernel, View
from diffsample.smc.products.experts import Experts
from diffsample.smc.products.gauge import square_noise
from diffsample.smc.products.master import log_kernel_ratio


class Move(NamedTuple):
    """One move in y = x / alpha, with u = (sigma / alpha)^2; scalars of the move have the rank of x."""

    before: View
    memory: Experts  # at its start
    step: Array  # [B, ...] y' - y
    gap: Array  # u - u'
    missed: Array  # [B] by the left-point rule over the gap, of the surrogates' normaliser
    alpha: Array  # at the end
    climbed: Any  # [B, E] change of the experts' log-densities, where they are tracked; else ()
    kernel: Callable[[], Kernel]  # that x' was drawn from


def by_rate(move: Move) -> Array:
    """g (u - u'), the gauge's rate by its share of the move, and what this rule misses on Gaussian data."""
    return move.memory.rate * flat(move.gap) + move.memory.gauge_rate * flat(_pull(move)) + move.missed


def by_drawn_variance(move: Move) -> Array:
    """g dt of the papers: the variance that the row drew in place of u - u', and alpha as at the state left."""
    alpha = expand(move.before.level.alpha, move.step)
    drawn, pull = (expand(move.before.std, move.step) / alpha) ** 2, _pull(move) * move.alpha / alpha
    return move.memory.rate * flat(jnp.where(drawn > 0, drawn, move.gap)) + move.memory.gauge_rate * flat(pull)


def by_kernels(move: Move) -> Array:
    """The ratio of kernels; a move without noise has none, and is weighed by its rate."""
    return _kernel_ratio(move, move.memory.exponents)


def by_densities(move: Move) -> Array:
    """What the densities climbed, and the ratio of the forward kernel to the row's own."""
    exponents = move.memory.exponents
    return _kernel_ratio(move, jnp.zeros_like(exponents), move.climbed @ exponents)


def _kernel_ratio(move: Move, exponents: Array, climbed: Any = 0.0) -> Array:
    """prod_i p_i^beta_i r^(1 - B) / K for these exponents, and what else is known of a move that draws noise."""
    kernel, alpha = move.kernel(), expand(move.before.level.alpha, move.step)
    mean = kernel.mean / move.alpha - move.before.x / alpha
    drawn = (expand(kernel.std, move.step) / move.alpha) ** 2
    wide = move.gap * (alpha / move.alpha) ** 2  # of the forward kernel, sigma_s^2 - (alpha_s / alpha_t)^2 sigma_t^2
    noisy = drawn > 0
    law = (mean, (wide, jnp.where(noisy, drawn, 1.0)))
    ratio = log_kernel_ratio(move.step, scores(move), exponents, move.gap, law) + climbed
    return jnp.where(jnp.broadcast_to(flat(noisy), ratio.shape), ratio, by_rate(move))


def _pull(move: Move) -> Array:
    """How far one unit of score moves y, from the row's own gain."""
    view = move.before
    return expand(view.gain, move.step) * square_noise(view.level, move.step) / move.alpha


def scores(move: Move) -> Array:
    """The experts' scores in y, [E, B, ...]."""
    y = move.before.x / expand(move.before.level.alpha, move.step)
    return (jnp.moveaxis(move.memory.x0, 1, 0) - y[None]) / square_noise(move.before.level, move.step)[None]


def flat(values: Array) -> Array:
    """[B or 1, 1, ...] -> [B or 1]."""
    return values.reshape(-1)
