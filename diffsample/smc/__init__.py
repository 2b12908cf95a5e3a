"""Sequential Monte Carlo over any stochastic sampler: particles, weights, resampling, log-normalisers.

The loop (`filtering`: particles, potentials, policies) stands here; the families built on it have a folder each:
`resamplers`, `products` (of experts), `rewards`, `paths`, `tokens`, `estimators`. Every public name stands in `smc`.
"""

from diffsample.smc.chunking import InChunks, in_chunks
from diffsample.smc.clamps import about_mean, below_quantile, within
from diffsample.smc.diagnosing import Diagnostics
from diffsample.smc.estimators.estimates import (
    Estimate,
    calibrated_weights,
    chain_mean,
    expectation,
    normaliser,
    pooled,
    stein_controls,
)
from diffsample.smc.estimators.importance import (
    Adapted,
    GaussianMixture,
    adaptive_importance_sampling,
    density_controls,
    importance_sampling,
)
from diffsample.smc.estimators.variance import Variances, variances
from diffsample.smc.filtering import FeynmanKac, feynman_kac
from diffsample.smc.genealogy import Lagged, Recent, lagged, lineage
from diffsample.smc.particles import Particles, final_resample, repeat, select_best, select_one
from diffsample.smc.paths.conditional import ConditionalSMC, Sweep, ancestral_tracing, backward_sampling
from diffsample.smc.paths.conditional_resampling import (
    conditional_killing,
    conditional_multinomial,
    conditional_systematic,
)
from diffsample.smc.paths.diffusion import Renoise, diffusion_paths, path_sample
from diffsample.smc.paths.filter import Generation, Path, particle_filter, path_of
from diffsample.smc.paths.gibbs import Chain, parisian_particle_gibbs, particle_gibbs
from diffsample.smc.paths.models import GaussianModel, PathModel
from diffsample.smc.paths.paris import Paris, Rejection, weighted_mean
from diffsample.smc.paths.stepwise import StepwiseReward, Tempered, parallel_tempering
from diffsample.smc.policies import always, ess, every, never, window
from diffsample.smc.potentials import Closing, Potential, Transition, combine
from diffsample.smc.products.correctors import (
    Corrector,
    corrected,
    corrector,
    density_corrector,
    euler_corrector,
    kernel_corrector,
    start_of,
)
from diffsample.smc.products.experts import Experts, Product, annealed, guided, product
from diffsample.smc.products.exponents import Rising, rising
from diffsample.smc.resamplers.birth_and_death import birth_death
from diffsample.smc.resamplers.choosing import killing, metropolis, metropolis_steps, rejection
from diffsample.smc.resamplers.differentiable import soft, stop_gradient, transport
from diffsample.smc.resamplers.distributed import butterfly, global_, island, local, ring
from diffsample.smc.resamplers.ordering import hilbert, in_place, sorted_by
from diffsample.smc.resamplers.resampling import multinomial, rotated, stratified, systematic
from diffsample.smc.resamplers.rounding import residual, residual_systematic, ssp
from diffsample.smc.rewards.adapted import fps, mcgdiff
from diffsample.smc.rewards.dividing import Divided, dcps, dcps_weight
from diffsample.smc.rewards.linear_twists import inflated, linear_twist, naive, optimal
from diffsample.smc.rewards.selecting import Selecting, svdd
from diffsample.smc.rewards.steering import Steering, fk_difference, fk_immediate, fk_max, fk_sum, host
from diffsample.smc.rewards.twisted_samplers import das, tds
from diffsample.smc.rewards.twisting import Twist, Twisted, TwistRatio, twist_ratio, twisted
from diffsample.smc.rewards.twists import Look, on_x0, tempered
from diffsample.smc.rewards.values import posterior_mean, sampled_value, soft_value_loss
from diffsample.smc.starting import Started, started
from diffsample.smc.tempering import log_conditional_effective_size, next_increment
from diffsample.smc.tokens.contrast import NetworkEnergy, nce_loss, network_energy
from diffsample.smc.tokens.energy import energy_pick, joint_energy
from diffsample.smc.tokens.experts import RewardTilted, token_guidance, token_product
from diffsample.smc.tokens.jump_rates import (
    Jumps,
    corrected_jumps,
    kernel_ratio,
    tempered_unmasking_jumps,
    unmasking_jumps,
)
from diffsample.smc.tokens.jump_sampler import Growth, jump_process, neighbour_gains
from diffsample.smc.tokens.partition import Bounds, joint_loss, partition_bounds
from diffsample.smc.tokens.potentials import MaskTempering, TokenWeights, posterior_mode, token_weights, x0_reward
from diffsample.smc.tokens.rate_guidance import (
    RateGuided,
    first_order_gains,
    guided_rates,
    rate_guided,
    rate_guided_by_gradient,
)
from diffsample.smc.waste_free import chain_variance, refresh
from diffsample.smc.weights import log_effective_size
from diffsample.smc.windows import weight_window

__all__ = [
    "Adapted",
    "Bounds",
    "Chain",
    "Closing",
    "ConditionalSMC",
    "Corrector",
    "Diagnostics",
    "Divided",
    "Estimate",
    "Experts",
    "FeynmanKac",
    "GaussianMixture",
    "GaussianModel",
    "Generation",
    "Growth",
    "InChunks",
    "Jumps",
    "Lagged",
    "Look",
    "MaskTempering",
    "NetworkEnergy",
    "Paris",
    "Particles",
    "Path",
    "PathModel",
    "Potential",
    "Product",
    "RateGuided",
    "Recent",
    "Rejection",
    "Renoise",
    "RewardTilted",
    "Rising",
    "Selecting",
    "Started",
    "Steering",
    "StepwiseReward",
    "Sweep",
    "Tempered",
    "TokenWeights",
    "Transition",
    "Twist",
    "TwistRatio",
    "Twisted",
    "Variances",
    "about_mean",
    "adaptive_importance_sampling",
    "always",
    "ancestral_tracing",
    "annealed",
    "backward_sampling",
    "below_quantile",
    "birth_death",
    "butterfly",
    "calibrated_weights",
    "chain_mean",
    "chain_variance",
    "combine",
    "conditional_killing",
    "conditional_multinomial",
    "conditional_systematic",
    "corrected",
    "corrected_jumps",
    "corrector",
    "das",
    "dcps",
    "dcps_weight",
    "density_controls",
    "density_corrector",
    "diffusion_paths",
    "energy_pick",
    "ess",
    "euler_corrector",
    "every",
    "expectation",
    "feynman_kac",
    "final_resample",
    "first_order_gains",
    "fk_difference",
    "fk_immediate",
    "fk_max",
    "fk_sum",
    "fps",
    "global_",
    "guided",
    "guided_rates",
    "hilbert",
    "host",
    "importance_sampling",
    "in_chunks",
    "in_place",
    "inflated",
    "island",
    "joint_energy",
    "joint_loss",
    "jump_process",
    "kernel_corrector",
    "kernel_ratio",
    "killing",
    "lagged",
    "lineage",
    "linear_twist",
    "local",
    "log_conditional_effective_size",
    "log_effective_size",
    "mcgdiff",
    "metropolis",
    "metropolis_steps",
    "multinomial",
    "naive",
    "nce_loss",
    "neighbour_gains",
    "network_energy",
    "never",
    "next_increment",
    "normaliser",
    "on_x0",
    "optimal",
    "parallel_tempering",
    "parisian_particle_gibbs",
    "particle_filter",
    "particle_gibbs",
    "partition_bounds",
    "path_of",
    "path_sample",
    "pooled",
    "posterior_mean",
    "posterior_mode",
    "product",
    "rate_guided",
    "rate_guided_by_gradient",
    "refresh",
    "rejection",
    "repeat",
    "residual",
    "residual_systematic",
    "ring",
    "rising",
    "rotated",
    "sampled_value",
    "select_best",
    "select_one",
    "soft",
    "soft_value_loss",
    "sorted_by",
    "ssp",
    "start_of",
    "started",
    "stein_controls",
    "stop_gradient",
    "stratified",
    "svdd",
    "systematic",
    "tds",
    "tempered",
    "tempered_unmasking_jumps",
    "token_guidance",
    "token_product",
    "token_weights",
    "transport",
    "twist_ratio",
    "twisted",
    "unmasking_jumps",
    "variances",
    "weight_window",
    "weighted_mean",
    "window",
    "within",
    "x0_reward",
]
