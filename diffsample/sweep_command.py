"""`python -m diffsample sweep FILE`: metrics of the shipped digits over a grid of hyperparameters, as a file says.

A TOML file with what all cells share, a table `[fixed]` of options with one value and a table `[grid]` of options with
a list; options are those of `python -m diffsample`, without the dashes. `notebooks/sweep.toml` is an example.
"""

import argparse
import tomllib
from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from diffsample import demo, metrics, plot, solvers, sweep_store
from diffsample.choices import RULE_OPTIONS
from diffsample.command import (
    SOLVER_OPTIONS,
    Parser,
    Setting,
    add_solver,
    common_parser,
    setting_of,
    table_of,
    versions,
)
from diffsample.nets import digits
from diffsample.sampler import Sampler
from diffsample.sweeping import over_seeds, sweep

if TYPE_CHECKING:
    from xarray import Dataset

OPTIONS = (
    "process",
    "time-grid",
    "sigma-max",
    "sigma-min",
    "solver",
    "steps",
    "guidance",
    *SOLVER_OPTIONS,
    *RULE_OPTIONS,
)
METRICS: dict[str, Callable[[Setting, Any], Any]] = {
    "frechet": lambda setting, x: demo.quality(x, setting.labels, setting.judge)[0],
    "agreement": lambda setting, x: demo.quality(x, setting.labels, setting.judge)[1],
    "contrast": lambda setting, x: metrics.contrast(x),
}
KEYS: dict[str, tuple[Any, type | tuple[type, ...], str]] = {  # default, type, what is allowed
    "number": (200, int, "a whole number, samples of a cell"),
    "labels": (list(range(digits.NULL)), list, "a list of classes 0 .. 9"),
    "seeds": ([0], list, "a list of whole numbers"),
    "metrics": (["frechet", "agreement"], list, f"a list of some of {', '.join(METRICS)}"),
    "pad": (False, bool, "true or false: tables of all solvers in one shape, so in one program"),
    "chunk": (None, int, "a whole number, cells that run at a time"),
    "out": ("sweep.nc", str, "a file name that ends in .nc, for the results"),
    "plot": ("sweep.png", str, "a file name that ends in .png, for the picture"),
    "fixed": ({}, dict, "a table of options with one value"),
    "grid": (None, dict, "a table of options with a list of values"),
}


class Plan(NamedTuple):
    """A file that was read, with everything built once to see that it can be."""

    file: Path
    options: Mapping[str, Any]
    setting: Setting
    progress: bool


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    options = Parser(
        prog="python -m diffsample sweep",
        description="measure samples over a grid of hyperparameters; finished cells are kept and not run again",
        epilog="keys of the file: " + "; ".join(f"{key}, {said}" for key, (_, _, said) in KEYS.items())
        + f". Options in [fixed] and [grid]: {', '.join(OPTIONS)}",
        allow_abbrev=False,
    )  # fmt: skip
    options.add_argument("file", type=Path, help="what to sweep, in TOML; notebooks/sweep.toml is an example")
    options.add_argument("--progress", action="store_true", help="show a bar (needs tqdm)")
    return options


def plan(options: argparse.Namespace) -> Callable[[], None]:
    """Everything checked and built once, ready to run."""
    file: Path = options.file
    sweep_store.xarray()
    try:
        given = read(file)
        settings = [cell_of(given, point)[0] for point in points(given)]
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{file} is no TOML: {error}") from error
    except (ValueError, TypeError) as error:
        raise type(error)(f"{file}: {error}") from error
    return partial(run, Plan(file, given, settings[0], options.progress))


def read(file: Path) -> dict[str, Any]:
    """The keys of a file with the defaults of those that it lacks.

    Raises:
        ValueError: a key that does not exist, a value that it does not take, or an option in two places.
    """
    given = tomllib.loads(file.read_text())
    for key, value in given.items():
        if key not in KEYS:
            raise ValueError(f"there is no key {key!r}; use some of {', '.join(KEYS)}")
        _, kind, said = KEYS[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"{key} = {value!r} must be {said}")
    if "grid" not in given or not given["grid"]:
        raise ValueError("there is nothing to sweep: add a table [grid], as in scale = [1.0, 2.0]")
    found = {key: given.get(key, default) for key, (default, _, _) in KEYS.items()}
    for table in ("fixed", "grid"):
        for key, value in found[table].items():
            _check_option(table, key, value)
    if both := sorted(set(found["fixed"]) & set(found["grid"])):
        raise ValueError(f"{both[0]} is in [fixed] and in [grid]: remove it from one")
    _check_values(found)
    return found


def _check_values(found: Mapping[str, Any]) -> None:
    for name in found["metrics"]:
        if name not in METRICS:
            raise ValueError(f"metrics: there is no {name!r}; use some of {', '.join(METRICS)}")
    seeds, out = found["seeds"], Path(found["out"])
    if not seeds or len(set(seeds)) < len(seeds) or not all(type(s) is int and 0 <= s < 2**31 for s in seeds):
        raise ValueError(f"seeds = {seeds} must be different whole numbers in 0 .. 2^31 - 1")
    if found["chunk"] is not None and found["chunk"] < 1:
        raise ValueError(f"chunk = {found['chunk']} must be at least 1")
    if out.suffix != ".nc" or not out.absolute().parent.is_dir():
        raise ValueError(f"out = {found['out']!r} must be a file name that ends in .nc, in a folder that exists")


def _check_option(table: str, key: str, value: Any) -> None:
    if key not in OPTIONS:
        raise ValueError(f"[{table}] has no option {key!r}; use some of {', '.join(OPTIONS)}")
    if table == "grid" and (not isinstance(value, list) or not value):
        raise ValueError(f"[grid] {key} = {value!r} must be a list of values; one value belongs into [fixed]")
    if table == "fixed" and isinstance(value, list):
        raise ValueError(f"[fixed] {key} = {value!r} must be one value; a list belongs into [grid]")
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, bool) or not isinstance(one, str | int | float):
            raise ValueError(f"[{table}] {key}: {one!r} is neither a number nor a string")


def points(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every combination of the grid."""
    return [dict(zip(given["grid"], values, strict=True)) for values in product(*given["grid"].values())]


def cell_of(given: Mapping[str, Any], point: Mapping[str, Any]) -> tuple[Setting, Sampler]:
    """The setting and the sampler of a point of the grid, by the options of `python -m diffsample`.

    Raises:
        ValueError: what the command line says of such options, and the point.
    """
    options = common_parser("", "sweep")
    add_solver(options, "dpmpp", 10)
    chosen = {**given["fixed"], **point}
    flags = [word for key, value in chosen.items() for word in (f"--{key.replace('time-grid', 'grid')}", str(value))]
    shared = ["--number", str(given["number"]), "--out", given["plot"], "--labels", *map(str, given["labels"])]
    try:
        parsed = options.parse_args([*flags, *shared])
        setting = setting_of(parsed)
        return setting, solvers.linear(setting.denoiser, table_of(parsed, setting.process)[1])
    except (ValueError, TypeError) as error:
        where = ", ".join(f"{key} = {value}" for key, value in point.items())
        said = str(error).replace(" (--help lists all options)", "").replace("--", "")
        raise type(error)(f"at {where}: {said}") from error


def run(plan: Plan) -> None:
    """Sweeps, prints and draws."""
    given, setting = plan.options, plan.setting
    print(f"{versions()}\n{plan.file}: {' x '.join(f'{len(v)} {k}' for k, v in given['grid'].items())} x "
          f"{len(given['seeds'])} seeds, {given['number']} samples each", flush=True)  # fmt: skip
    found = sweep(
        lambda **point: cell_of(given, point)[1],
        given["grid"],
        {name: partial(METRICS[name], setting) for name in given["metrics"]},
        (given["number"], *digits.SHAPE),
        seeds=given["seeds"],
        cond=jnp.asarray(setting.labels),
        pad=given["pad"],
        chunk=given["chunk"],
        out=given["out"],
        progress=plan.progress,
    )
    print(f"structures        {found.programs}, each one compiled program")
    for name in given["metrics"]:
        print(described(over_seeds(found), name))
    floor = demo.frechet_floor(setting.labels, setting.judge)
    print(f"Frechet distance  {floor:.4f} expected of {given['number']} perfect samples")
    plot.save(picture(found, given["metrics"][0], floor), given["plot"])
    print(f"results           {given['out']}\npicture           {given['plot']}")


def described(means: "Dataset", name: str) -> str:
    """The range of a metric, and where its ends are."""
    values = means[name].values
    if not np.isfinite(values).any():
        return f"{name:17} not finite anywhere"
    ends = []
    for word, at in (("least", np.nanargmin(values)), ("most", np.nanargmax(values))):
        index = np.unravel_index(at, values.shape)
        where = ", ".join(f"{axis} {means[axis].values[i]}" for axis, i in zip(means[name].dims, index, strict=True))
        error = f" +- {means[f'{name}_error'].values[index]:.2g}" if f"{name}_error" in means else ""
        ends.append(f"{word} {values[index]:.4f}{error} at {where}")
    return f"{name:17} {'; '.join(ends)}"


def picture(found: "Dataset", metric: str, floor: float) -> Any:
    """Quality against calls where steps are swept, a heat map otherwise."""
    if "steps" not in found.dims:
        return plot.heat_map(found[metric])
    others = [str(axis) for axis in found["finished"].dims if axis not in ("steps", sweep_store.SEED)]
    return plot.calls_plot(found, metric, others[0] if others else None, floor if metric == "frechet" else None)
