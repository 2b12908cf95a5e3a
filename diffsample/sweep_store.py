"""Results of a sweep as an xarray Dataset with named axes, and its file, which is whole at any moment.

Besides the metrics a Dataset of a sweep has `calls`, network evaluations a sample; `finished`, which cells hold
results; and `sampler`, the fingerprint of what was run in each cell, so that a file is resumed by the same sweep alone.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffsample.files import written_whole

if TYPE_CHECKING:
    from xarray import Dataset

SEED = "seed"  # the axis of repetitions
OWN = (SEED, "calls", "finished", "sampler")  # names that no dimension and no metric may take
KIND = "a diffsample sweep"


def xarray() -> Any:
    """The module.

    Raises:
        ImportError: it is not installed; says how to get it.
    """
    try:
        import xarray as module
    except ImportError as error:
        raise ImportError("sweeps need xarray: pip install 'diffsample[sweeps]'") from error
    return module


def blank(
    labels: Mapping[str, Sequence[Any]],
    seeds: Sequence[int],
    metrics: Sequence[str],
    calls: np.ndarray,
    samplers: np.ndarray,
) -> "Dataset":
    """A Dataset without results.

    Args:
        labels: of each dimension of the grid, in order.
        seeds: the last dimension.
        metrics: names.
        calls, samplers: of each point of the grid.
    """
    points = tuple(labels)
    shape = (*(len(names) for names in labels.values()), len(seeds))
    cells = (*points, SEED)
    variables = {name: (cells, np.full(shape, np.nan)) for name in metrics}
    variables |= {"finished": (cells, np.zeros(shape, bool)), "calls": (points, calls), "sampler": (points, samplers)}
    coordinates = {name: np.asarray(values) for name, values in labels.items()} | {SEED: np.asarray(seeds, np.int32)}
    return xarray().Dataset(variables, coordinates, {"kind": KIND})


def fill_from(found: "Dataset", path: Path) -> None:
    """Copies the results of a file into the cells they belong to; the grid may have grown since.

    Raises:
        FileExistsError: the file is no sweep, or it would lose results or mix two sweeps; nothing was written.
    """
    if not path.exists():
        return
    old = _read(path)
    axes = found["finished"].dims
    if old["finished"].dims != axes:
        raise FileExistsError(_refused(path, f"has the axes {old['finished'].dims}, this sweep has {axes}"))
    metrics = [str(name) for name in old.data_vars if name not in OWN]
    if lost := sorted(set(metrics) - set(found.data_vars)):
        raise FileExistsError(_refused(path, f"holds also {', '.join(lost)}: measure that too"))
    places = []
    for axis in axes:
        now, before = found[axis].values.tolist(), old[axis].values.tolist()
        if lost := [value for value in before if value not in now]:
            raise FileExistsError(_refused(path, f"holds also {axis} = {lost[0]}: leave that in the grid"))
        places.append([now.index(value) for value in before])
    at, points = np.ix_(*places), np.ix_(*places[:-1])
    done = old["finished"].values
    others = done.any(axis=-1) & (old["sampler"].values != found["sampler"].values[points])
    if others.any():
        where = {a: old[a].values[i].item() for a, i in zip(axes, np.argwhere(others)[0], strict=False)}
        said = f"was made by another sampler, condition or shape, or by other code at {where}"
        raise FileExistsError(_refused(path, said))
    found["finished"].values[at] = done & (set(metrics) == set(found.data_vars) - set(OWN))
    for name in metrics:
        found[name].values[at] = old[name].values


def write(found: "Dataset", path: Path) -> None:
    """Writes the netCDF file under another name and renames it."""
    with written_whole(path) as part:
        found.to_netcdf(part, engine="scipy")


def _read(path: Path) -> "Dataset":
    try:
        with xarray().open_dataset(path, engine="scipy") as opened:
            old = opened.load()
    except Exception as error:  # whatever the reader makes of a file of another kind
        raise FileExistsError(_refused(path, "is no netCDF file of a sweep")) from error
    if old.attrs.get("kind") != KIND:
        raise FileExistsError(_refused(path, "is no netCDF file of a sweep"))
    return old


def _refused(path: Path, why: str) -> str:
    return f"{path} exists and {why}; or choose another file. Nothing was written"
