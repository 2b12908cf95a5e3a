"""`python -m diffsample --particles K`: particles for a reward, a temperature or a product of classes.

One group of K particles a class. `before` are samples of the plain model from the same noise, `after` the particles.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample import metrics, plot, smc
from diffsample.compiles import count_compiles
from diffsample.denoiser import Denoiser
from diffsample.nets import digits
from diffsample.sampler import Sampler
from diffsample.sampling import sample
from diffsample.wrapping import fixed

Reward = Callable[[Array, Array], Array]  # images [B, 8, 8, 1], labels [B] -> [B]


def ink(images: Array, labels: Array) -> Array:
    """Pixels' worth of ink, 0 to 64; a negative strength asks for thin strokes."""
    return (0.5 * (images + 1)).reshape(len(images), -1).sum(axis=1)


def symmetry(images: Array, labels: Array) -> Array:
    """Minus the squared difference of the image and its mirror image, left and right exchanged; 0 at best."""
    return -0.25 * ((images - images[:, :, ::-1]) ** 2).reshape(len(images), -1).sum(axis=1)


def confidence(images: Array, labels: Array) -> Array:
    """The classifier's log-probability of the class asked for, 0 at best."""
    logits = jax.nn.log_softmax(digits.load().classifier(images))
    return jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]


REWARDS: dict[str, Reward] = {"ink": ink, "symmetry": symmetry, "confidence": confidence}
RESAMPLERS: dict[str, Any] = {
    "killing": smc.killing,
    "multinomial": smc.multinomial,
    "residual": smc.residual,
    "ssp": smc.ssp,
    "stratified": smc.stratified,
    "systematic": smc.systematic,
}
TARGETS = ("--reward", "--temperature", "--product")
COLUMNS = 10  # images of each group in the picture


class Run(NamedTuple):
    """Plain samples and particles of the same noise, and what they cost."""

    before: Array  # [G*K, 8, 8, 1]
    out: smc.Particles
    seconds: tuple[float, float]  # second call of each
    compiles: int  # programs compiled by the second call of the particles


def add_options(parser: argparse.ArgumentParser, number: Callable[[str], float]) -> None:
    """The options of the particle command; `number` reads a finite one."""
    add = parser.add_argument
    add("--particles", type=int, required=True, help="particles of each group (default: none, it is needed)")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--reward", choices=REWARDS, help="tilt by exp(strength reward) (default: none)")
    target.add_argument("--temperature", type=number, help="sample p^(1 / temperature) (default: none)")
    what = "sample the geometric mean of the laws of these classes (default: none)"
    target.add_argument("--product", nargs="+", type=int, choices=range(digits.NULL), metavar="CLASS", help=what)
    add("--strength", type=number, help="factor of the reward, of any sign (default: 1 with --reward)")
    add("--threshold", type=number, default=0.5, help="resample below this share of ESS (default: %(default)s)")
    add("--resample", choices=RESAMPLERS, default="systematic", help="resampling scheme (default: %(default)s)")


def groups(options: argparse.Namespace) -> list[int]:
    """The class of each group, after a check of what does not go together."""
    if options.particles < 2:
        raise ValueError(f"--particles {options.particles} must be at least 2: one has nothing to be weighed against")
    if options.reward is None and options.strength is not None:
        raise ValueError(f"--strength {options.strength:g} does not apply here; it applies to: --reward")
    if options.reward is None and options.guidance != "none":
        raise ValueError(f"--guidance {options.guidance} does not apply here, where the law is given; it applies to: "
                         f"--reward")  # fmt: skip
    if options.temperature is not None and options.temperature <= 0:
        raise ValueError(f"--temperature {options.temperature:g} must be positive")
    return options.labels if options.product is None else options.product[:1]


def weighted(options: argparse.Namespace, plain: Any) -> smc.FeynmanKac:
    """The particles that the options ask for, over the table and the network of a plain sampler."""
    rules = {"resample": RESAMPLERS[options.resample], "policy": smc.ess(options.threshold)}
    if options.reward is not None:
        potential = smc.fk_difference(REWARDS[options.reward], 1.0 if options.strength is None else options.strength)
        return smc.feynman_kac(plain, potential, particles=options.particles, **rules)
    if options.product is None:
        target = tempered(plain.denoiser, options.temperature)
    else:
        target = blended(plain.denoiser, options.product)
    return smc.corrected(dataclasses.replace(plain, denoiser=target), particles=options.particles, **rules)


def report(
    options: argparse.Namespace, header: str, classifier: Any, plain: Sampler, particles: smc.FeynmanKac
) -> None:
    """Samples, prints a line a class, draws the images before and after, and the effective sizes."""
    labels = smc.repeat(jnp.asarray(options.labels, jnp.int32), options.particles)
    key, aim, value = jax.random.key(options.seed), _aim(options), options.reward or "ink"
    groups = "1 group" if len(options.labels) == 1 else f"{len(options.labels)} groups"
    print(f"{header}\n{aim}, {groups} of {options.particles} particles", flush=True)
    done = run(key, plain, particles, labels)
    print(table(done, REWARDS[value], labels, value))
    chosen = smc.final_resample(jax.random.key(options.seed + 1), done.out).x
    logits, (bare, steered) = classifier(chosen), done.seconds
    if options.product is None:
        read, what = metrics.accuracy(logits, labels), "the class"
    else:  # what is likely under several classes reads as any of them
        read, what = jnp.isin(logits.argmax(axis=-1), jnp.asarray(options.product)).mean(), "one of the classes"
    print(f"network calls     {particles.nfe} a particle; plain sampling: {plain.nfe}")
    print(f"second calls      {steered:.2f} s with particles, {bare:.2f} s without, {done.compiles} programs compiled")
    print(f"class agreement   {float(read):.1%} read as {what} asked for")
    plot.save(_pairs(done.before, chosen, options, aim), options.out)
    d, curve = done.out.diagnostics, options.out.with_name(f"{options.out.stem}-ess.png")
    plot.save(plot.ess_plot(d.ess / options.particles, d.resampled, labels=options.labels, title=aim), curve)
    print(f"pictures          {options.out}, {curve}")


def tempered(network: Denoiser, temperature: float) -> smc.Product:
    """The network's law to the power 1 / temperature."""
    return smc.annealed(network, 1 / temperature, mean=_mean(), variance=digits.SIGMA_DATA**2)


def blended(network: Denoiser, classes: Sequence[int]) -> smc.Product:
    """The geometric mean of the laws of several classes: what is likely under each of them."""
    experts = [fixed(network, label) for label in classes]
    means, shares = np.stack([_mean()] * len(classes)), np.full(len(classes), 1 / len(classes))
    return smc.product(experts, shares, means=means, variances=digits.SIGMA_DATA**2)


def run(key: Array, plain: Sampler, particles: smc.FeynmanKac, labels: Array) -> Run:
    """Both samplers twice, to tell compiling from running.

    Args:
        key: typed key.
        plain: without weights.
        particles: with them.
        labels: int32 [G*K] condition.
    """
    shape, seconds, results, compiles = (len(labels), *digits.SHAPE), [], [], 0
    for sampler in (plain, particles):
        for _ in range(2):
            with count_compiles() as counted:
                start = time.perf_counter()
                result = jax.block_until_ready(sample(key, sampler, shape, cond=labels))
                spent = time.perf_counter() - start
            compiles = counted.count
        seconds.append(spent)
        results.append(result)
    return Run(results[0], results[1], (seconds[0], seconds[1]), compiles)


def table(done: Run, values: Callable[[Array, Array], Array], labels: Array, name: str) -> str:
    """A line a class: a number of the images before and after, effective particles, resamplings, families, log Z."""
    out, d = done.out, done.out.diagnostics
    groups, k = out.log_w.shape
    before = np.asarray(values(done.before, labels)).reshape(groups, k).mean(axis=1)
    after = np.asarray(out.mean(values(out.x, labels)))
    families = smc.variances(out, jnp.zeros(groups * k)).families
    lines = [f"class  {name + ' before':>18}  after   ESS/K at the end, lowest   resampled   families    log Z"]
    for g in range(groups):
        share = np.asarray(d.ess[g]) / k
        lines.append(
            f"{int(labels[g * k]):5d}  {before[g]:18.2f} {after[g]:6.2f} {share[-1]:18.2f} {share.min():7.2f} "
            f"{int(d.resampled[g].sum()):11d} {int(families[g]):10d} {float(out.log_z[g]):8.2f}"
        )
    return "\n".join(lines)


def _pairs(before: Array, after: Array, options: argparse.Namespace, aim: str) -> Any:
    """Two rows a group: samples of the plain model, and particles."""
    k, columns = options.particles, min(COLUMNS, options.particles)
    rows = [np.asarray(x).reshape(-1, k, *digits.SHAPE)[:, :columns] for x in (before, after)]
    joint = None if options.product is None else "x".join(map(str, options.product))
    names = [name for label in options.labels for name in (f"{label} before", f"{joint or label} after")]
    images = np.stack(rows, axis=1).reshape(-1, *digits.SHAPE)
    return plot.image_grid(images, len(names), labels=names, title=f"{aim}: plain samples, and particles")


def _aim(options: argparse.Namespace) -> str:
    if options.reward is not None:
        return f"{options.reward} times {1.0 if options.strength is None else options.strength:g}"
    if options.temperature is not None:
        return f"temperature {options.temperature:g}"
    return "product of classes " + ", ".join(map(str, options.product))


def _mean() -> np.ndarray:
    return digits.load().mean.reshape(digits.SHAPE)
