"""The command line: samples the shipped digits with any solver, process, grid and guidance, judges and draws them.

`python -m diffsample [options]` makes one picture, with timing and quality; `python -m diffsample compare [options]`
measures quality against network calls, solver by solver; `python -m diffsample --particles K --reward NAME` steers;
`python -m diffsample --model digit-tokens` samples the digits as tokens, by any masked decoder.
"""

import argparse
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import diffsample as ds
from diffsample import demo, particle_demo, plot, solvers, token_demo
from diffsample.choices import FIXED_GRIDS, GRIDS, GUIDANCE, PROCESSES, RULE_OPTIONS, SOLVERS
from diffsample.compiles import count_compiles
from diffsample.nets import digits

TRAINED = (0.002, 160.0)  # sigma / alpha that the network has seen
SIGMA_MAX, SIGMA_MIN = 80.0, 0.05  # the pixels have steps of 0.125, so less noise is of no use
COLUMNS = 10  # samples of each class in the picture


COMPARED = ("ddim", "dpmpp", "heun", "ghvb", "heavy-ball")  # euler takes the same steps as ddim


class Setting(NamedTuple):
    """What both commands sample with."""

    process: ds.Process
    denoiser: ds.Denoiser
    labels: Array  # int32 [B]
    judge: demo.Judge


class Parser(argparse.ArgumentParser):
    """Errors come back to `main`, which prints them on one line."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (--help lists all options)")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns 0, 2 after bad input, 1 where sampling failed."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments.pop(0) if arguments[:1] in (["sample"], ["compare"]) else "sample"
    if command == "sample" and any(argument.split("=")[0] == "--particles" for argument in arguments):
        command = "particles"
    try:
        model, arguments = _model(arguments)
        plan, parser = COMMANDS[model if model in COMMANDS else command]
        job = plan(parser().parse_args(arguments))
    except (ValueError, TypeError, ImportError, OSError) as error:
        return _complain(error, 2)
    try:
        job()
    except (FloatingPointError, ImportError, OSError) as error:
        return _complain(error, 1)
    return 0


def _model(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """(the shipped model asked for, the other arguments)."""
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--model", choices=["digits", "digit-tokens"], default="digits")
    known, others = parser.parse_known_args(arguments)
    return known.model, others


def sample_parser() -> argparse.ArgumentParser:
    """Options of `python -m diffsample`."""
    what = (
        "sample the shipped digits; `compare --help`, `--particles 64 --help` and `--model digit-tokens --help` show "
        "the other commands"
    )
    parser = _parser(what, "sample")
    _add_solver(parser, "dpmpp", 20)
    parser.add_argument("--progress", action="store_true", help="show a bar (needs tqdm)")
    return parser


def particles_parser() -> argparse.ArgumentParser:
    """Options of `python -m diffsample --particles K`."""
    parser = _parser("steer the shipped digits by weighted particles, a group of K for each class", "particles")
    particle_demo.add_options(parser, _number)
    _add_solver(parser, "ddpm", 50)
    return parser


def _add_solver(parser: argparse.ArgumentParser, default: str, steps: int) -> None:
    parser.add_argument("--solver", choices=SOLVERS, default=default, help=_default("numerical method"))
    parser.add_argument("--steps", type=int, default=steps, help=_default("steps of the grid"))
    for name, kind, what in (
        ("order", int, "order of the method"),
        ("beta", _number, "damping of the momentum, 1 is none"),
        ("eta", _number, "share of ancestral noise"),
        ("churn", _number, "total churn, 0 draws no noise"),
    ):
        parser.add_argument(f"--{name}", type=kind, help=_applies(what, name, SOLVERS))


def compare_parser() -> argparse.ArgumentParser:
    """Options of `python -m diffsample compare`."""
    parser = _parser("compare solvers at equal network calls, from the same noise, in one compiled program", "compare")
    what = "methods, each with its defaults"
    parser.add_argument("--solvers", nargs="+", choices=SOLVERS, default=list(COMPARED), help=_default(what))
    budgets, what = [5, 8, 10, 15, 20, 40], "network calls; a method of two calls a step takes the most steps that fit"
    parser.add_argument("--calls", nargs="+", type=int, default=budgets, help=_default(what))
    return parser


def plan_sample(options: argparse.Namespace) -> Callable[[], None]:
    """Everything checked and built, ready to run."""
    setting = _setting(options)
    grid = _grid(options, setting.process, options.steps)
    build = partial(SOLVERS[options.solver], setting.process, grid)
    tableau = _call(build, options, ("order", "beta", "eta", "churn"), "solver", SOLVERS)
    return partial(run_sample, options, setting, grid, solvers.linear(setting.denoiser, tableau))


def plan_compare(options: argparse.Namespace) -> Callable[[], None]:
    """Every tableau of the comparison, built and checked."""
    setting = _setting(options)

    def build(solver: str, steps: int) -> ds.Tableau:
        return SOLVERS[solver](setting.process, _grid(options, setting.process, steps))

    tableaus = {s: [demo.most_steps(partial(build, s), c) for c in options.calls] for s in options.solvers}
    for tables in tableaus.values():
        solvers.linear(setting.denoiser, tables[0])
    return partial(run_compare, options, setting, tableaus)


def plan_particles(options: argparse.Namespace) -> Callable[[], None]:
    """The plain sampler and the weighted one, built and checked."""
    options.labels = particle_demo.groups(options)
    options.number = options.particles * len(options.labels)
    setting = _setting(options)
    build = partial(SOLVERS[options.solver], setting.process, _grid(options, setting.process, options.steps))
    tableau = _call(build, options, ("order", "beta", "eta", "churn"), "solver", SOLVERS)
    plain = solvers.linear(setting.denoiser, tableau)
    weighted = particle_demo.weighted(options, plain)
    return partial(particle_demo.report, options, _versions(), setting.judge.classifier, plain, weighted)


def run_sample(options: argparse.Namespace, setting: Setting, grid: ds.Grid, sampler: solvers.Linear) -> None:
    """Samples, judges, draws and prints."""
    labels, tableau, n = setting.labels, sampler.tableau, len(setting.labels)
    print(f"{_versions()}\nsolver            {tableau.about.name}, order {tableau.about.order}\n{grid}", flush=True)
    key = jax.random.key(options.seed)
    run = demo.sample_twice(key, sampler, labels, digits.SHAPE, options.progress)
    frechet, agreement = demo.quality(run.images, labels, setting.judge)
    times, rest = divmod(sampler.nfe, tableau.calls)
    guided = f"{sampler.nfe - tableau.calls} more" if rest or options.guidance == "interval" else f"times {times}"
    parts = f"{tableau.calls} by the solver, {guided} by the guidance"
    print(f"network calls     {sampler.nfe} a sample: {parts}")
    for name, seconds, compiles in zip(("first", "second"), run.seconds, run.compiles, strict=True):
        print(f"{name + ' call':17} {seconds:.2f} s for {n} samples, {compiles} programs compiled")
    print(f"Frechet distance  {frechet:.4f} in pixel space, {n} samples against real digits of these classes")
    print(f"                  {demo.frechet_floor(labels, setting.judge):.4f} expected of {n} perfect samples")
    real = digits.load().accuracy
    print(f"class agreement   {agreement:.1%} read as the class asked for (real digits: {real:.1%})")
    title = f"{options.solver}, {sampler.nfe} network calls\n{_circumstances(options)}"
    draw(run.images, options.labels, title, options.out)


def draw(images: Array, labels: Sequence[int], title: str, out: Path) -> None:
    """One row a class, of its first samples; sample i has label i modulo the number of labels."""
    columns = min(COLUMNS, len(images) // len(labels))
    rows = np.concatenate([np.asarray(images[k :: len(labels)][:columns]) for k in range(len(labels))])
    plot.save(plot.image_grid(rows, len(labels), labels=labels, title=title), out)
    print(f"picture           {out}")


def run_compare(options: argparse.Namespace, setting: Setting, tableaus: Mapping[str, Sequence[ds.Tableau]]) -> None:
    """Prints a line as soon as it is known, then the tables, and draws the plot."""
    key, labels, table = jax.random.key(options.seed), setting.labels, []
    attach = partial(solvers.linear, setting.denoiser)
    title = f"{len(labels)} samples, {_circumstances(options)}"
    print(f"{_versions()}\n{title}, seed {options.seed}", flush=True)
    with count_compiles() as compiles:
        for score in demo.compare(key, attach, tableaus, labels, digits.SHAPE, setting.judge):
            table.append(score)
            line = f"{score.solver:16} {score.calls:4d} calls {score.frechet:9.4f} {score.agreement:7.1%}"
            print(line, f"  {compiles.count} programs compiled so far", flush=True)
    floor = demo.frechet_floor(labels, setting.judge)
    said = f"Frechet distance ({floor:.4f} expected of {len(labels)} perfect samples)"
    print(demo.tabulated(said, table, "frechet", options.calls))
    print(demo.tabulated("class agreement", table, "agreement", options.calls))
    plot.save(plot.quality_plot(table, floor, title), options.out)
    print(f"picture           {options.out}")


def _parser(what: str, command: str) -> argparse.ArgumentParser:
    """The options of both commands."""
    parser = Parser(prog=f"python -m diffsample {command}", description=what, allow_abbrev=False)
    parser.add_argument("--process", choices=PROCESSES, default="vp", help=_default("noising process"))
    grids = [*GRIDS, *FIXED_GRIDS]
    what = "time grid; leading, linspace and trailing need --process betas"
    parser.add_argument("--grid", choices=grids, default="logsnr", help=_default(what))
    parser.add_argument("--sigma-max", type=_number, help=f"noise / signal at the start (default: {SIGMA_MAX:g})")
    parser.add_argument("--sigma-min", type=_number, help=f"the same before the last step (default: {SIGMA_MIN:g})")
    parser.add_argument("--guidance", choices=GUIDANCE, default="none", help=_default("guidance rule"))
    for name, what in RULE_OPTIONS.items():
        parser.add_argument(f"--{name}", type=_number, help=_applies(what, name, GUIDANCE))
    if command != "particles":
        parser.add_argument("--number", type=int, default=1000, help=_default("samples drawn and judged"))
    classes = list(range(digits.NULL))
    what = "classes, in equal numbers"
    parser.add_argument("--labels", nargs="+", type=int, choices=classes, default=classes, help=_default(what))
    parser.add_argument("--seed", type=int, default=0, help=_default("decides the samples"))
    out = Path("digits.png" if command == "sample" else f"{command}.png")
    parser.add_argument("--out", type=Path, default=out, help=_default("picture to write, a PNG"))
    return parser


def _setting(options: argparse.Namespace) -> Setting:
    """Checks what both commands share, cheap things first."""
    _check(options)
    process, models = PROCESSES[options.process](), digits.load()
    network = ds.Network(digits.apply, models.params, predicts="edm", sigma_data=models.sigma_data)
    names = [name.replace("-", "_") for name in RULE_OPTIONS]
    denoiser = _call(partial(GUIDANCE[options.guidance], network), options, names, "guidance", GUIDANCE)
    labels = jnp.asarray(np.resize(options.labels, options.number), jnp.int32)
    return Setting(process, denoiser, labels, demo.Judge(models.class_means, models.class_covs, models.classifier))


def _check(options: argparse.Namespace) -> None:
    if options.number < 2 * len(options.labels):
        raise ValueError(f"--number {options.number} is too few: two or more of each of {len(options.labels)} classes")
    if not 0 <= options.seed < 2**32:
        raise ValueError(f"--seed {options.seed} must lie in 0 .. 2^32 - 1")
    out = options.out
    if out.suffix.lower() != ".png" or out.is_dir():
        raise ValueError(f"--out {out} must be a file name that ends in .png")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: there is no folder {out.parent}; make it first")
    plot.figure_class()


def _grid(options: argparse.Namespace, process: ds.Process, steps: int) -> ds.Grid:
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
    start, stop = (float(process.t_from_half_logsnr(-math.log(sigma))) for sigma in (high, low))
    return GRIDS[options.grid](process, steps, start=min(start, process.t_start), stop=stop)


def _call(build: Any, options: argparse.Namespace, names: Sequence[str], kind: str, table: Mapping[str, Any]) -> Any:
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


def _number(text: str) -> float:
    """A finite number; argparse turns the ValueError into its message."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return value


def _default(what: str) -> str:
    return f"{what} (default: %(default)s)"


def _applies(what: str, name: str, table: Mapping[str, Callable[..., Any]]) -> str:
    """Help of an option that only some functions take, with the default of each."""
    takes = {key: _parameters(function).get(name.replace("-", "_")) for key, function in table.items()}
    return f"{what} (default: {', '.join(f'{key} {p.default}' for key, p in takes.items() if p)})"


def _circumstances(options: argparse.Namespace) -> str:
    rule = "no guidance" if options.guidance == "none" else options.guidance
    return f"{options.process} process, {options.grid} grid, {rule}"


def _versions() -> str:
    device = jax.devices()[0]
    return f"diffsample {ds.__version__}, jax {jax.__version__} on {device.device_kind}"


def _complain(error: Exception, code: int) -> int:
    print(f"diffsample: {' '.join(str(error).split())}", file=sys.stderr)
    return code


COMMANDS: dict[str, tuple[Callable[..., Callable[[], None]], Callable[[], argparse.ArgumentParser]]] = {
    "compare": (plan_compare, compare_parser),
    "digit-tokens": (token_demo.plan, partial(token_demo.parser, Parser)),
    "particles": (plan_particles, particles_parser),
    "sample": (plan_sample, sample_parser),
}

if __name__ == "__main__":
    sys.exit(main())
