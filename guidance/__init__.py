"""Guidance: functions that take a denoiser and give a denoiser, so that every rule works under every sampler."""

if __name__ != "diffsample.guidance":
    raise ImportError("import diffsample.guidance, not guidance")

from diffsample.guidance.classifier_free import ClassifierFree, cfg
from diffsample.guidance.composition import During, chain, during
from diffsample.guidance.projected import AdaptiveProjected, apg
from diffsample.guidance.schedules import PiecewiseConstant, PiecewiseLinear, piecewise_constant, piecewise_linear
from diffsample.guidance.thresholding import Clipped, DynamicallyThresholded, clip, dynamic_threshold

__all__ = [
    "AdaptiveProjected",
    "ClassifierFree",
    "Clipped",
    "During",
    "DynamicallyThresholded",
    "PiecewiseConstant",
    "PiecewiseLinear",
    "apg",
    "cfg",
    "chain",
    "clip",
    "during",
    "dynamic_threshold",
    "piecewise_constant",
    "piecewise_linear",
]
