"""The probability-flow ODE of any process in coordinates that adaptive solvers like, one sample at a time.

Time is half log-SNR l, and the state is y = a x0 + s eps with a^2 = 1 / (1 + exp(-2 l)), s^2 = 1 - a^2: x_t divided by
alpha and multiplied by a, so that data of unit variance keep it at every l (on a VP process y is x_t itself). With an
eps prediction

    dy/dl = s^2 y - s eps                                    the ODE
    dy = (s^2 y - (1 + tau^2) s eps) dl + tau sqrt(2) s dW   the SDE that runs towards data, of the same marginals

from Song et al. 2021 (arXiv 2011.13456, eq. 6 and 13) and Zhang & Chen 2023 (arXiv 2204.13902, eq. 6), by a change of
time. The noise is additive. Every sample is solved by itself, under `vmap`, so that its steps and its noise do not
depend on its batch.
"""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.arguments import check_cond, check_key
from diffsample.denoiser import Denoiser, Point, PyTree
from diffsample.process import Level, Process
from diffsample.struct import pytree, static

TOLERANCES = diffrax.PIDController(rtol=1e-5, atol=1e-5)  # of the published ODE samplers and likelihoods


@pytree
class Drift:
    """Drift of one sample in (l, y); the denoiser sees a batch of one, which `vmap` turns into the whole batch."""

    denoiser: Denoiser
    cond: PyTree  # of one sample
    key: Array  # the sample's; the denoiser is given the same one at every call
    strength: Any  # tau: 0 the ODE, 1 the reverse SDE
    process: Process = static()

    def __call__(self, half_logsnr: Any, y: Array, args: Any = None) -> Array:
        s = noise_share(jnp.asarray(half_logsnr, y.dtype))
        return s**2 * y - ((1 + self.strength**2) * s).astype(y.dtype) * self.eps(half_logsnr, y)

    def eps(self, half_logsnr: Any, y: Array) -> Array:
        """Predicted unit noise."""
        return self.predict(half_logsnr, y).eps[0]

    def predict(self, half_logsnr: Any, y: Array) -> Any:
        """The denoiser's answer for a batch of one."""
        half_logsnr = jnp.asarray(half_logsnr, y.dtype)
        level = self.process.level(self.process.t_from_half_logsnr(half_logsnr))
        x = to_state(half_logsnr, y, level.alpha)[None]
        keys = jnp.broadcast_to(self.key, (1,))
        at = Point(level, level, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), keys)
        cond = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], self.cond)
        return self.denoiser(x, at, cond, self.denoiser.init(x))[0]


def signal_share(half_logsnr: Any) -> Array:
    """a = sqrt(sigmoid(2 l)), the signal scale of the VP process at this half log-SNR."""
    return jnp.exp(-0.5 * jnp.logaddexp(0.0, -2 * half_logsnr))


def noise_share(half_logsnr: Any) -> Array:
    """s = sqrt(sigmoid(-2 l)), its noise scale."""
    return signal_share(-half_logsnr)


def from_state(half_logsnr: Any, x: Array, alpha: Any) -> Array:
    """y = (a / alpha) x_t."""
    return (signal_share(half_logsnr) / alpha).astype(x.dtype) * x


def to_state(half_logsnr: Any, y: Array, alpha: Any) -> Array:
    """x_t = (alpha / a) y."""
    return (alpha / signal_share(half_logsnr)).astype(y.dtype) * y


def check(key: Array, denoiser: Denoiser, process: Process, x: Array, cond: PyTree, times: Any) -> tuple[float, ...]:
    """Half log-SNR at process times, on the host.

    Raises:
        TypeError: x is not floating point; not a typed key.
        ValueError: a denoiser with memory, or whose pair is not coupled; a condition without the batch axis; times
            outside (0, t_max], or where log-SNR is infinite; whatever the denoiser's own check says of these levels.
    """
    check_key(key)
    if not hasattr(x, "dtype") or not jnp.issubdtype(x.dtype, jnp.floating) or not x.ndim:
        raise TypeError(f"x must be a floating-point array [batch, ...], got {jnp.result_type(x)} of shape "
                        f"{jnp.shape(x)}")  # fmt: skip
    check_cond(cond, x.shape[0])
    if jax.tree.leaves(jax.eval_shape(denoiser.init, x)):
        raise ValueError(
            f"{type(denoiser).__name__} has memory (its init returns arrays), and an adaptive solver also calls it at "
            f"points of rejected steps, which would enter the memory; use a denoiser without memory, or a fixed grid"
        )
    if not denoiser.coupled:
        raise ValueError(
            f"{type(denoiser).__name__} is not coupled: it moves x0 by steps of a grid and may leave eps, which is all "
            f"that a flow reads; use ds.sample on a grid, or declare `coupled = True` where x = alpha x0 + sigma eps"
        )
    for t in times:
        if not 0 < t <= process.t_max:
            raise ValueError(f"t = {t} must lie in (0, {process.t_max}] for {process}")
    half_logsnr = tuple(float(process.half_logsnr(t)) for t in times)
    if not np.isfinite(half_logsnr).all():
        raise ValueError(f"log-SNR is infinite at one of the times {times} of {process}; t_start = {process.t_start}")
    levels = process.level(np.array(times))
    denoiser.check(process, Level(*map(np.asarray, levels)))
    return half_logsnr


def network_calls(solver: Any, steps: Array, ode: bool) -> Array:
    """Denoiser calls of a solve of so many steps, rejected ones included; -1 for a solver that is not explicit."""
    chosen = getattr(solver, "solver", solver)  # HalfSolver makes three steps in one
    each = _calls_a_step(chosen, ode)
    if each is None:
        return jnp.full_like(steps, -1)
    stages, begin = each
    return begin + steps * stages * (3 if chosen is not solver else 1)


def _calls_a_step(solver: Any, ode: bool) -> tuple[int, int] | None:
    """Calls of one step, and calls of a start, where the last stage of a step is the first of the next."""
    tableau = getattr(solver, "tableau", None)
    if isinstance(solver, diffrax.AbstractERK) and isinstance(tableau, diffrax.ButcherTableau):
        fsal = ode and tableau.fsal
        return tableau.num_stages - fsal, int(fsal)
    if isinstance(solver, diffrax.AbstractSRK):
        return len(solver.tableau.b_sol), 0
    return (1, 0) if type(solver) is diffrax.Euler else None
