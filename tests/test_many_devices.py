"""The same samples on one device, eight, and two processes of four; runs that are saved on one and go on on another."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.sharding import NamedSharding, PartitionSpec

import diffsample as ds
from diffsample import solvers

ROOT = Path(__file__).resolve().parent.parent
KEY = jax.random.key(0)
VP = ds.VariancePreserving()
GRID = ds.times.uniform_logsnr(VP, 6)
BIT_EQUAL = ("draws alone", "masked")  # of which XLA compiles the same arithmetic for every number of rows


def start(script: str, *arguments, devices: int = 1) -> subprocess.Popen:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    command = [sys.executable, str(ROOT / "tests" / script), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> str:
    out, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return out


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        return taken.getsockname()[1]


def compare(one: dict, other: dict) -> None:
    """Bit-equal where every place compiles the same arithmetic, else 1e-6 of the largest value."""
    assert set(one) <= set(other)
    for name in set(one) - {"devices"}:
        family = name.partition("/")[0].removesuffix(", resumed")
        if family in BIT_EQUAL or not np.issubdtype(one[name].dtype, np.floating):
            np.testing.assert_array_equal(other[name], one[name], err_msg=name)
        else:
            np.testing.assert_allclose(
                other[name], one[name], rtol=1e-6, atol=1e-6 * abs(one[name]).max(), err_msg=name
            )


def load(path: Path) -> dict:
    with np.load(path) as file:
        return dict(file)


def test_one_device_and_eight_draw_the_same_and_continue_each_others_runs(tmp_path):
    finish(start("many_devices.py", tmp_path / "one.npz", "one"))
    finish(start("many_devices.py", tmp_path / "eight.npz", "eight", devices=8))
    one, eight = load(tmp_path / "one.npz"), load(tmp_path / "eight.npz")
    assert (one["devices"], eight["devices"]) == (1, 8)
    compare(one, eight)
    for name in ("draws alone", "deterministic", "stochastic", "guided", "time shift", "corrected", "particles"):
        assert eight[f"collectives/{name}"] == 0, name
    # a row asks once whether any sequence needs a call, and is done; a round of drafts whether any is verified as well
    for name, asked in (("masked", 1), ("masked until done", 1), ("masked, speculative", 3)):
        assert eight[f"collectives/{name}"] == asked, name


@pytest.mark.slow
def test_two_processes_of_four_devices_draw_the_same(tmp_path):
    finish(start("many_devices.py", tmp_path / "one.npz", "one"))
    port = free_port()
    both = [start("many_devices.py", tmp_path / "two.npz", "processes", i, port, devices=4) for i in range(2)]
    for process in both:
        finish(process)
    two = load(tmp_path / "two.npz")
    assert two["devices"] == 8
    compare(load(tmp_path / "one.npz"), two)


@pytest.mark.slow
def test_every_family_draws_the_same_in_batches_of_1_and_64_and_ragged_ones(tmp_path):
    finish(start("many_devices.py", tmp_path / "one.npz", "one"))
    finish(start("many_devices.py", tmp_path / "batches.npz", "batches"))
    one, batches = load(tmp_path / "one.npz"), load(tmp_path / "batches.npz")
    assert len(batches) == 3 * 8
    for name, x in batches.items():
        wanted = one[f"{name.rpartition(',')[0]}/0"][: len(x)]
        if name.startswith(BIT_EQUAL):
            np.testing.assert_array_equal(x, wanted, err_msg=name)
        else:
            np.testing.assert_allclose(x, wanted, rtol=1e-6, atol=1e-6 * abs(wanted).max(), err_msg=name)


def test_arrays_of_an_explicit_mesh_are_sampled_and_come_back_on_it():
    mesh = jax.make_mesh((1,), ("data",))
    spread = NamedSharding(mesh, PartitionSpec("data"))
    sampler = solvers.linear(ds.exact.Gaussian(0.0, 0.5), solvers.ddpm(VP, GRID))
    plain = ds.sample(KEY, sampler, x=jnp.ones((4, 3)))
    x = jax.device_put(jnp.ones((4, 3)), spread)
    for out in (ds.sample(KEY, sampler, x=x), ds.sample(KEY, sampler, x=x, sharding=spread)):
        np.testing.assert_array_equal(out, plain)
        assert (out + x).sharding.mesh == mesh
    with jax.set_mesh(mesh):
        np.testing.assert_array_equal(ds.sample(KEY, sampler, x=jnp.ones((4, 3)), sharding="data"), plain)
    with pytest.raises(ValueError, match="inside jit on arrays of a mesh with explicit axes"):
        jax.jit(lambda x: ds.sample(KEY, sampler, x=x))(x)


def test_shardings_that_cannot_be_are_named():
    sampler = solvers.linear(ds.exact.Gaussian(0.0, 0.5), solvers.ddim(VP, GRID))
    mesh = jax.make_mesh((1,), ("data",))
    for sharding, kind, message in (
        ("batch", ValueError, "'batch' is no axis of the mesh in use"),
        (mesh, TypeError, "must be NamedSharding"),
        (NamedSharding(mesh, PartitionSpec(None, "data")), ValueError, "leaves the batch axis whole"),
    ):
        with pytest.raises(kind, match=message):
            ds.sample(KEY, sampler, (4, 3), sharding=sharding)  # type: ignore[arg-type]


def test_a_run_in_pieces_is_the_run_in_one_and_refuses_another(tmp_path):
    sampler = solvers.linear(ds.exact.Gaussian(0.0, 0.5), solvers.ddpm(VP, GRID))
    fresh = ds.start(KEY, sampler, (4, 3))
    whole = fresh.advance().finish()
    pieces = fresh.advance(2)
    pieces.save(tmp_path / "run")
    np.testing.assert_array_equal(fresh.restore(tmp_path / "run").advance(1).finish(), whole)
    np.testing.assert_allclose(ds.sample(KEY, sampler, (4, 3)), whole, rtol=1e-6, atol=1e-6)
    assert (pieces.row, pieces.rows, pieces.done, pieces.advance(9).done) == (2, 6, False, True)
    for other in (ds.start(jax.random.key(1), sampler, (4, 3)), ds.start(KEY, sampler, (4, 3), first=1)):
        with pytest.raises(ValueError, match="another sampler, key"):
            other.restore(tmp_path / "run")
    with pytest.raises(ValueError, match="shape"):
        ds.start(KEY, sampler, (5, 3)).restore(tmp_path / "run")
    with pytest.raises(ValueError, match="rows=0"):
        fresh.advance(0)


def grows(params, x, t, cond):
    """From the second call on, samples that started positive are sent away."""
    return jnp.where((t[:, None] < 0.7) & (cond[:, None] > 0), params, 0.0) + 0 * x


CONDITION = np.array([0, 1, 0, 1, 1, 0])


def test_divergence_is_reported_with_sampler_call_and_samples_also_in_chunks():
    grid = ds.times.uniform(VP, 10)
    sampler = solvers.linear(ds.Network(grows, 1e4, predicts="data"), solvers.ddim(VP, grid))
    first_bad = int(np.argmax(grid.t < 0.7))
    ds.sample(KEY, sampler, (6, 2), cond=CONDITION)
    with pytest.raises(
        ds.DivergenceError, match=rf"Linear\(ddim, Network\).*limit 100 first at call {first_bad} "
    ) as caught:
        ds.sample(KEY, sampler, (6, 2), cond=CONDITION, check=ds.Check(limit=100.0), first=50)
    assert caught.value.samples == [51, 53, 54] and caught.value.row == first_bad
    with pytest.raises(ds.DivergenceError) as caught:
        ds.sample(KEY, sampler, (6, 2), cond=CONDITION, check=ds.Check(limit=100.0), chunk=3, first=50)
    assert caught.value.samples == [51]
    ds.sample(KEY, sampler, (6, 2), cond=CONDITION, check=ds.Check(limit=1e5))
    with pytest.raises(ValueError, match="limit=0"):
        ds.Check(limit=0)


@pytest.mark.parametrize("bad", [1e4, np.nan])
def test_every_row_leaves_the_loop_at_the_first_bad_call(bad):
    grid = ds.times.uniform(VP, 10)
    sampler = solvers.linear(ds.Network(grows, bad, predicts="data"), solvers.ddim(VP, grid))
    check = ds.Check(limit=100.0, every_row=True)
    first_bad = int(np.argmax(grid.t < 0.7))
    count = ds.Fold(lambda n, view: n + 1, jnp.int32(0))
    with pytest.raises(ds.NonFiniteError, match=f"sample 51 .* at call {first_bad}, one of 3") as caught:
        ds.sample(KEY, sampler, (6, 2), cond=CONDITION, check=check, first=50, record=count)
    assert caught.value.row == first_bad and caught.value.samples == [51, 53, 54]
    assert isinstance(caught.value, ds.DivergenceError) == np.isfinite(bad)
    run = checkify.checkify(
        jax.jit(lambda key, cond: ds.sample(key, sampler, (6, 2), cond=cond, check=check, record=count))
    )
    error, (_, calls) = run(KEY, CONDITION)
    assert f"at call {first_bad}" in str(error.get()) and calls == first_bad + 1  # of 10
    error, (x, calls) = run(KEY, 0 * CONDITION)
    assert error.get() is None and calls == 10
    np.testing.assert_allclose(x, ds.sample(KEY, sampler, (6, 2), cond=0 * CONDITION, check=check), atol=1e-6)
