"""Pseudo numerical methods: Adams-Bashforth on eps with a start of several calls, every move a DDIM transfer."""

from collections.abc import Sequence

from diffsample.grid import Grid, as_grid
from diffsample.process import Level, Process
from diffsample.program import Program, Vector
from diffsample.solvers.exponential import combine
from diffsample.solvers.moves import rescaled_noise
from diffsample.solvers.multistep import ADAMS, backward_differences
from diffsample.solvers.runge_kutta import heun_step
from diffsample.tableau import Tableau

WARM_UP = 3  # pseudo Runge-Kutta steps that give Adams-Bashforth 4 its history


def fpndm(process: Process, times: Grid | Sequence[float]) -> Tableau:
    """F-PNDM: three pseudo Runge-Kutta steps of four calls, then Adams-Bashforth 4 on eps; N + 9 calls.

    x_t / alpha_t = x_s / alpha_s + (sigma_t / alpha_t - sigma_s / alpha_s) e, with e a combination of eps. A pseudo
    step has the weights 1 2 2 1 of RK4, its middle at the mean of the two times; only its first output is remembered.
    Order 2 on general grids and processes, for the coefficients are those of uniform steps in sigma / alpha. Exact
    where eps is constant along the path. A pseudo step into sigma = 0 is one DDIM step.

    Args:
        process, times: as for `ddim`, but alpha > 0 at the start.

    Raises:
        ValueError: a start at alpha = 0.

    Reference: Liu et al. 2022, arXiv 2202.09778, algorithm 2 and eq. 13.

    >>> import diffsample as ds
    >>> process = ds.VariancePreserving()
    >>> ds.solvers.fpndm(process, ds.times.uniform(process, 10)).calls
    19
    """
    grid = as_grid(process, times)
    program, outputs = Program(grid, registers=2), []
    for i, (s, t) in enumerate(program.moves()):
        if i < WARM_UP and not t.sigma:
            program[0] = program.call(s, t, x0=t.alpha)
        elif i < WARM_UP:
            outputs.insert(0, _pseudo_step(program, s, t))
        else:
            _adams(program, s, t, outputs, order=4)
    return program.tableau("fpndm", order=2)


def spndm(process: Process, times: Grid | Sequence[float], *, order: int = 2) -> Tableau:
    """S-PNDM: one Heun step, then Adams-Bashforth on eps of orders 2, 3, ... up to `order`; N + 1 calls.

    Moves as in `fpndm`. order=2 is S-PNDM; order=4 is the PLMS of Stable Diffusion and diffusers (PNDMScheduler with
    skip_prk_steps), which asks the network twice at the second time. Order 2 on general grids and processes at any
    `order`. Exact where eps is constant along the path. A first step into sigma = 0 is one DDIM step.

    Args:
        process, times: as for `fpndm`.
        order: highest order of Adams-Bashforth, 2 to 4.

    Raises:
        ValueError: another order; a start at alpha = 0.

    Reference: Liu et al. 2022, arXiv 2202.09778, section 3 (S-PNDM).

    >>> import diffsample as ds
    >>> process = ds.VariancePreserving()
    >>> ds.solvers.spndm(process, ds.times.uniform(process, 10)).calls
    11
    """
    if order not in (2, 3, 4):
        raise ValueError(f"spndm has orders 2 to 4, got order={order!r}")
    program, outputs = Program(as_grid(process, times), registers=2), []
    for s, t in program.moves():
        if outputs:
            _adams(program, s, t, outputs, order)
        else:
            outputs.append(heun_step(program, s, t))
    return program.tableau("spndm", order=2)


def _adams(program: Program, s: Level, t: Level, outputs: list[Vector], order: int) -> None:
    """One Adams-Bashforth step; its output goes in front of the outputs."""
    outputs.insert(0, program.call(s, t, eps=1.0))
    del outputs[order:]
    _transfer(program, 0, s, t, combine(backward_differences(ADAMS[: len(outputs)]), outputs))


def _pseudo_step(program: Program, s: Level, t: Level) -> Vector:
    """One pseudo Runge-Kutta step of order 4; returns its first output."""
    middle = Level(*map(float, program.grid.process.level((s.t + t.t) / 2)))
    outputs = [program.call(s, t, eps=1.0)]
    for stage, at in enumerate((middle, middle, t), 1):
        _transfer(program, 1, s, at, outputs[-1])
        outputs.append(program.call(at, t, eps=1.0, register=1, stage=stage))
    _transfer(program, 0, s, t, combine((1 / 6, 1 / 3, 1 / 3, 1 / 6), outputs))
    return outputs[0]


def _transfer(program: Program, into: int, s: Level, t: Level, eps: Vector) -> None:
    """The DDIM move of register 0 along a given eps, put into a register."""
    step = t.alpha * (rescaled_noise(t) - rescaled_noise(s))
    program[into] = (t.alpha / s.alpha) * program[0] + step * eps
