"""The command line: pictures, printed numbers, refusals, quality of the samples; and the figures it draws."""

import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffsample import demo, plot
from diffsample.__main__ import main, plan_sample, sample_parser
from diffsample.choices import PROCESSES, SOLVERS
from diffsample.nets import digits

pytest.importorskip("matplotlib")
from matplotlib.figure import Figure
from PIL import Image

# Frechet distance of 500 samples. Measured: 0.229 to 0.286 over six seeds, 0.233 expected of perfect samples; 0.367 for
# ddim at as many calls, 0.40 without labels, 0.47 with sigma_data = 0.7, 0.71 with half the noise level's logarithm.
GOOD = 0.32


def number_after(text: str, printed: str) -> float:
    """The first number behind a piece of the output, percent signs and all read as fractions."""
    word = printed.split(text, 1)[1].split()[0]
    return float(word.rstrip("%")) / (100 if word.endswith("%") else 1)


def png_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        image.load()  # fails on a truncated file
        return image.size


@pytest.fixture(scope="module")
def judge() -> demo.Judge:
    models = digits.load()
    return demo.Judge(models.class_means, models.class_covs, models.classifier)


def test_defaults_but_few_samples_write_a_picture_and_print_every_field(tmp_path, capsys):
    out = tmp_path / "digits.png"
    assert main(["--number", "40", "--steps", "6", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "6 steps of VariancePreserving(beta_min=0.1, beta_max=20.0)" in printed
    assert "    6             0             1             0          inf" in printed
    assert number_after("network calls", printed) == 6
    assert number_after("for 40 samples,", printed) >= 1
    assert "for 40 samples, 0 programs compiled" in printed.split("second call")[1]
    assert number_after("Frechet distance", printed) > 0
    assert 0.5 < number_after("class agreement", printed) <= 1
    assert png_size(out) == (600, 1029)  # ten rows of four
    assert list(tmp_path.iterdir()) == [out]


def test_guided_heun_counts_both_branches_and_draws_one_row_a_class(tmp_path, capsys):
    command = "--process flow --grid karras --solver heun --steps 3 --guidance apg --scale 1.5 --momentum -0.25"
    arguments = [*command.split(), "--labels", "3", "8", "--number", "20", "--out", str(tmp_path / "two.png")]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert number_after("network calls", printed) == 10
    assert "5 by the solver, times 2 by the guidance" in printed
    width, height = png_size(tmp_path / "two.png")
    assert width > 2.5 * height


@pytest.mark.parametrize(
    ("rule", "calls", "parts"),
    [
        ("cfg++ --scale 0.8", 8, "4 by the solver, times 2 by the guidance"),
        ("rescale --share 0.5", 8, "4 by the solver, times 2 by the guidance"),
        ("cfg-zero --zero-steps 1", 8, "4 by the solver, times 2 by the guidance"),
        ("interval --low 0.5 --high 6", 5, "4 by the solver, 1 more by the guidance"),
    ],
)
def test_rules_by_name_count_their_calls(rule, calls, parts, tmp_path, capsys):
    """Levels 80, 6.8, 0.58 and 0.05 on the default grid."""
    command = f"--steps 4 --labels 3 --number 4 --guidance {rule} --out {tmp_path / 'a.png'}"
    assert main(command.split()) == 0
    printed = capsys.readouterr().out
    assert number_after("network calls", printed) == calls
    assert parts in printed


def test_five_hundred_samples_are_good_digits_of_the_class_asked_for(tmp_path, capsys):
    assert main(["--number", "500", "--steps", "12", "--out", str(tmp_path / "a.png")]) == 0
    printed = capsys.readouterr().out
    assert number_after("Frechet distance", printed) < GOOD
    assert number_after("class agreement", printed) > 0.9


def test_compare_orders_solvers_and_steps_in_one_program(tmp_path, capsys):
    out = tmp_path / "compare.png"
    command = ["compare", "--solvers", "ddim", "dpmpp", "heun", "--calls", "6", "10", "--number", "200"]
    assert main([*command, "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    runs = [line.split() for line in lines if "programs compiled so far" in line]
    assert [run[1] for run in runs] == ["6", "10", "6", "10", "5", "9"]
    assert len({run[5] for run in runs}) == 1
    ddim6, ddim10, dpmpp6, dpmpp10, heun5, heun9 = (float(run[3]) for run in runs)
    assert ddim10 < ddim6 and dpmpp10 < dpmpp6 and heun9 < heun5
    assert dpmpp10 < ddim10
    assert any(line.split()[:1] == ["heun"] and "(5)" in line and "(9)" in line for line in lines)
    assert png_size(out) == (1050, 690)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--solver rk45", "invalid choice: 'rk45'"),
        ("--solver rk45", "dpmpp"),
        ("--process vpp", "cosine"),
        ("--grid log", "karras"),
        ("--guidance autoguidance", "apg"),
        ("--labels 3 12", "invalid choice: 12"),
        ("compare --solvers ddim dimm", "heavy-ball"),
        ("comparison", "unrecognized arguments: comparison"),
        ("--step 3", "unrecognized arguments: --step 3 (--help lists all options)"),
        ("--steps 0", "steps must be a whole number of at least 1, got 0"),
        ("--steps many", "invalid int value: 'many'"),
        ("--number 5", "--number 5"),
        ("--seed -1", "--seed -1"),
        ("--guidance cfg --scale nan", "nan is not a finite number"),
        ("--solver ghvb --order 9", "orders 1 to 5, got order=9"),
        ("--solver ghvb --beta 0", "beta=0.0"),
        ("--solver ddim --eta 2", "eta=2.0"),
        ("--grid trailing", "DiscreteBetas"),
        ("--process betas --grid trailing --sigma-max 20", "do not apply to --grid trailing; use: uniform"),
        ("--sigma-max 500", "must rise within (0.002, 160.0)"),
        ("--sigma-min 2 --sigma-max 1", "--sigma-min 2 and --sigma-max 1"),
        ("compare --calls 5 0", "at most 0 network calls"),
        ("--out missing/folder/x.png", "there is no folder"),
        ("--out picture.jpg", "must be a file name that ends in .png"),
        ("--solver heun --order 2", "--order does not apply to --solver heun; it applies to: deis, dpmpp, ghvb"),
        ("--solver dpmpp --beta 0.5", "--beta does not apply to --solver dpmpp"),
        ("--solver ddpm --eta 1", "--eta does not apply to --solver ddpm; it applies to: ddim, "),
        ("--solver plms --churn 3", "--churn does not apply to --solver plms; it applies to: euler, heun"),
        ("--scale 2", "--scale does not apply to --guidance none; it applies to: cfg, apg"),
        ("--guidance cfg --eta-apg 0", "--eta-apg does not apply to --guidance cfg; it applies to: apg"),
        ("--guidance interval --low 2 --high 1", "low=2.0, high=1.0"),
        ("--guidance rescale --low 1", "--low does not apply to --guidance rescale; it applies to: interval"),
        ("compare --order 2", "--order 2"),
    ],
)
def test_bad_input_is_one_line_on_stderr_and_exit_code_2(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments.split()) == 2
    printed = capsys.readouterr()
    assert said in printed.err and printed.err.count("\n") == 1
    assert not printed.out and not list(tmp_path.iterdir())


@pytest.mark.parametrize("process", PROCESSES)
def test_every_solver_can_be_asked_for_on_every_process(process, tmp_path):
    for solver in SOLVERS:
        churn = ["--churn", "20"] if solver in ("euler", "heun") else []
        arguments = ["--solver", solver, "--process", process, "--out", str(tmp_path / "x.png"), *churn]
        assert callable(plan_sample(sample_parser().parse_args(arguments)))


@pytest.mark.parametrize("command", [[], ["compare"]])
def test_help_lists_every_option_with_its_default(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([*command, "--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    options = re.findall(r"\n  (--\S+)", text)
    assert {"--process", "--grid", "--sigma-max", "--guidance", "--scale", "--number", "--out"} <= set(options)
    assert text.count("(default:") == len(options) - ("--progress" in options)


def test_floor_is_what_equally_many_draws_of_real_moments_measure(judge):
    labels = jnp.repeat(jnp.arange(10), 60)
    floor = demo.frechet_floor(labels, judge)
    rng = np.random.default_rng(5)
    drawn = [rng.multivariate_normal(judge.means[k], judge.covs[k], 60, check_valid="ignore") for k in range(10)]
    images = jnp.asarray(drawn, jnp.float32).reshape(-1, *digits.SHAPE)
    assert floor / 1.3 < demo.quality(images, labels, judge)[0] < 1.3 * floor
    assert demo.frechet_floor(jnp.arange(6000) % 10, judge) < floor / 7  # like 1 / N


def test_image_grid_puts_every_image_in_its_place():
    images = np.arange(6.0).reshape(6, 1, 1) * np.ones((6, 8, 8))
    figure = plot.image_grid(images, 2, labels=["a", "b"], title="top", limits=(0, 10))
    (axes,) = figure.axes
    shown = np.asarray(axes.images[0].get_array())
    assert shown.shape == (2 * 9 + 1, 3 * 9 + 1)
    assert np.allclose(shown[5::9, 5::9], [[0.0, 0.1, 0.2], [0.3, 0.4, 0.5]])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert axes.get_title() == "top"


def test_image_grid_has_room_for_its_row_labels(tmp_path):
    beside = ["ddim", "ddpm", "ghvb 1.8", "heavy ball on dpmpp"], ["from", "at t = 0.39", "to"]
    for names in (["0 before", "0 after"] * 10, ["first-hitting 8 updates"] * 4, *beside):
        plot.save(plot.image_grid(np.zeros((10 * len(names), 8, 8)), len(names), labels=names), tmp_path / "x.png")
        assert np.asarray(Image.open(tmp_path / "x.png").convert("L"))[:, 0].min() == 255  # no ink at the edge


def test_image_grid_labels_each_image_and_takes_colour():
    figure = plot.image_grid(np.zeros((4, 8, 8, 3)), 2, labels=[5, 6, 7, 8])
    assert [text.get_text() for text in figure.axes[0].texts] == ["5", "6", "7", "8"]


@pytest.mark.parametrize(("shape", "rows", "labels"), [((5, 8, 8), 2, None), ((4, 8), 2, None), ((4, 8, 8), 2, "abc")])
def test_image_grid_refuses_what_does_not_fit(shape, rows, labels):
    with pytest.raises(ValueError, match=r"fill|fit|must be"):
        plot.image_grid(np.zeros(shape), rows, labels)


def test_quality_plot_draws_one_sorted_line_a_solver():
    figure = plot.quality_plot([("ddim", 10, 1.0), ("heun", 9, 0.5), ("ddim", 5, 2.0)], floor=0.1)
    lines = {str(line.get_label()): line for line in figure.axes[0].lines}
    assert np.array_equal(lines["ddim"].get_xydata(), [[5, 2], [10, 1]])
    assert set(lines) == {"ddim", "heun", "perfect samples"}


@pytest.mark.parametrize("values", [(2.1, 2.9), (0.31, 0.33), (0.4, 2.0), (0.5, 200.0)])
def test_quality_plot_numbers_its_vertical_axis_however_near_the_values(values):
    figure = plot.quality_plot([("ddim", 5, values[1]), ("ddim", 10, values[0])], floor=values[0])
    figure.draw_without_rendering()
    axes = figure.axes[0]
    low, high = axes.get_ylim()
    ticks = [*axes.yaxis.get_major_ticks(), *axes.yaxis.get_minor_ticks()]
    assert len({tick.label1.get_text() for tick in ticks if low <= tick.get_loc() <= high} - {""}) >= 2
    assert axes.get_xticks().tolist() == [5, 10] and not axes.get_xticks(minor=True).size


def test_notebook_is_given_a_png():
    assert plot.quality_plot([("ddim", 5, 1.0)])._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]


def test_save_that_fails_keeps_the_old_picture_and_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "old.png"
    path.write_bytes(b"old")

    def half(self, part, **options):
        Path(part).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(OSError, match="disk full"):
        plot.save(Figure(), path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_missing_matplotlib_names_the_remedy(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main([]) == 2
    assert "pip install 'diffsample[plots]'" in capsys.readouterr().err


def test_network_that_fails_is_one_line_and_exit_code_1(tmp_path, monkeypatch, capsys):
    broken = digits.load()._replace(params=jax.tree.map(lambda leaf: jnp.nan * leaf, digits.load().params))
    monkeypatch.setattr(digits, "load", lambda: broken)
    assert main(["--number", "20", "--steps", "2", "--out", str(tmp_path / "x.png")]) == 1
    assert "non-finite" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
