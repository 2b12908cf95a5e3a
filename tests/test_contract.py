"""What every method keeps: one row a method in methods.py, one test a promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods import GUIDANCE, OTHER, SOLVERS

import diffsample as ds
from diffsample import solvers

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


@solver_rows()
def test_solver_is_a_pytree(name):
    table = SOLVERS[name](VP, GRID)
    again = jax.tree.unflatten(jax.tree.structure(table), jax.tree.leaves(table))
    assert jax.tree.structure(again) == jax.tree.structure(table)
    assert all(leaf.dtype in (np.float64, np.int64, bool) for leaf in jax.tree.leaves(table))


@solver_rows()
def test_solver_keeps_the_dtype(name):
    sampler = solvers.linear(network(), SOLVERS[name](VP, GRID))
    full = ds.sample(KEY, sampler, (8, 3))
    half = ds.sample(KEY, sampler, (8, 3), dtype=jnp.bfloat16)
    assert full.dtype == jnp.float32 and half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half, full.astype(jnp.bfloat16))  # the state is float32 all the same


@solver_rows()
def test_row_of_a_batch_is_the_sample_drawn_alone(name):
    table = SOLVERS[name](VP, GRID)
    batch = run(table)
    for i in (0, 5):
        alone = ds.sample(KEY, solvers.linear(network(), table), (1, 3), first=i)
        assert_same(alone[0], batch[i])
    assert_same(run(table, chunk=3), batch)


@solver_rows()
def test_the_key_decides_everything(name):
    table, x = SOLVERS[name](VP, GRID), jnp.ones((2, 3))
    sampler = solvers.linear(network(), table)
    first, again = ds.sample(KEY, sampler, x=x), ds.sample(KEY, sampler, x=x)
    other = ds.sample(jax.random.key(6), sampler, x=x)
    np.testing.assert_array_equal(first, again)
    assert bool((first == other).all()) == (table.noise == "never")


@solver_rows()
def test_gradients_reach_weights_and_coefficients(name):
    def loss(scale, A):
        table = SOLVERS[name](VP, GRID)
        table = ds.Tableau(**{**vars(table), "A": A})
        return ds.sample(KEY, solvers.linear(network(scale), table), (4, 3)).sum()

    table = SOLVERS[name](VP, GRID)
    gradients = jax.grad(loss, argnums=(0, 1))(0.8, jnp.asarray(table.A, jnp.float32))
    assert all(bool(jnp.isfinite(g).all()) for g in gradients)
    step = 1e-2
    slope = (loss(0.8 + step, table.A) - loss(0.8 - step, table.A)) / (2 * step)
    np.testing.assert_allclose(gradients[0], slope, rtol=0.05, atol=1e-2)


@solver_rows()
def test_nothing_traces_twice(name):
    run(SOLVERS[name](VP, GRID))
    count = len(TRACES)
    run(SOLVERS[name](VP, GRID))
    run(SOLVERS[name](VP, ds.times.karras(VP, 6)))
    run(OTHER.get(name, SOLVERS[name])(VP, GRID))
    ds.sample(jax.random.key(9), solvers.linear(network(0.3), SOLVERS[name](VP, GRID)), (8, 3), first=4)
    assert len(TRACES) == count


@solver_rows()
def test_padding_changes_no_sample(name):
    table = SOLVERS[name](VP, GRID)
    padded = ds.pad(table, registers=3, slots=5, steps=14)
    assert_same(run(padded), run(table))
    assert padded.calls == table.calls


@solver_rows()
def test_progress_and_debug_give_the_same_samples(name):
    pytest.importorskip("tqdm")
    table = SOLVERS[name](VP, GRID)
    expected = run(table)
    assert_same(run(table, progress=True), expected)
    assert_same(run(table, debug=True), expected)


def test_all_solvers_share_one_program_when_padded():
    shape = {"registers": 2, "slots": 4, "steps": 11, "noise": "some"}
    tables = [ds.pad(solver(VP, GRID), **shape) for solver in SOLVERS.values()]
    run(tables[0])
    count = len(TRACES)
    padded = [run(table) for table in tables]
    assert len(TRACES) == count
    for out, solver in zip(padded, SOLVERS.values(), strict=True):
        assert_same(out, run(solver(VP, GRID)))


def test_all_solvers_are_one_vmap():
    tables = [solver(VP, GRID) for solver in SOLVERS.values()]
    count = len(TRACES)
    together = jax.vmap(lambda table: run(table))(ds.stack(tables))
    assert len(TRACES) <= count + 1  # none where an equal shape was traced before
    for out, table in zip(together, tables, strict=True):
        assert_same(out, run(table))


@pytest.mark.parametrize("name", GUIDANCE)
@pytest.mark.parametrize("solver", ["ddim", "heun", "ghvb1.8", "ddim-eta"])
def test_guidance_composes_with_every_solver(name, solver):
    def guided(scale, labels, **options):
        sampler = solvers.linear(GUIDANCE[name](network(), scale), SOLVERS[solver](VP, GRID))
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
