"""Figures: images, quality against network calls, maps of sweeps. matplotlib is imported when a figure is made.

Every function returns a `matplotlib.figure.Figure` and touches no global state: no backend is chosen and nothing has to
be closed. A notebook shows the figure that a cell ends on; `save` writes it to a file.
"""

import io
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from einops import rearrange
from jax.typing import ArrayLike

from diffsample.files import written_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from xarray import DataArray, Dataset

MARKERS = "osD^vPX*"


def figure_class() -> type["Figure"]:
    """matplotlib's `Figure`, which a notebook shows where a cell ends on it.

    Raises:
        ImportError: matplotlib is not installed; says how to get it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'diffsample[plots]'") from error
    return _shown(Figure)


@cache
def _shown(base: type["Figure"]) -> type["Figure"]:
    """matplotlib teaches notebooks to show figures only where pyplot is in use; these need no teaching."""

    class Picture(base):
        def _repr_png_(self) -> bytes:
            buffer = io.BytesIO()
            self.savefig(buffer, format="png")
            return buffer.getvalue()

    return Picture


def image_grid(
    images: ArrayLike,
    rows: int,
    labels: Sequence[Any] | None = None,
    title: str | None = None,
    limits: tuple[float, float] = (-1.0, 1.0),
) -> "Figure":
    """Images side by side, row after row.

    Args:
        images: [N, H, W], [N, H, W, 1] or [N, H, W, 3], N a multiple of `rows`.
        rows: number of rows.
        labels: one for each row, written at its left, or one for each image, written above it.
        title: one or more lines above all.
        limits: values shown as black and as white (or as 0 and 1 of each colour); beyond them is clipped.

    Returns: the figure.

    Raises:
        ValueError: shapes or counts that do not fit.

    >>> len(image_grid(np.zeros((6, 8, 8, 1)), rows=2, labels=["cat", "dog"]).axes)
    1
    """
    pixels = _pixels(images, limits)
    n, height, width, _ = pixels.shape
    if rows < 1 or n % rows:
        raise ValueError(f"{n} images do not fill {rows} rows")
    names = [] if labels is None else [str(label) for label in labels]
    if len(names) not in (0, rows, n):
        raise ValueError(f"{len(names)} labels fit neither {rows} rows nor {n} images")
    single = len(names) == n > rows  # a label above each image, which needs room for a line of text
    thin, columns = max(1, height // 8), n // rows
    gap = height // 2 if single else thin
    tops, lefts = gap + np.arange(rows) * (height + gap), thin + np.arange(columns) * (width + thin)
    beside = 0 if single else max(map(len, names), default=0)
    axes = _canvas(columns, rows * (height + gap) / (width + thin), beside, title)
    axes.imshow(_mosaic(pixels, rows, gap, thin), cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
    if single:
        for name, (top, left) in zip(names, [(top, left) for top in tops for left in lefts], strict=True):
            axes.text(left + (width - 1) / 2, top - 1, name, ha="center", va="bottom", fontsize=8)
    elif names:
        axes.set_yticks(tops + (height - 1) / 2, names)
        axes.get_figure().draw_without_rendering()  # room for the labels is made where the mosaic's last size is known
    return axes.get_figure()


def quality_plot(
    table: Iterable[Sequence[Any]],
    floor: float | None = None,
    title: str | None = None,
    ylabel: str = "Fréchet distance to real data",
) -> "Figure":
    """Distance to the data against network calls, one line for each solver, both axes logarithmic.

    Args:
        table: rows (name, calls, distance, ...) in any order; more columns are not read.
        floor: distance that perfect samples would measure, drawn as a dashed line.
        title: a line above.
        ylabel: name of the distance.

    Returns: the figure.

    >>> len(quality_plot([("ddim", 5, 2.0), ("ddim", 10, 1.0), ("heun", 9, 0.5)]).axes[0].lines)
    2
    """
    curves: dict[str, list[tuple[float, float]]] = {}
    for name, calls, distance, *_ in table:
        curves.setdefault(str(name), []).append((float(calls), float(distance)))
    figure = figure_class()(figsize=(7.0, 4.6), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log", xlabel="network calls per sample", ylabel=ylabel)
    for i, (name, points) in enumerate(curves.items()):
        axes.plot(*zip(*sorted(points), strict=True), marker=MARKERS[i % len(MARKERS)], ms=5, label=name)
    _finish_calls(axes, [calls for points in curves.values() for calls, _ in points], floor, title)
    return figure


def calls_plot(
    found: "Dataset", metric: str, by: str | None = None, floor: float | None = None, title: str | None = None
) -> "Figure":
    """A metric of a sweep against network calls: a line a value of one dimension, with standard errors over seeds.

    Args:
        found: what `sweep` returns.
        metric: one of its variables.
        by: the dimension that the lines tell apart; None joins all cells. Cells of the other dimensions stand on the
            line in the order of their calls.
        floor, title: as for `quality_plot`.

    Returns: the figure; the vertical axis is logarithmic where the values are positive and far apart.

    >>> import xarray
    >>> axes, runs = {"solver": ["ddim", "heun"], "seed": [0, 1]}, np.ones((2, 2))
    >>> table = xarray.Dataset({"w": (tuple(axes), runs), "calls": ("solver", [10, 19])}, axes)
    >>> len(calls_plot(table, "w", by="solver").axes[0].containers)
    2
    """
    values = found[metric]
    figure = figure_class()(figsize=(7.0, 4.6), layout="constrained")
    axes = figure.add_subplot(xscale="log", xlabel="network calls per sample", ylabel=metric)
    for i, name in enumerate([None] if by is None else found[by].values.tolist()):
        part = {} if by is None else {by: name}
        calls, runs = found["calls"].sel(part).values.ravel(), values.sel(part).values.reshape(-1, found.sizes["seed"])
        order = np.argsort(calls, kind="stable")
        errors = runs.std(axis=1, ddof=1)[order] / np.sqrt(runs.shape[1]) if runs.shape[1] > 1 else None
        label, marker = None if by is None else f"{name}", MARKERS[i % len(MARKERS)]
        axes.errorbar(calls[order], runs.mean(axis=1)[order], errors, marker=marker, ms=5, capsize=3, label=label)
    if 0 < 20 * float(values.min()) < float(values.max()):
        axes.set_yscale("log")
    _finish_calls(axes, found["calls"].values.ravel().tolist(), floor, title)
    return figure


def heat_map(found: "DataArray", title: str | None = None) -> "Figure":
    """A metric of a sweep as colours: the last dimension across, all others down; means over the seeds.

    Args:
        found: one variable of a sweep's Dataset, with dimensions of its own and maybe `seed`.
        title: a line above.

    Returns: the figure, with the number in every cell where there are at most 200.

    >>> import xarray
    >>> table = xarray.DataArray(np.eye(2), {"solver": ["ddim", "heun"], "scale": [1.0, 2.0]}, name="frechet")
    >>> [text.get_text() for text in heat_map(table).axes[0].texts]
    ['1', '0', '0', '1']
    """
    means = found.mean("seed", skipna=False) if "seed" in found.dims else found
    *down, across = (str(axis) for axis in means.dims)
    columns = [_label(value) for value in means[across].values.tolist()]
    rows = [", ".join(map(_label, names)) for names in product(*(means[axis].values.tolist() for axis in down))]
    table = means.values.reshape(len(rows), len(columns))
    size = (2.2 + 0.62 * len(columns) + 0.07 * max(map(len, rows)), 1.2 + 0.36 * len(rows))
    figure = figure_class()(figsize=size, layout="constrained")
    axes = figure.add_subplot(xlabel=across, ylabel=", ".join(down))
    image = axes.imshow(table, aspect="auto", cmap="viridis")
    axes.set_xticks(range(len(columns)), columns, fontsize=9)
    axes.set_yticks(range(len(rows)), rows, fontsize=9)
    if table.size <= 200:
        known = table[np.isfinite(table)]
        dark = table < (known.min() / 2 + known.max() / 2 if known.size else 0.0)  # no comparison holds for NaN
        for (i, j), value in np.ndenumerate(table):
            axes.text(j, i, f"{value:.3g}", ha="center", va="center", fontsize=8, color="w" if dark[i, j] else "k")
    figure.colorbar(image, label=str(found.name or ""))
    axes.set_title(title or "", fontsize=10)
    return figure


def ess_plot(
    ess: ArrayLike, resampled: ArrayLike, labels: Sequence[Any] | None = None, title: str | None = None
) -> "Figure":
    """Effective particles after every row, one line a group, with a dot before each row that resampled.

    Args:
        ess: [G, n+1] share of the particles, 0 to 1.
        resampled: [G, n+1] bool.
        labels: a name a group.
        title: a line above.

    Returns: the figure.

    >>> len(ess_plot(np.ones((2, 5)), np.zeros((2, 5), bool), labels="ab").axes[0].lines)
    2
    """
    shares, marks = np.asarray(ess), np.asarray(resampled)
    if shares.shape != marks.shape or shares.ndim != 2:
        raise ValueError(f"ess and resampled must both be [groups, rows], got {shares.shape} and {marks.shape}")
    names = range(len(shares)) if labels is None else labels
    figure = figure_class()(figsize=(7.0, 4.0), layout="constrained")
    axes = figure.add_subplot(xlabel="row", ylabel="effective share of the particles", ylim=(0, 1.03))
    for line, mark, name in zip(shares, marks, names, strict=True):
        before = np.flatnonzero(mark) - 1
        axes.plot(line, lw=1, marker="o", ms=4, markevery=[int(row) for row in before if row >= 0], label=str(name))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8, ncols=min(5, len(shares)), loc="lower left")
    axes.set_title(title or "", fontsize=10)
    return figure


def save(figure: "Figure", path: str | Path, dpi: int = 150) -> None:
    """Writes a PNG under a temporary name in the same folder and renames it, so that no half-written file is seen."""
    with written_whole(path) as part:
        figure.savefig(part, format="png", dpi=dpi)


def _finish_calls(axes: Any, calls: Sequence[float], floor: float | None, title: str | None) -> None:
    """Ticks, grid and legend of a plot over network calls."""
    if floor is not None:
        axes.axhline(floor, color="0.4", ls="--", lw=1, label="perfect samples")
    ticks = _spaced(calls)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    if axes.get_yscale() == "log":  # within a decade it takes the minor ticks to carry numbers
        low, high = axes.get_ylim()
        axes.yaxis.set_major_formatter("{x:.4g}")
        axes.yaxis.set_minor_formatter("{x:.4g}" if high < 10 * low else "")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9)
    axes.set_title(title or "", fontsize=10)


def _label(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _pixels(images: ArrayLike, limits: tuple[float, float]) -> np.ndarray:
    """[N, H, W, 1 or 3] in [0, 1]."""
    x = np.asarray(images, np.float32)
    x = x[..., None] if x.ndim == 3 else x
    if x.ndim != 4 or x.shape[-1] not in (1, 3) or not x.size:
        raise ValueError(f"images must be [N, H, W], [N, H, W, 1] or [N, H, W, 3], got shape {np.shape(images)}")
    low, high = limits
    return np.clip((x - low) / (high - low), 0.0, 1.0)


def _canvas(across: float, down: float, letters: int, title: str | None) -> Any:
    """Axes without a frame for a mosaic of that many images, with room for row labels of so many letters and title."""
    height = 0.62 * down + 0.3 + 0.18 * (len(title.split("\n")) if title else 0)
    figure = figure_class()(figsize=(max(4.0, 0.62 * across + 0.35 + 0.1 * letters), height))
    axes = figure.add_subplot(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=11)
    axes.set_title(title or "", fontsize=10)
    figure.set_layout_engine("constrained")
    return axes


def _mosaic(pixels: np.ndarray, rows: int, above: int, left: int) -> np.ndarray:
    """One white image with the tiles in it, and white below and at the right of all."""
    framed = np.pad(pixels, ((0, 0), (above, 0), (left, 0), (0, 0)), constant_values=1.0)
    tiles = rearrange(framed, "(r c) h w k -> (r h) (c w) k", r=rows)
    return np.pad(tiles, ((0, left), (0, left), (0, 0)), constant_values=1.0)


def _spaced(values: Sequence[float], ratio: float = 1.12) -> list[float]:
    """Values that stand far enough apart on a logarithmic axis to carry a label, the most frequent first."""
    kept: list[float] = []
    for value in sorted(set(values), key=lambda value: (-values.count(value), value)):
        if all(max(value, other) >= ratio * min(value, other) for other in kept):
            kept.append(value)
    return kept
