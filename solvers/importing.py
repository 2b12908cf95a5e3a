"""The schedulers of diffusers as a process, a grid and a tableau, read from their `scheduler_config.json`.

What is reproduced: the levels at which the network is called and the update between the calls, in float64 where
diffusers computes in float32. Not reproduced: levels between two indices are handed to the network as they are, where
diffusers rounds or interpolates the index; and the start is x_T ~ N(0, alpha^2 + sigma^2) by `sample`, where
diffusers' Euler, Heun and LMS may start wider. Whatever else cannot be reproduced is refused, by key and value.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import inf
from typing import Any, NamedTuple

import numpy as np

from diffsample import times
from diffsample.betas import DiscreteBetas
from diffsample.grid import Grid, as_grid
from diffsample.process import FlowMatching, Level, Process, VarianceExploding
from diffsample.solvers.diffusers_levels import (
    Config,
    Spacing,
    betas_of,
    flow_grid,
    flow_sigmas_grid,
    indices,
    noise_grid,
    only,
    shift_of,
    strided,
    unipc_flow_grid,
)
from diffsample.solvers.exponential import (
    DATA,
    NOISE,
    Form,
    Weigh,
    bh1_scale,
    corrected,
    exact,
    explicit,
    midpoint,
    places,
    shares,
)
from diffsample.solvers.multistep import lms, published
from diffsample.solvers.one_step import consistency_multistep, ddim, ddpm, euler, euler_ancestral
from diffsample.solvers.pndm import spndm
from diffsample.solvers.runge_kutta import heun
from diffsample.solvers.stochastic import sde_dpmpp
from diffsample.tableau import Tableau

PREDICTS = {"epsilon": "noise", "sample": "data", "v_prediction": "v"}
FLOW_PREDICTS = {"flow_prediction": "velocity", "epsilon": "noise", "sample": "data"}
FEW_STEPS = 15  # below it diffusers' lower_order_final lowers the orders of the last two steps


class Scheduler(NamedTuple):
    """A diffusers scheduler in this library's terms: `linear(denoiser, s.tableau(s.process, s.grid(20)))`."""

    process: Process
    grid: Callable[[int], Grid]  # of a number of steps
    tableau: Callable[[Process, Grid], Tableau]
    predicts: str  # for `Network`; its "edm" wants the configuration's sigma_data


def from_diffusers(
    config: Config, *, mu: float | None = None, image_seq_len: int | None = None, sigmas: Spacing | None = None
) -> Scheduler:
    """A scheduler from the contents of a `scheduler_config.json`: its process, its grids and its method.

    DDIM (eta = 0; for another eta take `ddim` in place of the tableau), DDPM, PNDM with skip_prk_steps, EulerDiscrete,
    EulerAncestralDiscrete, HeunDiscrete, LMSDiscrete, DPMSolverMultistep, UniPCMultistep, DEISMultistep, EDMEuler,
    EDMDPMSolverMultistep, FlowMatchEulerDiscrete; with Karras, exponential, Lu, beta and flow sigmas where the class
    has them. Absent keys have the defaults of diffusers; keys that a class does not have are ignored if another class
    has them, as diffusers does.

    Args:
        config: the JSON object, `_class_name` included.
        mu: with use_dynamic_shifting (FLUX and its like), the exponent of the shift; or else
        image_seq_len: number of image tokens, from which mu follows by the configuration's base_shift and max_shift.
        sigmas: for flow levels, a function of the number of steps that gives the levels before any shift, where a
            pipeline passes its own: FLUX and SD3.5 `lambda n: np.linspace(1, 1 / n, n)`. None: the scheduler's.

    Raises:
        TypeError: a path in place of the object.
        ValueError: dynamic shifting without a size, or a size without it; an unknown class or key, or a value that
            cannot be reproduced; `grid` raises it where that depends on the number of steps.

    Reference: diffusers 0.42 (software), the files scheduling_*.py.

    >>> found = from_diffusers({"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "v_prediction"})
    >>> found.predicts, found.grid(4).t.tolist()
    ('v', [1.0, 0.75, 0.501, 0.251, 0.0])
    """
    if not isinstance(config, Mapping):
        raise TypeError(f"config must be the JSON object of the file, json.load(open(path)); got {config!r}")
    name = config.get("_class_name")
    if name not in CLASSES:
        raise ValueError(f"_class_name={name!r} cannot be imported; use one of {sorted(CLASSES)}")
    build, defaults = CLASSES[name]
    for key in config:
        if not key.startswith("_") and key not in KNOWN:
            raise ValueError(f"{key}={config[key]!r} is not a key that this importer knows; remove it if it is unused")
    full = {**defaults, **{key: value for key, value in config.items() if key in defaults}}
    for key, allowed in ONLY.items():
        if key in full:
            only(full, key, *allowed)
    if sigmas is not None and not (name.startswith("Flow") or (full.get("use_flow_sigmas") and "solver_p" in full)):
        raise ValueError(f"sigmas are levels of flow matching, which {name} with this configuration does not have")
    return build({**full, "dynamic_shift": shift_of({**config, **full}, mu, image_seq_len), "sigmas": sigmas})


def _predicts(config: Config) -> str:
    only(config, "prediction_type", *PREDICTS)
    return PREDICTS[config["prediction_type"]]


def _ddim(config: Config) -> Scheduler:
    process = betas_of(config)
    only(config, "timestep_spacing", "leading", "trailing", why=", for diffusers steps by the wrong stride")
    if config["rescale_betas_zero_snr"]:
        only(config, "prediction_type", "v_prediction", "sample", why=" with rescale_betas_zero_snr=True")
    return Scheduler(process, partial(strided, process, config), ddim, _predicts(config))


def _pndm(config: Config) -> Scheduler:
    process = betas_of(config)
    only(config, "timestep_spacing", "leading", "trailing", why=", for diffusers steps by the wrong stride")
    return Scheduler(process, partial(strided, process, config), partial(spndm, order=4), _predicts(config))


def _ddpm(config: Config) -> Scheduler:
    process, large = betas_of(config), config["variance_type"] == "fixed_large"

    def grid(steps: int) -> Grid:
        index = np.round(indices(config, steps))
        if large and index[-1] > 0:
            raise ValueError(f"variance_type='fixed_large' draws noise into clean data where the last index is "
                             f"{index[-1]:g}, not 0; this cannot be reproduced")  # fmt: skip
        return Grid(process, process.time(np.append(index, -1)))

    only(config, "variance_type", "fixed_small", "fixed_small_log", "fixed_large")
    return Scheduler(process, grid, partial(ddpm, large=large), _predicts(config))


def _one_level(method: Callable[..., Tableau], config: Config) -> Scheduler:
    """Euler, Euler ancestral, Heun and LMS; only Euler can end elsewhere than at clean data."""
    config = {**CLEAN, **config}
    only(config, "final_sigmas_type", "zero", "sigma_min")
    process = betas_of(config, floor=2.0**-24)
    return Scheduler(process, partial(noise_grid, process, config, False), method, _predicts(config))


def _multistep(method: Callable[[Config], Callable[..., Tableau]], config: Config) -> Scheduler:
    """DPM-Solver, UniPC and DEIS, which always ends at index 0."""
    config = {"final_sigmas_type": "sigma_min", **config}
    only(config, "final_sigmas_type", "zero", "sigma_min")
    process = betas_of(config, floor=2.0**-24)
    if config.get("use_flow_sigmas"):
        return _on_flow(method, config, process)
    for key in ("use_dynamic_shifting", "shift_terminal"):
        only({key: None, **config}, key, False, None, why=" without use_flow_sigmas=True")
    levels = process.half_logsnr(process.time(np.arange(len(process.betas))))
    clipped = int(np.searchsorted(levels[::-1], config.get("lambda_min_clipped") or -inf))
    config = {**config, "usable": len(levels) - clipped}
    return Scheduler(process, partial(noise_grid, process, config, True), method(config), _predicts(config))


def _on_flow(method: Callable[[Config], Callable[..., Tableau]], config: Config, process: DiscreteBetas) -> Scheduler:
    """The same methods on the levels of flow matching."""
    only(config, "prediction_type", *FLOW_PREDICTS, why=" with use_flow_sigmas=True")
    unipc = "solver_p" in config
    if not unipc:
        for key in (*SPACED, "use_lu_lambdas"):
            only(
                {"use_lu_lambdas": None, **config},
                key,
                False,
                None,
                why=" with use_flow_sigmas=True",
            )
    grid = partial(unipc_flow_grid if unipc else flow_sigmas_grid, process, config)
    return Scheduler(FlowMatching(), grid, method(config), FLOW_PREDICTS[config["prediction_type"]])


def _edm(method: Callable[[Config], Callable[..., Tableau]], config: Config) -> Scheduler:
    only(config, "prediction_type", "epsilon")
    only(config, "sigma_schedule", "karras", "exponential")
    only(config, "final_sigmas_type", "zero", why=", for the last step starts where it ends")
    process = VarianceExploding(config["sigma_min"], config["sigma_max"])
    spaced = partial(times.karras, rho=config["rho"]) if config["sigma_schedule"] == "karras" else times.uniform_logsnr
    return Scheduler(process, partial(spaced, process), method(config), "edm")


def _flow(config: Config) -> Scheduler:
    method = consistency_multistep if config["stochastic_sampling"] else ddim
    return Scheduler(FlowMatching(), partial(flow_grid, config), method, "velocity")


def _kept(config: Config, grid: Grid, s: Level, always: bool = False) -> int:
    """How many outputs the step from s may use."""
    left, order = int(np.sum(grid.t < s.t)), config["solver_order"]
    if config["lower_order_final"] and (always or grid.steps < FEW_STEPS):
        return min(order, left)
    return 1 if left == 1 and config.get("euler_at_final") else order


def _lowered(form: Form, weigh: Weigh, name: str, config: Config) -> Callable[[Process, Grid], Tableau]:
    """A multistep method that ends on lower orders."""
    only(config, "solver_order", 1, 2, 3)

    def tableau(process: Process, grid: Grid) -> Tableau:
        grid = as_grid(process, grid)

        def ending(past: Sequence[Level], s: Level, t: Level) -> list[float]:
            return weigh(past[: _kept(config, grid, s)], s, t)

        return explicit(grid, form, config["solver_order"], ending).tableau(name, order=min(config["solver_order"], 2))

    return tableau


def _dpm(config: Config) -> Callable[[Process, Grid], Tableau]:
    only({"variance_type": None, **config}, "variance_type", None)
    only(config, "algorithm_type", "dpmsolver++", "dpmsolver", "sde-dpmsolver++")
    only(config, "solver_type", "midpoint", "heun")
    taylor = config["solver_type"] == "heun"
    if config["algorithm_type"] == "dpmsolver":
        only(config, "final_sigmas_type", "sigma_min", why=" with algorithm_type='dpmsolver'")
        return _lowered(NOISE, published(NOISE, taylor), "dpm_multistep", config)
    if config["algorithm_type"] == "dpmsolver++":
        return _lowered(DATA, published(DATA, taylor), "dpmpp", config)
    only(config, "solver_order", 1, 2, why=" with algorithm_type='sde-dpmsolver++', where diffusers has a wrong sign")
    only(config, "final_sigmas_type", "zero", why=" with algorithm_type='sde-dpmsolver++'")
    return partial(sde_dpmpp, order=config["solver_order"], heun=taylor)


def _deis(config: Config) -> Callable[[Process, Grid], Tableau]:
    only(config, "algorithm_type", "deis")
    only(config, "use_flow_sigmas", False, None, why=", for diffusers stands still in its last step")
    only(config, "solver_type", "logrho")
    return _lowered(NOISE, exact(NOISE), "deis_log_rho", config)


def _unipc(config: Config) -> Callable[[Process, Grid], Tableau]:
    only(config, "solver_type", "bh1", "bh2")
    only(config, "solver_order", 1, 2, 3, 4)
    if not config["predict_x0"]:
        only(config, "final_sigmas_type", "sigma_min", why=" with predict_x0=False")
    if config["final_sigmas_type"] == "zero":
        only(config, "solver_type", "bh2", why=" with final_sigmas_type='zero', where diffusers gives NaN")
        if config["solver_order"] > 1:
            only(config, "lower_order_final", True, why=" with final_sigmas_type='zero', where diffusers fails")
    uncorrected = config["disable_corrector"] or []
    form, bh1 = DATA if config["predict_x0"] else NOISE, config["solver_type"] == "bh1"

    def weigh(past: Sequence[Level], s: Level, t: Level) -> list[float]:
        z, found = form.move(s, t).z, places(past, s, t)
        return midpoint(found, bh1_scale(z) if bh1 else 1.0) if len(found) == 2 else shares(z, found)

    def tableau(process: Process, grid: Grid) -> Tableau:
        grid = as_grid(process, grid)

        def part(more: int, past: Sequence[Level], s: Level, t: Level) -> list[float]:
            return weigh(past[: _kept(config, grid, s, always=True) + more], s, t)

        program = corrected(grid, form, config["solver_order"], partial(part, 0), partial(part, 1), uncorrected)
        return program.tableau("unipc", order=config["solver_order"] + 1)

    return tableau


TABLE = {
    "num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear",
    "trained_betas": None, "prediction_type": "epsilon", "timestep_spacing": "linspace", "steps_offset": 0,
}  # fmt: skip
LEADING = {**TABLE, "timestep_spacing": "leading"}
CLIPPED = {"clip_sample": True, "thresholding": False, "rescale_betas_zero_snr": False}
SPACED = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
CLEAN = {"final_sigmas_type": "zero"}
FLOWING = {"use_flow_sigmas": False, "use_dynamic_shifting": False, "flow_shift": 1.0, "time_shift_type": "exponential"}
ORDERS = {"solver_order": 2, "lower_order_final": True, "thresholding": False}
DPM = {**ORDERS, **CLEAN, "algorithm_type": "dpmsolver++", "solver_type": "midpoint", "euler_at_final": False}
EDM = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_schedule": "karras", "rho": 7.0, "prediction_type": "epsilon"}
RANGE = {"sigma_min": None, "sigma_max": None, "rescale_betas_zero_snr": False}
CLASSES: dict[str, tuple[Callable[[Config], Scheduler], dict[str, Any]]] = {
    "DDIMScheduler": (_ddim, {**LEADING, **CLIPPED, "set_alpha_to_one": True}),
    "DDPMScheduler": (_ddpm, {**LEADING, **CLIPPED, "variance_type": "fixed_small"}),
    "PNDMScheduler": (_pndm, {**LEADING, "skip_prk_steps": False, "set_alpha_to_one": False}),
    "EulerDiscreteScheduler": (
        partial(_one_level, euler),
        {**TABLE, **SPACED, **CLEAN, **RANGE, "interpolation_type": "linear", "timestep_type": "discrete"},
    ),
    "EulerAncestralDiscreteScheduler": (
        partial(_one_level, euler_ancestral), {**TABLE, "rescale_betas_zero_snr": False},
    ),
    "HeunDiscreteScheduler": (
        partial(_one_level, heun),
        {**TABLE, **SPACED, "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False},
    ),
    "LMSDiscreteScheduler": (partial(_one_level, lms), {**TABLE, **SPACED}),
    "DPMSolverMultistepScheduler": (
        partial(_multistep, _dpm),
        {**TABLE, **SPACED, **FLOWING, **DPM, "use_lu_lambdas": False, "lambda_min_clipped": -inf,
         "variance_type": None, "rescale_betas_zero_snr": False},
    ),
    "UniPCMultistepScheduler": (
        partial(_multistep, _unipc),
        {**TABLE, **SPACED, **FLOWING, **ORDERS, **CLEAN, **RANGE, "predict_x0": True, "solver_type": "bh2",
         "disable_corrector": [], "solver_p": None, "shift_terminal": None},
    ),
    "DEISMultistepScheduler": (
        partial(_multistep, _deis),
        {**TABLE, **SPACED, **FLOWING, **ORDERS, "algorithm_type": "deis", "solver_type": "logrho"},
    ),
    "EDMEulerScheduler": (partial(_edm, lambda config: euler), {**EDM, **CLEAN}),
    "EDMDPMSolverMultistepScheduler": (partial(_edm, _dpm), {**EDM, **DPM}),
    "FlowMatchEulerDiscreteScheduler": (
        _flow,
        {**SPACED, "num_train_timesteps": 1000, "shift": 1.0, "use_dynamic_shifting": False, "shift_terminal": None,
         "time_shift_type": "exponential", "invert_sigmas": False, "stochastic_sampling": False},
    ),
}  # fmt: skip
ONLY: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("clip_sample", "thresholding", "invert_sigmas"), (False, None)),
    "solver_p": (None,), "skip_prk_steps": (True,), "interpolation_type": ("linear",), "timestep_type": ("discrete",),
}  # fmt: skip
HARMLESS = {"dynamic_thresholding_ratio", "sample_max_value", "clip_sample_range", "sigma_data", "base_shift",
            "max_shift", "base_image_seq_len", "max_image_seq_len"}  # fmt: skip
KNOWN = HARMLESS.union(*(defaults for _, defaults in CLASSES.values()))
