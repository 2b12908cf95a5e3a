"""DCPS: exact under its weights; fit and Langevin steps against closed forms; z-tests at 4 errors (6e-5 each)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsample as ds
from diffsample import smc, solvers
from diffsample.compiles import count_compiles
from diffsample.smc.rewards.own_moves import call_at

VP = ds.VariancePreserving()
KEY = jax.random.key(0)
Y, R = 1.5, 0.5  # y = x + n, n ~ N(0, R)


def unit(steps=12):
    """N(0, 1) on VP: the large-variance DDPM step is the exact reverse kernel."""
    table = solvers.ddpm(VP, ds.times.uniform_logsnr(VP, steps), large=True)
    return solvers.linear(ds.exact.Gaussian(0.0, 1.0), table)


def likelihood(x, cond):
    each = -0.5 * (x - Y) ** 2 / R - 0.5 * jnp.log(2 * jnp.pi * R)
    return each.reshape(len(x), -1).sum(axis=1)


@pytest.mark.parametrize(("blocks", "fits"), [(1, 2), (3, 2), (3, 0)])
def test_weights_make_any_blocks_and_fits_exact(blocks, fits):
    # p(y) = N(y; 0, 1 + R), posterior mean y / (1 + R)
    sampler = smc.dcps(unit(), likelihood, blocks=blocks, fits=fits, langevin=0)
    out = ds.sample(KEY, smc.feynman_kac(sampler, smc.dcps_weight(sampler), particles=64), (128 * 64,))
    z = np.exp(np.asarray(out.log_z) + 0.5 * Y**2 / (1 + R)) * np.sqrt(2 * np.pi * (1 + R))
    error = z * np.asarray(out.mean(out.x) - Y / (1 + R))
    assert z.std() < 1.0
    assert abs(z.mean() - 1) < 4 * z.std() / np.sqrt(len(z))
    assert abs(error.mean()) < 4 * error.std() / np.sqrt(len(error))


def one_row(sampler, row, x, keys):
    """x after the move and Langevin steps of a row, from the state left by a call at x one row before."""
    rows = sampler.steps
    state = sampler.init(keys, x, None)
    before, here = (jax.tree.map(lambda leaf, i=i: jnp.asarray(leaf)[i], rows) for i in (row - 1, row))
    called = call_at(sampler.linear, keys, state.inner, x, before.inner, None)
    return jax.jit(sampler.step)(keys, state._replace(inner=called), here, None).inner.registers[0]


def chain_value(sampler, bridge):
    """(slope, precision) of log psi(x) = -precision (y - slope x)^2 / 2 for data N(0, 1), where x0 = alpha x."""
    level = sampler.linear.tableau.now
    slope = (bridge.state + bridge.clean * level.alpha) / bridge.alpha
    return np.asarray(slope, np.float64), np.asarray(bridge.strength, np.float64) / R


def test_fits_find_the_nearest_gaussian(x64):
    # KL to N(m, s^2) psi is smallest at precision 1 / s^2 + p k^2, for psi of precision p and slope k. Steps have a
    # length of their own, so that they settle at the mean of their random slopes in many dimensions only.
    n, row = 60, 6
    sampler = smc.dcps(unit(), likelihood, blocks=2, fits=200, rate=0.015, langevin=0)
    found = np.asarray(one_row(sampler, row, jnp.full((n, 100), 0.4), jax.random.split(KEY, n)))
    slope, precision = (v[row] for v in chain_value(sampler, sampler.reached))
    now, to = (float(sampler.linear.tableau.now.alpha[i]) for i in (row - 1, row))
    keep = now / to
    mean, square = keep * 0.4, 1 - keep**2
    exact = 1 / square + precision * slope**2
    peak = (mean / square + precision * slope * Y) / exact
    assert abs(found.mean() - peak) < 4 * found.std() / np.sqrt(found.size) + 0.02 * np.sqrt(square)
    assert abs(found.std() * np.sqrt(exact) - 1) < 4 / np.sqrt(2 * found.size) + 0.03
    assert abs(peak - mean) > 0.1 and exact * square > 1.1


def test_langevin_steps_leave_the_posterior_of_the_block(x64):
    # p_t psi of data N(0, 1): precision 1 + p k^2, mean p k y / that; bias of a step of 0.02: 1 %
    n, row = 4000, 6
    sampler = smc.dcps(unit(), likelihood, blocks=2, fits=0, langevin=200, step_size=0.02)
    assert np.flatnonzero(sampler.opens).tolist() == [0, row]
    found = np.asarray(one_row(sampler, row, jnp.full(n, -1.0), jax.random.split(KEY, n)))
    slope, precision = (v[row] for v in chain_value(sampler, sampler.coming))
    exact = 1 + precision * slope**2
    peak = precision * slope * Y / exact
    assert abs(found.mean() - peak) < 4 * found.std() / np.sqrt(n) + 0.02
    assert abs(found.var() * exact - 1) < 4 * np.sqrt(2 / n) + 0.06
    assert peak > 0.3


def test_alone_it_comes_near_the_posterior_and_shares_one_program():
    def run(**options: Any):
        sampler = smc.dcps(unit(24), likelihood, blocks=4, fits=3, langevin=5, **options)
        return np.asarray(ds.sample(KEY, sampler, (4000,)))

    x = run(rate=0.2, step_size=0.02)
    assert abs(x.mean() - Y / (1 + R)) < 0.15 and abs(x.var() - R / (1 + R)) < 0.12  # the prior: 0 and 1
    with count_compiles() as compiles:
        run(rate=0.1, step_size=0.01)
    assert compiles.count == 0


def test_a_sample_does_not_depend_on_its_batch():
    sampler = smc.dcps(unit(), likelihood, blocks=3, langevin=2)
    whole = ds.sample(KEY, sampler, (6,))
    np.testing.assert_allclose(ds.sample(KEY, sampler, (2,), first=3), whole[3:5], rtol=2e-5, atol=2e-5)
    assert sampler.nfe == 12 + 2 * 11 + 2 * 3


ETA_0 = solvers.linear(ds.exact.Gaussian(0.0, 1.0), solvers.ddim(VP, ds.times.uniform_logsnr(VP, 5)))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: smc.dcps(unit(), likelihood, blocks=13), "blocks=13 must be 1 to 12"),
        (lambda: smc.dcps(unit(), likelihood, rate=0.0), "must be positive"),
        (lambda: smc.dcps(ETA_0, likelihood), "draws no noise"),
        (lambda: ds.sample(KEY, smc.dcps(unit(), lambda x, cond: x.sum()), (2,)), "one a sample"),
        (
            lambda: smc.feynman_kac(smc.dcps(unit(), likelihood), smc.dcps_weight(smc.dcps(unit(), likelihood)),
                                    particles=4),
            "use dcps",
        ),
        (lambda: smc.feynman_kac(unit(), smc.dcps_weight(smc.dcps(unit(), likelihood)), particles=4), "found a Linear"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(make, said):
    with pytest.raises(ValueError, match=said):
        make()
