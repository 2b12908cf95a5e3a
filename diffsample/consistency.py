"""Consistency functions as networks: f(x, sigma) = c_skip x + c_out F, the end of the path through x.

As denoisers they answer f where others answer E[x0 | x_t]: `solvers.consistency_multistep` samples with them, and a
table of one step is a one-step generator, of a distilled score model too: D(sigma_init z, t_init) is
`solvers.ddim(process, [t_init, 0])`. CFG of a consistency function extrapolates end points; it is no score guidance.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array

from diffsample.denoiser import Network, PyTree, expand, noise_scale
from diffsample.process import Process


def quarter_log(rho: Array) -> Array:
    """ln(rho) / 4, the time of the network."""
    return 0.25 * jnp.log(rho)


@dataclass(frozen=True)
class ConsistencyApply:
    """The preconditioning around a raw network F, as the `apply` of a `Network` whose time is sigma."""

    raw: Callable[..., Array]
    sigma_data: float
    sigma_min: float
    time: Callable[[Array], Array]

    def __call__(self, params: PyTree, x: Array, sigma: Array, cond: PyTree) -> Array:
        data, above = self.sigma_data, sigma - self.sigma_min
        total = jnp.sqrt(sigma**2 + data**2)
        out = self.raw(params, x / expand(total, x), self.time(sigma), cond)
        return expand(data**2 / (above**2 + data**2), x) * x + expand(data * above / total, x) * out


def consistency_function(
    apply: Callable[..., Array],
    params: PyTree = (),
    *,
    sigma_data: float = 0.5,
    sigma_min: float = 0.002,
    time: Callable[[Array], Array] = quarter_log,
    process: Process | None = None,
    dtype: Any = None,
) -> Network:
    """Consistency function of iCT: c_skip x + c_out F(x / sqrt(sigma^2 + sigma_data^2), time(sigma), cond).

    c_skip = sigma_data^2 / ((sigma - sigma_min)^2 + sigma_data^2), c_out = sigma_data (sigma - sigma_min) /
    sqrt(sigma^2 + sigma_data^2): whatever F is, f(x, sigma_min) = x. In EDM's variables, on `VarianceExploding`; on
    another process wrap it as `AnyProcess` and name `process=VarianceExploding(...)` here.

    Args:
        apply: the raw network F, as for `Network`: (params, x, time, cond) -> array of x's shape.
        params: pytree of weights.
        sigma_data: standard deviation of the data in training.
        sigma_min: level at which paths end.
        time: the network's time from sigma [B].
        process, dtype: as for `Network`.

    Raises:
        ValueError: sigma_data that is not positive, or a negative sigma_min.

    Reference: Song et al. 2023, arXiv 2303.01469, appendix C; Song & Dhariwal 2023, arXiv 2310.14189.

    >>> import diffsample as ds
    >>> f = consistency_function(lambda p, x, t, cond: 0 * x)
    >>> table = ds.solvers.consistency_multistep(ds.VarianceExploding(), [80.0, 0.8, 0.002], sigma_min=0.002)
    >>> ds.solvers.linear(f, table).nfe
    2
    """
    if not sigma_data > 0 or sigma_min < 0:
        raise ValueError(f"consistency_function needs sigma_data > 0 and sigma_min >= 0, got {sigma_data}, {sigma_min}")
    wrapped = ConsistencyApply(apply, float(sigma_data), float(sigma_min), time)
    return Network(wrapped, params, predicts="data", time=noise_scale, process=process, dtype=dtype)
