"""Particle Gibbs on a diffusion sampler: the exact Gaussian law of its paths, tilted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsample as ds
from diffsample import smc, solvers
from diffsample.exact.moments import Moments
from diffsample.smc import ConditionalSMC, StepwiseReward

PROCESS = ds.VariancePreserving()
CALLS = 6
LIMIT = 4.5  # 27 z-scores a kernel, 3 kernels: false alarm 6e-4 over all


def sampler(steps=CALLS, **options):
    grid = ds.times.uniform_logsnr(PROCESS, steps, zero=True)
    return solvers.linear(ds.exact.Gaussian(0.0, 1.0), solvers.ddpm(PROCESS, grid, **options))


def reward(x):
    """-(x - 2)^2 / (2 x 0.25): of N(0, 1) it leaves N(1.6, 0.2) (specs/smc.md 9.3)."""
    return -2.0 * jnp.sum((x - 2.0) ** 2, axis=1)


def score(seen, row):
    return reward(seen.x0)


def tilted():
    return StepwiseReward(smc.diffusion_paths(sampler(), (1,)), score)


def exact_paths():
    """Mean and covariance of x_0:5 under Q: the linear chain read off the table, times the Gaussian reward."""
    table = solvers.ddpm(PROCESS, ds.times.uniform_logsnr(PROCESS, CALLS, zero=True))
    alpha, sigma = table.now.alpha, table.now.sigma
    u, w = table.store[:, 0], table.store[:, 1]
    kept = u * alpha + w * sigma  # of x_t, since E[x0 | x_t] = alpha x_t and E[eps | x_t] = sigma x_t
    factor = table.A[1:, 0, 0] + table.B[1:, 0, 0] * kept
    precision = np.zeros((CALLS, CALLS))
    precision[0, 0] = 1 / sigma[0] ** 2
    for k in range(1, CALLS):
        move = np.eye(CALLS)[k] - factor[k - 1] * np.eye(CALLS)[k - 1]
        precision += np.outer(move, move) / table.c[k, 0] ** 2
    precision[-1, -1] += factor[-1] ** 2 / 0.25
    covariance = np.linalg.inv(precision)
    return covariance[:, -1] * factor[-1] * 2 / 0.25, covariance, factor[-1]


def z_scores(x):
    x = np.asarray(x, np.float64)
    mean, covariance, _ = exact_paths()
    centred = x - mean
    second = (centred.T @ centred / len(x) - covariance)[np.tril_indices(CALLS)]
    spread = (np.outer(np.diag(covariance), np.diag(covariance)) + covariance**2)[np.tril_indices(CALLS)]
    return np.concatenate([centred.mean(0) / np.sqrt(np.diag(covariance)), second / np.sqrt(spread)]) * len(x) ** 0.5


def draw_paths(n):
    mean, covariance, _ = exact_paths()
    x = np.random.default_rng(0).multivariate_normal(mean, covariance, n)
    return jnp.asarray(x, jnp.float32)[..., None]


def final_potential():
    """The same reward as a potential of the closing update alone."""

    class Final(smc.Potential):
        def __call__(self, transition, memory):
            return jnp.zeros(transition.after.x.shape[0]), memory

        def finish(self, closing, memory):
            return reward(closing.x)

    return Final()


KERNELS = {
    "backward": ConditionalSMC(4),
    "ancestor": ConditionalSMC(4, smc.ancestral_tracing, smc.conditional_systematic, True),
}


@pytest.mark.parametrize("name", KERNELS)
def test_conditional_smc_leaves_tilted_diffusion_paths_invariant(name):
    model, kernel, x = tilted(), KERNELS[name], draw_paths(10_000)

    @jax.jit
    @jax.vmap
    def sweep(key, x):
        return kernel(key, model, smc.path_of(model, x)).path.x

    out = sweep(jax.random.split(jax.random.key(1), len(x)), x)
    assert float(jnp.mean(out[:, -1] != x[:, -1])) > 0.3
    assert np.abs(z_scores(out[..., 0])).max() < LIMIT


def test_a_potential_of_the_sample_alone_gives_the_same_paths():
    model, x = smc.diffusion_paths(sampler(), (1,), potential=final_potential()), draw_paths(10_000)

    @jax.jit
    @jax.vmap
    def sweep(key, x):
        return ConditionalSMC(4)(key, model, smc.path_of(model, x)).path.x

    out = sweep(jax.random.split(jax.random.key(2), len(x)), x)
    assert np.abs(z_scores(out[..., 0])).max() < LIMIT


def test_paths_of_the_model_are_those_of_the_sampler():
    """Without a potential: moments of x_n-1 and of the sample as `output_moments` gives them, mean 0."""
    plain = smc.diffusion_paths(sampler(), (1,))

    @jax.jit
    @jax.vmap
    def run(key):
        cloud, _ = smc.particle_filter(key, plain, 2, resample=smc.multinomial)
        return smc.path_sample(smc.ancestral_tracing(key, plain, cloud)), cloud.log_z[-1]

    x, log_z = run(jax.random.split(jax.random.key(3), 20_000))
    table = solvers.ddpm(PROCESS, ds.times.uniform_logsnr(PROCESS, CALLS, zero=True))
    variance = ds.exact.output_moments(table, Moments(0.0, 1.0), Moments(0.0, table.now.sigma[0] ** 2)).variance
    assert abs(float(x.var()) / variance - 1) < 4.4 * (2 / 20_000) ** 0.5
    np.testing.assert_array_equal(log_z, 0.0)


def test_renoising_has_the_moments_of_the_forward_process():
    """Cov(x_j, x_k | x) = alpha_j / alpha_k sigma_k^2 where j is noisier than k."""
    model = smc.diffusion_paths(sampler(), (1,))
    start = smc.path_of(model, jnp.linspace(0.0, 2.0, CALLS)[:, None])
    sample, runs = smc.path_sample(start), 20_000
    paths = jax.jit(jax.vmap(lambda key: smc.Renoise(model)(key, start).x))(jax.random.split(jax.random.key(4), runs))
    levels = solvers.ddpm(PROCESS, ds.times.uniform_logsnr(PROCESS, CALLS, zero=True)).now
    expected = np.zeros((CALLS, CALLS))
    for j in range(CALLS):
        for k in range(CALLS):
            low = max(j, k)
            expected[j, k] = levels.alpha[min(j, k)] / levels.alpha[low] * levels.sigma[low] ** 2
    centred = np.asarray(paths[..., 0], np.float64) - levels.alpha * float(sample[0])
    spread = np.sqrt((np.outer(np.diag(expected), np.diag(expected)) + expected**2) / runs)
    assert np.abs((centred.T @ centred / runs - expected) / spread).max() < LIMIT
    assert np.abs(centred.mean(0) / np.sqrt(np.diag(expected) / runs)).max() < LIMIT


def test_particle_gibbs_with_renoising_reaches_the_tilted_law():
    """60 fine steps, where the sampler with the large variance is the time reversal: N(1.6, 0.2)."""
    model = StepwiseReward(smc.diffusion_paths(sampler(60, large=True), (1,)), score)
    kernel = ConditionalSMC(8, smc.ancestral_tracing, smc.conditional_systematic, policy=smc.ess(0.5))

    @jax.jit
    @jax.vmap
    def run(key):
        start = smc.path_of(model, jnp.zeros((60, 1)))
        return smc.particle_gibbs(key, model, start, 12, kernel, refresh=smc.Renoise(model), keep=smc.path_sample).kept

    x = np.asarray(run(jax.random.split(jax.random.key(5), 2000)))[:, -1, 0]
    assert abs(x.mean() - 1.6) < 4.4 * (0.2 / 2000) ** 0.5 + 0.005
    assert abs(x.var() / 0.2 - 1) < 4.4 * (2 / 2000) ** 0.5 + 0.02


def test_diffusion_paths_refuse_what_is_not_markov():
    grid = ds.times.uniform_logsnr(PROCESS, 5, zero=True)
    short, toy = ds.times.uniform_logsnr(PROCESS, 5, zero=False), ds.exact.Gaussian(0.0, 1.0)
    cases = {
        "sde_dpmpp has 1 registers and 2 slots": solvers.linear(toy, solvers.sde_dpmpp(PROCESS, grid)),
        "must draw at every move": solvers.linear(toy, solvers.ddim(PROCESS, grid)),
        "ends in sigma = 0": solvers.linear(toy, solvers.ddpm(PROCESS, short)),
    }
    for message, wrong in cases.items():
        with pytest.raises(ValueError, match=message):
            smc.diffusion_paths(wrong, (1,))
    two = ds.exact.Switch((ds.exact.Gaussian(1.0, 0.25), ds.exact.Gaussian(0.0, 1.0)))
    remembers = ds.guidance.apg(two, 1, 2.0, momentum=-0.5)
    with pytest.raises(ValueError, match="keeps memory"):
        smc.diffusion_paths(solvers.linear(remembers, solvers.ddpm(PROCESS, grid)), (1,), cond=jnp.array(0))
