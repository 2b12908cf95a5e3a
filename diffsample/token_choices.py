"""The masked decoders that the command line knows by name, on the shipped digits as tokens.

A row is what turns (model, number of updates, filter of the laws) into a sampler; adaptive decoders read the number as
a wish.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np

from diffsample import discrete
from diffsample.nets import digit_tokens

LENGTH = digit_tokens.LENGTH
BLOCKS, ETA = 4, 0.02  # blocks of the semi-autoregressive decoder; share masked again

Build: TypeAlias = Callable[[Any, int, Any], Any]


def linear(steps: int) -> np.ndarray:
    """Mask probabilities of the linear schedule."""
    return discrete.levels(discrete.Polynomial(), steps)


def reveal(policy: Callable[[int], Any], own: Any = None) -> Build:
    """A decoder from a policy of the number of updates, and the proposal that belongs to it."""

    def build(model: Any, updates: int, filters: Any) -> discrete.Decoder:
        chosen = policy(updates)
        if hasattr(chosen, "proposal"):  # it draws the tokens itself
            chosen = type(chosen)(**{**vars(chosen), "proposal": filters})
        return discrete.Decoder(model, chosen, filters if own is None else discrete.chain(own, filters))

    return build


def speculate(model: Any, updates: int, filters: Any) -> Any:
    """Speculative decoding, as many drafts a round as groups of first-hitting would hold; far-apart pixels first."""
    if filters != discrete.chain(discrete.Temperature(1.0), discrete.TopP(1.0)):
        raise ValueError("--decoder speculative is exact for the model's own law: it takes no --temperature or --top-p")
    order = [int(f"{i:06b}"[::-1], 2) for i in range(LENGTH)]
    return discrete.speculative(model, LENGTH, drafts=max(2, LENGTH // updates), order=order)


def rows_of(updates: int) -> list[int]:
    """Reading order, in equal groups."""
    return [i * updates // LENGTH for i in range(LENGTH)]


def corrected(updates: int) -> Any:
    """First-hitting in half as many groups, one redraw each."""
    return discrete.redrawn(discrete.first_hitting(LENGTH, updates=max(1, updates // 2)), 1)


def blocks(updates: int) -> Any:
    """Blocks of two rows of pixels, the most confident first in each."""
    inner = discrete.best_first(LENGTH // BLOCKS, updates=max(1, updates // BLOCKS))
    return discrete.blockwise(inner, LENGTH, LENGTH // BLOCKS)


DECODERS: Mapping[str, Build] = {
    "first-hitting": reveal(lambda n: discrete.first_hitting(LENGTH, updates=n)),
    "extrapolated": reveal(lambda n: discrete.first_hitting(LENGTH, updates=n), discrete.Extrapolated()),
    "redrawn": reveal(corrected),
    "reading-order": reveal(lambda n: discrete.given_order(rows_of(n))),
    "dyadic": reveal(lambda n: discrete.dyadic(LENGTH)),
    "ancestral": reveal(lambda n: discrete.ancestral(linear(n))),
    "cosine": reveal(lambda n: discrete.ancestral(discrete.levels(discrete.Cosine(), n))),
    "euler": reveal(lambda n: discrete.euler(discrete.Cosine(), np.linspace(1.0, 0.0, n + 1))),
    "asynchronous": reveal(lambda n: discrete.asynchronous(linear(n), LENGTH)),
    "trapezoidal": reveal(lambda n: discrete.trapezoidal(linear(max(1, n // 2))), discrete.Extrapolated(linear=True)),
    "confidence": reveal(lambda n: discrete.best_first(LENGTH, discrete.confidence, updates=n)),
    "margin": reveal(lambda n: discrete.best_first(LENGTH, discrete.margin, updates=n)),
    "entropy": reveal(lambda n: discrete.best_first(LENGTH, discrete.negative_entropy, updates=n)),
    "threshold": reveal(lambda n: discrete.threshold(LENGTH, math.log(n / LENGTH))),
    "entropy-bounded": reveal(lambda n: discrete.entropy_bounded(LENGTH, LENGTH / n - 1)),
    "blockwise": reveal(blocks),
    "low-confidence": reveal(lambda n: discrete.low_confidence(LENGTH, updates=n)),
    "maskgit": reveal(lambda n: discrete.maskgit(LENGTH, n)),
    "path-planning": reveal(lambda n: discrete.path_planning(LENGTH, n)),
    "remask": reveal(lambda n: discrete.remask_at_most(linear(n), ETA)),
    "remask-rescaled": reveal(lambda n: discrete.remask_rescaled(linear(n), ETA)),
    "remask-unsure": reveal(lambda n: discrete.remask_unsure(linear(n))),
    "remask-loop": reveal(lambda n: discrete.remask_loop(n)),
    "remask-asynchronous": reveal(
        lambda n: discrete.asynchronous_remasking(discrete.remask_at_most(linear(n), ETA), LENGTH)
    ),
    "forward-backward": reveal(lambda n: discrete.forward_backward(linear(n))),
    "flow": reveal(lambda n: discrete.flow_corrector(linear(n), 1.0)),
    "speculative": speculate,
}


def decoder(name: str, updates: int, *, temperature: float = 1.0, top_p: float = 1.0, scale: float = 1.0) -> Any:
    """A sampler of the shipped model by name, its laws filtered and guided.

    Raises:
        ValueError: updates outside 1 .. 64, or a number that this decoder cannot use.
    """
    from diffsample.smc import token_guidance

    if not 1 <= updates <= LENGTH:
        raise ValueError(f"{updates} updates must lie in 1 .. {LENGTH}, one token a call")
    model: Any = digit_tokens.model()
    if scale != 1.0:
        model = token_guidance(model, jnp.int32(digit_tokens.NULL), scale)
    filters = discrete.chain(discrete.Temperature(temperature), discrete.TopP(top_p))
    return DECODERS[name](model, updates, filters)
