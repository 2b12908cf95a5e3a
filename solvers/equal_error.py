"""Automatic grids: points where a measured local error of a method is the same in every step.

A method of order p makes the local error C(l) h^(p+1) in a step of length h in half log-SNR l. It is measured at many
levels along an accurate run of the model itself, in units of sqrt(alpha sigma), the same for every scaling of x; then
h ~ C^(-1/(p+1)) makes it equal, as `times.equidistribute` lays out.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample.denoiser import Denoiser, PyTree
from diffsample.grid import Grid
from diffsample.process import Process
from diffsample.sampling import sample
from diffsample.solvers.multistep import dpmpp
from diffsample.solvers.one_step import ddim
from diffsample.solvers.singlestep import dpmpp_singlestep
from diffsample.solvers.tabular import linear
from diffsample.tableau import Tableau, stack
from diffsample.times import custom, equidistribute, uniform_logsnr

SUBSTEPS = 8  # moves of the accurate run in one interval
FLOOR = 1e-4  # of the largest error: where the model is trivial the grid still has points


def measure_local_error(
    key: Array,
    denoiser: Denoiser,
    solver: Callable[[Process, Grid], Tableau],
    grid: Grid,
    shape: tuple[int, ...],
    *,
    moves: int = 1,
    cond: PyTree = None,
) -> np.ndarray:
    """Root mean square error that a method makes over each interval of a grid, started on an accurate run.

    The accurate run is `dpmpp` with 8 moves, and 8 calls, an interval, of the same denoiser. The error is of
    x / sqrt(alpha sigma) at the interval's end.

    Args:
        key: of the initial noise.
        denoiser: without memory; guidance included.
        solver: (process, times) -> Tableau, deterministic: `ddim`, `heun`, `dpmpp_singlestep`, ...
        grid: levels with finite log-SNR, for example `uniform_logsnr(process, 32, zero=False)`.
        shape: (batch, ...); a few samples of an image model, a few hundred of a law of one number.
        moves: of the method in an interval, equal in log-SNR; `dpmpp_singlestep` needs 2 for its second order.
        cond: as for `sample`.

    Returns:
        [grid.steps] float64.

    Raises:
        ValueError: infinite log-SNR in the grid, or a method that draws noise.

    >>> import diffsample as ds
    >>> process = ds.VariancePreserving()
    >>> grid = ds.times.uniform_logsnr(process, 4, zero=False)
    >>> error = measure_local_error(jax.random.key(0), ds.exact.Gaussian(0.0, 1.0), ds.solvers.ddim, grid, (64,))
    >>> (error > 0).all().item()
    True
    """
    process, half_logsnr = grid.process, grid.half_logsnr
    if not np.isfinite(half_logsnr).all():
        raise ValueError(f"the grid needs finite log-SNR at both ends, got t = {grid.t[0]:g} to {grid.t[-1]:g}; pass "
                         f"zero=False, and start before alpha = 0")  # fmt: skip
    ends = zip(grid.t[:-1], grid.t[1:], strict=True)
    pieces = [uniform_logsnr(process, moves, start=high, stop=low, zero=False) for high, low in ends]
    tables = [solver(process, piece) for piece in pieces]
    if any(table.noise != "never" for table in tables):
        raise ValueError(f"{tables[0].about.name} draws noise; measure the error of a deterministic method")
    between = process.t_from_half_logsnr(np.interp(np.arange(SUBSTEPS * grid.steps + 1) / SUBSTEPS,
                                                   np.arange(len(grid)), half_logsnr))  # fmt: skip
    between[::SUBSTEPS] = grid.t
    run = linear(denoiser, dpmpp(process, custom(process, between)))
    last, visited = sample(key, run, shape, cond=cond, record=lambda view: view.x)
    states = jnp.concatenate([visited[::SUBSTEPS], last[None]])

    def one(table: Tableau, x: Array) -> Array:
        return sample(key, linear(denoiser, table), x=x, cond=cond, check=False)

    reached = jax.vmap(one)(jax.tree.map(jnp.asarray, stack(tables)), states[:-1])
    square = np.asarray(jnp.square(reached - states[1:]).mean(axis=tuple(range(1, states.ndim))), np.float64)
    return np.sqrt(square / (grid.alpha[1:] * grid.sigma[1:]))


def equal_error_grid(
    key: Array,
    denoiser: Denoiser,
    process: Process,
    steps: int,
    shape: tuple[int, ...],
    *,
    order: int = 2,
    cond: PyTree = None,
    levels: int = 24,
    start: float | None = None,
    stop: float | None = None,
    zero: bool = True,
) -> Grid:
    """The grid of `steps` moves on which a method of an order makes equal local errors, measured on this denoiser.

    The error is that of `ddim` (order=1) or two-stage `dpmpp_singlestep` (order=2, also for `dpmpp` and `unipc`) over
    each of `levels` intervals of equal length in log-SNR; the grid follows by `times.equidistribute`. Some 10 calls a
    level, once a model, which serve every number of steps through `measure_local_error`.

    Args:
        key, denoiser, shape, cond: as for `measure_local_error`.
        process: the noising process.
        steps: number of moves.
        order: 1 or 2, that of the method that will use the grid.
        levels: intervals in which the error is measured.
        start, stop, zero: as for the builders in `diffsample.times`.

    Raises:
        ValueError: another order; an error that is zero everywhere, where any grid will do.

    Reference: equidistribution, de Boor 1973; for diffusion, the question of Sabour et al. 2024, arXiv 2404.14507.

    >>> import diffsample as ds
    >>> law = ds.exact.Mixture([0.5, 0.5], [-1.0, 1.0], 0.1)
    >>> equal_error_grid(jax.random.key(0), law, ds.VariancePreserving(), 6, (64,), levels=8).steps
    6
    """
    if order not in (1, 2):
        raise ValueError(f"order={order} must be 1 or 2; for others, pass measure_local_error to times.equidistribute")
    coarse = uniform_logsnr(process, levels, start=start, stop=stop, zero=False)
    solver = ddim if order == 1 else dpmpp_singlestep
    error = measure_local_error(key, denoiser, solver, coarse, shape, moves=order, cond=cond)
    if not (np.isfinite(error).all() and error.max() > 0):
        raise ValueError(f"the local errors are {error}: there is nothing to equidistribute")
    middles = 0.5 * (coarse.half_logsnr[1:] + coarse.half_logsnr[:-1])
    density = np.maximum(error, FLOOR * error.max()) ** (1 / (order + 1))
    found = partial(np.interp, xp=middles, fp=density)
    return equidistribute(process, steps, found, start=coarse.t[0], stop=coarse.t[-1], zero=zero)
