"""Rules on the condition: replaced, fixed, drawn at random, or annealed with noise."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from diffsample.denoiser import Denoiser, Point, Prediction, PyTree
from diffsample.guidance.branches import Branches, TwoBranches, both
from diffsample.guidance.projected import positive
from diffsample.guidance.schedules import known, scheduled, value_at
from diffsample.process import Level
from diffsample.sampler import fold, normal
from diffsample.struct import pytree, static
from diffsample.wrapping import Wrapper


@pytree
class Relabelled(Wrapper):
    """D(x, table[cond]); see `relabel`."""

    denoiser: Denoiser
    table: Any  # [K] int

    def __call__(self, x: Array, at: Point, cond: PyTree, state: PyTree) -> tuple[Prediction, PyTree]:
        if cond is None or not jnp.issubdtype(jnp.result_type(cond), jnp.integer):
            raise TypeError(f"relabel needs integer labels as the condition, got {cond!r}")
        return self.denoiser(x, at, jnp.asarray(self.table, jnp.result_type(cond))[cond], state)


@pytree
class Independent(TwoBranches):
    """CFG with a random condition in place of none; see `icg`."""

    denoiser: Denoiser
    draw: Any
    scale: Any
    batched: bool = static(default=True)

    def __call__(self, x: Array, at: Point, cond: PyTree, state: Branches) -> tuple[Prediction, Branches]:
        drawn, inside = jax.vmap(self.draw)(fold(at.keys, 0)), at._replace(keys=fold(at.keys, 1))
        (c, u), state = both(self.denoiser, x, inside, cond, drawn, state, self.batched)
        extra = value_at(self.scale, at.now, x) - 1
        return jax.tree.map(lambda c, u: c + extra * (c - u), c, u), state


@pytree
class Annealed(Wrapper):
    """The condition with noise that fades; see `cads`."""

    denoiser: Denoiser
    gamma: Any
    noise: Any
    mix: Any

    def __call__(self, x: Array, at: Point, cond: PyTree, state: PyTree) -> tuple[Prediction, PyTree]:
        leaves, structure = jax.tree.flatten(cond)
        if not leaves or not all(jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in leaves):
            raise TypeError("cads adds noise to an embedding: every leaf of the condition must be floating point")
        own = fold(at.keys, 0)
        noisy = [self._anneal(jnp.asarray(leaf), fold(own, i), at.now) for i, leaf in enumerate(leaves)]
        return self.denoiser(x, at._replace(keys=fold(at.keys, 1)), jax.tree.unflatten(structure, noisy), state)

    def _anneal(self, c: Array, keys: Array, level: Level) -> Array:
        gamma, noise, mix = (value_at(value, level, c) for value in (self.gamma, self.noise, self.mix))
        noisy = jnp.sqrt(gamma) * c + noise * jnp.sqrt(1 - gamma) * normal(keys, c.shape, c.dtype)
        if c.ndim == 1:  # one number a sample has no spread to restore
            return noisy
        axes = tuple(range(1, c.ndim))
        centred, spread = noisy - noisy.mean(axes, keepdims=True), noisy.std(axes, keepdims=True)
        restored = centred / positive(spread) * c.std(axes, keepdims=True) + c.mean(axes, keepdims=True)
        restored = jnp.where(gamma == 1, c, restored)  # no noise: the condition bit for bit
        return mix * restored + (1 - mix) * noisy


def relabel(denoiser: Denoiser, table: ArrayLike) -> Relabelled:
    """Relabelling: D(x, table[label]), each label replaced by another.

    The conditional score of one class in place of another's, score(x | y) := score(x | table[y]): forgetting a class at
    sampling time, without training. No call of its own; the table is a leaf.

    Args:
        denoiser: of integer labels `[B]`.
        table: `[K]` int, the label that stands for each of 0 .. K - 1; cover the null label too.

    Raises:
        ValueError: a table that is not a list of integers.
        TypeError: at trace time, a condition that is not an integer.

    >>> import diffsample as ds
    >>> law = relabel(ds.exact.Switch((ds.exact.PointMass(0.0), ds.exact.PointMass(7.0))), [1, 1])
    >>> sampler = ds.solvers.linear(law, ds.solvers.ddim(ds.VarianceExploding(), [9.0, 1.0, 0.0]))
    >>> ds.sample(jax.random.key(0), sampler, (2,), cond=jnp.array([0, 1])).tolist()
    [7.0, 7.0]
    """
    labels = jnp.asarray(table)
    if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"relabel needs a list of integers, one a label, got {table!r}")
    return Relabelled(denoiser, labels)


def icg(denoiser: Denoiser, draw: Callable[[Array], PyTree], scale: Any, *, batched: bool = True) -> Independent:
    """ICG, independent condition guidance: CFG whose unconditional branch has a condition drawn at random.

    Two network evaluations a call, for networks trained without a null condition. Each sample draws anew at every call.

    Args:
        denoiser, scale, batched: as for `cfg`.
        draw: (key) -> a condition of one sample, independent of it: a random label, or a Gaussian embedding.

    Reference: Sadat et al. 2024, arXiv 2407.02687.

    >>> import diffsample as ds
    >>> icg(ds.exact.Gaussian(0.0, 1.0), lambda key: jax.random.randint(key, (), 0, 10), 2.0).evaluations
    2
    """
    return Independent(denoiser, scheduled(draw), scheduled(scale), batched)


def cads(denoiser: Denoiser, gamma: Any, noise: Any = 0.25, *, mix: Any = 1.0) -> Annealed:
    """CADS, condition-annealed sampling: c <- sqrt(gamma) c + noise sqrt(1 - gamma) z, mean and deviation restored.

    No call of its own. Put it around a guided denoiser, whose null condition it then leaves alone: cads(cfg(...)).

    Args:
        denoiser: of a floating-point condition (an embedding), a pytree with the batch axis first.
        gamma: 0 all noise, 1 none: a schedule, for example `piecewise_linear([rho_1, rho_2], [1.0, 0.0])`.
        noise: standard deviation of what is added.
        mix: share of the version with the condition's own mean and standard deviation over its axes.

    Raises:
        ValueError: a constant gamma outside [0, 1].
        TypeError: at trace time, a condition that is not floating point.

    Reference: Sadat et al. 2023, arXiv 2310.17347.

    >>> import diffsample as ds
    >>> cads(ds.exact.Gaussian(0.0, 1.0), ds.guidance.piecewise_linear([1.0, 5.0], [1.0, 0.0])).evaluations
    1
    """
    if known(gamma) and not np.all((np.asarray(gamma) >= 0) & (np.asarray(gamma) <= 1)):
        raise ValueError(f"gamma={gamma} must lie in [0, 1], or be a schedule")
    return Annealed(denoiser, scheduled(gamma), scheduled(noise), scheduled(mix))
