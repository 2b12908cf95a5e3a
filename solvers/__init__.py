"""Solvers: functions (process, times, ...) -> Tableau, transforms of tables, and the sampler that runs them."""

if __name__ != "diffsample.solvers":
    raise ImportError("import diffsample.solvers, not solvers")

from diffsample.solvers.momentum import ghvb, heavy_ball
from diffsample.solvers.multistep import dpmpp, plms
from diffsample.solvers.one_step import ddim, ddpm, euler
from diffsample.solvers.runge_kutta import heun
from diffsample.solvers.tabular import Linear, linear

__all__ = ["Linear", "ddim", "ddpm", "dpmpp", "euler", "ghvb", "heavy_ball", "heun", "linear", "plms"]
