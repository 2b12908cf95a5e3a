"""Run by test_many.py as two processes of jax.distributed, which draw one job, each its chunks or all together."""

import os
import sys

import jax
from jax.sharding import NamedSharding, PartitionSpec


def main(out: str, way: str, number: int, port: int) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, number)
    from test_many import job

    mesh = jax.make_mesh((8,), ("data",))
    job(out, n=90, chunk=16, sharding=NamedSharding(mesh, PartitionSpec("data")) if way == "together" else None)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
    sys.stdout.flush()
    os._exit(0)  # without the shutdown barrier of jax.distributed, which waits for a peer that may have left
