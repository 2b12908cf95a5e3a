"""Active diffusion subsampling: particles of one scene decide together what to measure next.

Every scene has P particles, rows s P ... s P + P - 1 of the batch, each guided by the measurements made so far. At some
steps their predicted clean samples are beliefs about the groups of measurements not yet made; the group on which they
disagree most is measured. The measurements made before a step guide it, so a rule costs what DPS costs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.denoiser import Denoiser, Point, Prediction, PyTree, expand
from diffsample.guidance.gradients import descend, distance
from diffsample.guidance.measurement import apply, as_operator, require_gradient
from diffsample.guidance.schedules import value_at
from diffsample.process import Level, Process
from diffsample.struct import pytree, static
from diffsample.tableau import is_concrete

Disagreement: TypeAlias = Callable[[Array, Any], Array]  # (squared distances [P, P, K], sigma) -> [K]


def belief_entropy(squares: Array, sigma: Any) -> Array:
    """Entropy of a mixture of the particles' beliefs, up to a constant: -mean_i log mean_j exp(-d_ij^2 / (2 sigma^2)).

    With (m / 2) (log(2 pi sigma^2) + 1) for a group of m numbers it is an upper bound of the entropy of the mixture
    of N(z_j, sigma^2 I).

    Args:
        squares: [P, P, K] squared distances between particles, one a group.
        sigma: width of a belief, in units of the measurement.

    >>> belief_entropy(jnp.array([[0.0, 0.0], [0.0, 0.0]])[:, :, None], 1.0).tolist()
    [0.0]
    """
    return jnp.log(float(squares.shape[1])) - jax.nn.logsumexp(-squares / (2 * sigma**2), axis=1).mean(0)


def published_entropy(squares: Array, sigma: Any) -> Array:
    """What the released code maximises instead: sum_i log sum_j exp(+d_ij^2 / (2 sigma^2)).

    It rises with spread like `belief_entropy`, and ranks groups alike for two particles, but not for more: it follows
    the farthest pair.

    >>> published_entropy(jnp.zeros((1, 1, 3)), 1.0).tolist()
    [0.0, 0.0, 0.0]
    """
    return jax.nn.logsumexp(squares / (2 * sigma**2), axis=1).sum(0)


class Sensed(NamedTuple):
    """What has been measured; rows of one scene are equal."""

    mask: Array  # [B, K] bool, groups measured
    newest: Array  # [B] int32, the group chosen at the newest call, -1 where none was
    denoiser: PyTree


@pytree
class ActiveSensing(Denoiser):
    """DPS on what was measured so far, and the choice of what to measure; see `active_sensing`."""

    denoiser: Denoiser
    operator: Any
    groups: Any  # int, shaped like one measurement
    y: Any  # [scenes, ...]
    when: Any  # [n] bool
    scale: Any
    sigma: Any
    measured: Any  # [K] bool, before the first step
    particles: int = static()
    disagreement: Disagreement = static(default=belief_entropy)
    joint: bool = static(default=False)

    @property
    def evaluations(self) -> int:
        return self.denoiser.evaluations

    @property
    def vjps(self) -> int:
        """One through every evaluation, and the denoiser's own."""
        return self.denoiser.evaluations + self.denoiser.vjps

    def check(self, process: Process | None, levels: Level) -> None:
        """What the denoiser refuses, and more steps in `when` than the sampler has calls."""
        self.denoiser.check(process, levels)
        if len(self.when) > np.size(levels.sigma):
            raise ValueError(f"when has {len(self.when)} steps, the sampler {np.size(levels.sigma)} calls: choices "
                             f"past the end would never be made")  # fmt: skip

    def init(self, x: Array) -> Sensed:
        B, K = x.shape[0], len(self.measured)
        mask = jnp.broadcast_to(jnp.asarray(self.measured, bool), (B, K))
        return Sensed(mask, jnp.full(B, -1, jnp.int32), self.denoiser.init(x))

    def __call__(self, x: Array, at: Point, cond: PyTree, state: Sensed) -> tuple[Prediction, Sensed]:
        if jnp.ndim(at.index):
            raise ValueError("active sensing needs all particles at one step; this sampler gives each its own")
        self._check_shapes(x)
        seen = self.entries(state.mask)
        y = jnp.repeat(jnp.asarray(self.y, x.dtype), self.particles, axis=0)

        def energy(x0: Array) -> Array:
            found = apply(self.operator, x0)
            target = jnp.where(seen, y, found)
            rows = (-1, self.particles * found[0].size) if self.joint else found.shape
            return distance(target.reshape(rows), found.reshape(rows))

        (x0, eps), memory, gradient = descend(self.denoiser, energy, x, at, cond, state.denoiser)
        asking = jnp.asarray(self.when)[at.index] & (at.stage == 0)
        none = jnp.full(x.shape[0], -1, jnp.int32)
        newest = jax.lax.cond(asking, lambda: self.choose(x0, state.mask), lambda: none)
        mask = state.mask | (newest[:, None] == jnp.arange(state.mask.shape[1])[None])
        x0 = x0 - value_at(self.scale, at.now, x) / expand(at.next.alpha, x) * gradient
        return Prediction(x0, eps), Sensed(mask, newest, memory)

    def entries(self, mask: Array) -> Array:
        """Entries of a measurement that belong to measured groups, bool [B, ...] for masks [B, K]."""
        groups = jnp.asarray(self.groups)
        return mask[:, jnp.maximum(groups, 0)] & (groups >= 0)[None]

    def choose(self, x0: Array, mask: Array) -> Array:
        """The group of largest disagreement among those not measured, int32 [B]."""
        z = apply(self.operator, jax.lax.stop_gradient(x0))
        z = z.reshape(-1, self.particles, z[0].size)  # [scenes, P, m]
        sigma = jnp.asarray(self.sigma, z.dtype)
        scores = jax.lax.map(lambda z: self.disagreement(self._distances(z), sigma), z)  # [scenes, K]
        best = jnp.argmax(jnp.where(mask[:: self.particles], -jnp.inf, scores), axis=1)
        return jnp.repeat(best.astype(jnp.int32), self.particles)

    def _distances(self, z: Array) -> Array:
        """Squared distances between particles in every group, [P, P, K] for z [P, m]."""
        K, groups = len(self.measured), jnp.asarray(self.groups).reshape(-1)
        groups = jnp.where(groups < 0, K, groups)  # dropped below

        def from_one(one: Array) -> Array:
            return jax.ops.segment_sum(((z - one[None]) ** 2).T, groups, K).T

        return jax.lax.map(from_one, z)

    def _check_shapes(self, x: Array) -> None:
        if x.shape[0] % self.particles:
            raise ValueError(f"a batch of {x.shape[0]} is no multiple of particles={self.particles}")
        out = jax.eval_shape(lambda x: apply(self.operator, x), jax.ShapeDtypeStruct(x.shape, x.dtype))
        scenes = x.shape[0] // self.particles
        for name, value, shape in (("groups", self.groups, out.shape[1:]), ("y", self.y, (scenes, *out.shape[1:]))):
            if jnp.shape(value) != shape:
                raise ValueError(f"{name} has shape {jnp.shape(value)}; for x of shape {x.shape}, {self.particles} "
                                 f"particles and this operator it must be {shape}")  # fmt: skip
        require_gradient(self.operator, out, x)


def active_sensing(
    denoiser: Denoiser,
    operator: Any,
    groups: Any,
    y: Any,
    when: Any,
    *,
    particles: int = 16,
    scale: Any = 1.0,
    sigma: Any = 1.0,
    measured: Any = None,
    disagreement: Disagreement = belief_entropy,
    joint: bool = False,
) -> ActiveSensing:
    """ADS, active diffusion subsampling: DPS on the measured groups, and at some steps the choice of one more group.

    The move is that of `dps`, x_next = step(x) - scale grad_x |y - A(D(x))| over measured entries. At a step of `when`
    the group chosen is the one, not measured before, on which the particles' A(D(x)) disagree most. It enters with the
    next step, so that a call makes one evaluation and one VJP, and a simulation is what an instrument would have given.

    In a simulation y holds all measurements of the scenes, of which only measured groups are read: `sample` and `sense`
    run it as one program, and view.memory has the mask and the newest choice. With an instrument, `sense` stops where a
    measurement is asked for.

    Args:
        denoiser: without a rule that mixes samples.
        operator: A, as for `dps`.
        groups: int, shaped like one measurement: the group of every entry (a pixel, a column of k-space), from 0; -1 is
            never measured.
        y: [scenes, ...] measurements: all of them in a simulation, else zeros but for the groups in `measured`.
        when: [n] bool, the steps at which a group is chosen, see `acquisition_steps`; not the last. Steps past n choose
            none.
        particles: P; the batch is scenes P.
        scale: step size, a number, [B], or a schedule of the level; published: 1 (digits), 0.85 (fastMRI).
        sigma: width of beliefs in `disagreement`, in units of the measurement. Far above the spread of the particles it
            ranks groups by variance; far below, all entropies are log P and say nothing. Published: 10, 50.
        measured: [K] bool, groups measured before the first step; None: none.
        disagreement: `belief_entropy`, `published_entropy`, or your own (squares [P, P, K], sigma) -> [K].
        joint: one norm over all particles of a scene, as in the released code, which weakens each by about sqrt(P).

    Raises:
        TypeError: groups that are not integers, an operator that cannot be called.
        ValueError: more choices than groups, one at the last step, numbers below 1; at trace time shapes that do not
            fit, a batch that is no multiple of P, an operator without a gradient.

    Reference: Nolan et al. 2025, arXiv 2406.14388.

    >>> import diffsample as ds
    >>> law = ds.exact.Gaussian(jnp.zeros(3), jnp.array([0.1, 3.0, 1.0]))
    >>> process, when = ds.VarianceExploding(), acquisition_steps(20, 2)
    >>> rule = active_sensing(law, lambda x0: x0, jnp.arange(3), jnp.ones((1, 3)), when, particles=4)
    >>> sampler = ds.solvers.linear(rule, ds.solvers.ddim(process, ds.times.karras(process, 20)))
    >>> x, newest = ds.sample(jax.random.key(0), sampler, (4, 3), record=lambda view: view.memory.newest[0])
    >>> newest[newest >= 0].tolist()
    [1, 2]
    """
    if not np.issubdtype(np.asarray(groups).dtype, np.integer):
        raise TypeError(f"groups must hold integers, one an entry of a measurement; got {np.asarray(groups).dtype}")
    K = int(np.max(np.asarray(groups))) + 1
    known = np.zeros(K, bool) if measured is None else np.asarray(measured, bool)
    if particles < 1 or K < 1:
        raise ValueError(f"particles={particles} and the number of groups {K} must be positive")
    if known.shape != (K,):
        raise ValueError(f"measured has shape {known.shape}; there are {K} groups")
    if is_concrete(when):
        asked = np.asarray(when, bool)
        if asked.ndim != 1 or asked[-1]:
            raise ValueError(
                "when must be one bool a step, False at the last: what is measured there would guide nothing"
            )
        if asked.sum() + known.sum() > K:
            raise ValueError(
                f"{asked.sum()} choices and {known.sum()} groups measured before are more than the {K} groups"
            )
    return ActiveSensing(denoiser, as_operator(operator), groups, y, when, scale, sigma, known, particles, disagreement,
                         joint)  # fmt: skip


def acquisition_steps(steps: int, measurements: int, start: int = 0, stop: int | None = None) -> np.ndarray:
    """The steps start + k floor((stop - start) / measurements), k < measurements, as bool [steps].

    Args:
        steps: of the sampler. measurements: groups to choose.
        start, stop: window of steps; None is up to the last, which chooses nothing.

    Raises:
        ValueError: a window that is too short for so many, or leaves the grid.

    >>> np.flatnonzero(acquisition_steps(10, 3, start=1)).tolist()
    [1, 3, 5]
    """
    stop = steps - 1 if stop is None else stop
    interval = (stop - start) // max(measurements, 1)
    if measurements < 1 or start < 0 or stop >= steps or interval < 1:
        raise ValueError(f"{measurements} measurements do not fit into steps {start} to {stop} of {steps} "
                         f"(the last may choose nothing)")  # fmt: skip
    chosen = np.zeros(steps, bool)
    chosen[start + interval * np.arange(measurements)] = True
    return chosen
