"""Diagnostics of learned vector fields: is it a gradient, and does it matter?

A learned score is f = grad phi + r. Sampling and densities see f through the continuity equation alone, so a part r
with div(p_t r) = 0, that is div r + r . grad log p_t = 0, changes no density (gauge freedom): being a gradient is
neither necessary nor sufficient for sampling right. It is needed for what reads the Jacobian: local geometry,
intrinsic dimension, second-order guidance. Horvat & Pfister 2024, arXiv 2402.03845.

A field is any function x [B, ...] -> [B, ...] whose rows are independent; `score_at` makes one of a denoiser.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.denoiser import Denoiser, Point, Prediction, PyTree, expand
from diffsample.probes import Probes, every_axis, rademacher
from diffsample.process import Level
from diffsample.sampler import sample_keys

Field: TypeAlias = Callable[[Array], Array]


def prediction_at(denoiser: Denoiser, level: Level, cond: PyTree = None) -> Callable[[Array], Prediction]:
    """A denoiser at one noise level, as a function of x [B, ...] alone; its own draws are the same at every call.

    >>> import diffsample as ds
    >>> prediction_at(ds.exact.Gaussian(0.0, 1.0), Level(None, 1.0, 1.0))(jnp.array([4.0])).x0.tolist()
    [2.0]
    """

    def predict(x: Array) -> Prediction:
        zero = jnp.zeros((), jnp.int32)
        at = Point(level, level, zero, zero, jax.random.split(jax.random.key(0), x.shape[0]))
        return denoiser(x, at, cond, denoiser.init(x))[0]

    return predict


def score_at(denoiser: Denoiser, level: Level, cond: PyTree = None) -> Field:
    """The score -eps / sigma of a denoiser at one noise level, as a field.

    >>> import diffsample as ds
    >>> score_at(ds.exact.Gaussian(0.0, 3.0), Level(None, 1.0, 1.0))(jnp.array([4.0])).tolist()
    [-1.0]
    """
    predict = prediction_at(denoiser, level, cond)
    return lambda x: -predict(x).eps / expand(level.sigma, x)


def asymmetry(key: Array, field: Field, x: Array, *, probes: Probes = rademacher, count: int = 8) -> Array:
    """Asymmetry of the Jacobian: E|Jv - J'v|^2 / (E|Jv|^2 + E|J'v|^2) over random v, [B].

    0 where the field is locally a gradient, 2 where its Jacobian is antisymmetric. One Jacobian-vector and one
    vector-Jacobian product a probe.

    Args:
        key: typed key; sample i has fold_in(key, i) and its own probes.
        field: the field, for example `score_at(denoiser, level)`.
        x: [B, ...] where to look.
        probes: as for `log_likelihood`; `every_axis` gives the exact value, with d probes.
        count: random probes a sample.

    Reference: Horvat & Pfister 2024, arXiv 2402.03845; Hutchinson 1990.

    >>> turning = lambda x: jnp.stack([x[:, 1], -x[:, 0]], axis=1)
    >>> asymmetry(jax.random.key(0), turning, jnp.ones((1, 2))).tolist()
    [2.0]
    """
    _, pull = jax.vjp(field, x)

    def both(v: Array) -> tuple[Array, Array]:
        forward, backward = jax.jvp(field, (x,), (v,))[1], pull(v)[0]
        return _inner(forward - backward), _inner(forward) + _inner(backward)

    apart, size = jax.tree.map(lambda leaf: leaf.sum(0), jax.lax.map(both, _probes(key, x, probes, count)))
    return jnp.where(size > 0, apart / jnp.where(size > 0, size, 1), 0)


def trace(key: Array, field: Field, x: Array, *, probes: Probes = rademacher, count: int = 8) -> Array:
    """Trace of the Jacobian (divergence of the field), [B]: mean of v' J v over probes, one JVP each.

    Args:
        key, field, x, probes, count: as for `asymmetry`; `every_axis` is exact.

    Reference: Hutchinson 1990, Communications in Statistics 19(2), eq. 2.3.

    >>> trace(jax.random.key(0), lambda x: 3.0 * x, jnp.ones((2, 5))).tolist()
    [15.0, 15.0]
    """

    def one(v: Array) -> Array:
        return _inner(v, jax.jvp(field, (x,), (v,))[1])

    return jax.lax.map(one, _probes(key, x, probes, count)).mean(0)


def gauge_residual(
    key: Array, part: Field, score: Field, x: Array, *, probes: Probes = every_axis, count: int = 8
) -> Array:
    """Residual of the gauge condition, div r + r . score, [B]: zero where a part r of a field leaves p_t as it is.

    The mean of its square over x ~ p_t measures how much r changes densities; random probes add their own variance to
    that mean.

    Args:
        key, x: as for `asymmetry`.
        part: r, for example a learned score less the exact one.
        score: the score of p_t.
        probes, count: for the divergence; exact by default, with d JVPs.

    Reference: Horvat & Pfister 2024, arXiv 2402.03845, the gauge condition.

    >>> turning = lambda x: jnp.stack([x[:, 1], -x[:, 0]], axis=1)
    >>> gauge_residual(jax.random.key(0), turning, lambda x: -x, jnp.ones((1, 2))).tolist()
    [0.0]
    """
    return trace(key, part, x, probes=probes, count=count) + _inner(part(x), score(x))


def loop_integral(field: Field, path: Array) -> Array:
    """The integral of f . dl along a closed polygon, a scalar: zero for every loop if and only if f is a gradient.

    Midpoint rule on each edge, exact for affine fields, of second order in the edge length for others. One evaluation
    of the field for the whole loop.

    Args:
        field: the field.
        path: [N, ...] corners; the last is joined to the first.

    Raises:
        ValueError: fewer than three corners.

    >>> turning = lambda x: jnp.stack([x[:, 1], -x[:, 0]], axis=1)
    >>> float(loop_integral(turning, jnp.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])))
    -2.0
    """
    if len(path) < 3:
        raise ValueError(f"a loop needs three corners at least, got {len(path)}")
    following = jnp.roll(path, -1, axis=0)
    return _inner(field((path + following) / 2), following - path).sum()


def _probes(key: Array, x: Array, probes: Probes, count: int) -> Array:
    """[K, B, ...], sample i's from fold_in(key, i)."""
    if count < 1:
        raise ValueError(f"count={count} must be at least 1")
    return jax.vmap(lambda key, x: probes(key, x, count), out_axes=1)(sample_keys(key, 0, x.shape[0]), x)


def _inner(a: Array, b: Array | None = None) -> Array:
    """Inner product per sample, [B]; with itself where b is None."""
    return jnp.sum(a * (a if b is None else b), axis=tuple(range(1, a.ndim)))
