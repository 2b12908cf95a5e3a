"""Masked (absorbing) diffusion over tokens: one engine, and every decoder as a choice of policy, proposal and
corrector.

A policy says which positions to reveal and when, a proposal what to draw, a corrector what to draw again;
`Decoder(model, policy, proposal, corrector)` is a sampler that `diffsample.sample` runs over x int32 [B, L].
"""

from diffsample.discrete.any_subset import Speculative, speculative
from diffsample.discrete.block_drafts import Verified, verify_block
from diffsample.discrete.categorical import CoarseGumbel, gumbel_max, inverse_cdf
from diffsample.discrete.classifier_guidance import classifier_guided, classifier_guided_by_gradient
from diffsample.discrete.correctors import Gibbs, Informed
from diffsample.discrete.decoder import Decoded, Decoder, DecoderView
from diffsample.discrete.drafted import blockwise, low_confidence, maskgit, path_planning
from diffsample.discrete.drafting import AcceptanceStop, EntropyStop, KSeq, acceptance, k_seq, residual, select_draft
from diffsample.discrete.draws import Draws, Keyed
from diffsample.discrete.flips import asynchronous_remasking
from diffsample.discrete.gridded import ancestral, asynchronous, euler, trapezoidal
from diffsample.discrete.jumping import next_jump, tau_leaping
from diffsample.discrete.likelihood import any_order_bound, exact_bound, importance_weighted_bound, log_likelihood
from diffsample.discrete.losses import any_order_loss, cross_entropy, masked_loss, score_entropy, set_weights
from diffsample.discrete.marginal_training import consistency_loss, energy_loss, gibbs_chain
from diffsample.discrete.marginals import BlockGibbs, MarginalModel
from diffsample.discrete.model import Laws, MaskedModel, from_logits
from diffsample.discrete.ordered import cosine_sizes, dyadic, equal_sizes, first_hitting, given_order
from diffsample.discrete.policy import Policy, Reveal, Selection
from diffsample.discrete.prompts import Prompts, aligned_left, aligned_right, examine
from diffsample.discrete.proposals import Context, Extrapolated, Temperature, TopK, TopP, chain, greedy
from diffsample.discrete.redrawing import LastGroup, redrawn
from diffsample.discrete.remdm import (
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
from diffsample.discrete.score import uniform_euler, uniform_tweedie
from diffsample.discrete.scored import best_first, confidence, entropy_bounded, margin, negative_entropy, threshold
from diffsample.discrete.uniform import leave_one_out_step, posterior_step, uniform_ancestral
from diffsample.discrete.windows import sliding_windows

__all__ = [
    "AcceptanceStop",
    "BlockGibbs",
    "Bounded",
    "CoarseGumbel",
    "Context",
    "Cosine",
    "Decoded",
    "Decoder",
    "DecoderView",
    "Draws",
    "EntropyStop",
    "Extrapolated",
    "Geometric",
    "Gibbs",
    "Informed",
    "KSeq",
    "Keyed",
    "LastGroup",
    "Laws",
    "LogLinear",
    "MarginalModel",
    "MaskedModel",
    "Policy",
    "Polynomial",
    "Prompts",
    "Reveal",
    "ReverseCosine",
    "Schedule",
    "Selection",
    "Speculative",
    "Temperature",
    "TopK",
    "TopP",
    "Verified",
    "acceptance",
    "aligned_left",
    "aligned_right",
    "ancestral",
    "any_order_bound",
    "any_order_loss",
    "asynchronous",
    "asynchronous_remasking",
    "best_first",
    "blockwise",
    "chain",
    "classifier_guided",
    "classifier_guided_by_gradient",
    "confidence",
    "consistency_loss",
    "cosine_sizes",
    "cross_entropy",
    "dyadic",
    "energy_loss",
    "entropy_bounded",
    "equal_sizes",
    "euler",
    "exact_bound",
    "examine",
    "first_hitting",
    "flow_corrector",
    "forward_backward",
    "from_logits",
    "gibbs_chain",
    "given_order",
    "greedy",
    "gumbel_max",
    "importance_weighted_bound",
    "inverse_cdf",
    "k_seq",
    "leave_one_out_step",
    "levels",
    "log_likelihood",
    "low_confidence",
    "margin",
    "masked_loss",
    "maskgit",
    "negative_entropy",
    "next_jump",
    "path_planning",
    "posterior_step",
    "redrawn",
    "remask_at_most",
    "remask_loop",
    "remask_rescaled",
    "remask_unsure",
    "remasking",
    "residual",
    "score_entropy",
    "select_draft",
    "set_weights",
    "sliding_windows",
    "speculative",
    "tau_leaping",
    "threshold",
    "trapezoidal",
    "uniform_ancestral",
    "uniform_euler",
    "uniform_tweedie",
    "verify_block",
]
