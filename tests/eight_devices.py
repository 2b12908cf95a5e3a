"""Run by test_distributed.py in a process of its own, with eight virtual devices; prints what it measured as JSON."""

import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from state_space import LOG_EVIDENCE, OBSERVED, Bootstrap, Observation

import diffsample as ds
from diffsample import smc, solvers

COLLECTIVE = r"all-gather|all-reduce|all-to-all|collective-permute|collective-broadcast|reduce-scatter"
KEY = jax.random.key(0)
LOCAL, RUNS = 16, 4000  # particles on each device, independent filters
MESH = Mesh(np.array(jax.devices()), ("devices",))


def collectives(compiled) -> int:
    return len(re.findall(COLLECTIVE, compiled.as_text()))


def by_groups() -> dict:
    """A program sharded by groups: its collectives, and whether it equals the run on one device, bit for bit."""
    process = ds.VariancePreserving()
    table = solvers.ddpm(process, ds.times.uniform_logsnr(process, 8))
    sampler = solvers.linear(ds.exact.Gaussian(0.0, 1.0), table)
    fk = smc.feynman_kac(sampler, lambda before, after: (after.x0 - before.x0).sum(axis=1), particles=16)
    x = jax.random.normal(KEY, (16 * 16, 3))
    sharded = jax.device_put(x, NamedSharding(MESH, PartitionSpec("devices")))
    run = jax.jit(lambda key, fk, x: ds.sample(key, fk, x=x, check=False))
    compiled = run.lower(KEY, fk, sharded).compile()
    one, many = run(KEY, fk, x), compiled(KEY, fk, sharded)
    same = all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True))
    return {
        "collectives": collectives(compiled),
        "same": same,
        "resampled": int(one.diagnostics.resampled.sum()),
        "devices": len(many.log_w.sharding.device_set),
    }


def guided() -> dict:
    """Classifier-free guidance in one call of twice the batch: the collectives of a deterministic sampler."""
    network = ds.Network(_labelled, jnp.ones(3), predicts="data")
    process = ds.VariancePreserving()
    sampler = solvers.linear(
        ds.guidance.apg(network, 0.0, 2.0, radius=2.0, momentum=-0.5),
        solvers.dpmpp(process, ds.times.uniform_logsnr(process, 4)),
    )
    x, cond = jax.random.normal(KEY, (16, 3)), jnp.arange(16.0)
    run = jax.jit(lambda sampler, x, cond: ds.sample(KEY, sampler, x=x, cond=cond, check=False))
    sharded = jax.device_put((x, cond), NamedSharding(MESH, PartitionSpec("devices")))
    compiled = run.lower(sampler, *sharded).compile()
    many = compiled(sampler, *sharded)
    gap = float(jnp.abs(many - run(sampler, x, cond)).max())
    return {"collectives": collectives(compiled), "devices": len(many.sharding.device_set), "gap": gap}


def _labelled(params, x, t, cond):
    return jnp.tanh(x * params[None] + cond[:, None])


def over_devices(resample) -> dict:
    """exp(log_z) / Z over independent filters of 8 * 16 particles, and the collectives of the program."""
    fk = smc.feynman_kac(
        Bootstrap(OBSERVED), Observation(OBSERVED), particles=8 * LOCAL, resample=resample, policy=smc.always
    )
    run = jax.jit(lambda key, fk: ds.sample(key, fk, (RUNS * 8 * LOCAL,), check=False))
    compiled = run.lower(KEY, fk).compile()
    out = compiled(KEY, fk)
    z = np.exp(np.asarray(out.log_z, np.float64) - LOG_EVIDENCE)
    second = np.asarray(out.mean(out.x[:, 0]), np.float64)
    twins = float(abs(out.x[:, 0] - out.x[:, 1]).max())
    return {
        "mean": z.mean(),
        "error": z.std() / np.sqrt(RUNS),
        "variance": z.var(),
        "pooled": (z * second).mean() / z.mean(),
        "pooled_error": (z * (second - 1.462325)).std() / np.sqrt(RUNS),
        "twins": twins,
        "log_z": np.asarray(out.log_z[:4]).tolist(),
        "eves": int(jnp.max(out.diagnostics.eve)),
        "collectives": collectives(compiled),
    }


def over_all_schemes() -> dict:
    schemes = {
        "one device": smc.systematic,
        "global": smc.global_(MESH, "devices"),
        "butterfly": smc.butterfly(MESH, "devices"),
        "one stage": smc.butterfly(MESH, "devices", every_stage=False),
        "ring": smc.ring(MESH, "devices", 4),
        "local": smc.local(MESH, "devices"),
        "island": smc.island(MESH, "devices"),
    }
    return {name: over_devices(scheme) for name, scheme in schemes.items()}


if __name__ == "__main__":
    print(json.dumps({"groups": by_groups, "guided": guided, "schemes": over_all_schemes}[sys.argv[1]]()))
