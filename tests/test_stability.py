"""Stability: the published limits, the closed-form polynomials, and growth seen when the table itself is run."""

import numpy as np
import pytest

import diffsample as ds
from diffsample import solvers
from diffsample.exact import run_on_host

# Real-axis limits of specs/solvers.md, 2.5, and of the classical Runge-Kutta and Adams methods.
LIMITS = {
    "euler": (solvers.euler, -2.0),
    "ddim": (solvers.ddim, -2.0),
    "ddpm": (solvers.ddpm, -1.0),
    "heun": (solvers.heun, -2.0),
    "rk4": (solvers.rk4, -2.785294),
    "plms2": (lambda p, g: solvers.plms(p, g, order=2), -1.0),
    "plms3": (lambda p, g: solvers.plms(p, g, order=3), -6 / 11),
    "plms4": (solvers.plms, -0.3),
    "spndm": (solvers.spndm, -1.0),
    "dpmpp": (solvers.dpmpp, -1.0),
    "hb0.8-plms2": (lambda p, g: solvers.heavy_ball(solvers.plms(p, g, order=2), 0.8), -1.5),
    "hb0.8-plms4": (lambda p, g: solvers.heavy_ball(solvers.plms(p, g), 0.8), -0.45),
    "hb0.9-plms4": (lambda p, g: solvers.heavy_ball(solvers.plms(p, g), 0.9), -0.366667),
    "hb0.8-dpmpp": (lambda p, g: solvers.heavy_ball(solvers.dpmpp(p, g), 0.8), -1.5),
    "ghvb0.8": (lambda p, g: solvers.ghvb(p, g, order=1), -3.0),
    "ghvb1.8": (solvers.ghvb, -1.2),
    "ghvb2.8": (lambda p, g: solvers.ghvb(p, g, order=3), -0.642857),
    "ghvb3.8": (lambda p, g: solvers.ghvb(p, g, order=4), -0.352941),
}


def rows():
    return pytest.mark.parametrize(("solver", "limit"), LIMITS.values(), ids=LIMITS)


@rows()
def test_limit_is_the_published_one(solver, limit):
    assert ds.real_axis_limit(ds.steady_tableau(solver)) == pytest.approx(limit, abs=5e-6)


@rows()
def test_errors_die_out_just_inside_the_limit_and_grow_just_outside(solver, limit):
    def size(z, steps):
        """Of the table's output where eps = lambda x, on unit steps down in sigma."""
        return abs(run_on_host(ds.steady_tableau(solver, steps), lambda x, level: x + level.sigma * z * x, 1.0))

    assert size(0.97 * limit, 300) < 0.2 * size(0.97 * limit, 100)
    assert size(1.03 * limit, 300) > 5 * size(1.03 * limit, 100)


@pytest.mark.parametrize(
    ("solver", "polynomial"),
    [
        (solvers.euler, [1, 1]),
        (solvers.heun, [1 / 2, 1, 1]),
        (solvers.kutta3, [1 / 6, 1 / 2, 1, 1]),
        (solvers.rk4, [1 / 24, 1 / 6, 1 / 2, 1, 1]),
    ],
)
def test_region_of_a_one_step_method_is_that_of_its_polynomial(solver, polynomial):
    region = ds.stability_region(ds.steady_tableau(solver), real=(-3.0, 1.0), imag=(-3.0, 3.0), points=13)
    z = region.real + 1j * region.imag[:, None]
    np.testing.assert_allclose(region.radius, np.abs(np.polyval(polynomial, z)), atol=1e-7)


@pytest.mark.parametrize("beta", [1.0, 0.8, 0.3])
@pytest.mark.parametrize("order", [2, 4])
def test_boundary_of_ghvb_is_its_locus(order, beta):
    # z(theta) = (1 - E)(1 - (1 - beta) E) / sum_i c_i E^(i + 1), specs/solvers.md 2.5, with c_i of 2.2
    c = {2: [2 + beta, beta - 2], 4: [46 + 9 * beta, 19 * beta - 78, 42 - 5 * beta, beta - 10]}[order]
    E = np.exp(-1j * np.linspace(0.05, 0.4, 5))
    z = (1 - E) * (1 - (1 - beta) * E) / (np.polyval([*c[::-1], 0.0], E) / {2: 2, 4: 24}[order])
    table = ds.steady_tableau(lambda p, g: solvers.ghvb(p, g, order=order, beta=beta))
    for point in z:
        region = ds.stability_region(table, (point.real, point.real), (point.imag, point.imag), points=1)
        assert region.radius[0, 0] == pytest.approx(1.0, abs=1e-5)


def test_any_grid_uniform_in_sigma_will_do_for_fixed_coefficients():
    process = ds.VarianceExploding()
    grid = ds.times.uniform(process, 20, start=60.0, stop=10.0, zero=False)
    assert ds.real_axis_limit(solvers.ghvb(process, grid)) == pytest.approx(-1.2, abs=1e-6)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (lambda: solvers.plms(ds.VariancePreserving(), [1.0, 0.8, 0.6, 0.4]), "build the table on Var"),
        (lambda: solvers.lms(ds.VarianceExploding(), ds.times.karras(ds.VarianceExploding(), 20)), "are not steady"),
        (lambda: solvers.euler(ds.VarianceExploding(), [4.0, 2.0, 1.0]), "are not steady"),
        (lambda: ds.steady_tableau(lambda p, g: solvers.ald(p, g, corrections=2)), "does not follow the grid"),
    ],
)
def test_tables_without_a_steady_step_are_refused(table, message):
    with pytest.raises(ValueError, match=message):
        ds.real_axis_limit(table())


def test_plot_draws_a_boundary_for_each_solver_and_names_its_limit():
    pytest.importorskip("matplotlib")
    tables = {"PLMS": ds.steady_tableau(solvers.plms), "GHVB 1.8": ds.steady_tableau(solvers.ghvb)}
    (axes,) = ds.stability_plot(tables, points=41).axes
    assert axes.get_legend_handles_labels()[1] == ["PLMS, limit -0.3", "GHVB 1.8, limit -1.2"]
    for contour, limit in zip(axes.collections, (-0.3, -1.2), strict=True):
        x, y = np.concatenate(contour.get_paths()[0].to_polygons(closed_only=False)).T
        assert x[np.abs(y) < 0.06].min() == pytest.approx(limit, abs=0.05)
