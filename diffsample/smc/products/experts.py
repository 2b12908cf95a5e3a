"""Products of experts as denoisers: q_1^b_1 q_2^b_2 ..., annealed laws q^beta, guided laws q_u^(1-w) q_c^w.

The scores add up, S = sum_i beta_i s_i, so the pair (x0, eps) does, with x0 = sum beta_i x0_i + (1 - B) x / alpha and
eps = sum beta_i eps_i, B = sum beta_i. Alone, this samples no law of interest; with the weights of `corrector` it
samples the product. What the weights need is kept in memory, so that they call no network.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.denoiser import Denoiser, Point, Prediction, PyTree, expand
from diffsample.probes import Probes
from diffsample.process import Level, Process
from diffsample.sampler import fold
from diffsample.smc.functions import as_pytree
from diffsample.smc.products.gauge import Matched, lowest_precision, matched, square_noise
from diffsample.smc.products.master import total, weight_rate
from diffsample.struct import pytree, static
from diffsample.tableau import is_concrete
from diffsample.wrapping import fixed

PROBE_STREAM = 2**28  # beside the streams of denoisers, resampling and candidates


class Experts(NamedTuple):
    """Memory of a product: what every expert said, and how the coming step is weighed."""

    x0: Array  # [B, E, ...] the experts' predictions
    rate: Array  # [B] of log w, by d (sigma / alpha)^2
    gauge_rate: Array  # [B] what the gauge adds to it
    exponents: Array  # [E] at this level
    coming: Array  # [E] at the level that the step leads to
    next: Level  # that level, fields [B]
    inner: tuple[PyTree, ...]  # the experts' own memories
    divergence: Array | None = None  # [B, E] of the experts' scores in y, where the product has probes


@pytree
class Product(Denoiser):
    """prod_i q_i^beta_i by its score, with the Gaussian-matched gauge; see `product`."""

    experts: tuple[Denoiser, ...]
    exponents: Any  # [E], or a function of Level -> [E]
    means: Any  # [E, *event] or [E], of the experts' data
    variances: Any
    gauge: Any
    probes: Probes | None = static(default=None)
    count: int = static(default=1)

    @property
    def evaluations(self) -> int:
        """Those of all experts."""
        return sum(expert.evaluations for expert in self.experts)

    @property
    def vjps(self) -> int:
        """Those of all experts; with probes, one Jacobian-vector product a probe besides."""
        return sum(expert.vjps for expert in self.experts) + (self.count * self.evaluations if self.probes else 0)

    @property
    def coupled(self) -> bool:
        return all(expert.coupled for expert in self.experts)

    def check(self, process: Process | None, levels: Level) -> None:
        for expert in self.experts:
            expert.check(process, levels)
        if np.any(np.asarray(levels.alpha) == 0):
            raise ValueError(
                "a product of experts lives on x / alpha and cannot start at alpha = 0: start the grid later"
            )
        if is_concrete((self.exponents, self.means, self.variances)) and is_concrete(levels):
            self._check_normalisable(levels)

    def init(self, x: Array) -> Experts:
        count, zero = len(self.experts), jnp.zeros(x.shape[:1], x.dtype)
        kept = jnp.zeros((x.shape[0], count, *x.shape[1:]), x.dtype)
        exponents = jnp.zeros(count, x.dtype)
        level = Level(zero, zero, zero)
        inner = tuple(expert.init(x) for expert in self.experts)
        divergence = jnp.zeros((x.shape[0], count), x.dtype) if self.probes else None
        return Experts(kept, zero, zero, exponents, exponents, level, inner, divergence)

    def __call__(self, x: Array, at: Point, cond: PyTree, state: Experts) -> tuple[Prediction, Experts]:
        calls = [self._call(e, x, at, cond, own) for e, own in zip(self.experts, state.inner, strict=True)]
        x0, eps = (jnp.stack(parts) for parts in zip(*(prediction for prediction, *_ in calls), strict=True))
        exponents, coming = self.at(at.now, x), self.at(at.next, x)
        noise, y = jnp.sqrt(square_noise(at.now, x)), x / expand(at.now.alpha, x)
        law = self.matched(x, at.now)
        S = -jnp.tensordot(exponents, eps, 1) / noise
        push = jnp.asarray(self.gauge, x.dtype) * (law.kappa * (y - law.mean) + law.delta)
        slope = jnp.asarray(self.gauge, x.dtype) * jnp.broadcast_to(law.kappa, x.shape)
        memory = Experts(
            x0=jnp.moveaxis(x0, 0, 1),
            rate=weight_rate(-eps / noise[None], exponents),
            gauge_rate=total(slope + push * S),
            exponents=exponents,
            coming=coming,
            next=Level(*(jnp.broadcast_to(jnp.asarray(v, x.dtype), x.shape[:1]) for v in at.next)),
            inner=tuple(own for _, own, _ in calls),
            divergence=jnp.stack([trace for *_, trace in calls], axis=1) if self.probes else None,
        )
        clean = jnp.tensordot(exponents, x0, 1) + (1 - exponents.sum()) * y + noise**2 * push
        return Prediction(clean, -noise * (S + push)), memory

    def _call(self, expert: Denoiser, x: Array, at: Point, cond: PyTree, own: PyTree) -> tuple:
        """(prediction, memory, divergence [B] of the score in y = x / alpha, where it is asked for)."""
        probes = self.probes
        if probes is None:
            return *expert(x, at, cond, own), None

        def predicted(x: Array) -> tuple[Array, tuple[Prediction, PyTree]]:
            prediction, memory = expert(x, at, cond, own)
            return prediction.x0, (prediction, memory)

        _, push, kept = jax.linearize(predicted, x, has_aux=True)
        directions = jax.vmap(lambda key, x: probes(key, x, self.count), out_axes=1)(fold(at.keys, PROBE_STREAM), x)
        trace = jax.lax.map(lambda v: total(v * push(v)), directions).mean(axis=0)
        noise = square_noise(at.now, x).reshape(-1)
        return *kept, (jnp.asarray(at.now.alpha, x.dtype) * trace - x[0].size) / noise

    def at(self, level: Level, x: Array) -> Array:
        """The exponents [E] at a level."""
        exponents = self.exponents(level) if callable(self.exponents) else self.exponents
        return jnp.asarray(exponents, x.dtype)

    def matched(self, x: Array, level: Level) -> Matched:
        """The product of the experts' Gaussian surrogates at a level."""
        return matched(self.means, self.variances, self.at(level, x), x, level)

    def _check_normalisable(self, levels: Level) -> None:
        exponents = [np.asarray(self.exponents(level)) for level in _each(levels)] if callable(self.exponents) else None
        beta = np.asarray(self.exponents) if exponents is None else np.stack(exponents, axis=1)
        shares = beta.sum(axis=0)
        if np.any(shares <= 0):
            raise ValueError(
                f"exponents {beta.tolist()} sum to {float(np.min(shares)):g}: at high noise, where all experts are the "
                f"same Gaussian, their product has no normaliser; the sum must be positive"
            )
        precision, t = lowest_precision(self.means, self.variances, beta, levels)
        if precision <= 0:
            raise ValueError(
                f"the product cannot be normalised at t = {t:g}: sum of exponent / variance is {precision:.3g} in "
                f"units of the noise, for exponents {np.asarray(beta).tolist()} and variances "
                f"{np.asarray(self.variances).tolist()}; an expert with a negative exponent must be the broader one, "
                f"or its exponent smaller"
            )


def product(
    experts: Sequence[Denoiser],
    exponents: Any,
    *,
    means: Any = 0.0,
    variances: Any = 1.0,
    gauge: Any = 1.0,
    probes: Probes | None = None,
    count: int = 1,
) -> Product:
    """Product of experts: the law prod_i q_i^beta_i / Z of several networks, or of one under several conditions.

    One call of every expert a call. Under a stochastic solver it is the drift of a Feynman-Kac corrector; the weights
    are those of `corrector`, `corrected` puts both together. The gauge is on by default and vanishes by itself where
    the exponents sum to 1 and the surrogates are equal.

    Args:
        experts: denoisers on one process; `guidance.fixed` gives one a condition of its own, the others see the run's.
        exponents: beta_i, [E], any sign, positive sum; or a function of the `Level` -> [E], whose change is then
            weighed too. Numbers are leaves.
        means, variances: of each expert's data, one number, [E] or [E, *event]: the Gaussian surrogates that the
            gauge, the start and the check of the target are made from. An EDM network: sigma_data^2.
        gauge: share of the matched gauge (see `smc.gauge`), a leaf: 1 on, 0 off. At noise rate g (1 / beta for
            tempered noise) 2 / (1 + g) matches fully.
        probes: for exponents that change under noise of another rate than 1, whose log q_i needs the divergence of the
            scores: `probes.rademacher` (Hutchinson's estimate), `probes.every_axis` (the trace itself, d products), or
            another of `diffsample.probes`. count: random probes a call, a Jacobian-vector product each.

    Raises:
        ValueError: lengths that do not fit, or a variance that is not positive. From `solvers.linear`: exponents whose
            sum is not positive, or a product that has no normaliser at some level, as far as the variances tell.

    Reference: Skreta et al. 2025, arXiv 2503.02819; the gauge is this library's.

    >>> import diffsample as ds
    >>> two = product([ds.exact.Gaussian(0.0, 1.0), ds.exact.Gaussian(1.0, 1.0)], [1.0, 1.0], means=[0.0, 1.0])
    >>> two.evaluations
    2
    """
    experts = tuple(experts)
    if not experts:
        raise ValueError("product needs at least one expert")
    if not callable(exponents):
        exponents = _numbers(exponents)
        if is_concrete(exponents) and (np.shape(exponents) != (len(experts),) or not np.isfinite(exponents).all()):
            raise ValueError(f"exponents={exponents} must be {len(experts)} finite numbers, one an expert")
    means, variances = (_per_expert(v, len(experts), n) for v, n in ((means, "means"), (variances, "variances")))
    if is_concrete(variances) and not (np.asarray(variances) > 0).all():
        raise ValueError(f"variances={variances} must be positive")
    if count < 1:
        raise ValueError(f"count={count} must be at least 1 probe")
    exponents = as_pytree(exponents) if callable(exponents) else exponents
    return Product(experts, exponents, means, variances, gauge, probes, count)


def annealed(
    denoiser: Denoiser,
    beta: Any,
    *,
    mean: Any = 0.0,
    variance: Any = 1.0,
    gauge: Any = 1.0,
    probes: Probes | None = None,
    count: int = 1,
) -> Product:
    """The annealed law q^beta / Z: beta = 1 / temperature of a network's law; one call of it a call.

    Args:
        denoiser: whose law.
        beta: positive number, or a function of the `Level`.
        mean, variance: of the data, one number or [*event]. gauge, probes, count: as for `product`.

    >>> import diffsample as ds
    >>> annealed(ds.exact.Gaussian(0.0, 1.0), 2.0).evaluations
    1
    """
    exponents = _Listed(as_pytree(beta)) if callable(beta) else _lead(beta)
    moments = {"means": _lead(mean), "variances": _lead(variance)}
    return product([denoiser], exponents, gauge=gauge, probes=probes, count=count, **moments)


def guided(
    denoiser: Denoiser, null: PyTree, scale: Any, *, means: Any = 0.0, variances: Any = 1.0, gauge: Any = 1.0
) -> Product:
    """The law that guidance means, q_c^scale q_u^(1 - scale) / Z; two calls of the network a call.

    `guidance.cfg` has this score and samples another law; with `corrector` it is this one.

    Args:
        denoiser: conditional network, called under the run's condition and under `null`.
        null: unconditional condition of one sample; broadcast to the batch.
        scale: guidance scale, 1 = conditional.
        means, variances: of the conditional and of the unconditional data, [2, ...]. gauge: as for `product`.

    >>> import diffsample as ds
    >>> guided(ds.exact.Gaussian(0.0, 1.0), null=10, scale=2.0).exponents.tolist()
    [2.0, -1.0]
    """
    scale = scale if isinstance(scale, Array) else np.asarray(scale, np.float64)
    stack = jnp.stack if isinstance(scale, Array) else np.stack
    experts = (denoiser, fixed(denoiser, null))
    return product(experts, stack([scale, 1 - scale]), means=means, variances=variances, gauge=gauge)


@pytree
class _Listed:
    """A function of the level as a list of one."""

    function: Any

    def __call__(self, level: Level) -> Array:
        return jnp.asarray(self.function(level))[None]


def _each(levels: Level) -> list[Level]:
    return [Level(*numbers) for numbers in zip(*(np.ravel(v) for v in levels), strict=True)]


def _numbers(value: Any) -> Any:
    return value if isinstance(value, Array) else np.asarray(value, np.float64)


def _lead(value: Any) -> Any:
    return _numbers(value)[None]


def _per_expert(value: Any, count: int, name: str) -> Any:
    value = _numbers(value)
    if not np.ndim(value):
        return np.full(count, value) if isinstance(value, np.ndarray | np.floating) else jnp.full(count, value)
    if np.shape(value)[0] != count:
        raise ValueError(f"{name} has shape {np.shape(value)}; it needs one entry an expert first, here {count}")
    return value
