"""USF: schedules that are native solvers, the definition as a loop over lists, DPM-Solver-v3, counts of calls."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_runner import START, mixture_x0, run_table

import diffsample as ds
from diffsample import solvers
from diffsample.solvers import Decisions, Derivative, ModelStatistics, Relaxation, multistep_decisions, usf
from diffsample.solvers.decisions import CORRECTORS, RELAXATIONS

VP, FLOW = ds.VariancePreserving(), ds.FlowMatching()
GRIDS = [ds.times.karras(VP, 9, stop=0.02, zero=False), ds.times.uniform(VP, 9)]
BH1, BH2 = Relaxation("bh1"), Relaxation("bh2")
ROOTS, WEIGHTS = np.polynomial.legendre.leggauss(40)
WIDE = np.linspace(-6.0, 5.0, 12)


def gap(decisions, native, x=START):
    """Largest difference in the output on problem P1's mixture."""
    process = native.about.process
    return np.abs(run_table(usf(process, decisions), mixture_x0, x) - run_table(native, mixture_x0, x)).max()


@pytest.mark.parametrize("grid", GRIDS, ids=["karras", "uniform to zero"])
@pytest.mark.parametrize("prediction", ["data", "noise"])
def test_usf_contains_the_multistep_methods(prediction, grid):
    noise_form = prediction == "noise"
    two_m = solvers.dpm_multistep if noise_form else solvers.dpmpp
    same = {"order": 2, "prediction": prediction, "relaxation": BH2}
    assert gap(multistep_decisions(grid, order=1, prediction=prediction), solvers.ddim(VP, grid)) < 1e-12
    assert gap(multistep_decisions(grid, **same), two_m(VP, grid)) < 1e-12
    for order in (1, 2, 3, 4):
        exact = multistep_decisions(grid, order=order, prediction=prediction)
        assert gap(exact, solvers.exp_multistep(VP, grid, order=order, noise_form=noise_form)) < 1e-12
        if noise_form:
            assert gap(exact, solvers.deis_log_rho(VP, grid, order=order)) < 1e-12
        for relaxation in (BH1, BH2):
            same = {"order": order, "prediction": prediction, "relaxation": relaxation}
            native = {"order": order, "bh1": relaxation == BH1, "noise_form": noise_form}
            if relaxation == BH2 or grid.sigma[-1]:
                assert (
                    gap(multistep_decisions(grid, **same, corrector="pseudo"), solvers.unipc(VP, grid, **native))
                    < 1e-12
                )
            assert gap(multistep_decisions(grid, **same), solvers.unipc(VP, grid, **native, corrector=False)) < 1e-12


@pytest.mark.parametrize("prediction", ["data", "noise"])
@pytest.mark.parametrize("orders", [[2, 2, 2, 1], [3, 3, 2, 1], [1, 3, 2, 3]], ids=str)
def test_usf_contains_the_singlestep_methods(orders, prediction):
    native = solvers.dpm_singlestep if prediction == "noise" else solvers.dpmpp_singlestep
    times = ds.times.uniform_logsnr(VP, 4, stop=0.01, zero=False)
    decisions = solvers.singlestep_decisions(VP, times, orders=orders, prediction=prediction)
    expected = native(VP, times, orders=orders)
    assert gap(decisions, expected) < 1e-12
    table = usf(VP, decisions)
    for name in ("stage", "index"):
        np.testing.assert_array_equal(getattr(table, name), getattr(expected, name))
    np.testing.assert_allclose(table.next.t, expected.next.t, rtol=1e-12)


def directly(decisions, denoise, x, statistics: Any = None, mean=0.0):
    """The definition: lists of states, levels and predictions; derivatives by solving their linear equations."""
    d, levels = decisions, [VP.level(t) for t in decisions.times]
    place = [np.log(level.alpha / level.sigma) for level in levels]

    def evaluate(x, i):
        x0 = denoise(x, levels[i]) if i or d.first == "call" else mean
        eps = (x - levels[i].alpha * x0) / levels[i].sigma
        f = None if statistics is None else (levels[i].sigma * eps - statistics.l(place[i]) * x) / levels[i].alpha
        return {"data": x0 + 0 * x, "noise": eps, "v3": f}

    def expand(i, start, order, derivatives):
        s, t, h, name = levels[start], levels[i + 1], place[i + 1] - place[start], d.predictions[i]
        values = {j: outputs[j][name] for j in range(len(outputs))}
        if name == "v3":
            values = {j: statistics.g(value, place[start], place[j]) for j, value in values.items()}

        def kernel(k):
            sign = -1 if name == "noise" else 1
            u = (ROOTS + 1) / 2
            return h / 2 * WEIGHTS @ (np.exp(sign * h * (u - 1)) * (h * u) ** k / np.prod(np.arange(1, k + 1)))

        estimates = [values[start]]
        for k, (points, relaxation) in enumerate(derivatives, 1):
            away = np.array([place[j] - place[start] for j in points])
            matrix = np.array([away**m / np.prod(np.arange(1, m + 1)) for m in range(1, len(points) + 1)])
            a = np.linalg.solve(matrix, np.eye(len(points))[k - 1])
            found = sum(w * (values[j] - values[start]) for w, j in zip(a, points, strict=True))
            eta = -h if name == "data" else h
            estimates.append(found * factor(relaxation, h, eta))
        if name == "v3":
            return statistics.move(states[start], s, t, estimates)
        if name == "data":
            return t.sigma / s.sigma * states[start] + t.alpha * sum(kernel(k) * f for k, f in enumerate(estimates))
        return t.alpha / s.alpha * states[start] - t.sigma * sum(kernel(k) * f for k, f in enumerate(estimates))

    states, outputs = [x], [evaluate(x, 0)]
    for i in range(d.steps):
        start = i + 1 + d.starts[i]
        used = [([i + 1 + p for p in k.points], k.relaxation) for k in d.derivatives[i]]
        states.append(expand(i, start, d.orders[i], used))
        if i == d.steps - 1:
            return states[-1]
        outputs.append(evaluate(states[-1], i + 1))
        if d.correctors[i] != "none":
            last = d.corrector_orders[i]
            newest = [sorted(points)[::-1][: last - 2] for points, _ in used] or [[]]
            again = [([i + 1, *newest[min(k, len(newest) - 1)]], d.corrector_relaxations[i] if k == 0 else None)
                     for k in range(last - 1)]  # fmt: skip
            states[-1] = expand(i, start, last, again)
            if d.correctors[i] == "implicit":
                outputs[-1] = evaluate(states[-1], i + 1)
    raise AssertionError


def factor(relaxation, h, eta):
    if relaxation is None:
        return 1.0
    e = np.exp(eta)
    return {
        "linear": 1 + relaxation.gamma * h**relaxation.power,
        "bh1": 0.5 * eta**2 / (e - 1 - eta),
        "bh2": 0.5 * eta * (e - 1) / (e - 1 - eta),
        "half_exp": 1 + 0.5 * (e - 1),
        "minus_half_exp": 1 - 0.5 * (e - 1),
    }[relaxation.kind]


def any_decisions(seed, predictions=("noise", "data")):
    """A schedule drawn from the whole space."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 9))
    times = np.sort(rng.uniform(0.02, 0.98, n - 1))[::-1]
    orders = [int(rng.integers(1, min(4, i + 1) + 1)) for i in range(n)]
    starts = [-int(rng.integers(1, min(3, i + 1) + 1)) if rng.random() < 0.3 else -1 for i in range(n)]
    derivatives = []
    for i, (order, start) in enumerate(zip(orders, starts, strict=True)):
        near = [p for p in range(-1, max(-i - 1, -5) - 1, -1) if p != start]
        counts = [int(rng.integers(k, order)) for k in range(1, order)]
        step = [tuple(int(p) for p in rng.choice(near, m, replace=False)) for m in counts]
        derivatives.append([Derivative(points, any_relaxation(rng)) for points in step])
    correctors = [str(rng.choice(CORRECTORS)) for _ in range(n - 1)] + ["none"]
    corrected = [
        int(rng.integers(2, q + 2)) if kind != "none" else 0 for q, kind in zip(orders, correctors, strict=True)
    ]
    relaxed = [any_relaxation(rng) if kind != "none" else None for kind in correctors]
    return Decisions((1.0, *times, 0.01), orders, [str(rng.choice(predictions)) for _ in range(n)], starts, derivatives,
                     correctors, str(rng.choice(["call", "zero", "mean"])), corrected, relaxed)  # fmt: skip


def any_relaxation(rng):
    if rng.random() < 0.4:
        return None
    kind = str(rng.choice(RELAXATIONS))
    linear = {"gamma": float(rng.normal()) / 5, "power": int(rng.integers(1, 4))} if kind == "linear" else {}
    return Relaxation(kind, **linear)


def test_tables_are_the_definition_over_the_whole_space():
    for seed in range(150):
        decisions = any_decisions(seed)
        mean = 0.3 if decisions.first == "mean" else None
        table = usf(VP, decisions, mean=mean)
        expected = directly(decisions, mixture_x0, START, mean=mean or 0.0)
        assert table.calls == decisions.nfe == table.rows
        np.testing.assert_allclose(
            run_table(table, mixture_x0, START),
            expected,
            rtol=1e-9,
            atol=1e-10 * np.abs(expected).max(),
            err_msg=str(decisions),
        )


def test_prediction_may_change_at_every_step():
    times = ds.times.uniform(VP, 6, stop=0.05, zero=False)
    for order in (1, 2, 3):
        decisions = multistep_decisions(times, order=order, corrector="pseudo")
        mixed = dataclasses.replace(decisions, predictions=("data", "noise", "noise", "data", "noise", "data"))
        assert np.abs(run_table(usf(VP, mixed), mixture_x0, START) - directly(mixed, mixture_x0, START)).max() < 1e-12
        assert (
            np.abs(run_table(usf(VP, mixed), mixture_x0, START) - directly(decisions, mixture_x0, START)).max() > 1e-3
        )


def test_degenerate_statistics_are_the_data_and_the_noise_prediction():
    for seed in range(8):
        decisions = dataclasses.replace(any_decisions(seed, ["v3"]), first="call")
        for name, values in (("data", (1.0, 0.0)), ("noise", (0.0, -1.0))):
            linear, scale = (np.full(WIDE.shape, value) for value in values)
            statistics = ModelStatistics(WIDE, linear, scale)
            table = usf(VP, without_published_relaxations(decisions), statistics=statistics)
            plain = dataclasses.replace(without_published_relaxations(decisions), predictions=(name,) * decisions.steps)
            out, expected = (run_table(each, mixture_x0, START) for each in (table, usf(VP, plain)))
            np.testing.assert_allclose(out, expected, rtol=1e-9, atol=1e-10 * np.abs(expected).max())


def without_published_relaxations(decisions):
    """Linear relaxations alone: the published ones take another sign of h on the data prediction."""

    def kept(relaxation):
        return relaxation if relaxation is None or relaxation.kind == "linear" else None

    return dataclasses.replace(
        decisions,
        derivatives=[[Derivative(k.points, kept(k.relaxation)) for k in step] for step in decisions.derivatives],
        corrector_relaxations=[kept(relaxation) for relaxation in decisions.corrector_relaxations],
    )


class Quadratures:
    """DPM-Solver-v3 for l, s, b linear in half log-SNR: every integral of the published formulas by itself."""

    def __init__(self, l, s, b):  # noqa: E741
        self.lines = {"l": l, "s": s, "b": b}

    def l(self, x):  # noqa: E743
        return np.polyval(self.lines["l"], x)

    def of(self, name, x):
        return np.polyval(np.polyint(self.lines[name]), x)

    def integral(self, function, start, end):
        return (end - start) / 2 * sum(w * function(start + (end - start) * (r + 1) / 2)
                                       for r, w in zip(ROOTS, WEIGHTS, strict=True))  # fmt: skip

    def big_b(self, x):
        return self.integral(lambda y: np.exp(-self.of("s", y)) * np.polyval(self.lines["b"], y), 0.0, x)

    def g(self, f, s, at):
        rise = np.exp(self.of("s", s) - self.of("s", at))
        return rise * f - np.exp(self.of("s", s)) * (self.big_b(at) - self.big_b(s))

    def move(self, x, s, t, estimates):
        start, end = (np.log(level.alpha / level.sigma) for level in (s, t))
        weight = lambda y: np.exp(self.of("l", y) + self.of("s", y))  # noqa: E731
        whole = self.integral(weight, start, end)
        mixed = self.integral(lambda y: weight(y) * self.big_b(y), start, end)
        l_s, l_t, s_s = self.of("l", start), self.of("l", end), self.of("s", start)
        out = t.alpha / s.alpha * np.exp(l_s - l_t) * x - t.alpha * np.exp(-l_t - s_s) * whole * estimates[0]
        out = out - t.alpha * np.exp(-l_t) * (mixed - self.big_b(start) * whole)
        for k, value in enumerate(estimates[1:], 1):
            kernel = lambda y, k=k: weight(y) * (y - start) ** k / np.prod(np.arange(1, k + 1))  # noqa: E731
            out = out - t.alpha * np.exp(l_s - l_t) * np.exp(-l_s - s_s) * self.integral(kernel, start, end) * value
        return out


def test_statistics_are_integrated_as_published():
    by_hand = Quadratures([0.1, 0.7], [-0.05, -0.3], [0.04, 0.2])
    lines = (np.polyval(by_hand.lines[name], WIDE) for name in "lsb")
    statistics = ModelStatistics(WIDE, *lines)
    for seed in range(8):
        decisions = any_decisions(seed, ["v3", "data", "noise"])
        if "v3" in decisions.predictions:
            mean = 0.3 if decisions.first == "mean" else None
            out = run_table(usf(VP, decisions, mean=mean, statistics=statistics), mixture_x0, START)
            expected = directly(decisions, mixture_x0, START, by_hand, mean or 0.0)
            np.testing.assert_allclose(out, expected, rtol=1e-9, atol=1e-10 * np.abs(expected).max())


SCHEDULES = sorted((Path(__file__).parent / "schedules").glob("*.json"))
BETTER = {"cifar10_score_sde_9": 0.55, "lsun_ldm_6": 0.4, "lsun_ldm_9": 0.35}  # of the error of DDIM, measured


@pytest.mark.parametrize("path", SCHEDULES, ids=lambda path: path.stem)
def test_published_schedules_make_their_calls_and_beat_ddim_where_measured(path):
    """Those of CIFAR-10 and LSUN, on problem P1 run to their own last time; guided ImageNet's does not (1.1 times)."""
    decisions = Decisions.load(path)
    mean = 0.39 if decisions.first == "mean" else None  # the mixture's
    stop, calls = decisions.times[-1], int(path.stem.rpartition("_")[2])
    table = usf(VP, decisions, mean=mean)
    assert (decisions.nfe, table.calls) == (calls, calls)
    fine = solvers.exp_multistep(VP, ds.times.uniform_logsnr(VP, 500, stop=stop, zero=False))
    expected, out = (run_table(each, mixture_x0, START) for each in (fine, table))
    grids = [make(VP, calls, stop=stop, zero=False) for make in (ds.times.uniform_logsnr, ds.times.uniform)]
    plain = min(np.abs(run_table(solvers.ddim(VP, grid), mixture_x0, START) - expected).max() for grid in grids)
    assert np.abs(out - expected).max() < BETTER.get(path.stem, 1.2) * plain


def recipe(**options):
    return lambda process, grid: usf(process, multistep_decisions(grid, **options))


def alternating(process, grid):
    decisions = multistep_decisions(grid, order=3)
    return usf(
        process, dataclasses.replace(decisions, predictions=[("data", "noise")[i % 2] for i in range(grid.steps)])
    )


def estimating(points, relaxation=None):
    """Order 3 with another estimate of the first derivative."""

    def solver(process, grid):
        d = multistep_decisions(grid, order=3)
        steps = [[Derivative(points, relaxation), step[1]] if len(step) == 2 else step for step in d.derivatives]
        return usf(process, dataclasses.replace(d, derivatives=steps))

    return solver


def singlestep(order):
    def solver(process, grid):
        orders = [order] * (grid.steps - 1) + [order if grid.sigma[-1] else 1]
        return usf(process, solvers.singlestep_decisions(process, grid, orders=orders))

    return solver


def implicit(process, grid):
    return recipe(order=2, corrector="implicit")(process, grid)


ORDERS = {
    "2M": (recipe(relaxation=BH2), 2),
    "UniPC-3": (recipe(order=3, relaxation=BH1, corrector="pseudo"), 4),
    "third order of alternating predictions": (alternating, 3),
    "slope from one point": (estimating((-2,)), 2),
    "slope relaxed by h": (estimating((-2, -3), Relaxation("linear", 0.4)), 2),
    "slope relaxed by h^2": (estimating((-2, -3), Relaxation("linear", 0.4, power=2)), 3),
    "singlestep 2": (singlestep(2), 2),
    "singlestep 3": (singlestep(3), 3),
    "implicit corrector": (implicit, 3),
}


@pytest.mark.parametrize("name", ORDERS)
def test_decisions_imply_the_order_that_is_certified(name):
    solver, order = ORDERS[name]
    assert ds.certificate(lambda p, g: solver(p, g), compiled=False, check=True).declared == order


def test_populations_of_equal_calls_are_one_program():
    """Zero, mean and called starts, all correctors: a stack under one vmap is each table by itself, image and all."""
    mean, x = np.array([0.3, -0.2]), np.stack([START, START[::-1]], 1)
    population = []
    for first, corrector, steps in (
        ("call", "pseudo", 5),
        ("zero", "none", 6),
        ("mean", "pseudo", 6),
        ("call", "implicit", 3),
    ):
        times = ds.times.uniform_logsnr(VP, steps, stop=0.05, zero=False)
        decisions = dataclasses.replace(multistep_decisions(times, order=2, corrector=corrector), first=first)
        population.append(usf(VP, decisions, mean=mean if first == "mean" else None))
    assert {table.calls for table in population} == {5}
    law = ds.exact.Mixture(np.array([0.3, 0.45, 0.25]), np.array([[-1.0] * 2, [0.3] * 2, [1.1] * 2]), 0.1)

    def run(table):
        return ds.sample(jax.random.key(0), solvers.linear(law, table), x=jnp.asarray(x), check=False)

    with jax.enable_x64(True):
        together = jax.vmap(run)(jax.tree.map(jnp.asarray, ds.stack(population)))
        for out, table in zip(together, population, strict=True):
            np.testing.assert_allclose(out, run(table), atol=1e-12)


def test_a_first_step_without_a_call_starts_from_the_first_level():
    process = ds.VarianceExploding()
    decisions = dataclasses.replace(multistep_decisions([80.0, 10.0, 1.0, 0.1]), first="zero")
    table = usf(process, decisions)
    assert (table.start.sigma, table.now.sigma[0], table.calls) == (80.0, 10.0, 2)
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 500)
        x = solvers.linear(ds.exact.Gaussian(0.0, 1.0), table).prior(keys, (500, 8), "f8")
    assert abs(np.asarray(x).std() / 80 - 1) < 5 / np.sqrt(2 * 4000)


def test_every_step_is_exact_on_a_point_mass_from_pure_noise():
    for prediction in ("data", "noise"):
        process, times = (FLOW, [1.0, 0.7, 0.5, 0.3, 0.0]) if prediction == "data" else (VP, [1.0, 0.5, 0.2, 0.0])
        for corrector in ("none", "pseudo", "implicit"):
            table = usf(process, multistep_decisions(times, order=3, prediction=prediction, corrector=corrector))
            out = run_table(table, lambda x, level: np.full_like(x, 0.7), START)
            np.testing.assert_allclose(out, 0.7, atol=1e-10)


def test_bad_arguments_of_usf_are_named():
    decisions = Decisions((1.0, 0.5, 0.1), (1, 1), ("data", "data"))
    with pytest.raises(ValueError, match="first='mean' needs mean="):
        usf(VP, dataclasses.replace(decisions, first="mean"))
    with pytest.raises(ValueError, match="mean was given, and nothing"):
        usf(VP, decisions, mean=0.0)
    with pytest.raises(ValueError, match="'v3' needs statistics="):
        usf(VP, dataclasses.replace(decisions, predictions=("v3", "data")))
    with pytest.raises(ValueError, match="statistics are known for half log-SNR -1 to 0"):
        narrow = ModelStatistics([-1.0, 0.0], [1.0, 1.0], [0.0, 0.0])
        usf(VP, dataclasses.replace(decisions, predictions=("v3", "data")), statistics=narrow)
    with pytest.raises(ValueError, match=r"times must lie in \[0, 1.0\]"):
        usf(VP, dataclasses.replace(decisions, times=(1.5, 0.5, 0.1)))
    with pytest.raises(ValueError, match="alpha = 0"):
        usf(FLOW, multistep_decisions([1.0, 0.5, 0.1], prediction="noise"))
    with pytest.raises(ValueError, match="average l and s over pixels"):
        ModelStatistics([0.0, 1.0], np.zeros((2, 3)), np.zeros((2, 3)))
