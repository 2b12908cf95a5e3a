"""`python -m diffsample --model digit-tokens`: the shipped digits as tokens, by any masked decoder, judged and drawn.

The figures are those of the continuous digits model: Frechet distance of the pixels to the real digits and agreement of
the classifier with the class asked for; besides, network calls a sequence and bits a token.
"""

import argparse
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffsample import demo, discrete, plot
from diffsample.nets import digit_tokens, digits
from diffsample.sampling import sample

LENGTH = digit_tokens.LENGTH
CHUNK, JUDGED, COLUMNS = 500, 200, 10


def linear(steps: int) -> np.ndarray:
    """Mask probabilities of the linear schedule."""
    return discrete.levels(discrete.Polynomial(), steps)


def extrapolated(steps: int) -> tuple[Any, Any]:
    """First-hitting in groups, extrapolated."""
    return discrete.first_hitting(LENGTH, updates=steps), discrete.Extrapolated()


def trapezoidal(steps: int) -> tuple[Any, Any]:
    """The trapezoidal method, half as many steps of two calls."""
    return discrete.trapezoidal(linear(max(1, steps // 2))), discrete.Extrapolated(linear=True)


# name -> function of the number of updates; a policy, or a policy and its proposal
DECODERS: Mapping[str, Callable[[int], Any]] = {
    "first-hitting": lambda n: discrete.first_hitting(LENGTH, updates=n),
    "extrapolated": extrapolated,
    "ancestral": lambda n: discrete.ancestral(linear(n)),
    "cosine": lambda n: discrete.ancestral(discrete.levels(discrete.Cosine(), n)),
    "asynchronous": lambda n: discrete.asynchronous(linear(n), LENGTH),
    "trapezoidal": trapezoidal,
    "confidence": lambda n: discrete.best_first(LENGTH, discrete.confidence, updates=n),
    "margin": lambda n: discrete.best_first(LENGTH, discrete.margin, updates=n),
    "entropy": lambda n: discrete.best_first(LENGTH, discrete.negative_entropy, updates=n),
    "entropy-bounded": lambda n: discrete.entropy_bounded(LENGTH, 64 / n - 1),
    "low-confidence": lambda n: discrete.low_confidence(LENGTH, updates=n),
    "maskgit": lambda n: discrete.maskgit(LENGTH, n),
    "path-planning": lambda n: discrete.path_planning(LENGTH, n),
    "remask": lambda n: discrete.remask_at_most(linear(n), 0.02),
}


class Judged(NamedTuple):
    """What a run is worth."""

    calls: float
    bits: float
    frechet: float
    agreement: float


def parser(build: Callable[..., argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Options of the command; `build` makes an empty parser."""
    options = build(
        prog="python -m diffsample --model digit-tokens",
        description="sample the shipped digits as 64 tokens of 17 grey levels",
        allow_abbrev=False,
    )
    say = "{} (default: %(default)s)".format
    options.add_argument("--decoder", choices=DECODERS, default="first-hitting", help=say("masked decoder"))
    options.add_argument("--updates", type=int, default=LENGTH, help=say("updates, each at most one call"))
    options.add_argument("--temperature", type=float, default=1.0, help=say("of the tokens"))
    options.add_argument("--top-p", type=float, default=1.0, help=say("mass kept of each law"))
    options.add_argument("--scale", type=float, default=1.0, help=say("guidance scale, 1 is the conditional model"))
    options.add_argument("--number", type=int, default=1000, help=say("samples drawn and judged"))
    classes = list(range(digits.NULL))
    options.add_argument(
        "--labels", nargs="+", type=int, choices=classes, default=classes, help=say("classes, in equal numbers")
    )
    options.add_argument("--seed", type=int, default=0, help=say("decides the samples"))
    options.add_argument("--out", type=Path, default=Path("digits.png"), help=say("picture to write, a PNG"))
    return options


def plan(options: argparse.Namespace) -> Callable[[], None]:
    """Everything checked and built, ready to run."""
    if options.number < 2 * len(options.labels):
        raise ValueError(f"--number {options.number} is too few: two or more of each of {len(options.labels)} classes")
    if not 1 <= options.updates <= LENGTH:
        raise ValueError(f"--updates {options.updates} must lie in 1 .. {LENGTH}, one token a call")
    if options.out.suffix.lower() != ".png" or not options.out.parent.is_dir():
        raise ValueError(f"--out {options.out} must be a file name that ends in .png, in a folder that exists")
    plot.figure_class()
    filters = [discrete.Temperature(options.temperature), discrete.TopP(options.top_p)]
    return partial(run, options, decoder(options.decoder, options.updates, filters, options.scale))


def decoder(name: str, updates: int, filters: list[Any], scale: float = 1.0) -> discrete.Decoder:
    """A decoder of the shipped model by name, its laws filtered and guided."""
    from diffsample.smc import token_guidance

    made = DECODERS[name](updates)
    policy, own = made if isinstance(made, tuple) else (made, None)
    if hasattr(policy, "proposal"):  # it draws the tokens itself
        policy = type(policy)(**{**vars(policy), "proposal": discrete.chain(*filters)})
    model: Any = digit_tokens.model()
    if scale != 1.0:
        model = token_guidance(model, jnp.int32(digit_tokens.NULL), scale)
    return discrete.Decoder(model, policy, discrete.chain(*([own] if own is not None else []), *filters))


def judge(key: Array, out: discrete.Decoded, labels: Array) -> Judged:
    """Quality of decoded tokens; bits a token under the model, of the first samples."""
    models = digits.load()
    reference = demo.Judge(models.class_means, models.class_covs, models.classifier)
    frechet, agreement = demo.quality(digit_tokens.to_images(out.x), labels, reference)
    few = slice(None, JUDGED)
    bound = discrete.any_order_bound(key, digit_tokens.model(), out.x[few], labels[few], draws=16)
    bits = float(jnp.mean(bound.value)) / LENGTH / math.log(2)
    return Judged(float(np.mean(out.calls)), bits, frechet, agreement)


def run(options: argparse.Namespace, sampler: discrete.Decoder) -> None:
    """Samples, judges, draws and prints."""
    labels = jnp.asarray(np.resize(options.labels, options.number), jnp.int32)
    key, seconds = jax.random.key(options.seed), []
    for _ in range(2):
        start = time.perf_counter()
        out = sample(key, sampler, (options.number, LENGTH), cond=labels, chunk=CHUNK)
        jax.block_until_ready(out)
        seconds.append(time.perf_counter() - start)
    found, fit = judge(jax.random.key(1), out, labels), digit_tokens.load()
    reference = demo.Judge(digits.load().class_means, digits.load().class_covs, digits.load().classifier)
    print(f"decoder           {options.decoder}, {options.updates} updates")
    print(f"network calls     {found.calls:.1f} a sequence on average, of {LENGTH} tokens")
    print(f"time              {seconds[0]:.2f} s, again {seconds[1]:.2f} s for {options.number} samples")
    print(f"bits a token      {found.bits:.3f} of the samples; {fit.bits:.3f} of held-out digits, "
          f"{fit.bits_training:.3f} of those trained on; {math.log2(digit_tokens.VOCAB):.3f} is uniform")  # fmt: skip
    print(f"Frechet distance  {found.frechet:.4f} in pixel space, against real digits of these classes")
    print(f"                  {demo.frechet_floor(labels, reference):.4f} expected of so many perfect samples")
    print(f"class agreement   {found.agreement:.1%} read as the class asked for "
          f"(real digits: {digits.load().accuracy:.1%})")  # fmt: skip
    images, count = digit_tokens.to_images(out.x), len(options.labels)
    columns = min(COLUMNS, len(images) // count)
    rows = np.concatenate([np.asarray(images[k::count][:columns]) for k in range(count)])
    title = f"{options.decoder}, {found.calls:.1f} network calls"
    plot.save(plot.image_grid(rows, count, labels=options.labels, title=title), options.out)
    print(f"picture           {options.out}")
