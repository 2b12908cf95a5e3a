"""Exponents that rise as noise falls: their values, the laws they reach, and the lone modes that they do not starve."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsample as ds
from diffsample import smc, solvers
from diffsample.compiles import count_compiles
from diffsample.struct import pytree

VP = ds.VariancePreserving()
KEY = jax.random.key(0)
Q = ds.exact.Mixture([0.3, 0.7], [-3.0, 3.0], [1.0, 0.25])  # specs/smc.md 9.2
Q2 = ds.exact.Mixture([0.6, 0.4], [-2.0, 2.5], [0.64, 0.64])
QC = ds.exact.Mixture([0.8, 0.2], [-3.0, 3.0], [1.0, 0.25])


def noise(rho):
    return ds.Level(None, jnp.float32(2.0), jnp.float32(2.0 * rho))


def test_exponents_sum_to_one_above_and_are_the_last_below():
    for last, first in ((3.0, 1.0), ([1.0, 1.0], [0.5, 0.5]), ([3.0, -2.0], [3.0, -2.0])):
        cooling = smc.rising(last, high=2.0, low=0.5)
        np.testing.assert_allclose(cooling(noise(80.0)), first, rtol=1e-6)
        np.testing.assert_allclose(cooling(noise(1.0)), (np.array(first) + np.array(last)) / 2, rtol=1e-6)
        np.testing.assert_allclose(cooling(noise(0.0)), last, rtol=1e-6)
    np.testing.assert_allclose(smc.rising([3.0, -2.0], first=[1.0, 0.0], high=2.0, low=0.5)(noise(9.0)), [1.0, 0.0])


@pytree
class Densities:
    """Those of the experts in x, as `corrector` takes them."""

    experts: tuple

    def __call__(self, x, level):
        return jnp.stack([expert.log_prob(x, level) for expert in self.experts], axis=1)


def run(experts, exponents, *, known=True, steps=100, **given):
    moments: dict[str, Any] = {"means": [1.2] * len(experts), "variances": [8.0] * len(experts)} | given
    rows = solvers.ddpm(VP, ds.times.uniform_logsnr(VP, steps, stop=1e-3, zero=False), large=True)
    sampler = solvers.linear(smc.product(experts, exponents, **moments), rows)

    def weights(target):
        return smc.corrector(target, log_density=Densities(tuple(experts)) if known else None)

    out = ds.sample(KEY, smc.corrected(sampler, particles=512, weights=weights), (16 * 512,))
    return np.asarray(out.log_z), np.asarray(out.mean((out.x > 0).astype(float)))


MIXED = {"means": [-1.8, 1.2], "variances": [6.61, 8.035]}
COOLING = smc.rising([3.0], high=1.0, low=0.2)
CASES = {  # experts, exponents, options -> log Z, P(x > 0) (specs/smc.md 9.2), tolerances of both
    "anneal 3": ([Q], COOLING, {}, -2.05143, 0.98070, 0.03, 0.003),
    "product": ([Q, Q2], smc.rising([1.0, 1.0], high=1.5, low=0.3), {}, -1.93632, 0.7134, 0.03, 0.02),
    "guided 3": (
        [QC, Q],
        smc.rising([3.0, -2.0], first=[1.0, 0.0], high=2.0, low=0.3),
        MIXED,
        1.7413,
        0.0041,
        0.1,
        0.01,
    ),
    "carried": ([Q], COOLING, {"known": False, "steps": 400}, -2.05143, 0.98070, 0.08, 0.003),
}


@pytest.mark.parametrize("name", CASES)
def test_rising_exponents_reach_the_law_of_the_last_ones(name):
    experts, exponents, options, log_z, positive, near, close = CASES[name]
    found, share = run(experts, exponents, **options)
    assert abs(np.log(np.exp(found - log_z).mean())) < near
    assert abs(share.mean() - positive) < close


def test_rising_exponents_halve_the_deviations_of_fixed_ones_and_compile_once():
    late, shares = run([Q], COOLING)
    with count_compiles() as compiles:
        run([Q], smc.rising([2.0], high=2.0, low=0.1))
    assert compiles.count == 0
    early, others = run([Q], [3.0])
    assert late.std() < 0.35 * early.std()  # 0.039 and 0.235
    assert shares.std() < 0.5 * others.std()  # 0.0021 and 0.0071


CROWD = ds.exact.Mixture(np.full(7, 1 / 7), [0.0, 2.5, 5.0, 7.5, 10.0, 12.5, 60.0], 0.25)


def test_a_lone_mode_keeps_its_ancestors():
    # while noise blurs the six that are near each other, q^3 gives them 6^3 times the lone one's share; later 6 times
    process = ds.VarianceExploding(0.05, 200.0)
    x = jnp.linspace(-10.0, 70.0, 16001)
    density = np.exp(3 * np.asarray(CROWD.log_prob(x)))
    exact = density[np.asarray(x) > 30].sum() / density.sum()
    spread = {}
    for name, beta in (("rising", smc.rising(3.0, high=0.6, low=0.1)), ("fixed", 3.0)):
        rows = solvers.ddpm(process, ds.times.uniform_logsnr(process, 600), large=True)
        sampler = solvers.linear(smc.annealed(CROWD, beta, mean=13.9, variance=370.0), rows)
        out = ds.sample(KEY, smc.corrected(sampler, particles=512), (16 * 512,))
        share = np.asarray(out.mean((out.x > 30).astype(float)))
        spread[name] = np.sqrt(np.mean((share - exact) ** 2))
    assert spread["rising"] < 0.04 and spread["fixed"] > 0.08  # 0.027 and 0.130 of 0.143


def test_log_densities_of_gaussian_experts_are_carried_exactly_at_any_number_of_steps(x64):
    law = ds.exact.Gaussian(1.0, 2.0)
    rows = solvers.ddpm(VP, ds.times.uniform_logsnr(VP, 5), large=True)
    target, found = smc.annealed(law, smc.rising(3.0, high=1.0, low=0.1), mean=1.0, variance=2.0), []
    for known in (None, Densities((law,))):
        potential = smc.corrector(target, log_density=known)
        sampler = smc.start_of(solvers.linear(target, rows))
        fk = smc.feynman_kac(sampler, potential, particles=64, policy=smc.never)
        found.append(ds.sample(KEY, fk, (64,), dtype=jnp.float64).log_w)
    np.testing.assert_allclose(*found, atol=1e-9)
    assert found[0].std() > 0.1


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: smc.rising(3.0, high=0.5, low=0.5), "needs 0 < low < high"),
        (lambda: smc.rising(3.0, high=0.5, low=0.0), "needs 0 < low < high"),
        (lambda: smc.rising([1.0, 1.0], first=[1.0], high=2.0, low=0.5), "one exponent an expert"),
        (lambda: smc.rising([1.0, -1.0], high=2.0, low=0.5), "positive sum"),
    ],
)
def test_rises_that_cannot_be_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
