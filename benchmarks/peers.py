"""The same DDIM and DPM-Solver++ 2M loops of diffusers and k-diffusion on the trivial model, on the CPU with torch."""

import importlib
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any


def loops(shape: tuple[int, ...], steps: int) -> tuple[dict[str, Callable[[], object]], list[str]]:
    """Ready loops by name, and a line for each library that is not installed."""
    if importlib.util.find_spec("torch") is None:
        return {}, ["torch is not installed here: diffusers and k-diffusion skipped"]
    found, missing = {}, []
    for name, make in (("diffusers", _diffusers), ("k_diffusion", _k_diffusion)):
        if importlib.util.find_spec(name) is None:
            missing.append(f"{name} is not installed here: skipped")
        else:
            found |= make(shape, steps)
    return found, missing


def _diffusers(shape: tuple[int, ...], steps: int) -> dict[str, Callable[[], object]]:
    import torch
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    start = torch.randn(shape)

    def loop(scheduler: Any) -> Callable[[], object]:
        @torch.no_grad()
        def run() -> object:
            scheduler.set_timesteps(steps)  # a multistep scheduler keeps its history until it is set anew
            x = start
            for t in scheduler.timesteps:
                x = scheduler.step(0.999 * x, t, x).prev_sample
            return x

        return run

    ddim = DDIMScheduler(clip_sample=False)
    return {"diffusers DDIM": loop(ddim), "diffusers DPM++ 2M": loop(DPMSolverMultistepScheduler())}


def _k_diffusion(shape: tuple[int, ...], steps: int) -> dict[str, Callable[[], object]]:
    import torch

    sampling = _k_diffusion_sampling()
    sigmas = torch.cat([torch.logspace(1, -1, steps), torch.zeros(1)])
    start = sigmas[0] * torch.randn(shape)

    def model(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return 0.999 * x

    def run(solver: Callable) -> Callable[[], object]:
        return lambda: solver(model, start, sigmas, disable=True)

    return {
        "k-diffusion Euler (= DDIM)": run(sampling.sample_euler),
        "k-diffusion DPM++ 2M": run(sampling.sample_dpmpp_2m),
    }


@cache
def _k_diffusion_sampling() -> Any:
    """k_diffusion.sampling alone: the package's own __init__ imports its training dependencies."""
    spec: Any = importlib.util.find_spec("k_diffusion")
    package: Any
    utils: Any
    package, utils = (types.ModuleType(name) for name in ("k_diffusion", "k_diffusion.utils"))
    package.__spec__, package.__path__ = spec, list(spec.submodule_search_locations)
    utils.append_dims = lambda x, n: x[(...,) + (None,) * (n - x.ndim)]
    package.utils = utils
    sys.modules |= {"k_diffusion": package, "k_diffusion.utils": utils}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("k_diffusion.sampling")
