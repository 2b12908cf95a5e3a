"""Policies that mask again: ReMDM in its five forms, and the correctors of discrete flow matching.

From t to s an observed free position is masked with probability sigma, and a masked one revealed with probability
(alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t), both decided at once. Every position is then clean with probability
alpha_s, for every sigma up to min(1, (1 - alpha_s) / alpha_t). With an exact model this gains almost nothing over
ancestral sampling and costs accuracy when sigma is large; it repairs the errors of imperfect ones.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.discrete.draws import Draws
from diffsample.discrete.gridded import Grid, as_grid
from diffsample.discrete.model import Laws
from diffsample.discrete.policy import Place, Policy, Selection
from diffsample.discrete.schedules import check_levels
from diffsample.discrete.slots import write
from diffsample.struct import pytree

PyTree: TypeAlias = Any


def remask_at_most(levels: Any, eta: float = 0.008) -> Grid:
    """ReMDM-cap: sigma = min(eta, sigma_max).

    Args:
        levels: [N + 1] falling mask probabilities that end at 0. eta: probability of masking again, a step.

    Reference: Wang et al. 2025, arXiv 2503.00307, section 4.1.

    >>> remask_at_most([1.0, 0.5, 0.0], 0.1).remask.round(3).tolist()
    [0.1..., 0.0]
    """
    _check_share(eta)
    return remasking(levels, lambda alpha_t, alpha_s, largest: np.minimum(eta, largest))


def remask_rescaled(levels: Any, eta: float = 0.015) -> Grid:
    """ReMDM-rescale: sigma = eta sigma_max; arguments as for `remask_at_most`.

    >>> remask_rescaled([1.0, 0.5, 0.0], 0.5).remask.tolist()
    [0.5, 0.0]
    """
    _check_share(eta)
    return remasking(levels, lambda alpha_t, alpha_s, largest: eta * largest)


def forward_backward(levels: Any) -> Grid:
    """The forward-backward corrector as a choice of sigma: (alpha_s - alpha_t) / alpha_t, at most sigma_max.

    Reference: Campbell et al. 2022, arXiv 2205.14987; as sigma in Wang et al. 2025, arXiv 2503.00307, section 3.3.

    >>> forward_backward([1.0, 0.75, 0.5, 0.0]).remask.tolist()
    [1.0, 1.0, 0.0]
    """

    def sigma(alpha_t: np.ndarray, alpha_s: np.ndarray, largest: np.ndarray) -> np.ndarray:
        return np.minimum((alpha_s - alpha_t) / np.where(alpha_t > 0, alpha_t, 1.0) + (alpha_t == 0), largest)

    return remasking(levels, sigma)


def remask_loop(steps: int, *, eta: float = 0.02, start: float = 0.55, stop: float = 0.05, alpha: float = 0.9) -> Grid:
    """ReMDM-loop: reveal up to a share alpha, mask and reveal at that share, then reveal the rest.

    Args:
        steps: N. eta: sigma of the loop. start, stop: its times, 1 > start > stop > 0. alpha: its share of clean
        tokens.

    Reference: Wang et al. 2025, arXiv 2503.00307, section 4.2.

    >>> (1 - remask_loop(4, start=0.75, stop=0.25).clock).round(3).tolist()
    [0.9..., 0.9..., 0.9..., 1.0]
    """
    _check_share(eta)
    if not 1 > start > stop > 0 or not 0 < alpha < 1 or steps < 3:
        raise ValueError(f"need 1 > start={start} > stop={stop} > 0, 0 < alpha={alpha} < 1 and steps={steps} >= 3")
    t = np.linspace(1.0, 0.0, steps + 1)
    clean = np.interp(-t, [-1.0, -start, -stop, 0.0], [0.0, alpha, alpha, 1.0])
    looping = (t[:-1] <= start + 1e-12) & (t[1:] >= stop - 1e-12)
    return remasking(1 - clean, lambda alpha_t, alpha_s, largest: np.where(looping, np.minimum(eta, largest), 0.0))


def remasking(levels: Any, sigma: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]) -> Grid:
    """ReMDM with any sigma(alpha_t, alpha_s, sigma_max) [N] on a grid of mask probabilities.

    Raises:
        ValueError: a sigma outside [0, sigma_max].

    >>> remasking([1.0, 0.5, 0.0], lambda alpha_t, alpha_s, largest: 0 * largest).rho.tolist()
    [0.5, 1.0]
    """
    m = check_levels(levels)
    alpha_t, alpha_s = 1 - m[:-1], 1 - m[1:]
    largest = np.where(alpha_t > 0, np.minimum(1.0, m[1:] / np.where(alpha_t > 0, alpha_t, 1.0)), 1.0)
    value = np.asarray(sigma(alpha_t, alpha_s, largest), np.float64)
    if value.shape != largest.shape or (value < 0).any() or (value > largest + 1e-12).any():
        raise ValueError(f"sigma={value.tolist()} must lie in 0 .. sigma_max={largest.tolist()}")
    # to level 0 all that is left, whatever rounding says; where nothing is masked any more, rho does not matter
    rho = np.where(m[1:] > 0, (alpha_s - (1 - value) * alpha_t) / np.where(m[1:] > 0, m[:-1], 1.0), 1.0)
    return as_grid(np.clip(rho, 0.0, 1.0), value, m)


def flow_corrector(levels: Any, eta: float = 15.0) -> Grid:
    """The stochasticity of discrete flow matching: with u = alpha, masked -> token at rate (1 + eta u) / (1 - u), back
    at eta.

    Euler's steps of these rates, exact in law as the steps vanish. Near the end (1 + eta u) (t - s) exceeds 1 - u, the
    chance is cut to one, and more stays masked than the level says; the last step reveals all that is left.

    Args:
        levels: [N + 1] falling mask probabilities that end at 0. eta: noise.

    Raises:
        ValueError: a step longer than 1 / eta, for which the rate back is no probability.

    Reference: Campbell et al. 2024, arXiv 2402.04997, appendix F.

    >>> flow_corrector([1.0, 0.5, 0.0], 1.0).rho.tolist()
    [0.5, 1.0]
    """
    m = check_levels(levels)
    step = -np.diff(m)
    if eta < 0 or (eta * step > 1).any():
        raise ValueError(f"eta={eta} must lie in 0 .. {1 / step.max():g} for steps of {step.max():g}: take more steps")
    u = 1 - m[:-1]
    rho = np.minimum(np.where(m[:-1] > 0, step * (1 + eta * u) / np.where(m[:-1] > 0, m[:-1], 1.0), 1.0), 1.0)
    back = eta * step
    last = np.flatnonzero(m[:-1] > 0)[-1]
    rho[last:], back[last:] = 1.0, 0.0
    return as_grid(rho, back, m)


@pytree
class ConfidentRemasking(Policy):
    """ReMDM-conf; see `remask_unsure`."""

    alpha_t: Array  # [K]
    alpha_s: Array  # [K]
    largest: Array  # [K]
    remask: Any = True  # what enumeration asks: a full sequence may be masked again

    @property
    def steps(self) -> PyTree:
        return self.alpha_t, self.alpha_s, self.largest

    def init(self, draws: Draws, place: Place) -> tuple[PyTree, Array]:
        psi = jnp.zeros(place.masked.shape, jnp.asarray(self.largest).dtype)
        return psi, jnp.full_like(place.clock, 1 - self.alpha_t[0])

    def select(self, draws: Draws, laws: Laws, place: Place, memory: Array, row: PyTree) -> tuple[Selection, PyTree]:
        alpha_t, alpha_s, largest = row
        newest = place.newest
        psi = write(memory, newest.positions, newest.valid, jnp.exp(newest.log_p))
        observed = place.free & ~place.masked
        weights = jnp.where(observed, jnp.exp(-psi), 0.0)  # psi lies in 0 .. 1
        total = jnp.sum(weights, axis=1, keepdims=True)
        sigma = largest * weights / jnp.where(total > 0, total, 1.0)
        rho = (alpha_s - alpha_t) / (1 - alpha_t)
        coin = draws.coins(jnp.where(place.masked, rho, jnp.where(observed, sigma, 0.0)))
        clock = jnp.broadcast_to(1 - alpha_s, place.clock.shape)
        return Selection(coin & place.masked, clock, remask=coin & observed), psi


def remask_unsure(levels: Any) -> ConfidentRemasking:
    """ReMDM-conf: sigma_l = sigma_max softmax(-psi)_l over the observed positions, psi_l = c(x_l) when l was last
    revealed.

    The mass of masking again is at most sigma_max a step. It depends on the sequence, so the law is no longer kept.

    Args:
        levels: [N + 1] falling mask probabilities that end at 0, without repeats.

    Reference: Wang et al. 2025, arXiv 2503.00307, section 4.1.

    >>> remask_unsure([1.0, 0.5, 0.0]).largest.tolist()
    [1.0, 0.0]
    """
    m = check_levels(levels)
    if (m[:-1] <= 0).any():
        raise ValueError(f"levels must be positive before the last, got {m.tolist()}")
    alpha_t = 1 - m[:-1]
    largest = np.where(alpha_t > 0, np.minimum(1.0, m[1:] / np.where(alpha_t > 0, alpha_t, 1.0)), 1.0)
    return ConfidentRemasking(*(jnp.asarray(a, float) for a in (alpha_t, 1 - m[1:], largest)))


def _check_share(eta: float) -> None:
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta} must lie in 0 .. 1")
