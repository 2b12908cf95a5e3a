"""Intrinsic dimension of data near a point, four ways, from a denoiser.

Noise of scale sigma fills the directions across the data's manifold and hides in those along it. All four count that
difference, at a sigma that you choose: below the smallest level that the network was trained on, answers are
meaningless, and far above it they say how many directions have a spread of sigma or more.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from diffsample.denoiser import Denoiser, PyTree, expand
from diffsample.diagnostics import prediction_at, score_at, trace
from diffsample.probes import Probes, rademacher
from diffsample.process import Level
from diffsample.sampler import Sampler, View, normal, sample_keys
from diffsample.sampling import sample


class Spectrum(NamedTuple):
    """Singular values, and the dimension that their largest gap shows."""

    dimension: Array  # [B] int32
    values: Array  # [..., B, K] falling along the last axis


def denoiser_dimension(
    key: Array,
    denoiser: Denoiser,
    level: Level,
    x: Array,
    *,
    cond: PyTree = None,
    probes: Probes = rademacher,
    count: int = 8,
) -> Array:
    """Dimension by the denoiser's trace: alpha tr(d x0 / d x_t) at a noisy state, [B], not rounded.

    On a Gaussian with variances v it is sum alpha^2 v / (alpha^2 v + sigma^2), at every x. One evaluation and one JVP a
    probe.

    Args:
        key: typed key; sample i has fold_in(key, i).
        denoiser: without memory.
        level: the noise level of x, for example `process.level(t)`.
        x: [B, ...] noisy states.
        cond: condition, leaves [B, ...].
        probes, count: as for `diagnostics.trace`.

    Reference: Horvat & Pfister 2024, arXiv 2402.03845; the trace is that of a projection as sigma goes to 0.

    >>> import diffsample as ds
    >>> plane = ds.exact.Gaussian([0.0, 0.0, 0.0], [1.0, 1.0, 0.0])
    >>> round(float(denoiser_dimension(jax.random.key(0), plane, Level(None, 1.0, 0.01), jnp.ones((1, 3)))[0]), 3)
    2.0
    """
    predict = prediction_at(denoiser, level, cond)
    return level.alpha * trace(key, lambda x: predict(x).x0, x, probes=probes, count=count)


def flipd(
    key: Array,
    denoiser: Denoiser,
    level: Level,
    x0: Array,
    *,
    cond: PyTree = None,
    probes: Probes = rademacher,
    count: int = 8,
) -> Array:
    """FLIPD, local intrinsic dimension of a clean sample: d + sigma^2 (tr grad s + |s|^2) at x = alpha x0, [B].

    Computed as alpha tr(d x0 / d x) + |eps|^2, which does not cancel at small sigma. One evaluation and one JVP a
    probe.

    Args:
        key, denoiser, level, cond, probes, count: as for `denoiser_dimension`.
        x0: [B, ...] clean samples.

    Reference: Kamkari et al. 2024, arXiv 2406.03537.

    >>> import diffsample as ds
    >>> line = ds.exact.Gaussian([0.0, 0.0], [1.0, 0.0])
    >>> round(float(flipd(jax.random.key(0), line, Level(None, 1.0, 0.01), jnp.zeros((1, 2)))[0]), 3)
    1.0
    """
    x = expand(level.alpha, x0) * x0
    found = denoiser_dimension(key, denoiser, level, x, cond=cond, probes=probes, count=count)
    eps = prediction_at(denoiser, level, cond)(x).eps
    return found + jnp.sum(eps.reshape(x.shape[0], -1) ** 2, axis=1)


def normal_bundle_dimension(
    key: Array, denoiser: Denoiser, level: Level, x0: Array, *, cond: PyTree = None, copies: int | None = None
) -> Spectrum:
    """Dimension by the normal bundle: scores at many noisy copies of x0 point across the manifold.

    The matrix of K scores at alpha x0 + sigma z has large singular values across and small ones along; the dimension is
    d less the position of the largest gap s_i - s_{i+1}. On a Gaussian of variance v the two kinds have the ratio
    sigma^2 / (alpha^2 v + sigma^2). K evaluations a sample, the network's batch is K. An answer between 1 and d - 1.

    Args:
        key, denoiser, level, cond: as for `denoiser_dimension`.
        x0: [B, ...] clean samples of d numbers.
        copies: K, d at least; None is 4 d, the published choice.

    Raises:
        ValueError: fewer copies than dimensions.

    Reference: Stanczuk, Batzolis, Deveney, Schonlieb 2024, arXiv 2212.12611, algorithm 1.

    >>> import diffsample as ds
    >>> line = ds.exact.Gaussian([0.0, 0.0, 0.0], [1.0, 0.0, 0.0])
    >>> normal_bundle_dimension(jax.random.key(0), line, Level(None, 1.0, 0.01), jnp.zeros((2, 3))).dimension.tolist()
    [1, 1]
    """
    d = x0[0].size
    K = 4 * d if copies is None else copies
    if K < d:
        raise ValueError(f"copies={K} must be at least the dimension {d}")

    def one(inputs: tuple) -> Array:
        key, x0, cond = inputs
        z = normal(sample_keys(key, 0, K), (K, *x0.shape), x0.dtype)
        x = level.alpha * x0[None] + level.sigma * z
        cond = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (K, *leaf.shape)), cond)
        return jnp.linalg.svd(score_at(denoiser, level, cond)(x).reshape(K, d), compute_uv=False)

    values = jax.lax.map(one, (sample_keys(key, 0, x0.shape[0]), x0, cond))
    position = jnp.argmax(values[:, :-1] - values[:, 1:], axis=1) + 1
    return Spectrum((d - position).astype(jnp.int32), values)


def flow_dimension(
    key: Array, sampler: Sampler, x: Array, *, cond: PyTree = None, directions: int | None = None
) -> Spectrum:
    """Dimension by the flow: singular values of d x_r / d x_T along the rows of a deterministic sampler.

    Along the manifold they saturate as sigma falls, across it they go to zero with sigma. The dimension is the position
    of the largest ratio between neighbours at the end, so end the grid at a small sigma > 0, not at 0. The flow of a
    Gaussian has sqrt((alpha^2 v + sigma^2) / (alpha_T^2 v + sigma_T^2)). One run with d JVPs at every call; samples one
    after the other.

    Args:
        key: typed key, for denoisers that draw.
        sampler: deterministic, for example `linear(denoiser, dpmpp(process, times))`.
        x: [B, ...] initial states of d numbers.
        cond: condition, leaves [B, ...].
        directions: push only so many random orthonormal directions forward; the values are then smaller, but vanish
            alike, so that dimensions below `directions` are still seen. None: all d.

    Returns:
        Spectrum, with values [n + 1, B, K]: at the state of every call, and at the end.

    Raises:
        ValueError: directions outside 2 ... d.

    Reference: Horvat & Pfister 2024, arXiv 2402.03845.

    >>> import diffsample as ds
    >>> process, line = ds.VarianceExploding(), ds.exact.Gaussian([0.0, 0.0], [1.0, 0.0])
    >>> table = ds.solvers.dpmpp(process, ds.times.karras(process, 10, zero=False))
    >>> flow_dimension(jax.random.key(0), ds.solvers.linear(line, table), jnp.ones((1, 2))).dimension.tolist()
    [1]
    """
    d = x[0].size
    K = d if directions is None else directions
    if not 2 <= K <= d:
        raise ValueError(f"directions={directions} must be from 2 to the dimension {d}")

    def one(inputs: tuple) -> Array:
        number, x, cond = inputs
        cond = jax.tree.map(lambda leaf: leaf[None], cond)

        def flow(x: Array) -> Array:
            end, states = sample(key, sampler, x=x[None], cond=cond, record=_state, first=number, check=False)
            return jnp.concatenate([states, end[None]]).reshape(-1, d)

        basis = jnp.eye(d, dtype=x.dtype)
        if directions is not None:
            probe = jax.random.normal(jax.random.fold_in(key, number), (d, K), x.dtype)
            basis = jnp.linalg.qr(probe)[0].T
        pushed = jax.vmap(lambda v: jax.jvp(flow, (x,), (v.reshape(x.shape),))[1])(basis)  # [K, n + 1, d]
        return jnp.linalg.svd(jnp.moveaxis(pushed, 0, 2), compute_uv=False)

    values = jax.lax.map(one, (jnp.arange(x.shape[0], dtype=jnp.uint32), x, cond))  # [B, n + 1, K]
    tiny = jnp.finfo(values.dtype).tiny
    ratio = jnp.maximum(values[:, -1, :-1], tiny) / jnp.maximum(values[:, -1, 1:], tiny)
    return Spectrum(jnp.argmax(ratio, axis=1).astype(jnp.int32) + 1, jnp.moveaxis(values, 0, 1))


def _state(view: View) -> Array:
    return view.x
