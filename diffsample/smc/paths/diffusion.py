"""A stochastic diffusion sampler as a model of paths, so that conditional SMC and particle Gibbs run on it.

The path is (x_0, ..., x_n-1), the states at which the network is called, noisiest first; the moves are the Gaussian
kernels of the table's own rows; the sample is a function of x_n-1. One look is one network call a particle.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.denoiser import Prediction, PyTree, expand
from diffsample.process import Level
from diffsample.sampler import Kernel, Sampler, View, normal
from diffsample.smc.paths.filter import Path, path_of
from diffsample.smc.paths.models import PathModel, first_row, gaussian_log_ratio, spread
from diffsample.smc.paths.stepwise import Scored
from diffsample.smc.potentials import Closing, Potential, Transition, as_potential
from diffsample.struct import pytree, static
from diffsample.tableau import is_concrete


class Seen(NamedTuple):
    """What the network says of a state, and where the coming move leads."""

    x: Array  # [N, ...], moved by the denoiser if that moves states
    prediction: Prediction
    mean: Array  # [N, ...], of the coming move; at the last call, the sample

    @property
    def x0(self) -> Array:
        """Predicted clean sample; at the last call of a grid that ends in clean data, the sample."""
        return self.prediction.x0


class PathRow(NamedTuple):
    """One call: its own row of the table, that of the call before it, and that of the move after it."""

    before: Any
    now: Any
    coming: Any
    last: Array  # bool


@pytree
class DiffusionPaths(PathModel):
    """The paths of a sampler and a potential; see `diffusion_paths`."""

    sampler: Any
    potential: Potential
    cond: PyTree
    shape: tuple[int, ...] = static()
    dtype: Any = static(default=jnp.float32)

    @property
    def rows(self) -> PathRow:
        now, table = self.sampler.steps, self.sampler.tableau
        before = jax.tree.map(lambda leaf: jnp.concatenate([leaf[:1], leaf[:-1]]), now)
        coming = now._replace(A=table.A[1:], B=table.B[1:], c=table.c[1:])
        return PathRow(before, now, coming, jnp.arange(table.rows) == table.rows - 1)

    def draw(self, keys: Array, row: PathRow) -> Array:
        return self.sampler.prior(keys, (keys.shape[0], *self.shape), self.dtype)

    def look(self, x: Array, row: PathRow) -> Seen:
        """One network call: a row of the table that does not move."""
        n, still = x.shape[0], row.now._replace(A=jnp.ones((1, 1)), B=jnp.zeros((1, 1)), c=jnp.zeros(1))
        keys, cond = jax.random.split(jax.random.key(0), n), spread(self.cond, n)  # keys that nothing draws from
        state = self.sampler.step(keys, self.sampler.init(keys, x, cond), still, cond)
        return Seen(self.sampler.view(state).x, state.prediction, self.sampler.kernel(state, row.coming).mean)

    def move(self, keys: Array, before: Seen, row: PathRow) -> Array:
        return before.mean + self._std(row).astype(before.mean.dtype) * normal(keys, before.x.shape, before.x.dtype)

    def log_transition(self, before: Seen, x: Array, row: PathRow) -> Array:
        return gaussian_log_ratio(x, before.mean, self._std(row))

    def log_start(self, after: Seen, row: PathRow) -> Array:
        return self.potential.start(_view(after, row.now))[0] + self._closing(after, row)

    def log_potential(self, before: Seen, after: Seen, row: PathRow) -> Array:
        kernel = Kernel(before.mean, self._std(row))
        transition = Transition(_view(before, row.before), _view(after, row.now), lambda: kernel)
        return self.potential(transition, ())[0] + self._closing(after, row)

    def _std(self, row: PathRow) -> Array:
        return jnp.abs(row.now.c[0])

    def _closing(self, after: Seen, row: PathRow) -> Array:
        """The potential of the sample, at the last call."""
        closing = Closing(_view(after, row.now), after.mean, lambda: Kernel(after.mean, jnp.zeros(())))
        log_g = self.potential.finish(closing, ())
        return jnp.where(row.last, log_g, jnp.zeros_like(log_g))


def diffusion_paths(
    sampler: Sampler, shape: tuple[int, ...], *, potential: Any = None, cond: PyTree = None, dtype: Any = jnp.float32
) -> DiffusionPaths:
    """The path model of a stochastic one-register sampler, for `particle_gibbs`, `ConditionalSMC`, `Paris`.

    Q is the law of the sampler's own paths times the potential. For a reward scored at every step wrap it,
    `StepwiseReward(model, lambda seen, row: reward(seen.x0))`; where the grid ends in clean data (zero=True) x0 at the
    last call is the sample, so that the target is p(x) exp(reward(x) / T).

    Args:
        sampler: `solvers.linear(denoiser, table)` with a table of one register and one slot that draws at every move
            and ends without noise: `ddpm`, `ddim(eta > 0)`, `sde_dpmpp(order=1)`, on a grid into sigma = 0.
        shape: of one sample.
        potential: a `Potential` without memory, or a function (view before, view after) -> log G; None for none.
        cond: condition of the one sample that is wanted, without batch axis.
        dtype: of the states.

    Raises:
        ValueError: a table of another kind; a denoiser with memory; a potential with memory.

    >>> import diffsample as ds
    >>> process = ds.VariancePreserving()
    >>> grid = ds.times.uniform_logsnr(process, 10, zero=True)
    >>> sampler = ds.solvers.linear(ds.exact.Gaussian(0.0, 1.0), ds.solvers.ddpm(process, grid))
    >>> diffusion_paths(sampler, (2,)).rows.last.shape
    (10,)
    """
    table, denoiser = getattr(sampler, "tableau", None), getattr(sampler, "denoiser", None)
    if table is None or denoiser is None:
        raise ValueError(f"path models need a linear sampler with a table, got a {type(sampler).__name__}")
    if (table.registers, table.slots, table.padded) != (1, 1, False) or getattr(sampler, "path", None) is not None:
        raise ValueError(f"{table.about.name} has {table.registers} registers and {table.slots} slots: a path of "
                         f"states is Markov only with one of each, without padding and without a Brownian path; use "
                         f"ddpm, ddim(eta > 0) or sde_dpmpp(order=1)")  # fmt: skip
    if is_concrete(table):
        c = np.asarray(table.c)[:, 0]
        if (c[1:-1] == 0).any() or c[-1] != 0:
            raise ValueError(f"{table.about.name} must draw at every move between calls and not in the closing one; "
                             f"the scales of its draws are {c.tolist()}: use a stochastic method on a grid that ends "
                             f"in sigma = 0")  # fmt: skip
    blank = jax.ShapeDtypeStruct((2, *shape), dtype)
    if jax.tree.leaves(jax.eval_shape(denoiser.init, blank)):
        raise ValueError(f"{type(denoiser).__name__} keeps memory, so that a path of states does not determine "
                         f"its moves")  # fmt: skip
    model = DiffusionPaths(sampler, as_potential(potential or _nothing), cond, tuple(shape), dtype)

    def memory(x: Array) -> PyTree:
        return model.potential.start(_view(Seen(x, Prediction(x, x), x), first_row(model.rows).now))[1]

    if jax.tree.leaves(jax.eval_shape(memory, blank)):
        raise ValueError(f"{type(model.potential).__name__} keeps memory, so that its weights are no function of two "
                         f"states; score with StepwiseReward instead")  # fmt: skip
    return model


def path_sample(path: Path) -> Array:
    """The sample that a path of `diffusion_paths` (or of a `StepwiseReward` around it) leads to, `[...]`."""
    seen = path.seen
    while isinstance(seen, Scored):
        seen = seen.seen
    return seen.mean[-1]


@pytree
class Renoise:
    """The refresh of a reference path by the forward process: keep the sample, noise it anew; (key, path) -> path.

    A Gibbs move that needs no backward weights, for high dimension, where those single out the true parent. It leaves Q
    invariant as far as the sampler is the time reversal of the noising (a good model, small steps, the right variance)
    and the potentials telescope to a function of the sample; costs n looks of one particle.

    Args:
        model: what `particle_gibbs` runs on: `diffusion_paths`, or a `StepwiseReward` around it.

    >>> import diffsample as ds
    >>> process = ds.VariancePreserving()
    >>> grid = ds.times.uniform_logsnr(process, 10, zero=True)
    >>> sampler = ds.solvers.linear(ds.exact.Gaussian(0.0, 1.0), ds.solvers.ddpm(process, grid))
    >>> model = diffusion_paths(sampler, (2,))
    >>> Renoise(model)(jax.random.key(0), path_of(model, jnp.zeros((10, 2)))).x.shape
    (10, 2)
    """

    model: PathModel

    def __call__(self, key: Array, path: Path) -> Path:
        sample, levels = path_sample(path), self.model.rows.now.now
        clean = Level(
            *(jnp.concatenate([v, jnp.full(1, end, v.dtype)]) for v, end in zip(levels, (0, 1, 0), strict=True))
        )
        older, newer = jax.tree.map(lambda v: v[:-1], clean), jax.tree.map(lambda v: v[1:], clean)

        def noise(x: Array, step: tuple[Level, Level, Array]) -> tuple[Array, Array]:
            older, newer, key = step
            scale = older.alpha / newer.alpha
            fresh = jnp.sqrt(older.sigma**2 - (scale * newer.sigma) ** 2)
            x = expand(scale, x) * x + expand(fresh, x) * jax.random.normal(key, x.shape, x.dtype)
            return x, x

        keys = jax.random.split(key, levels.alpha.shape[0])
        return path_of(self.model, jax.lax.scan(noise, sample, (older, newer, keys), reverse=True)[1])


def _nothing(before: View, after: View) -> Array:
    return jnp.zeros(after.x.shape[0], after.x.dtype)


def _view(seen: Seen, row: Any) -> View:
    return View(seen.x, row.now, seen.prediction, (), row.gain, row.std, row.index, row.stage, jnp.ones((), bool))
