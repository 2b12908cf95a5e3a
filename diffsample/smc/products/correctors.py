"""Feynman-Kac correctors: the weights under which a product of experts is sampled as the law that it says.

The move is any stochastic table's, driven by the product's score; the weight says what the move leaves out. Noise is
the table's own: `ddpm(large=True)`, `ddpm()` and `sde_dpmpp(order=1)` are target score (exponential integrators, with
the exact integral of the variance), `sde_dpmpp(order=1, eta=g)` and `ddim(eta=sqrt(g))` have noise rate g (tempered
noise: g = 1 / beta), `euler_maruyama` is the papers' Euler scheme. All have the same weights (`smc.master`).

The more noise, the longer particles stay with the target that they are weighed for, and the less weights vary, as long
as modes exchange particles: on forty modes in the plane g = 10 over 1000 rows takes nine tenths off the deviation of
log Z. The error of the move grows as g times the step. Lone modes need another path of targets: see `rising`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.denoiser import Denoiser, expand
from diffsample.process import Level
from diffsample.sampler import Kernel, Sampler, View
from diffsample.smc.filtering import FeynmanKac, feynman_kac
from diffsample.smc.functions import as_pytree
from diffsample.smc.policies import Policy
from diffsample.smc.potentials import Closing, Potential, Transition
from diffsample.smc.products.experts import Experts, Product
from diffsample.smc.products.gauge import square_noise
from diffsample.smc.products.moves import Move, by_densities, by_drawn_variance, by_kernels, by_rate, flat, scores
from diffsample.smc.products.surrogates import ProductStart, Surrogates
from diffsample.smc.resamplers.resampling import systematic
from diffsample.smc.starting import started
from diffsample.struct import pytree, static
from diffsample.tableau import is_concrete


class Tracked(NamedTuple):
    """Memory of a corrector: how far the path has come."""

    level: Level  # reached, fields [B]
    exponents: Array  # [E] reached
    log_q: Any  # [B, E] log-densities of the experts in y, where exponents change; else ()


@pytree
class Corrector(Potential):
    """Weights of a product of experts; see `corrector`."""

    surrogates: Surrogates
    log_density: Any = None
    weigh: Any = None
    tracks: bool = static(default=False)

    def check(self, sampler: Sampler) -> None:
        table = getattr(sampler, "tableau", None)
        target = _product_of(sampler)
        if table is None or not is_concrete((table, target.gauge)):
            return
        if table.registers * table.slots > 1 and np.any(np.asarray(target.gauge) != 0):
            raise ValueError(f"{table.about.name} keeps {table.registers} registers and {table.slots} past outputs, so "
                             f"that the gauge's share of a move is unknown: use a one-step method such as ddpm, or "
                             f"gauge=0.0")  # fmt: skip
        if self.tracks and self.log_density is None and target.probes is None:
            _refuse_other_noise(sampler)

    def start(self, view: View) -> tuple[Array, Tracked]:
        memory, level = _experts(view), view.level
        if self.log_density is None:
            log_g = self.surrogates.log_normaliser(memory.exponents, view.x, level)
            log_q = self.surrogates.log_each(view.x, level)
        else:
            log_q = self._log_density(view.x, level)
            log_g = log_q @ memory.exponents - self.surrogates.log_start(memory.exponents, view.x, level)
        level = Level(*(jnp.broadcast_to(jnp.asarray(v, view.x.dtype), view.x.shape[:1]) for v in level))
        return log_g, Tracked(level, memory.exponents, log_q if self.tracks else ())

    def __call__(self, transition: Transition, memory: Tracked) -> tuple[Array, Tracked]:
        after = transition.after
        return self._weigh(transition.before, after.x, after.level, memory, transition.kernel)

    def finish(self, closing: Closing, memory: Tracked) -> Array:
        level = _experts(closing.before).next
        return self._weigh(closing.before, closing.x, level, memory, closing.kernel)[0]

    def _weigh(
        self, before: View, x: Array, level: Level, memory: Tracked, kernel: Callable[[], Kernel]
    ) -> tuple[Array, Tracked]:
        experts, alpha = _experts(before), expand(level.alpha, x)
        step = x / alpha - before.x / expand(before.level.alpha, x)
        gap = square_noise(memory.level, x) - square_noise(experts.next, x)
        missed = self.surrogates.missed(experts.exponents, x, memory.level, experts.next)
        move = Move(before, experts, step, gap, missed, alpha, (), kernel)
        if not self.tracks:
            return self.weigh(move), Tracked(experts.next, experts.coming, ())
        known = self.log_density is not None
        climbed = self._log_density(x, level) - memory.log_q if known else self._climbed(move, x, level)
        log_q = memory.log_q + climbed
        log_g = self.weigh(move._replace(climbed=climbed)) + log_q @ (experts.coming - memory.exponents)
        return log_g, Tracked(experts.next, experts.coming, log_q)

    def _log_density(self, x: Array, level: Level) -> Array:
        """The known log-densities [B, E], of y."""
        size = x[0].size
        scale = jnp.log(jnp.asarray(level.alpha, x.dtype)).reshape(-1, 1)
        return self.log_density(x, level) + size * scale

    def _climbed(self, move: Move, x: Array, level: Level) -> Array:
        """How log q_i [B, E] changes along the move: s . dy - |s|^2 du / 2 + div s (drawn variance - du) / 2.

        Target score draws du, so that it needs no divergence; elsewhere the product's probes give it. The rule misses
        dy' H dy / 2 less its mean, H the Hessian: a spread of the order of the step. So it is applied to the ratio of
        each expert to its surrogate, whose own change is known exactly.
        """
        before = move.before
        found, guesses = jnp.moveaxis(scores(move), 0, 1), self.surrogates.scores(before.x, before.level)
        change = (found - guesses) * move.step[:, None] - 0.5 * move.gap[:, None] * (found**2 - guesses**2)
        change = change.reshape(*change.shape[:2], -1).sum(axis=-1)
        if move.memory.divergence is not None:
            excess = flat((expand(before.std, move.step) / move.alpha) ** 2 - move.gap)[:, None]
            away = move.memory.divergence - self.surrogates.divergences(before.x, before.level)
            change = change + 0.5 * excess * away
        exact = self.surrogates.log_each(x, level) - self.surrogates.log_each(before.x, before.level)
        return exact + change


def corrector(target: Product, *, log_density: Any = None) -> Corrector:
    """FKC weights with the exact integral of the noise variance: log G = g (u - u'), g at the state left. The default.

    Under `feynman_kac` over `solvers.linear(target, table)`, particles started by `start_of` carry prod_i q_i^beta_i;
    order 1 in the step for any table that takes one. exp(log_z) estimates the integral of the product, of densities
    of x / alpha at the last level. No network call.

    Args:
        target: the product that the sampler drives. A change of its exponents with the level is weighed by log q_i,
            carried along the particles' own moves (specs/smc.md 2.5); that needs target-score noise (rate 1), or a
            product with `probes`.
        log_density: (x, level) -> [B, E], where the experts' densities at every level are known: the start is then
            exact, and so is the weight of changing exponents under any noise.

    Raises:
        ValueError: from `feynman_kac`: a sampler whose denoiser is no product; a table with a history while the gauge
            is on; changing exponents without densities or probes under noise other than target score.

    Reference: Skreta et al. 2025, arXiv 2503.02819.

    >>> import diffsample as ds
    >>> corrector(ds.smc.annealed(ds.exact.Gaussian(0.0, 1.0), 2.0)).tracks
    False
    """
    return _corrector(target, log_density, by_rate)


def euler_corrector(target: Product, *, log_density: Any = None) -> Corrector:
    """FKC weights of the papers' Euler scheme: log G = g times the variance that the row draws.

    With `euler_maruyama`. Biased in log_z until the steps are many (specs/smc.md 9.2); `corrector` is the better one.

    Args, Raises: as for `corrector`.

    >>> import diffsample as ds
    >>> euler_corrector(ds.smc.annealed(ds.exact.Gaussian(0.0, 1.0), 2.0)).tracks
    False
    """
    return _corrector(target, log_density, by_drawn_variance)


def kernel_corrector(target: Product, *, log_density: Any = None) -> Corrector:
    """FKC weights in discrete time: prod_i p_i(y'|y)^beta_i r(y|y')^(1 - B) / K(y'|y) with Gaussian reverse kernels.

    K is the row's own kernel, of any one-register table; p_i has the mean of `ddpm` and the large variance
    sigma_s^2 - (alpha_s / alpha_t)^2 sigma_t^2. Exact at any step where the p_i are (data N(0, 1) on a
    variance-preserving process). A closing move without noise is weighed as by `corrector`.

    Args, Raises: as for `corrector`; also several registers, when sampling.

    >>> import diffsample as ds
    >>> kernel_corrector(ds.smc.annealed(ds.exact.Gaussian(0.0, 1.0), 2.0)).tracks
    False
    """
    return _corrector(target, log_density, by_kernels)


def density_corrector(target: Product, *, log_density: Any) -> Corrector:
    """FKC weights of experts of known densities: G = prod_i (q_i'(y') / q_i(y))^beta_i r(y|y') / K(y'|y).

    Annealed importance sampling: the row's own kernel K moves, the forward kernel r goes back. Exact for any
    one-register table at any step, so that exp(log_z) is unbiased (a closing move without noise is weighed as by
    `corrector`). One evaluation of the densities a row.

    Args:
        target: the product that the sampler drives. log_density: (x, level) -> [B, E], at every level.

    Raises:
        TypeError: no function, or no product. ValueError: as for `corrector`.

    Reference: Neal 2001, Annealed Importance Sampling; Skreta et al. 2025, arXiv 2503.02819, in discrete time.

    >>> import diffsample as ds
    >>> law = ds.exact.Gaussian(0.0, 1.0)
    >>> density_corrector(ds.smc.annealed(law, 2.0), log_density=lambda x, l: law.log_prob(x, l)[:, None]).tracks
    True
    """
    if not callable(log_density):
        raise TypeError(f"log_density must be a function (x, level) -> [B, experts], got {log_density!r}")
    return _corrector(target, log_density, by_densities, tracks=True)


def start_of(sampler: Any) -> Any:
    """The sampler, started from the law of its product of experts at the first level, N(mu, 1 / Lambda).

    The exponents' sum B makes this about N(0, sigma^2 / B I). Nothing else changes.

    Args:
        sampler: `solvers.linear(product, table)`; the product may stand inside other denoisers.

    >>> import jax, diffsample as ds
    >>> process = ds.VarianceExploding()
    >>> cold = ds.smc.annealed(ds.exact.Gaussian(0.0, 1.0), 4.0)
    >>> sampler = ds.solvers.linear(cold, ds.solvers.ddpm(process, [80.0, 1.0]))
    >>> 35 < float(start_of(sampler).prior(jax.random.split(jax.random.key(0), 999), (999,), "float32").std()) < 45
    True
    """
    first = Level(*(leaf[0] for leaf in sampler.tableau.now))
    target = _product_of(sampler)
    exponents = target.exponents(first) if callable(target.exponents) else target.exponents
    return started(sampler, ProductStart(_surrogates(target), exponents, first))


def corrected(
    sampler: Any,
    *,
    particles: int,
    resample: Any = systematic,
    policy: Policy | None = None,
    clamp: Any = None,
    weights: Callable[[Product], Any] = corrector,
) -> FeynmanKac:
    """The law of a product of experts, by Feynman-Kac particles: start, weights and resampling put together.

    Args:
        sampler: `solvers.linear(product(...), table)` of a stochastic one-step table; `ddpm(..., large=True)` is the
            recommended one.
        particles, resample, policy, clamp: as for `feynman_kac`.
        weights: `corrector`, `euler_corrector`, `kernel_corrector`, or a function of the product.

    Reference: Skreta et al. 2025, arXiv 2503.02819.

    >>> import jax, diffsample as ds
    >>> process = ds.VariancePreserving()
    >>> table = ds.solvers.ddpm(process, ds.times.uniform_logsnr(process, 50), large=True)
    >>> cold = ds.solvers.linear(ds.smc.annealed(ds.exact.Gaussian(3.0, 1.0), 4.0, mean=3.0), table)
    >>> out = ds.sample(jax.random.key(0), corrected(cold, particles=512), (512,))
    >>> bool(abs(out.mean(out.x)[0] - 3) < 0.1), bool(abs(out.mean((out.x - 3) ** 2)[0] - 0.25) < 0.1)
    (True, True)
    """
    potential = weights(_product_of(sampler))
    around = start_of(sampler)
    return feynman_kac(around, potential, particles=particles, resample=resample, policy=policy, clamp=clamp)


def _corrector(target: Product, log_density: Any, weigh: Callable[[Move], Array], tracks: bool = False) -> Corrector:
    if not isinstance(target, Product):
        raise TypeError(f"a corrector weighs smc.product, smc.annealed or smc.guided, got {type(target).__name__}")
    known = None if log_density is None else as_pytree(log_density)
    return Corrector(_surrogates(target), known, as_pytree(weigh), tracks=tracks or callable(target.exponents))


def _surrogates(target: Product) -> Surrogates:
    return Surrogates(target.means, target.variances)


def _product_of(sampler: Any) -> Product:
    """The product that a sampler drives, perhaps inside other denoisers."""
    found: Denoiser | None = getattr(sampler, "denoiser", None)
    while found is not None and not isinstance(found, Product):
        found = getattr(found, "denoiser", None)
    if found is None:
        raise ValueError(
            f"a corrector needs a sampler whose denoiser is smc.product, smc.annealed or smc.guided; this "
            f"{type(sampler).__name__} drives a {type(getattr(sampler, 'denoiser', None)).__name__}"
        )
    return found


def _experts(view: View) -> Experts:
    if not isinstance(view.memory, Experts):
        raise ValueError(
            f"the corrector reads the memory of a product of experts, and found {type(view.memory).__name__}; inside a "
            f"twist, give it to the twist's potential as `base`"
        )
    return view.memory


def _refuse_other_noise(sampler: Any) -> None:
    """Carrying log q along a path of noise rate other than 1 needs a divergence, which no view holds."""
    row = sampler.steps
    gain, std, alpha, left, reached = (np.asarray(v, np.float64) for v in (
        row.gain, row.std, row.next.alpha, row.now.sigma / row.now.alpha, row.next.sigma / row.next.alpha))  # fmt: skip
    pull, gap, drawn = gain * left**2 / alpha, left**2 - reached**2, (std / alpha) ** 2
    same = np.isclose(pull, gap, rtol=1e-3) | np.isclose(pull, drawn, rtol=1e-3)
    if not same.all():
        raise ValueError(
            f"exponents that change need the experts' log-densities, and {sampler.tableau.about.name} does not draw "
            f"target-score noise (row {int(np.argmin(same))}): use ddpm, give log_density, or the product probes"
        )
