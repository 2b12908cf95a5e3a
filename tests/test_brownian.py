"""One Brownian path for every step count: law of the draws, nesting, convergence along the path, every solver."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods import representatives, table_of

import diffsample as ds
from diffsample import solvers
from diffsample.compiles import count_compiles

VP = ds.VariancePreserving()
KEY = jax.random.key(0)
P1 = ds.exact.Mixture([0.3, 0.45, 0.25], [-1.0, 0.3, 1.1], [0.35**2, 0.25**2, 0.4**2])
STOCHASTIC = [name for name in representatives() if table_of(name).noise != "never"]


def on_path(table, denoiser: ds.Denoiser = P1, **options):
    return solvers.linear(denoiser, table, path=solvers.brownian_path(table, **options))


def draws(table, n=4000, key=KEY):
    """(which rows draw, their draws [rows, n]), as the sampler makes them."""
    path = solvers.brownian_path(table)
    walk, found = path.init(jax.random.split(key, n), jnp.zeros(n)), []
    draw = jax.jit(lambda walk, span: path.draw(walk, span, (n,)))
    for row in range(table.rows + 1):
        z, walk = draw(walk, jax.tree.map(lambda leaf, row=row: leaf[row], path.spans))
        found.append(np.asarray(z, np.float64))
    drawing = (table.c != 0).any(axis=1)
    assert all((z == 0).all() for z, draws in zip(found, drawing, strict=True) if not draws)
    return drawing, np.stack(found)[drawing]


TABLES = {
    "ddpm": lambda: solvers.ddpm(VP, ds.times.uniform_logsnr(VP, 13)),
    "ddpm of 9 dyadic steps": lambda: solvers.ddpm(VP, ds.times.uniform_logsnr(VP, 8, zero=False)),
    "flow from alpha = 0": lambda: solvers.ddpm(
        ds.FlowMatching(), ds.times.uniform(ds.FlowMatching(), 9, stop=0, zero=False)
    ),
    "two draws a step": lambda: solvers.dpmpp_sde(VP, ds.times.karras(VP, 7)),
    "churn": lambda: solvers.heun(VP, ds.times.karras(VP, 7, start=0.6), churn=2.0),
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_draws_are_standard_normal_and_independent(table):
    _, z = draws(table())
    assert len(z) >= 6
    bound = 5 / np.sqrt(z.shape[1])  # false alarm below 1e-6 an entry, 1e-4 a table
    assert np.abs(np.corrcoef(z) - np.eye(len(z))).max() < bound
    assert np.abs(z.mean(axis=1)).max() < bound and np.abs(z.var(axis=1) - 1).max() < bound * np.sqrt(2)
    ordered, n = np.sort(z, axis=1), z.shape[1]
    below = np.asarray(jax.scipy.stats.norm.cdf(ordered))
    gap = np.abs(below - (np.arange(n) + 0.5) / n).max()
    assert gap < np.sqrt(np.log(2 / 1e-6) / (2 * n)) + 0.5 / n  # Dvoretzky-Kiefer-Wolfowitz, false alarm 1e-6 a row


def increments(n):
    """Increments of the path on the clock (alpha / sigma)^2 of each row of a grid of n steps."""
    grid = ds.times.uniform_logsnr(VP, n, zero=False)
    _, z = draws(solvers.ddpm(VP, grid), n=50)
    return z * np.sqrt(np.diff(np.exp(2 * grid.half_logsnr)))[:, None]


def test_increments_over_a_coarse_interval_are_sums_of_the_fine_ones():
    fine = increments(32)
    for n in (4, 8, 16):
        coarse, summed = increments(n), fine.reshape(n, 32 // n, -1).sum(axis=1)
        np.testing.assert_allclose(coarse, summed, rtol=1e-4, atol=1e-5 * np.abs(fine).max())


def test_ancestral_sampling_of_a_point_mass_is_the_same_at_every_nested_step_count():
    """There ddim(eta=1) is the path itself, so that the step count leaves no trace at all."""
    outs = []
    for n in (4, 16):
        table = solvers.ddpm(VP, ds.times.uniform_logsnr(VP, n, stop=0.2, zero=False))
        start, stop = (float(VP.half_logsnr(t)) for t in (1.0, 0.2))
        outs.append(ds.sample(KEY, on_path(table, ds.exact.PointMass(1.0), start=start, stop=stop), (40,)))
    np.testing.assert_allclose(outs[0], outs[1], rtol=1e-4)


def distances(sampler, counts, grid=ds.times.uniform_logsnr):
    outs = [np.asarray(ds.sample(KEY, sampler(grid(VP, n)), (500,))) for n in counts]
    return [np.abs(a - b).mean() for a, b in itertools.pairwise(outs)]


@pytest.mark.parametrize("grid", [ds.times.uniform_logsnr, ds.times.karras, ds.times.uniform])
def test_step_counts_converge_along_the_path_and_plain_draws_do_not(grid):
    """n = 10 against 20, 20 against 40, ...; distances of independent runs only grow, to that of two data."""
    shared = distances(lambda times: on_path(solvers.ddpm(VP, times)), (10, 20, 40, 80), grid)
    plain = distances(lambda times: solvers.linear(P1, solvers.ddpm(VP, times)), (10, 40), grid)
    assert all(later < 0.85 * earlier for earlier, later in itertools.pairwise(shared))
    assert shared[-1] < 0.1 and min(plain) > 0.5


def test_methods_share_the_path():
    """Two solvers of the reverse SDE end at the same samples; with fresh draws at samples of the same law only."""
    table = solvers.sde_dpmpp(VP, ds.times.uniform_logsnr(VP, 100))
    first = ds.sample(KEY, on_path(solvers.ddpm(VP, ds.times.karras(VP, 120))), (500,))
    assert np.abs(first - ds.sample(KEY, on_path(table), (500,))).mean() < 0.06
    assert np.abs(first - ds.sample(KEY, solvers.linear(P1, table), (500,))).mean() > 0.5


def test_restarts_take_the_same_draw_at_every_step_count():
    def table(times):
        return solvers.restart(VP, times, segments=[(10, 2, 0.2, 2.0)])

    shared = distances(lambda times: on_path(table(times)), (40, 80))
    plain = distances(lambda times: solvers.linear(P1, table(times)), (40, 80))
    assert shared[0] < 0.2 * plain[0]


@pytest.mark.parametrize("name", STOCHASTIC)
def test_every_shape_of_stochastic_solver_runs_on_a_path(name):
    table = table_of(name)
    sampler = on_path(table)
    batch = ds.sample(KEY, sampler, (6, 3))
    later = ds.sample(KEY, sampler, (6, 3), first=4)  # the same program, other samples beside those of number 4 and 5
    np.testing.assert_allclose(later[:2], batch[4:], rtol=1e-4, atol=1e-5)
    assert not np.allclose(batch, ds.sample(jax.random.key(1), sampler, (6, 3)), atol=0.05)


def test_path_keeps_the_laws_of_the_loop():
    """Debugging, progress, vmap and gradients; another grid or step of the same length compiles nothing."""
    table = solvers.ddpm(VP, ds.times.uniform_logsnr(VP, 12))
    expected = ds.sample(KEY, on_path(table), (4, 3))
    np.testing.assert_allclose(ds.sample(KEY, on_path(table), (4, 3), debug=True), expected, rtol=1e-4, atol=1e-5)
    keys = jax.random.split(KEY, 2)
    many = jax.vmap(lambda key: ds.sample(key, on_path(table), (4, 3)))(keys)
    np.testing.assert_allclose(many[1], ds.sample(keys[1], on_path(table), (4, 3)), rtol=1e-4, atol=1e-5)
    slope = jax.grad(lambda sampler: ds.sample(KEY, sampler, (4, 3)).sum(), allow_int=True)(on_path(table))
    assert np.abs(slope.tableau.A).max() > 0 and np.isfinite(slope.tableau.A).all()
    other = on_path(solvers.ddpm(VP, ds.times.karras(VP, 12)))
    with count_compiles() as compiles:
        ds.sample(KEY, other, (4, 3))
    assert compiles.count == 0


def test_draws_stay_below_one_and_a_half_a_row_in_programs_of_one_size():
    for grid in (ds.times.uniform_logsnr, ds.times.karras, ds.times.uniform):
        for n in (10, 33, 100):
            path = solvers.brownian_path(solvers.ddpm(VP, grid(VP, n)))
            assert np.count_nonzero(path.cuts.cell) < 1.5 * n + 2
            assert len(np.unique(path.cuts.cell)) == np.count_nonzero(path.cuts.cell) + 1  # no draw is used twice


def test_what_has_no_path_is_named():
    grid = ds.times.uniform_logsnr(VP, 6)
    with pytest.raises(ValueError, match="draws no noise"):
        solvers.brownian_path(solvers.ddim(VP, grid))
    table = solvers.ddpm(VP, grid)
    with pytest.raises(ValueError, match="start < stop"):
        solvers.brownian_path(table, start=2.0, stop=1.0)
    with pytest.raises(ValueError, match="one table"):
        solvers.brownian_path(ds.stack([table, table]))
    with pytest.raises(ValueError, match=r"6 rows.* 5"):
        solvers.linear(P1, solvers.ddpm(VP, grid[1:]), path=solvers.brownian_path(table))
