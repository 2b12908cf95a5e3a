"""UniPC: table 10.1, orders with and without corrector, what bh1 changes, and the methods that it contains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_runner import START, mixture_x0, p1_error, run_table

import diffsample as ds
from diffsample import solvers

VP, FLOW = ds.VariancePreserving(), ds.FlowMatching()
GRIDS = {"logsnr": ds.times.uniform_logsnr, "uniform": ds.times.uniform}
TABLE = {  # specs/solvers.md, 10.1, by order
    2: ((8.356365e-2, 1.472671e-2, 2.357760e-3, 2.789939e-4), (3.965312e-1, 1.366045e-1, 3.182667e-2, 7.328836e-3)),
    3: ((1.015993e-1, 1.099242e-2, 2.606345e-4, 3.400679e-5), (8.613978e-1, 3.578022e-1, 7.574121e-2, 9.775027e-3)),
}
OPTIONS = [{"bh1": bh1, "noise_form": noise} for bh1 in (False, True) for noise in (False, True)]


def run(build, grid, **options):
    return run_table(build(VP, grid, **options), mixture_x0, START)


def assert_equal_tables(first, second, rows=slice(None)):
    for name in ("A", "B", "c"):
        np.testing.assert_allclose(getattr(first, name)[rows], getattr(second, name)[rows], atol=1e-11)


@pytest.mark.parametrize("grid", [0, 1], ids=list(GRIDS))
@pytest.mark.parametrize("order", TABLE)
def test_unipc_reproduces_table(order, grid):
    for steps, expected in zip((8, 16, 32, 64), TABLE[order][grid], strict=True):
        times = list(GRIDS.values())[grid](VP, steps, stop=0.01, zero=False)
        assert p1_error(solvers.unipc(VP, times, order=order)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("corrector", [True, False])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_order_is_the_declared_one(order, corrector, options):
    tables = [
        solvers.unipc(
            VP, ds.times.uniform_logsnr(VP, steps, stop=0.01, zero=False), order=order, corrector=corrector, **options
        )
        for steps in (256, 512)
    ]
    assert tables[0].about.order == order + corrector
    assert abs(np.log2(p1_error(tables[0]) / p1_error(tables[1])) - tables[0].about.order) < 0.25


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_bh1_differs_only_where_two_outputs_are_used(options):
    grid = ds.times.karras(VP, 9, stop=0.02)
    other = options | {"bh1": not options["bh1"]}
    for corrector in (True, False):
        first, second = (solvers.unipc(VP, grid, order=3, corrector=corrector, **o) for o in (options, other))
        assert_equal_tables(first, second, slice(3, None))
        assert np.abs(first.B[2] - second.B[2]).max() > 1e-3


LN2 = np.log(2.0)


@pytest.mark.parametrize(
    ("options", "predictor", "corrector"),
    [
        ({}, (0.75, -0.25), (0.125, 0.125)),
        ({"bh1": True}, (0.5 + LN2 / 2, -LN2 / 2), (LN2 / 4, 0.25 - LN2 / 4)),
        ({"noise_form": True}, (-1.5, 0.5), (-1.0, -1.0)),
        ({"noise_form": True, "bh1": True}, (-1.0 - LN2 / 2, LN2 / 2), (-LN2, LN2 - 2.0)),
    ],
)
def test_fixed_half_on_two_equal_steps_by_hand(options, predictor, corrector):
    """Levels 4, 2, 1 of VE: h = ln 2, exp(-h) = 1/2; the closing row's weights on the newer and the older output."""
    process = ds.VarianceExploding()
    table = solvers.unipc(process, [4.0, 2.0, 1.0], corrector=False, **options)
    np.testing.assert_allclose(table.B[2, 0, table.slot[::-1]], predictor, atol=1e-14)
    table = solvers.unipc(process, [4.0, 2.0, 1.0], order=1, **options)  # register 1: 4 -> 2 corrected, carried to 1
    np.testing.assert_allclose(table.B[2, 1, table.slot[::-1]], corrector, atol=1e-14)


def test_unipc_contains_its_relatives():
    grid = ds.times.karras(VP, 9, stop=0.02)

    def unip(**options):
        return solvers.unipc(VP, grid, corrector=False, **options)

    np.testing.assert_allclose(run_table(unip(order=1), mixture_x0, START), run(solvers.ddim, grid), atol=1e-12)
    assert_equal_tables(unip(order=2), solvers.dpmpp(VP, grid))
    assert_equal_tables(unip(order=2, noise_form=True), solvers.dpm_multistep(VP, grid))
    exact, stochastic = solvers.exp_multistep(VP, grid), solvers.sa_solver(VP, grid, corrector=0, tau=0.0)
    assert_equal_tables(exact, stochastic)
    assert_equal_tables(unip(order=3), exact, slice(3, None))
    for order in (1, 2, 3, 4):  # SA-Solver's mode for few steps is bh1
        options = {"predictor": order, "tau": 0.0, "few_steps": True}
        assert_equal_tables(unip(order=order, bh1=True), solvers.sa_solver(VP, grid, corrector=0, **options))
        both = solvers.sa_solver(VP, grid, corrector=order + 1, **options)
        assert_equal_tables(solvers.unipc(VP, grid, order=order, bh1=True), both)


def test_corrector_is_exact_where_x0_is_linear_in_log_snr():
    """Corrected states are exact; the last, uncorrected step is one of DDIM from the exact state."""
    grid = ds.times.karras(VP, 6, stop=0.05, zero=False)
    lam, ratio = grid.half_logsnr, grid.sigma[1:] / grid.sigma[:-1]
    out = run_table(
        solvers.sa_solver(VP, grid, predictor=1, corrector=2, tau=0.0),
        lambda x, level: np.full_like(x, np.log(level.alpha / level.sigma)),
        START,
    )
    x = grid.sigma[-2] / grid.sigma[0] * START  # int exp(u) u du = exp(u) (u - 1)
    x = x + grid.sigma[-2] * (np.exp(lam[-2]) * (lam[-2] - 1) - np.exp(lam[0]) * (lam[0] - 1))
    expected = ratio[-1] * x + (grid.alpha[-1] - ratio[-1] * grid.alpha[-2]) * lam[-2]
    np.testing.assert_allclose(out, expected, atol=1e-12)


PROCESSES = [VP, ds.VarianceExploding(), ds.Cosine(), ds.SubVP(), ds.DiscreteBetas.linear()]


@pytest.mark.parametrize("process", PROCESSES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_unipc_is_exact_on_a_point_mass(order, options, process):
    table = solvers.unipc(process, ds.times.karras(process, 8), order=order, **options)
    out = run_table(table, lambda x, level: np.full_like(x, 0.7), 3.0 * START)
    np.testing.assert_allclose(out, 0.7, atol=1e-10)


def test_unipc_starts_from_pure_noise_and_forgets_it():
    for order in (2, 3):
        table = solvers.unipc(FLOW, [1.0, 0.7, 0.5, 0.3], order=order)
        x = 0.7 * START + 0.3 * mixture_x0(START, ds.Level(1.0, 0.0, 1.0))
        expected = run_table(solvers.unipc(FLOW, [0.7, 0.5, 0.3], order=order), mixture_x0, x)
        np.testing.assert_allclose(run_table(table, mixture_x0, START), expected, atol=1e-13)


def test_last_step_into_zero_is_the_prediction_at_the_corrected_state():
    grid = ds.times.uniform(VP, 6)
    table = solvers.unipc(VP, grid, order=3)
    seen = []

    def network(x, level):
        seen.append(mixture_x0(x, level))
        return seen[-1]

    np.testing.assert_allclose(run_table(table, network, START), seen[-1], atol=1e-14)


def test_unipc_has_one_call_a_step_and_two_registers():
    grid = ds.times.uniform_logsnr(VP, 12)
    tables = [solvers.unipc(VP, grid, order=3, corrector=corrector) for corrector in (True, False)]
    assert [(t.registers, t.slots, t.calls) for t in tables] == [(2, 4, 12), (1, 3, 12)]


def test_sampled_run_is_the_table():
    table = solvers.unipc(VP, ds.times.karras(VP, 6), order=3)
    mixture = ds.exact.Mixture(np.array([0.3, 0.45, 0.25]), np.array([-1, 0.3, 1.1]), np.array([0.35, 0.25, 0.4]) ** 2)
    with jax.enable_x64(True):
        out = ds.sample(jax.random.key(0), solvers.linear(mixture, table), x=jnp.asarray(START))
    np.testing.assert_allclose(out, run_table(table, mixture_x0, START), atol=1e-12)


def test_bad_unipc_arguments_are_named():
    grid = ds.times.uniform(VP, 6)
    with pytest.raises(ValueError, match="unipc has orders 1 to 4, got order=5"):
        solvers.unipc(VP, grid, order=5)
    with pytest.raises(ValueError, match="alpha = 0"):
        solvers.unipc(FLOW, [1.0, 0.5, 0.0], noise_form=True)
