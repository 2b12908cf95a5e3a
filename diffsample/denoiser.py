"""Denoisers: what a sampler calls, and `Network`, the leaf that wraps a trained model.

A noisy state is x_t = alpha x0 + sigma eps. A denoiser maps (x_t, where in the program, condition, memory) to a
prediction of the pair (x0, eps) and its new memory. Guidance rules, inverse-problem rules and products of experts are
denoisers built from denoisers, so they work under every sampler.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.process import Level, Process
from diffsample.struct import pytree, static

PyTree: TypeAlias = Any


class Point(NamedTuple):
    """Where in the sampling program a network call is made."""

    now: Level  # the level of x; fields are scalars, or [B] where samples differ
    next: Level  # the level that the current step leads to
    index: Array  # int32, scalar or [B] where samples differ: number of the step, from 0
    stage: Array  # int32, likewise: number of the call inside the step; memory is committed at stage 0
    keys: Array  # [B] typed keys, one a sample, fresh at every call


class Prediction(NamedTuple):
    """A denoiser's answer; x_t = alpha x0 + sigma eps unless a rule decouples the two on purpose."""

    x0: Array  # [B, ...] predicted clean sample
    eps: Array  # [B, ...] predicted unit noise


@runtime_checkable
class Denoiser(Protocol):
    """Anything that predicts (x0, eps) at a point. The defaults are those of a stateless denoiser of one evaluation."""

    @property
    def evaluations(self) -> int:
        """Network evaluations a call (classifier-free guidance: 2)."""
        return 1

    @property
    def vjps(self) -> int:
        """Vector-Jacobian products of network evaluations a call; each costs about two evaluations."""
        return 0

    @property
    def coupled(self) -> bool:
        """Whether x = alpha x0 + sigma eps always holds; if not, the sampler's state follows the pair."""
        return False

    def check(self, process: Process | None, levels: Level) -> None:
        """Raise ValueError where it cannot serve this process or these concrete levels; called before running."""

    def init(self, x: Array) -> PyTree:
        """Memory before the first call, for states shaped like x; every leaf with the batch axis first."""
        return ()

    def __call__(self, x: Array, at: Point, cond: PyTree, state: PyTree) -> tuple[Prediction, PyTree]: ...


def expand(scale: Any, x: Array) -> Array:
    """A scalar or [B] coefficient in x's dtype, shaped to broadcast against x [B, ...]."""
    scale = jnp.asarray(scale, x.dtype)
    return scale.reshape(scale.shape + (1,) * (x.ndim - scale.ndim)) if scale.ndim else scale


def eps_from_x0(x: Array, x0: Array, level: Level) -> Array:
    """eps = (x - alpha x0) / sigma."""
    return (x - expand(level.alpha, x) * x0) / expand(level.sigma, x)


def x0_from_eps(x: Array, eps: Array, level: Level) -> Array:
    """x0 = (x - sigma eps) / alpha."""
    return (x - expand(level.sigma, x) * eps) / expand(level.alpha, x)


def from_noise(x: Array, out: Array, level: Level) -> Prediction:
    """The output is eps."""
    return Prediction(x0_from_eps(x, out, level), out)


def from_data(x: Array, out: Array, level: Level) -> Prediction:
    """The output is x0."""
    return Prediction(out, eps_from_x0(x, out, level))


def from_v(x: Array, out: Array, level: Level) -> Prediction:
    """The output is v = alpha eps - sigma x0 (Salimans & Ho 2022, arXiv 2202.00512), on any process."""
    alpha, sigma = expand(level.alpha, x), expand(level.sigma, x)
    norm = alpha**2 + sigma**2
    return Prediction((alpha * x - sigma * out) / norm, (sigma * x + alpha * out) / norm)


def from_velocity(x: Array, out: Array, level: Level) -> Prediction:
    """The output is the flow velocity u = eps - x0 (Lipman et al. 2023, arXiv 2210.02747), on any process."""
    alpha, sigma = expand(level.alpha, x), expand(level.sigma, x)
    return Prediction((x - sigma * out) / (alpha + sigma), (x + alpha * out) / (alpha + sigma))


def from_score(x: Array, out: Array, level: Level) -> Prediction:
    """The output is the score, the gradient of log p_t(x) = -eps / sigma."""
    return from_noise(x, -expand(level.sigma, x) * out, level)


KINDS: dict[str, Callable[[Array, Array, Level], Prediction]] = {
    "noise": from_noise,
    "data": from_data,
    "v": from_v,
    "velocity": from_velocity,
    "score": from_score,
    "edm": from_data,  # after preconditioning
}


def process_time(level: Level) -> Array:
    """The network's time is the process's own t."""
    return level.t


def noise_scale(level: Level) -> Array:
    """The network's time is sigma / alpha."""
    return level.sigma / level.alpha


def quarter_log_noise(level: Level) -> Array:
    """The network's time is ln(sigma / alpha) / 4 (Karras et al. 2022, arXiv 2206.00364, table 1)."""
    return 0.25 * jnp.log(level.sigma / level.alpha)


@dataclasses.dataclass(frozen=True)
class TableIndex:
    """The network's time is the index of a table of n levels: n t - 1, so that t = 1 is index n - 1."""

    n: int = 1000

    def __call__(self, level: Level) -> Array:
        return self.n * level.t - 1.0


@pytree
class Network(Denoiser):
    """A trained network as a denoiser: the leaf of every composition.

    `apply(params, x, time, cond)` takes x [B, ...] and time [B] float32 or better, and returns an array of x's shape.
    Whatever the network computes in, the prediction comes back in the sampler's dtype.

    Args:
        apply: hashable function; a lambda made anew each time would compile anew each time.
        params: pytree of weights, leaves of every compiled program, never constants in it.
        predicts: "noise", "data", "v", "velocity", "score" or "edm". "edm" is a raw network inside the
            preconditioning of Karras et al. 2022 (arXiv 2206.00364, table 1), in coordinates x / alpha.
        time: the network's time from a `Level`: `process_time`, `noise_scale`, `quarter_log_noise` (default of
            "edm"), `TableIndex(n)`, or any function.
        process: the process it was trained on; sampling on another then raises (`AnyProcess` converts). None: any.
        sigma_data: standard deviation of the data, for "edm" only.
        dtype: dtype that x is cast to for the network, for example `jnp.bfloat16`; None leaves it.

    Raises:
        ValueError: unknown `predicts`; at trace time, an output of the wrong shape or dtype.

    >>> import jax, diffsample as ds
    >>> network = ds.Network(lambda p, x, t, cond: p * x, 0.5, predicts="data")
    >>> sampler = ds.solvers.linear(network, ds.solvers.ddim(ds.VarianceExploding(), [10.0, 1.0, 0.0]))
    >>> ds.sample(jax.random.key(0), sampler, (4, 2)).shape
    (4, 2)
    """

    apply: Callable[..., Array] = static()
    params: PyTree = ()
    predicts: str = static(default="noise")
    time: Callable[[Level], Array] | None = static(default=None)
    process: Process | None = static(default=None)
    sigma_data: Any = 0.5
    dtype: Any = static(default=None)

    def __post_init__(self) -> None:
        if self.predicts not in KINDS:
            raise ValueError(f"predicts={self.predicts!r} is not a prediction kind; use one of {sorted(KINDS)}")
        if not callable(self.apply):
            raise TypeError(f"apply must be a function (params, x, time, cond) -> array, got {self.apply!r}")
        if not (self.time is None or callable(self.time)):
            raise TypeError(f"time must be a function of the Level, such as ds.denoiser.noise_scale; got {self.time!r}")

    @property
    def coupled(self) -> bool:
        return True

    def check(self, process: Process | None, levels: Level) -> None:
        if self.process is not None and process is not None and process != self.process:
            raise ValueError(
                f"the network was trained on {self.process}, the sampler runs on {process}: build the grid on the "
                f"network's process, or wrap it as AnyProcess(network) to convert by log-SNR"
            )
        if self.predicts in ("noise", "score", "edm") and np.any(np.asarray(levels.alpha) == 0):
            raise ValueError(
                f"a network that predicts {self.predicts!r} says nothing of x0 at alpha = 0 (t = "
                f"{np.asarray(levels.t)[np.asarray(levels.alpha) == 0][0]:g}): start the grid later, or use a "
                f"'v', 'velocity' or 'data' network"
            )

    def __call__(self, x: Array, at: Point, cond: PyTree, state: PyTree) -> tuple[Prediction, PyTree]:
        level = at.now
        if self.predicts == "edm":
            return self._preconditioned(x, level, cond), state
        out = self._call(x, (self.time or process_time)(level), cond)
        return KINDS[self.predicts](x, out, level), state

    def _preconditioned(self, x: Array, level: Level, cond: PyTree) -> Prediction:
        rho, data = expand(level.sigma, x) / expand(level.alpha, x), jnp.asarray(self.sigma_data, x.dtype)
        total, scaled = rho**2 + data**2, x / expand(level.alpha, x)
        out = self._call(scaled * jax.lax.rsqrt(total), (self.time or quarter_log_noise)(level), cond)
        x0 = data**2 / total * scaled + rho * data * jax.lax.rsqrt(total) * out
        # (x - alpha x0) / sigma without the difference of nearly equal numbers at small sigma
        eps = rho / total * scaled - data * jax.lax.rsqrt(total) * out
        return Prediction(x0, eps)

    def _call(self, x: Array, time: Any, cond: PyTree) -> Array:
        time = jnp.broadcast_to(jnp.asarray(time, jnp.promote_types(x.dtype, jnp.float32)), x.shape[:1])
        out = self.apply(self.params, x if self.dtype is None else x.astype(self.dtype), time, cond)
        if not hasattr(out, "shape"):
            raise TypeError(
                f"the network returned a {type(out).__name__}; apply must return one array of x's shape: take it out "
                f"there, for example lambda params, x, time, cond: model(...)[0]"
            )
        shape, dtype = jnp.shape(out), jnp.result_type(out)
        if shape != x.shape:
            raise ValueError(
                f"the network returned shape {shape} for x of shape {x.shape}; a sampler needs the shape of x "
                f"(a network that also predicts a variance: keep only the mean in apply)"
            )
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"the network returned dtype {dtype}; a prediction must be floating point")
        return out.astype(x.dtype)


@pytree
class AnyProcess(Denoiser):
    """A network of one process under a sampler of any other, by equal log-SNR.

    x_t of the sampler's process, divided by its alpha and multiplied by the network's at the same sigma / alpha, has
    exactly the law that the network was trained on; (x0, eps) are the same in both.
    """

    network: Network

    @property
    def evaluations(self) -> int:
        return self.network.evaluations

    @property
    def coupled(self) -> bool:
        return True

    def _trained(self) -> Process:
        trained = getattr(self.network, "process", None)
        if trained is None:
            raise ValueError(
                f"AnyProcess needs a network that names its own process, Network(..., process=...), got a "
                f"{type(self.network).__name__}; rules go around it, as in cfg(AnyProcess(network), ...)"
            )
        return trained

    def check(self, process: Process | None, levels: Level) -> None:
        trained = self._trained()
        with np.errstate(divide="ignore"):
            half_logsnr = np.log(np.asarray(levels.alpha)) - np.log(np.asarray(levels.sigma))
        lowest = float(trained.half_logsnr(trained.t_max))
        if half_logsnr.min() < lowest - 1e-6:
            raise ValueError(
                f"the grid reaches half log-SNR {half_logsnr.min():.4g}, noisier than {lowest:.4g}, the end of "
                f"{trained}: start the grid later"
            )

    def __call__(self, x: Array, at: Point, cond: PyTree, state: PyTree) -> tuple[Prediction, PyTree]:
        trained = self._trained()
        half_logsnr = jnp.log(jnp.asarray(at.now.alpha)) - jnp.log(jnp.asarray(at.now.sigma))
        now = trained.level(trained.t_from_half_logsnr(half_logsnr))
        scale = expand(now.alpha, x) / expand(at.now.alpha, x)
        return self.network(x * scale, at._replace(now=now), cond, state)
