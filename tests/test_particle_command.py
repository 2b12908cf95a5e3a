"""The particle command: pictures, printed numbers, refusals; rewards and their exact tilt."""

import jax.numpy as jnp
import numpy as np
import pytest
from test_main import number_after, png_size

from diffsample import particle_demo, plot
from diffsample.__main__ import main

pytest.importorskip("matplotlib")


def rows_after(printed: str) -> np.ndarray:
    """The table's numbers, a row a class."""
    lines = printed.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("class ")) + 1
    table = [line.split() for line in lines[first:] if line.strip() and line.split()[0].isdigit()]
    return np.array(table, float)


@pytest.mark.parametrize(
    ("arguments", "better"),
    [
        ("--reward ink --strength 1", lambda before, after: after > before + 0.5),
        ("--reward ink --strength -1", lambda before, after: after < before - 0.5),
        pytest.param("--reward symmetry", lambda before, after: after > before + 1, marks=pytest.mark.slow),
    ],
)
def test_reward_moves_its_mean_the_way_asked_for(arguments, better, tmp_path, capsys):
    out = tmp_path / "particles.png"
    command = f"--particles 32 {arguments} --labels 2 7 --steps 20 --out {out}"
    assert main(command.split()) == 0
    printed = capsys.readouterr().out
    table = rows_after(printed)
    assert table[:, 0].tolist() == [2, 7]
    assert better(table[:, 1], table[:, 2]).all()
    assert (table[:, 4] < 0.5).any() and (table[:, 5] >= 1).any() and (table[:, 6] < 32).any()
    assert "0 programs compiled" in printed and number_after("network calls", printed) == 20
    assert png_size(out)[0] > 300 and png_size(tmp_path / "particles-ess.png")[0] > 900


@pytest.mark.parametrize(("arguments", "calls"), [("--temperature 1.25 --labels 0 1", 12), ("--product 3 8", 24)])
def test_tempered_and_product_laws_run_with_their_pictures(arguments, calls, tmp_path, capsys):
    assert main(f"--particles 16 {arguments} --steps 12 --out {tmp_path / 'x.png'}".split()) == 0
    printed = capsys.readouterr().out
    assert number_after("network calls", printed) == calls
    assert np.isfinite(rows_after(printed)).all()
    assert ("read as one of the classes asked for" in printed) == ("--product" in arguments)
    assert number_after("class agreement", printed) > 0.6  # chance is 0.1, and 0.2 of two classes
    assert {path.name for path in tmp_path.iterdir()} == {"x.png", "x-ess.png"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--particles 1 --reward ink", "--particles 1 must be at least 2"),
        ("--particles 8", "one of the arguments --reward --temperature --product is required"),
        ("--particles 8 --reward ink --temperature 2", "not allowed with argument --reward"),
        ("--particles 8 --reward speed", "invalid choice: 'speed'"),
        ("--particles 8 --temperature 0", "--temperature 0 must be positive"),
        ("--particles 8 --temperature 2 --strength 3", "--strength 3 does not apply here; it applies to: --reward"),
        ("--particles 8 --product 3 8 --guidance cfg", "--guidance cfg does not apply here"),
        ("--particles 8 --reward ink --solver dpmpp", "draws no noise"),
        ("--particles 8 --reward ink --threshold 2", "threshold=2"),
        ("--particles 8 --reward ink --number 80", "unrecognized arguments: --number 80"),
        ("--reward ink", "the following arguments are required: --particles"),
        ("--temperature 1.2", "the following arguments are required: --particles"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments.split()) == 2
    printed = capsys.readouterr()
    assert said in printed.err and printed.err.count("\n") == 1
    assert not printed.out and not list(tmp_path.iterdir())


def test_rewards_of_known_images():
    half = jnp.concatenate([jnp.ones((1, 8, 4, 1)), -jnp.ones((1, 8, 4, 1))], axis=2)
    images = jnp.concatenate([half, jnp.ones((1, 8, 8, 1)), -jnp.ones((1, 8, 8, 1))])
    labels = jnp.zeros(3, int)
    assert particle_demo.ink(images, labels).tolist() == [32, 64, 0]
    assert particle_demo.symmetry(images, labels).tolist() == [-64, 0, 0]
    each = jnp.stack([particle_demo.confidence(images, jnp.full(3, k)) for k in range(10)])
    np.testing.assert_allclose(jnp.exp(each).sum(axis=0), 1, rtol=1e-5)


def test_effective_sizes_are_drawn_with_a_mark_before_each_resampling():
    shares = np.array([[1.0, 0.4, 0.9], [1.0, 0.8, 0.7]])
    resampled = np.array([[False, False, True], [False, False, False]])
    figure = plot.ess_plot(shares, resampled, labels=["a", "b"])
    first, second = figure.axes[0].lines
    assert np.array_equal(np.asarray(first.get_ydata()), shares[0]) and first.get_markevery() == [1]
    assert second.get_markevery() == []
    with pytest.raises(ValueError, match="groups, rows"):
        plot.ess_plot(shares, resampled[:1])
