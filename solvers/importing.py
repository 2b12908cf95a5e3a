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

Config = Mapping[str, Any]
PREDICTS = {"epsilon": "noise", "sample": "data", "v_prediction": "v"}
FEW_STEPS = 15  # below it diffusers' lower_order_final lowers the orders of the last two steps


class Scheduler(NamedTuple):
    """A diffusers scheduler in this library's terms: `linear(denoiser, s.tableau(s.process, s.grid(20)))`."""

    process: Process
    grid: Callable[[int], Grid]  # of a number of steps
    tableau: Callable[[Process, Grid], Tableau]
    predicts: str  # for `Network`; its "edm" wants the configuration's sigma_data


def from_diffusers(config: Config) -> Scheduler:
    """A scheduler from the contents of a `scheduler_config.json`: its process, its grids and its method.

    DDIM (eta = 0; for another eta take `ddim` in place of the tableau), DDPM, PNDM with skip_prk_steps, EulerDiscrete,
    EulerAncestralDiscrete, HeunDiscrete, LMSDiscrete, DPMSolverMultistep, UniPCMultistep, DEISMultistep, EDMEuler,
    EDMDPMSolverMultistep, FlowMatchEulerDiscrete. Absent keys have the defaults of diffusers; keys that a class does
    not have are ignored if another class has them, as diffusers does.

    Args:
        config: the JSON object, `_class_name` included.

    Raises:
        ValueError: an unknown class or key, or a value that cannot be reproduced; `grid` raises it where that depends
            on the number of steps.

    Reference: diffusers 0.42 (software), the files scheduling_*.py.

    >>> found = from_diffusers({"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "v_prediction"})
    >>> found.predicts, found.grid(4).t.tolist()
    ('v', [1.0, 0.75, 0.501, 0.251, 0.0])
    """
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
            _only(full, key, *allowed)
    return build(full)


def _only(config: Config, key: str, *allowed: Any, why: str = "") -> None:
    if config[key] not in allowed:
        among = " or ".join(map(repr, allowed))
        raise ValueError(f"{key}={config[key]!r} cannot be reproduced{why}; only {among} can")


def _predicts(config: Config) -> str:
    _only(config, "prediction_type", *PREDICTS)
    return PREDICTS[config["prediction_type"]]


def _betas(config: Config, floor: float = 0.0) -> DiscreteBetas:
    """The table of betas; a zero terminal SNR has alpha^2 = floor at its end."""
    total, ends = config["num_train_timesteps"], (config["beta_start"], config["beta_end"])
    makers = {
        "linear": lambda: DiscreteBetas.linear(total, *ends),
        "scaled_linear": lambda: DiscreteBetas.scaled_linear(total, *ends),
        "squaredcos_cap_v2": lambda: DiscreteBetas.cosine(total),
    }
    if config["trained_betas"] is not None:
        process = DiscreteBetas(tuple(config["trained_betas"]))
        _only(config, "num_train_timesteps", len(process.betas), why=f" with {len(process.betas)} trained_betas")
    else:
        _only(config, "beta_schedule", *makers)
        process = makers[config["beta_schedule"]]()
    if not config.get("rescale_betas_zero_snr"):
        return process
    betas = process.zero_terminal_snr().betas[:-1]
    return DiscreteBetas((*betas, 1 - floor / float(np.prod(1 - np.array(betas)))))


def _indices(config: Config, steps: int, drop_last: bool = False) -> np.ndarray:
    """Indices of the calls, fractional where linspace has them so."""
    total, count = config["num_train_timesteps"], steps + drop_last
    if not 1 <= count <= total:
        raise ValueError(f"steps={steps} does not fit num_train_timesteps={total}")
    spacing = config["timestep_spacing"]
    _only(config, "timestep_spacing", "linspace", "leading", "trailing")
    if spacing == "linspace":
        return np.linspace(total - 1, 0, count)[:steps]
    if spacing == "leading":
        return (np.arange(count)[::-1] * (total // count) + config["steps_offset"])[:steps]
    return np.round(total - np.arange(steps) * (total / steps)) - 1


def _strided(process: DiscreteBetas, config: Config, steps: int) -> Grid:
    """The grid of DDIM and PNDM, which move by total // steps whatever the spacing."""
    total = config["num_train_timesteps"]
    if config["timestep_spacing"] == "trailing" and total % steps:
        raise ValueError(f"timestep_spacing='trailing' cannot be reproduced with steps={steps}, which do not divide "
                         f"num_train_timesteps={total}: diffusers moves by {total // steps} indices")  # fmt: skip
    index = _indices(config, steps)
    if not config["set_alpha_to_one"] and index[-1] == 0:
        raise ValueError("set_alpha_to_one=False cannot be reproduced here: the last step stays at index 0")
    return Grid(process, process.time(np.append(index, -1 if config["set_alpha_to_one"] else 0)))


def _ddim(config: Config) -> Scheduler:
    process = _betas(config)
    _only(config, "timestep_spacing", "leading", "trailing", why=", for diffusers steps by the wrong stride")
    if config["rescale_betas_zero_snr"]:
        _only(config, "prediction_type", "v_prediction", "sample", why=" with rescale_betas_zero_snr=True")
    return Scheduler(process, partial(_strided, process, config), ddim, _predicts(config))


def _pndm(config: Config) -> Scheduler:
    process = _betas(config)
    _only(config, "timestep_spacing", "leading", "trailing", why=", for diffusers steps by the wrong stride")
    return Scheduler(process, partial(_strided, process, config), partial(spndm, order=4), _predicts(config))


def _ddpm(config: Config) -> Scheduler:
    process, large = _betas(config), config["variance_type"] == "fixed_large"

    def grid(steps: int) -> Grid:
        index = np.round(_indices(config, steps))
        if large and index[-1] > 0:
            raise ValueError(f"variance_type='fixed_large' draws noise into clean data where the last index is "
                             f"{index[-1]:g}, not 0; this cannot be reproduced")  # fmt: skip
        return Grid(process, process.time(np.append(index, -1)))

    _only(config, "variance_type", "fixed_small", "fixed_small_log", "fixed_large")
    return Scheduler(process, grid, partial(ddpm, large=large), _predicts(config))


def _noise_grid(process: DiscreteBetas, config: Config, drop_last: bool, steps: int) -> Grid:
    """The grid of classes that keep sigma / alpha: interpolated in the index, or spaced anew between its ends."""
    if config.get("use_karras_sigmas"):
        _only(config, "use_exponential_sigmas", False, None, why=" with use_karras_sigmas=True")
    table = np.exp(-process.half_logsnr(process.time(np.arange(len(process.betas)))))
    index = _indices(config, steps, drop_last)
    noise = np.interp(np.round(index) if drop_last else index, np.arange(len(table)), table)
    high, low = table[[-1, 0]] if drop_last else noise[[0, -1]]
    high, low = config.get("sigma_max") or high, config.get("sigma_min") or low
    ramp = np.linspace(0, 1, steps)
    if config.get("use_karras_sigmas"):
        noise = (high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    elif config.get("use_exponential_sigmas"):
        noise = high * (low / high) ** ramp
    last = 0.0 if config["final_sigmas_type"] == "zero" else process.t_min
    points = np.asarray(process.t_from_half_logsnr(-np.log(noise)))
    points[0] = points[0] if points[0] > process.t_max * (1 + 1e-9) else min(points[0], process.t_max)
    if points[-1] <= last * (1 + 1e-9):
        raise ValueError(f"final_sigmas_type={config['final_sigmas_type']!r} cannot be reproduced here: the last step "
                         f"starts where it ends")  # fmt: skip
    return Grid(process, np.append(points, last))


def _one_level(method: Callable[..., Tableau], config: Config) -> Scheduler:
    """Euler, Euler ancestral, Heun and LMS; only Euler can end elsewhere than at clean data."""
    config = {**CLEAN, **config}
    _only(config, "final_sigmas_type", "zero", "sigma_min")
    process = _betas(config, floor=2.0**-24)
    return Scheduler(process, partial(_noise_grid, process, config, False), method, _predicts(config))


def _multistep(method: Callable[[Config], Callable[..., Tableau]], config: Config) -> Scheduler:
    """DPM-Solver, UniPC and DEIS, which always ends at index 0."""
    config = {"final_sigmas_type": "sigma_min", **config}
    _only(config, "final_sigmas_type", "zero", "sigma_min")
    tableau, process = method(config), _betas(config, floor=2.0**-24)
    return Scheduler(process, partial(_noise_grid, process, config, True), tableau, _predicts(config))


def _edm(method: Callable[[Config], Callable[..., Tableau]], config: Config) -> Scheduler:
    _only(config, "prediction_type", "epsilon")
    _only(config, "sigma_schedule", "karras", "exponential")
    _only(config, "final_sigmas_type", "zero", why=", for the last step starts where it ends")
    process = VarianceExploding(config["sigma_min"], config["sigma_max"])
    spaced = partial(times.karras, rho=config["rho"]) if config["sigma_schedule"] == "karras" else times.uniform_logsnr
    return Scheduler(process, partial(spaced, process), method(config), "edm")


def _flow(config: Config) -> Scheduler:
    for key in SPACED:
        _only(config, key, False, None)
    process, shift, total = FlowMatching(), config["shift"], config["num_train_timesteps"]

    def shifted(t: Any) -> Any:
        return shift * t / (1 + (shift - 1) * t)

    def grid(steps: int) -> Grid:
        return Grid(process, np.append(shifted(np.linspace(1.0, shifted(1 / total), steps)), 0.0))  # shifted twice

    return Scheduler(process, grid, consistency_multistep if config["stochastic_sampling"] else ddim, "velocity")


def _kept(config: Config, grid: Grid, s: Level, always: bool = False) -> int:
    """How many outputs the step from s may use."""
    left, order = int(np.sum(grid.t < s.t)), config["solver_order"]
    if config["lower_order_final"] and (always or grid.steps < FEW_STEPS):
        return min(order, left)
    return 1 if left == 1 and config.get("euler_at_final") else order


def _lowered(form: Form, weigh: Weigh, name: str, config: Config) -> Callable[[Process, Grid], Tableau]:
    """A multistep method that ends on lower orders."""
    _only(config, "solver_order", 1, 2, 3)

    def tableau(process: Process, grid: Grid) -> Tableau:
        grid = as_grid(process, grid)

        def ending(past: Sequence[Level], s: Level, t: Level) -> list[float]:
            return weigh(past[: _kept(config, grid, s)], s, t)

        return explicit(grid, form, config["solver_order"], ending).tableau(name, order=min(config["solver_order"], 2))

    return tableau


def _dpm(config: Config) -> Callable[[Process, Grid], Tableau]:
    _only({"variance_type": None, **config}, "variance_type", None)
    _only(config, "algorithm_type", "dpmsolver++", "dpmsolver", "sde-dpmsolver++")
    _only(config, "solver_type", "midpoint", "heun")
    taylor = config["solver_type"] == "heun"
    if config["algorithm_type"] == "dpmsolver":
        _only(config, "final_sigmas_type", "sigma_min", why=" with algorithm_type='dpmsolver'")
        return _lowered(NOISE, published(NOISE, taylor), "dpm_multistep", config)
    if config["algorithm_type"] == "dpmsolver++":
        return _lowered(DATA, published(DATA, taylor), "dpmpp", config)
    _only(config, "solver_order", 1, 2, why=" with algorithm_type='sde-dpmsolver++', where diffusers has a wrong sign")
    _only(config, "final_sigmas_type", "zero", why=" with algorithm_type='sde-dpmsolver++'")
    return partial(sde_dpmpp, order=config["solver_order"], heun=taylor)


def _deis(config: Config) -> Callable[[Process, Grid], Tableau]:
    _only(config, "algorithm_type", "deis")
    _only(config, "solver_type", "logrho")
    return _lowered(NOISE, exact(NOISE), "deis_log_rho", config)


def _unipc(config: Config) -> Callable[[Process, Grid], Tableau]:
    _only(config, "solver_type", "bh1", "bh2")
    _only(config, "solver_order", 1, 2, 3, 4)
    if not config["predict_x0"]:
        _only(config, "final_sigmas_type", "sigma_min", why=" with predict_x0=False")
    if config["final_sigmas_type"] == "zero":
        _only(config, "solver_type", "bh2", why=" with final_sigmas_type='zero', where diffusers gives NaN")
        if config["solver_order"] > 1:
            _only(config, "lower_order_final", True, why=" with final_sigmas_type='zero', where diffusers fails")
    form, bh1 = DATA if config["predict_x0"] else NOISE, config["solver_type"] == "bh1"

    def weigh(past: Sequence[Level], s: Level, t: Level) -> list[float]:
        z, found = form.move(s, t).z, places(past, s, t)
        return midpoint(found, bh1_scale(z) if bh1 else 1.0) if len(found) == 2 else shares(z, found)

    def tableau(process: Process, grid: Grid) -> Tableau:
        grid = as_grid(process, grid)

        def part(more: int, past: Sequence[Level], s: Level, t: Level) -> list[float]:
            return weigh(past[: _kept(config, grid, s, always=True) + more], s, t)

        program = corrected(grid, form, config["solver_order"], partial(part, 0), partial(part, 1))
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
FLOWING = {"use_flow_sigmas": False, "use_dynamic_shifting": False}
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
         "invert_sigmas": False, "stochastic_sampling": False},
    ),
}  # fmt: skip
ONLY: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        ("clip_sample", "thresholding", "use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas", "use_dynamic_shifting",
         "invert_sigmas"), (False, None),
    ),
    "disable_corrector": ([], None), "solver_p": (None,), "shift_terminal": (None,), "lambda_min_clipped": (-inf, None),
    "skip_prk_steps": (True,), "interpolation_type": ("linear",), "timestep_type": ("discrete",),
}  # fmt: skip
HARMLESS = {"dynamic_thresholding_ratio", "sample_max_value", "clip_sample_range", "sigma_data", "flow_shift",
            "time_shift_type", "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"}  # fmt: skip
KNOWN = HARMLESS.union(*(defaults for _, defaults in CLASSES.values()))
