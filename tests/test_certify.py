"""Certificates: methods keep their claims, broken ones are refused by name, the README says what is measured."""

import dataclasses
import functools
import inspect
import re
from pathlib import Path

import jax
import numpy as np
import pytest

import diffsample as ds
from diffsample import contract, solvers
from diffsample.catalogue import BEGIN, END, METHODS, certify_method, main, methods_table, table_row
from diffsample.orders import FROM_MIDWAY, exact_degrees, measured_order
from diffsample.program import Program
from diffsample.tableau import About

VP = ds.VariancePreserving()
README = (Path(__file__).parents[1] / "README.md").read_text()
measured = functools.cache(functools.partial(certify_method, compiled=True))  # they share one program


def declaring(solver, order):
    """The solver, with another claim."""

    def lying(process, grid):
        table = solver(process, grid)
        return dataclasses.replace(table, about=About(f"lying_{table.about.name}", order, process))

    return lying


def readme_rows():
    """Lines of the README's table by method, none until it has the markers."""
    block = README.partition(BEGIN)[2].partition(END)[0]
    return {name + arguments: line for line, name, arguments in re.findall(r"(?m)^(\| `(\w+)`(.*?) \|.*)$", block)}


def assert_same_line(line, expected):
    """Equal text, and orders equal but for the last digit, which a platform may round elsewhere."""
    number = r"(?<![\d.])-?\d\.\d\d(?!\d)"
    assert re.sub(number, "#", line) == re.sub(number, "#", expected)
    found, wanted = (np.array(re.findall(number, text), float) for text in (line, expected))
    assert np.abs(found - wanted).max(initial=0.0) < 0.015


@pytest.mark.parametrize("label", METHODS)
def test_method_keeps_its_claim_and_the_readme_says_so(label):
    found = measured(label).verify()
    assert found.dtypes and found.gradient is not None and 0 < found.gradient < 1e-4
    (line,) = methods_table([found]).splitlines()[2:]
    assert len(table_row(found)) == line.count(" | ") + 1
    if label in readme_rows():
        assert_same_line(readme_rows()[label], line)


def test_readme_has_every_method_once():
    if BEGIN not in README:
        pytest.skip(f"README.md has no block {BEGIN} yet")
    assert [*readme_rows()] == [*METHODS]


def test_every_solver_of_the_library_has_a_row():
    signatures = {name: inspect.signature(getattr(solvers, name)) for name in solvers.__all__}
    methods = {
        name
        for name, found in signatures.items()
        if [*found.parameters][:2] == ["process", "times"] and found.return_annotation is ds.Tableau
    }
    assert len(methods) > 30
    assert methods <= {label.partition("(")[0] for label in METHODS}


def test_table_is_written_between_the_markers_of_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr("diffsample.catalogue.METHODS", {"ddim": solvers.ddim})
    path = tmp_path / "page.md"
    path.write_text(f"before\n{BEGIN}\nstale\n{END}\nafter\n")
    main([str(path)])
    assert path.read_text() == f"before\n{BEGIN}\n{methods_table()}\n{END}\nafter\n"
    path.write_text("nothing")
    with pytest.raises(SystemExit, match="has no block"):
        main([str(path)])


ORDERS = {"ddim": 1, "euler": 1, "ddpm": 1, "heun": 2, "dpmpp": 2, "plms(order=2)": 2, "ghvb": 2,
          "heun(churn=4, churn_max=50)": 2, "kutta3": 3, "rk4": 4, "unipc(order=3)": 4}  # fmt: skip


@pytest.mark.parametrize("label", ORDERS)
def test_order_is_the_one_in_the_books(label):
    assert measured(label).order == pytest.approx(ORDERS[label], abs=0.05)


def test_card_of_stochastic_and_deterministic_methods():
    churned, heun = measured("heun(churn=4, churn_max=50)"), measured("heun")
    assert churned.stochastic and not heun.stochastic and churned.midway is None
    assert (heun.calls_per_step, heun.calls, heun.registers, heun.slots) == (2, 19, 2, 2)
    assert "order in law" in str(churned) and "2.00 from sigma/alpha = 2" in str(heun)
    assert measured("consistency_multistep").declared is None
    assert measured("euler_maruyama").exact_on() == "none" and measured("ddpm").exact_on() == "point mass"
    assert measured("fpndm").calls == 19 and measured("fpndm").calls_per_step == 1


def test_start_of_low_order_shows_midway():
    def started(p, g):
        return solvers.exp_multistep(p, g, singlestep_start=True)

    assert measured_order(solvers.exp_multistep, VP) == pytest.approx(3, abs=0.1)
    assert measured_order(solvers.exp_multistep, VP, FROM_MIDWAY) == pytest.approx(2, abs=0.1)
    assert measured_order(started, VP, FROM_MIDWAY) == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize(
    ("label", "degrees"),
    [
        ("ddim", (0, 0, 0)),
        ("dpmpp", (0, 0, 0)),
        ("dpmpp(taylor=True)", (1, 0, 0)),
        ("dpmpp(order=3)", (1, 0, 0)),
        ("exp_multistep", (2, 0, 0)),
        ("deis_log_rho", (0, 2, 0)),
        ("dpm_singlestep(orders=3)", (0, 1, 0)),
        ("plms", (0, 0, 0)),
        ("lms", (0, 0, 3)),
        ("heun", (0, 0, 1)),
        ("rk4", (0, 0, 3)),
        ("unipc(order=3)", (2, 0, 0)),
    ],
)
def test_polynomials_are_exact_up_to_the_degree_in_the_books(label, degrees):
    assert exact_degrees(METHODS[label], VP) == degrees


def test_processes_measure_alike():
    tall = ds.VarianceExploding(0.002, 160.0)
    assert ds.certificate(solvers.dpmpp, tall, compiled=False).order == pytest.approx(measured("dpmpp").order, abs=1e-6)
    with pytest.raises(ValueError, match=r"up to 152.167, and VarianceExploding.*ends before"):
        ds.certificate(solvers.dpmpp, ds.VarianceExploding(), compiled=False)


def midpoint_at_the_wrong_end(process, grid):
    """DPM-Solver++ 2M that extrapolates from the older output."""
    program, old, before = Program(grid), None, None
    for s, t in program.moves():
        h = np.log(t.alpha * s.sigma / (s.alpha * t.sigma)) if t.sigma else np.inf
        x0 = program.call(s, t, x0=1.0)
        slope = h / (2 * before) if before and t.sigma else 0.0
        program[0] = (t.sigma / s.sigma) * program[0] + (t.alpha - t.sigma / s.sigma * s.alpha) * (
            (1 - slope) * x0 + slope * (old or x0)
        )
        old, before = x0, h
    return program.tableau("dpmpp_wrong_end", order=2)


def heun_that_is_euler(process, grid):
    """Heun whose second call is made and not used."""
    program = Program(grid, registers=2)
    for s, t in program.moves():
        left = program.call(s, t, eps=1.0)
        step = t.alpha * (t.sigma / t.alpha - s.sigma / s.alpha)
        program[0] = (t.alpha / s.alpha) * program[0] + step * left
        if t.sigma:
            program[1] = program[0]
            program.call(t, t, eps=1.0, register=1, stage=1)
    return program.tableau("heun_without_correction", order=2)


def noise_that_is_too_small(process, grid):
    """DDPM with nine tenths of its noise: it converges to another law."""
    table = solvers.ddpm(process, grid)
    return dataclasses.replace(table, c=0.9 * table.c)


REFUSED = {
    "wrong-end": (midpoint_at_the_wrong_end, "dpmpp_wrong_end measures order 1.00 and declares 2"),
    "no-correction": (heun_that_is_euler, "heun_without_correction measures order 1.00 and declares 2"),
    "half-curvature": (
        declaring(lambda p, g: solvers.dpmpp(p, g, order=3), 3),
        "lying_dpmpp measures order 2.00 and declares 3",
    ),
    "modest": (declaring(solvers.heun, 1), "lying_heun measures order 2.00 and declares 1"),
    "order-in-law": (declaring(solvers.ddpm, 2), "lying_ddim measures weak order 1.00 and declares 2"),
    "little-noise": (noise_that_is_too_small, "ddim measures weak order -?0.[01].* and declares 1"),
    "momentum": (
        declaring(lambda p, g: solvers.heavy_ball(solvers.plms(p, g), 0.5), 2),
        r"lying_heavy_ball\(plms\) measures order 1.00 and declares 2",
    ),
}


@pytest.mark.parametrize(("solver", "message"), REFUSED.values(), ids=REFUSED)
def test_broken_claim_is_refused_with_both_numbers(solver, message):
    with pytest.raises(ds.CertificateError, match=message) as caught:
        ds.certificate(solver, compiled=False, check=True)
    assert caught.value.certificate.name in str(caught.value)
    ds.certificate(solver, compiled=False)  # a record all the same


def test_solver_that_diverges_is_refused():
    def burning(process, grid):
        return dataclasses.replace(solvers.ddim(process, grid), A=2 * solvers.ddim(process, grid).A)

    with pytest.raises(ds.CertificateError, match="ddim measures order"):
        ds.certificate(burning, compiled=False, check=True)


def test_wrong_gradients_and_dtypes_are_refused(monkeypatch):
    monkeypatch.setattr(contract, "_eps", lambda w, x, t, cond: jax.numpy.tanh(jax.lax.stop_gradient(w) * x))
    message = "dpmpp has gradients that are off by 1 from finite differences"
    with pytest.raises(ds.CertificateError, match=message):
        ds.certificate(solvers.dpmpp, check=True)
    for changed in ({"dtypes": False}, {"gradient": float("nan")}, {"order": float("nan")}):
        with pytest.raises(ds.CertificateError):
            measured("dpmpp")._replace(**changed).verify()
