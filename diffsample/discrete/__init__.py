"""Masked (absorbing) diffusion over tokens: one engine, and every decoder as a choice of policy, proposal and
corrector.

A policy says which positions to reveal and when, a proposal what to draw, a corrector what to draw again;
`Decoder(model, policy, proposal, corrector)` is a sampler that `diffsample.sample` runs over x int32 [B, L].
"""

from diffsample.discrete.categorical import CoarseGumbel, gumbel_max, inverse_cdf
from diffsample.discrete.correctors import Gibbs, Informed
from diffsample.discrete.decoder import Context, Decoded, Decoder, DecoderView, Policy, Reveal, Selection
from diffsample.discrete.drafted import blockwise, low_confidence, maskgit, path_planning
from diffsample.discrete.draws import Draws, Keyed
from diffsample.discrete.gridded import ancestral, asynchronous, euler, trapezoidal
from diffsample.discrete.model import Laws, MaskedModel, from_logits
from diffsample.discrete.ordered import cosine_sizes, dyadic, equal_sizes, first_hitting, given_order
from diffsample.discrete.proposals import Extrapolated, Temperature, TopK, TopP, chain, greedy
from diffsample.discrete.remasking import (
    flow_corrector,
    forward_backward,
    remask_at_most,
    remask_loop,
    remask_rescaled,
    remask_unsure,
    remasking,
)
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
from diffsample.discrete.scored import best_first, confidence, entropy_bounded, margin, negative_entropy, threshold

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
    "Gibbs",
    "Informed",
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
    "best_first",
    "blockwise",
    "chain",
    "confidence",
    "cosine_sizes",
    "dyadic",
    "entropy_bounded",
    "equal_sizes",
    "euler",
    "first_hitting",
    "flow_corrector",
    "forward_backward",
    "from_logits",
    "given_order",
    "greedy",
    "gumbel_max",
    "inverse_cdf",
    "levels",
    "low_confidence",
    "margin",
    "maskgit",
    "negative_entropy",
    "path_planning",
    "remask_at_most",
    "remask_loop",
    "remask_rescaled",
    "remask_unsure",
    "remasking",
    "threshold",
    "trapezoidal",
]
