"""The Gaussian surrogates of a product's experts: its normaliser and its law at high noise, where they are exact."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from diffsample.denoiser import expand
from diffsample.process import Level
from diffsample.sampler import normal
from diffsample.smc.products.gauge import Matched, log_surrogates, matched, per_expert, square_noise
from diffsample.smc.products.master import total
from diffsample.struct import pytree


@pytree
class Surrogates:
    """The Gaussian surrogates of the experts, and what their product under exponents [E] is."""

    means: Any
    variances: Any

    def product(self, exponents: Array, x: Array, level: Level) -> Matched:
        """The product at a level."""
        return matched(self.means, self.variances, exponents, x, level)

    def log_each(self, x: Array, level: Level) -> Array:
        """Log-densities [B, E] of y."""
        return log_surrogates(self.means, self.variances, x, level).T

    def scores(self, x: Array, level: Level) -> Array:
        """Scores of y, [B, E, ...]."""
        y = (x / expand(level.alpha, x))[None]
        spreads = per_expert(self.variances, x) + square_noise(level, x)[None]
        return jnp.moveaxis((per_expert(self.means, x) - y) / spreads, 0, 1)

    def divergences(self, x: Array, level: Level) -> Array:
        """Of those scores, [B or 1, E]."""
        spreads = per_expert(self.variances, x) + square_noise(level, x)[None]
        each = jnp.broadcast_to(-1 / spreads, (*spreads.shape[:2], *x.shape[1:]))
        return each.reshape(*each.shape[:2], -1).sum(axis=-1).T

    def log_normaliser(self, exponents: Array, x: Array, level: Level) -> Array:
        """log of the integral of the product over y, [B]: its largest value times that of a Gaussian of its width."""
        law = self.product(exponents, x, level)
        peak = jnp.broadcast_to(expand(level.alpha, x) * law.mean, x.shape)
        width = jnp.broadcast_to(0.5 * jnp.log(2 * jnp.pi / law.precision), x.shape)
        return self.log_each(peak, level) @ exponents + total(width)

    def missed(self, exponents: Array, x: Array, level: Level, reached: Level) -> Array:
        """What the left-point rule misses of the change of `log_normaliser` over a step with the gauge on, [B]."""
        law = self.product(exponents, x, level)
        away = law.mean[None] - per_expert(self.means, x)
        spreads = per_expert(self.variances, x) + square_noise(level, x)[None]
        rate = law.kappa - 0.5 * (per_expert(exponents, x) * (away / spreads) ** 2).sum(axis=0)
        gap = square_noise(level, x) - square_noise(reached, x)
        change = self.log_normaliser(exponents, x, reached) - self.log_normaliser(exponents, x, level)
        return change - total(jnp.broadcast_to(rate * gap, x.shape))

    def log_start(self, exponents: Array, x: Array, level: Level) -> Array:
        """log-density [B] in y of the start N(mu, 1 / Lambda)."""
        law = self.product(exponents, x, level)
        z = x / expand(level.alpha, x) - law.mean
        return total(0.5 * (jnp.log(law.precision / (2 * jnp.pi)) - law.precision * z**2))


@pytree
class ProductStart:
    """Draws of N(mu, 1 / Lambda) at the first level: about N(0, sigma^2 / B), never N(0, sigma^2)."""

    surrogates: Surrogates
    exponents: Any  # [E]
    level: Level

    def __call__(self, keys: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        z = normal(keys, shape, dtype)
        law = self.surrogates.product(jnp.asarray(self.exponents, z.dtype), z, self.level)
        return expand(self.level.alpha, z) * (law.mean + z / jnp.sqrt(law.precision))
