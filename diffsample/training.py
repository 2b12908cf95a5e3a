"""A small trainer, and the command that makes the models shipped in `diffsample.nets`.

    python -m diffsample.training digits --out DIR
    python -m diffsample.training digit-tokens --out DIR

The denoiser is trained in the coordinates x + s n, with the preconditioning of Karras et al. 2022 (arXiv 2206.00364).
Its regression target is the exact posterior mean over the data set, E[x0 | x + s n, label], instead of the one x0 that
was noised: same minimiser, much less variance (Xu, Tong and Jaakkola 2023, arXiv 2302.00670).
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from diffsample import checkpoint, metrics
from diffsample.nets import digits

PyTree: TypeAlias = Any
Loss: TypeAlias = Callable[[PyTree, Array, PyTree], Array]


class Data(NamedTuple):
    """A labelled data set."""

    images: Array  # [N, H, W, C] float32 in [-1, 1]
    labels: Array  # [N] int32


class Fit(NamedTuple):
    """What `fit` returns."""

    params: PyTree  # exponential moving average of the parameters
    losses: np.ndarray  # [steps] float32


def fit(
    key: Array, loss: Loss, params: PyTree, data: PyTree, steps: int, rate: float = 2e-3, halflife: float = 0.02
) -> Fit:
    """Minimises `loss(params, key, data)` with AdamW, a warmed-up cosine rate and an average of the parameters.

    Args:
        key: typed key; step i draws with `fold_in(key, i)`, so that a run is decided by its key.
        loss: scalar loss of (params, key, data); it draws its own batch.
        params: initial parameters.
        data: arrays handed to `loss`.
        steps: optimiser steps.
        rate: peak learning rate.
        halflife: of the moving average, as a fraction of the steps done so far (Karras et al. 2024, arXiv 2312.02696,
            section 3.1: a power-function average forgets the start by itself).

    Returns: averaged parameters and the loss of every step.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, min(200, steps // 10 + 1), steps + 1)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.99, weight_decay=1e-4))
    average_rate = math.log(2.0) / math.log1p(halflife)

    @partial(jax.jit, donate_argnums=0)
    def step(carry, i):
        params, average, state = carry
        value, gradient = jax.value_and_grad(loss)(params, jax.random.fold_in(key, i), data)
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        weight = jnp.minimum(1.0, average_rate / (i + 1))
        average = jax.tree.map(lambda a, p: a + weight * (p - a), average, params)
        return (params, average, state), value

    carry = (jax.tree.map(jnp.copy, params), jax.tree.map(jnp.copy, params), optimizer.init(params))
    losses = []
    for i in _progress(range(steps)):
        carry, value = step(carry, i)
        losses.append(value)
    return Fit(carry[1], np.asarray(jnp.stack(losses)))


def posterior_mean(x: Array, s: Array, label: Array, data: Data) -> Array:
    """E[x0 | x, label] when x = x0 + s n and x0 is a member of the data set, drawn uniformly.

    Args:
        x: [B, H, W, C]; s: [B]; label: int32 [B], where `digits.NULL` means any class; data: the data set.

    Returns: [B, H, W, C], the ideal denoiser (Karras et al. 2022, arXiv 2206.00364, eq. 57).
    """
    members = data.images.reshape(data.images.shape[0], -1)
    logits = x.reshape(x.shape[0], -1) @ members.T - 0.5 * jnp.sum(members**2, axis=1)[None, :]
    possible = (label[:, None] == data.labels[None, :]) | (label[:, None] == digits.NULL)
    weights = jax.nn.softmax(jnp.where(possible, logits / s[:, None] ** 2, -jnp.inf), axis=1)
    return (weights @ members).reshape(x.shape)


def draw_levels(key: Array, batch: int) -> Array:
    """Noise-to-signal ratios s [batch]: three quarters log-normal around 0.4, the rest log-uniform in 0.002 .. 160."""
    key_kind, key_normal, key_uniform = jax.random.split(key, 3)
    normal = -0.9 + jax.random.normal(key_normal, (batch,))
    uniform = jax.random.uniform(key_uniform, (batch,), minval=math.log(0.002), maxval=math.log(160.0))
    log_s = jnp.where(jax.random.uniform(key_kind, (batch,)) < 0.75, normal, uniform)
    return jnp.exp(jnp.clip(log_s, math.log(0.002), math.log(160.0)))


def drop_labels(key: Array, labels: Array, rate: float) -> Array:
    """Each label replaced by `digits.NULL` with probability `rate` (Ho and Salimans 2022, arXiv 2207.12598)."""
    return jnp.where(jax.random.bernoulli(key, rate, labels.shape), digits.NULL, labels)


def denoising_loss(params: PyTree, key: Array, data: Data, batch: int = 128, dropout: float = 0.15) -> Array:
    """Mean square error of F, which is the weight 1 / c_out^2 on the error of D (arXiv 2206.00364, eq. 8)."""
    key_index, key_s, key_noise, key_drop = jax.random.split(key, 4)
    index = jax.random.randint(key_index, (batch,), 0, data.images.shape[0])
    label = drop_labels(key_drop, data.labels[index], dropout)
    s = draw_levels(key_s, batch)
    wide = s[:, None, None, None]
    x = data.images[index] + wide * jax.random.normal(key_noise, (batch, *digits.SHAPE))
    variance = wide**2 + digits.SIGMA_DATA**2
    c_skip, c_out = digits.SIGMA_DATA**2 / variance, wide * digits.SIGMA_DATA / jnp.sqrt(variance)
    target = (posterior_mean(x, s, label, data) - c_skip * x) / c_out
    return jnp.mean((digits.apply(params, x / jnp.sqrt(variance), jnp.log(s) / 4, label) - target) ** 2)


def classifier_loss(params: PyTree, key: Array, data: Data, batch: int = 128) -> Array:
    """Cross-entropy on clean digits, shifted by at most one pixel either way and given a little noise."""
    key_index, key_shift, key_noise = jax.random.split(key, 3)
    index = jax.random.randint(key_index, (batch,), 0, data.images.shape[0])
    shifts = jax.random.randint(key_shift, (batch, 2), 0, 3)
    images = jax.vmap(_shifted)(data.images[index], shifts)
    images = images + 0.1 * jax.random.normal(key_noise, images.shape)
    logits = digits.classify(params, images)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, data.labels[index]))


def _shifted(image: Array, shift: Array) -> Array:
    padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)), constant_values=-1.0)
    return jax.lax.dynamic_slice(padded, (shift[0], shift[1], 0), image.shape)


def digits_data() -> Data:
    """The 1797 scans of scikit-learn's digits (Alpaydin and Kaynak 1998, UCI), values 0..16 scaled to [-1, 1]."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("training needs the digits data: pip install 'diffsample[digits]'") from error
    bunch: Any = load_digits()
    images = np.asarray(bunch.images, np.float32)[..., None] / 8 - 1
    return Data(jnp.asarray(images), jnp.asarray(bunch.target, jnp.int32))


def train_digits(key: Array, steps: int, data: Data) -> PyTree:
    """Trains denoiser and classifier; returns the tree that `digits.load` reads (see its docstring)."""
    key_split, key_net, key_fit, key_judge, key_judge_fit = jax.random.split(key, 5)
    order = jax.random.permutation(key_split, data.images.shape[0])
    held, kept = (jax.tree.map(lambda a, i=i: a[i], data) for i in (order[:360], order[360:]))
    judge = fit(key_judge_fit, classifier_loss, _initial(digits.classifier_net, key_judge), kept, max(1, steps // 2))
    accuracy = metrics.accuracy(digits.classify(judge.params, held.images), held.labels)
    print(f"classifier: held-out accuracy {float(accuracy):.4f} on {held.labels.size} digits")
    result = fit(key_fit, denoising_loss, _initial(digits.denoiser_net, key_net), data, steps)
    print(f"denoiser: loss {np.mean(result.losses[:20]):.4f} -> {np.mean(result.losses[-200:]):.4f}")
    return {
        "denoiser": jax.tree.map(np.asarray, nnx.to_pure_dict(result.params)),
        "classifier": jax.tree.map(np.asarray, nnx.to_pure_dict(judge.params)),
        "accuracy": np.float32(accuracy),
        "sigma_data": np.float32(np.std(np.asarray(data.images, np.float64))),
        **_moments(data),
    }


def _initial(build: Callable[[nnx.Rngs], nnx.Module], key: Array) -> PyTree:
    return nnx.state(build(nnx.Rngs(key)), nnx.Param)


def _moments(data: Data) -> dict[str, np.ndarray]:
    flat, labels = np.asarray(data.images).reshape(data.images.shape[0], -1), np.asarray(data.labels)
    mean, cov = metrics.moments(flat)
    by_class = [metrics.moments(flat[labels == label]) for label in range(digits.NULL)]
    means, covs = (np.stack(parts) for parts in zip(*by_class, strict=True))
    named = {"mean": mean, "cov": cov, "class_means": means, "class_covs": covs}
    return {name: np.asarray(value, np.float32) for name, value in named.items()}


def _progress(steps: Iterable[int]) -> Iterable[int]:
    try:
        from tqdm import tqdm
    except ImportError:
        return steps
    return tqdm(steps, mininterval=1.0, file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: `python -m diffsample.training digits|digit-tokens [--out DIR] [--steps N] [--seed S]`."""
    from diffsample.training_tokens import train_digit_tokens

    train = {"digits": train_digits, "digit-tokens": train_digit_tokens}
    parser = argparse.ArgumentParser(
        prog="python -m diffsample.training", description="Trains the models that ship with the package."
    )
    parser.add_argument("model", choices=train, help="what to train")
    parser.add_argument("--out", type=Path, help="checkpoint directory (default: ./ and the model's name)")
    parser.add_argument("--steps", type=int, default=5000, help="optimiser steps (default: 5000)")
    parser.add_argument("--seed", type=int, default=0, help="decides the run (default: 0)")
    options = parser.parse_args(argv)
    start = time.monotonic()
    out = options.out or Path(options.model)
    checkpoint.save(out, train[options.model](jax.random.key(options.seed), options.steps, digits_data()))
    print(f"saved {out} after {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
