"""Guidance: functions that take a denoiser and give a denoiser, so that every rule works under every sampler."""

if __name__ != "diffsample.guidance":
    raise ImportError("import diffsample.guidance, not guidance")

from typing import TYPE_CHECKING, Any

from diffsample.guidance import krylov, operators
from diffsample.guidance.active import acquisition_steps, active_sensing, belief_entropy, published_entropy
from diffsample.guidance.classifier_free import CFGPlusPlus, ClassifierFree, Composable, cfg, cfg_pp, composable
from diffsample.guidance.composition import During, chain, during
from diffsample.guidance.data_space import diffpir, jfps, mpgd
from diffsample.guidance.energies import lgd_mc, loss_guidance
from diffsample.guidance.forecasting import observe, observe_after_step, quantile_levels, quantile_loss, squared_error
from diffsample.guidance.frequency import FrequencyDecoupled, fdg
from diffsample.guidance.gradients import dps, dps_gaussian
from diffsample.guidance.latent import psld
from diffsample.guidance.moment_matching import mmps, tmpd, tmpd_diagonal
from diffsample.guidance.null_space import ddnm, ddnm_plus, ddrm
from diffsample.guidance.output_rules import (
    MagnitudeAware,
    Rescaled,
    Tangential,
    ZeroStar,
    cfg_zero,
    mambo_g,
    rescale,
    tcfg,
)
from diffsample.guidance.projected import AdaptiveProjected, apg
from diffsample.guidance.pseudoinverse import pigdm, pigdm_as_coded
from diffsample.guidance.replacing import mcg, replacement
from diffsample.guidance.schedules import PiecewiseConstant, PiecewiseLinear, piecewise_constant, piecewise_linear
from diffsample.guidance.second_order import stsl
from diffsample.guidance.sensing import Sensing, sense
from diffsample.guidance.spaces import DATA, NOISE, VELOCITY, Space, V
from diffsample.guidance.thresholding import Clipped, DynamicallyThresholded, clip, dynamic_threshold
from diffsample.guidance.two_models import Autoguidance, Perturbed, autoguidance, perturbed
from diffsample.guidance.variational import red_diff

if TYPE_CHECKING:
    from diffsample.guidance.refinement import refine_by_descent, refine_by_langevin

__all__ = [
    "DATA",
    "NOISE",
    "VELOCITY",
    "AdaptiveProjected",
    "Autoguidance",
    "CFGPlusPlus",
    "ClassifierFree",
    "Clipped",
    "Composable",
    "During",
    "DynamicallyThresholded",
    "FrequencyDecoupled",
    "MagnitudeAware",
    "Perturbed",
    "PiecewiseConstant",
    "PiecewiseLinear",
    "Rescaled",
    "Sensing",
    "Space",
    "Tangential",
    "V",
    "ZeroStar",
    "acquisition_steps",
    "active_sensing",
    "apg",
    "autoguidance",
    "belief_entropy",
    "cfg",
    "cfg_pp",
    "cfg_zero",
    "chain",
    "clip",
    "composable",
    "ddnm",
    "ddnm_plus",
    "ddrm",
    "diffpir",
    "dps",
    "dps_gaussian",
    "during",
    "dynamic_threshold",
    "fdg",
    "jfps",
    "krylov",
    "lgd_mc",
    "loss_guidance",
    "mambo_g",
    "mcg",
    "mmps",
    "mpgd",
    "observe",
    "observe_after_step",
    "operators",
    "perturbed",
    "piecewise_constant",
    "piecewise_linear",
    "pigdm",
    "pigdm_as_coded",
    "psld",
    "published_entropy",
    "quantile_levels",
    "quantile_loss",
    "red_diff",
    "refine_by_descent",
    "refine_by_langevin",
    "replacement",
    "rescale",
    "sense",
    "squared_error",
    "stsl",
    "tcfg",
    "tmpd",
    "tmpd_diagonal",
]


def __getattr__(name: str) -> Any:
    """Refinement at first use, because optax takes a third of the import time."""
    if name in ("refine_by_descent", "refine_by_langevin"):
        from diffsample.guidance import refinement

        return getattr(refinement, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
