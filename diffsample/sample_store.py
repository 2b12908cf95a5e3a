"""The store of a large job: samples in zarr arrays, a manifest of what they are, a record of what is drawn.

    out/manifest.json           what the job is; written once, before the first sample
    out/samples.zarr/<name>     zarr 3 arrays, one of every array of the result ("x", "log_w", "calls", ...)
    out/commits/<a>-<b>.json    samples a to b are in the arrays, with a checksum; written after them and whole

A process that is killed leaves rows without a commit at most, which the next one draws again. Any number of processes
may write: what they write of a sample is the same, and a zarr file is replaced as a whole.
"""

import itertools
import json
import math
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore

from diffsample.arguments import is_whole
from diffsample.files import written_whole

MANIFEST, ARRAYS, COMMITS = "manifest.json", "samples.zarr", "commits"
KIND = "a diffsample job"
INNER = 2**16  # bytes that a reader fetches at least


class Samples:
    """The samples of a job on a disk, read as they are asked for: `open_samples(path)`.

    `samples[i]`, `samples[a:b]` read `x`; `samples.read("log_w", a, b)` any other array of the result, by the numbers
    of its samples. What is not drawn yet raises. The arrays are plain zarr 3, in `out/samples.zarr`.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).absolute()
        self.manifest: dict[str, Any] = read_manifest(self.path)
        self.arrays: dict[str, dict[str, Any]] = self.manifest["arrays"]
        self._opened: dict[str, Any] = {}

    def __len__(self) -> int:
        return self.manifest["job"]["n"]

    def __repr__(self) -> str:
        n = sum(b - a for a, b in self.done)
        return f"Samples({str(self.path)!r}, {n} of {len(self)} drawn, arrays {', '.join(self.arrays)})"

    def __getitem__(self, index: Any) -> np.ndarray:
        if not isinstance(index, slice) and not is_whole(index):
            raise TypeError(f"samples[{index!r}]: samples[i] and samples[a:b] read samples by their numbers, "
                            f"samples.read(name, a, b) reads other arrays")  # fmt: skip
        if not isinstance(index, slice):
            if not -len(self) <= index < len(self):
                raise IndexError(f"sample {index} of {len(self)}")
            at = int(index) % len(self)
            return self.read("x", at, at + 1)[0]
        start, stop, step = index.indices(len(self))
        if step != 1:
            raise ValueError(f"samples[::{step}] would read what it throws away: read slices of step 1")
        return self.read("x", start, max(start, stop))

    @property
    def done(self) -> list[tuple[int, int]]:
        """Ranges of samples that are drawn, in order, merged; read from the disk each time."""
        return merged(committed(self.path))

    @property
    def complete(self) -> bool:
        """Whether all samples are drawn."""
        return self.done == [(0, len(self))]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows of an array of the result that belong to samples start to stop (for particles, some have a row a group).

        Raises:
            KeyError: no such array. ValueError: samples that are not drawn yet, or a range that cuts a group.
        """
        stop = len(self) if stop is None else stop
        if name not in self.arrays:
            raise KeyError(f"{name!r} is no array of this job, which has {', '.join(self.arrays)}")
        if not 0 <= start <= stop <= len(self):
            raise ValueError(f"samples {start} to {stop} do not lie in 0 to {len(self)}, the samples of this job")
        if start < stop and not any(a <= start and stop <= b for a, b in self.done):
            raise ValueError(f"samples {start} to {stop} are not all drawn yet, only {self.done} of {len(self)}; start "
                             f"the job again to go on")  # fmt: skip
        return self._array(name)[_rows(self.arrays[name], start, stop)].read().result()

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """`x` in pieces of so many samples, the last one shorter; one piece is in memory at a time."""
        if size < 1:
            raise ValueError(f"size={size} must be at least 1")
        for start in range(0, len(self), size):
            yield self[start : min(start + size, len(self))]

    def verify(self) -> None:
        """Reads everything that is drawn and compares it with the checksums written at the time.

        Raises:
            ValueError: a range differs, named.
        """
        for a, b in sorted(committed(self.path)):
            found = (self.path / COMMITS / commit_name(a, b)).read_text()
            rows = {name: self._array(name)[_rows(about, a, b)].read().result() for name, about in self.arrays.items()}
            if found != record_of(a, b, rows):
                raise ValueError(f"{self.path}: samples {a} to {b} are not what was written; delete "
                                 f"{commit_name(a, b)} in {COMMITS} and start the job again")  # fmt: skip

    def write(self, a: int, b: int, rows: dict[str, np.ndarray]) -> None:
        """Writes samples a to b, then says so.

        Raises:
            OSError: the disk refused, with what is safe so far.
        """
        try:
            futures = [self._array(name)[_rows(self.arrays[name], a, b)].write(rows[name]) for name in self.arrays]
            for future in futures:
                future.result()
            write_durably(self.path / COMMITS / commit_name(a, b), record_of(a, b, rows))
        except (OSError, ValueError) as error:
            safe = sum(stop - start for start, stop in self.done)
            raise OSError(
                f"samples {a} to {b} could not be written to {self.path}: {error}. {safe} of {len(self)} are safe; "
                f"make room or rights and start the job again, which goes on from there"
            ) from error

    def tidy(self) -> None:
        """Removes what killed processes left half written; of a complete store, which nobody writes to."""
        for pattern in (f"{COMMITS}/.*.part", f"{ARRAYS}/**/*.__lock"):
            for left in self.path.glob(pattern):
                left.unlink(missing_ok=True)

    def _array(self, name: str) -> Any:
        if name not in self._opened:
            self._opened[name] = tensorstore.open(_spec(self.path, name), open=True).result()
        return self._opened[name]


def create(path: Path, job: dict[str, Any], arrays: dict[str, dict[str, Any]], block: int) -> None:
    """A store without samples, which appears at once and whole.

    Raises:
        FileExistsError: something else is there. OSError: the place cannot be written to, or is too small.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists and is no job of samples; choose another place, nothing was written")
    part = path.with_name(f".{path.name}.part")  # of one name, so that what a killed process left is cleared
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(part, ignore_errors=True)
        (part / COMMITS).mkdir(parents=True)
        need = sum(math.prod(about["shape"]) * _itemsize(about["dtype"]) for about in arrays.values())
        room = shutil.disk_usage(part).free
        if need > room:
            raise OSError(f"the samples need {need:,} bytes and the disk of {path} has {room:,} left")
        for name, about in arrays.items():
            tensorstore.open(_spec(part, name) | _layout(about, block), create=True).result()
        group = {"zarr_format": 3, "node_type": "group", "attributes": {}}
        write_durably(part / ARRAYS / "zarr.json", json.dumps(group))
        write_durably(part / MANIFEST, json.dumps({"kind": KIND, "job": job, "arrays": arrays}, indent=1))
        part.rename(path)
    except OSError as error:
        raise type(error)(f"no job can be started at {path}: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def read_manifest(path: Path) -> dict[str, Any]:
    """What the job at a path is.

    Raises:
        FileNotFoundError: nothing is there. FileExistsError: something else is.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: no job of samples was started there")
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise FileExistsError(f"{path} is no job of samples: its {MANIFEST} cannot be read ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        raise FileExistsError(f"{path} is no job of samples")
    return manifest


def committed(path: Path) -> list[tuple[int, int]]:
    """What is drawn: (start, stop), as the names of the records say."""
    names = (file.stem.split("-") for file in (path / COMMITS).glob("[0-9]*-*[0-9].json"))
    return [(int(start), int(stop)) for start, stop in names]


def merged(found: Any) -> list[tuple[int, int]]:
    """Ranges that touch or overlap as one, in order."""
    out: list[tuple[int, int]] = []
    for a, b in sorted(found):
        if out and a <= out[-1][1]:
            out[-1] = (out[-1][0], max(b, out[-1][1]))
        else:
            out.append((a, b))
    return out


def missing(done: list[tuple[int, int]], n: int) -> list[tuple[int, int]]:
    """The ranges of 0 to n that are not done."""
    edges = [(0, 0), *done, (n, n)]
    return [(a, b) for (_, a), (b, _) in itertools.pairwise(edges) if a < b]


def commit_name(a: int, b: int) -> str:
    """The file that says samples a to b are drawn."""
    return f"{a:012d}-{b:012d}.json"


def record_of(a: int, b: int, rows: dict[str, np.ndarray]) -> str:
    """What that file holds."""
    return json.dumps({"start": a, "stop": b, "checksum": checksum(rows)})


def checksum(rows: dict[str, np.ndarray]) -> str:
    """Of all arrays of a range."""
    value = 0
    for name in sorted(rows):
        value = zlib.crc32(np.ascontiguousarray(rows[name]).tobytes(), value)
    return f"{value:08x}"


def write_durably(path: Path, text: str) -> None:
    """Written whole, and on the disk before it takes its name."""
    with written_whole(path) as part, part.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _rows(about: dict[str, Any], start: int, stop: int) -> slice:
    """Rows of an array that belong to samples start to stop."""
    each = about["samples_a_row"]
    if start % each or stop % each:
        raise ValueError(f"samples {start} to {stop} cut a group of {each}, which has one row of this array")
    return slice(start // each, stop // each)


def _spec(path: Path, name: str) -> dict[str, Any]:
    store = {"driver": "file", "path": str(path / ARRAYS / name) + "/"}
    return {"driver": "zarr3", "kvstore": store}


def _layout(about: dict[str, Any], block: int) -> dict[str, Any]:
    """A file holds the rows of `block` samples, in pieces that a reader may fetch alone."""
    shape, rest = about["shape"], about["shape"][1:]
    rows = max(1, block // about["samples_a_row"])
    size = math.prod(rest) * _itemsize(about["dtype"])
    piece = next(p for p in range(max(1, min(rows, INNER // max(size, 1))), 0, -1) if rows % p == 0)
    sharding = {
        "chunk_shape": [piece, *rest],
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
    }
    first = "sample" if about["samples_a_row"] == 1 else "group"
    metadata = {
        "shape": shape,
        "data_type": about["dtype"],
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [rows, *rest]}},
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "dimension_names": [first, *(f"{about['name']}_{i}" for i in range(1, len(shape)))],
    }
    return {"metadata": metadata}


def _itemsize(dtype: str) -> int:
    return tensorstore.dtype(dtype).numpy_dtype.itemsize
