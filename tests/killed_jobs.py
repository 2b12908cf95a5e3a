"""Run by test_many.py: a job of many small chunks, killed by SIGKILL at random moments until it is done.

python killed_jobs.py FOLDER CHUNKS KILLS: the parent has imported everything and no JAX backend; each session is a
fork of it. Prints JSON: kills delivered, stores finished, and whether each equals the uninterrupted one.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np

import diffsample as ds
from diffsample import many  # noqa: F401  (tensorstore is imported before the forks)

CHUNK = 4
GRID = ds.times.uniform(ds.VariancePreserving(), 4)


def job(out: Path, chunks: int) -> None:
    sampler = ds.solvers.linear(ds.exact.Gaussian(0.5, 0.25), ds.solvers.ddpm(GRID.process, GRID))
    ds.sample_many(jax.random.key(0), sampler, CHUNK * chunks - 1, (3,), out=out, chunk=CHUNK)


def compare(out: Path, whole: Path) -> None:
    samples = ds.open_samples(out)
    samples.verify()
    assert samples.complete and np.array_equal(samples[:], ds.open_samples(whole)[:])


def session(work, *arguments) -> int:
    """A process of its own: tensorstore refuses to be used before a fork."""
    child = os.fork()
    if child == 0:
        try:
            work(*arguments)
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    return child


def commits(out: Path) -> int:
    return len(list(out.glob("commits/*.json")))


def killed(out: Path, chunks: int, draw: random.Random) -> bool:
    """One session, killed: sometimes while it starts, mostly some moments after its first commit."""
    child, before, began = session(job, out, chunks), commits(out), time.monotonic()
    patience = draw.uniform(0, 2) if draw.random() < 0.2 else 600.0
    while commits(out) == before and time.monotonic() - began < patience:
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.001)
    time.sleep(draw.uniform(0, 0.05))
    if os.waitpid(child, os.WNOHANG)[0]:
        return False
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def main(folder: Path, chunks: int, kills: int) -> None:
    draw, delivered, equal = random.Random(0), 0, []
    whole = folder / "whole"
    assert os.waitpid(session(job, whole, chunks), 0)[1] == 0
    while delivered < kills:
        out = folder / "killed"
        shutil.rmtree(out, ignore_errors=True)
        while delivered < kills and commits(out) < chunks:
            delivered += killed(out, chunks, draw)
        assert os.waitpid(session(job, out, chunks), 0)[1] == 0
        equal.append(os.waitpid(session(compare, out, whole), 0)[1] == 0)
    left = [path.name for path in folder.rglob("*") if path.name.endswith((".part", "__lock"))]
    print(json.dumps({"kills": delivered, "stores": len(equal), "equal": all(equal), "left": left[:5]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
