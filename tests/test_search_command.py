"""Schedules on the command line: found, shipped, read from files, and refused beside what they decide themselves."""

import re

import numpy as np
import pytest

import diffsample as ds
from diffsample import solvers
from diffsample.__main__ import main
from diffsample.nets import digits
from diffsample.schedule_files import on_process, schedule_table

pytest.importorskip("matplotlib")
VP = ds.VariancePreserving()


def test_search_writes_a_schedule_that_samples_as_well_as_it_says(tmp_path, capsys):
    file, picture = tmp_path / "found.json", tmp_path / "found.png"
    sizes = "--samples 20 --generations 2 --batch 12 --confirm 3 --number 100 --no-predictor"
    assert main(f"search --calls 3 {sizes} --out {file}".split()) == 0
    printed = capsys.readouterr().out
    found = solvers.Decisions.load(file)
    assert found.nfe == 3 and found.to_json() in printed
    best = [float(line.split()[3]) for line in printed.splitlines() if line.startswith("generation")]
    assert len(best) == 2 and best[1] <= best[0]
    rows = re.findall(r"^(\S+(?:, \S+)?) +(\d+\.\d{4}) +\d+\.\d%$", printed, re.MULTILINE)
    assert rows[0][0] == "found" and len(rows) == 13
    assert [float(distance) for _, distance in rows[1:]] == sorted(float(distance) for _, distance in rows[1:])
    assert main(f"--solver {file} --number 100 --out {picture}".split()) == 0
    printed = capsys.readouterr().out
    assert "3 a sample" in printed and picture.exists()


def test_shipped_schedule_beats_a_fixed_solver_at_as_many_calls(tmp_path, capsys):
    """500 samples; measured 0.31 to 0.39, of perfect samples 0.23."""
    command = f"compare --solvers unipc s3 --calls 5 --number 500 --seed 7 --out {tmp_path / 'a.png'}"
    assert main(command.split()) == 0
    printed = capsys.readouterr().out
    lines = (line.split() for line in printed.splitlines() if "5 calls" in line)
    distance = {words[0]: float(words[3]) for words in lines}
    assert distance["s3"] < 0.9 * distance["unipc"]


@pytest.mark.parametrize("calls", digits.SCHEDULED)
def test_schedules_ship_for_every_number_of_calls(calls):
    schedule = digits.schedule(calls)
    assert schedule.nfe == calls
    grid, table = schedule_table("s3", VP, calls)
    assert table.calls == calls and grid.t[-1] == 0
    assert grid.sigma[0] / grid.alpha[0] == pytest.approx(80.0)


@pytest.mark.parametrize(
    "process", [ds.VarianceExploding(), ds.FlowMatching(), ds.Cosine()], ids=lambda p: type(p).__name__
)
def test_shipped_schedule_is_the_same_on_every_process(process):
    """For x0 = tanh(x / alpha) / (1 + sigma / alpha), which any process can be asked."""

    def x0(x, level):
        return np.tanh(x / level.alpha) / (1 + level.sigma / level.alpha)

    ends = []
    for target in (VP, process):
        schedule = on_process(digits.schedule(6), VP, target)
        first = ds.Grid(target, np.array(schedule.times)).alpha[0]
        ends.append(ds.exact.run_on_host(solvers.usf(target, schedule), x0, first * np.linspace(-80.0, 80.0, 7)))
    np.testing.assert_allclose(ends[1], ends[0], rtol=1e-8)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--solver s3 --steps 3", "schedules ship for 4 to 10 network calls, not 3"),
        ("--solver s3 --order 2", "--order does not apply to --solver s3"),
        ("--solver s3 --grid karras", "--grid does not apply to --solver s3"),
        ("--solver s3 --sigma-min 0.1", "--sigma-min does not apply to --solver s3"),
        ("--solver {file} --steps 5", "--steps does not apply to --solver"),
        ("--solver {quiet}", "was it found on another process?"),
        ("--solver missing.json", "missing.json"),
        ("--solver {broken}", "not a schedule"),
        ("compare --solvers s3 --calls 5 40", "not 40"),
        ("search --calls 0", "--calls 0"),
        ("search --confirm -1", "--confirm -1 is a number of schedules"),
        ("search --samples 15", "--samples 15 must be a multiple of the 10 classes"),
        ("search --batch 5", "--batch 5 has no room for the 12 known schedules"),
        ("search --out schedule.png", "must be a file name that ends in .json"),
        ("search --grid karras", "unrecognized arguments: --grid karras"),
        ("search --number 5", "--number 5 is too few"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file, quiet, broken = (tmp_path / f"{name}.json" for name in "abc")
    solvers.multistep_decisions([0.9, 0.3, 0.0]).save(file)
    solvers.multistep_decisions([0.9, 1e-7, 0.0]).save(quiet)
    broken.write_text("{}")
    assert main(arguments.format(file=file, quiet=quiet, broken=broken).split()) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
