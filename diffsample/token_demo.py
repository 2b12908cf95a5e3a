"""`python -m diffsample --model digit-tokens`: the shipped digits as tokens, by any masked decoder, judged and drawn.

The figures are those of the continuous digits model: Frechet distance of the pixels to the real digits and agreement of
the classifier with the class asked for; besides, network calls a sequence and bits a token.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence
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
from diffsample.token_choices import DECODERS, LENGTH, decoder

CHUNK, JUDGED, COLUMNS = 500, 200, 10
COMPARED = ("first-hitting", "extrapolated", "redrawn", "cosine", "trapezoidal", "entropy", "low-confidence", "remask")
BUDGETS = (4, 8, 16, 32, 64)
SAY = "{} (default: %(default)s)".format


class Judged(NamedTuple):
    """What a run is worth; a row of a comparison."""

    solver: str
    calls: float  # a sequence, on average
    frechet: float
    agreement: float
    bits: float  # a token, under the model


def parser(build: Callable[..., argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Options of the command; `build` makes an empty parser."""
    options = build(
        prog="python -m diffsample --model digit-tokens",
        description="sample the shipped digits as 64 tokens of 17 grey levels",
        allow_abbrev=False,
    )
    options.add_argument("--decoder", choices=DECODERS, default="first-hitting", help=SAY("masked decoder"))
    options.add_argument("--updates", type=int, default=LENGTH, help=SAY("updates, each at most one call"))
    add_shared(options, Path("digits.png"))
    return options


def compare_parser(build: Callable[..., argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Options of `compare --model digit-tokens`."""
    options = build(
        prog="python -m diffsample compare --model digit-tokens",
        description="compare masked decoders of the shipped digits at equal numbers of updates, with the same keys",
        allow_abbrev=False,
    )
    what = "masked decoders"
    options.add_argument("--decoders", nargs="+", choices=DECODERS, default=list(COMPARED), help=SAY(what))
    options.add_argument(
        "--calls", nargs="+", type=int, default=list(BUDGETS), help=SAY("updates, at most one call each")
    )
    add_shared(options, Path("compare.png"))
    return options


def add_shared(options: argparse.ArgumentParser, out: Path) -> None:
    """Options of both commands."""
    options.add_argument("--temperature", type=float, default=1.0, help=SAY("of the tokens"))
    options.add_argument("--top-p", type=float, default=1.0, help=SAY("mass kept of each law"))
    options.add_argument("--scale", type=float, default=1.0, help=SAY("guidance scale, 1 is the conditional model"))
    options.add_argument("--number", type=int, default=1000, help=SAY("samples drawn and judged"))
    classes = list(range(digits.NULL))
    options.add_argument(
        "--labels", nargs="+", type=int, choices=classes, default=classes, help=SAY("classes, in equal numbers")
    )
    options.add_argument("--seed", type=int, default=0, help=SAY("decides the samples"))
    options.add_argument("--out", type=Path, default=out, help=SAY("picture to write, a PNG"))


def check(options: argparse.Namespace) -> None:
    """Raise where the shared options cannot be."""
    if options.number < 2 * len(options.labels):
        raise ValueError(f"--number {options.number} is too few: two or more of each of {len(options.labels)} classes")
    if options.out.suffix.lower() != ".png" or not options.out.parent.is_dir():
        raise ValueError(f"--out {options.out} must be a file name that ends in .png, in a folder that exists")
    plot.figure_class()


def plan(options: argparse.Namespace) -> Callable[[], None]:
    """Everything checked and built, ready to run."""
    check(options)
    return partial(run, options, built(options, options.decoder, options.updates))


def plan_compare(options: argparse.Namespace) -> Callable[[], None]:
    """Every decoder of the comparison, built and checked."""
    check(options)
    samplers = [(name, calls, built(options, name, calls)) for name in options.decoders for calls in options.calls]
    return partial(run_compare, options, samplers)


def built(options: argparse.Namespace, name: str, updates: int) -> Any:
    """A decoder with the options that all share."""
    return decoder(name, updates, temperature=options.temperature, top_p=options.top_p, scale=options.scale)


def judge(name: str, out: Any, labels: Array) -> Judged:
    """Quality of decoded tokens; bits a token under the model, of the first samples."""
    models = digits.load()
    reference = demo.Judge(models.class_means, models.class_covs, models.classifier)
    frechet, agreement = demo.quality(digit_tokens.to_images(out.x), labels, reference)
    few = slice(None, JUDGED)
    bound = discrete.any_order_bound(jax.random.key(1), digit_tokens.model(), out.x[few], labels[few], draws=16)
    bits = float(jnp.mean(bound.value)) / LENGTH / math.log(2)
    return Judged(name, float(np.mean(out.calls)), frechet, agreement, bits)


def drawn(options: argparse.Namespace, sampler: Any, labels: Array) -> Any:
    """Decoded tokens, computed."""
    key = jax.random.key(options.seed)
    return jax.block_until_ready(sample(key, sampler, (options.number, LENGTH), cond=labels, chunk=CHUNK))


def labels_of(options: argparse.Namespace) -> Array:
    """A class for each sample."""
    return jnp.asarray(np.resize(options.labels, options.number), jnp.int32)


def floor_of(labels: Array) -> float:
    """The distance of as many perfect samples."""
    models = digits.load()
    return demo.frechet_floor(labels, demo.Judge(models.class_means, models.class_covs, models.classifier))


def run_compare(options: argparse.Namespace, samplers: Sequence[tuple[str, int, Any]]) -> None:
    """Prints a line as soon as it is known, then the tables, and draws the plot."""
    labels, table = labels_of(options), []
    for name, _, sampler in samplers:
        found = judge(name, drawn(options, sampler, labels), labels)
        table.append(found._replace(calls=round(found.calls)))
        print(f"{name:20} {found.calls:5.1f} calls {found.frechet:9.4f} {found.agreement:7.1%} "
              f"{found.bits:7.3f} bits a token", flush=True)  # fmt: skip
    floor = floor_of(labels)
    said = f"Frechet distance ({floor:.4f} expected of {len(labels)} perfect samples)"
    for title, column in ((said, "frechet"), ("class agreement", "agreement"), ("bits a token, of the model", "bits")):
        print(demo.tabulated(title, table, column, options.calls))
    title = f"{len(labels)} samples of the digits as tokens"
    plot.save(plot.quality_plot(table, floor, title), options.out)
    print(f"picture           {options.out}")


def run(options: argparse.Namespace, sampler: Any) -> None:
    """Samples, judges, draws and prints."""
    labels, seconds = labels_of(options), []
    for _ in range(2):
        start = time.perf_counter()
        out = drawn(options, sampler, labels)
        seconds.append(time.perf_counter() - start)
    found, fit = judge(options.decoder, out, labels), digit_tokens.load()
    print(f"decoder           {options.decoder}, {options.updates} updates")
    print(f"network calls     {found.calls:.1f} a sequence on average, of {LENGTH} tokens")
    print(f"time              {seconds[0]:.2f} s, again {seconds[1]:.2f} s for {options.number} samples")
    print(f"bits a token      {found.bits:.3f} of the samples; {fit.bits:.3f} of held-out digits, "
          f"{fit.bits_training:.3f} of those trained on; {math.log2(digit_tokens.VOCAB):.3f} is uniform")  # fmt: skip
    print(f"Frechet distance  {found.frechet:.4f} in pixel space, against real digits of these classes")
    print(f"                  {floor_of(labels):.4f} expected of so many perfect samples")
    print(f"class agreement   {found.agreement:.1%} read as the class asked for "
          f"(real digits: {digits.load().accuracy:.1%})")  # fmt: skip
    images, count = digit_tokens.to_images(out.x), len(options.labels)
    columns = min(COLUMNS, len(images) // count)
    rows = np.concatenate([np.asarray(images[k::count][:columns]) for k in range(count)])
    title = f"{options.decoder}, {found.calls:.1f} network calls"
    plot.save(plot.image_grid(rows, count, labels=options.labels, title=title), options.out)
    print(f"picture           {options.out}")
