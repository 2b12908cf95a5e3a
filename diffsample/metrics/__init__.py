"""What samples are worth: distances between sets, moments of streams, neighbours, images, tokens.

Samples are [N, ...] and are flattened to [N, D]. Nothing here holds a feature network: distances are in pixel space, or
in whatever space the caller maps the samples to first.
"""

from diffsample.metrics.gaussians import frechet_distance, moments
from diffsample.metrics.images import contrast, saturation
from diffsample.metrics.labels import accuracy
from diffsample.metrics.manifolds import PrecisionRecall, precision_recall
from diffsample.metrics.sinkhorn import sinkhorn_wasserstein
from diffsample.metrics.streaming import Moments, merge_moments, streamed_moments, update_moments
from diffsample.metrics.tokens import distinct_ngrams, ngram_counts, ngram_divergence, ngram_entropy, token_entropy
from diffsample.metrics.two_samples import mmd, sliced_wasserstein

__all__ = [
    "Moments",
    "PrecisionRecall",
    "accuracy",
    "contrast",
    "distinct_ngrams",
    "frechet_distance",
    "merge_moments",
    "mmd",
    "moments",
    "ngram_counts",
    "ngram_divergence",
    "ngram_entropy",
    "precision_recall",
    "saturation",
    "sinkhorn_wasserstein",
    "sliced_wasserstein",
    "streamed_moments",
    "token_entropy",
    "update_moments",
]
