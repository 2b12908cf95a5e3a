"""What the subcommands of `python -m diffsample` share: the parser and its options, the shipped model, grids by noise.

An option of the command line that does not apply to what was chosen is an error, never ignored.
"""

import argparse
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import diffsample as ds
from diffsample import demo, plot
from diffsample.choices import FIXED_GRIDS, GRIDS, GUIDANCE, PROCESSES, RULE_OPTIONS, SOLVERS
from diffsample.nets import digits
from diffsample.schedule_files import (
    SHIPPED,
    TRAINED,
    USUAL_CALLS,
    is_schedule,
    refuse_beside_schedule,
    schedule_table,
    solver_name,
)

SIGMA_MAX, SIGMA_MIN = 80.0, 0.05  # the pixels have steps of 0.125, so less noise is of no use
USUAL_GRID = "logsnr"


class Setting(NamedTuple):
    """What the commands sample with."""

    process: ds.Process
    denoiser: ds.Denoiser
    labels: Array  # int32 [B]
    judge: demo.Judge


class Parser(argparse.ArgumentParser):
    """Errors come back to `main`, which prints them on one line."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (--help lists all options)")


def common_parser(what: str, command: str) -> argparse.ArgumentParser:
    """The options of every command that samples digits on a grid and draws them."""
    parser = model_parser(what, command)
    grids = [*GRIDS, *FIXED_GRIDS]
    what = "time grid; leading, linspace and trailing need --process betas"
    parser.add_argument("--grid", choices=grids, default=USUAL_GRID, help=default_of(what))
    parser.add_argument("--sigma-max", type=number, help=f"noise / signal at the start (default: {SIGMA_MAX:g})")
    parser.add_argument("--sigma-min", type=number, help=f"the same before the last step (default: {SIGMA_MIN:g})")
    out = Path("digits.png" if command == "sample" else f"{command}.png")
    parser.add_argument("--out", type=Path, default=out, help=default_of("picture to write, a PNG"))
    return parser


def model_parser(what: str, command: str) -> argparse.ArgumentParser:
    """The options of every command that samples digits."""
    parser = Parser(prog=f"python -m diffsample {command}", description=what, allow_abbrev=False)
    parser.add_argument("--process", choices=PROCESSES, default="vp", help=default_of("noising process"))
    parser.add_argument("--guidance", choices=GUIDANCE, default="none", help=default_of("guidance rule"))
    for name, what in RULE_OPTIONS.items():
        parser.add_argument(f"--{name}", type=number, help=applies(what, name, GUIDANCE))
    if command != "particles":
        parser.add_argument("--number", type=int, default=1000, help=default_of("samples drawn and judged"))
    classes = list(range(digits.NULL))
    what = "classes, in equal numbers"
    parser.add_argument("--labels", nargs="+", type=int, choices=classes, default=classes, help=default_of(what))
    parser.add_argument("--seed", type=int, default=0, help=default_of("decides the samples"))
    return parser


def setting_of(options: argparse.Namespace) -> Setting:
    """Checks what the commands that draw pictures share, cheap things first."""
    out = options.out
    if out.suffix.lower() != ".png" or out.is_dir():
        raise ValueError(f"--out {out} must be a file name that ends in .png")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: there is no folder {out.parent}; make it first")
    plot.figure_class()
    return model_of(options)


def model_of(options: argparse.Namespace) -> Setting:
    """The model with its guidance, from the options of `model_parser`."""
    if options.number < 2 * len(options.labels):
        raise ValueError(f"--number {options.number} is too few: two or more of each of {len(options.labels)} classes")
    if not 0 <= options.seed < 2**32:
        raise ValueError(f"--seed {options.seed} must lie in 0 .. 2^32 - 1")
    process, models = PROCESSES[options.process](), digits.load()
    network = ds.Network(digits.apply, models.params, predicts="edm", sigma_data=models.sigma_data)
    names = [name.replace("-", "_") for name in RULE_OPTIONS]
    denoiser = call_with(partial(GUIDANCE[options.guidance], network), options, names, "guidance", GUIDANCE)
    labels = jnp.asarray(np.resize(options.labels, options.number), jnp.int32)
    return Setting(process, denoiser, labels, demo.Judge(models.class_means, models.class_covs, models.classifier))


def grid_between(options: argparse.Namespace, process: ds.Process, steps: int) -> ds.Grid:
    """The grid between the two noise levels, no matter what the process calls their times."""
    high, low = options.sigma_max, options.sigma_min
    if options.grid in FIXED_GRIDS:
        if (high, low) != (None, None):
            raise ValueError(
                f"--sigma-max and --sigma-min do not apply to --grid {options.grid}; use: {', '.join(GRIDS)}"
            )
        return FIXED_GRIDS[options.grid](process, steps)
    high, low = SIGMA_MAX if high is None else high, SIGMA_MIN if low is None else low
    if not TRAINED[0] <= low < high <= TRAINED[1]:
        raise ValueError(
            f"--sigma-min {low:g} and --sigma-max {high:g} must rise within {TRAINED}, as the model was trained"
        )
    return GRIDS[options.grid](process, steps, start=time_at(process, high), stop=time_at(process, low))


def time_at(process: ds.Process, sigma: float) -> float:
    """The time of a noise-to-signal ratio, no later than the process can start."""
    return min(float(process.t_from_half_logsnr(-math.log(sigma))), process.t_start)


def add_solver(parser: argparse.ArgumentParser, default: str, steps: int) -> None:
    """The options that `table_of` reads."""
    what = f"numerical method: {', '.join(SOLVERS)}; {SHIPPED}, the model's own schedules; or FILE.json, a schedule"
    parser.add_argument("--solver", type=solver_name(SOLVERS), default=default, help=default_of(what))
    what = f"steps of the grid, network calls of {SHIPPED} (default: {steps}, of {SHIPPED} {USUAL_CALLS})"
    parser.add_argument("--steps", type=int, help=what)
    parser.set_defaults(usual_steps=steps)
    for name, (kind, what) in SOLVER_OPTIONS.items():
        parser.add_argument(f"--{name}", type=kind, help=applies(what, name, SOLVERS))


def table_of(options: argparse.Namespace, process: ds.Process) -> tuple[ds.Grid, ds.Tableau]:
    """The grid and the solver on it."""
    if is_schedule(options.solver):
        return _scheduled(options, process)
    grid = grid_between(options, process, options.usual_steps if options.steps is None else options.steps)
    build = partial(SOLVERS[options.solver], process, grid)
    return grid, call_with(build, options, list(SOLVER_OPTIONS), "solver", SOLVERS)


def _scheduled(options: argparse.Namespace, process: ds.Process) -> tuple[ds.Grid, ds.Tableau]:
    """The times and the table of a schedule; from now on the grid's name says so."""
    given = {name: getattr(options, name) for name in (*SOLVER_OPTIONS, "sigma_max", "sigma_min")}
    given["grid"] = None if options.grid == USUAL_GRID else options.grid
    given["steps"] = None if options.solver == SHIPPED else options.steps
    refuse_beside_schedule(options.solver, given)
    options.grid = "its own"
    return schedule_table(options.solver, process, options.steps)


def call_with(
    build: Any, options: argparse.Namespace, names: Sequence[str], kind: str, table: Mapping[str, Any]
) -> Any:
    """build(...) with the options among `names` that were given; one that it does not take is an error."""
    given = {name: getattr(options, name) for name in names if getattr(options, name, None) is not None}
    for name in given:
        if name not in _parameters(build):
            fits = ", ".join(key for key, function in table.items() if name in _parameters(function))
            flag, chosen = name.replace("_", "-"), getattr(options, kind)
            raise ValueError(f"--{flag} does not apply to --{kind} {chosen}; it applies to: {fits}")
    return build(**given)


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def number(text: str) -> float:
    """A finite number; argparse turns the ValueError into its message."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return value


SOLVER_OPTIONS: dict[str, tuple[Callable[[str], Any], str]] = {
    "order": (int, "order of the method"),
    "beta": (number, "damping of the momentum, 1 is none"),
    "eta": (number, "share of ancestral noise"),
    "churn": (number, "total churn, 0 draws no noise"),
}


def default_of(what: str) -> str:
    return f"{what} (default: %(default)s)"


def applies(what: str, name: str, table: Mapping[str, Callable[..., Any]]) -> str:
    """Help of an option that only some functions take, with the default of each."""
    takes = {key: _parameters(function).get(name.replace("-", "_")) for key, function in table.items()}
    said = {key: "its own" if p.default is None else p.default for key, p in takes.items() if p}
    return f"{what} (default: {', '.join(f'{key} {value}' for key, value in said.items())})"


def circumstances(options: argparse.Namespace) -> str:
    rule = "no guidance" if options.guidance == "none" else options.guidance
    return f"{options.process} process, {options.grid} grid, {rule}"


def versions() -> str:
    device = jax.devices()[0]
    return f"diffsample {ds.__version__}, jax {jax.__version__} on {device.device_kind}"
