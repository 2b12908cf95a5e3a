"""What particles cost and what they give: weighing and resampling beside the network, resamplers, scaling, 40 modes.

    python benchmarks/particles.py [--quick]

Times are of interleaved repeats in one run, the fastest of each; CPU time of the process is the steadier figure.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import mixture40
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ratios import Ratio, shown

import diffsample as ds
from diffsample import smc, solvers
from diffsample.nets import digits

PROCESS = ds.VariancePreserving()
KEY = jax.random.key(0)


def fastest(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, tuple[float, float]]:
    """(wall, CPU) seconds of the fastest of interleaved repeats; the first call compiles and does not count."""
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for run in runs.values():
        jax.block_until_ready(run())
    for _ in range(repeats):
        for name, run in runs.items():
            cpu, wall = time.process_time(), time.perf_counter()
            jax.block_until_ready(run())
            seen[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {name: tuple(np.min(pairs, axis=0)) for name, pairs in seen.items()}


def beside_the_network(particles: int, steps: int, repeats: int) -> Ratio:
    """A step with weights and resampling at every row against the same step without, on the shipped U-Net."""
    table = solvers.ddpm(PROCESS, ds.times.uniform_logsnr(PROCESS, steps))
    sampler = solvers.linear(digits.network(), table)
    labels = jnp.arange(particles) % 10

    def difference(before: ds.View, after: ds.View) -> jax.Array:
        return (after.x0 - before.x0).reshape(len(after.x), -1).sum(axis=1) / 8

    build = partial(smc.feynman_kac, sampler, difference, particles=particles)
    kinds = {
        "sampler alone": sampler,
        "always, systematic": build(policy=smc.always),
        "ess(0.5), systematic": build(),
        "always, in_place(killing)": build(policy=smc.always, resample=smc.in_place(smc.killing)),
        "always, ssp": build(policy=smc.always, resample=smc.ssp),
    }
    shape = (particles, *digits.SHAPE)
    times = fastest({n: partial(ds.sample, KEY, s, shape, cond=labels, check=False) for n, s in kinds.items()}, repeats)
    alone = times["sampler alone"]
    print(f"\nDigits U-Net, one group of {particles} particles, {steps} rows\n{'':28}{'ms a row':>10}{'CPU ms':>10}"
          f"{'particle-rows/s':>17}{'more CPU than alone':>21}")  # fmt: skip
    for name, (wall, cpu) in times.items():
        print(f"{name:28}{1e3 * wall / steps:10.2f}{1e3 * cpu / steps:10.2f}{particles * steps / wall:17.0f}"
              f"{cpu / alone[1] - 1:21.1%}")  # fmt: skip
    return weights_only(particles, steps, min(alone[1], *(cpu for _, cpu in times.values())) / steps, repeats)


def weights_only(particles: int, steps: int, row: float, repeats: int) -> Ratio:
    """The same rows around a network that costs nothing: what weighing and resampling take by themselves."""
    table = solvers.ddpm(PROCESS, ds.times.uniform_logsnr(PROCESS, steps))
    free = solvers.linear(ds.Network(_free, jnp.float32(0.9), predicts="noise"), table)

    def difference(before: ds.View, after: ds.View) -> jax.Array:
        return (after.x0 - before.x0).reshape(len(after.x), -1).sum(axis=1) / 8

    weighted = smc.feynman_kac(free, difference, particles=particles, policy=smc.always)
    shape = (particles, *digits.SHAPE)
    runs = {"alone": free, "particles": weighted}
    times = fastest({n: partial(ds.sample, KEY, s, shape, check=False) for n, s in runs.items()}, 4 * repeats)
    spent = (times["particles"][1] - times["alone"][1]) / steps
    share = spent / row
    print(f"weighing and resampling take {1e3 * spent:.3f} ms of CPU a row by themselves")
    return Ratio(f"weighing and resampling {particles} particles, CPU time", "a row of the digits U-Net", share, 0.05)


def _free(params: jax.Array, x: jax.Array, t: jax.Array, cond: None) -> jax.Array:
    return params * x


def against_blackjax(sizes: tuple[int, ...], repeats: int) -> Iterator[Ratio]:
    """Prints microseconds a resampling of K weights, ours and blackjax's."""
    try:
        from blackjax.smc import resampling as theirs
    except ImportError:
        print("\nblackjax is not installed: no comparison of resamplers")
        return
    names = ("systematic", "stratified", "multinomial", "residual")
    for k in sizes:
        log_w = 1.5 * jax.random.normal(KEY, (k,))
        w, runs = jax.nn.softmax(log_w), {}
        for name in names:
            ours = jax.jit(getattr(smc, name))
            peer = jax.jit(getattr(theirs, name), static_argnums=2)
            runs[f"ours {name}"] = partial(_often, partial(ours, KEY, log_w))
            runs[f"blackjax {name}"] = partial(_often, partial(peer, KEY, w, k))
        # rejection takes thousands of passes over the largest cloud: minutes here
        others = ("residual_systematic", "killing", *(["rejection"] if k <= 1024 else []))
        for name in others:
            runs[f"ours {name}"] = partial(_often, partial(jax.jit(getattr(smc, name)), KEY, log_w))
        times = fastest(runs, repeats)
        print(f"\nResampling {k} particles, us each (CPU us)")
        for name in names:
            mine, peer = times[f"ours {name}"], times[f"blackjax {name}"]
            print(f"{name:20} ours {1e5 * mine[0]:9.1f} ({1e5 * mine[1]:9.1f})   blackjax {1e5 * peer[0]:9.1f} "
                  f"({1e5 * peer[1]:9.1f})   CPU ratio {mine[1] / peer[1]:.2f}")  # fmt: skip
            yield Ratio(f"{name} of {k} particles, CPU time", "blackjax", mine[1] / peer[1])
        for name in others:
            print(f"{name:20} ours {1e5 * times[f'ours {name}'][0]:9.1f}")


def _often(run: Callable[[], Any]) -> Any:
    for _ in range(10):
        out = run()
    return out


def weak_scaling(repeats: int) -> None:
    """In this process, which has eight virtual devices: the same groups a device on 1, 2, 4, 8 of them."""
    table = solvers.ddpm(PROCESS, ds.times.uniform_logsnr(PROCESS, 10))
    sampler = solvers.linear(digits.network(), table)
    fk = smc.feynman_kac(sampler, lambda b, a: (a.x0 - b.x0).sum(axis=(1, 2, 3)) / 8, particles=64)
    runs = {}
    for devices in (1, 2, 4, 8):
        place = NamedSharding(Mesh(np.array(jax.devices()[:devices]), ("groups",)), PartitionSpec("groups"))
        x = jax.device_put(80 * jax.random.normal(KEY, (64 * devices, *digits.SHAPE)), place)
        labels = jax.device_put(jnp.arange(64 * devices) // 64 % 10, place)
        runs[str(devices)] = partial(ds.sample, KEY, fk, x=x, cond=labels, check=False)
    print(json.dumps(fastest(runs, repeats)))


def scaling(repeats: int) -> Ratio:
    """Weak scaling over eight virtual devices, in a process of its own."""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, __file__, "--weak-scaling", str(repeats)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    times = {int(devices): value for devices, value in json.loads(done.stdout).items()}
    print(f"\nWeak scaling: one group of 64 particles a virtual device, 10 rows, {os.cpu_count()} cores")
    for devices, (wall, cpu) in times.items():
        print(f"{devices} devices   {1e3 * wall:8.1f} ms   CPU {1e3 * cpu / devices:8.1f} ms a device, "
              f"{cpu / devices / times[1][1]:.2f} of that on one device")  # fmt: skip
    eight = times[8][1] / 8 / times[1][1]
    return Ratio("a group on each of 8 virtual devices, CPU time a device", "one group on one device", eight)


def rows(quick: bool) -> Iterator[Ratio]:
    """Prints the tables, and gives the ratios."""
    print(f"jax {jax.__version__}, {jax.devices()[0]}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    yield beside_the_network(256 if quick else 1024, 5 if quick else 10, 1 if quick else 3)
    yield from against_blackjax((1024,) if quick else (1024, 2**17), 3 if quick else 10)
    yield scaling(1 if quick else 3)


def main(quick: bool) -> None:
    shown(rows(quick))
    shown(mixture40.rows(quick))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repeats and particles: does it run, not how well")
    parser.add_argument("--weak-scaling", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    main(arguments.quick) if arguments.weak_scaling is None else weak_scaling(arguments.weak_scaling)
