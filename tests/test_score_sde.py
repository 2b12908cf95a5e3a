"""Score-SDE: published discretisations by their exact law on Gaussian data, convergence, Langevin's fixed point."""

import itertools

import jax
import numpy as np
import pytest
from numpy_runner import START, mixture_x0, p1_error, run_table

import diffsample as ds
from diffsample import solvers
from diffsample.exact.moments import Moments, output_moments

VP, SUB, VE = ds.VariancePreserving(), ds.SubVP(), ds.VarianceExploding(0.01, 50.0)
DATA, N = Moments(0.8, 0.25), 60
PREDICTORS = {
    "euler_maruyama": solvers.euler_maruyama,
    "reverse_diffusion": solvers.reverse_diffusion,
    "ancestral_sampling": solvers.ancestral_sampling,
}


class Law:
    """Mean and variance of x under affine updates with the score of N(0.8, 0.25) data."""

    def __init__(self, variance):
        self.mean, self.variance = 0.0, variance

    def update(self, alpha, sigma, carry, pull, noise):
        """x <- carry x + pull score + noise z."""
        total = alpha**2 * DATA.variance + sigma**2
        gain = carry - pull / total
        self.mean = gain * self.mean + pull * alpha * DATA.mean / total
        self.variance = gain**2 * self.variance + noise**2


def assert_law(table, law, start):
    np.testing.assert_allclose(output_moments(table, DATA, start), (law.mean, law.variance), rtol=1e-10)


@pytest.mark.parametrize("denoise", [True, False])
@pytest.mark.parametrize("process", [VP, SUB], ids=str)
def test_euler_maruyama_is_the_published_one(process, denoise):
    grid = ds.times.uniform(process, N, stop=1e-3)
    law = Law(1.0)
    for i, t in enumerate(np.linspace(1, 1e-3, N)):
        beta = 0.1 + t * 19.9
        alpha = np.exp(-0.25 * t**2 * 19.9 - 0.05 * t)
        sigma, diffusion = np.sqrt(1 - alpha**2), beta
        if process is SUB:
            sigma, diffusion = 1 - alpha**2, beta * (1 - np.exp(-0.2 * t - 19.9 * t**2))
        noise = 0.0 if denoise and i == N - 1 else np.sqrt(diffusion / N)
        law.update(alpha, sigma, 1 + 0.5 * beta / N, diffusion / N, noise)
    table = solvers.euler_maruyama(process, grid, step=1 / N, denoise=denoise)
    assert_law(table, law, Moments(0.0, 1.0))
    assert table.calls == N


def test_euler_maruyama_on_exploding_variance_is_the_published_one():
    t = np.linspace(1, 1e-5, N)
    sigmas = 0.01 * 5000**t
    law = Law(2500.0)
    for i, sigma in enumerate(sigmas):
        diffusion = 2 * sigma**2 * np.log(5000)
        law.update(1.0, sigma, 1.0, diffusion / N, np.sqrt(diffusion / N) * (i < N - 1))
    table = solvers.euler_maruyama(VE, [*sigmas, 0.0], step=np.log(5000) / N)
    assert_law(table, law, Moments(0.0, 2500.0))


def discrete():
    return ds.DiscreteBetas.linear(N, 0.1 / N, 20 / N)


@pytest.mark.parametrize("corrections", [0, 2])
@pytest.mark.parametrize("name", ["reverse_diffusion", "ancestral_sampling"])
def test_preserving_predictors_are_the_published_ones(name, corrections):
    betas = np.linspace(0.1 / N, 20 / N, N)
    alphas = np.sqrt(np.cumprod(1 - betas))
    law = Law(1.0)
    for i in reversed(range(N)):
        beta, alpha, sigma = betas[i], alphas[i], np.sqrt(1 - alphas[i] ** 2)
        step = 2 * (1 - beta) * (0.1 * sigma) ** 2
        for _ in range(corrections):
            law.update(alpha, sigma, 1.0, step, np.sqrt(2 * step))
        carry, pull = 2 - np.sqrt(1 - beta), beta
        if name == "ancestral_sampling":
            carry, pull = 1 / np.sqrt(1 - beta), beta / np.sqrt(1 - beta)
        law.update(alpha, sigma, carry, pull, np.sqrt(beta) * (i > 0))
    table = PREDICTORS[name](discrete(), ds.times.trailing(discrete(), N), corrections=corrections, snr=0.1)
    assert_law(table, law, Moments(0.0, 1.0))
    assert table.calls == N * (1 + corrections)


@pytest.mark.parametrize("corrections", [0, 1])
@pytest.mark.parametrize("name", ["reverse_diffusion", "ancestral_sampling"])
def test_exploding_predictors_are_the_published_ones(name, corrections):
    sigmas = np.exp(np.linspace(np.log(0.01), np.log(50.0), N))
    law = Law(2500.0)
    for i in reversed(range(N)):
        sigma, lower = sigmas[i], sigmas[i - 1] if i else 0.0
        step = 2 * (0.16 * sigma) ** 2
        for _ in range(corrections):
            law.update(1.0, sigma, 1.0, step, np.sqrt(2 * step))
        pull = sigma**2 - lower**2
        noise = np.sqrt(pull) * (lower / sigma if name == "ancestral_sampling" else 1.0)
        law.update(1.0, sigma, 1.0, pull, noise * (i > 0))
    table = PREDICTORS[name](VE, ds.times.uniform_logsnr(VE, N), corrections=corrections)
    assert_law(table, law, Moments(0.0, 2500.0))


DEFINED = {  # processes on which each predictor is defined
    "euler_maruyama": (VP, SUB, VE),
    "reverse_diffusion": (VP, SUB, VE, ds.Cosine(), ds.FlowMatching()),
    "ancestral_sampling": (VP, VE, ds.Cosine(), ds.FlowMatching()),
}


@pytest.mark.parametrize(("name", "process"), [(name, process) for name, ps in DEFINED.items() for process in ps])
def test_weak_order_is_the_declared_one(name, process):
    errors, end = [], process.level(0.1)
    target = np.array([end.alpha * DATA.mean, end.alpha**2 * DATA.variance + end.sigma**2])
    for steps in (400, 800):
        grid = ds.times.uniform_logsnr(process, steps, start=min(process.t_start, 5.0), stop=0.1, zero=False)
        top = process.level(grid.t[0])
        start = Moments(top.alpha * DATA.mean, top.alpha**2 * DATA.variance + top.sigma**2)
        table = PREDICTORS[name](process, grid, denoise=False)
        errors.append(np.abs(np.array(output_moments(table, DATA, start)) - target).max())
    assert abs(np.log2(errors[0] / errors[1]) - table.about.order) < 0.15


@pytest.mark.parametrize("solver", [solvers.euler_maruyama, solvers.reverse_diffusion])
def test_probability_flow_is_of_first_order(solver):
    tables = [solver(VP, ds.times.uniform(VP, n, stop=0.01, zero=False), flow=True) for n in (400, 800)]
    assert abs(np.log2(p1_error(tables[0]) / p1_error(tables[1])) - 1) < 0.1
    assert tables[0].noise == "never"


def test_ancestral_sampling_is_ddpm():
    for process, large in ((VP, True), (VE, False)):
        grid = ds.times.karras(process, 7)
        draws = np.random.default_rng(0).standard_normal((8, 9))
        tables = solvers.ancestral_sampling(process, grid), solvers.ddpm(process, grid, large=large)
        first, second = (run_table(table, mixture_x0, START * grid.sigma[0], draws) for table in tables)
        np.testing.assert_allclose(first, second, atol=1e-10)


@pytest.mark.parametrize("name", PREDICTORS)
def test_correctors_keep_the_predictors_moves(name):
    grid = ds.times.uniform_logsnr(VP, 5)
    table = PREDICTORS[name](VP, grid, corrections=3, snr=0.2)
    plain = PREDICTORS[name](VP, grid)
    for field in ("A", "B", "c"):
        np.testing.assert_allclose(getattr(table, field)[4::4], getattr(plain, field)[1:], rtol=1e-13)
    np.testing.assert_array_equal(table.stage, [0, 1, 2, 3] * 5)
    np.testing.assert_array_equal(table.index, np.repeat(range(5), 4))


@pytest.mark.parametrize("snr", [0.16, 0.4])
def test_langevin_settles_at_the_variance_of_its_step(snr):
    level, spread = 2.0, 0.25
    table = solvers.ald(VE, [level, 1.0], corrections=3000, snr=snr, denoise=False)
    step, v = 2 * (snr * level) ** 2, spread + level**2
    law = output_moments(table, Moments(0.8, spread), Moments(-30.0, 9.0))
    np.testing.assert_allclose(law, (0.8, v / (1 - step / (2 * v))), rtol=1e-10)


def test_langevin_inflation_on_a_point_mass_is_the_published_one():
    table = solvers.ald(VE, [2.0, 1.0], corrections=2000, snr=0.16, denoise=False)
    assert output_moments(table, Moments(0.0, 0.0), Moments(0.0, 4.0)).variance / 4 == pytest.approx(1.02627, abs=5e-6)


def test_annealed_langevin_visits_every_level():
    sigmas = np.geomspace(1.0, 0.01, 10)
    law = Law(1.0)
    for sigma, _ in itertools.product(sigmas, range(100)):
        step = 2 * (0.316 * sigma) ** 2
        law.update(1.0, sigma, 1.0, step, np.sqrt(2 * step))
    process = ds.VarianceExploding(0.01, 1.0)
    table = solvers.ald(process, [*sigmas, 0.0], denoise=False)
    assert_law(table, law, Moments(0.0, 1.0))
    assert table.calls == 1000
    cleaned = solvers.ald(process, [*sigmas, 0.0])
    law.update(1.0, 0.01, 1.0, 0.01**2, 0.0)
    assert_law(cleaned, law, Moments(0.0, 1.0))
    assert cleaned.calls == 1001


def test_last_mean_is_exact_on_a_point_mass():
    def x0(x, level):
        return 0 * x + 0.7

    for process in (VE, VP):
        grid = ds.times.karras(process, 6)
        rows = [solvers.ancestral_sampling(process, grid, corrections=1), solvers.ald(process, grid, corrections=2)]
        rows += [solvers.reverse_diffusion(process, grid, corrections=2)] if process is VE else []
        for table in rows:
            draws = np.random.default_rng(0).standard_normal((table.rows + 1, 9))
            np.testing.assert_allclose(run_table(table, x0, START * grid.sigma[0], draws), 0.7, atol=1e-10)


def test_annealed_langevin_denoises_to_the_last_level():
    times = [0.9, 0.5, 0.1]
    noisy, clean = (solvers.ald(VP, times, corrections=2, denoise=denoise) for denoise in (False, True))
    draws = np.random.default_rng(0).standard_normal((6, 9))
    left = run_table(noisy, mixture_x0, START, draws)
    expected = run_table(solvers.ddim(VP, times[1:]), mixture_x0, left)
    np.testing.assert_allclose(run_table(clean, mixture_x0, START, draws), expected, atol=1e-12)


def test_reverse_diffusion_starts_from_pure_noise():
    flow = ds.FlowMatching()
    table = solvers.reverse_diffusion(flow, np.linspace(1, 0, 801).tolist(), corrections=1)
    law = output_moments(table, DATA, Moments(0.0, 1.0))
    np.testing.assert_allclose(law, DATA, rtol=0.03)


def test_predictor_corrector_runs_on_the_device():
    table = solvers.reverse_diffusion(VE, ds.times.uniform_logsnr(VE, 4), corrections=1)
    sampler = solvers.linear(ds.exact.PointMass(np.array(0.7)), table)
    np.testing.assert_allclose(ds.sample(jax.random.key(0), sampler, (4,)), 0.7, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "build", "message"),
    [
        (TypeError, lambda: solvers.euler_maruyama(ds.Cosine(), [0.9, 0.1]), "use reverse_diffusion"),
        (TypeError, lambda: solvers.ancestral_sampling(SUB, [0.9, 0.1]), "use ddpm"),
        (ValueError, lambda: solvers.euler_maruyama(VE, [9.0, 0.0]), "cannot reach sigma = 0"),
        (ValueError, lambda: solvers.euler_maruyama(VP, [0.9, 0.0], step=0.0), "step=0.0"),
        (ValueError, lambda: solvers.reverse_diffusion(VP, [0.9, 0.0], corrections=-1), "corrections=-1"),
        (ValueError, lambda: solvers.reverse_diffusion(VP, [0.9, 0.0], corrections=1, snr=-0.1), "snr=-0.1"),
        (ValueError, lambda: solvers.ald(VP, [0.9, 0.0], corrections=0), "corrections=0"),
        (ValueError, lambda: solvers.ancestral_sampling(ds.FlowMatching(), [1.0, 0.0]), "alpha = 0"),
    ],
)
def test_bad_arguments_are_named(kind, build, message):
    with pytest.raises(kind, match=message):
        build()
