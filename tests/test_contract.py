"""What every method keeps: one row a method in methods.py, one test a promise."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods import GUIDANCE, OTHER, PROCESSES, SOLVERS, representatives, table_of

import diffsample as ds
from diffsample import solvers
from diffsample.exact import run_on_host
from diffsample.sampler import fold, normal, sample_keys
from diffsample.sampling import CLOSING_STREAM

VP = ds.VariancePreserving()
GRID = ds.times.uniform_logsnr(VP, 6)
KEY = jax.random.key(5)
LABELS = jnp.array([0, 1, 0, 1, 1, 0, 0, 1])
TRACES = []


def field(params, x, t, cond):
    TRACES.append(1)
    tilt = 0.0 if cond is None else 0.1 * cond[:, None].astype(x.dtype)
    return jnp.tanh(params["scale"].astype(x.dtype) * x) + tilt


def network(scale=0.8, **options):
    return ds.Network(field, {"scale": jnp.float32(scale)}, predicts="noise", **options)


def run(table, **options):
    return ds.sample(KEY, solvers.linear(network(), table), (8, 3), **options)


def assert_same(actual, expected, tolerance=1e-6):
    """Equal up to the rounding of differently fused arithmetic, relative to the largest sample."""
    assert np.abs(np.asarray(actual) - expected).max() <= tolerance * np.abs(expected).max()


def solver_rows():
    return pytest.mark.parametrize("name", SOLVERS)


def program_rows():
    """One row a shape of program, for what no number in a table can change."""
    return pytest.mark.parametrize("name", representatives())


@solver_rows()
def test_solver_is_a_pytree(name):
    table = table_of(name)
    again = jax.tree.unflatten(jax.tree.structure(table), jax.tree.leaves(table))
    assert jax.tree.structure(again) == jax.tree.structure(table)
    assert all(leaf.dtype in (np.float64, np.int64, bool) for leaf in jax.tree.leaves(table))


@program_rows()
def test_solver_keeps_the_dtype(name):
    sampler = solvers.linear(network(), table_of(name))
    full = ds.sample(KEY, sampler, (8, 3))
    half = ds.sample(KEY, sampler, (8, 3), dtype=jnp.bfloat16)
    assert full.dtype == jnp.float32 and half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half, full.astype(jnp.bfloat16))  # the state is float32 all the same


@solver_rows()
def test_row_of_a_batch_is_the_sample_drawn_alone(name):
    # From pure noise a Runge-Kutta start extrapolates x0, and with it rounding that 1 / alpha = 150 has amplified.
    tolerance = 2e-5 if "singlestep_start" in name else 1e-6
    table = table_of(name)
    batch = run(table)
    alone = ds.sample(KEY, solvers.linear(network(), table), (1, 3), first=5)
    assert_same(alone[0], batch[5], tolerance)
    assert_same(run(table, chunk=1), batch, tolerance)  # all of them by the same program


@solver_rows()
def test_the_key_decides_everything(name):
    table, x = table_of(name), jnp.ones((2, 3))
    sampler = solvers.linear(network(), table)
    first, again = ds.sample(KEY, sampler, x=x), ds.sample(KEY, sampler, x=x)
    other = ds.sample(jax.random.key(6), sampler, x=x)
    np.testing.assert_array_equal(first, again)
    assert bool((first == other).all()) == (table.noise == "never")


@program_rows()
def test_gradients_reach_weights_and_coefficients(name):
    def loss(scale, A):
        table = table_of(name)
        table = ds.Tableau(**{**vars(table), "A": A})
        return ds.sample(KEY, solvers.linear(network(scale), table), (4, 3)).sum()

    table = table_of(name)
    gradients = jax.grad(loss, argnums=(0, 1))(0.8, jnp.asarray(table.A, jnp.float32))
    assert all(bool(jnp.isfinite(g).all()) for g in gradients)
    step = 1e-2
    slope = (loss(0.8 + step, table.A) - loss(0.8 - step, table.A)) / (2 * step)
    np.testing.assert_allclose(gradients[0], slope, rtol=0.05, atol=1e-2)


@solver_rows()
def test_nothing_traces_twice(name):
    process = PROCESSES.get(name, VP)
    run(table_of(name))
    count = len(TRACES)
    run(table_of(name))
    run(SOLVERS[name](process, ds.times.uniform(process, 6, start=process.t_start)))
    run(OTHER.get(name, SOLVERS[name])(process, ds.times.uniform_logsnr(process, 6, stop=0.01)))
    ds.sample(jax.random.key(9), solvers.linear(network(0.3), table_of(name)), (8, 3), first=4)
    assert len(TRACES) == count


@functools.cache
def room_for_all() -> dict[str, Any]:
    """A shape larger than that of any table, so that the padded ones share programs."""
    tables = [table_of(name) for name in SOLVERS]
    slots, rows = max(table.slots for table in tables), max(table.rows for table in tables)
    return {"registers": 3, "slots": slots + 1, "steps": rows + 3}


@solver_rows()
def test_padding_changes_no_sample(name):
    table = table_of(name)
    padded = ds.pad(table, **room_for_all())
    assert_same(run(padded), run(table))
    assert padded.calls == table.calls


@program_rows()
def test_progress_and_debug_give_the_same_samples(name):
    pytest.importorskip("tqdm")
    table = table_of(name)
    expected = run(table)
    assert_same(run(table, progress=True), expected, 2e-6)
    assert_same(run(table, debug=True), expected, 2e-6)


def test_the_whole_catalogue_shares_one_program_when_padded():
    tables = [table_of(name) for name in SOLVERS]
    shape = {name: max(getattr(table, name) for table in tables) for name in ("registers", "slots")}
    padded = [ds.pad(table, **shape, steps=max(t.rows for t in tables), noise="some") for table in tables]
    run(padded[0])
    count = len(TRACES)
    out = [run(table) for table in padded]
    assert len(TRACES) == count
    for same, table in zip(out, tables, strict=True):
        assert_same(same, run(table), 2e-6)


@pytest.mark.parametrize(("wide", "tolerance"), [(True, 1e-12), (False, 5e-6)])
def test_the_whole_catalogue_computes_its_tables(wide, tolerance):
    """What the device makes of a table is what NumPy makes of it, of the draws that the keys say."""
    tables = [table_of(name) for name in SOLVERS]
    x, rows = np.linspace(-1.5, 1.5, 6).reshape(2, 3), max(t.rows for t in tables)
    with jax.enable_x64(wide):
        out = jax.vmap(lambda table: ds.sample(KEY, solvers.linear(network(), table), x=jnp.asarray(x)))(
            ds.stack(tables)
        )
        keys = [sample_keys(KEY, 0, 2)] * (rows + 1)
        keys = [fold(of, row) for of, row in zip(keys, [*range(rows), CLOSING_STREAM], strict=True)]
        draws = np.stack([normal(key, x.shape, out.dtype) for key in keys])

    def x0(x, level):
        return (x - level.sigma * np.tanh(np.float64(np.float32(0.8)) * x)) / level.alpha

    for found, table in zip(out, tables, strict=True):
        own = np.concatenate([draws[: table.rows], draws[-1:]])
        assert_same(found, run_on_host(table, x0, x, own), tolerance)


def test_the_whole_catalogue_is_one_vmap():
    tables = [table_of(name) for name in SOLVERS]
    count = len(TRACES)
    together = jax.vmap(lambda table: run(table))(ds.stack(tables))
    assert len(TRACES) <= count + 1  # none where an equal shape was traced before
    for out, table in zip(together, tables, strict=True):
        assert_same(out, run(table), 2e-6)


@pytest.mark.parametrize("name", ["cfg", "cfg-sequential", "apg", "apg-sequential"])
@pytest.mark.parametrize("solver", ["ddim", "heun", "ghvb", "ddim(eta=0.7)"])
def test_guidance_composes_with_every_solver(name, solver):
    def guided(scale, labels, **options):
        sampler = solvers.linear(GUIDANCE[name].build(network(), scale), SOLVERS[solver](VP, GRID))
        return ds.sample(KEY, sampler, (len(labels), 3), cond=labels, **options)

    batch = guided(3.0, LABELS)
    count = len(TRACES)
    stronger = guided(5.0, LABELS)
    assert len(TRACES) == count
    assert not np.allclose(stronger, batch, atol=1e-3)
    assert_same(guided(3.0, LABELS[5:6], first=5)[0], batch[5])
    per_sample = guided(jnp.linspace(1.0, 8.0, 8).at[5].set(3.0), LABELS)
    assert_same(per_sample[5], batch[5])
    sampler = solvers.linear(network(), SOLVERS[solver](VP, GRID))
    plain = ds.sample(KEY, sampler, (8, 3), cond=LABELS)
    assert_same(guided(1.0, LABELS), plain)
