"""The command line: samples the shipped digits with any solver, process, grid and guidance, judges and draws them.

`python -m diffsample [options]` makes one picture, with timing and quality; `python -m diffsample compare [options]`
measures quality against network calls, solver by solver; `python -m diffsample sweep FILE` does so over any grid of
hyperparameters; `python -m diffsample search` finds a solver schedule; `python -m diffsample --particles K --reward
NAME` steers; `python -m diffsample --model digit-tokens` samples the digits as tokens, by any masked decoder, and
`python -m diffsample compare --model digit-tokens` compares the decoders.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax import Array

import diffsample as ds
from diffsample import demo, particle_demo, plot, search_command, solvers, sweep_command, token_demo
from diffsample.choices import SOLVERS
from diffsample.command import (
    Parser,
    Setting,
    add_solver,
    circumstances,
    common_parser,
    default_of,
    grid_between,
    number,
    setting_of,
    table_of,
    versions,
)
from diffsample.compiles import count_compiles
from diffsample.nets import digits
from diffsample.schedule_files import SHIPPED, schedule_table

WORDS = ("sample", "compare", "search", "sweep")  # commands that are named by the first argument
COLUMNS = 10  # samples of each class in the picture
COMPARED = ("ddim", "dpmpp", "heun", "ghvb", "heavy-ball")  # euler takes the same steps as ddim


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns 0, 2 after bad input, 1 where sampling failed."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments.pop(0) if arguments and arguments[0] in WORDS else "sample"
    given = {argument.split("=")[0] for argument in arguments}
    try:
        model, arguments = _model(arguments)
        targets = particle_demo.TARGETS if model == "digits" else ()  # which say by name that --particles is missing
        if command == "sample" and not given.isdisjoint(("--particles", *targets)):
            command = "particles"
        plan, parser = COMMANDS[named(command, model)]
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


def named(command: str, model: str) -> str:
    """The entry of `COMMANDS` for a command on a model.

    Raises:
        ValueError: the model does not have this command.
    """
    if model == "digits":
        return command
    name = model if command == "sample" else f"{command} {model}"
    if name not in COMMANDS:
        raise ValueError(f"there is no {command} of --model {model}; it has: sample, compare")
    return name


def sample_parser() -> argparse.ArgumentParser:
    """Options of `python -m diffsample`."""
    what = (
        "sample the shipped digits; `compare --help`, `search --help`, `sweep --help`, `--particles 64 --help` and "
        "`--model digit-tokens --help` show the other commands"
    )
    parser = common_parser(what, "sample")
    add_solver(parser, "dpmpp", 20)
    parser.add_argument("--progress", action="store_true", help="show a bar (needs tqdm)")
    return parser


def particles_parser() -> argparse.ArgumentParser:
    """Options of `python -m diffsample --particles K`."""
    parser = common_parser("steer the shipped digits by weighted particles, a group of K for each class", "particles")
    particle_demo.add_options(parser, number)
    add_solver(parser, "ddpm", 50)
    return parser


def compare_parser() -> argparse.ArgumentParser:
    """Options of `python -m diffsample compare`."""
    parser = common_parser(
        "compare solvers at equal network calls, from the same noise, in one compiled program", "compare"
    )
    what = "methods, each with its defaults"
    parser.add_argument(
        "--solvers", nargs="+", choices=[*SOLVERS, SHIPPED], default=list(COMPARED), help=default_of(what)
    )
    budgets, what = [5, 8, 10, 15, 20, 40], "network calls; a method of two calls a step takes the most steps that fit"
    parser.add_argument("--calls", nargs="+", type=int, default=budgets, help=default_of(what))
    return parser


def plan_sample(options: argparse.Namespace) -> Callable[[], None]:
    """Everything checked and built, ready to run."""
    setting = setting_of(options)
    grid, tableau = table_of(options, setting.process)
    return partial(run_sample, options, setting, grid, solvers.linear(setting.denoiser, tableau))


def plan_compare(options: argparse.Namespace) -> Callable[[], None]:
    """Every tableau of the comparison, built and checked."""
    setting = setting_of(options)

    def build(solver: str, steps: int) -> ds.Tableau:
        if solver == SHIPPED:  # with times of its own
            return schedule_table(solver, setting.process, steps)[1]
        return SOLVERS[solver](setting.process, grid_between(options, setting.process, steps))

    tableaus = {s: [demo.most_steps(partial(build, s), c) for c in options.calls] for s in options.solvers}
    for tables in tableaus.values():
        solvers.linear(setting.denoiser, tables[0])
    return partial(run_compare, options, setting, tableaus)


def plan_particles(options: argparse.Namespace) -> Callable[[], None]:
    """The plain sampler and the weighted one, built and checked."""
    options.labels = particle_demo.groups(options)
    options.number = options.particles * len(options.labels)
    setting = setting_of(options)
    plain = solvers.linear(setting.denoiser, table_of(options, setting.process)[1])
    weighted = particle_demo.weighted(options, plain)
    return partial(particle_demo.report, options, versions(), setting.judge.classifier, plain, weighted)


def run_sample(options: argparse.Namespace, setting: Setting, grid: ds.Grid, sampler: solvers.Linear) -> None:
    """Samples, judges, draws and prints."""
    labels, tableau, n = setting.labels, sampler.tableau, len(setting.labels)
    print(f"{versions()}\nsolver            {tableau.about.name}, order {tableau.about.order}\n{grid}", flush=True)
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
    title = f"{options.solver}, {sampler.nfe} network calls\n{circumstances(options)}"
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
    title = f"{len(labels)} samples, {circumstances(options)}"
    print(f"{versions()}\n{title}, seed {options.seed}", flush=True)
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


def _complain(error: Exception, code: int) -> int:
    print(f"diffsample: {' '.join(str(error).split())}", file=sys.stderr)
    return code


COMMANDS: dict[str, tuple[Callable[..., Callable[[], None]], Callable[[], argparse.ArgumentParser]]] = {
    "compare": (plan_compare, compare_parser),
    "compare digit-tokens": (token_demo.plan_compare, partial(token_demo.compare_parser, Parser)),
    "digit-tokens": (token_demo.plan, partial(token_demo.parser, Parser)),
    "particles": (plan_particles, particles_parser),
    "sample": (plan_sample, sample_parser),
    "search": (search_command.plan, search_command.parser),
    "sweep": (sweep_command.plan, sweep_command.parser),
}

if __name__ == "__main__":
    sys.exit(main())
