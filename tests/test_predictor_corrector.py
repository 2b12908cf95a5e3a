"""Predictor-corrector: the stationary law of the Langevin step, independence of the batch, calls, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsample as ds
from diffsample import solvers
from diffsample.sampling import CLOSING_STREAM
from diffsample.solvers.langevin import batch_mean_ratio, per_sample_ratio

VE, VP = ds.VarianceExploding(0.01, 50.0), ds.VariancePreserving()
BETAS = ds.DiscreteBetas.linear()
KEY = jax.random.key(3)
UNIT = ds.exact.Gaussian(0.0, 1.0)


@pytest.mark.parametrize("ratio", [per_sample_ratio, batch_mean_ratio])
@pytest.mark.parametrize(("process", "r"), [(VE, 0.16), (VE, 0.5), (BETAS, 0.5)])
def test_langevin_inflates_the_stationary_variance(process, r, ratio):
    """v (1 + a r^2), a = (alpha_s / alpha_t)^2, at d = 16384.

    From variance V, ||score||^2 = d V / v^2, so e = 2 a r^2 v^2 / V and V' = V (1 - e / v)^2 + 2 e; this is
    its fixed point. At r = 0.16: 1.0256; the 1.02627 of specs/solvers.md, 5, is 1 / (1 - r^2), which takes
    ||score|| at V = v.
    """
    grid = ds.times.custom(process, [2.0, 1.0] if process is VE else [1.0, 0.98])
    a = (grid.alpha[0] / grid.alpha[1]) ** 2
    v = float(grid.alpha[0] ** 2 + grid.sigma[0] ** 2)
    chain = solvers.annealed_langevin(UNIT, process, grid, snr=r, corrections=150, denoise=False, ratio=ratio)
    x = jnp.sqrt(1.3 * v) * jax.random.normal(jax.random.key(1), (4, 16384))
    _, var = ds.sample(KEY, chain, x=x, record=lambda view: jnp.mean(view.x**2) / v)
    # one mean of 65536 squares has a standard error of 0.55 %; 50 of them at r = 0.16, correlated, have 0.35 %
    np.testing.assert_allclose(var[100:].mean(), 1 + a * r**2, rtol=0.015)  # over 4 of them: false alarm below 1e-4
    step = 2 * a * r**2 / var[0]
    np.testing.assert_allclose(var[1], var[0] * (1 - step) ** 2 + 2 * step, rtol=0.015)


def test_one_langevin_step_is_the_published_formula():
    """On a point mass at 0 the score at sigma = 2 is -x / 4; the draw is that of the closing row."""
    x = jnp.array([[3.0, 0.0, 4.0, 0.0], [6.0, 0.0, 8.0, 0.0]])
    keys = [jax.random.fold_in(jax.random.fold_in(KEY, i), CLOSING_STREAM) for i in range(2)]
    z = np.stack([jax.random.normal(key, (4,)) for key in keys])
    for r in (0.0, 0.5):
        chain = solvers.annealed_langevin(ds.exact.PointMass(0.0), VE, [2.0, 1.0], snr=r, corrections=1, denoise=False)
        step = 2 * (r * np.linalg.norm(z, axis=1) / np.array([5 / 4, 10 / 4])) ** 2
        expected = x - step[:, None] * x / 4 + np.sqrt(2 * step)[:, None] * z
        np.testing.assert_allclose(ds.sample(KEY, chain, x=x), expected, rtol=1e-5)


def test_calls_and_levels_of_the_corrector():
    grid = ds.times.uniform(VP, 4)
    for table, calls in ((solvers.reverse_diffusion(VP, grid), 4 * 3), (solvers.heun(VP, grid), 7 + 4 * 2)):
        sampler = solvers.predictor_corrector(UNIT, table, corrections=2)
        assert sampler.nfe == calls
        _, seen = ds.sample(KEY, sampler, (2, 3), record=lambda view: (view.level.t, view.index, view.stage))
        assert len(seen[0]) == calls
        np.testing.assert_allclose(np.unique(seen[0])[::-1][: len(grid.t) - 1], grid.t[:-1], rtol=1e-6)
        assert (np.diff(seen[1]) >= 0).all() and seen[1][-1] == 3
        np.testing.assert_array_equal(seen[2] == 0, np.append(True, np.diff(seen[1]) > 0))
        assert (np.diff(seen[2])[seen[2][1:] > 0] == 1).all()


def test_no_corrections_is_the_predictor():
    table = solvers.ddpm(VP, ds.times.uniform(VP, 5))
    plain = ds.sample(KEY, solvers.linear(UNIT, table), (4, 3))
    np.testing.assert_array_equal(
        ds.sample(KEY, solvers.predictor_corrector(UNIT, table, corrections=0), (4, 3)), plain
    )
    nothing = solvers.predictor_corrector(UNIT, solvers.heun(VP, ds.times.uniform(VP, 5)), snr=0.0, corrections=2)
    heun = ds.sample(KEY, solvers.linear(UNIT, solvers.heun(VP, ds.times.uniform(VP, 5))), (4, 3))
    np.testing.assert_allclose(ds.sample(KEY, nothing, (4, 3)), heun, rtol=1e-5, atol=1e-6)


def test_correction_mends_a_poor_predictor():
    """Data N(0, 1/4), DDIM of few steps from the wrong variance: the corrector brings it towards 1/4."""
    law, grid = ds.exact.Gaussian(0.0, 0.25), ds.times.uniform_logsnr(VE, 20, zero=False)
    x = 25.0 * jax.random.normal(jax.random.key(1), (8, 4096))  # half the standard deviation it should have
    plain = ds.sample(KEY, solvers.linear(law, solvers.ddim(VE, grid)), x=x).var()
    mended = ds.sample(KEY, solvers.predictor_corrector(law, solvers.ddim(VE, grid), corrections=10), x=x).var()
    assert abs(float(plain) / 0.25 - 1) > 0.5 and abs(float(mended) / 0.25 - 1) < 0.1


def test_samples_are_independent_of_the_batch_unless_the_published_rule_is_asked_for():
    table = solvers.reverse_diffusion(VE, ds.times.uniform_logsnr(VE, 4))
    x = jnp.linspace(-60.0, 60.0, 24).reshape(6, 4)

    def run(ratio, x, first=0):
        return ds.sample(KEY, solvers.predictor_corrector(UNIT, table, ratio=ratio), x=x, first=first)

    whole = run(per_sample_ratio, x)
    np.testing.assert_allclose(run(per_sample_ratio, x[4:], first=4), whole[4:], rtol=1e-5, atol=1e-5)
    joint = run(batch_mean_ratio, x)
    assert np.abs(run(batch_mean_ratio, x[4:], first=4) - joint[4:]).max() > 1e-2
    np.testing.assert_allclose(run(batch_mean_ratio, x[4:5], first=4), whole[4:5], rtol=1e-5, atol=1e-5)


def test_a_denoiser_with_memory_and_a_gradient_pass():
    guided = ds.guidance.apg(ds.Network(tilted, 0.8, predicts="noise"), 2, 3.0, radius=0.7, momentum=-0.5)
    table = solvers.ddim(VP, ds.times.uniform(VP, 3))

    def run(snr):
        sampler = solvers.predictor_corrector(guided, table, snr=snr)
        return ds.sample(KEY, sampler, (4, 3), cond=jnp.arange(4) % 2).sum()

    slope = jax.grad(run)(0.1)
    np.testing.assert_allclose(slope, (run(0.11) - run(0.09)) / 0.02, rtol=0.05)


def tilted(params, x, t, cond):
    return jnp.tanh(params * x) + 0.1 * cond[:, None]


def test_a_langevin_step_has_no_gain():
    sampler = solvers.predictor_corrector(UNIT, solvers.ddpm(VP, [1.0, 0.5, 0.1]))
    _, gain = ds.sample(KEY, sampler, (2, 3), record=lambda view: view.gain)
    np.testing.assert_array_equal(np.isnan(gain), [True, False, True, False])


def test_what_it_refuses():
    grid = ds.times.uniform(VP, 5)
    for table in (solvers.dpmpp(VP, grid), solvers.plms(VP, grid), solvers.ghvb(VP, grid)):
        with pytest.raises(ValueError, match="more than the state"):
            solvers.predictor_corrector(UNIT, table)
    with pytest.raises(ValueError, match="corrections=-1"):
        solvers.predictor_corrector(UNIT, solvers.ddim(VP, grid), corrections=-1)
    with pytest.raises(ValueError, match="at least 1"):
        solvers.annealed_langevin(UNIT, VP, grid, corrections=0)
    for table in (solvers.heun(VP, grid, churn=4.0, churn_max=50.0), solvers.rk4(VP, grid), solvers.ddpm(VP, grid)):
        solvers.predictor_corrector(UNIT, table)
