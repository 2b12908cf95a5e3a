"""Rewards and conditions by particles: FK steering, twisted diffusion, DAS, SVDD; closed forms, z-tests, refusals.

z-tests are two-sided at 4 standard errors: false alarms 6e-5 each.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsample as ds
from diffsample import smc, solvers
from diffsample.compiles import count_compiles

VP = ds.VariancePreserving()
KEY = jax.random.key(0)
TILT = 0.0902909  # Z of x0 ~ N(0, 1), r = -(x - 2)^2 / 0.5; posterior N(1.6, 0.2) (specs/smc.md 9.3)


LAW_1 = ds.exact.Gaussian(0.0, 1.5)


def reward(x0, cond):
    return -2.0 * (x0 - 2.0) ** 2


def unit(steps=25):
    """N(0, 1) on VP: the large-variance DDPM step is the exact reverse kernel."""
    grid = ds.times.uniform_logsnr(VP, steps)
    return solvers.linear(ds.exact.Gaussian(0.0, 1.0), solvers.ddpm(VP, grid, large=True))


def near(values, truth, errors=4.0):
    values = np.asarray(values)
    assert abs(values.mean() - truth) < errors * values.std() / np.sqrt(len(values)), (values.mean(), values.std())


def run(potential, groups=64, particles=128, sampler=None, **options):
    fk = smc.feynman_kac(unit() if sampler is None else sampler, potential, particles=particles, **options)
    return ds.sample(KEY, fk, (groups * particles,))


DRAWN = smc.sampled_value(reward, jax.random.key(5), samples=8)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (smc.fk_difference, {}),
        (smc.fk_difference, {"rows": lambda row: row % 5 == 0}),
        (smc.fk_difference, {"value": DRAWN}),
        (smc.fk_max, {"rows": lambda row: row == 20}),
        (smc.fk_immediate, {"rows": lambda row: row == 20}),
        (smc.fk_sum, {"rows": lambda row: (row == 18) | (row == 23)}),
    ],
)
def test_steering_is_unbiased_for_the_tilted_law(make, options):
    out = run(make(reward, **options))
    z = np.exp(out.log_z) / TILT
    assert 0 < z.std() < 2
    near(z, 1.0)
    near(z * np.asarray(out.mean(out.x) - 1.6), 0.0)  # the running maximum in place of the reward: mean 1.398
    near(z * np.asarray(out.mean((out.x - 1.6) ** 2) - 0.2), 0.0)  # weights dropped where ESS is high: 0.272


def test_sampled_value_tends_to_the_optimal_value_of_gaussian_data():
    x = jnp.array([-1.0, 0.3, 1.7])
    level = jax.tree.map(jnp.asarray, VP.level(0.3))
    zero = jnp.zeros(())
    view = ds.View(x, level, LAW_1.predict(x, level), (), zero, zero, jnp.int32(3), jnp.int32(0), jnp.ones((), bool))
    value = smc.sampled_value(reward, KEY, samples=20_000, scale=0.7, variance=1.5)(view, None)
    # E exp(-(x0 - 2)^2 / (2 w)), w = 0.25 / 0.7, of x0 given x_t
    var, w = 1.5 * level.sigma**2 / (1.5 * level.alpha**2 + level.sigma**2), 0.25 / 0.7
    exact = (-0.5 * (view.x0 - 2.0) ** 2 / (w + var) + 0.5 * jnp.log(w / (w + var))) / 0.7
    np.testing.assert_allclose(value, exact, atol=0.1)  # relative deviation of the sum below 3 % everywhere
    assert np.abs(reward(view.x0, None) - exact).max() > 0.5
    other = smc.sampled_value(reward, KEY, samples=20_000, scale=0.7, variance=1.5)(view._replace(index=4), None)
    assert not np.array_equal(value, other)


def test_reward_tilt_of_a_mixture_has_its_normaliser_and_mode_weights():
    # specs/smc.md 9.2: q exp(-(x - 1)^2 / 2), log Z = -2.03797, 0.97018 in the upper mode, mean 2.49265
    law = ds.exact.Mixture([0.3, 0.7], [-3.0, 3.0], [1.0, 0.25])
    grid = ds.times.uniform_logsnr(VP, 80, stop=1e-3, zero=False)
    sampler = solvers.linear(law, solvers.ddpm(VP, grid, large=True))
    out = run(smc.fk_difference(lambda x0, cond: -0.5 * (x0 - 1.0) ** 2), groups=48, particles=256, sampler=sampler)
    z, upper, mean = np.exp(out.log_z + 2.03797), np.asarray(out.mean((out.x > 0) * 1.0)), np.asarray(out.mean(out.x))
    for found, exact, steps in ((z, 1.0, 0.03), (upper, 0.97018, 0.01), (mean, 2.49265, 0.03)):
        assert abs(found.mean() - exact) < 4 * found.std() / np.sqrt(len(found)) + steps


def test_steering_shares_one_program_over_its_scale():
    run(smc.fk_difference(reward, 1.0), groups=2)
    with count_compiles() as compiles:
        run(smc.fk_difference(reward, 0.3), groups=2)
    assert compiles.count == 0


def test_host_rewards_weigh_like_their_jax_twins():
    host = smc.host(lambda x0, cond: -2.0 * (x0 - 2.0) ** 2)
    one, two = (run(smc.fk_difference(r), groups=4) for r in (reward, host))
    np.testing.assert_allclose(one.log_z, two.log_z, rtol=1e-4, atol=1e-4)


def test_rewards_read_the_condition_of_their_group():
    potential = smc.fk_difference(lambda x0, cond: -2.0 * (x0 - cond) ** 2)
    fk = smc.feynman_kac(unit(), potential, particles=256)
    out = ds.sample(KEY, fk, (512,), cond=smc.repeat(jnp.array([2.0, -2.0]), 256))
    assert abs(float(out.mean(out.x)[0]) - 1.6) < 0.25 and abs(float(out.mean(out.x)[1]) + 1.6) < 0.25


LAW = ds.exact.Gaussian([1.0, -1.0], [[1.0, 0.6], [0.6, 2.0]])  # specs/smc.md 9.3b
A, Y, LOG_Y = [[1.0, 1.0]], [2.5], -2.3676378
MEAN, COV = np.array([1.8988764, 0.4606742]), np.array([[0.4247191, -0.3348315], [-0.3348315, 0.4808989]])


def sharp(steps=20):
    grid = ds.times.uniform_logsnr(VP, steps)
    return solvers.linear(LAW, solvers.ddpm(VP, grid, large=True))


def twisted(spread, guide: Any = 1.0, groups=64, particles=128, sampler=None):
    twist, likelihood = smc.linear_twist(A, Y, 0.25, spread)
    sampler = sharp() if sampler is None else sampler
    fk = smc.tds(sampler, twist, likelihood, particles=particles, guide=guide)
    return ds.sample(KEY, fk, (groups * particles, 2))


@pytest.mark.parametrize(
    ("spread", "guide", "deviation"),
    [(smc.optimal, 1.0, 0.12), (smc.inflated, 1.0, 0.2), (smc.optimal, None, 0.5)],
)
def test_twisted_diffusion_estimates_the_evidence_of_its_own_chain(spread, guide, deviation):
    # the truth is that of the discrete chain, whose output is Gaussian and known from its own samples without particles
    out = twisted(spread, guide)
    z = np.exp(out.log_z)
    assert np.asarray(out.log_z).std() < deviation
    x = np.asarray(ds.sample(jax.random.key(1), sharp(), (200_000, 2)))
    mean, cov = x.mean(0), np.cov(x.T)
    sees = np.array(A[0])
    width = sees @ cov @ sees + 0.25
    chain = np.exp(-0.5 * (2.5 - sees @ mean) ** 2 / width) / np.sqrt(2 * np.pi * width)
    assert abs(z.mean() / chain - 1) < 4 * z.std() / z.mean() / np.sqrt(len(z)) + 0.015
    gain = cov @ sees / width
    posterior = mean + gain * (2.5 - sees @ mean)
    np.testing.assert_allclose(np.asarray(out.mean(out.x)).mean(0), posterior, atol=0.03)


@pytest.mark.parametrize(
    ("spread", "guide", "deviation"),
    [(smc.optimal, 1.0, 0.033), (smc.inflated, 1.0, 0.059), (smc.optimal, None, 0.124)],
)
def test_twist_table_has_the_evidence_itself_and_its_deviations(spread, guide, deviation):
    # specs/smc.md 9.3b: 20 steps, 256 particles, 400 groups; the law whitened, so that reverse kernels are exact
    z = whitened(spread, guide)
    near(z, 1.0)
    assert deviation / 1.25 < np.log(z).std() < 1.25 * deviation


def test_naive_twist_is_hopeless_as_the_table_says():
    z = whitened(smc.naive)  # of mean 1 in truth, and carried by groups that four hundred do not hold: 0.22 in the card
    assert z.mean() < 0.5 and 0.8 < np.log(z).std() < 1.6


def whitened(spread, guide: Any = 1.0, groups=400, particles=256):
    """Estimates of p(y) / p(y), one a group."""
    root = np.linalg.cholesky([[1.0, 0.6], [0.6, 2.0]])
    table = solvers.ddpm(VP, ds.times.quadratic(VP, 20), large=True)
    sampler = solvers.linear(ds.exact.Gaussian([0.0, 0.0], 1.0), table)
    twist, likelihood = smc.linear_twist(np.array(A) @ root, np.array(Y) - np.array(A) @ [1.0, -1.0], 0.25, spread)
    fk = smc.tds(sampler, twist, likelihood, particles=particles, guide=guide)
    out = ds.sample(KEY, fk, (groups * particles, 2))
    return np.exp(np.asarray(out.log_z, float) - LOG_Y)


def test_optimal_twist_is_the_evidence_given_the_noisy_state(x64):
    level = jax.tree.map(jnp.asarray, VP.level(0.4))
    x = jax.random.normal(KEY, (5, 2))
    x0, pull = jax.vjp(lambda x: LAW.predict(x, level).x0, x)
    twist, _ = smc.linear_twist(A, Y, 0.25, smc.optimal)
    found = twist(smc.Look(x0, level, lambda v: pull(v)[0]), None)
    joint = LAW.cov.dense()[0]
    noisy = level.alpha**2 * joint + level.sigma**2 * np.eye(2)
    gain = level.alpha * joint @ np.linalg.inv(noisy)
    mean = np.array([[1.0, -1.0]]) + (np.asarray(x) - float(level.alpha) * np.array([[1.0, -1.0]])) @ gain.T
    var = (np.array(A) @ (joint - level.alpha * gain @ joint) @ np.array(A).T).item() + 0.25
    exact = jax.scipy.stats.norm.logpdf(2.5, mean.sum(1), np.sqrt(var))
    np.testing.assert_allclose(found, exact, atol=1e-10)


@pytest.mark.parametrize("steps", [5, 20])
def test_optimally_twisted_chain_of_unit_data_is_exact_at_any_number_of_steps(steps):
    # reward -(x-2)^2 / 0.5: E[exp r | x_t] known, so psi is the optimal twist and only the discrete gradient is not
    def optimal(look, cond):
        var = look.level.sigma**2 / (look.level.alpha**2 + look.level.sigma**2)
        return -0.5 * (look.x0 - 2.0) ** 2 / (0.25 + var) + 0.5 * jnp.log(0.25 / (0.25 + var))

    out = ds.sample(KEY, smc.tds(unit(steps), optimal, reward, particles=128), (64 * 128,))
    z = np.exp(out.log_z) / TILT
    assert z.std() < 0.35
    near(z, 1.0)
    near(z * np.asarray(out.mean(out.x) - 1.6), 0.0)


def test_tempered_twist_of_das_samples_the_tilt_and_shares_one_program():
    def das(scale, rate, groups=64):
        fk = smc.das(unit(50), reward, scale, particles=128, rate=rate, resample=smc.ssp)
        return ds.sample(KEY, fk, (groups * 128,))

    out = das(0.25, 0.03)  # exp(-(x - 2)^2 / 2): posterior N(1, 1 / 2)
    z = np.exp(out.log_z) / (np.sqrt(0.5) * np.exp(-1.0))
    assert z.std() < 0.5
    near(z, 1.0)
    near(z * np.asarray(out.mean(out.x) - 1.0), 0.0)
    with count_compiles() as compiles:
        das(0.5, 0.1)
    assert compiles.count == 0
    np.testing.assert_allclose([smc.tempered(0.008)(i) for i in (0, 87, 88, 100)], [0, 1.0, 1, 1], atol=2e-3)


def test_reward_on_an_annealed_law_is_weighed_by_both():
    # N(0, 1)^2 exp(-(x - 2)^2 / 0.5): precision 2 + 4, mean 8 / 6
    target = smc.annealed(ds.exact.Gaussian(0.0, 1.0), 2.0)
    grid = ds.times.uniform_logsnr(VP, 60)
    pulled = smc.twisted(target, lambda look, cond: reward(look.memory.x0[:, 0], cond), guide=0.5)
    around = smc.start_of(solvers.linear(pulled, solvers.ddpm(VP, grid, large=True)))
    fk = smc.feynman_kac(around, smc.twist_ratio(reward, base=smc.corrector(target)), particles=256)
    out = ds.sample(KEY, fk, (32 * 256,))
    assert abs(float(out.mean(out.x).mean()) - 4 / 3) < 0.06  # the law without the reward: 0
    assert abs(float(out.mean((out.x - 4 / 3) ** 2).mean()) - 1 / 6) < 0.02
    exact = np.log(np.sqrt(2 * np.pi / 6) / (2 * np.pi)) - 8 + 0.5 * 64 / 6
    assert abs(np.log(np.exp(out.log_z - exact).mean())) < 0.1


@pytest.mark.parametrize(("candidates", "mean"), [(1, 0.0), (2, 0.494), (5, 0.778), (20, 0.941)])
def test_svdd_with_the_exact_value_has_the_means_of_the_table(candidates, mean):
    # specs/guidance.md 9: prior N(0, 1), r = x, alpha = 1; rho 20 -> 0.01 in 40 steps; x = rho-space sample
    steps = 40
    rho = np.geomspace(20.0, 0.01, steps + 1)
    grid = ds.times.custom(VP, [float(VP.t_from_half_logsnr(-np.log(r))) for r in rho])
    sampler = solvers.linear(ds.exact.Gaussian(0.0, 1.0), solvers.ddpm(VP, grid, large=True))

    def value(view, cond):
        noise = (view.level.sigma / view.level.alpha) ** 2
        return view.x / view.level.alpha / (1 + noise) + 0.5 * noise / (1 + noise)

    out = np.asarray(ds.sample(KEY, smc.svdd(sampler, value, 1.0, candidates=candidates), (20_000,)))
    assert abs(out.mean() - mean) < 4 / np.sqrt(20_000) + 0.012
    assert abs(out.var() - 1) < 0.05


def test_svdd_of_a_quadratic_reward_and_its_biased_posterior_mean():
    def exact(view, cond):
        var = view.level.sigma**2 / (view.level.alpha**2 + view.level.sigma**2)
        return -0.5 * (view.x0 - 2.0) ** 2 / (0.25 + var)

    run = lambda value, alpha, m: np.asarray(  # noqa: E731
        ds.sample(KEY, smc.svdd(unit(40), value, alpha, candidates=m), (8000,))
    )
    for m, mean, var in ((2, 0.995, 0.497), (10, 1.519, 0.233)):  # specs/smc.md 3.1
        out = run(exact, 1.0, m)
        assert abs(out.mean() - mean) < 0.06 and abs(out.var() - var) < 0.06
    biased = run(smc.posterior_mean(reward), 1.0, 50)
    assert biased.mean() > 1.75 and biased.var() < 0.19
    best = run(smc.posterior_mean(reward), 0.0, 10)
    assert abs(best.mean() - 2.0) < 0.05 and best.var() < 0.02


def test_svdd_of_one_candidate_is_the_sampler_and_memory_saving_changes_nothing():
    value = smc.posterior_mean(reward)
    np.testing.assert_array_equal(
        ds.sample(KEY, smc.svdd(unit(), value, 1.0, candidates=1), (16,)), ds.sample(KEY, unit(), (16,))
    )
    many = smc.svdd(unit(), value, 1.0, candidates=4)
    slow = smc.svdd(unit(), value, 1.0, candidates=4, sequential=True)
    np.testing.assert_allclose(ds.sample(KEY, many, (16,)), ds.sample(KEY, slow, (16,)), rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(
        ds.sample(KEY, many, (16,))[3:5], ds.sample(KEY, many, (2,), first=3), rtol=2e-5, atol=2e-5
    )
    assert many.nfe == 25 + 3 * 24
    with count_compiles() as compiles:
        ds.sample(KEY, smc.svdd(unit(), value, 0.2, candidates=4), (16,))
    assert compiles.count == 0


DETERMINISTIC = solvers.linear(ds.exact.Gaussian(0.0, 1.0), solvers.ddim(VP, ds.times.uniform_logsnr(VP, 5)))


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: run(smc.fk_difference(lambda x0, cond: x0.sum()), groups=1), ValueError, "one number a sample"),
        (lambda: smc.fk_max(ANYTHING), TypeError, "reward must be"),
        (lambda: run(smc.twist_ratio(reward), groups=1), ValueError, "smc.twisted"),
        (
            lambda: ds.sample(KEY, smc.tds(unit(), smc.on_x0(smc.host(reward)), reward, particles=4), (4,)),
            ValueError,
            "give guide=None",
        ),
        (lambda: smc.tds(DETERMINISTIC, smc.on_x0(reward), reward, particles=4), ValueError, "draws no noise"),
        (
            lambda: smc.tds(
                solvers.linear(LAW, solvers.dpmpp_sde(VP, ds.times.uniform_logsnr(VP, 5), eta=0.0)),
                smc.on_x0(reward),
                reward,
                particles=4,
                policy=smc.never,
            ),
            ValueError,
            "has no density",
        ),
        (lambda: smc.sampled_value(reward, KEY, samples=0), ValueError, "samples=0"),
        (lambda: smc.sampled_value(reward, KEY, scale=0.0), ValueError, "scale=0.0 must not be 0"),
        (lambda: smc.svdd(unit(), reward, 1.0, candidates=0), ValueError, "candidates=0"),
        (lambda: smc.svdd(unit(), reward, -1.0, candidates=2), ValueError, "must not be negative"),
        (lambda: smc.svdd(DETERMINISTIC, reward, 1.0, candidates=2), ValueError, "all candidates are the same"),
        (lambda: smc.linear_twist([[1.0, 0.0]], [1.0, 2.0], 1.0), ValueError, "do not fit"),
        (lambda: smc.linear_twist([[1.0, 0.0]], [1.0], 0.0), ValueError, "positive definite"),
    ],
)
def test_bad_arguments_are_named(make, error, said):
    with pytest.raises(error, match=said):
        make()


ANYTHING: Any = 3.0
