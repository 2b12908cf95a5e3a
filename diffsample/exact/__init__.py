"""Closed-form laws that are denoisers: oracles for tests, demonstrations and benchmarks, under any process.

>>> Gaussian(0.0, 1.0).evaluations
1
"""

from diffsample.exact.conditional import ClassMixture, Switch
from diffsample.exact.covariance import Covariance
from diffsample.exact.gaussian import Gaussian, PointMass
from diffsample.exact.host import run_on_host
from diffsample.exact.mixture import Mixture
from diffsample.exact.moments import Moments, output_moments

__all__ = [
    "ClassMixture",
    "Covariance",
    "Gaussian",
    "Mixture",
    "Moments",
    "PointMass",
    "Switch",
    "output_moments",
    "run_on_host",
]
