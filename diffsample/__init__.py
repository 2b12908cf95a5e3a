"""diffsample: sampling from diffusion models in JAX; solvers, guidance and samplers that compose."""

import importlib
from typing import TYPE_CHECKING, Any

from diffsample import coupling, diagnostics, dimension, discrete, exact, guidance, smc, solvers, times
from diffsample.adapters import from_callable, from_equinox, from_linen, from_nnx
from diffsample.betas import DiscreteBetas
from diffsample.boundary import Boundary, search_boundary
from diffsample.certify import Certificate, CertificateError, certificate
from diffsample.certify_sampler import SamplerCertificate, sampler_certificate
from diffsample.checking import Check, DivergenceError, NonFiniteError
from diffsample.denoiser import (
    AnyProcess,
    Denoiser,
    Network,
    Point,
    Prediction,
    TableIndex,
    noise_scale,
    process_time,
    quarter_log_noise,
)
from diffsample.grid import Grid
from diffsample.process import (
    Cosine,
    FlowMatching,
    Level,
    Process,
    SubVP,
    VarianceExploding,
    VariancePreserving,
)
from diffsample.record import Fold, Stack
from diffsample.runs import Run
from diffsample.sampler import Sampler, View
from diffsample.sampling import diffuse, sample, start
from diffsample.stability import StabilityRegion, real_axis_limit, stability_plot, stability_region, steady_tableau
from diffsample.sweeping import over_seeds, sweep
from diffsample.tableau import Tableau, pad, stack

if TYPE_CHECKING:
    from diffsample import search
    from diffsample.likelihood import (
        LogLikelihood,
        bits_per_dim,
        dequantise,
        log_likelihood,
    )
    from diffsample.many import open_samples, sample_many

__version__ = "0.1.0"
__all__ = [
    "AnyProcess",
    "Boundary",
    "Certificate",
    "CertificateError",
    "Check",
    "Cosine",
    "Denoiser",
    "DiscreteBetas",
    "DivergenceError",
    "FlowMatching",
    "Fold",
    "Grid",
    "Level",
    "LogLikelihood",
    "Network",
    "NonFiniteError",
    "Point",
    "Prediction",
    "Process",
    "Run",
    "Sampler",
    "SamplerCertificate",
    "StabilityRegion",
    "Stack",
    "SubVP",
    "TableIndex",
    "Tableau",
    "VarianceExploding",
    "VariancePreserving",
    "View",
    "bits_per_dim",
    "certificate",
    "coupling",
    "dequantise",
    "diagnostics",
    "diffuse",
    "dimension",
    "discrete",
    "exact",
    "from_callable",
    "from_equinox",
    "from_linen",
    "from_nnx",
    "guidance",
    "log_likelihood",
    "noise_scale",
    "open_samples",
    "over_seeds",
    "pad",
    "process_time",
    "quarter_log_noise",
    "real_axis_limit",
    "sample",
    "sample_many",
    "sampler_certificate",
    "search",
    "search_boundary",
    "smc",
    "solvers",
    "stability_plot",
    "stability_region",
    "stack",
    "start",
    "steady_tableau",
    "sweep",
    "times",
]


def __getattr__(name: str) -> Any:
    """Likelihood, search and large jobs at first use: diffrax, flax and tensorstore take much of the import time."""
    if name in ("open_samples", "sample_many"):
        return getattr(importlib.import_module("diffsample.many"), name)
    if name == "search":
        return importlib.import_module("diffsample.search")
    if name in (
        "LogLikelihood",
        "bits_per_dim",
        "dequantise",
        "log_likelihood",
    ):
        from diffsample import likelihood

        return getattr(likelihood, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
