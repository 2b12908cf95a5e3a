"""Run by test_many_devices.py in processes of their own, on one device, eight, or two processes of four.

One sampler of every family draws the same samples wherever it runs; results go to an .npz file.
"""

import os
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import diffsample as ds
from diffsample import discrete, guidance, smc, solvers
from diffsample.placing import together, whole

COLLECTIVE = r"all-gather|all-reduce|all-to-all|collective-permute|collective-broadcast|reduce-scatter"
BATCH, LENGTH = 16, 6
PROCESS = ds.VariancePreserving()
GRID = ds.times.uniform_logsnr(PROCESS, 6)
WEIGHT = np.linspace(-1.0, 1.0, 9, dtype=np.float32).reshape(3, 3)


def dense(params, x, t, cond):
    out = x
    for column in range(3):  # written out, for a matrix product may be summed in another order in another batch
        out = out + params[column] * x[:, column : column + 1] * t[:, None]
    return jnp.tanh(out) + 0.1 * cond[:, None]


def nothing(params, x, t, cond):
    return 0 * x


def logits(params, x, cond):
    return jnp.sin(params * (x[..., None] + jnp.arange(3.0)) + jnp.arange(LENGTH, dtype=jnp.float32)[:, None])


def key():
    """No constant of the module: jax.distributed must be the first to touch a device."""
    return jax.random.key(0)


def samplers():
    network = ds.Network(dense, WEIGHT, predicts="noise")
    betas = ds.DiscreteBetas.linear()
    shifted = solvers.shifted(network, solvers.ddim(betas, [1.0, 0.8, 0.6, 0.4, 0.2, 0.05, 0.0]), window=40, cutoff=300)
    model = discrete.from_logits(logits, 1.3, vocab=3, mask_id=3)
    ddpm = solvers.linear(network, solvers.ddpm(PROCESS, GRID))
    tilt = smc.feynman_kac(ddpm, tilted, particles=2)
    apg = guidance.apg(network, null=2, scale=3.0, radius=0.7, momentum=-0.5)
    return {
        "draws alone": solvers.linear(ds.Network(nothing, predicts="data"), solvers.ddpm(PROCESS, GRID[:-1])),
        "deterministic": solvers.linear(network, solvers.dpmpp(PROCESS, GRID)),
        "stochastic": solvers.linear(network, solvers.sde_dpmpp(PROCESS, GRID)),
        "guided": solvers.linear(apg, solvers.ghvb(PROCESS, GRID)),
        "time shift": shifted,
        "corrected": solvers.predictor_corrector(network, solvers.reverse_diffusion(PROCESS, GRID)),
        "particles": tilt,
        "masked": discrete.Decoder(model, discrete.first_hitting(LENGTH)),
        "masked until done": discrete.Decoder(model, discrete.best_first(LENGTH)),
        "masked, speculative": discrete.speculative(model, LENGTH, drafts=2),
    }


def tilted(before, after):
    return after.x0[:, 0] - before.x0[:, 0]


def arguments(name, n=BATCH):
    if name.startswith("masked"):
        return {"shape": (n, LENGTH), "cond": None}
    return {"shape": (n, 3), "cond": np.arange(n) % 2}


def place():
    return NamedSharding(jax.make_mesh((len(jax.devices()),), ("data",)), PartitionSpec("data"))


def matrix(sharding, folder: Path) -> dict:
    """Whole runs, runs saved in the middle and restored, and an adaptive solve."""
    found = {}
    for name, sampler in samplers().items():
        out = whole(ds.sample(key(), sampler, **arguments(name), sharding=sharding))
        found |= {f"{name}/{i}": leaf for i, leaf in enumerate(jax.tree.leaves(out))}
        path = folder / name.replace(" ", "_")
        run = ds.start(key(), sampler, **arguments(name), sharding=sharding)
        if not path.exists():  # saved by the first process that runs this
            together(name)
            run.advance(3).save(path)
        out = whole(run.restore(path).finish())
        found |= {f"{name}, resumed/{i}": leaf for i, leaf in enumerate(jax.tree.leaves(out))}
    found["adaptive/0"] = adaptive(sharding)
    return found


def batches() -> dict:
    """The first samples of a batch of 64, a ragged one in chunks, and two samples alone; x alone is kept."""
    found = {}
    for name, sampler in samplers().items():
        size = 2 if name == "particles" else 1
        large = ds.sample(key(), sampler, **arguments(name, 64))
        ragged = ds.sample(key(), sampler, chunk=6, **arguments(name))
        given = arguments(name, 8)
        alone = [
            ds.sample(key(), sampler, (size, *given["shape"][1:]), first=at,
                      cond=None if given["cond"] is None else given["cond"][at : at + size])
            for at in range(0, 4, size)
        ]  # fmt: skip
        for label, out in (("64", [large]), ("ragged", [ragged]), ("alone", alone)):
            x = np.concatenate([whole(part.x if hasattr(part, "_fields") else part) for part in out])[:BATCH]
            found[f"{name}, {label}"] = x
    return found


def adaptive(sharding) -> np.ndarray:
    x, cond = np.linspace(-1.0, 1.0, 3 * BATCH, dtype=np.float32).reshape(BATCH, 3), np.arange(BATCH) % 2
    if sharding is not None:
        job = ds.sampling.prepared(key(), samplers()["deterministic"], None, jnp.asarray(x), cond, None, 0, True, None,
                                   sharding)  # fmt: skip
        x, cond = job.x, job.cond
    solve = jax.jit(
        lambda x, cond: (
            solvers.solve_ode(
                key(),
                ds.Network(dense, WEIGHT, predicts="noise"),
                PROCESS,
                x,
                cond=cond,
                start=0.9,
                stop=0.1,
            ).x
        )
    )
    return whole(solve(x, cond))


def collectives(name, sharding) -> int:
    """In the compiled program of a sampler, on arrays that lie over the devices."""
    job = ds.sampling.prepared(key(), samplers()[name], x=None, record=None, first=0, check=True, dtype=None,
                               sharding=sharding, **arguments(name))  # fmt: skip
    return len(re.findall(rf"(?:{COLLECTIVE})(?:-start)?\(", ds.loop.run.lower(job).compile().as_text()))


def jobs(sharding, out: Path) -> dict:
    """Jobs in chunks that eight devices do not divide; one that was begun on one device, with a chunk lost."""

    def job(n, store):
        sampler, cond = samplers()["draws alone"], lambda numbers: numbers % 2
        return ds.sample_many(key(), sampler, n, (3,), out=store, chunk=5, cond=cond, sharding=sharding)[:]

    shared = out.parent / "job"
    for lost in shared.glob("commits/*10-*15.json"):
        lost.unlink(missing_ok=True)
    return {"job/three": job(3, out.with_suffix(".three")), "job/shared": job(21, shared)}


def main(out: str, kind: str, number: int = 0, port: int = 0) -> None:
    if kind == "processes":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{port}", 2, number)
    if kind == "batches":
        np.savez(out, **batches())
        return
    folder = Path(out).parent / "runs"
    folder.mkdir(exist_ok=True)
    found = matrix(None if kind == "one" else place(), folder)
    found |= jobs(None if kind == "one" else place(), Path(out))
    if kind == "eight":
        found |= {f"collectives/{name}": np.array(collectives(name, place())) for name in samplers()}
    found["devices"] = np.array(jax.device_count())
    if number == 0:
        np.savez(out, **found)
    together("done")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
    sys.stdout.flush()
    os._exit(0)  # without the shutdown barrier of jax.distributed, which waits for a peer that may have left
