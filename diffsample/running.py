"""What a sampler is worth in numbers, measured by running it in 64-bit floats: for what is not a table of numbers.

A sampler is given as a function (denoiser, grid) that builds it. What is no `Sampler`, such as an adaptive solve, is
built as a function (key, x) -> states at the end of the grid.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.betas import DiscreteBetas
from diffsample.denoiser import Denoiser, Network, Point, Prediction, PyTree, expand
from diffsample.exact import Gaussian, Mixture
from diffsample.grid import Grid
from diffsample.orders import (
    FROM_NOISE,
    HIGH,
    LOW,
    MEANS,
    SPREADS,
    WEIGHTS,
    Flow,
    Polynomial,
    flow_order,
    polynomial_degrees,
    slope,
    time_of,
)
from diffsample.process import Process
from diffsample.sampler import Sampler
from diffsample.sampling import sample
from diffsample.struct import pytree
from diffsample.times import uniform_logsnr

Build: TypeAlias = Callable[[Denoiser, Grid], Sampler | Callable[[Array, Array], Array]]

KEY = jax.random.key
MIXTURE = Mixture(WEIGHTS, MEANS, SPREADS**2)
LAW = Gaussian(0.5, 0.25)
WIDE = Mixture([0.5, 0.5], [-1.0, 1.0], 0.5)  # whose paths do not turn from mode to mode
ON_FLOW = FROM_NOISE._replace(steps=(32, 64, 128))
FINE = 1e-13  # errors on the flow below are not read
ON_PATH = (64, 128, 256, 512)  # moves; neighbours are compared
IN_LAW, NUMBERS = (16, 32), (512, 2048)  # moves; samples and numbers of each


class Order(NamedTuple):
    """A measured order."""

    value: float
    spread: float = 0.0  # standard error; 0 where nothing is drawn
    of: str = ""  # "in law", "along one path", or neither


Measure: TypeAlias = Callable[[Build, Process], Order]


def run(build: Build, denoiser: Denoiser, grid: Grid, x: Any, seed: int = 0) -> Array:
    """The states that a built sampler reaches from x."""
    built = build(denoiser, grid)
    return built(KEY(seed), x) if callable(built) else sample(KEY(seed), built, x=x, check=False)


def order_on_flow(build: Build, process: Process, flow: Flow = ON_FLOW) -> Order:
    """Slope of the error on the mixture's probability flow, as `measured_order` of a table; for what draws nothing."""

    def end(grid: Grid, x: np.ndarray) -> np.ndarray:
        return np.asarray(run(build, MIXTURE, grid, jnp.asarray(x)[None]))[0]

    return Order(flow_order(end, process, flow, rounding=FINE))


def order_along_path(build: Build, process: Process) -> Order:
    """Slope of the distance between runs of n and 2 n moves with one key: for draws that are of one Brownian path."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((32, 8)))

    def end(steps: int) -> np.ndarray:
        grid = between(process, steps)
        return np.asarray(run(build, WIDE, grid, float(np.hypot(grid.alpha[0], grid.sigma[0])) * x)) / grid.alpha[-1]

    ends = [end(steps) for steps in ON_PATH]
    apart = np.diff(ends, axis=0) ** 2

    def of(rows: np.ndarray) -> float:
        return slope(lambda n: float(np.sqrt(rows[ON_PATH.index(n)].mean())), ON_PATH[:-1])

    groups = np.array([of(apart[:, i::8]) for i in range(8)])
    return Order(of(apart), float(groups.std(ddof=1) / np.sqrt(8)), "along one path")


def order_in_law(build: Build, process: Process) -> Order:
    """Slope of the error of the variance on Gaussian data, from a million draws: rough, as its standard error says."""
    grids = [between(process, steps) for steps in IN_LAW]
    errors = [abs(gaussian_errors(on_gaussian(build, grid, NUMBERS), grid)[1]) for grid in grids]
    relative = np.sqrt(2 / np.prod(NUMBERS)) / np.array(errors)
    return Order(float(np.log2(errors[0] / errors[1])), float(np.hypot(*relative) / np.log(2)), "in law")


def gaussian_errors(out: np.ndarray, grid: Grid) -> tuple[float, float]:
    """Error of mean (in standard deviations) and variance (relative) of what `on_gaussian` gave for N(1/2, 1/4)."""
    mean, std = grid.alpha[-1] * 0.5, np.hypot(grid.alpha[-1] * 0.5, grid.sigma[-1])
    return float((out.mean() - mean) / std), float(out.var() / std**2 - 1)


def on_gaussian(
    build: Build, grid: Grid, shape: tuple[int, int], law: Gaussian = LAW, seed: int = 0, first: int | None = None
) -> np.ndarray:
    """Where a sampler of Gaussian data ends, from states that have the moments of N(1/2, 1/4) exactly.

    Of all samples, or of the first so many alone.
    """
    z = np.random.default_rng(0).standard_normal(shape)
    start = grid.alpha[0] * 0.5 + np.hypot(grid.alpha[0] * 0.5, grid.sigma[0]) * (z - z.mean()) / z.std()
    return np.asarray(run(build, law, grid, jnp.asarray(start[:first]), seed))


def sampler_degrees(build: Build, process: Process) -> tuple[int, int, int]:
    """`exact_degrees` of a sampler that draws nothing."""

    def end(grid: Grid, given: Polynomial) -> float:
        denoiser = OfLevel(*map(jnp.asarray, (given.degree, given.gives_eps, given.place is np.log)))
        return float(run(build, denoiser, grid, jnp.zeros((1, 2)))[0, 0])

    return polynomial_degrees(end, process)


def gradient_gap(build: Build, grid: Grid) -> float:
    """Relative error of JAX's gradient by the weight of eps = tanh(weight x) against finite differences."""
    x = grid.sigma[0] * jnp.linspace(-1.0, 1.0, 6).reshape(3, 2)

    @jax.value_and_grad
    def loss(weight: Any) -> Array:
        return (run(build, Network(_tanh, weight, predicts="noise"), grid, x) ** 2).sum()

    (_, slope), (above, _), (below, _) = (loss(jnp.asarray(0.8 + h)) for h in (0.0, 1e-5, -1e-5))
    return abs(float(slope / ((above - below) / 2e-5)) - 1)


def count_calls(build: Build, grid: Grid) -> int:
    """Network calls that one sample makes, counted while it runs."""
    count: list[int] = []

    def apply(params: None, x: Array, t: Array, cond: None) -> Array:
        jax.debug.callback(lambda: count.append(1))
        return 0.5 * x

    x = float(grid.sigma[0]) * jnp.linspace(-1.0, 1.0, 4)[None]
    jax.block_until_ready(run(build, Network(apply, predicts="noise"), grid, x))
    jax.effects_barrier()
    return len(count)


def returns_its_dtype(build: Build, grid: Grid) -> bool:
    """Whether states in float32 and in bfloat16 come out as they went in; traces only."""
    for dtype in (jnp.float32, jnp.bfloat16):
        x = jax.ShapeDtypeStruct((2, 3), dtype)
        network = Network(_tanh, jnp.float32(0.8), predicts="noise")
        if jax.eval_shape(lambda x, network=network: run(build, network, grid, x), x).dtype != dtype:
            return False
    return True


def between(process: Process, steps: int, zero: bool = False) -> Grid:
    """Grid of so many moves from sigma / alpha = 10, uniform in log-SNR; at the times of the table, if there is one."""
    grid = uniform_logsnr(process, steps, start=time_of(process, HIGH), stop=time_of(process, LOW), zero=zero)
    if not isinstance(process, DiscreteBetas):
        return grid
    total = len(process.betas)
    return Grid(process, np.rint(grid.t * total) / total)


@pytree
class OfLevel(Denoiser):
    """A prediction that is a power of the level's log(sigma / alpha), or of sigma / alpha, whatever x is."""

    degree: Any
    gives_eps: Any
    in_log: Any

    def __call__(self, x: Array, at: Point, cond: PyTree, state: PyTree) -> tuple[Prediction, PyTree]:
        alpha, sigma = expand(at.now.alpha, x), expand(at.now.sigma, x)
        place = jnp.where(self.in_log, jnp.log(sigma / alpha), sigma / alpha)
        value = jnp.broadcast_to(place**self.degree, x.shape)
        x0 = jnp.where(self.gives_eps, (x - sigma * value) / alpha, value)
        return Prediction(x0, (x - alpha * x0) / sigma), state


def _tanh(weight: Array, x: Array, t: Array, cond: None) -> Array:
    return jnp.tanh(weight.astype(x.dtype) * x)
