"""Levels of the schedulers of diffusers: tables of betas, indices of the calls, spaced sigmas, flow sigmas.

A configuration is read by key; what cannot be reproduced is refused by key and value.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaincinv

from diffsample.betas import DiscreteBetas
from diffsample.grid import Grid
from diffsample.process import FlowMatching

Config: TypeAlias = Mapping[str, Any]
Spacing: TypeAlias = Callable[[int], ArrayLike]
BETA = 0.6  # both parameters of the beta distribution of use_beta_sigmas


def only(config: Config, key: str, *allowed: Any, why: str = "") -> None:
    """Raise ValueError if the value of a key is not one of those allowed."""
    if config[key] not in allowed:
        among = " or ".join(map(repr, allowed))
        raise ValueError(f"{key}={config[key]!r} cannot be reproduced{why}; only {among} can")


def betas_of(config: Config, floor: float = 0.0) -> DiscreteBetas:
    """The table of betas; a zero terminal SNR has alpha^2 = floor at its end."""
    total, ends = config["num_train_timesteps"], (config["beta_start"], config["beta_end"])
    makers = {
        "linear": lambda: DiscreteBetas.linear(total, *ends),
        "scaled_linear": lambda: DiscreteBetas.scaled_linear(total, *ends),
        "squaredcos_cap_v2": lambda: DiscreteBetas.cosine(total),
    }
    if config["trained_betas"] is not None:
        process = DiscreteBetas(tuple(config["trained_betas"]))
        only(config, "num_train_timesteps", len(process.betas), why=f" with {len(process.betas)} trained_betas")
    else:
        only(config, "beta_schedule", *makers)
        process = makers[config["beta_schedule"]]()
    if not config.get("rescale_betas_zero_snr"):
        return process
    betas = process.zero_terminal_snr().betas[:-1]
    return DiscreteBetas((*betas, 1 - floor / float(np.prod(1 - np.array(betas)))))


def indices(config: Config, steps: int, drop_last: bool = False) -> np.ndarray:
    """Indices of the calls, fractional where linspace has them so."""
    total, count = config.get("usable", config["num_train_timesteps"]), steps + drop_last
    if not 1 <= count <= total:
        raise ValueError(f"steps={steps} does not fit num_train_timesteps={total}")
    spacing = config["timestep_spacing"]
    only(config, "timestep_spacing", "linspace", "leading", "trailing")
    if spacing == "linspace":
        return np.linspace(total - 1, 0, count)[:steps]
    if spacing == "leading":
        index = np.arange(count)[::-1] * (total // count) + config["steps_offset"]
        if index[0] >= total:
            raise ValueError(f"steps={steps} with steps_offset={config['steps_offset']} begins at index {index[0]}, "
                             f"beyond the last, {total - 1}: take fewer steps")  # fmt: skip
        return index[:steps]
    only({"usable": None, **config}, "usable", None, config["num_train_timesteps"], why=" with trailing steps")
    return np.round(total - np.arange(steps) * (total / steps)) - 1


def strided(process: DiscreteBetas, config: Config, steps: int) -> Grid:
    """The grid of DDIM and PNDM, which move by total // steps whatever the spacing."""
    total = config["num_train_timesteps"]
    if config["timestep_spacing"] == "trailing" and total % steps:
        raise ValueError(f"timestep_spacing='trailing' cannot be reproduced with steps={steps}, which do not divide "
                         f"num_train_timesteps={total}: diffusers moves by {total // steps} indices")  # fmt: skip
    index = indices(config, steps)
    if not config["set_alpha_to_one"] and index[-1] == 0:
        raise ValueError("set_alpha_to_one=False cannot be reproduced here: the last step stays at index 0")
    return Grid(process, process.time(np.append(index, -1 if config["set_alpha_to_one"] else 0)))


def noise_grid(process: DiscreteBetas, config: Config, drop_last: bool, steps: int) -> Grid:
    """The grid of classes that keep sigma / alpha: interpolated in the index, or spaced anew between its ends."""
    table = np.exp(-process.half_logsnr(process.time(np.arange(len(process.betas)))))
    index = indices(config, steps, drop_last)
    noise = np.interp(np.round(index) if drop_last else index, np.arange(len(table)), table)
    high, low = table[[-1, 0]] if drop_last else noise[[0, -1]]
    spaced = respaced(config, config.get("sigma_max") or high, config.get("sigma_min") or low, steps)
    if spaced is not None and "solver_p" in config:
        only(config, "final_sigmas_type", "zero", why=" with spaced sigmas, where the last step starts where it ends")
    last = 0.0 if config["final_sigmas_type"] == "zero" else process.t_min
    points = np.asarray(process.t_from_half_logsnr(-np.log(noise if spaced is None else spaced)))
    points[0] = points[0] if points[0] > process.t_max * (1 + 1e-9) else min(points[0], process.t_max)
    if points[-1] <= last * (1 + 1e-9):
        raise ValueError(f"final_sigmas_type={config['final_sigmas_type']!r} cannot be reproduced here: the last step "
                         f"starts where it ends")  # fmt: skip
    return Grid(process, np.append(points, last))


def respaced(config: Config, high: float, low: float, steps: int) -> np.ndarray | None:
    """Sigmas spaced anew from high to low: Karras, exponential (Lu's are the same), beta; None leaves them."""
    ramp = np.linspace(0, 1, steps)
    ways: dict[str, Callable[[], np.ndarray]] = {
        "use_karras_sigmas": lambda: (high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7,
        "use_exponential_sigmas": lambda: high * (low / high) ** ramp,
        "use_lu_lambdas": lambda: high * (low / high) ** ramp,
        "use_beta_sigmas": lambda: low + betaincinv(BETA, BETA, 1 - ramp) * (high - low),
    }
    asked = [key for key in ways if config.get(key)]
    if len(asked) > 1:
        only(config, asked[1], False, None, why=f" with {asked[0]}=True")
    return ways[asked[0]]() if asked else None


def shift_of(config: Config, mu: float | None, image_seq_len: int | None) -> float | None:
    """The s of s t / (1 + (s - 1) t) in dynamic shifting: exp(mu), or mu itself if linear; None where there is none.

    mu is linear in the number of image tokens, as the pipelines compute it.
    """
    given = {"mu": mu, "image_seq_len": image_seq_len}
    if not config.get("use_dynamic_shifting"):
        for name, value in given.items():
            if value is not None:
                raise ValueError(f"{name}={value} is for use_dynamic_shifting=True, and this configuration has it not")
        return None
    if (mu is None) == (image_seq_len is None):
        raise ValueError("use_dynamic_shifting=True shifts by the size of the image: give from_diffusers either mu or "
                         "image_seq_len, the number of image tokens")  # fmt: skip
    if image_seq_len is not None:
        low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        ends = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        mu = ends[0] + (ends[1] - ends[0]) * (image_seq_len - low) / (high - low)
    assert mu is not None
    kind = config.get("time_shift_type", "exponential")
    only({"time_shift_type": kind}, "time_shift_type", "exponential", "linear")
    return float(np.exp(mu)) if kind == "exponential" else float(mu)


def shifted(t: Any, shift: float) -> Any:
    """s t / (1 + (s - 1) t): flow times moved towards noise."""
    return shift * t / (1 + (shift - 1) * t)


def stretched(t: np.ndarray, terminal: float | None) -> np.ndarray:
    """Flow times scaled about 1 so that the last is `terminal`."""
    return 1 - (1 - t) * (1 - terminal) / (1 - t[-1]) if terminal else t


def flow_grid(config: Config, steps: int) -> Grid:
    """Of FlowMatchEulerDiscrete: even times (or `sigmas`), shifted, stretched, spaced, and clean data."""
    fixed, dynamic, total = config["shift"], config["dynamic_shift"], config["num_train_timesteps"]
    least = 1 / total if dynamic else shifted(1 / total, fixed)  # without dynamic shifting it is shifted twice
    t = shifted(_even(config, steps, np.linspace(1.0, least, steps)), dynamic or fixed)
    t = stretched(t, config["shift_terminal"])
    spaced = respaced(config, float(t[0]), float(t[-1]), steps)
    return Grid(FlowMatching(), np.append(t if spaced is None else spaced, 0.0))


def flow_sigmas_grid(process: DiscreteBetas, config: Config, steps: int) -> Grid:
    """Of DPMSolverMultistep with use_flow_sigmas; the end at sigma_min is that of the table of betas."""
    t = np.linspace(0.0, 1 - 1 / config["num_train_timesteps"], steps + 1)[:0:-1]
    t = shifted(t, config["dynamic_shift"] or config["flow_shift"])
    return _flow_end(config, t, 0.0 if config["final_sigmas_type"] == "zero" else _least_noise(process))


def unipc_flow_grid(process: DiscreteBetas, config: Config, steps: int) -> Grid:
    """Of UniPCMultistep with use_flow_sigmas: as of FlowMatchEuler, or Karras sigmas of the table turned to times."""
    only(config, "final_sigmas_type", "zero", why=" with use_flow_sigmas=True: the last step starts where it ends")
    if config["use_karras_sigmas"]:
        high, low = np.exp(-process.half_logsnr(np.array([process.t_max, process.t_min])))
        noise: Any = respaced(config, config["sigma_max"] or high, config["sigma_min"] or low, steps)
        return _flow_end(config, noise / (1 + noise), 0.0)
    for key in ("use_exponential_sigmas", "use_beta_sigmas"):
        only(config, key, False, None, why=" with use_flow_sigmas=True")
    t = _even(config, steps, np.linspace(1.0, 1 / config["num_train_timesteps"], steps + 1)[:-1])
    t = stretched(shifted(t, config["dynamic_shift"] or config["flow_shift"]), config["shift_terminal"])
    return _flow_end(config, np.append(min(t[0], 1 - 1e-6), t[1:]), 0.0)


def _even(config: Config, steps: int, default: np.ndarray) -> np.ndarray:
    """The times before any shift: those of the caller, or the scheduler's own."""
    if config["sigmas"] is None:
        return default
    t = np.asarray(config["sigmas"](steps), np.float64)
    if t.shape != (steps,):
        raise ValueError(f"sigmas({steps}) has shape {t.shape}; it must give one level a step, for example "
                         f"np.linspace(1, 1 / n, n)")  # fmt: skip
    return t


def _flow_end(config: Config, t: np.ndarray, last: float) -> Grid:
    if t[-1] <= last:
        raise ValueError(f"final_sigmas_type={config['final_sigmas_type']!r} cannot be reproduced here: the last step "
                         f"starts at {t[-1]:.4g} and ends at {last:.4g}")  # fmt: skip
    return Grid(FlowMatching(), np.append(t, last))


def _least_noise(process: DiscreteBetas) -> float:
    return float(np.exp(-process.half_logsnr(process.t_min)))
