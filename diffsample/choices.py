"""What the command line offers by name: solvers, processes, grids and guidance rules, with the defaults of the demo."""

from collections.abc import Callable

import diffsample as ds
from diffsample import guidance, solvers, times
from diffsample.nets import digits

CHURN_MAX = 50.0  # S_tmax of Karras et al. 2022, table 5; leaves room above for the noise that churn adds


def euler(process: ds.Process, grid: ds.Grid, *, churn: float = 0.0) -> ds.Tableau:
    """Euler, with EDM's churn below CHURN_MAX."""
    return solvers.euler(process, grid, churn=churn, churn_max=CHURN_MAX)


def heun(process: ds.Process, grid: ds.Grid, *, churn: float = 0.0) -> ds.Tableau:
    """Heun, with EDM's churn below CHURN_MAX."""
    return solvers.heun(process, grid, churn=churn, churn_max=CHURN_MAX)


def heavy_ball_dpmpp(process: ds.Process, grid: ds.Grid, *, order: int = 2, beta: float = 0.8) -> ds.Tableau:
    """Heavy-ball momentum on DPM-Solver++."""
    return solvers.heavy_ball(solvers.dpmpp(process, grid, order=order), beta)


def heavy_ball_plms(process: ds.Process, grid: ds.Grid, *, order: int = 2, beta: float = 0.8) -> ds.Tableau:
    """Heavy-ball momentum on PLMS."""
    return solvers.heavy_ball(solvers.plms(process, grid, order=order), beta)


def no_guidance(network: ds.Denoiser) -> ds.Denoiser:
    """The conditional model itself."""
    return network


def cfg(network: ds.Denoiser, *, scale: float = 2.0) -> ds.Denoiser:
    """Classifier-free guidance."""
    return guidance.cfg(network, digits.NULL, scale)


def apg(
    network: ds.Denoiser, *, scale: float = 2.0, radius: float = 2.5, momentum: float = -0.5, eta_apg: float = 0.0
) -> ds.Denoiser:
    """Adaptive projected guidance."""
    return guidance.apg(network, digits.NULL, scale, radius=radius, momentum=momentum, eta=eta_apg)


def cfg_pp(network: ds.Denoiser, *, scale: float = 0.6) -> ds.Denoiser:
    """CFG++, whose scale lies between 0 and 1."""
    return guidance.cfg_pp(network, digits.NULL, scale)


def rescale(network: ds.Denoiser, *, scale: float = 2.0, share: float = 0.7) -> ds.Denoiser:
    """CFG with the spread of the conditional output."""
    return guidance.rescale(network, digits.NULL, scale, share)


def cfg_zero(network: ds.Denoiser, *, scale: float = 2.0, zero_steps: float = 0) -> ds.Denoiser:
    """CFG-Zero*."""
    return guidance.cfg_zero(network, digits.NULL, scale, zero_steps=zero_steps)


def interval(network: ds.Denoiser, *, scale: float = 2.0, low: float = 0.3, high: float = 3.0) -> ds.Denoiser:
    """CFG in an interval of noise levels, the conditional model outside."""
    return guidance.during(cfg(network, scale=scale), network, low, high)


SOLVERS: dict[str, Callable[..., ds.Tableau]] = {
    "ddim": solvers.ddim,
    "ddpm": solvers.ddpm,
    "deis": solvers.deis_t,
    "dpm2": solvers.dpm2,
    "dpmpp": solvers.dpmpp,
    "euler": euler,
    "ghvb": solvers.ghvb,
    "heavy-ball": heavy_ball_dpmpp,
    "heavy-ball-plms": heavy_ball_plms,
    "heun": heun,
    "ipndm": solvers.ipndm,
    "plms": solvers.plms,
    "rk4": solvers.rk4,
    "sde-dpmpp": solvers.sde_dpmpp,
    "unipc": solvers.unipc,
}
PROCESSES: dict[str, Callable[[], ds.Process]] = {
    "vp": ds.VariancePreserving,
    "ve": ds.VarianceExploding,
    "edm": ds.VarianceExploding,
    "cosine": ds.Cosine,
    "flow": ds.FlowMatching,
    "subvp": ds.SubVP,
    "betas": ds.DiscreteBetas.linear,
}
GRIDS: dict[str, Callable[..., ds.Grid]] = {
    "uniform": times.uniform,
    "quadratic": times.quadratic,
    "logsnr": times.uniform_logsnr,
    "karras": times.karras,
}
FIXED_GRIDS: dict[str, Callable[..., ds.Grid]] = {  # these know where they start
    "ays": times.ays,
    "leading": times.leading,
    "linspace": times.linspace,
    "trailing": times.trailing,
}
GUIDANCE: dict[str, Callable[..., ds.Denoiser]] = {
    "none": no_guidance,
    "cfg": cfg,
    "apg": apg,
    "cfg++": cfg_pp,
    "rescale": rescale,
    "cfg-zero": cfg_zero,
    "interval": interval,
}
RULE_OPTIONS = {
    "scale": "guidance scale, 1 is the conditional model",
    "radius": "largest norm of the guidance",
    "momentum": "weight of past guidance",
    "eta-apg": "share kept of the guidance along the image",
    "share": "share of the rescaled output",
    "zero-steps": "first steps without velocity",
    "low": "least noise / signal that is guided",
    "high": "largest noise / signal that is guided",
}
