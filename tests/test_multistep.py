"""Multistep methods: table 10.1, orders from noisy and clean starts, exactness on polynomials, start and end levels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_runner import START, mixture_x0, p1_error, run_table
from scipy.integrate import quad

import diffsample as ds
from diffsample import solvers
from diffsample.orders import measured_order
from diffsample.solvers.exponential import phi, shares

VP, VE, FLOW = ds.VariancePreserving(), ds.VarianceExploding(), ds.FlowMatching()
GRIDS = {"logsnr": ds.times.uniform_logsnr, "uniform": ds.times.uniform}
METHODS = {
    "dpmpp3": lambda p, g: solvers.dpmpp(p, g, order=3),
    "exp1": lambda p, g: solvers.exp_multistep(p, g, order=1),
    "exp2": lambda p, g: solvers.exp_multistep(p, g, order=2),
    "exp3": solvers.exp_multistep,
    "exp3-start": lambda p, g: solvers.exp_multistep(p, g, singlestep_start=True),
    "exp4-start": lambda p, g: solvers.exp_multistep(p, g, order=4, singlestep_start=True),
    "dpm1": lambda p, g: solvers.dpm_multistep(p, g, order=1),
    "dpm2": solvers.dpm_multistep,
    "dpm2-taylor": lambda p, g: solvers.dpm_multistep(p, g, taylor=True),
    "dpm3": lambda p, g: solvers.dpm_multistep(p, g, order=3),
    "exp3-noise": lambda p, g: solvers.exp_multistep(p, g, noise_form=True),
    "exp4-noise-start": lambda p, g: solvers.exp_multistep(p, g, order=4, noise_form=True, singlestep_start=True),
    "plms3": lambda p, g: solvers.plms(p, g, order=3),
    "ipndm": solvers.ipndm,
    "lms2": lambda p, g: solvers.lms(p, g, order=2),
    "lms4": solvers.lms,
}
DATA = ("dpmpp3", "exp1", "exp2", "exp3")  # may start at alpha = 0
TABLE = {  # specs/solvers.md, 10.1
    "dpmpp3": (
        (1.298304e-1, 1.655567e-2, 2.484552e-3, 4.372155e-4),
        (7.514403e-1, 1.609412e-1, 4.920944e-2, 5.665643e-3),
    ),
    "exp3": (
        (1.327715e-1, 1.461024e-2, 1.306708e-3, 9.332436e-5),
        (8.523994e-1, 3.394650e-1, 8.214679e-2, 9.580910e-3),
    ),
    "dpm2": (
        (5.197766e-2, 1.507437e-2, 4.005450e-3, 1.023411e-3),
        (2.317459e-1, 6.238058e-2, 1.486155e-2, 4.318264e-3),
    ),
    "exp3-noise": (
        (2.026218e-2, 4.781044e-3, 1.204594e-3, 1.804270e-4),
        (3.069926e-1, 5.943179e-2, 1.047818e-2, 1.763358e-3),
    ),
}
# Problem P1 from the same x at t = 0.4: DOP853 in log-SNR at tolerance 1e-13
FROM_MIDDLE = np.array([-1.54727635096439, -1.31092121473536, -1.02476999293598, -0.41626484909647, 0.22852081237785,
                        0.51195278484148, 0.94548216831831, 1.3444620725316, 1.64251951131571])  # fmt: skip


@pytest.mark.parametrize("grid", [0, 1], ids=list(GRIDS))
@pytest.mark.parametrize("name", TABLE)
def test_multistep_reproduces_table(name, grid):
    for steps, expected in zip((8, 16, 32, 64), TABLE[name][grid], strict=True):
        times = list(GRIDS.values())[grid](VP, steps, stop=0.01, zero=False)
        assert p1_error(METHODS[name](VP, times)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_multistep_order_is_the_declared_one(name):
    tables = [METHODS[name](VP, ds.times.uniform_logsnr(VP, n, stop=0.01, zero=False)) for n in (256, 512)]
    assert abs(np.log2(p1_error(tables[0]) / p1_error(tables[1])) - tables[0].about.order) < 0.25


@pytest.mark.parametrize(
    ("name", "order"),
    [("exp3", 2), ("exp3-noise", 2), ("lms4", 2), ("exp3-start", 3), ("exp4-start", 4), ("exp4-noise-start", 4)],
)
def test_high_order_from_any_start_needs_the_singlestep_start(name, order):
    errors = []
    for steps in (128, 256):
        table = METHODS[name](VP, ds.times.uniform_logsnr(VP, steps, start=0.4, stop=0.01, zero=False))
        errors.append(np.abs(run_table(table, mixture_x0, START) - FROM_MIDDLE).max())
    assert abs(np.log2(errors[0] / errors[1]) - order) < 0.1


@pytest.mark.parametrize(
    "solver",
    [
        lambda p, g: solvers.exp_multistep(p, g, order=4),
        lambda p, g: solvers.deis_log_rho(p, g, order=4),
        lambda p, g: solvers.lms(p, g, order=5),
        lambda p, g: solvers.unipc(p, g, order=4, corrector=False),
        lambda p, g: solvers.sa_solver(p, g, predictor=4, corrector=0, tau=0.0),
    ],
)
def test_order_that_the_usual_start_leaves_of_a_high_one(solver):
    assert abs(measured_order(solver, VP) - solver(VP, [1.0, 0.5, 0.1]).about.order) < 0.25


def data_polynomial(degree):
    """A network whose x0 is a polynomial in log-SNR."""
    return lambda x, level: np.full_like(x, np.log(level.alpha / level.sigma) ** degree)


def noise_polynomial(coordinate, degree):
    """A network whose eps is a polynomial in a coordinate of the level."""
    return lambda x, level: (x - level.sigma * coordinate(level) ** degree) / level.alpha


def half_logsnr(level):
    return np.log(level.alpha / level.sigma)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_data_form_is_exact_on_polynomials(order):
    grid = ds.times.karras(VP, 6, stop=0.05, zero=False)
    for degree in range(order):
        network = data_polynomial(degree)
        before, after = (
            run_table(solvers.exp_multistep(VP, part, order=order), network, START) for part in (grid[:-1], grid)
        )
        (start, end), sigma = grid.half_logsnr[-2:], grid.sigma[-2:]
        integral = quad(lambda u, d=degree, e=end: np.exp(u - e) * u**d, start, end, epsabs=1e-14)[0]
        expected = sigma[1] / sigma[0] * before + grid.alpha[-1] * integral
        np.testing.assert_allclose(after, expected, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("coordinate", ["log-SNR", "sigma-bar"])
def test_noise_form_is_exact_on_polynomials(coordinate, order):
    build, of = {
        "log-SNR": (lambda g: solvers.exp_multistep(VP, g, order=order, noise_form=True), half_logsnr),
        "sigma-bar": (lambda g: solvers.lms(VP, g, order=order), lambda level: level.sigma / level.alpha),
    }[coordinate]
    grid = ds.times.karras(VP, 6, start=0.6, stop=0.05, zero=False)
    for degree in range(order):
        network = noise_polynomial(of, degree)
        before, after = (run_table(build(part), network, START) for part in (grid[:-1], grid))
        noise = grid.sigma / grid.alpha
        integral = quad(lambda u, d=degree: of(ds.Level(None, 1.0, u)) ** d, noise[-2], noise[-1], epsabs=1e-14)[0]
        expected = grid.alpha[-1] * (before / grid.alpha[-2] + integral)
        np.testing.assert_allclose(after, expected, atol=1e-12)


@pytest.mark.parametrize("order", [3, 4])
def test_singlestep_start_makes_the_whole_run_exact_on_polynomials(order):
    grid = ds.times.karras(VP, 5, stop=0.05, zero=False)
    degree = order - 2
    table = solvers.exp_multistep(VP, grid, order=order, singlestep_start=True)
    assert table.calls == 5 + order - 2
    start, end = grid.half_logsnr[[0, -1]]
    integral = quad(lambda u: np.exp(u - end) * u**degree, start, end, epsabs=1e-14)[0]
    expected = grid.sigma[-1] / grid.sigma[0] * START + grid.alpha[-1] * integral
    np.testing.assert_allclose(run_table(table, data_polynomial(degree), START), expected, atol=1e-12)


PROCESSES = [VP, VE, ds.Cosine(), ds.SubVP(), ds.DiscreteBetas.linear()]


@pytest.mark.parametrize("process", PROCESSES, ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_multistep_is_exact_on_a_point_mass(name, process):
    table = METHODS[name](process, ds.times.karras(process, 7))
    out = run_table(table, lambda x, level: np.full_like(x, 0.7), 3.0 * START)
    np.testing.assert_allclose(out, 0.7, atol=1e-10)


@pytest.mark.parametrize("name", METHODS)
def test_multistep_at_alpha_zero(name):
    times = [1.0, 0.7, 0.5, 0.3, 0.0]
    if name not in DATA:
        with pytest.raises(ValueError, match=r"alpha = 0|finite log-SNR"):
            METHODS[name](FLOW, times)
        return
    out = run_table(METHODS[name](FLOW, times), lambda x, level: np.full_like(x, 0.7), START)
    np.testing.assert_allclose(out, 0.7, atol=1e-12)


@pytest.mark.parametrize("name", ["dpmpp3", "exp3"])
def test_history_at_alpha_zero_weighs_nothing(name):
    first = METHODS[name](FLOW, [1.0, 0.7, 0.5, 0.3])
    second = METHODS[name](FLOW, [0.7, 0.5, 0.3])  # the step from alpha = 0 leaves no trace
    x = 0.7 * START + 0.3 * mixture_x0(START, ds.Level(1.0, 0.0, 1.0))
    np.testing.assert_allclose(run_table(first, mixture_x0, START), run_table(second, mixture_x0, x), atol=1e-13)


def test_equal_multistep_methods_agree():
    grid = ds.times.karras(VP, 9, stop=0.02)

    def run(build, **options):
        return run_table(build(VP, grid, **options), mixture_x0, START)

    base = run(solvers.ddim)
    for name in ("exp1", "dpm1"):
        np.testing.assert_allclose(run(METHODS[name]), base, atol=1e-12)
    np.testing.assert_allclose(run(METHODS["exp2"]), run(solvers.dpmpp, taylor=True), atol=1e-12)
    exp2_noise = run(solvers.exp_multistep, order=2, noise_form=True)
    np.testing.assert_allclose(run(METHODS["dpm2-taylor"]), exp2_noise, atol=1e-12)
    np.testing.assert_allclose(run(solvers.exp_multistep, order=2, singlestep_start=True), run(METHODS["exp2"]))
    np.testing.assert_allclose(run(solvers.ipndm, order=3), run(solvers.plms, order=3), atol=0)


def test_lms_on_equal_steps_is_adams_bashforth():
    times = ds.times.uniform(VE, 7, start=8.0, stop=1.0, zero=False)
    for order in (1, 2, 3, 4, 5):
        np.testing.assert_allclose(solvers.lms(VE, times, order=order).B, solvers.plms(VE, times, order=order).B,
                                   atol=1e-12)  # fmt: skip


def test_half_curvature_is_what_separates_the_published_third_order():
    grid = ds.times.uniform_logsnr(VP, 8, zero=False)
    h = np.diff(grid.half_logsnr)[0]
    ours, theirs = solvers.exp_multistep(VP, grid), solvers.dpmpp(VP, grid, order=3)
    difference = (ours.B - theirs.B)[5:, 0] / grid.alpha[5:, None]  # a second difference, in some order of slots
    phi3 = (1 - h + h**2 / 2 - np.exp(-h)) / h**3
    np.testing.assert_allclose(np.sort(difference, axis=1), h * phi3 / 2 * np.array([[-2.0, 1.0, 1.0]] * 4), atol=1e-12)


def test_phi_functions():
    for z in (-30.0, -1.0000001, -0.999, -0.2, 1e-9, 0.3, 0.9999, 1.0001, 7.0):
        for k in range(1, 6):  # phi_k(z) = int_0^1 exp((1 - u) z) u^(k - 1) / (k - 1)! du
            value = quad(lambda u, z=z, k=k: np.exp((1 - u) * z) * u ** (k - 1), 0, 1, epsabs=1e-14, epsrel=1e-13)[0]
            assert phi(k, z) == pytest.approx(value / np.prod(np.arange(1, k)), rel=1e-11)


def test_shares_sum_to_one_and_tend_to_adams():
    for places in ([0.0], [0.0, -0.7], [1.0, 0.0, -1.3], [1.0, 0.0, -0.4, -2.0, -2.5]):
        for z in (-8.0, -0.01, 3.0):
            assert sum(shares(z, places)) == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(np.multiply(shares(1e-12, [0.0, -1.0, -2.0, -3.0]), 24), [55, -59, 37, -9], atol=1e-8)
    np.testing.assert_allclose(np.multiply(shares(0.0, [1.0, 0.0, -1.0]), 12), [5, 8, -1], atol=1e-12)  # Adams-Moulton


def test_a_table_has_only_what_its_method_needs():
    grid = ds.times.uniform_logsnr(VP, 12)
    sizes = {name: (t.registers, t.slots, t.calls) for name, t in ((n, m(VP, grid)) for n, m in METHODS.items())}
    expected = {"dpmpp3": (1, 3, 12), "exp1": (1, 1, 12), "dpm2": (1, 2, 12), "lms4": (1, 4, 12), "exp3": (1, 3, 12)}
    expected |= {"exp3-start": (2, 3, 13), "exp4-start": (2, 4, 14)}
    assert {name: sizes[name] for name in expected} == expected


def test_sampled_run_is_the_table():
    table = METHODS["exp4-start"](VP, ds.times.karras(VP, 6))
    mixture = ds.exact.Mixture(np.array([0.3, 0.45, 0.25]), np.array([-1, 0.3, 1.1]), np.array([0.35, 0.25, 0.4]) ** 2)
    with jax.enable_x64(True):
        out = ds.sample(jax.random.key(0), solvers.linear(mixture, table), x=jnp.asarray(START))
    np.testing.assert_allclose(out, run_table(table, mixture_x0, START), atol=1e-12)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda g: solvers.dpmpp(VP, g, order=4), "dpmpp has orders 1 to 3, got order=4"),
        (lambda g: solvers.dpm_multistep(VP, g, order=0), "dpm_multistep has orders 1 to 3, got order=0"),
        (lambda g: solvers.exp_multistep(VP, g, order=5), "exp_multistep has orders 1 to 4, got order=5"),
        (lambda g: solvers.lms(VP, g, order=6), "lms has orders 1 to 5, got order=6"),
        (lambda g: solvers.ipndm(VP, g, order=-1), "orders 1 to 5, got order=-1"),
        (lambda g: solvers.unipc(VP, g, order=2.0), "got order=2.0"),  # type: ignore[arg-type]
        (lambda g: solvers.dpmpp(VP, g, order=True), "orders 1 to 3, got order=True"),
        (lambda g: solvers.exp_multistep(FLOW, [1.0, 0.5, 0.0], singlestep_start=True), "t = 1 to 0.5"),
        (lambda g: solvers.exp_multistep(FLOW, [0.5, 0.0], singlestep_start=True), "t = 0.5 to 0;"),
        (lambda g: solvers.exp_multistep(FLOW, [1.0, 0.5], noise_form=True), r"cannot start at alpha = 0 \(t = 1\)"),
    ],
)
def test_bad_multistep_arguments_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build(ds.times.uniform(VP, 6))
