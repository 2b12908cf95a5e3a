"""The loop: randomness per sample, observers, middle starts, chunks, errors that say where."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsample as ds
from diffsample import solvers
from diffsample.compiles import count_compiles

VP = ds.VariancePreserving()
GRID = ds.times.uniform_logsnr(VP, 8)
KEY = jax.random.key(0)
TOY = ds.exact.Mixture([0.4, 0.6], [-1.0, 2.0], [0.3, 0.5])


def toy(solver=solvers.ddim, grid=GRID, **options):
    return solvers.linear(TOY, solver(grid.process, grid, **options))


def keep_rows_keys(params, x, t, cond):
    return 0 * x


def test_noise_of_a_sample_is_bit_equal_in_every_batch():
    """The network answers x0 = 0 and the last steps add noise only: what is left are the draws themselves."""
    grid = ds.times.uniform(VP, 2, stop=0.9, zero=False)
    silent = solvers.linear(ds.Network(keep_rows_keys, predicts="data"), solvers.ddpm(VP, grid))
    record = ds.Stack(lambda view: view.x)
    _, batch = ds.sample(KEY, silent, (64, 2), record=record)
    _, alone = ds.sample(KEY, silent, (1, 2), first=17, record=record)
    np.testing.assert_array_equal(batch[0, 17], alone[0, 0])  # initial noise
    np.testing.assert_array_equal(batch[:, 17], alone[:, 0])
    _, half = ds.sample(KEY, silent, (32, 2), first=10, record=record)
    np.testing.assert_array_equal(batch[:, 10:42], half)


def test_draws_are_standard_normal_and_independent_of_each_other():
    grid = ds.times.uniform(VP, 3, stop=0.9, zero=False)
    silent = solvers.linear(ds.Network(keep_rows_keys, predicts="data"), solvers.ddpm(VP, grid))
    last, x = ds.sample(KEY, silent, (4000, 2), record=lambda view: view.x)
    table = silent.tableau
    draws = [x[0] / table.now.sigma[0]]
    for r in (1, 2):
        draws.append(
            (x[r] - table.B[r, 0, 0] * table.store[r - 1, 1] * x[r - 1] / table.now.sigma[r - 1]) / table.c[r, 0]
        )
    z = np.stack(draws).reshape(3, -1)
    correlation = np.corrcoef(z)
    bound = 5 / np.sqrt(z.shape[1])  # false alarm below 1e-5
    assert np.abs(correlation - np.eye(3)).max() < bound
    assert np.abs(z.mean(axis=1)).max() < bound and np.abs(z.var(axis=1) - 1).max() < bound * np.sqrt(2)
    assert last.shape == (4000, 2)


def test_deterministic_solvers_draw_nothing():
    def bits(**options):
        jaxpr = jax.make_jaxpr(lambda x: ds.sample(KEY, toy(**options), x=x))(jnp.ones((4, 3)))
        return str(jaxpr).count("random_bits")

    assert bits() == 0
    assert bits(solver=solvers.heun) == 0
    assert bits(eta=0.5) > 0


def test_record_stacks_folds_and_strides():
    x, path = ds.sample(KEY, toy(), (5,), record=lambda view: {"x0": view.x0, "sigma": view.level.sigma})
    np.testing.assert_allclose(path["sigma"], GRID.sigma[:-1], rtol=1e-6)
    assert path["x0"].shape == (8, 5)
    np.testing.assert_allclose(path["x0"][-1], x, rtol=1e-6)
    _, strided = ds.sample(KEY, toy(), (5,), record=ds.Stack(lambda view: view.x0, every=3))
    np.testing.assert_array_equal(strided, path["x0"][::3])
    _, total = ds.sample(KEY, toy(), (5,), record=ds.Fold(lambda sum, view: sum + view.x0, jnp.zeros(5)))
    np.testing.assert_allclose(total, path["x0"].sum(axis=0), rtol=1e-5)
    for progress, debug in ((True, False), (False, True)):
        _, other = ds.sample(KEY, toy(), (5,), record=lambda view: view.x0, progress=progress, debug=debug)
        np.testing.assert_allclose(other, path["x0"], rtol=1e-5, atol=1e-6)


def test_folds_ignore_rows_of_padding():
    counter = ds.Fold(lambda count, view: count + 1, jnp.int32(0))
    sampler = solvers.linear(TOY, ds.pad(solvers.ddim(VP, GRID), steps=20))
    assert ds.sample(KEY, sampler, (5,), record=counter)[1] == 8


def test_view_names_every_parametrisation():
    def parts(view):
        return view.x, view.x0, view.eps, view.v, view.velocity, view.score, view.level

    _, (x, x0, eps, v, velocity, score, level) = ds.sample(KEY, toy(), (6,), record=parts)
    alpha, sigma = level.alpha[:, None], level.sigma[:, None]
    np.testing.assert_allclose(alpha * x0 + sigma * eps, x, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(alpha * x - sigma * v, x0, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(x - sigma * velocity, (alpha + sigma) * x0, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(x + sigma**2 * score, alpha * x0, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"eta": 0.8}, {"solver": solvers.heun}, {"solver": solvers.ddpm, "large": True}])
def test_view_reads_the_coming_move_off_the_table(options):
    """x_next moves by gain per unit of x0, at fixed x; measured by nudging the network."""
    network = ds.Network(lambda p, x, t, c: jnp.tanh(x) + p[t[0].astype(int) * 0], jnp.zeros(1), predicts="data")
    grid = ds.times.uniform(VP, 4, stop=0.5, zero=False)
    table = options.pop("solver", solvers.ddim)(VP, grid, **options)
    sampler = solvers.linear(network, table)
    state = sampler.init(jax.random.split(KEY, 2), jnp.ones((2, 3)), None)
    rows = jax.tree.map(lambda leaf: leaf[0], sampler.steps)
    keys = jax.random.split(KEY, 2)

    def two_rows(shift):
        moved = solvers.Linear(ds.Network(network.apply, jnp.full(1, shift), predicts="data"), table)
        first = moved.step(keys, state, rows, None)
        second = moved.step(keys, first, jax.tree.map(lambda leaf: leaf[1], sampler.steps), None)
        return second.registers[0], moved.view(first)

    (base, view), (nudged, _) = two_rows(0.0), two_rows(1e-2)
    assert table.registers == 2 or np.allclose((nudged - base) / 1e-2, view.gain, rtol=1e-3)
    assert np.isclose(view.std, table.c[1, 0])


def test_image_to_image_starts_from_the_noise_that_sampling_would():
    """Diffusing the point mass's own point and starting there equals nothing lost; a later start keeps the input."""
    clean = jax.random.normal(jax.random.key(4), (6, 3))
    late = GRID[5:]
    x = ds.diffuse(KEY, clean, late.process.level(late.t[0]))
    z = (x - late.alpha[0] * clean) / late.sigma[0]
    from_start = ds.sample(KEY, solvers.linear(ds.exact.PointMass(0.0), solvers.ddim(VP, [1.0, 0.5])), (6, 3))
    np.testing.assert_allclose(z, from_start / VP.sigma(0.5), rtol=1e-4, atol=1e-5)
    out = ds.sample(KEY, solvers.linear(ds.exact.PointMass(clean), solvers.ddim(VP, late)), x=x)
    np.testing.assert_allclose(out, clean, atol=1e-5)


def test_stopping_early_and_going_on_is_the_same_path():
    sampler = toy()
    whole = ds.sample(KEY, sampler, (5,))
    half = ds.sample(KEY, toy(grid=GRID[:5]), (5,))
    np.testing.assert_allclose(ds.sample(KEY, toy(grid=GRID[4:]), x=half), whole, rtol=1e-5, atol=1e-6)


def test_a_second_call_compiles_nothing():
    sampler = toy()
    ds.sample(KEY, sampler, (7, 2))
    with count_compiles() as compiles:
        ds.sample(KEY, sampler, (7, 2))
        ds.sample(jax.random.key(2), toy(eta=0.0), (7, 2), first=3)
    assert compiles.count == 0


def test_a_chunked_batch_is_one_program():
    sampler = toy()
    whole = ds.sample(KEY, sampler, (10, 2))
    np.testing.assert_allclose(ds.sample(KEY, sampler, (10, 2), chunk=4), whole, rtol=1e-6, atol=1e-6)
    x = jnp.linspace(-1, 1, 10)
    np.testing.assert_allclose(
        ds.sample(KEY, sampler, x=x, chunk=3), ds.sample(KEY, sampler, x=x), rtol=1e-6, atol=1e-6
    )


def test_sample_composes_with_jit_vmap_and_grad():
    sampler = toy()
    plain = ds.sample(KEY, sampler, (4,))
    np.testing.assert_allclose(jax.jit(lambda key: ds.sample(key, sampler, (4,)))(KEY), plain, rtol=1e-5, atol=1e-6)
    keys = jax.random.split(KEY, 3)
    many = jax.vmap(lambda key: ds.sample(key, sampler, (4,)))(keys)
    np.testing.assert_allclose(many[1], ds.sample(keys[1], sampler, (4,)), rtol=1e-5, atol=1e-6)
    x = jnp.linspace(-1.0, 1.0, 4)
    slope = jax.grad(lambda x: ds.sample(KEY, sampler, x=x).sum())(x)
    step = (ds.sample(KEY, sampler, x=x + 1e-3) - ds.sample(KEY, sampler, x=x - 1e-3)) / 2e-3
    np.testing.assert_allclose(slope, step, rtol=0.02)


def breaks_below(params, x, t, cond):
    return jnp.where((t[:, None] < params) & (x[:, :1] > 0), jnp.nan, 0.5 * x)


def test_a_nan_of_the_network_is_reported_with_its_call_and_nothing_is_lost():
    grid = ds.times.uniform(VP, 10)
    sampler = solvers.linear(ds.Network(breaks_below, 0.5, predicts="noise"), solvers.ddim(VP, grid))
    with pytest.raises(ds.NonFiniteError, match=r"first at call \d+ \(t=0\.\d+") as caught:
        ds.sample(KEY, sampler, (6, 2), first=100)
    error = caught.value
    assert error.row == int(np.argmax(grid.t < 0.5))
    lost = np.isnan(np.asarray(error.x)).any(axis=1)
    assert 0 < lost.sum() < 6 and error.samples == [int(i) + 100 for i in np.flatnonzero(lost)]
    assert np.isnan(ds.sample(KEY, sampler, (6, 2), check=False)).any()


BAD = [
    ({"shape": (0, 3)}, ValueError, "empty axis"),
    ({"shape": 4}, TypeError, "tuple of ints"),
    ({}, ValueError, "either shape"),
    ({"shape": (4,), "x": jnp.ones(4)}, ValueError, "either shape"),
    ({"x": jnp.array([1.0, jnp.nan])}, ValueError, r"x\[1\] = nan"),
    ({"x": 3.0}, TypeError, "array"),
    ({"shape": (4,), "cond": jnp.zeros(3, int)}, ValueError, r"shape \(3,\).*here 4"),
    ({"shape": (4,), "cond": {"text": 1.0}}, ValueError, r"\['text'\]"),
    ({"shape": (4,), "record": 3}, TypeError, "function of the view"),
    ({"shape": (4,), "record": lambda v: v.x, "chunk": 2}, ValueError, "chunk=2"),
    ({"shape": (4,), "chunk": 2.0}, ValueError, "chunk=2.0"),
    ({"shape": (4,), "first": -1}, ValueError, "first=-1"),
    ({"shape": (4,), "first": 2**32}, ValueError, "first=4294967296"),
    ({"shape": (4,), "first": 1.5}, TypeError, "first=1.5"),
    ({"shape": (4,), "dtype": jnp.int32}, TypeError, "floating point, got int32"),
    ({"shape": (4,), "dtype": np.float64}, ValueError, "jax_enable_x64"),
    ({"x": jnp.ones(4), "dtype": jnp.bfloat16}, ValueError, "dtype=bfloat16"),
    ({"x": jnp.ones((0, 3))}, ValueError, r"\(0, 3\)"),
    ({"x": jnp.ones(4, int)}, TypeError, "floating point, got int32"),
]


@pytest.mark.parametrize(("arguments", "kind", "message"), BAD)
def test_bad_input_is_named(arguments, kind, message):
    with pytest.raises(kind, match=message):
        ds.sample(KEY, toy(), **arguments)


def test_bad_keys_are_named():
    for key, kind, message in (
        (0, TypeError, "jax.random.key"),
        (jax.random.PRNGKey(0), TypeError, "typed key"),
        (jax.random.split(KEY), ValueError, r"array of \(2,\)"),
        (jax.random.key(0, impl="rbg"), ValueError, "threefry"),
    ):
        with pytest.raises(kind, match=message):
            ds.sample(key, toy(), (4,))  # type: ignore[arg-type]


def test_what_is_no_sampler_is_named():
    for wrong, name in ((solvers.ddim(VP, GRID), "Tableau"), (TOY, "Mixture")):
        with pytest.raises(TypeError, match=f"solvers.linear.*{name}"):
            ds.sample(KEY, wrong, (4,))  # type: ignore[arg-type]


def test_states_of_numpy_are_those_of_jax():
    """NumPy's own float64, which is what its random numbers are, without a warning."""
    x: Any = np.linspace(-1.0, 1.0, 4)
    np.testing.assert_array_equal(ds.sample(KEY, toy(), x=x), ds.sample(KEY, toy(), x=jnp.asarray(x)))
    np.testing.assert_array_equal(ds.diffuse(KEY, x, VP.level(0.5)), ds.diffuse(KEY, jnp.asarray(x), VP.level(0.5)))


def test_diffuse_refuses_what_it_would_round():
    with pytest.raises(TypeError, match="floating point, got int32"):
        ds.diffuse(KEY, jnp.ones(4, int), VP.level(0.5))
    with pytest.raises(TypeError, match=r"process\.level"):
        ds.diffuse(KEY, jnp.ones(4), 0.5)  # type: ignore[arg-type]


def test_observers_refuse_nonsense():
    with pytest.raises(ValueError, match=r"every=1\.5"):
        ds.Stack(lambda view: view.x, every=1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got 3"):
        ds.Fold(3, 0.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="every=0"):
        ds.Stack(lambda view: view.x, every=0)
