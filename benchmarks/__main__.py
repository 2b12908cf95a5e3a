"""All benchmarks in one command: a JSON file, and a Markdown table of ratios with their targets.

    python -m benchmarks [--quick] [--only NAME ...] [--out benchmarks]       or: python benchmarks

Every file of this folder that has `rows(quick)` is a benchmark. Each runs in a process of its own, on the CPU, and
those that say something there also on a GPU where JAX finds one. One that fails is reported, and the others go on.
"""

import argparse
import datetime
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).resolve().parent
ON_GPU = ("overhead", "network", "particles", "masked", "sweeps")


class Outcome(NamedTuple):
    """What one benchmark gave on one device."""

    benchmark: str
    device: str
    seconds: float
    error: str  # empty where it ran to its end
    rows: list[dict[str, Any]]


def benchmarks() -> list[str]:
    """Names of the files that have `rows`, those that are timed most finely first."""
    found = [path.stem for path in sorted(FOLDER.glob("*.py")) if "\ndef rows(quick: bool" in path.read_text()]
    return sorted(found, key=lambda name: name not in ("overhead", "solvers", "network"))


def platforms() -> list[str]:
    """cpu, and the accelerator that JAX finds."""
    code = "import jax; print(jax.default_backend())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()[-1]
    return ["cpu"] if found == "cpu" else ["cpu", found]


def measure(name: str, platform: str, quick: bool) -> Outcome:
    """Runs a benchmark in a process of its own; what it prints goes to the terminal."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        command = [sys.executable, str(FOLDER), "--worker", name, "--rows", str(file), *(["--quick"] if quick else [])]
        paths = [str(FOLDER.parent), *filter(None, [os.environ.get("PYTHONPATH")])]  # the package of this clone
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        environment |= {"JAX_PLATFORMS": "cpu"} if platform == "cpu" else {}
        print(f"\n== {name} on {platform}", flush=True)
        start = time.monotonic()
        done = subprocess.run(command, env=environment)
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    device = lines[0]["device"] if lines else platform
    error = f"ended with code {done.returncode}" if done.returncode else ""
    return Outcome(name, device, time.monotonic() - start, error, lines)


def work(name: str, quick: bool, file: Path) -> None:
    """In the worker: writes each ratio as it is known, so that a benchmark that dies keeps what it had."""
    sys.path.insert(0, str(FOLDER))
    module = importlib.import_module(name)
    import jax
    from ratios import shown

    with file.open("w") as out:
        for row in module.rows(quick):
            shown([row])
            facts = {"met": row.met, "aim": row.aim, "device": jax.devices()[0].device_kind}
            print(json.dumps(row._asdict() | facts, default=lambda number: number.item()), file=out, flush=True)


def table(outcomes: Sequence[Outcome], head: str) -> str:
    """Markdown."""
    lines = [
        head,
        "",
        "| benchmark | what | over | measured | target | met | device |",
        "|---|---|---|---|---|---|---|",
    ]
    for outcome in outcomes:
        for row in outcome.rows:
            met = {None: "", True: "yes", False: "**no**"}[row["met"]]
            cells = (outcome.benchmark, row["name"], row["over"], f"{row['value']:.4g}", row["aim"], met, row["device"])
            lines.append(f"| {' | '.join(cells)} |")
        if outcome.error:
            lines.append(f"| {outcome.benchmark} | **{outcome.error}** | | | | **no** | {outcome.device} |")
    return "\n".join(lines) + "\n"


def heading(quick: bool) -> Iterator[str]:
    """Where and when this was measured."""
    from importlib.metadata import version

    yield f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC"
    yield from (f"{package} {version(package)}" for package in ("jax", "jaxlib", "numpy"))
    yield f"{os.cpu_count()} CPU cores, load {os.getloadavg()[0]:.1f}"
    if quick:
        yield "--quick: does it run, not how well"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repeats and small sizes: does it run, not how well")
    parser.add_argument("--only", nargs="+", choices=benchmarks(), default=benchmarks(), help="some benchmarks")
    parser.add_argument("--out", type=Path, default=Path("benchmarks"), help="OUT.json and OUT.md are written")
    parser.add_argument("--worker", choices=benchmarks(), help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.out.absolute().parent.is_dir():
        parser.error(f"--out {options.out}: there is no folder {options.out.absolute().parent}")
    if options.worker:
        work(options.worker, options.quick, options.rows)
        return 0
    head, outcomes = ", ".join(heading(options.quick)), []
    for platform in platforms():
        for name in options.only:
            if platform == "cpu" or name in ON_GPU:
                outcomes.append(measure(name, platform, options.quick))
                facts = {"head": head, "benchmarks": [outcome._asdict() for outcome in outcomes]}
                options.out.with_suffix(".json").write_text(json.dumps(facts, indent=1))
                options.out.with_suffix(".md").write_text(table(outcomes, head))
    print(f"\n{table(outcomes, head)}")
    return int(any(outcome.error for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
