"""The paths of the particles that survived: where each stood at every row, and their states over the last rows."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.denoiser import PyTree
from diffsample.sampler import Sampler
from diffsample.smc.functions import as_pytree
from diffsample.smc.particles import Particles
from diffsample.struct import pytree, static
from diffsample.wrapping import SameMoves


def lineage(particles: Particles) -> Array:
    """[G, n, K] int32: in which slot the ancestor of each particle stood at the end of each row.

    With a record of every row, `paths[j] = jnp.take_along_axis(recorded[j], lineage[:, j], axis=1)` of states [G, K] is
    the path of the survivors; memory is that of the record. `lagged` keeps the last rows alone.

    Args:
        particles: the result of `feynman_kac(..., genealogy=True)`.

    Raises:
        ValueError: a run without a genealogy.

    Reference: Jacob, Murray, Rubenthaler, Path storage in the particle filter, doi 10.1007/s11222-013-9445-x.

    >>> import jax, diffsample as ds
    >>> process = ds.VariancePreserving()
    >>> table = ds.solvers.ddpm(process, ds.times.uniform_logsnr(process, 4))
    >>> sampler = ds.solvers.linear(ds.exact.Gaussian(0.0, 1.0), table)
    >>> fk = ds.smc.feynman_kac(sampler, lambda before, after: after.x0, particles=8, genealogy=True)
    >>> lineage(ds.sample(jax.random.key(0), fk, (16,))).shape
    (2, 4, 8)
    """
    ancestors = particles.diagnostics.ancestors
    if ancestors is None:
        raise ValueError("lineage needs a run with feynman_kac(..., genealogy=True)")

    def back(slots: Array, chosen: Array) -> tuple[Array, Array]:
        return jnp.take_along_axis(chosen, slots, axis=1), slots

    last = ancestors[:, -1]  # the closing update moves every particle where it stands
    slots = jax.lax.scan(back, last, jnp.moveaxis(ancestors[:, :-1], 1, 0), reverse=True)[1]
    return jnp.moveaxis(slots, 0, 1)


class LaggedState(NamedTuple):
    inner: PyTree  # the sampler's
    recent: PyTree  # leaves [B, lag, ...], the newest last


class Recent(NamedTuple):
    """What a `lagged` sampler returns."""

    x: Array  # [B, ...] samples
    recent: PyTree  # leaves [B, lag, ...] of the last rows, the newest last
    inner: PyTree = None  # what the sampler returns, where that is more than x


@pytree
class Lagged(SameMoves):
    """A sampler that keeps the last states of each sample; see `lagged`."""

    sampler: Any
    function: Any
    lag: int = static()

    @property
    def kernel(self) -> Any:
        """The sampler's."""
        kernel = self.sampler.kernel
        return lambda state, row: kernel(state.inner, row)

    @property
    def done(self) -> Any:
        """The sampler's."""
        done = self.sampler.done
        return None if done is None else lambda state: done(state.inner)

    @property
    def verify(self) -> Any:
        """The sampler's."""
        verify = self.sampler.verify
        return lambda out: verify(out.x if out.inner is None else out.inner)

    def settled(self, state: LaggedState) -> bool:
        """The sampler's."""
        return self.sampler.settled(state.inner)

    def init(self, keys: Array, x: Array, cond: PyTree) -> LaggedState:
        inner = self.sampler.init(keys, x, cond)
        shapes = jax.eval_shape(lambda inner: self.function(self.sampler.view(inner)), inner)
        for leaf in jax.tree.leaves(shapes):
            if leaf.shape[:1] != x.shape[:1]:
                raise ValueError(f"lagged: the function must return one value a sample, batch axis first, and returned "
                                 f"shape {leaf.shape} for a batch of {len(x)}")  # fmt: skip
        blank = jax.tree.map(lambda leaf: jnp.zeros((leaf.shape[0], self.lag, *leaf.shape[1:]), leaf.dtype), shapes)
        return LaggedState(inner, blank)

    def step(self, keys: Array, state: LaggedState, step: PyTree, cond: PyTree) -> LaggedState:
        inner = self.sampler.step(keys, state.inner, step, cond)
        view = self.sampler.view(inner)

        def append(old: Array, new: Array) -> Array:
            return jnp.where(view.fresh, jnp.concatenate([old[:, 1:], new[:, None]], axis=1), old)

        return LaggedState(inner, jax.tree.map(append, state.recent, self.function(view)))

    def finish(self, keys: Array, state: LaggedState, cond: PyTree) -> Recent:
        out = self.sampler.finish(keys, state.inner, cond)
        x, inner = (out.x, out) if hasattr(out, "_fields") else (out, None)
        return Recent(x, state.recent, inner)

    def view(self, state: LaggedState) -> Any:
        """The sampler's."""
        return self.sampler.view(state.inner)


def lagged(sampler: Sampler, lag: int, function: Callable[[Any], PyTree] | None = None) -> Lagged:
    """The sampler, with what a function of the view was at the last `lag` rows kept for each sample.

    Under `feynman_kac` what is kept is gathered with the particles, so that it is the path of the survivors (fixed-lag
    smoothing): `ds.sample(...).inner.recent`, at lag times the memory of one state instead of n times.

    Args:
        sampler: any sampler. lag: rows to keep, at least 1; before as many have passed the oldest are zeros.
        function: view -> values, batch axis first; x by default, `lambda view: view.x0` for predictions.

    Raises:
        ValueError: a lag below 1, values without the batch axis. TypeError: no function.

    Reference: Doucet, Johansen 2011, A Tutorial on Particle Filtering (fixed-lag approximation).

    >>> import jax, diffsample as ds
    >>> process = ds.VariancePreserving()
    >>> table = ds.solvers.ddpm(process, ds.times.uniform_logsnr(process, 4))
    >>> sampler = lagged(ds.solvers.linear(ds.exact.Gaussian(0.0, 1.0), table), 3)
    >>> fk = ds.smc.feynman_kac(sampler, lambda before, after: after.x0, particles=8)
    >>> ds.sample(jax.random.key(0), fk, (16,)).inner.recent.shape
    (16, 3)
    """
    if not isinstance(lag, int | np.integer) or lag < 1:
        raise ValueError(f"lag={lag!r} must be a whole number of rows, at least 1")
    if function is not None and not callable(function):
        raise TypeError(f"function must be a function of the view, got {function!r}")
    return Lagged(sampler, as_pytree(_x if function is None else function), lag=int(lag))


def _x(view: Any) -> Array:
    return view.x
