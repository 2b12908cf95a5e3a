"""The README's example runs as it stands there, and is as short as it says."""

import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_example_runs():
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(example.strip().splitlines()) <= 12
    scope: dict = {}
    exec(compile(example, "README.md", "exec"), scope)
    assert scope["images"].shape == (20, 8, 8, 1)
    read = scope["digits"].classifier(scope["images"]).argmax(axis=-1)
    assert (read == scope["labels"]).mean() > 0.8  # chance is 0.1


def test_there_are_exactly_two_commands_for_a_fresh_machine():
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    assert [len(block.strip().splitlines()) for block in blocks] == [1, 1]


def test_every_method_has_a_row():
    from diffsample import guidance, solvers

    for name in (*solvers.__all__, *guidance.__all__):
        if name[0].islower():
            assert f"`{name}`" in README, f"the README's table of methods has no row for {name}"
