"""The shared table of methods: one row a solver or guidance rule, and every contract test runs over all rows.

Solvers are the rows of `diffsample.catalogue`: name -> function (process, grid) -> Tableau; `OTHER` changes a
hyperparameter at equal shapes. A guidance rule's row is a `Rule`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from diffsample import guidance, solvers
from diffsample.catalogue import METHODS as SOLVERS
from diffsample.catalogue import PROCESSES as PROCESSES
from diffsample.denoiser import Denoiser, Network
from diffsample.grid import Grid
from diffsample.process import VariancePreserving
from diffsample.tableau import Tableau
from diffsample.times import uniform_logsnr


def grid_of(name: str, steps: int = 6) -> Grid:
    """A grid that a solver can run on."""
    return uniform_logsnr(PROCESSES.get(name, VariancePreserving()), steps)


def table_of(name: str, steps: int = 6) -> Tableau:
    """A solver's table on that grid."""
    grid = grid_of(name, steps)
    return SOLVERS[name](grid.process, grid)


def counted(predicts: str = "noise") -> tuple[Network, Callable[[Callable[[], Any]], float]]:
    """A network with conditions 0, 1, 2, and a function that counts its evaluations a sample while something runs."""
    rows = []

    def field(params, x, t, cond):
        jax.debug.callback(rows.append, jnp.float32(x.shape[0]))
        tilt = 0.3 * cond.reshape(-1, *(1,) * (x.ndim - 1)).astype(x.dtype)
        return jnp.tanh(params * x + tilt) + tilt

    def count(run: Callable[[], Any]) -> float:
        rows.clear()
        out = jax.block_until_ready(run())
        jax.effects_barrier()
        return float(sum(rows)) / jax.tree.leaves(out)[0].shape[0]

    return Network(field, 0.8, predicts=predicts), count


def representatives() -> list[str]:
    """One solver for each shape of program: what a program does depends on shapes, not on numbers."""
    shapes = {}
    for name in SOLVERS:
        table = table_of(name)
        shapes.setdefault((table.registers, table.slots, table.noise), name)
    return list(shapes.values())


OTHER = {
    "ddim(eta=0.7)": lambda p, g: solvers.ddim(p, g, eta=0.2),
    "heun(churn=4, churn_max=50)": lambda p, g: solvers.heun(p, g, churn=2.0, churn_max=50.0),
    "heavy_ball(plms, 0.9)": lambda p, g: solvers.heavy_ball(solvers.plms(p, g), 0.3),
    "heavy_ball(dpmpp, 0.9)": lambda p, g: solvers.heavy_ball(solvers.dpmpp(p, g), 1.0),
    "dpmpp": lambda p, g: solvers.dpmpp(p, g, taylor=True),
    "ghvb": lambda p, g: solvers.ghvb(p, g, beta=1.0),
    "ddim": solvers.euler,
    "dpmpp(order=3)": solvers.exp_multistep,
    "exp_multistep(singlestep_start=True)": lambda p, g: solvers.exp_multistep(p, g, singlestep_start=True),
    "lms": solvers.plms,
    "unipc(order=3)": lambda p, g: solvers.unipc(p, g, order=3, bh1=True),
    "deis_t": solvers.deis_log_rho,
    "sde_dpmpp": lambda p, g: solvers.sde_dpmpp(p, g, eta=0.3, heun=True),
    "sa_solver": lambda p, g: solvers.sa_solver(p, g, tau=0.6),
    "dpm2(eta=1)": lambda p, g: solvers.dpm2(p, g, eta=0.5),
    "dpmpp_sde": solvers.seeds2,
    "seeds2(c2=0.3)": lambda p, g: solvers.seeds2(p, g, c2=0.4),
}


class Rule(NamedTuple):
    """A guidance rule's row: what it is, and what it promises (test_guidance_laws.py)."""

    build: Callable[[Any, Any], Any]  # (denoiser, number) -> denoiser; the null condition is 2
    cost: int  # network evaluations a call
    coupled: bool = True  # whether x = alpha x0 + sigma eps
    neutral: float | None = 1.0  # the number at which it is the conditional model, bit for bit


def worse(denoiser: Any) -> Any:
    """Another model of one evaluation."""
    return guidance.clip(denoiser, -0.2, 0.2)


def leaning(x: Array, level: Any, cond: Any) -> Array:
    """Log-probability of the condition for noisy samples, up to a constant."""
    return -0.5 * jnp.sum((x - cond.reshape(-1, *(1,) * (x.ndim - 1))) ** 2, axis=tuple(range(1, x.ndim)))


def two_logits(x: Array) -> Array:
    """Logits [B, 2] of clean samples."""
    total = jnp.sum(jnp.tanh(x), axis=tuple(range(1, x.ndim)))
    return jnp.stack([total, -total], axis=-1)


def random_label(key: Array) -> Array:
    """A condition drawn at random."""
    return jax.random.randint(key, (), 0, 3)


GUIDANCE = {
    "cfg": Rule(lambda d, s: guidance.cfg(d, 2, s), 2),
    "cfg-sequential": Rule(lambda d, s: guidance.cfg(d, 2, s, batched=False), 2),
    "apg": Rule(lambda d, s: guidance.apg(d, 2, s, radius=0.7, momentum=-0.5), 2),
    "apg-sequential": Rule(lambda d, s: guidance.apg(d, 2, s, radius=0.7, momentum=-0.5, batched=False), 2),
    "apg_mix": Rule(lambda d, s: guidance.apg_mix(d, 2, 3.5, s, cfg_steps=2, radius=0.7, batched=False), 2),
    "apg-axes-rms": Rule(lambda d, s: guidance.apg(d, 2, s, radius=0.1, axes=(1,), rms=True, eta=0.3), 2),
    "autoguidance": Rule(lambda d, s: guidance.autoguidance(d, worse(d), s), 2),
    "cfg_pp": Rule(lambda d, s: guidance.cfg_pp(d, 2, s), 2, coupled=False, neutral=None),
    "cfg_zero": Rule(lambda d, s: guidance.cfg_zero(d, 2, s, zero_steps=0), 2),
    "clip": Rule(lambda d, s: guidance.clip(d, -s, s), 1, neutral=1e3),
    "clip-keeps-eps": Rule(lambda d, s: guidance.clip(d, -0.1 * s, 0.1 * s, keep_eps=True), 1, False, 1e4),
    "composable": Rule(lambda d, s: guidance.composable(d, 2, 1.0, [0, 1], [s, -s]), 4, neutral=0.0),
    "composable-sequential": Rule(lambda d, s: guidance.composable(d, 2, s, [1], [0.0], batched=False), 3),
    "during": Rule(lambda d, s: guidance.during(guidance.cfg(d, 2, s), d, 0.1, 9.0), 2),
    "dynamic_threshold": Rule(lambda d, s: guidance.dynamic_threshold(d, 0.9, bound=0.1 * s), 1, neutral=1e4),
    "fdg": Rule(lambda d, s: guidance.fdg(d, 2, [s, s], parallel=[0.5, 0.0]), 2),
    "mambo_g": Rule(lambda d, s: guidance.mambo_g(d, 2, s, 0.5), 2),
    "perturbed": Rule(lambda d, s: guidance.perturbed(d, worse(d), 2, s, 0.0), 3),
    "rescale": Rule(lambda d, s: guidance.rescale(d, 2, s), 2),
    "rescale-x0": Rule(lambda d, s: guidance.rescale(d, 2, s, space=guidance.DATA), 2),
    "classifier": Rule(lambda d, s: guidance.classifier(d, leaning, s), 1, neutral=0.0),
    "elucd": Rule(lambda d, s: guidance.elucd(d, two_logits, s), 1, False, 0.0),
    "elucd_nudge": Rule(lambda d, s: guidance.elucd_nudge(d, two_logits, 5, size=s, tau=s), 1, False, None),
    "icg": Rule(lambda d, s: guidance.icg(d, random_label, s), 2),
    "mean_shift": Rule(lambda d, s: guidance.mean_shift(d, leaning, s), 1, False, 0.0),
    "tcfg": Rule(lambda d, s: guidance.tcfg(d, 2, s, space=guidance.NOISE), 2),
}

SEEN = guidance.operators.mask([1.0, 0.0, 1.0])  # what the rows of INVERSE measure of states [B, 3]
INVERSE: dict[str, Callable[[Denoiser, Any, Any], Denoiser]] = {  # y [B, 3], weight [B] in 0.1 to 0.9
    "dps": lambda d, y, w: guidance.dps(d, SEEN, y, w),
    "dps_gaussian": lambda d, y, w: guidance.dps_gaussian(d, SEEN, y, w),
    "loss_guidance": lambda d, y, w: guidance.loss_guidance(d, seen_energy, scale=w),
    "lgd_mc": lambda d, y, w: guidance.lgd_mc(d, seen_energy, draws=2, scale=w),
    "psld": lambda d, y, w: guidance.psld(d, SEEN, y, encode=halve, decode=double, gamma=w),
    "pigdm": lambda d, y, w: guidance.pigdm(d, SEEN, y, w),
    "pigdm_as_coded": lambda d, y, w: guidance.pigdm_as_coded(guidance.clip(d, -4 * w, 4 * w), SEEN, y),
    "tmpd": lambda d, y, w: guidance.tmpd(d, SEEN, y, w, size=3),
    "tmpd_diagonal": lambda d, y, w: guidance.tmpd_diagonal(d, SEEN, y, w),
    "mmps": lambda d, y, w: guidance.mmps(d, SEEN, y, w, iterations=2),
    "mmps(cg)": lambda d, y, w: guidance.mmps(d, SEEN, y, w, iterations=2, solver=guidance.krylov.conjugate_gradient),
    "jfps": lambda d, y, w: guidance.jfps(d, SEEN, y, w),
    "diffpir": lambda d, y, w: guidance.diffpir(d, SEEN, y, w),
    "mpgd": lambda d, y, w: guidance.mpgd(d, SEEN, y, w),
    "ddnm": lambda d, y, w: guidance.ddnm(d, SEEN, y, eta=w),
    "ddnm_plus": lambda d, y, w: guidance.ddnm_plus(d, SEEN, y, w),
    "ddrm": lambda d, y, w: guidance.ddrm(d, SEEN, y, w),
    "replacement": lambda d, y, w: guidance.replacement(guidance.clip(d, -4 * w, 4 * w), SEEN, y),
    "mcg": lambda d, y, w: guidance.mcg(d, SEEN, y, w),
    "stsl": lambda d, y, w: guidance.stsl(d, SEEN, y, scale=w, corrections=2),
    "red_diff": lambda d, y, w: guidance.red_diff(d, SEEN, y, rate=w),
    "observe": lambda d, y, w: guidance.observe(d, y, SEEN.mask, w),
    "observe_after_step": lambda d, y, w: guidance.observe_after_step(d, y, SEEN.mask, w),
}


def seen_energy(x0: Array, target: None) -> Array:
    """A loss of one sample."""
    return jnp.sum((x0[::2] - 0.5) ** 2)


def halve(image: Array) -> Array:
    """An encoder."""
    return image / 2


def double(latent: Array) -> Array:
    """The decoder that it belongs to."""
    return 2 * latent
