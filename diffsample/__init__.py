"""diffsample: sampling from diffusion models in JAX; solvers, guidance and samplers that compose."""

from diffsample import exact, guidance, solvers, times
from diffsample.adapters import from_callable, from_equinox, from_linen, from_nnx
from diffsample.betas import DiscreteBetas
from diffsample.certify import Certificate, CertificateError, certificate
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
from diffsample.likelihood import (
    LogLikelihood,
    bits_per_dim,
    dequantise,
    every_axis,
    gaussian,
    log_likelihood,
    rademacher,
)
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
from diffsample.sampler import Sampler, View
from diffsample.sampling import NonFiniteError, diffuse, sample
from diffsample.stability import StabilityRegion, real_axis_limit, stability_plot, stability_region, steady_tableau
from diffsample.tableau import Tableau, pad, stack

__version__ = "0.1.0"
__all__ = [
    "AnyProcess",
    "Certificate",
    "CertificateError",
    "Cosine",
    "Denoiser",
    "DiscreteBetas",
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
    "Sampler",
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
    "dequantise",
    "diffuse",
    "every_axis",
    "exact",
    "from_callable",
    "from_equinox",
    "from_linen",
    "from_nnx",
    "gaussian",
    "guidance",
    "log_likelihood",
    "noise_scale",
    "pad",
    "process_time",
    "quarter_log_noise",
    "rademacher",
    "real_axis_limit",
    "sample",
    "solvers",
    "stability_plot",
    "stability_region",
    "stack",
    "steady_tableau",
    "times",
]
