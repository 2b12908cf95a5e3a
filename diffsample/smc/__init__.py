"""Sequential Monte Carlo over any stochastic sampler: particles, weights, resampling, log-normalisers."""

from diffsample.smc.choosing import killing, metropolis, metropolis_steps, rejection
from diffsample.smc.chunking import InChunks, in_chunks
from diffsample.smc.conditional import ConditionalSMC, Sweep, ancestral_tracing, backward_sampling
from diffsample.smc.conditional_resampling import conditional_killing, conditional_multinomial, conditional_systematic
from diffsample.smc.differentiable import soft, stop_gradient, transport
from diffsample.smc.distributed import butterfly, global_, island, local, ring
from diffsample.smc.estimates import (
    Estimate,
    calibrated_weights,
    chain_mean,
    expectation,
    normaliser,
    pooled,
    stein_controls,
)
from diffsample.smc.filtering import FeynmanKac, feynman_kac
from diffsample.smc.gibbs import Chain, parisian_particle_gibbs, particle_gibbs
from diffsample.smc.importance import (
    Adapted,
    GaussianMixture,
    adaptive_importance_sampling,
    density_controls,
    importance_sampling,
)
from diffsample.smc.ordering import hilbert, in_place, sorted_by
from diffsample.smc.paris import Paris, Rejection, weighted_mean
from diffsample.smc.particles import Diagnostics, Particles, final_resample, repeat, select_one
from diffsample.smc.path_filter import Generation, Path, particle_filter, path_of
from diffsample.smc.paths import GaussianModel, PathModel
from diffsample.smc.policies import always, ess, every, never, window
from diffsample.smc.potentials import Closing, Potential, Transition, combine
from diffsample.smc.resampling import multinomial, rotated, stratified, systematic
from diffsample.smc.rounding import residual, residual_systematic, ssp
from diffsample.smc.sampler_paths import Renoise, diffusion_paths, path_sample
from diffsample.smc.stepwise import StepwiseReward, Tempered, parallel_tempering
from diffsample.smc.tempering import log_conditional_effective_size, next_increment
from diffsample.smc.variance import Variances, variances
from diffsample.smc.waste_free import chain_variance, refresh
from diffsample.smc.weights import log_effective_size

__all__ = [
    "Adapted",
    "Chain",
    "Closing",
    "ConditionalSMC",
    "Diagnostics",
    "Estimate",
    "FeynmanKac",
    "GaussianMixture",
    "GaussianModel",
    "Generation",
    "InChunks",
    "Paris",
    "Particles",
    "Path",
    "PathModel",
    "Potential",
    "Rejection",
    "Renoise",
    "StepwiseReward",
    "Sweep",
    "Tempered",
    "Transition",
    "Variances",
    "adaptive_importance_sampling",
    "always",
    "ancestral_tracing",
    "backward_sampling",
    "butterfly",
    "calibrated_weights",
    "chain_mean",
    "chain_variance",
    "combine",
    "conditional_killing",
    "conditional_multinomial",
    "conditional_systematic",
    "density_controls",
    "diffusion_paths",
    "ess",
    "every",
    "expectation",
    "feynman_kac",
    "final_resample",
    "global_",
    "hilbert",
    "importance_sampling",
    "in_chunks",
    "in_place",
    "island",
    "killing",
    "local",
    "log_conditional_effective_size",
    "log_effective_size",
    "metropolis",
    "metropolis_steps",
    "multinomial",
    "never",
    "next_increment",
    "normaliser",
    "parallel_tempering",
    "parisian_particle_gibbs",
    "particle_filter",
    "particle_gibbs",
    "path_of",
    "path_sample",
    "pooled",
    "refresh",
    "rejection",
    "repeat",
    "residual",
    "residual_systematic",
    "ring",
    "rotated",
    "select_one",
    "soft",
    "sorted_by",
    "ssp",
    "stein_controls",
    "stop_gradient",
    "stratified",
    "systematic",
    "transport",
    "variances",
    "weighted_mean",
    "window",
]
