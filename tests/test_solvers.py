"""Every first solver against closed forms: point mass, table 10.1, moments, orders, identities."""

from functools import partial

import jax
import numpy as np
import pytest
from methods import PROCESSES, SOLVERS, table_of
from numpy_runner import START, mixture_x0, p1_error, run_table

import diffsample as ds
from diffsample import solvers
from diffsample.exact.moments import Moments, output_moments

VP, VE = ds.VariancePreserving(), ds.VarianceExploding(0.002, 80.0)
TABLE = {
    "ddim": (
        (2.741249e-1, 1.391276e-1, 7.000926e-2, 3.512157e-2),
        (2.897753e-1, 1.450531e-1, 7.401735e-2, 3.750505e-2),
    ),
    "dpmpp": (
        (7.548390e-2, 2.337091e-2, 5.660029e-3, 1.397777e-3),
        (3.563840e-1, 1.335095e-1, 3.888950e-2, 1.033302e-2),
    ),
    "dpmpp(taylor=True)": (
        (1.439384e-1, 3.832296e-2, 9.141731e-3, 2.202105e-3),
        (5.550911e-1, 1.918054e-1, 5.262291e-2, 1.304188e-2),
    ),
    "plms": (
        (5.579598e-2, 1.529606e-2, 3.090049e-3, 7.535766e-4),
        (1.379308e-1, 1.992891e-2, 9.151468e-3, 5.488928e-4),
    ),
    "heavy_ball(plms, 0.9)": (
        (1.696425e-2, 1.430801e-2, 1.164818e-2, 6.853948e-3),
        (1.026815e-1, 3.095764e-2, 1.487818e-2, 7.811865e-3),
    ),
    "ghvb(order=4)": (
        (5.246437e-2, 1.569422e-2, 3.114689e-3, 7.554257e-4),
        (1.305571e-1, 1.975146e-2, 9.556576e-3, 7.500438e-4),
    ),
    "ghvb": (
        (7.559237e-2, 2.174705e-2, 5.890421e-3, 1.518147e-3),
        (1.199941e-1, 4.408924e-2, 1.404594e-2, 3.952434e-3),
    ),
}
NOT_EXACT = {"euler_maruyama", "reverse_diffusion"}  # their discretisations of the SDE are not, even there
GRIDS = {"logsnr": ds.times.uniform_logsnr, "uniform": ds.times.uniform}


def mixture():
    return ds.exact.Mixture(np.array([0.3, 0.45, 0.25]), np.array([-1, 0.3, 1.1]), np.array([0.35, 0.25, 0.4]) ** 2)


@pytest.mark.parametrize("grid", [0, 1], ids=list(GRIDS))
@pytest.mark.parametrize("name", TABLE)
def test_solver_reproduces_table(name, grid):
    for steps, expected in zip((8, 16, 32, 64), TABLE[name][grid], strict=True):
        times = list(GRIDS.values())[grid](VP, steps, stop=0.01, zero=False)
        assert p1_error(SOLVERS[name](VP, times)) == pytest.approx(expected, rel=1e-6)


ASYMPTOTIC = {  # specs/solvers.md, 10.1: on the log-SNR grid, N from 256 to 1024
    "ddim": (solvers.ddim, 1.00),
    "2M": (solvers.dpmpp, 2.00),
    "EXP3": (solvers.exp_multistep, 2.97),
    "3M": (lambda p, g: solvers.dpmpp(p, g, order=3), 2.00),
    **{f"UniPC-{k}": (partial(solvers.unipc, order=k), rate) for k, rate in ((1, 2.00), (2, 3.01), (3, 3.98))},
    **{f"PLMS{k}": (partial(solvers.plms, order=k), 2.00) for k in (2, 3, 4)},
    "HB0.9": (lambda p, g: solvers.heavy_ball(solvers.plms(p, g), 0.9), 1.00),
    **{f"GHVB{k}": (partial(solvers.ghvb, order=k), 2.00) for k in (1.8, 2.5, 3.8, 3.9)},
    "euler": (solvers.euler, 1.00),
    "heun": (solvers.heun, 2.00),
}


@pytest.mark.parametrize("name", ASYMPTOTIC)
def test_asymptotic_order_is_the_published_one(name):
    solver, order = ASYMPTOTIC[name]
    coarse, fine = (solver(VP, ds.times.uniform_logsnr(VP, steps, stop=0.01, zero=False)) for steps in (256, 1024))
    # from 256 on, the methods of order one are still a few thousandths away from it
    assert np.log2(p1_error(coarse) / p1_error(fine)) / 2 == pytest.approx(order, abs=0.03)


def test_third_order_multistep_is_second_order_as_published_and_third_when_exact():
    for solver, errors in (
        (partial(solvers.dpmpp, order=3), (1.04e-4, 2.62e-5, 6.58e-6)),  # specs/solvers.md, 6.3
        (solvers.exp_multistep, (9.6e-6, 1.22e-6, 1.55e-7)),
    ):
        for steps, expected in zip((128, 256, 512), errors, strict=True):
            grid = ds.times.uniform_logsnr(VP, steps, stop=0.01, zero=False)
            assert p1_error(solver(VP, grid)) == pytest.approx(expected, rel=5e-3)


PROCESSES_TO_TRY = (VP, VE, ds.Cosine(), ds.SubVP(), ds.DiscreteBetas.linear(), ds.FlowMatching())


@pytest.mark.parametrize("name", [name for name in SOLVERS if name not in NOT_EXACT])
def test_solver_is_exact_on_a_point_mass(name):
    """Every linear solver maps any start to the point, on every process that it knows; read off its table."""
    for process in [PROCESSES[name]] if name in PROCESSES else PROCESSES_TO_TRY:
        try:
            table = SOLVERS[name](process, ds.times.karras(process, 7))
        except (ValueError, TypeError) as refused:  # score-SDE predictors know some processes only, and say so
            assert type(process).__name__ in str(refused)
            continue
        mean, variance = output_moments(table, Moments(1.5, 0.0), Moments(0.3, table.now.sigma[0] ** 2))
        assert mean == pytest.approx(1.5, abs=1e-9) and variance < 1e-10  # of rounding; the start has 1 to 6400


@pytest.mark.parametrize("name", ["ddim", "dpmpp", "dpmpp(taylor=True)"])
def test_solver_starts_from_pure_noise(name):
    flow = ds.FlowMatching()
    sampler = solvers.linear(
        ds.exact.PointMass(np.array(2.0)), SOLVERS[name](flow, ds.times.custom(flow, [1.0, 0.6, 0.3, 0.0]))
    )
    np.testing.assert_allclose(ds.sample(jax.random.key(0), sampler, (3,)), 2.0, rtol=1e-6)


STEPS = (16, 32, 64, 128, 256, 512)
FIRST = (2.320e-1, 1.264e-1, 6.610e-2, 3.381e-2, 1.710e-2, 8.599e-3)
WEAK = {  # |variance / 0.26 - 1| for N = 16, ..., 512 (specs/solvers.md, 10.4); other methods in their own files
    "ddim": (1.289e-1, 6.669e-2, 3.392e-2, 1.710e-2, 8.589e-3, 4.304e-3),
    "ddpm": FIRST,
    "euler_ancestral": FIRST,
    "sde_dpmpp(order=1)": FIRST,
}
WEAK_HEUN = {  # by churn; the card's figures are those of a Heun whose last step is one Euler step
    0.0: (1.815e-2, 4.458e-3, 1.104e-3, 2.749e-4, 6.856e-5, 1.712e-5),
    4.0: (3.775e-2, 9.870e-3, 2.521e-3, 6.374e-4, 1.603e-4, 4.018e-5),
}
GAUSSIAN, NARROW = Moments(0.0, 0.25), ds.VarianceExploding(sigma_min=0.1, sigma_max=80.0)


@pytest.mark.parametrize("name", WEAK)
def test_variance_of_gaussian_data(name):
    for steps, expected in zip(STEPS, WEAK[name], strict=True):
        grid = ds.times.uniform_logsnr(NARROW, steps, start=10.0, zero=False)
        variance = output_moments(SOLVERS[name](NARROW, grid), GAUSSIAN, Moments(0.0, 100.25)).variance
        assert abs(variance / 0.26 - 1) == pytest.approx(expected, rel=5e-4)


@pytest.mark.parametrize("churn", WEAK_HEUN)
def test_variance_of_gaussian_data_with_heun(churn):
    for steps, expected in zip(STEPS, WEAK_HEUN[churn], strict=True):
        grid = ds.times.uniform_logsnr(NARROW, steps, start=10.0, zero=False)
        body = solvers.heun(NARROW, grid[:-1], churn=churn * (steps - 1) / steps)
        before = output_moments(body, GAUSSIAN, Moments(0.0, 100.25)).variance
        raised = (1 + churn / steps) * grid.t[-2]
        start = Moments(0.0, before + raised**2 - grid.t[-2] ** 2)
        last = solvers.ddim(NARROW, [raised, grid.t[-1]])
        assert abs(output_moments(last, GAUSSIAN, start).variance / 0.26 - 1) == pytest.approx(expected, rel=1e-3)


def test_heun_converges_at_second_order_in_law():
    for churn in (0.0, 4.0):
        errors = []
        for steps in (64, 128):
            grid = ds.times.uniform_logsnr(NARROW, steps, start=10.0, zero=False)
            table = solvers.heun(NARROW, grid, churn=churn)
            errors.append(abs(output_moments(table, GAUSSIAN, Moments(0.0, 100.25)).variance / 0.26 - 1))
        assert abs(np.log2(errors[0] / errors[1]) - 2) < 0.1


@pytest.mark.parametrize("name", ["ddim(eta=0.7)", "heun(churn=4, churn_max=50)", "ghvb", "dpmpp", "ddpm(large=True)"])
def test_sampled_moments_agree_with_propagated_ones(name):
    table = SOLVERS[name](VE, ds.times.karras(VE, 6))
    sampler = solvers.linear(ds.exact.Gaussian(np.array(1.5), np.array(0.3)), table)
    x = np.asarray(ds.sample(jax.random.key(7), sampler, (40_000,)), np.float64)
    expected = output_moments(table, Moments(1.5, 0.3), Moments(0.0, 80.0**2))
    error = np.sqrt(expected.variance / x.size)
    assert abs(x.mean() - expected.mean) < 5 * error  # false alarm 6e-7
    assert abs(x.var() / expected.variance - 1) < 5 * np.sqrt(2 / x.size)


def test_equal_methods_agree():
    """The first order of every family is one method, in every coordinate, and so is that of the stochastic ones."""
    grid = ds.times.karras(VP, 9, stop=0.02, zero=False)
    draws = np.random.default_rng(3).standard_normal((2 * grid.steps + 1, START.size))

    def assert_same(first, *others):
        expected = run_table(first, mixture_x0, START, draws)
        for other in others:
            np.testing.assert_allclose(run_table(other, mixture_x0, START, draws), expected, atol=1e-12)

    first_order = [solvers.dpmpp, solvers.dpm_multistep, solvers.plms, solvers.deis_t, solvers.deis_rho, solvers.lms]
    assert_same(
        solvers.ddim(VP, grid),
        solvers.euler(VP, grid),
        solvers.ghvb(VP, grid, order=1, beta=1.0),
        solvers.unipc(VP, grid, order=1, corrector=False),
        *(solver(VP, grid, order=1) for solver in first_order),
    )
    assert_same(
        solvers.ddim(VP, grid, eta=1.0),
        solvers.ddpm(VP, grid),
        solvers.euler_ancestral(VP, grid),
        solvers.sde_dpmpp(VP, grid, order=1),
    )
    plms = solvers.plms(VP, grid, order=3)
    assert_same(plms, solvers.ghvb(VP, grid, order=3, beta=1.0), solvers.heavy_ball(plms, 1.0))
    once = solvers.heavy_ball(solvers.plms(VP, grid, order=1), 0.7)
    assert_same(once, solvers.ghvb(VP, grid, order=1, beta=0.7))
    assert_same(solvers.heun(VP, grid), solvers.heun(VP, grid, churn=0.0))


@pytest.mark.parametrize("solver", [solvers.dpm_multistep, solvers.plms, solvers.deis_t, solvers.deis_rho, solvers.lms])
def test_noise_form_is_exact_where_eps_is_constant(solver):
    """Weights of any order sum to that of DDIM; data forms do the same on a point mass, above."""
    for order in (1, 2, 3):
        grid = ds.times.karras(VP, 8, stop=0.02, zero=False)
        out = run_table(solver(VP, grid, order=order), lambda x, level: (x - 0.7 * level.sigma) / level.alpha, START)
        expected = grid.alpha[-1] / grid.alpha[0] * (START - 0.7 * grid.sigma[0]) + 0.7 * grid.sigma[-1]
        np.testing.assert_allclose(out, expected, atol=1e-12)


LOCAL = {  # of one short step, the first: in law, one more than the global order of a method without a past
    "ddim(eta=0.7)": 2, "ddpm": 2, "ddpm(large=True)": 2, "euler_ancestral": 2, "sde_dpmpp": 2, "sa_solver": 2,
    "dpm2(eta=1)": 3, "dpmpp_2s_ancestral": 3, "dpmpp_sde": 3, "seeds2": 3, "seeds2(c2=0.3)": 3,
}  # fmt: skip


@pytest.mark.parametrize("name", LOCAL)
def test_step_from_the_exact_law_keeps_it_to_the_local_order(name):
    errors, data = [], Moments(0.8, 0.25)
    for h in (0.02, 0.01):
        grid = VP.t_from_half_logsnr(np.array([0.0, h]))
        start, end = (VP.level(t) for t in grid)
        before, after = (Moments(s.alpha * data.mean, s.alpha**2 * data.variance + s.sigma**2) for s in (start, end))
        found = output_moments(SOLVERS[name](VP, grid), data, before)
        errors.append(np.abs(np.subtract(found, after)).max())
    assert np.log2(errors[0] / errors[1]) == pytest.approx(LOCAL[name], abs=0.1)


def test_last_step_into_zero_returns_the_prediction():
    for name in ("ddim", "euler", "dpmpp", "dpmpp(taylor=True)", "heun"):
        table = SOLVERS[name](VP, ds.times.uniform(VP, 5))
        record = ds.sample(jax.random.key(0), solvers.linear(mixture(), table), (4,), record=lambda view: view.x0)
        np.testing.assert_allclose(record[0], record[1][-1], rtol=2e-6, atol=1e-6)


def test_steps_and_calls_are_known_before_running():
    grid = ds.times.karras(VE, 18)
    assert solvers.heun(VE, grid).calls == 35
    assert solvers.heun(VE, grid, churn=10.0, churn_max=50.0).calls == 35
    assert solvers.ghvb(VE, grid).calls == 18
    guided = ds.guidance.cfg(mixture(), 0, 2.0)
    assert solvers.linear(guided, solvers.heun(VE, grid)).nfe == 70


def test_a_table_has_only_what_its_method_needs():
    sizes = {name: (t.registers, t.slots) for name, t in ((name, table_of(name, 12)) for name in SOLVERS)}
    expected = {
        "ddim": (1, 1),
        "euler": (1, 1),
        "ddpm": (1, 1),
        "dpmpp": (1, 2),
        "plms": (1, 4),
        "plms(order=2)": (1, 2),
    }
    expected |= {
        "heun": (2, 2),
        "heavy_ball(plms, 0.9)": (2, 4),
        "ghvb(order=1)": (2, 1),
        "ghvb": (2, 1),
        "ghvb(order=4)": (2, 3),
    }
    assert {name: sizes[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda g: solvers.ddim(VP, g, eta=1.5), "eta=1.5"),
        (lambda g: solvers.dpmpp(VP, g, order=4), "orders 1 to 3, got order=4"),
        (lambda g: solvers.ghvb(VP, g, beta=0.0), "beta=0.0"),
        (lambda g: solvers.heavy_ball(solvers.ddim(VP, g), 0.5), "use euler"),
        (lambda g: solvers.heavy_ball(solvers.heun(VP, g), 0.5), "one register"),
        (lambda g: solvers.heun(VP, g, churn=-1.0), "churn=-1.0"),
        (lambda g: solvers.heun(VP, g, churn=40.0), "churn_max"),
        (lambda g: solvers.ddim(VE, g), "VariancePreserving"),
        (lambda g: solvers.euler(ds.FlowMatching(), [1.0, 0.5, 0.0]), "alpha = 0"),
    ],
)
def test_bad_solver_arguments_are_named(build, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        build(ds.times.uniform(VP, 6))
