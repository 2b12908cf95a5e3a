"""Guidance: functions that take a denoiser and give a denoiser, so that every rule works under every sampler."""

if __name__ != "diffsample.guidance":
    raise ImportError("import diffsample.guidance, not guidance")

from diffsample.guidance.classifier_free import ClassifierFree, cfg
from diffsample.guidance.projected import AdaptiveProjected, apg

__all__ = ["AdaptiveProjected", "ClassifierFree", "apg", "cfg"]
