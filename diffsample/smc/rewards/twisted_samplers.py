"""Twisted particles put together: TDS and DAS."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

from jax import Array

from diffsample.denoiser import PyTree
from diffsample.smc.filtering import FeynmanKac, feynman_kac
from diffsample.smc.functions import as_pytree
from diffsample.smc.policies import Policy
from diffsample.smc.resamplers.resampling import systematic
from diffsample.smc.rewards.twisting import twist_ratio, twisted
from diffsample.smc.rewards.twists import Look, Scaled, on_x0, tempered


def tds(
    sampler: Any,
    log_twist: Callable[[Look, PyTree], Array],
    log_final: Callable[[Array, PyTree], Array],
    *,
    particles: int,
    strength: Any = None,
    guide: Any = 1.0,
    base: Any = None,
    resample: Any = systematic,
    policy: Policy | None = None,
) -> FeynmanKac:
    """TDS, the twisted diffusion sampler: particles that follow grad log psi and are weighed for it.

    Carries p(x) exp(log_final(x)) / Z, exactly as particles grow, for any twist and number of steps; exp(log_z) is an
    unbiased estimate of Z = E[exp log_final] under the sampler. One call and one vector-Jacobian product a row and
    particle.

    Args:
        sampler: `solvers.linear(denoiser, table)`, a one-register table with noise in every move (`ddpm`); its denoiser
            is twisted here, also inside of `started` and `lagged`.
        log_twist, strength, guide: as for `twisted`. log_final, base: as for `twist_ratio`.
        particles, resample, policy: as for `feynman_kac`.

    Raises:
        TypeError: a sampler that drives no denoiser, such as `svdd`.

    Reference: Wu et al. 2023, arXiv 2306.17775, algorithm 1.

    >>> import jax, diffsample as ds
    >>> process = ds.VariancePreserving()
    >>> table = ds.solvers.ddpm(process, ds.times.uniform_logsnr(process, 20), large=True)
    >>> sampler, up = ds.solvers.linear(ds.exact.Gaussian(0.0, 1.0), table), lambda x0, cond: x0
    >>> out = ds.sample(jax.random.key(0), tds(sampler, ds.smc.on_x0(up), up, particles=256), (256,))
    >>> bool(abs(out.mean(out.x)[0] - 1) < 0.2)
    True
    """
    around = _driving(sampler, partial(twisted, log_twist=log_twist, strength=strength, guide=guide))
    potential = twist_ratio(log_final, base=base)
    return feynman_kac(around, potential, particles=particles, resample=resample, policy=policy)


def das(
    sampler: Any,
    reward: Callable[[Array, PyTree], Array],
    scale: Any,
    *,
    particles: int,
    rate: Any = 0.008,
    resample: Any = systematic,
    policy: Policy | None = None,
) -> FeynmanKac:
    """DAS: TDS for a reward, psi_t = exp(lambda_t scale r(x0)), tempered as lambda_i = min((1 + rate)^i - 1, 1).

    Early predictions, which mean little, count little. Carries p(x) exp(scale r(x)) / Z.

    Args:
        sampler, particles, policy: as for `tds`. resample: the paper's is `smc.ssp`.
        reward: (x0, condition) -> [B], with a gradient. scale: 1 / alpha_KL, a leaf.
        rate: gamma; 0.008 reaches 1 after 87 steps.

    Reference: Kim et al. 2025, arXiv 2501.05803.

    >>> import diffsample as ds
    >>> float(ds.smc.tempered(0.008)(88))
    1.0
    """
    weight = Scaled(as_pytree(reward), scale)
    return tds(
        sampler,
        on_x0(weight),
        weight,
        particles=particles,
        strength=tempered(rate),
        resample=resample,
        policy=policy,
    )


def _driving(sampler: Any, twist: Callable[[Any], Any]) -> Any:
    """The sampler with its denoiser twisted, inside of wrappers that leave its moves alone too."""
    if not hasattr(sampler, "denoiser"):
        raise TypeError(f"tds twists the denoiser of solvers.linear(denoiser, table) and weighs its moves, and found a "
                        f"{type(sampler).__name__}, whose moves are others")  # fmt: skip
    if hasattr(sampler, "sampler"):
        return dataclasses.replace(sampler, sampler=_driving(sampler.sampler, twist))
    return dataclasses.replace(sampler, denoiser=twist(sampler.denoiser))
