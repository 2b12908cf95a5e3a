"""Masked (absorbing) diffusion over tokens: one engine, and every decoder as a choice of policy, proposal and
corrector.

A policy says which positions to reveal and when, a proposal what to draw, a corrector what to draw again;
`Decoder(model, policy, proposal, corrector)` is a sampler that `diffsample.sample` runs over x int32 [B, L].
"""

from diffsample.discrete.categorical import CoarseGumbel, gumbel_max, inverse_cdf
from diffsample.discrete.decoder import Context, Decoded, Decoder, DecoderView, Policy, Reveal, Selection
from diffsample.discrete.draws import Draws, Keyed
from diffsample.discrete.gridded import ancestral, asynchronous, euler, trapezoidal
from diffsample.discrete.model import Laws, MaskedModel, from_logits
from diffsample.discrete.ordered import cosine_sizes, dyadic, equal_sizes, first_hitting, given_order
from diffsample.discrete.proposals import Extrapolated, Temperature, TopK, TopP, chain, greedy
from diffsample.discrete.schedules import (
    Bounded,
    Cosine,
    Geometric,
    LogLinear,
    Polynomial,
    ReverseCosine,
    Schedule,
    levels,
)

__all__ = [
    "Bounded",
    "CoarseGumbel",
    "Context",
    "Cosine",
    "Decoded",
    "Decoder",
    "DecoderView",
    "Draws",
    "Extrapolated",
    "Geometric",
    "Keyed",
    "Laws",
    "LogLinear",
    "MaskedModel",
    "Policy",
    "Polynomial",
    "Reveal",
    "ReverseCosine",
    "Schedule",
    "Selection",
    "Temperature",
    "TopK",
    "TopP",
    "ancestral",
    "asynchronous",
    "chain",
    "cosine_sizes",
    "dyadic",
    "equal_sizes",
    "euler",
    "first_hitting",
    "from_logits",
    "given_order",
    "greedy",
    "gumbel_max",
    "inverse_cdf",
    "levels",
    "trapezoidal",
]
