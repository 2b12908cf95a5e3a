"""Sweeps: the same samples as one by one, a program a structure, resumed, refused; and the file of the command line."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsample as ds
from diffsample import guidance, identity, plot, solvers, structures
from diffsample.__main__ import main
from diffsample.compiles import count_compiles

xarray = pytest.importorskip("xarray")

PROCESS = ds.VariancePreserving()
LAW, OTHER = ds.exact.Gaussian(0.5, 0.25), ds.exact.Gaussian(-1.0, 0.5)
GRID = ds.times.uniform_logsnr(PROCESS, 6)
EIGHT = {
    "ddim": solvers.ddim(PROCESS, GRID),
    "ddpm": solvers.ddpm(PROCESS, GRID),
    "dpmpp": solvers.dpmpp(PROCESS, GRID),
    "plms": solvers.plms(PROCESS, GRID),
    "deis": solvers.deis_t(PROCESS, GRID),
    "ghvb": solvers.ghvb(PROCESS, GRID),
    "heun": solvers.heun(PROCESS, ds.times.uniform_logsnr(PROCESS, 3)),
    "unipc": solvers.unipc(PROCESS, GRID),
}
SHAPE = (7, 3)


def guided(scale: float, solver: ds.Tableau) -> ds.Sampler:
    return solvers.linear(guidance.autoguidance(LAW, OTHER, scale), solver)


def keep(kept: list):
    """A metric that remembers what it was given."""

    def metric(x):
        kept.append(np.asarray(x))
        return x.mean()

    return metric


@pytest.mark.parametrize(("pad", "chunk", "batch"), [(False, None, None), (True, 5, None), (True, None, 3)])
def test_a_cell_has_the_samples_of_its_sampler_run_alone(pad, chunk, batch):
    grid = {"scale": [1.0, 2.5], "solver": {name: EIGHT[name] for name in ("ddpm", "heun")}}
    kept: list[np.ndarray] = []
    found = ds.sweep(guided, grid, {"mean": keep(kept)}, SHAPE, seeds=(3, 11), pad=pad, chunk=chunk, batch=batch)
    assert found["mean"].dims == ("scale", "solver", "seed") and found["mean"].shape == (2, 2, 2)
    assert found["calls"].sel(scale=1.0).values.tolist() == [12, 10]
    everything = np.sort([x.mean() for x in kept])
    for scale in grid["scale"]:
        for name, table in grid["solver"].items():
            for seed in (3, 11):
                alone = ds.sample(jax.random.key(seed), guided(scale, table), SHAPE)
                value = float(found["mean"].sel(scale=scale, solver=name, seed=seed))
                # jax 0.12 rounds otherwise under vmap; a long move of Heun multiplies it by half its noise ratio
                rounding = 1e-3 if name == "heun" else 2e-6
                assert value == pytest.approx(float(alone.mean()), abs=rounding)
                (same,) = [x for x in kept if x.mean() == value]
                np.testing.assert_allclose(same, alone, atol=rounding)
    np.testing.assert_array_equal(everything, np.sort(found["mean"].values.ravel()))


def test_sixteen_scales_and_eight_solvers_compile_once():
    grid = {"scale": np.linspace(1.0, 4.0, 16), "solver": EIGHT}
    before = structures.compiled_programs()
    found = ds.sweep(guided, grid, {"std": np.std}, SHAPE, pad=True, chunk=50)
    assert found.programs == 1 and structures.compiled_programs() - before == 1
    assert len(np.unique(found["std"])) == 128
    with count_compiles() as compiles:
        ds.sweep(guided, {**grid, "scale": np.linspace(0.5, 3.0, 16)}, {"std": np.std}, SHAPE, pad=True, chunk=50)
    assert compiles.count == 0


def test_tables_of_another_shape_compile_once_each():
    three = {"ddim": EIGHT["ddim"], "euler": solvers.euler(PROCESS, GRID), "heun": EIGHT["heun"]}
    before = structures.compiled_programs()
    found = ds.sweep(guided, {"scale": [1.0, 2.0, 3.0], "solver": three}, {"std": np.std}, SHAPE)
    assert found.programs == structures.compiled_programs() - before == 2


def test_the_weights_of_a_network_are_in_the_program_once():
    weights = jnp.ones((300, 300))
    network = ds.Network(_dense, weights, predicts="noise")
    samplers = [solvers.linear(network, solvers.ddim(PROCESS, GRID, eta=eta)) for eta in (0.2, 0.4, 0.6)]
    (structure,) = structures.sort_by_structure(samplers)
    shared = [column[0] for column, same in zip(structure.columns, structure.shared, strict=True) if same]
    assert any(leaf is weights for leaf in shared)
    assert sum(not same for same in structure.shared) < 8  # coefficients alone vary, not the levels


def _dense(params, x, t, cond):
    return x @ params


def test_conditions_reach_every_cell_and_every_batch():
    network = ds.Network(_shifted, jnp.float32(1.0), predicts="data")
    table = solvers.ddim(PROCESS, GRID)
    cond = jnp.arange(7.0)
    found = ds.sweep(
        lambda weight: solvers.linear(dataclasses.replace(network, params=jnp.float32(weight)), table),
        {"weight": [1.0, 2.0]},
        {"last": lambda x: x[6, 0], "first": lambda x: x[0, 0]},
        (7, 2),
        cond=cond,
        batch=3,
    )
    np.testing.assert_allclose(found["last"].values.ravel(), [6.0, 12.0], rtol=1e-5)
    np.testing.assert_allclose(found["first"].values.ravel(), [0.0, 0.0], atol=1e-5)


def _shifted(weight, x, t, cond):
    return jnp.broadcast_to((weight * cond)[:, None], x.shape)


def test_results_of_particles_are_measured_in_batches():
    fk = ds.smc.feynman_kac(solvers.linear(LAW, EIGHT["ddpm"]), lambda b, a: (a.x0 - b.x0)[:, 0], particles=4)
    whole = ds.sample(jax.random.key(0), fk, (12, 3))
    found = ds.sweep(lambda one: fk, {"one": [0]}, {"z": lambda out: out.log_z[2]}, (12, 3), batch=8)
    assert float(found["z"].squeeze()) == pytest.approx(float(whole.log_z[2]), abs=1e-5)


def sampler_of(eta: float) -> ds.Sampler:
    return solvers.linear(LAW, solvers.ddim(PROCESS, GRID, eta=eta))


def test_an_interrupted_sweep_goes_on_from_its_file(tmp_path):
    out, grid, measured = tmp_path / "s.nc", {"eta": [0.1, 0.4, 0.7, 1.0]}, []

    def failing(x):
        if len(measured) == 5:
            raise RuntimeError("preempted")
        measured.append(1)
        return x.std()

    with pytest.raises(RuntimeError, match="preempted") as caught:
        ds.sweep(sampler_of, grid, {"std": failing}, SHAPE, seeds=(0, 1), chunk=2, out=out)
    assert "'std' of the cell {'eta': 0.7, 'seed': 1}" in caught.value.__notes__[0]
    kept = xarray.load_dataset(out, engine="scipy")
    assert kept["finished"].values.tolist() == [[True] * 2] * 2 + [[False] * 2] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["s.nc"]

    again: list[np.ndarray] = []
    found = ds.sweep(sampler_of, grid, {"std": lambda x: keep(again)(x) * 0 + x.std()}, SHAPE, seeds=(0, 1), out=out)
    assert len(again) == 4
    straight = ds.sweep(sampler_of, grid, {"std": np.std}, SHAPE, seeds=(0, 1))
    np.testing.assert_allclose(found["std"], straight["std"], rtol=1e-5)
    xarray.testing.assert_allclose(xarray.load_dataset(out, engine="scipy")["std"], found["std"])


def test_a_grid_grows_without_running_again_what_is_there(tmp_path):
    out, kept = tmp_path / "s.nc", []
    ds.sweep(sampler_of, {"eta": [0.1, 1.0]}, {"mean": keep(kept)}, SHAPE, out=out)
    found = ds.sweep(sampler_of, {"eta": [0.0, 0.1, 0.5, 1.0]}, {"mean": keep(kept)}, SHAPE, seeds=(0, 4), out=out)
    assert len(kept) == 2 + 6 and found["finished"].all()
    straight = ds.sweep(sampler_of, {"eta": [0.0, 0.1, 0.5, 1.0]}, {"mean": np.mean}, SHAPE, seeds=(0, 4))
    np.testing.assert_allclose(found["mean"], straight["mean"], atol=2e-6)


def test_a_new_metric_runs_all_cells_again(tmp_path):
    out, kept = tmp_path / "s.nc", []
    ds.sweep(sampler_of, {"eta": [0.1, 1.0]}, {"std": np.std}, SHAPE, out=out)
    found = ds.sweep(sampler_of, {"eta": [0.1, 1.0]}, {"std": np.std, "mean": keep(kept)}, SHAPE, out=out)
    assert len(kept) == 2 and np.isfinite(found["mean"]).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"grid": {"eta": [0.1, 0.2]}}, "holds also eta = 1.0"),
        ({"grid": {"beta": [0.1, 1.0]}}, r"has the axes \('eta', 'seed'\)"),
        ({"metrics": {"mean": np.mean}}, "holds also std"),
        ({"shape": (8, 3)}, r"another sampler, condition or shape, or by other code at \{'eta': 0.1\}"),
        ({"cond": jnp.zeros(7)}, "another sampler, condition or shape"),
        ({"seeds": (1,)}, "holds also seed = 0"),
    ],
)
def test_the_file_of_another_sweep_is_refused_and_left_alone(change, said, tmp_path):
    given = {"grid": {"eta": [0.1, 1.0]}, "metrics": {"std": np.std}, "shape": SHAPE, "out": tmp_path / "s.nc"}
    ds.sweep(sampler_of, **given)
    before = given["out"].read_bytes()
    build = (lambda beta: sampler_of(beta)) if "beta" in change.get("grid", {}) else sampler_of
    with pytest.raises(FileExistsError, match=said):
        ds.sweep(build, **{**given, **change})
    assert given["out"].read_bytes() == before


def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path):
    out = tmp_path / "s.nc"
    for content in (b"precious", b""):
        out.write_bytes(content)
        with pytest.raises(FileExistsError, match="no netCDF file of a sweep"):
            ds.sweep(sampler_of, {"eta": [0.1]}, {"std": np.std}, SHAPE, out=out)
        assert out.read_bytes() == content


def test_cells_that_are_not_finite_are_results(tmp_path):
    """One point of a sweep over the number of steps, which shapes the program."""

    def steps_of(steps):
        return solvers.linear(LAW, solvers.ddim(PROCESS, ds.times.uniform_logsnr(PROCESS, steps)))

    found = ds.sweep(steps_of, {"steps": [2]}, {"bad": lambda x: np.nan}, (1, 3), out=tmp_path / "s.nc")
    again = ds.sweep(steps_of, {"steps": [2]}, {"bad": np.std}, (1, 3), out=tmp_path / "s.nc")
    assert np.isnan(found["bad"]).all() and np.isnan(again["bad"]).all() and again["finished"].all()
    pytest.importorskip("matplotlib")
    assert [text.get_text() for text in plot.heat_map(found["bad"]).axes[0].texts] == ["nan"]


def test_a_place_that_cannot_be_written_to_is_found_before_anything_is_sampled():
    with pytest.raises(OSError, match="proc"):
        ds.sweep(sampler_of, {"eta": [0.1]}, {"std": keep(kept := [])}, SHAPE, out="/proc/s.nc")
    assert not kept


def of_code(power):
    """Samplers whose function has the same name whatever it computes."""

    def edited(params, x, t, cond):
        return jnp.tanh(x) ** power

    return lambda eta: solvers.linear(ds.Network(edited, predicts="data"), solvers.ddim(PROCESS, GRID, eta=eta))


def test_edited_code_is_refused(tmp_path):
    given = {"eta": [0.1, 0.5]}, {"std": np.std}, SHAPE
    first = ds.sweep(of_code(1), *given, out=tmp_path / "s.nc")
    same = ds.sweep(of_code(1), *given, out=tmp_path / "s.nc")
    np.testing.assert_array_equal(same["std"], first["std"])
    with pytest.raises(FileExistsError, match=r"other code at \{'eta': 0.1\}"):
        ds.sweep(of_code(2), *given, out=tmp_path / "s.nc")


def program_of(function, *arguments):
    return identity.program(jax.make_jaxpr(function)(*arguments))


def test_programs_are_told_apart_by_what_they_compute():
    """By operations, their order, shapes, and constants inside loops; not by the numbers that come in."""
    table = np.arange(3.0)
    looped = lambda b, x: jax.lax.fori_loop(0, 3, lambda i, y: y * b[i], x)  # noqa: E731
    x = jnp.ones(3)
    different = [
        program_of(lambda x: jnp.sin(x) - jnp.cos(x), x),
        program_of(lambda x: jnp.cos(x) - jnp.sin(x), x),
        program_of(lambda x: jnp.sin(x) - jnp.sin(x), x),
        program_of(lambda x: x.sum() + 0 * x, jnp.ones(3)),
        program_of(lambda x: x.sum() + 0 * x, jnp.ones(4)),
        program_of(lambda x: looped(jnp.asarray(table), x), x),
        program_of(lambda x: looped(jnp.asarray(table + 1), x), x),
        program_of(lambda x: jnp.where(x > 0.5, x, 0.0), x),
        program_of(lambda x: jnp.where(x > 0.6, x, 0.0), x),
    ]
    assert len(set(different)) == len(different)
    assert program_of(lambda x: jnp.where(x > 0.5, x, 0.0), 2 * x) == different[-2]
    weak, strong = (program_of(lambda x, a: jnp.log(a) + x, x, a) for a in (2.0, jnp.float32(2.0)))
    assert weak == strong  # what is spread over processes loses its weak type
    assert identity.fingerprint(np.zeros((2, 3))) != identity.fingerprint(np.zeros((3, 2)))
    assert identity.fingerprint(np.zeros(2, np.int32)) != identity.fingerprint(np.zeros(2, np.float32))


def test_fingerprints_are_the_same_in_every_process():
    """Addresses of functions, which a network's structure prints, are not read; a leaf's last bit is."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_sweep as t, jax.numpy as jnp\n"
        "from diffsample import identity\n"
        "print(identity.fingerprint(t.ds.Network(t._dense, jnp.ones(3))), t.program_of(t.sampled, jnp.ones((2, 3))))"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent)]
    there = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    here = identity.fingerprint(ds.Network(_dense, jnp.ones(3)))
    # the name of this module differs between the two: a function prints its own name alone
    assert there.stdout.split() == [here, program_of(sampled, jnp.ones((2, 3)))]
    assert identity.fingerprint(ds.Network(_dense, jnp.ones(3).at[1].add(1.2e-7))) != here
    assert identity.fingerprint(ds.Network(_dense, jnp.ones(3), predicts="v")) != here


def sampled(x):
    return ds.sample(jax.random.key(0), guided(2.0, EIGHT["ddpm"]), x=x, check=False)


class Tableless(NamedTuple):
    """As much of a sampler as a sweep sees before it pads."""

    nfe: int = 1


def tableless(a: float) -> Any:
    return Tableless()


def test_standard_errors_are_those_of_the_mean_over_seeds():
    found = ds.sweep(sampler_of, {"eta": [0.5, 1.0]}, {"mean": np.mean}, SHAPE, seeds=range(5))
    means = ds.over_seeds(found)
    np.testing.assert_allclose(means["mean"], found["mean"].values.mean(axis=1))
    np.testing.assert_allclose(means["mean_error"], found["mean"].values.std(axis=1, ddof=1) / np.sqrt(5))
    assert set(means.data_vars) == {"mean", "mean_error", "calls"}
    one = ds.over_seeds(found.isel(seed=[0]))
    assert set(one.data_vars) == {"mean", "calls"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"grid": {"eta": 1.0}}, r"grid\['eta'\] must be a sequence"),
        ({"grid": {"eta": [1.0, "a"]}}, "all numbers or all strings"),
        ({"grid": {"eta": [np.sin]}}, "give other values labels"),
        ({"grid": {"eta": [0.5, 0.5]}}, "twice"),
        ({"grid": {"eta": []}}, "all numbers"),
        ({"grid": {}}, "one dimension"),
        ({"metrics": {}}, "one metric"),
        ({"metrics": {"calls": np.std}}, "'calls' is the name of something else"),
        ({"metrics": {"eta": np.std}}, "'eta' is the name of something else"),
        ({"metrics": {"std": lambda x: x}}, r"one number, got ndarray of shape \(7, 3\)"),
        ({"metrics": {"std": lambda x: "high"}}, "one number, got str"),
        ({"seeds": (0, 0)}, "different whole numbers"),
        ({"seeds": (-1,)}, "0 .. 2"),
        ({"metrics": [np.std]}, "functions by name"),
        ({"metrics": {"std": 3}}, "functions by name"),
        ({"seeds": 3}, "whole numbers .*got 3"),
        ({"seeds": (0.5,)}, "different whole numbers"),
        ({"shape": 8}, r"shape must be \(B, ...\).*got 8"),
        ({"shape": (0, 3)}, r"got \(0, 3\)"),
        ({"chunk": 0}, "chunk=0"),
        ({"chunk": 1.5}, "chunk=1.5"),
        ({"sharding": "cells"}, "'cells' is no axis of the mesh"),
        ({"sampler_of": lambda eta: solvers.ddim(PROCESS, GRID)}, "Tableau at .*'eta': 0.1.*no sampler"),
        ({"batch": -2}, "batch=-2"),
        ({"out": "missing/s.nc"}, "folder that exists"),
        ({"out": "s.csv"}, "netCDF"),
    ],
)
def test_bad_input_is_named_before_anything_runs(change, said):
    given = {"sampler_of": sampler_of, "grid": {"eta": [0.1]}, "metrics": {"std": np.std}, "shape": SHAPE}
    with pytest.raises((ValueError, TypeError), match=said):
        ds.sweep(**{**given, **change})
    with pytest.raises(ValueError, match="hold none"):
        ds.sweep(tableless, {"a": [1]}, {"m": np.std}, SHAPE, pad=True)
    grids = {str(n): ds.times.uniform_logsnr(PROCESS, n) for n in (3, 4)}
    for build, name in ((divided, "Divided"), (corrected, "PredictorCorrector")):
        with pytest.raises(ValueError, match=f"a {name} holds rows of its own beside its table"):
            ds.sweep(build, {"grid": grids}, {"m": np.std}, SHAPE, pad=True)


def divided(grid: ds.Grid) -> Any:
    linear = solvers.linear(ds.exact.Gaussian(0.0, 1.0), solvers.ddpm(PROCESS, grid))
    return ds.smc.dcps(linear, lambda x, cond: -(x**2).sum(axis=1), blocks=2)


def corrected(grid: ds.Grid) -> Any:
    table = solvers.reverse_diffusion(PROCESS, grid)
    return solvers.predictor_corrector(ds.exact.Gaussian(0.0, 1.0), table)


EIGHT_DEVICES = """
import sys; sys.path.insert(0, sys.argv[1])
import jax, numpy as np, test_sweep as t
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from diffsample import structures
mesh = jax.make_mesh((8,), ("cells",))  # of explicit axes, as a user makes it
place = NamedSharding(Mesh(np.array(jax.devices()), "cells"), PartitionSpec("cells"))
grid, metrics = {"eta": np.linspace(0.1, 1.0, 11)}, {"mean": np.mean}
places = None, NamedSharding(mesh, PartitionSpec("cells"))
one, many = (t.ds.sweep(t.sampler_of, grid, metrics, t.SHAPE, sharding=s) for s in places)
(group,) = structures.sort_by_structure([t.sampler_of(eta) for eta in np.linspace(0.1, 1.0, 16)])
keys = jax.random.split(jax.random.key(0), 16)
out = structures.run_together(group, range(16), keys, t.SHAPE, None, 0, place)
print(len(out.sharding.device_set), float(abs(one["mean"] - many["mean"]).max()))
"""


def test_cells_spread_over_eight_devices_are_the_same():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", EIGHT_DEVICES, str(Path(__file__).parent)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    devices, gap = done.stdout.split()
    assert int(devices) == 8 and float(gap) < 2e-6


# The command line

FILE = """
number = 20
seeds = [0, 1]
metrics = ["frechet", "agreement", "contrast"]
pad = true
out = "{folder}/s.nc"
plot = "{folder}/s.png"
[fixed]
steps = 4
guidance = "cfg"
[grid]
solver = ["ddim", "dpmpp"]
scale = [1.0, 3.0]
"""


def test_the_command_measures_draws_and_resumes(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    (tmp_path / "sweep.toml").write_text(FILE.format(folder=tmp_path))
    assert main(["sweep", str(tmp_path / "sweep.toml")]) == 0
    printed = capsys.readouterr().out
    assert "2 solver x 2 scale x 2 seeds, 20 samples each" in printed and "structures        1," in printed
    found = xarray.load_dataset(tmp_path / "s.nc", engine="scipy")
    assert found["calls"].values.tolist() == [[8, 8], [8, 8]]
    agreement = found["agreement"].mean(["solver", "seed"])
    assert agreement.sel(scale=3.0) >= agreement.sel(scale=1.0) > 0.5
    assert (tmp_path / "s.png").read_bytes()[:4] == b"\x89PNG"
    before = (tmp_path / "s.nc").stat().st_mtime_ns
    assert main(["sweep", str(tmp_path / "sweep.toml")]) == 0
    assert (tmp_path / "s.nc").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("number = 20", "nmber = 20", "there is no key 'nmber'; use some of number, labels"),
        ("number = 20", "number = true", "number = True must be a whole number"),
        ("number = 20", "number = 5", "number 5 is too few"),
        ("[grid]", "", "add a table [grid]"),
        ("scale = [", "guidance = [", "guidance is in [fixed] and in [grid]"),
        ("scale = [", "scal = [", "[grid] has no option 'scal'; use some of process, time-grid"),
        ("[1.0, 3.0]", "2.0", "one value belongs into [fixed]"),
        ("[1.0, 3.0]", '["big"]', "at solver = ddim, scale = big: argument scale: invalid number value"),
        ("steps = 4", "steps = [4, 5]", "a list belongs into [grid]"),
        ("steps = 4", "steps = 4\nbeta = 0.5", "beta does not apply to solver ddim; it applies to: ghvb"),
        ('"dpmpp"', '"dpm"', "at solver = dpm, scale = 1.0: argument solver: invalid choice: 'dpm'"),
        ('"contrast"', '"fid"', "metrics: there is no 'fid'; use some of frechet, agreement, contrast"),
        ("seeds = [0, 1]", "seeds = [0, 1.5]", "seeds = [0, 1.5] must be different whole numbers"),
        ("s.nc", "s.csv", "must be a file name that ends in .nc"),
        ("number = 20", "number 20", "is no TOML"),
    ],
)
def test_the_command_names_the_key_and_the_remedy(old, new, said, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    file = tmp_path / "sweep.toml"
    file.write_text(FILE.format(folder=tmp_path).replace(old, new))
    assert main(["sweep", str(file)]) == 2
    printed = capsys.readouterr().err
    assert said in printed and str(file) in printed and printed.count("\n") == 1


def test_the_shipped_file_is_one_program(capsys):
    from diffsample import sweep_command

    given = sweep_command.read(Path(__file__).parents[1] / "notebooks" / "sweep.toml")
    samplers = [sweep_command.cell_of(given, point)[1] for point in sweep_command.points(given)]
    assert len(samplers) == 40
    assert len(structures.sort_by_structure(structures.tables_alike(samplers))) == 1


def test_the_script_of_the_readme_runs(tmp_path, monkeypatch):
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    script = readme.split("## Sweeps")[1].split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    exec(compile(script, "README.md", "exec"), scope)
    assert dict(scope["found"].sizes) == {"scale": 4, "solver": 3, "seed": 2}
    assert scope["found"].programs == 1 and (tmp_path / "sweep.png").exists()
    means = scope["found"]["frechet"].mean(["solver", "seed"])
    assert np.argmin(means.data) == 0 and np.argmax(means.data) == 3  # guidance costs variety
