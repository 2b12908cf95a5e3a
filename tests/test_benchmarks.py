"""The command that runs all benchmarks: finds them, keeps what each has measured, and reports one that fails."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = {
    "tiny": """
from ratios import Ratio

def rows(quick: bool):
    import jax.numpy as jnp
    yield Ratio("one", "two", jnp.float32(0.5), 1.0)
    yield Ratio("fast", "slow", 3.0 if quick else 9.0, 5.0, at_least=True)
""",
    "broken": """
from ratios import Ratio

def rows(quick: bool):
    yield Ratio("first", "in ms", 2.0)
    raise RuntimeError("no second")
""",
    "helper": "def columns(quick: bool): ...",
}


def test_all_benchmarks_are_found_run_and_reported(tmp_path):
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    for name in ("__main__", "ratios"):
        shutil.copy(ROOT / "benchmarks" / f"{name}.py", folder)
    for name, code in FILES.items():
        (folder / f"{name}.py").write_text(code)
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(folder), "--quick", "--out", str(tmp_path / "found")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    broken, tiny = json.loads((tmp_path / "found.json").read_text())["benchmarks"]
    assert [row["met"] for row in tiny["rows"]] == [True, False] and not tiny["error"]
    assert tiny["rows"][0]["value"] == 0.5 and tiny["rows"][0]["device"] == "cpu"
    assert [row["name"] for row in broken["rows"]] == ["first"] and "code 1" in broken["error"]
    table = (tmp_path / "found.md").read_text()
    assert "| tiny | one | two | 0.5 | at most 1 | yes | cpu |" in table
    assert "| tiny | fast | slow | 3 | at least 5 | **no** | cpu |" in table
    assert "| broken | **ended with code 1** |" in table and "--quick: does it run" in table


def test_every_benchmark_of_the_repository_gives_ratios():
    command = [sys.executable, str(ROOT / "benchmarks"), "--help"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name in (
        "overhead",
        "solvers",
        "network",
        "inverse",
        "speculative",
        "particles",
        "mixture40",
        "masked",
        "sweeps",
    ):
        assert name in said
