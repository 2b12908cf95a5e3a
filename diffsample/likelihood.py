"""Exact log-likelihood by the probability-flow ODE: change of variables from data to noise, solved by diffrax.

Along the flow of x-bar = x / alpha, d log p / dl = s tr(d eps / dy) in the coordinates of `probability_flow`, so that

    log p(x_min) = log N(x_max; 0, sigma_max^2) - l-integral from min to max + d log(alpha_max / alpha_min).

The trace is exact (as many directions as dimensions) or estimated from random probes, fixed during the solve
(Hutchinson); any solver, tolerance and adjoint of diffrax.
"""

import math
from typing import Any, NamedTuple

import diffrax
import equinox
import jax
import jax.numpy as jnp
from jax import Array

from diffsample.arguments import check_key, sample_number
from diffsample.denoiser import Denoiser, PyTree
from diffsample.probability_flow import (
    TOLERANCES,
    Drift,
    check,
    from_state,
    network_calls,
    noise_share,
    to_state,
)
from diffsample.probes import Probes, rademacher
from diffsample.process import Process
from diffsample.sampler import fold, sample_keys

PROBE_STREAM = 2**32 - 3  # a row number that no table has


class LogLikelihood(NamedTuple):
    """What `log_likelihood` found for every sample."""

    log_prob: Array  # [B] log-density at t_min, in nats; NaN where not ok
    latent: Array  # [B, ...] the state at t_max that x flows to
    steps: Array  # [B] int, solver steps, rejected ones included
    calls: Array  # [B] int, denoiser calls; -1 for a solver that is not explicit
    ok: Array  # [B] bool, False where the solver gave up (max_steps) or met a NaN


def log_likelihood(
    key: Array,
    denoiser: Denoiser,
    process: Process,
    x: Array,
    *,
    cond: PyTree = None,
    probes: Probes = rademacher,
    count: int = 1,
    t_min: float | None = None,
    t_max: float | None = None,
    solver: diffrax.AbstractSolver | None = None,
    controller: diffrax.AbstractStepSizeController = TOLERANCES,
    adjoint: diffrax.AbstractAdjoint | None = None,
    max_steps: int = 4096,
    first: int = 0,
) -> LogLikelihood:
    """Exact log-likelihood: log p(x) = log N(x_T) + the integral of the trace along the probability flow from x to x_T.

    Deterministic given the probes; unbiased with random ones. Adaptive, so the number of calls is in the result; every
    call also costs `count` Jacobian-vector products (d of them with `every_axis`). Exact up to the tolerance for the
    model that the ODE sampler `solvers.solve_ode` draws from, whose law at t_max is N(0, sigma^2). Differentiable.

    Args:
        key: typed key; sample i has fold_in(key, i), and its own probes.
        denoiser: without memory, and `coupled`.
        process: the noising process.
        x: [B, ...] data, taken as states at t_min; of data on a grid of values, see `dequantise`.
        cond: condition, every leaf with the batch axis first.
        probes: `rademacher`, `gaussian`, `every_axis`, or any function (key, x of one sample, count) -> [K, ...] of
            vectors with mean outer product 1.
        count: random probes a sample.
        t_min, t_max: ends; default those of the process (t_min, t_start). The published t_min is 1e-5.
        solver: explicit diffrax solver of ODEs; default `diffrax.Dopri5()`, the RK45 of the publication.
        controller: default `diffrax.PIDController(rtol=1e-5, atol=1e-5)`.
        adjoint: how diffrax differentiates; default `RecursiveCheckpointAdjoint()`. Forward-mode derivatives need
            `diffrax.ForwardMode()`.
        max_steps: of one sample.
        first: number of the first sample.

    Raises:
        TypeError, ValueError: a denoiser with memory, or not coupled; a key, x or condition that `sample` refuses;
            times outside the process, of infinite log-SNR, or out of order.

    Reference: Song et al. 2021, arXiv 2011.13456, eq. 39 and 40; Grathwohl et al. 2019, arXiv 1810.01367.

    >>> import jax.numpy as jnp, diffsample as ds
    >>> law, process = ds.exact.Gaussian(0.0, 1.0), ds.VariancePreserving()
    >>> round(float(log_likelihood(jax.random.key(0), law, process, jnp.zeros((1, 2))).log_prob[0]), 2)
    -1.84
    """
    t_min, t_max = process.t_min if t_min is None else t_min, process.t_start if t_max is None else t_max
    if not t_min < t_max:
        raise ValueError(f"t_min={t_min} must lie below t_max={t_max}")
    if count < 1:
        raise ValueError(f"count={count} must be at least 1")
    ends = check(key, denoiser, process, x, cond, (t_min, t_max))
    scales = tuple(float(f(t)) for t in (t_min, t_max) for f in (process.alpha, process.sigma))
    denoiser = jax.tree.map(jnp.asarray, denoiser)
    options = (solver or diffrax.Dopri5(), controller, adjoint or diffrax.RecursiveCheckpointAdjoint(), max_steps)
    keys = sample_keys(key, sample_number(first), x.shape[0])
    return _solve(denoiser, process, x, cond, keys, ends, scales, probes, count, options)


@equinox.filter_jit
def _solve(denoiser, process, x, cond, keys, ends, scales, probes, count, options) -> LogLikelihood:
    solver, controller, adjoint, max_steps = options
    start_alpha, _, end_alpha, end_sigma = scales
    state = from_state(ends[0], x.astype(jnp.promote_types(x.dtype, jnp.float32)), start_alpha)

    def one(y: Array, key: Array, cond: PyTree) -> tuple:
        flow = Flow(Drift(denoiser, cond, key, 0.0, process), probes(fold(key[None], PROBE_STREAM)[0], y, count))
        found = diffrax.diffeqsolve(
            diffrax.ODETerm(flow), solver, *ends, dt0=None, y0=(y, jnp.zeros((), y.dtype)),
            stepsize_controller=controller, adjoint=adjoint, max_steps=max_steps, throw=False,
        )  # fmt: skip
        last, integral = jax.tree.map(lambda leaf: leaf[-1], found.ys)
        return last, integral, found.stats["num_steps"], found.result == diffrax.RESULTS.successful

    last, integral, steps, ok = jax.vmap(one)(state, keys, cond)
    latent = to_state(ends[1], last, end_alpha)
    d = math.prod(x.shape[1:])
    square = jnp.sum((latent / end_sigma).reshape(x.shape[0], -1) ** 2, axis=1)
    prior = -0.5 * square - d * (0.5 * math.log(2 * math.pi) + math.log(end_sigma))
    log_prob = prior - integral + d * (math.log(end_alpha) - math.log(start_alpha))
    ok &= jnp.isfinite(log_prob)
    calls = network_calls(solver, steps, ode=True)
    return LogLikelihood(jnp.where(ok, log_prob, jnp.nan).astype(x.dtype), latent.astype(x.dtype), steps, calls, ok)


class Flow(equinox.Module):
    """The ODE of (y, change of log-density), by Jacobian-vector products along the probes."""

    drift: Drift
    probes: Array  # [K, ...]

    def __call__(self, half_logsnr: Any, state: tuple[Array, Array], args: Any) -> tuple[Array, Array]:
        y, _ = state
        eps, push = jax.linearize(lambda y: self.drift.eps(half_logsnr, y), y)
        trace = jax.vmap(lambda probe: jnp.sum(probe * push(probe)))(self.probes).mean()
        s = noise_share(jnp.asarray(half_logsnr, y.dtype))
        return s**2 * y - s * eps, s * trace


def bits_per_dim(log_prob: Array, dims: int, *, low: float = -1.0, high: float = 1.0, levels: int = 256) -> Array:
    """-log p / (d ln 2) + log2(levels / (high - low)): bits per dimension of dequantised data.

    The offset is 7 for 256 values laid in [-1, 1], and 8 in [0, 1]. It bounds the code length of the discrete data
    from above.

    Args:
        log_prob: [B] nats. dims: numbers in one datum. low, high: range of the data. levels: values that they take.

    Raises:
        ValueError: an empty range, dims or levels below 1.

    Reference: Theis et al. 2016, arXiv 1511.01844, section 3.1; Song et al. 2021, score_sde (software).

    >>> bits_per_dim(jnp.zeros(1), dims=4).tolist(), bits_per_dim(jnp.zeros(1), dims=4, low=0.0).tolist()
    ([7.0], [8.0])
    """
    _check_range(low, high, levels)
    if dims < 1:
        raise ValueError(f"dims={dims} must be at least 1")
    return -log_prob / (dims * math.log(2)) + math.log2(levels / (high - low))


def dequantise(key: Array, values: Array, *, low: float = -1.0, high: float = 1.0, levels: int = 256) -> Array:
    """low + (high - low) (v + u) / levels, u uniform on [0, 1): integers 0 ... levels - 1 as a density on [low, high].

    Args:
        key: typed key; sample i has fold_in(key, i).
        values: [B, ...] integers (255 x image, where the image is in [0, 1]).
        low, high, levels: as for `bits_per_dim`.

    Raises:
        TypeError: values that are not integers. ValueError: an empty range.

    Reference: Theis et al. 2016, arXiv 1511.01844, section 3.1.

    >>> x = dequantise(jax.random.key(0), jnp.array([[0, 255]]))
    >>> bool((-1 <= x[0, 0]) & (x[0, 0] < -1 + 2 / 256)), bool((1 - 2 / 256 <= x[0, 1]) & (x[0, 1] <= 1))
    (True, True)
    """
    check_key(key)
    _check_range(low, high, levels)
    if not jnp.issubdtype(values.dtype, jnp.integer):
        raise TypeError(f"values must be integers from 0 to {levels - 1}, got {values.dtype}")
    keys = sample_keys(key, 0, values.shape[0])
    u = jax.vmap(lambda key: jax.random.uniform(key, values.shape[1:], jnp.float32))(keys)
    return low + (high - low) / levels * (values.astype(u.dtype) + u)


def _check_range(low: float, high: float, levels: int) -> None:
    if not (low < high and levels >= 1):
        raise ValueError(f"low={low} must lie below high={high}, and levels={levels} be at least 1")
