"""Base methods of the time-shift sampler: one step from a level a sample, and how they are read off a table.

x_t = carry x_s + total (weighted average of outputs) + up z; (carry, total, up) are [B], from the levels s and t, [B].
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.process import Level
from diffsample.struct import pytree, static
from diffsample.tableau import Tableau

SERIES = 18  # terms of phi_k below |z| = 1, for float64 too


class Move(NamedTuple):
    """One update: where from is the sample's own level, the rest is of the row."""

    to: Level  # scalars; the nominal level that the step leads to
    part: Any  # share of the step in t, 1 except at inner calls
    weights: Any  # [S] on the history; in `Exponential`, 1 at outputs that exist
    slots: Any  # [K] slots, newest output first


@pytree
class Transfer:
    """Fixed weights on eps, every move a DDIM transfer along their average: DDIM, PLMS, iPNDM, S-PNDM, F-PNDM."""

    noise_form = True
    draws = False

    def coefficients(self, s: Level, t: Level) -> tuple[Array, Array, Array]:
        carry = t.alpha / s.alpha
        return carry, t.sigma - carry * s.sigma, jnp.zeros_like(carry)

    def weigh(self, s: Level, t: Level, move: Move, places: Array) -> Array:
        return jnp.broadcast_to(jnp.asarray(move.weights, places.dtype)[:, None], places.shape)


@pytree
class Ancestral:
    """DDIM(eta) on x0: c = eta sigma_t sqrt(1 - exp(-2h)); a source less noisy than the target draws nothing."""

    eta: Any
    draws: bool = static(default=True)
    noise_form = False

    def coefficients(self, s: Level, t: Level) -> tuple[Array, Array, Array]:
        decay = s.alpha * t.sigma / (t.alpha * s.sigma)
        up = self.eta * t.sigma * jnp.sqrt(jnp.maximum(0.0, 1.0 - decay**2))
        carry = jnp.sqrt(t.sigma**2 - up**2) / s.sigma
        return carry, t.alpha - carry * s.alpha, up

    def weigh(self, s: Level, t: Level, move: Move, places: Array) -> Array:
        return jnp.ones_like(places)


@pytree
class Exponential:
    """Exact exponential Adams-Bashforth; its weights know the half log-SNR of every sample's own past."""

    noise_form: bool = static()
    draws = False

    def coefficients(self, s: Level, t: Level) -> tuple[Array, Array, Array]:
        carry = t.alpha / s.alpha if self.noise_form else t.sigma / s.sigma
        total = t.sigma - carry * s.sigma if self.noise_form else t.alpha - carry * s.alpha
        return carry, total, jnp.zeros_like(carry)

    def weigh(self, s: Level, t: Level, move: Move, places: Array) -> Array:
        """[S, B]: order 1, 2 or 3, as far as outputs exist and lie at strictly falling log-SNR."""
        order = places.shape[0]
        found = places[move.slots]  # newest first
        known = jnp.asarray(move.weights)[move.slots] > 0
        finite = t.sigma > 0
        h = jnp.log(jnp.where(finite, t.alpha * s.sigma / (jnp.where(finite, t.sigma, 1.0) * s.alpha), 2.0))
        z = h if self.noise_form else -h
        m = [phi(k + 1, z) / phi(1, z) for k in range(order)]
        gaps = [(found[j] - found[0]) / h for j in range(order)]  # 0, r1 < 0, r2 < r1
        tiny = 16 * jnp.finfo(places.dtype).eps
        two = (
            finite
            & known[min(1, order - 1)]
            & (h > tiny)
            & (gaps[min(1, order - 1)] < -tiny)
            & jnp.isfinite(h + gaps[-1])
        )
        shares = [jnp.ones_like(h)] + [jnp.zeros_like(h)] * (order - 1)
        if order > 1:
            r1 = jnp.where(two, gaps[1], -1.0)
            w1 = m[1] / r1
            second = [1 - w1, w1] + [jnp.zeros_like(h)] * (order - 2)
            shares = [jnp.where(two, b, a) for a, b in zip(shares, second, strict=True)]
        if order > 2:
            three = two & known[2] & (gaps[2] < gaps[1] - tiny)
            r1, r2 = jnp.where(three, gaps[1], -1.0), jnp.where(three, gaps[2], -2.0)
            w1 = (2 * m[2] - m[1] * r2) / (r1 * (r1 - r2))
            w2 = (2 * m[2] - m[1] * r1) / (r2 * (r2 - r1))
            shares = [jnp.where(three, b, a) for a, b in zip(shares, [1 - w1 - w2, w1, w2], strict=True)]
        return jnp.zeros_like(places).at[move.slots].set(jnp.stack(shares))


@pytree
class Midpoint:
    """DPM-Solver-2 multistep on eps with the midpoint weights of its code, at every sample's own half log-SNR."""

    noise_form = True
    draws = False

    def coefficients(self, s: Level, t: Level) -> tuple[Array, Array, Array]:
        return Transfer().coefficients(s, t)

    def weigh(self, s: Level, t: Level, move: Move, places: Array) -> Array:
        """[S, B]: 1 + r, -r with r = h / 2 over the gain between the two outputs; 1, 0 where there is no such ratio."""
        if len(places) < 2:
            return jnp.ones_like(places)
        newest, older = places[move.slots]
        two = (jnp.asarray(move.weights)[move.slots][1] > 0) & (t.sigma > 0) & (newest != older)
        h = jnp.log(jnp.where(two, t.alpha * s.sigma / (jnp.where(two, t.sigma, 1.0) * s.alpha), 1.0))
        ratio = jnp.where(two, h / (2 * jnp.where(two, newest - older, 1.0)), 0.0)
        return jnp.zeros_like(places).at[move.slots].set(jnp.stack([1 + ratio, -ratio]))


def phi(k: int, z: Array) -> Array:
    """phi_k(z) = sum_j z^j / (j + k)! on the device, k <= 3.

    >>> float(phi(1, jnp.zeros(()))), float(phi(2, jnp.zeros(())))
    (1.0, 0.5)
    """
    small = jnp.abs(z) < 1
    near, far = jnp.where(small, z, 0.0), jnp.where(small, 1.0, z)
    term = series = jnp.full_like(z, 1 / float(np.prod(np.arange(1, k + 1))))
    for j in range(1, SERIES):
        term = term * near / (j + k)
        series = series + term
    value, factorial = jnp.expm1(far) / far, 1.0
    for j in range(1, k):
        factorial *= j
        value = (value - 1 / factorial) / far
    return jnp.where(small, series, value)


def read(t: Tableau) -> tuple[Any, np.ndarray]:
    """The base method of a table, and the weights of its rows on the history; the table must be exactly that method."""
    store, A, B, c = (np.asarray(value) for value in (t.store, t.A, t.B, t.c))
    if t.registers == 1 and not A[1:].any() and t.slots == 1:
        return _eta(t), np.vstack([np.zeros((1, t.slots)), np.ones((t.rows, t.slots))])
    s = levels_before(t)
    rows = np.arange(t.rows + 1)
    register = np.append(np.asarray(t.register), t.output)
    total, weights = B[rows, register].sum(axis=1), np.zeros((t.rows + 1, t.slots))
    live = np.abs(total) > 0
    weights[live] = B[rows, register][live] / total[live, None]
    to = Level(*(np.append(now, next[-1]) for now, next in zip(t.now, t.next, strict=True)))
    carry, kept = to.alpha / s.alpha, 1.0
    fits = np.isclose(total, to.sigma - carry * s.sigma, rtol=1e-9, atol=1e-12)
    for row in range(1, t.rows + 1):  # a table may rescale the base state at an inner call
        fits[row] &= np.isclose(kept * A[row, register[row], 0], carry[row])
        kept = kept * A[row, 0, 0] if row < t.rows and t.stage[row] else 1.0
    if not ((store == [0.0, 1.0]).all() and fits[1:].all() and not c.any()):
        raise ValueError(f"{t.about.name} is not a base method of shifted; use ddim, ddpm, plms, ipndm, spndm or fpndm "
                         f"(with more steps than their start has), or shifted_exponential")  # fmt: skip
    return Transfer(), weights


def variance(x: Array) -> Array:
    """Unbiased variance of every sample over its numbers, [B]."""
    if x[0].size < 2:
        raise ValueError(f"a sample of shape {x.shape[1:]} has no variance; time shift needs two numbers or more")
    return jnp.var(x.reshape(x.shape[0], -1), axis=1, ddof=1)


def check_window(window: int) -> None:
    """Raise ValueError unless this is the width of a window of indices."""
    if not isinstance(window, (int, np.integer)) or window < 0:
        raise ValueError(f"window={window!r} must be a whole number of table indices, 0 or more")


def nearest(var: Array, expected: Array, center: Array, half: int) -> Array:
    """The index within half a window of the center, [B], whose expected variance is nearest; the lowest of equals."""
    k = jnp.clip(center[:, None] + jnp.arange(-half, half + 1)[None], 0, len(expected) - 1)
    best = jnp.argmin(jnp.abs(var[:, None] - expected[k]), axis=1)
    return jnp.take_along_axis(k, best[:, None], axis=1)[:, 0]


def table_index(t: Any, total: int) -> np.ndarray:
    """Table indices of times, -1 at clean data; the times must be those of the table."""
    index = np.rint(np.asarray(t) * total - 1).astype(int)
    if not np.allclose(np.asarray(t) * total - 1, index, atol=1e-6):
        raise ValueError(f"times {t} must be table times, (index + 1) / {total}")
    return index


def levels_before(t: Tableau) -> Level:
    """Level of the base state before each row's update, the closing one included."""
    starts = np.maximum.accumulate(np.where(np.asarray(t.stage) == 0, np.arange(t.rows), 0))
    before = np.append(0, starts)
    return Level(*(np.asarray(field)[before] for field in t.now))


def _eta(t: Tableau) -> Ancestral:
    """DDIM's eta from its table."""
    s, to = t.now, t.next
    decay = s.alpha * to.sigma / (to.alpha * s.sigma)
    most = to.sigma * np.sqrt(np.maximum(0.0, 1 - decay**2))
    c = np.asarray(t.c)[1:, 0]
    eta = float(np.max(np.where(most > 0, c / np.where(most > 0, most, 1.0), 0.0)))
    down = np.sqrt(np.maximum(to.sigma**2 - c**2, 0.0))
    fits = [np.allclose(c, eta * most), np.allclose(t.store[:, 0], to.alpha), np.allclose(t.store[:, 1], down),
            np.allclose(np.asarray(t.B)[1:, 0, 0], 1.0)]  # fmt: skip
    if not all(fits):
        raise ValueError(f"{t.about.name} is not ddim of one eta, nor another base method of shifted")
    return Ancestral(eta, draws=eta > 0)
