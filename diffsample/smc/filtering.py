"""The particle filter over any sampler: `feynman_kac` makes a stochastic sampler one of weighted groups of particles.

One row is: decide, resample, gather, then the sampler's own step (move, call), then weigh. With log G of a row,

    log_w <- log_w + log G,    log_z <- log_z + logsumexp(log_w + log G) - logsumexp(log_w),

so that E[exp log_z] is the normaliser of the weighted law for every K, every unbiased resampler and every policy that
reads the present weights only (Del Moral 2004, Feynman-Kac Formulae). Weights are kept as they are: not clamped, not
normalised, float32 at least.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn import logsumexp

from diffsample.denoiser import PyTree
from diffsample.sampler import Kernel, Sampler, View, fold, with_cond
from diffsample.smc.batches import batch_shapes, refuse_keys
from diffsample.smc.diagnosing import Diagnostics, descended, refuse_invalid, undiagnosed, weighed
from diffsample.smc.functions import Plain, as_pytree
from diffsample.smc.particles import Particles, gather
from diffsample.smc.policies import Policy, ess, never
from diffsample.smc.potentials import Closing, Transition, as_potential
from diffsample.smc.resamplers.resampling import systematic
from diffsample.smc.weights import log_mean
from diffsample.struct import pytree, static
from diffsample.tableau import is_concrete

RESAMPLING_STREAM = 2**32 - 3  # beside the denoiser's stream; never a counter of a normal draw


class ParticleRow(NamedTuple):
    """One row as the scan sees it."""

    inner: PyTree  # the sampler's own row
    number: Any  # int32
    draws: Any  # bool, whether its move draws noise


class ParticleState(NamedTuple):
    inner: PyTree  # the sampler's state
    memory: PyTree  # the potential's
    log_w: Array  # [G, K]
    log_z: Array  # [G]
    diagnostics: Diagnostics


class Carried(NamedTuple):
    """What moves with the particles, as far as it has the batch axis."""

    inner: PyTree
    memory: PyTree


@pytree
class FeynmanKac:
    """Groups of K weighted particles over a sampler; see `feynman_kac`."""

    sampler: Any
    potential: Any
    resample: Any
    policy: Any
    clamp: Any
    particles: int = static()
    genealogy: bool = static(default=False)

    @property
    def nfe(self) -> int:
        """Network evaluations per particle: those of the sampler."""
        return self.sampler.nfe

    @property
    def dtype(self) -> Any:
        """That of the sampler's states."""
        return getattr(self.sampler, "dtype", jnp.float32)

    @property
    def admit(self) -> Any:
        """The sampler's, where it has one."""
        return self.sampler.admit

    @property
    def steps(self) -> ParticleRow:
        inner = self.sampler.steps
        n = jax.tree.leaves(inner)[0].shape[0]
        draws = getattr(self.sampler, "draws", None)
        return ParticleRow(inner, jnp.arange(n, dtype=jnp.int32), jnp.ones(n, bool) if draws is None else draws)

    def prior(self, keys: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        """The sampler's own."""
        return self.sampler.prior(keys, shape, dtype)

    def init(self, keys: Array, x: Array, cond: PyTree) -> ParticleState:
        batch, k = x.shape[0], self.particles
        if batch % k:
            raise ValueError(f"a batch of {batch} is no whole number of groups of {k} particles; give "
                             f"shape=(groups * {k}, ...), and a chunk that is a multiple of {k}")  # fmt: skip
        inner, memory, log_g = self._blank(keys, x, cond)
        groups, rows = batch // k, jax.eval_shape(lambda: self.steps.number).shape[0] + 1
        zero = jnp.zeros((groups, k), log_g.dtype)
        return ParticleState(inner, memory, zero, zero[:, 0], undiagnosed(groups, k, rows, log_g.dtype, self.genealogy))

    def step(self, keys: Array, state: ParticleState, step: ParticleRow, cond: PyTree) -> ParticleState:
        state = self._resample(keys, state, step, cond)
        before = self._seen(state.inner, cond)
        inner = self.sampler.step(keys, state.inner, step.inner, cond)
        after = self._seen(inner, cond)

        def begin() -> tuple[Array, PyTree]:
            log_g, memory = self.potential.start(after)
            return _one_each(log_g, state.log_w), memory

        def weigh() -> tuple[Array, PyTree]:
            transition = Transition(before, after, lambda: self._kernel(state.inner, step.inner))
            log_g, memory = self.potential(transition, state.memory)
            return _one_each(log_g, state.log_w), memory

        log_g, memory = jax.lax.cond(step.number == 0, begin, weigh)
        log_g = jnp.where(after.fresh, log_g, jnp.zeros_like(log_g))
        memory = jax.tree.map(lambda new, old: jnp.where(after.fresh, new, old), memory, state.memory)
        return self._weighed(state._replace(inner=inner, memory=memory), log_g, step.number)

    def finish(self, keys: Array, state: ParticleState, cond: PyTree) -> Particles:
        out = self.sampler.finish(keys, state.inner, cond)
        x, inner = (out.x, out) if hasattr(out, "_fields") else (out, None)
        closing = Closing(self._seen(state.inner, cond), x, lambda: self._kernel(state.inner, None))
        last = state.diagnostics.ess.shape[1] - 1
        log_g = _one_each(self.potential.finish(closing, state.memory), state.log_w)
        state = self._weighed(state, log_g, jnp.int32(last))
        return Particles(x, state.log_w, state.log_z, state.diagnostics, inner)

    def view(self, state: ParticleState) -> View:
        """That of the sampler."""
        return self.sampler.view(state.inner)

    def _seen(self, inner: PyTree, cond: PyTree) -> View:
        """What the potential reads: the sampler's view, and the condition, which rewards may need."""
        return with_cond(self.sampler.view(inner), cond)

    def verify(self, out: Particles) -> None:
        """Raise FloatingPointError where a potential was NaN or a group died, naming the row and the group."""
        if out.inner is not None and hasattr(self.sampler, "verify"):
            self.sampler.verify(out.inner)
        refuse_invalid(out.diagnostics)

    def _kernel(self, inner: PyTree, row: PyTree) -> Kernel:
        if not hasattr(self.sampler, "kernel"):
            raise ValueError(f"{type(self.sampler).__name__} has no transition kernel, which this potential reads")
        return self.sampler.kernel(inner, row)

    def _blank(self, keys: Array, x: Array, cond: PyTree) -> tuple[PyTree, PyTree, Array]:
        """(inner state, empty memory, log G) before the first row."""
        inner = self.sampler.init(keys, x, cond)
        shapes = jax.eval_shape(lambda inner: self.potential.start(self._seen(inner, cond)), inner)
        log_g, memory = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return inner, memory, log_g.astype(jnp.promote_types(log_g.dtype, jnp.float32))

    def _resample(self, keys: Array, state: ParticleState, step: ParticleRow, cond: PyTree) -> ParticleState:
        """Where the policy says so and the coming move draws noise: new ancestors, everything they carry, weights."""
        groups, k = state.log_w.shape
        carried, view = Carried(state.inner, state.memory), self._seen(state.inner, cond)
        belongs = self._per_particle(keys, view.x, cond)
        wanted = jax.vmap(self.policy, (0, None))(state.log_w, step.number)
        do = wanted & (step.draws & (step.number > 0))
        cloud = [leaf.reshape(groups, k, *leaf.shape[1:]) for leaf in _chosen(carried, belongs)]
        group_keys = fold(keys[::k], RESAMPLING_STREAM)
        cloud, log_w, ancestors = _resampled(self.resample, group_keys, state.log_w, cloud, view, do)
        carried = _replaced(carried, belongs, [leaf.reshape(-1, *leaf.shape[2:]) for leaf in cloud])
        log_z = state.log_z + jnp.where(do, log_mean(log_w), jnp.zeros_like(state.log_z))
        diagnostics = descended(state.diagnostics, ancestors, do, step.number)
        return ParticleState(carried.inner, carried.memory, log_w, log_z, diagnostics)

    def _per_particle(self, keys: Array, x: Array, cond: PyTree) -> Carried:
        """Which leaves of state and memory belong to a particle: those whose shape follows the batch."""

        def carried(keys: Array, x: Array, cond: PyTree) -> Carried:
            return Carried(*self._blank(keys, x, cond)[:2])

        def follows(path: tuple, one: Any, two: Any) -> bool:
            if one.shape == two.shape:
                return False
            if (len(x), *one.shape[1:]) != one.shape or (2 * len(x), *one.shape[1:]) != two.shape:
                raise ValueError(f"state{jax.tree_util.keystr(path)} has shape {one.shape} for a batch of {len(x)} and "
                                 f"{two.shape} for {2 * len(x)}; resampling needs the batch axis first")  # fmt: skip
            refuse_keys(path, one, "copies of a particle would share their noise")
            return True

        return jax.tree.map_with_path(follows, *batch_shapes(carried, keys, x, jax.tree.map(jnp.asarray, cond)))

    def _weighed(self, state: ParticleState, log_g: Array, row: Array) -> ParticleState:
        """Weights, normaliser and diagnostics after log G of a row; a group without weight goes on, marked."""
        log_g = log_g.reshape(state.log_w.shape)
        invalid = jnp.isnan(log_g) | (log_g == jnp.inf)
        log_g = jnp.where(invalid, -jnp.inf, log_g)
        held = log_g if self.clamp is None else _clamped(self.clamp, log_g)
        log_w = state.log_w + held
        log_z = state.log_z + logsumexp(log_w, axis=-1) - logsumexp(state.log_w, axis=-1)
        alive = (log_w > -jnp.inf).sum(axis=-1, dtype=jnp.int32)
        log_w = jnp.where(alive[:, None] > 0, log_w, jnp.zeros_like(log_w))
        diagnostics = weighed(state.diagnostics, log_w, invalid, held != log_g, alive, row)
        return state._replace(log_w=log_w, log_z=log_z, diagnostics=diagnostics)


def feynman_kac(
    sampler: Sampler,
    potential: Any,
    *,
    particles: int,
    resample: Any = systematic,
    policy: Policy | None = None,
    clamp: Any = None,
    genealogy: bool = False,
) -> FeynmanKac:
    """Sequential Monte Carlo: groups of weighted particles, moved by a stochastic sampler and weighed by a potential.

    The law of the weighted particles is that of the sampler's paths times the product of all G, divided by Z; group by
    group exp(log_z) is an unbiased estimate of Z. The network is called as often as by the sampler, once a row and
    particle. `ds.sample` runs it, with shape (groups * particles, ...), and returns `Particles`.

    Args:
        sampler: any stochastic sampler, for example `solvers.linear(denoiser, solvers.ddpm(process, grid))`.
        potential: a `Potential`, or a function (view before, view after) -> log G [B].
        particles: K, particles in a group, 2 or more. Groups never meet.
        resample: function (key, log_w [K]) -> ancestors [K], or an object with `move`, for example `soft()`.
        policy: function (log_w [K], row) -> bool; `ess(0.5)` by default. Resampling waits for a row that draws noise.
        clamp: function log G [K] of a group's row -> log G [K], for example `about_mean(2.0)`; BIASED. None by default.
        genealogy: keep the ancestors of every row in the diagnostics, 4 G n K bytes.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: fewer than 2 particles; a sampler that never draws noise with a policy other than `never`; what the
            potential refuses. From `sample`: a batch that is no multiple of K.
        FloatingPointError: from `sample`: a potential that is NaN or +inf, a group whose weights are all 0.

    Reference: Del Moral 2004, Feynman-Kac Formulae; Doucet, Johansen 2011, A Tutorial on Particle Filtering.

    >>> import jax, diffsample as ds
    >>> process = ds.VariancePreserving()
    >>> grid = ds.times.uniform_logsnr(process, 20)
    >>> sampler = ds.solvers.linear(ds.exact.Gaussian(0.0, 1.0), ds.solvers.ddpm(process, grid))
    >>> tilted = feynman_kac(sampler, lambda before, after: after.x0 - before.x0, particles=16)
    >>> ds.sample(jax.random.key(0), tilted, (32,)).log_z.shape
    (2,)
    """
    if not isinstance(particles, int | np.integer) or particles < 2:
        raise ValueError(f"particles={particles!r} must be a whole number of at least 2: one particle has nothing to "
                         f"be weighed against")  # fmt: skip
    for method in ("init", "step", "finish", "view"):
        if not hasattr(sampler, method):
            raise TypeError(f"feynman_kac needs a sampler, got a {type(sampler).__name__} without {method!r}")
    if policy is not None and not callable(policy):
        raise TypeError(f"policy must be a function (log_w, row) -> bool, such as ess(0.5), got {policy!r}")
    if not callable(resample) and not hasattr(resample, "move"):
        raise TypeError(f"resample must be a function (key, log_w) -> ancestors or have `move`, got {resample!r}")
    if clamp is not None and not callable(clamp):
        raise TypeError(f"clamp must be a function of a group's log G [K], such as about_mean(2.0), got {clamp!r}")
    policy, potential = as_pytree(ess(0.5) if policy is None else policy), as_potential(potential)
    draws = getattr(sampler, "draws", None)
    if draws is not None and is_concrete(draws) and policy != Plain(never) and not np.any(np.asarray(draws)):
        raise ValueError("the sampler draws no noise, so that copies made by resampling would stay copies: use a "
                         "stochastic method (ddpm, ddim(eta=1), sde_dpmpp, churn > 0), or policy=never")  # fmt: skip
    potential.check(sampler)
    clamp = None if clamp is None else as_pytree(clamp)
    leaves = jax.tree.map(jnp.asarray, (potential, as_pytree(resample), policy, clamp))
    return FeynmanKac(sampler, *leaves, particles=int(particles), genealogy=genealogy)


def _one_each(log_g: Any, log_w: Array) -> Array:
    """log G as [B], of the weights' dtype."""
    if jnp.shape(log_g) != (log_w.size,):
        raise ValueError(f"the potential returned log G of shape {jnp.shape(log_g)}, expected {(log_w.size,)}, one "
                         f"number a particle")  # fmt: skip
    return jnp.asarray(log_g, log_w.dtype)


def _clamped(clamp: Any, log_g: Array) -> Array:
    """log G [G, K] held by the clamp, group by group; -inf stays -inf."""
    held = jax.vmap(clamp)(log_g)
    if held.shape != log_g.shape:
        raise ValueError(f"clamp must return log G of as many particles as it got, {log_g.shape} for all groups, and "
                         f"returned {held.shape}")  # fmt: skip
    return jnp.where(log_g > -jnp.inf, held.astype(log_g.dtype), -jnp.inf)


def _resampled(
    resample: Any, keys: Array, log_w: Array, cloud: list[Array], view: View, do: Array
) -> tuple[list[Array], Array, Array]:
    """(cloud, log_w, ancestors) after the groups in `do` were resampled."""
    own = jnp.arange(log_w.shape[1], dtype=jnp.int32)[None]
    if not hasattr(resample, "move"):
        chosen = jax.vmap(resample)(keys, log_w)
        ancestors = jnp.where(do[:, None], _as_ancestors(chosen, log_w), own)
        return gather(cloud, ancestors), jnp.where(do[:, None], jnp.zeros_like(log_w), log_w), ancestors
    moved = resample.move(keys, log_w, cloud, view)
    pick = jax.vmap(lambda do, new, old: jnp.where(do, new, old))
    cloud = [pick(do, new, old) for new, old in zip(moved.cloud, cloud, strict=True)]
    return cloud, pick(do, moved.log_w, log_w), jnp.where(do[:, None], moved.ancestors, own)


def _as_ancestors(chosen: Any, log_w: Array) -> Array:
    """What a resampler returned for all groups, as int32 [G, K]."""
    fits = isinstance(chosen, jax.Array) and chosen.shape == log_w.shape and jnp.issubdtype(chosen.dtype, jnp.integer)
    if not fits:
        raise ValueError(f"resample must return {log_w.shape[1]} ancestors, int32, a group of as many log-weights; got "
                         f"{jax.tree.map(jnp.shape, chosen)} for all groups")  # fmt: skip
    return chosen.astype(jnp.int32)


def _chosen(tree: PyTree, marks: PyTree) -> list[Array]:
    return [leaf for leaf, mark in zip(jax.tree.leaves(tree), jax.tree.leaves(marks), strict=True) if mark]


def _replaced(tree: PyTree, marks: PyTree, values: list[Array]) -> PyTree:
    rest = iter(values)
    return jax.tree.map(lambda leaf, mark: next(rest) if mark else leaf, tree, marks)
