"""Guidance: functions that take a denoiser and give a denoiser, so that every rule works under every sampler."""

if __name__ != "diffsample.guidance":
    raise ImportError("import diffsample.guidance, not guidance")

from typing import TYPE_CHECKING, Any

from diffsample.guidance import krylov, operators
from diffsample.guidance.active import acquisition_steps, active_sensing, belief_entropy, published_entropy
from diffsample.guidance.classifier_based import ClassifierBased, MeanShifted, classifier, mean_shift
from diffsample.guidance.classifier_free import CFGPlusPlus, ClassifierFree, Composable, cfg, cfg_pp, composable
from diffsample.guidance.composition import During, chain, during
from diffsample.guidance.conditions import Annealed, Independent, Relabelled, cads, icg, relabel
from diffsample.guidance.data_space import diffpir, jfps, mpgd
from diffsample.guidance.energies import lgd_mc, loss_guidance
from diffsample.guidance.forecasting import observe, observe_after_step, quantile_levels, quantile_loss, squared_error
from diffsample.guidance.frequency import FrequencyDecoupled, fdg
from diffsample.guidance.gradients import dps, dps_gaussian
from diffsample.guidance.latent import psld
from diffsample.guidance.minority import minority_score, quantile_labels
from diffsample.guidance.moment_matching import mmps, tmpd, tmpd_diagonal
from diffsample.guidance.null_space import ddnm, ddnm_plus, ddrm
from diffsample.guidance.off_the_shelf import Nudged, OffTheShelf, elucd, elucd_nudge, smooth_relu, tempered_log_prob
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
from diffsample.guidance.projected import AdaptiveProjected, ProjectedAfterCFG, apg, apg_mix
from diffsample.guidance.pseudoinverse import pigdm, pigdm_as_coded
from diffsample.guidance.replacing import mcg, replacement
from diffsample.guidance.schedules import PiecewiseConstant, PiecewiseLinear, piecewise_constant, piecewise_linear
from diffsample.guidance.second_order import stsl
from diffsample.guidance.sensing import Sensing, sense
from diffsample.guidance.spaces import DATA, NOISE, VELOCITY, Space, V
from diffsample.guidance.thresholding import Clipped, DynamicallyThresholded, clip, dynamic_threshold
from diffsample.guidance.two_models import Autoguidance, Perturbed, autoguidance, perturbed
from diffsample.guidance.variational import red_diff
from diffsample.wrapping import Fixed, fixed

if TYPE_CHECKING:
    from diffsample.guidance.refinement import refine_by_descent, refine_by_langevin

__all__ = [
    "DATA",
    "NOISE",
    "VELOCITY",
    "AdaptiveProjected",
    "Annealed",
    "Autoguidance",
    "CFGPlusPlus",
    "ClassifierBased",
    "ClassifierFree",
    "Clipped",
    "Composable",
    "During",
    "DynamicallyThresholded",
    "Fixed",
    "FrequencyDecoupled",
    "Independent",
    "MagnitudeAware",
    "MeanShifted",
    "Nudged",
    "OffTheShelf",
    "Perturbed",
    "PiecewiseConstant",
    "PiecewiseLinear",
    "ProjectedAfterCFG",
    "Relabelled",
    "Rescaled",
    "Sensing",
    "Space",
    "Tangential",
    "V",
    "ZeroStar",
    "acquisition_steps",
    "active_sensing",
    "apg",
    "apg_mix",
    "autoguidance",
    "belief_entropy",
    "cads",
    "cfg",
    "cfg_pp",
    "cfg_zero",
    "chain",
    "classifier",
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
    "elucd",
    "elucd_nudge",
    "fdg",
    "fixed",
    "icg",
    "jfps",
    "krylov",
    "lgd_mc",
    "loss_guidance",
    "mambo_g",
    "mcg",
    "mean_shift",
    "minority_score",
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
    "quantile_labels",
    "quantile_levels",
    "quantile_loss",
    "red_diff",
    "refine_by_descent",
    "refine_by_langevin",
    "relabel",
    "replacement",
    "rescale",
    "sense",
    "smooth_relu",
    "squared_error",
    "stsl",
    "tcfg",
    "tempered_log_prob",
    "tmpd",
    "tmpd_diagonal",
]


def __getattr__(name: str) -> Any:
    """Refinement at first use, because optax takes a third of the import time."""
    if name in ("refine_by_descent", "refine_by_langevin"):
        from diffsample.guidance import refinement

        return getattr(refinement, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
