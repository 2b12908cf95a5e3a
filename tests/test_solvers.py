"""Every first solver against closed forms: point mass, table 10.1, the momentum toy, moments, orders, identities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods import PROCESSES, SOLVERS, table_of
from numpy_runner import REFERENCE, START

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


def error(name, grid):
    with jax.enable_x64(True):
        sampler = solvers.linear(mixture(), SOLVERS[name](VP, grid))
        out = ds.sample(jax.random.key(0), sampler, x=jnp.asarray(START))
    return np.abs(np.asarray(out) - REFERENCE).max()


@pytest.mark.parametrize("grid", [0, 1], ids=list(GRIDS))
@pytest.mark.parametrize("name", TABLE)
def test_solver_reproduces_table(name, grid):
    for steps, expected in zip((8, 16, 32, 64), TABLE[name][grid], strict=True):
        times = list(GRIDS.values())[grid](VP, steps, stop=0.01, zero=False)
        assert error(name, times) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "ddim",
        "euler",
        "heun",
        "dpmpp",
        "dpmpp(taylor=True)",
        "plms(order=2)",
        "ghvb(order=1)",
        "ghvb",
        "heavy_ball(plms, 0.9)",
    ],
)
def test_measured_order_is_the_declared_one(name):
    def at(steps):
        return ds.times.uniform_logsnr(VP, steps, stop=0.01, zero=False)

    measured = np.log2(error(name, at(256)) / error(name, at(512)))
    assert abs(measured - SOLVERS[name](VP, at(4)).about.order) < 0.25


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


TOY = np.array([[0.0, 1.0], [-9.0, -10.0]])
TOY_RESULTS = {  # specs/solvers.md, 10.2: x(3) of x' = TOY x in 26 steps
    "euler": (solvers.euler, (-0.0464268493, 0.0464268493)),
    "ab2": (lambda p, g: solvers.plms(p, g, order=2), (0.1022701865, -1.3731385105)),
    "hb0.9": (lambda p, g: solvers.heavy_ball(solvers.plms(p, g, order=2), 0.9), (-0.0542846162, 0.0537320089)),
    "hb0.8": (lambda p, g: solvers.heavy_ball(solvers.plms(p, g, order=2), 0.8), (-0.0515423117, 0.0515423074)),
    "ghvb1.9": (lambda p, g: solvers.ghvb(p, g, order=2, beta=0.9), (-0.0513764522, 0.0089645848)),
    "ghvb": (lambda p, g: solvers.ghvb(p, g, order=2, beta=0.8), (-0.0566745099, 0.0557415806)),
}


def toy_field(params, x, t, cond):
    return -x @ params.T  # sigma = 3 - time runs down, so dx/dsigma = -TOY x


@pytest.mark.parametrize("name", TOY_RESULTS)
def test_momentum_toy(name):
    solver, expected = TOY_RESULTS[name]
    process = ds.VarianceExploding(sigma_min=0.1, sigma_max=3.0)
    with jax.enable_x64(True):
        network = ds.Network(toy_field, jnp.asarray(TOY), predicts="noise")
        sampler = solvers.linear(network, solver(process, np.linspace(3, 0, 27)))
        out = ds.sample(jax.random.key(0), sampler, x=jnp.array([[-1.0, 0.0]]))
    np.testing.assert_allclose(out[0], expected, atol=1e-9)


WEAK = {  # |variance / 0.26 - 1| for N = 16, 32, 64, 128 (specs/solvers.md, 10.4)
    "ddim": (1.289e-1, 6.669e-2, 3.392e-2, 1.710e-2),
    "ddpm": (2.320e-1, 1.264e-1, 6.610e-2, 3.381e-2),
}
WEAK_HEUN = {  # by churn; the card's figures are those of a Heun whose last step is one Euler step
    0.0: (1.815e-2, 4.458e-3, 1.104e-3, 2.749e-4),
    4.0: (3.775e-2, 9.870e-3, 2.521e-3, 6.374e-4),
}
GAUSSIAN, NARROW = Moments(0.0, 0.25), ds.VarianceExploding(sigma_min=0.1, sigma_max=80.0)


@pytest.mark.parametrize("name", WEAK)
def test_variance_of_gaussian_data(name):
    for steps, expected in zip((16, 32, 64, 128), WEAK[name], strict=True):
        grid = ds.times.uniform_logsnr(NARROW, steps, start=10.0, zero=False)
        variance = output_moments(SOLVERS[name](NARROW, grid), GAUSSIAN, Moments(0.0, 100.25)).variance
        assert abs(variance / 0.26 - 1) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("churn", WEAK_HEUN)
def test_variance_of_gaussian_data_with_heun(churn):
    for steps, expected in zip((16, 32, 64, 128), WEAK_HEUN[churn], strict=True):
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


def tables_equal(first, second):
    return all(
        np.allclose(a, b, atol=1e-12) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    )


def test_equal_methods_agree():
    with jax.enable_x64(True):
        network, x = mixture(), jnp.asarray(START)

        def run(table):
            return np.asarray(ds.sample(jax.random.key(3), solvers.linear(network, table), x=x))

        grid = ds.times.karras(VP, 9, stop=0.02, zero=False)
        base = run(solvers.ddim(VP, grid))
        for same in (
            solvers.euler(VP, grid),
            solvers.dpmpp(VP, grid, order=1),
            solvers.plms(VP, grid, order=1),
            solvers.ghvb(VP, grid, order=1, beta=1.0),
        ):
            np.testing.assert_allclose(run(same), base, atol=1e-12)
        plms = solvers.plms(VP, grid, order=3)
        np.testing.assert_allclose(run(solvers.ghvb(VP, grid, order=3, beta=1.0)), run(plms), atol=1e-12)
        np.testing.assert_allclose(run(solvers.heavy_ball(plms, 1.0)), run(plms), atol=1e-12)
        heavy = run(solvers.heavy_ball(solvers.plms(VP, grid, order=1), 0.7))
        np.testing.assert_allclose(run(solvers.ghvb(VP, grid, order=1, beta=0.7)), heavy, atol=1e-12)
    assert tables_equal(solvers.ddpm(VP, grid), solvers.ddim(VP, grid, eta=1.0))
    assert tables_equal(solvers.heun(VP, grid, churn=0.0), solvers.heun(VP, grid))


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
