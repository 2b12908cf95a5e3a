"""Adaptive solvers: the probability-flow ODE and the reverse SDE by diffrax, to a tolerance instead of on a grid.

These are functions, not samplers of the protocol: a sampler is a fixed scan of rows whose number of network calls is
known before running, while here steps are accepted or rejected by what the network answers, sample by sample. So
particles and recorders do not run on top of them; their statistics are in the result.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import diffrax
import equinox
import jax
import jax.numpy as jnp
import lineax
import numpy as np
from jax import Array

from diffsample.arguments import sample_number
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
from diffsample.process import Process
from diffsample.sampler import fold, sample_keys
from diffsample.struct import pytree, static

BROWNIAN_STREAM = 2**32 - 4  # a row number that no table has
ROUGH = diffrax.PIDController(rtol=1e-2, atol=1e-2)  # default of the SDE, as published for adaptive reverse SDEs


@pytree
class Path:
    """Dense output: the state of every sample at any process time between the two ends."""

    pieces: Any  # diffrax interpolations, batch axis first
    process: Process = static()

    def __call__(self, t: Any) -> Array:
        """States [B, ...] at process time t, one number for all samples."""
        half_logsnr = jnp.asarray(self.process.half_logsnr(t))
        y = jax.vmap(lambda piece: piece.evaluate(half_logsnr))(self.pieces)
        return to_state(half_logsnr.astype(y.dtype), y, jnp.asarray(self.process.alpha(t)))


class Solved(NamedTuple):
    """What an adaptive solve found; every array has the batch axis first."""

    x: Array  # [B, ...] states at the end; NaN where not ok
    at_times: Array | None  # [B, len(times), ...] states at the times asked for
    path: Path | None  # dense output, if asked for
    steps: Array  # [B] int, solver steps, accepted and rejected
    rejected: Array  # [B] int
    calls: Array  # [B] int, denoiser calls; -1 for a solver that is not explicit
    ok: Array  # [B] bool, False where the solver gave up (max_steps) or met a NaN


def solve_ode(
    key: Array,
    denoiser: Denoiser,
    process: Process,
    x: Array,
    *,
    cond: PyTree = None,
    start: float | None = None,
    stop: float | None = None,
    times: Sequence[float] = (),
    dense: bool = False,
    denoise: bool = False,
    solver: diffrax.AbstractSolver | None = None,
    controller: diffrax.AbstractStepSizeController = TOLERANCES,
    adjoint: diffrax.AbstractAdjoint | None = None,
    max_steps: int = 4096,
    first: int = 0,
) -> Solved:
    """Adaptive probability-flow ODE: dx-bar = eps ds-bar, x-bar = x / alpha, s-bar = sigma / alpha, by diffrax.

    Solved in half log-SNR. Order and calls a step are the solver's (Dopri5: order 5, 6 calls); exact to the tolerance.
    Every sample has its own steps, and does not depend on its batch; a batch runs until its slowest sample is done.
    Differentiable.

    Args:
        key: typed key; only a denoiser that draws uses it.
        denoiser: without memory, for an adaptive solver also calls it in steps that it then rejects; and `coupled`, for
            a flow has no steps by which rules such as `dps`, `mpgd` or `mean_shift` could move x0.
        process: the noising process.
        x: [B, ...] states at `start`; `diffuse(key, zeros, process.level(start))` draws those of `sample`.
        cond: condition, every leaf with the batch axis first.
        start, stop: process times; default those of the process (t_start, t_min). Running from low to high encodes.
        times: process times between them, in order, at which states are returned too.
        dense: also return a `Path`, for states at any time.
        denoise: one more call at the end, whose x0 is returned as `x`.
        solver: explicit diffrax solver; default `diffrax.Dopri5()`, the RK45 of the publication.
        controller: default `diffrax.PIDController(rtol=1e-5, atol=1e-5)`, on a state of unit scale.
        adjoint: how diffrax differentiates; default `RecursiveCheckpointAdjoint()`.
        max_steps: of one sample.
        first: number of the first sample.

    Raises:
        TypeError, ValueError: a denoiser with memory, or not coupled; a key, x or condition that `sample` refuses;
            times outside the process, of infinite log-SNR, or out of order.

    Reference: Song et al. 2021, arXiv 2011.13456, section 4.3 and appendix D.4; Kidger 2021, arXiv 2202.02435.

    >>> import jax.numpy as jnp, diffsample as ds
    >>> found = ds.solvers.solve_ode(jax.random.key(0), ds.exact.PointMass(2.0), ds.FlowMatching(), jnp.ones((1, 3)))
    >>> found.x.round(2).tolist()
    [[2.0, 2.0, 2.0]]
    """
    solver = solver or diffrax.Dopri5()
    given = (key, denoiser, process, x, cond, start, stop, times, dense, denoise, solver, controller, adjoint)
    return _run(*given, max_steps, first, strength=None)


def solve_sde(
    key: Array,
    denoiser: Denoiser,
    process: Process,
    x: Array,
    *,
    strength: float = 1.0,
    cond: PyTree = None,
    start: float | None = None,
    stop: float | None = None,
    times: Sequence[float] = (),
    dense: bool = False,
    denoise: bool = False,
    solver: diffrax.AbstractSolver | None = None,
    controller: diffrax.AbstractStepSizeController = ROUGH,
    adjoint: diffrax.AbstractAdjoint | None = None,
    max_steps: int = 4096,
    first: int = 0,
) -> Solved:
    """Adaptive reverse SDE: dx-bar = (1 + tau^2) eps ds-bar + tau sqrt(2 s-bar) dW, s-bar = sigma / alpha, by diffrax.

    Its noise is additive in the coordinates used, so that ShARK has strong order 1.5 at 2 calls a step. By a virtual
    Brownian tree a sample has one path, whatever the steps, the rejections and the batch, which tolerances refine: the
    same sample in another batch is equal up to the tolerance, for rounding moves the steps along the path.

    Args:
        key: typed key; sample i has fold_in(key, i), and its own Brownian path.
        strength: tau, 1 the reverse SDE, between 0 and 1 less noise, above 1 more.
        solver: diffrax SDE solver with an error estimate (`ShARK`, `SRA1`, `SPaRK`, `HalfSolver(Euler())`); default
            `diffrax.ShARK()`.
        controller: default `diffrax.PIDController(rtol=1e-2, atol=1e-2)`.
        denoiser, process, x, cond, start, stop, times, dense, denoise, adjoint, max_steps, first: as for `solve_ode`.

    Raises:
        TypeError, ValueError: as `solve_ode`; a stop noisier than the start; strength <= 0.

    Reference: Song et al. 2021, arXiv 2011.13456, eq. 6; Jolicoeur-Martineau et al. 2021, arXiv 2105.14080 (adaptive
    steps); Foster et al. 2024, arXiv 2210.17543, eq. 6.1 (ShARK); Jelincic et al. 2024, arXiv 2405.06464 (the tree).

    >>> import jax.numpy as jnp, diffsample as ds
    >>> law, process = ds.exact.Gaussian(0.0, 1.0), ds.FlowMatching()
    >>> found = ds.solvers.solve_sde(jax.random.key(0), law, process, jnp.ones((1, 3)))
    >>> bool(found.ok[0]), bool(found.calls[0] == 2 * found.steps[0])
    (True, True)
    """
    if not strength > 0:
        raise ValueError(f"strength={strength} must be positive; use solve_ode for 0")
    solver = solver or diffrax.ShARK()
    given = (key, denoiser, process, x, cond, start, stop, times, dense, denoise, solver, controller, adjoint)
    return _run(*given, max_steps, first, strength=strength)


def _run(key, denoiser, process, x, cond, start, stop, times, dense, denoise, solver, controller, adjoint, max_steps,
         first, strength) -> Solved:  # fmt: skip
    """Host checks, then the compiled solve."""
    start, stop = process.t_start if start is None else start, process.t_min if stop is None else stop
    along = np.array([start, *times, stop], np.float64)
    order = np.diff(along) * np.sign(stop - start)
    if start == stop or (order < 0).any() or (strength is not None and start < stop):
        raise ValueError(f"start={start}, times={list(times)}, stop={stop} must be in order"
                         f"{', from noise to data' if strength is not None else ''}")  # fmt: skip
    half_logsnr = np.array(check(key, denoiser, process, x, cond, along.tolist()))
    adjoint = adjoint or diffrax.RecursiveCheckpointAdjoint()
    denoiser = jax.tree.map(jnp.asarray, denoiser)
    strength = None if strength is None else jnp.asarray(strength)
    keys, scales = sample_keys(key, sample_number(first), x.shape[0]), process.alpha(along)
    asked = (bool(dense), bool(denoise), len(times) > 0)  # NumPy's bools would be traced
    return _solve(denoiser, process, x, cond, keys, half_logsnr, scales, strength, asked, solver, controller, adjoint,
                  max_steps)  # fmt: skip


@equinox.filter_jit
def _solve(denoiser, process, x, cond, keys, half_logsnr, alphas, strength, asked, solver, controller, adjoint,
           max_steps) -> Solved:  # fmt: skip
    dense, denoise, between = asked
    working = jnp.promote_types(x.dtype, jnp.float32)
    half_logsnr, alphas = jnp.asarray(half_logsnr, working), jnp.asarray(alphas, working)
    ode = strength is None
    saveat = diffrax.SaveAt(t1=True, ts=half_logsnr[1:-1] if between else None, dense=dense)
    start = from_state(half_logsnr[0], x.astype(working), alphas[0])

    def one(y: Array, key: Array, cond: PyTree) -> tuple:
        drift = Drift(denoiser, cond, key, 0.0 if ode else strength, process)
        terms = diffrax.ODETerm(drift) if ode else _with_noise(drift, half_logsnr[0], half_logsnr[-1], y, key, solver)
        found = diffrax.diffeqsolve(
            terms, solver, half_logsnr[0], half_logsnr[-1], dt0=None, y0=y, saveat=saveat, adjoint=adjoint,
            stepsize_controller=controller, max_steps=max_steps, throw=False,
        )  # fmt: skip
        assert found.ys is not None
        last = found.ys[-1]
        ok = (found.result == diffrax.RESULTS.successful) & jnp.isfinite(last).all()
        end = drift.predict(half_logsnr[-1], last).x0[0] if denoise else to_state(half_logsnr[-1], last, alphas[-1])
        middle = jax.vmap(to_state)(half_logsnr[1:-1], found.ys[:-1], alphas[1:-1]) if between else None
        end, middle = jax.tree.map(lambda leaf: jnp.where(ok, leaf, jnp.nan).astype(x.dtype), (end, middle))
        return end, middle, found.interpolation, found.stats["num_steps"], found.stats["num_rejected_steps"], ok

    end, middle, pieces, steps, rejected, ok = jax.vmap(one)(start, keys, cond)
    calls = network_calls(solver, steps, ode) + denoise
    return Solved(end, middle, Path(pieces, process) if dense else None, steps, rejected, calls, ok)


def _with_noise(drift: Drift, t0: Array, t1: Array, y: Array, key: Array, solver: Any) -> diffrax.MultiTerm:
    """The SDE's two terms, on the sample's own Brownian tree; its finest interval is 1 / 4096 of the whole."""
    area = getattr(solver, "minimal_levy_area", diffrax.BrownianIncrement)
    area = area if isinstance(area, type) and issubclass(area, diffrax.SpaceTimeLevyArea) else diffrax.SpaceTimeLevyArea
    shape = jax.ShapeDtypeStruct(y.shape, y.dtype)
    tree = diffrax.VirtualBrownianTree(t0, t1, (t1 - t0) / 4096, shape, fold(key[None], BROWNIAN_STREAM)[0], area)

    def spread(half_logsnr: Any, y: Array, args: Any) -> lineax.DiagonalLinearOperator:
        scale = drift.strength * jnp.sqrt(2.0) * noise_share(jnp.asarray(half_logsnr, y.dtype))
        return lineax.DiagonalLinearOperator(jnp.broadcast_to(scale.astype(y.dtype), y.shape))

    return diffrax.MultiTerm(diffrax.ODETerm(drift), diffrax.ControlTerm(spread, tree))
