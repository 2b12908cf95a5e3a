"""The README's example runs as it stands there, and is as short as it says."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import diffsample as ds
from diffsample import guidance, solvers
from diffsample.grid import Grid, as_grid
from diffsample.process import Process
from diffsample.program import Program
from diffsample.solvers.moves import rescaled_noise
from diffsample.tableau import Tableau

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_example_runs_and_the_lines_on_many_devices_after_it():
    example, *others = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (spread,) = (block for block in others if "jax.make_mesh" in block)  # tests of what they show run the rest
    assert len(example.strip().splitlines()) <= 12
    scope: dict = {}
    exec(compile(example, "README.md", "exec"), scope)
    assert scope["images"].shape == (20, 8, 8, 1)
    read = scope["digits"].classifier(scope["images"]).argmax(axis=-1)
    assert (read == scope["labels"]).mean() > 0.8  # chance is 0.1
    exec(compile(spread, "README.md", "exec"), scope)
    assert scope["images"].shape == (64, 8, 8, 1) and scope["images"].sharding.mesh == scope["mesh"]


def test_there_are_exactly_two_commands_for_a_fresh_machine():
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    assert [len(block.strip().splitlines()) for block in blocks] == [1, 1]


def test_every_method_has_a_row():
    for name in (*solvers.__all__, *guidance.__all__):
        if name[0].islower():
            assert f"`{name}`" in README, f"the README's table of methods has no row for {name}"


def test_the_worked_diff_is_a_method_that_passes_its_certificate():
    (diff,) = re.findall(r"```diff\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    assert len(diff.splitlines()) < 40
    hunks = [part.partition("\n") for part in diff.split("--- a/")[1:]]
    code = {name: "\n".join(line[1:] for line in body.splitlines()) for name, _, body in hunks}
    names = (Process, Grid, Sequence, Tableau, Program, as_grid, rescaled_noise, partial)
    scope: dict[str, Any] = {name.__name__: name for name in names} | {"ds": ds, "np": np, "solvers": solvers}
    exec(code["solvers/multistep.py"], scope)
    exec(code["tests/test_multistep.py"], scope)
    scope["test_ab2_is_plms_on_a_uniform_grid"]()
    ds.certificate(scope["ab2"], name="ab2", compiled=False, check=True)


def test_every_masked_method_has_a_row():
    from diffsample import discrete

    section = README.split("## Masked decoding")[1].split("## Digits model")[0]
    aside = {"from_logits", "levels", "mend", "broken"}
    for name in discrete.__all__:
        if name[0].islower() and name not in aside:
            assert f"`{name}`" in section, f"the README has no row for discrete.{name}"


def test_every_metric_has_a_row():
    from diffsample import metrics

    for name in metrics.__all__:
        if name[0].islower():
            assert f"`{name}`" in README, f"the README's table of metrics has no row for {name}"
