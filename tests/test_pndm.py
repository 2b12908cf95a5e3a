"""F-PNDM and S-PNDM against the paper's transfer written out, with calls and measured orders."""

import itertools

import jax
import numpy as np
import pytest
from numpy_runner import START, mixture_x0, p1_error, run_table

import diffsample as ds
from diffsample import solvers

VP, VE = ds.VariancePreserving(), ds.VarianceExploding()
METHODS = {"fpndm": solvers.fpndm, "spndm": solvers.spndm, "plms-sd": lambda p, g: solvers.spndm(p, g, order=4)}


def noise_of(x, t):
    return (x - VP.alpha(t) * mixture_x0(x, VP.level(t))) / VP.sigma(t)


def transfer(x, s, t, eps):
    """Liu et al. 2022, eq. 11."""
    a, b = VP.alpha(s) ** 2, VP.alpha(t) ** 2
    return np.sqrt(b / a) * x - (b - a) / (np.sqrt(a) * (np.sqrt((1 - b) * a) + np.sqrt((1 - a) * b))) * eps


def adams(eps):
    return {
        2: lambda: (3 * eps[-1] - eps[-2]) / 2,
        3: lambda: (23 * eps[-1] - 16 * eps[-2] + 5 * eps[-3]) / 12,
        4: lambda: (55 * eps[-1] - 59 * eps[-2] + 37 * eps[-3] - 9 * eps[-4]) / 24,
    }[len(eps)]()


def fast_loop(times):
    x, past = START, []
    for s, t in itertools.pairwise(times):
        past = [*past, noise_of(x, s)][-4:]
        if len(past) == 4:
            x = transfer(x, s, t, adams(past))
            continue
        half = (s + t) / 2
        second = noise_of(transfer(x, s, half, past[-1]), half)
        third = noise_of(transfer(x, s, half, second), half)
        fourth = noise_of(transfer(x, s, t, third), t)
        x = transfer(x, s, t, (past[-1] + 2 * second + 2 * third + fourth) / 6)
    return x


def short_loop(times, order):
    first = noise_of(START, times[0])
    second = noise_of(transfer(START, times[0], times[1], first), times[1])
    x, past = transfer(START, times[0], times[1], (first + second) / 2), [first]
    for s, t in itertools.pairwise(times[1:]):
        past = [*past, noise_of(x, s)][-order:]
        x = transfer(x, s, t, adams(past))
    return x


def test_methods_are_the_published_loops():
    times = np.linspace(1.0, 0.05, 11).tolist()
    np.testing.assert_allclose(run_table(solvers.fpndm(VP, times), mixture_x0, START), fast_loop(times), atol=1e-11)
    for order in (2, 3, 4):
        out = run_table(solvers.spndm(VP, times, order=order), mixture_x0, START)
        np.testing.assert_allclose(out, short_loop(times, order), atol=1e-11)


@pytest.mark.parametrize("grid", [ds.times.uniform_logsnr, ds.times.uniform])
@pytest.mark.parametrize("name", METHODS)
def test_measured_order_is_the_declared_one(name, grid):
    coarse, fine = (METHODS[name](VP, grid(VP, steps, stop=0.01, zero=False)) for steps in (256, 512))
    assert abs(np.log2(p1_error(coarse) / p1_error(fine)) - fine.about.order) < 0.15


@pytest.mark.parametrize(("name", "extra", "slots"), [("fpndm", 9, 6), ("spndm", 1, 2), ("plms-sd", 1, 4)])
def test_start_costs_extra_calls(name, extra, slots):
    table = METHODS[name](VP, ds.times.uniform(VP, 20))
    assert (table.calls, table.registers, table.slots) == (20 + extra, 2, slots)
    assert table.index[-1] == 19 and table.stage[-1] == 0


@pytest.mark.parametrize("process", [VP, VE, ds.Cosine(), ds.SubVP(), ds.DiscreteBetas.linear()], ids=str)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("name", METHODS)
def test_solver_is_exact_on_a_point_mass(name, steps, process):
    x = START * float(process.sigma(process.t_start))
    table = METHODS[name](process, ds.times.uniform(process, steps))
    np.testing.assert_allclose(run_table(table, lambda x, level: 0 * x + 0.7, x), 0.7, atol=1e-10)


def test_fpndm_runs_on_the_device():
    sampler = solvers.linear(ds.exact.PointMass(np.array(0.7)), solvers.fpndm(VP, ds.times.uniform(VP, 6)))
    np.testing.assert_allclose(ds.sample(jax.random.key(0), sampler, (4,)), 0.7, atol=1e-3)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="order=1"):
        solvers.spndm(VP, [1.0, 0.5, 0.0], order=1)
    for solver in (solvers.fpndm, solvers.spndm):
        with pytest.raises(ValueError, match="alpha = 0"):
            solver(ds.FlowMatching(), [1.0, 0.5, 0.0])
