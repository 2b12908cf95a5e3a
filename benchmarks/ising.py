"""Annealing an Ising lattice by discrete Feynman-Kac correctors, against all of its 65,536 states.

    python benchmarks/ising.py

A 4 x 4 periodic lattice at coupling 0.3 is cooled to 0.35 and to 0.44 by `smc.corrected_jumps` on exact concrete
scores. Printed: energy a spin, squared magnetisation, normaliser: of weighted particles, of the jumps alone, exactly.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ratios import Ratio

import diffsample as ds
from diffsample import smc
from diffsample.exact import Ising, ising
from diffsample.struct import pytree

KEY = jax.random.key(0)
COUPLING, START, STOP = 0.3, 3.0, 1e-3  # of the model; noise times


@pytree
class Cooling:
    """Rates and weights of the path q_t^beta: (x, t, condition) -> Jumps."""

    model: Ising
    beta: Any

    def __call__(self, x: jax.Array, t: jax.Array, cond: Any) -> smc.Jumps:
        flips = (x[..., None] != jnp.arange(2)[None, None]).astype(float)
        ratios = self.model.log_ratios(x, t)[None]
        return smc.corrected_jumps(flips, flips, ratios, jnp.asarray(self.beta)[None])


@pytree
class Start:
    """log of q_T^beta over the uniform law."""

    model: Ising
    beta: Any

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.beta * self.model.log_noised(START)[self.model.number(x)] + self.model.spins * np.log(2.0)


def rows(quick: bool) -> Iterator[Ratio]:
    """Prints the table; gives the error of the energy with the weights over that of the jumps alone."""
    model, (steps, groups, particles) = ising(4, COUPLING), (100, 4, 128) if quick else (1000, 24, 512)
    every = np.stack([np.asarray(model.energy) / model.spins, np.asarray(model.magnetisation) ** 2], axis=1)
    print(f"{'coupling':>8} {'':10} {'energy a spin':>18} {'magnetisation^2':>18} {'log Z':>18}")
    for coupling in (0.35, 0.44):
        beta, shape = coupling / COUPLING, (groups * particles, model.spins)
        sampler = smc.jump_process(Cooling(model, beta), np.geomspace(START, STOP, steps + 1), vocab=2)
        out = ds.sample(KEY, smc.feynman_kac(sampler, smc.Growth(Start(model, beta)), particles=particles), shape)
        alone = every[model.number(ds.sample(KEY, sampler, shape))].reshape(groups, particles, 2).mean(axis=1)
        weighted = np.asarray(out.mean(jnp.asarray(every)[model.number(out.x)]))
        law = np.exp(beta * np.asarray(model.log_noised(STOP), np.float64))
        exact = [*(law @ every / law.sum()), np.log(law.sum())]
        line(coupling, "weighted", [*weighted.T, np.asarray(out.log_z)])
        line(coupling, "alone", list(alone.T))
        line(coupling, "exact", exact)
        error, bare = (abs(found[:, 0].mean() - exact[0]) for found in (weighted, alone))
        target = None if quick else 0.5  # few groups leave the error of either to chance
        yield Ratio(f"error of the energy with weights, coupling {coupling}", "jumps alone", error / bare, target)


def line(coupling: float, name: str, found: list[Any]) -> None:
    """Means over groups with their standard errors."""
    cells = [f"{np.mean(v):9.4f} +- {np.std(v) / np.size(v) ** 0.5:.4f}" for v in found]
    print(f"{coupling:8} {name:10} {' '.join(f'{cell:>18}' for cell in cells)}", flush=True)


if __name__ == "__main__":
    list(rows(quick=False))
