"""Decoders on a grid of mask probabilities: ancestral sampling, its asynchronous form, and remasking.

From m to s < m a masked position is revealed with probability rho = (m - s) / m, independently of the rest. This is
D3PM's and MDLM's ancestral step, SEDD's and RADD's analytic (Tweedie) step and MD4's, for every schedule: they differ
in the grid.
"""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.discrete.draws import Draws
from diffsample.discrete.model import Laws
from diffsample.discrete.policy import Counted, Place, Policy, Selection
from diffsample.discrete.schedules import Schedule, check_length, check_levels
from diffsample.discrete.slots import at_most
from diffsample.struct import pytree, static

PyTree: TypeAlias = Any


@pytree
class Grid(Policy):
    """Independent coins on every update; see `ancestral`, `euler`, `trapezoidal`.

    Args:
        rho: [K] probability that a masked position is revealed.
        remask: [K] probability that an observed free position is masked again, or None.
        clock: [K] mask probability after each update.
        start: mask probability of the first call.
        weight: [K] extrapolation weights, or None.
    """

    rho: Array
    remask: Array | None
    clock: Array
    start: Any
    weight: Array | None = None

    @property
    def steps(self) -> PyTree:
        return self.rho, self.remask, self.clock, self.weight

    def init(self, draws: Draws, place: Place) -> tuple[PyTree, Array]:
        return (), jnp.full(place.clock.shape, self.start, place.clock.dtype)

    def select(self, draws: Draws, laws: Laws, place: Place, memory: PyTree, row: PyTree) -> tuple[Selection, PyTree]:
        rho, remask, clock, weight = row
        p = jnp.where(place.masked, rho, 0.0 if remask is None else jnp.where(place.free, remask, 0.0))
        coin = draws.coins(p)
        back = None if remask is None else coin & ~place.masked
        return Selection(coin & place.masked, jnp.full(place.clock.shape, clock), None, back, weight), memory


@pytree
class Asynchronous(Counted):
    """Every sequence jumps to its own next non-empty interval of the grid.

    Args:
        levels: [N + 1] falling mask probabilities.
        updates: int32 [K], at most so many updates.
        most: static bound of the positions revealed at once; a fuller interval is finished in the next updates.
        length: of the longest sequence.
    """

    levels: Array
    updates: Array
    most: int = static()
    length: int = static()

    @property
    def adaptive(self) -> bool:
        return True

    def init(self, draws: Draws, place: Place) -> tuple[PyTree, Array]:
        cells = draws.at(0).cells(self.levels / self.levels[0], place.masked)
        cells = jnp.where(place.masked, cells, self.levels.shape[0])
        bounded = self.most < place.masked.shape[1]
        ranks = draws.at(1).ranks(jnp.where(place.masked, 0.0, -jnp.inf)) if bounded else ()
        return (cells, ranks), self._clock(cells)

    def select(self, draws: Draws, laws: Laws, place: Place, memory: PyTree, row: Array) -> tuple[Selection, PyTree]:
        cells, ranks = memory
        reveal = place.masked & (cells == jnp.min(cells, axis=1, keepdims=True))
        if self.most < place.masked.shape[1]:  # the largest uniforms of the interval first
            reveal = at_most(reveal, self.most, ranks)
        cells = jnp.where(reveal, self.levels.shape[0], cells)
        return Selection(reveal, self._clock(cells)), (cells, ranks)

    def _clock(self, cells: Array) -> Array:
        """The level at the start of the next non-empty interval."""
        return self.levels[jnp.minimum(jnp.min(cells, axis=1), self.levels.shape[0] - 1)]


def ancestral(levels: Any) -> Grid:
    """Ancestral sampling (D3PM, MDLM, MD4; Tweedie of SEDD and RADD) on a grid of mask probabilities.

    First order in the steps: TV ~ 1 / N. A time-free network is called only after something was revealed.

    Args:
        levels: [N + 1] falling mask probabilities that end at 0; `discrete.levels(schedule, N)`.

    Reference: Austin et al. 2021, arXiv 2107.03006; Sahoo et al. 2024, arXiv 2406.07524, eq. 7.

    >>> ancestral([1.0, 0.5, 0.0]).rho.tolist()
    [0.5, 1.0]
    """
    m = check_levels(levels)
    return as_grid(_rho(m), None, m)


def euler(schedule: Schedule, times: Any) -> Grid:
    """Euler's method on the reverse rates: rho = (t - s) sigma'(t) alpha / (1 - alpha), at most 1; the last step
    reveals all.

    Equal to `ancestral` on log-linear noise, first order on any.

    Args:
        schedule: the masking schedule.
        times: [N + 1] falling noise times.

    Raises:
        ValueError: times that do not fall.

    Reference: Lou et al. 2024, arXiv 2310.16834, eq. 17.

    >>> from diffsample.discrete import LogLinear
    >>> np.round(euler(LogLinear(), [1.0, 0.75, 0.5, 0.0]).rho, 4).tolist()
    [0.25, 0.333..., 1.0]
    """
    t, slope = rates(schedule, times)
    rate = -slope / (1.0 - np.asarray(schedule.alpha(t[:-1])))
    rho = np.minimum(-np.diff(t) * rate, 1.0)
    rho[-1] = 1.0
    m = 1.0 - np.asarray(schedule.alpha(t), np.float64)
    m[-1] = 0.0
    return as_grid(rho, None, m)


def trapezoidal(levels: Any, theta: float = 0.5) -> Grid:
    """The theta-trapezoidal step with exact unmasking: two calls a step, the second extrapolated.

    A step m -> s goes through r = m - theta (m - s). Tokens revealed on the way to r come from c at m, those after it
    from max(a1 c_r / r - a2 c_m / m, 0), renormalised, where c / m is the intensity of a masked position,
    a1 = 1 / (2 theta (1 - theta)) and a2 = a1 - 1. Use with `proposal=Extrapolated(linear=True)`. Probabilities of
    unmasking are exact, so no step size is unstable and no final fill is needed.

    Args:
        levels: [N + 1] falling mask probabilities that end at 0.
        theta: share of the step made in the first half, in (0, 1).

    Raises:
        ValueError: theta outside (0, 1).

    Reference: Ren et al. 2025, arXiv 2502.00234 (the theta-trapezoidal method, there with Poisson jumps).

    >>> trapezoidal([1.0, 0.0]).rho.tolist()
    [0.5, 1.0]
    """
    if not 0 < theta < 1:
        raise ValueError(f"theta={theta} must lie in (0, 1)")
    m = check_levels(levels)
    between = m[:-1] + theta * np.diff(m)
    fine = np.append(np.stack([m[:-1], between], axis=1).ravel(), 0.0)
    a1 = 1 / (2 * theta * (1 - theta))
    level, middle = (np.where(m[:-1] > 0, share, 1.0) for share in (m[:-1], between))  # idle rows at 0 reveal nothing
    later, sooner = a1 / middle, (a1 - 1) / level
    weight = sooner / (later - sooner)  # max(later c_r - sooner c_m, 0) is c_r + weight (c_r - c_m), up to its scale
    return as_grid(_rho(fine), None, fine, np.stack([np.zeros_like(weight), weight], axis=1).ravel())


def asynchronous(levels: Any, length: int, *, most: int | None = None) -> Asynchronous:
    """Ancestral sampling with a clock a sequence: the same law, and no call in which nothing is revealed.

    A batch on a common clock reveals something somewhere in almost every interval; here every sequence jumps to its own
    next non-empty interval, so a batch makes max_b (non-empty intervals) calls: N (1 - (1 - 1/N)^L) on average for one.

    Args:
        levels: [N + 1] falling mask probabilities that end at 0.
        length: L of the sequences.
        most: positions revealed at once at most, which bounds the logits; intervals that hold more take several
            updates, and the law comes closer to the exact one. None sets no bound.

    Reference: calls as for caching, Ou et al. 2024, arXiv 2406.03736, section 4.2.

    >>> asynchronous([1.0, 0.5, 0.0], 4).steps.shape
    (2,)
    """
    m = check_levels(levels)
    check_length(length)
    if most is not None and most < 1:
        raise ValueError(f"most={most} must be at least 1")
    updates = length if most is not None else min(length, len(m) - 1)
    return Asynchronous(jnp.asarray(m, float), jnp.arange(updates, dtype=jnp.int32), most or length, length)


def rates(schedule: Schedule, times: Any) -> tuple[np.ndarray, np.ndarray]:
    """(falling times [N + 1], alpha'(t) at all but the last [N]), in float64.

    Raises:
        ValueError: times that do not fall, or leave [0, 1].
    """
    t = np.asarray(times, np.float64)
    if t.ndim != 1 or len(t) < 2 or not (np.diff(t) < 0).all() or t[0] > 1 or t[-1] < 0:
        raise ValueError(f"times must fall inside [0, 1], got {t.tolist()}")
    with jax.enable_x64(True):
        slope = np.asarray(jax.vmap(jax.grad(schedule.alpha))(jnp.asarray(t[:-1], float)))
    return t, slope


def _rho(m: np.ndarray) -> np.ndarray:
    """(m - s) / m, and 1 where nothing can be masked any more."""
    return np.where(m[:-1] > 0, -np.diff(m) / np.where(m[:-1] > 0, m[:-1], 1.0), 1.0)


def as_grid(rho: np.ndarray, remask: np.ndarray | None, m: np.ndarray, weight: np.ndarray | None = None) -> Grid:
    """The policy, its numbers in JAX's default float."""
    numbers = Grid(rho, remask, m[1:], m[0], weight)  # pyright: ignore[reportArgumentType]
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, float), numbers)
