"""Fully adapted particles for linear measurements: moves drawn given a Gaussian guess at the coming state.

y = A x0 + sigma_y n is seen in the singular basis of A: coordinates c = V'x with c_i(x0) observed as y_i / s_i. A twist
g_t(x) = prod_i N(c_i(x); mu_ti, v_ti) multiplies the Gaussian kernel N(m, std^2) to a Gaussian again,

    c_i ~ N(gain mu + (1 - gain) c_i(m), gain v),   gain = std^2 / (std^2 + v),   all other directions as before,

whose normaliser N(mu; c(m), std^2 + v) depends on the state left only, so that it is known, and resampled by, before
the move. Divided by g_t at the state left, the weights telescope to N(y; A x, sigma_y^2): exact for any mu and v.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.denoiser import PyTree
from diffsample.sampler import Kernel, View, normal
from diffsample.smc.filtering import FeynmanKac, feynman_kac
from diffsample.smc.policies import Policy
from diffsample.smc.potentials import Closing, Potential, Transition
from diffsample.smc.resamplers.resampling import systematic
from diffsample.smc.rewards.linear_twists import refuse_operator
from diffsample.smc.rewards.own_moves import all_levels, call_at, refuse_padding
from diffsample.struct import pytree, static


@pytree
class Coordinates:
    """A measurement in its singular basis."""

    basis: Any  # [r, d] rows of V'
    singular: Any  # [r]
    y: Any  # [r] rotated measurement, U'y
    noise: Any  # sigma_y

    def of(self, x: Array) -> Array:
        """c = V'x, [B, r]."""
        return jnp.matmul(x.reshape(len(x), -1), jnp.asarray(self.basis, x.dtype).T, precision="highest")

    def moved(self, x: Array, c: Array) -> Array:
        """x with its coordinates replaced."""
        change = jnp.matmul(c - self.of(x), jnp.asarray(self.basis, x.dtype), precision="highest")
        return x + change.reshape(x.shape)

    def log_likelihood(self, x: Array) -> Array:
        """log N(y; A x, sigma_y^2), [B]."""
        scale = jnp.asarray(self.singular, x.dtype)[None]
        away = jnp.asarray(self.y, x.dtype)[None] - scale * self.of(x)
        return _log_one(away, jnp.asarray(self.noise, x.dtype) ** 2).sum(axis=-1)


class Guess(NamedTuple):
    """A twist at one level, or at each [n+1]."""

    mean: Any  # [r] of the coordinates
    var: Any  # [r]
    on: Any  # [r] bool, whether the coordinate is twisted here


class AdaptedRow(NamedTuple):
    """One row as the scan sees it."""

    inner: PyTree
    coming: PyTree  # the move after the call
    now: Guess
    next: Guess


class AdaptedState(NamedTuple):
    inner: PyTree
    log_g: Array  # [B] weight of the state: log normaliser of the coming move over g


class Ahead(NamedTuple):
    """Memory of an adapted sampler, with the network's."""

    log_g: Array
    inner: PyTree


@pytree
class Adapted:
    """A one-register linear solver whose moves are drawn given a guess; see `mcgdiff`."""

    linear: Any
    seen: Coordinates
    guess: Guess  # [n+1, r]
    telescopes: bool = static(default=True)

    @property
    def nfe(self) -> int:
        return self.linear.nfe

    @property
    def draws(self) -> Any:
        return self.linear.draws

    @property
    def steps(self) -> AdaptedRow:
        rows, table = self.linear.steps, self.linear.tableau
        coming = rows._replace(A=table.A[1:], B=table.B[1:], c=table.c[1:])
        now, after = (jax.tree.map(lambda leaf, s=s: leaf[s], self.guess) for s in (slice(0, -1), slice(1, None)))
        return AdaptedRow(rows, coming, now, after)

    def admit(self, shape: tuple[int, ...], x: Array | None) -> None:
        """Raise where samples are not of the size that was measured."""
        if math.prod(shape[1:]) != jnp.shape(self.seen.basis)[1]:
            raise ValueError(f"the operator measures vectors of {jnp.shape(self.seen.basis)[1]} numbers, and the "
                             f"samples {tuple(shape)} hold {math.prod(shape[1:])} each")  # fmt: skip

    def prior(self, keys: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        """N(0, sigma^2) given the first guess."""
        std = jnp.asarray(self.linear.tableau.now.sigma[0], dtype)
        law = Kernel(jnp.zeros(shape, dtype), std)
        return self._draw(keys, law, jax.tree.map(lambda leaf: leaf[0], self.guess))

    def init(self, keys: Array, x: Array, cond: PyTree) -> AdaptedState:
        zero = jnp.zeros(x.shape[:1], x.dtype)
        return AdaptedState(self.linear.init(keys, x, cond), zero)

    def step(self, keys: Array, state: AdaptedState, step: AdaptedRow, cond: PyTree) -> AdaptedState:
        x = self._draw(keys, self.linear.kernel(state.inner, step.inner), step.now)
        inner = call_at(self.linear, keys, state.inner, x, step.inner, cond)
        law = self.linear.kernel(inner, step.coming)
        log_g = self._log_ahead(law, step.next)
        if self.telescopes:
            log_g = log_g - jnp.where(step.now.on[None], _log_each(self.seen.of(x), step.now), 0.0).sum(axis=-1)
        return AdaptedState(inner, log_g)

    def finish(self, keys: Array, state: AdaptedState, cond: PyTree) -> Array:
        x = self._draw(keys, self.linear.kernel(state.inner, None), self.last)
        exact = jnp.asarray(self.seen.noise) == 0
        c = jnp.broadcast_to(jnp.asarray(self.seen.y / self.seen.singular, x.dtype)[None], self.seen.of(x).shape)
        return jnp.where(exact, self.seen.moved(x, c), x)

    def view(self, state: AdaptedState) -> View:
        view = self.linear.view(state.inner)
        return view._replace(memory=Ahead(state.log_g, view.memory))

    @property
    def last(self) -> Guess:
        """The guess at the last level."""
        return jax.tree.map(lambda leaf: leaf[-1], self.guess)

    def _draw(self, keys: Array, law: Kernel, guess: Guess) -> Array:
        z = normal(keys, law.mean.shape, law.mean.dtype)
        x = law.mean + law.std.astype(z.dtype) * z
        mean, var, on = _row(guess, x)
        gain = jnp.where(on, _share(law.std.astype(x.dtype) ** 2, var), 0.0)
        free = self.seen.of(law.mean) + law.std.astype(x.dtype) * self.seen.of(z)
        held = gain * mean + (1 - gain) * self.seen.of(law.mean) + jnp.sqrt(gain * var) * self.seen.of(z)
        return self.seen.moved(x, jnp.where(on, held, free))

    def _log_ahead(self, law: Kernel, guess: Guess) -> Array:
        mean, var, on = _row(guess, law.mean)
        each = _log_one(mean - self.seen.of(law.mean), law.std.astype(var.dtype) ** 2 + var)
        return jnp.where(on, each, 0.0).sum(axis=-1)


@pytree
class AdaptedWeight(Potential):
    """The weights of `Adapted`: ahead of each move, and the likelihood in the end."""

    seen: Coordinates
    guess: Guess
    start_std: Any
    telescopes: bool = static(default=True)

    def start(self, view: View) -> tuple[Array, PyTree]:
        first = jax.tree.map(lambda leaf: leaf[0], self.guess)
        mean, var, on = _row(first, view.x)
        each = _log_one(mean, jnp.asarray(self.start_std, view.x.dtype) ** 2 + var)
        return view.memory.log_g + jnp.where(on, each, 0.0).sum(axis=-1), ()

    def __call__(self, transition: Transition, memory: PyTree) -> tuple[Array, PyTree]:
        return transition.after.memory.log_g, memory

    def finish(self, closing: Closing, memory: PyTree) -> Array:
        if not self.telescopes:
            return jnp.zeros(closing.x.shape[:1], closing.x.dtype)
        last = jax.tree.map(lambda leaf: leaf[-1], self.guess)
        held = jnp.where(last.on[None], _log_each(self.seen.of(closing.x), last), 0.0).sum(axis=-1)
        noisy = jnp.asarray(self.seen.noise) > 0
        safe = Coordinates(self.seen.basis, self.seen.singular, self.seen.y, jnp.where(noisy, self.seen.noise, 1.0))
        # without noise the guess at the last noisy level stands for the density of y, up to its own width
        scale = jnp.log(jnp.asarray(self.seen.singular, closing.x.dtype)).sum()
        return jnp.where(noisy, safe.log_likelihood(closing.x) - held, -scale)


def mcgdiff(
    linear: Any,
    operator: Any,
    y: Any,
    noise: Any,
    *,
    particles: int,
    kappa: float = 1e-4,
    resample: Any = systematic,
    policy: Policy | None = None,
) -> FeynmanKac:
    """MCGDiff: Monte Carlo guided diffusion for y = A x0 + noise n, exact as particles grow.

    mu_t = alpha_t y / s and v_t = sigma_t^2 + alpha_t^2 ((noise / s)^2 + kappa), the likelihood of y given x_t under a
    flat prior; then the likelihood itself. exp(log_z) is an unbiased estimate of p(y) under the sampler's chain.
    Without noise this is the published filter, coordinates end at y, and log_z is that of y at the last noisy level.
    With noise the published guess ends at the level tau whose noise equals the measurement's, in a point of width
    kappa, and its weights N(y; s x0) / g_tau have no usable variance; here the guess goes on to the end.
    One call a row, r d numbers of basis.

    Args:
        linear: `solvers.linear(denoiser, table)` of one register: `ddpm`, `ddim(eta=1)`.
        operator: A [r, d] of full row rank, over the flattened sample. y: [r]. noise: sigma_y >= 0.
        particles, resample, policy: as for `feynman_kac`. The paper's multinomial at every row collapses.
        kappa: squared width of the guess at clean data.

    Raises:
        TypeError: an operator that is no matrix, a wrapped sampler.
        ValueError: shapes that do not fit, an operator without full row rank, a negative noise, several registers.

    Reference: Cardoso et al. 2024, arXiv 2308.07983, algorithm 1.

    >>> import jax, diffsample as ds
    >>> process = ds.VariancePreserving()
    >>> table = ds.solvers.ddpm(process, ds.times.uniform_logsnr(process, 40))
    >>> linear = ds.solvers.linear(ds.exact.Gaussian([0.0, 0.0], 1.0), table)
    >>> out = ds.sample(jax.random.key(0), mcgdiff(linear, [[1.0, 0.0]], [1.5], 0.0, particles=64), (64, 2))
    >>> bool((abs(out.x[:, 0] - 1.5) < 1e-5).all())
    True
    """
    seen, levels = _measured(operator, y, noise), all_levels(linear)
    alpha, sigma = levels.alpha[:, None], levels.sigma[:, None]
    on = np.broadcast_to(sigma > 0, (len(sigma), len(seen.singular)))
    var = sigma**2 + alpha**2 * ((np.asarray(seen.noise) / seen.singular[None]) ** 2 + kappa)
    guess = Guess(alpha * (np.asarray(seen.y) / seen.singular)[None], var, on)
    return _filter(linear, seen, guess, particles, resample, policy)


def fps(
    linear: Any,
    operator: Any,
    y: Any,
    noise: Any,
    key: Array,
    *,
    particles: int,
    kappa: float = 1e-4,
    resample: Any = systematic,
    policy: Policy | None = None,
) -> FeynmanKac:
    """FPS-SMC: a filter along one noised path of the measurement, y_t = alpha_t y + sigma_t A eps_t, eps_t shared.

    mu_t is the path and v_t = alpha_t^2 noise^2 / s^2 + kappa sigma_t^2 at every noisy level; each row multiplies the
    predictive density of its y_t. Without noise the limit of many steps and particles is p(x | y), whatever the path.
    With noise every level counts the one error of y anew, so that the law is too narrow: use `mcgdiff`, which is exact.
    log_z is that of the whole path.

    Args:
        linear, operator, y, noise, particles, kappa, resample, policy: as for `mcgdiff`.
        key: typed key of the path, used for this only; all groups share it.

    Reference: Dou, Song 2024, Diffusion Posterior Sampling for Linear Inverse Problem Solving: A Filtering Perspective.

    >>> import jax, diffsample as ds
    >>> process = ds.VariancePreserving()
    >>> table = ds.solvers.ddpm(process, ds.times.uniform_logsnr(process, 40))
    >>> linear = ds.solvers.linear(ds.exact.Gaussian([0.0, 0.0], 1.0), table)
    >>> fps(linear, [[1.0, 0.0]], [1.5], 0.1, jax.random.key(1), particles=64).nfe
    40
    """
    seen, levels = _measured(operator, y, noise), all_levels(linear)
    refuse_padding(linear, "the path of y")
    z = np.asarray(jax.random.normal(key, (len(levels.alpha), len(seen.singular))), np.float64)
    path = [levels.sigma[-1] * z[-1]]
    for i in reversed(range(len(z) - 1)):  # from clean to noisy, by the forward kernels
        keep = levels.alpha[i] / levels.alpha[i + 1]
        path.append(keep * path[-1] + np.sqrt(levels.sigma[i] ** 2 - (keep * levels.sigma[i + 1]) ** 2) * z[i])
    alpha, sigma = levels.alpha[:, None], levels.sigma[:, None]
    on = np.broadcast_to(sigma > 0, (len(z), len(seen.singular)))
    var = alpha**2 * (np.asarray(seen.noise) / seen.singular[None]) ** 2 + kappa * sigma**2
    mean = alpha * (np.asarray(seen.y) / seen.singular)[None] + np.stack(path[::-1])
    guess = Guess(mean, np.where(on, var, 1.0), on)
    return _filter(linear, seen, guess, particles, resample, policy, telescopes=False)


def _log_one(residual: Array, var: Any) -> Array:
    return -0.5 * (residual**2 / var + jnp.log(2 * jnp.pi * var))


def _log_each(c: Array, guess: Guess) -> Array:
    """log g of each coordinate, [B, r]; what is off is not to be read."""
    mean, var, _ = _row(guess, c)
    return _log_one(c - mean, var)


def _row(guess: Guess, x: Array) -> tuple[Array, Array, Array]:
    """The guess as rows [1, r]."""
    return jnp.asarray(guess.mean, x.dtype)[None], jnp.asarray(guess.var, x.dtype)[None], jnp.asarray(guess.on)[None]


def _share(square: Array, var: Array) -> Array:
    """square / (square + var), 0 where nothing is drawn."""
    whole = square + var
    return square / jnp.where(whole > 0, whole, 1.0)


def _measured(operator: Any, y: Any, noise: Any) -> Coordinates:
    refuse_operator(operator)
    operator, y, noise = (np.asarray(v, np.float64) for v in (operator, y, noise))
    if operator.ndim != 2 or y.shape != operator.shape[:1] or noise.ndim or not noise >= 0:
        raise ValueError(f"operator {operator.shape}, y {y.shape} and noise={noise} must be (r, d), (r,) and a number "
                         f">= 0")  # fmt: skip
    left, singular, basis = np.linalg.svd(operator, full_matrices=False)
    if singular.min() < 1e-8 * singular.max() or operator.shape[0] > operator.shape[1]:
        raise ValueError(f"the operator has singular values {singular}; it must have full row rank: drop the rows that "
                         f"repeat others")  # fmt: skip
    return Coordinates(basis, singular, left.T @ y, float(noise))


def _filter(
    linear: Any,
    seen: Coordinates,
    guess: Guess,
    particles: int,
    resample: Any,
    policy: Policy | None,
    telescopes: bool = True,
) -> FeynmanKac:
    seen, guess = jax.tree.map(jnp.asarray, (seen, guess))
    weight = AdaptedWeight(seen, guess, linear.tableau.now.sigma[0], telescopes)
    sampler = Adapted(linear, seen, guess, telescopes)
    return feynman_kac(sampler, weight, particles=particles, resample=resample, policy=policy)
