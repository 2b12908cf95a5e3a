"""USF: schedules that are native solvers, the definition as a loop over lists, DPM-Solver-v3, counts of calls."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from numpy_runner import START, mixture_x0, run_table

import diffsample as ds
from diffsample import solvers
from diffsample.solvers import Decisions, Derivative, Relaxation, multistep_decisions, usf
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
