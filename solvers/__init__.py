"""Solvers: functions (process, times, ...) -> Tableau, transforms of tables, and the sampler that runs them."""

if __name__ != "diffsample.solvers":
    raise ImportError("import diffsample.solvers, not solvers")

from typing import TYPE_CHECKING, Any

from diffsample.solvers.brownian import BrownianPath, brownian_path
from diffsample.solvers.decisions import (
    Decisions,
    Derivative,
    Relaxation,
    multistep_decisions,
    singlestep_decisions,
)
from diffsample.solvers.deis import deis_log_rho, deis_rho, deis_t
from diffsample.solvers.equal_error import equal_error_grid, measure_local_error
from diffsample.solvers.importing import Scheduler, from_diffusers
from diffsample.solvers.langevin import (
    PredictorCorrector,
    annealed_langevin,
    batch_mean_ratio,
    per_sample_ratio,
    predictor_corrector,
)
from diffsample.solvers.model_statistics import ModelStatistics
from diffsample.solvers.momentum import ghvb, heavy_ball
from diffsample.solvers.multistep import dpm_multistep, dpmpp, exp_multistep, ipndm, lms, plms
from diffsample.solvers.one_step import consistency_multistep, ddim, ddpm, euler, euler_ancestral
from diffsample.solvers.pndm import fpndm, spndm
from diffsample.solvers.released import from_published
from diffsample.solvers.restarting import restart
from diffsample.solvers.runge_kutta import dpm2, flow_heun, heun, kutta3, rk4
from diffsample.solvers.scheduled import usf
from diffsample.solvers.score_sde import ald, ancestral_sampling, euler_maruyama, reverse_diffusion
from diffsample.solvers.shift_variants import (
    ShiftedQuery,
    TargetShift,
    shifted_adm_code,
    shifted_deis_code,
    shifted_dpm_code,
    shifted_pnm_code,
)
from diffsample.solvers.singlestep import dpm_singlestep, dpmpp_2s_ancestral, dpmpp_singlestep, singlestep_orders
from diffsample.solvers.singlestep_sde import dpmpp_sde, seeds2
from diffsample.solvers.speculating import Effort, Speculative, speculative
from diffsample.solvers.stochastic import sa_solver, sde_dpmpp
from diffsample.solvers.tabular import Linear, linear
from diffsample.solvers.time_shift import TimeShift, shifted, shifted_exponential
from diffsample.solvers.travelling import time_travel
from diffsample.solvers.unified import unipc

if TYPE_CHECKING:
    from diffsample.solvers.adaptive import Path, Solved, solve_ode, solve_sde
    from diffsample.solvers.learning import Learned, learn, reference_loss, stretched

__all__ = [
    "BrownianPath",
    "Decisions",
    "Derivative",
    "Effort",
    "Learned",
    "Linear",
    "ModelStatistics",
    "Path",
    "PredictorCorrector",
    "Relaxation",
    "Scheduler",
    "ShiftedQuery",
    "Solved",
    "Speculative",
    "TargetShift",
    "TimeShift",
    "ald",
    "ancestral_sampling",
    "annealed_langevin",
    "batch_mean_ratio",
    "brownian_path",
    "consistency_multistep",
    "ddim",
    "ddpm",
    "deis_log_rho",
    "deis_rho",
    "deis_t",
    "dpm2",
    "dpm_multistep",
    "dpm_singlestep",
    "dpmpp",
    "dpmpp_2s_ancestral",
    "dpmpp_sde",
    "dpmpp_singlestep",
    "equal_error_grid",
    "euler",
    "euler_ancestral",
    "euler_maruyama",
    "exp_multistep",
    "flow_heun",
    "fpndm",
    "from_diffusers",
    "from_published",
    "ghvb",
    "heavy_ball",
    "heun",
    "ipndm",
    "kutta3",
    "learn",
    "linear",
    "lms",
    "measure_local_error",
    "multistep_decisions",
    "per_sample_ratio",
    "plms",
    "predictor_corrector",
    "reference_loss",
    "restart",
    "reverse_diffusion",
    "rk4",
    "sa_solver",
    "sde_dpmpp",
    "seeds2",
    "shifted",
    "shifted_adm_code",
    "shifted_deis_code",
    "shifted_dpm_code",
    "shifted_exponential",
    "shifted_pnm_code",
    "singlestep_decisions",
    "singlestep_orders",
    "solve_ode",
    "solve_sde",
    "speculative",
    "spndm",
    "stretched",
    "time_travel",
    "unipc",
    "usf",
]


def __getattr__(name: str) -> Any:
    """The adaptive solvers and learning at first use, because diffrax and optax take much of the import time."""
    if name in ("Path", "Solved", "solve_ode", "solve_sde"):
        from diffsample.solvers import adaptive

        return getattr(adaptive, name)
    if name in ("Learned", "learn", "reference_loss", "stretched"):
        from diffsample.solvers import learning

        return getattr(learning, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
