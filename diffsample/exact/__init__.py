"""Closed-form laws that are denoisers: oracles for tests, demonstrations and benchmarks, under any process.

>>> Gaussian(0.0, 1.0).evaluations
1
"""

from diffsample.exact.chain import ChainMixture, MarkovChain, chain_mixture, golden_chain, markov_chain
from diffsample.exact.conditional import ClassMixture, Switch
from diffsample.exact.covariance import Covariance
from diffsample.exact.enumeration import OutputLaw, every_path, output_law
from diffsample.exact.gaussian import Gaussian, PointMass
from diffsample.exact.hmm import HiddenMarkov, by_associative_scan, by_scan, hidden_markov
from diffsample.exact.host import run_on_host
from diffsample.exact.lattice import Ising, ising
from diffsample.exact.mixture import Mixture
from diffsample.exact.moments import Moments, output_moments

__all__ = [
    "ChainMixture",
    "ClassMixture",
    "Covariance",
    "Gaussian",
    "HiddenMarkov",
    "Ising",
    "MarkovChain",
    "Mixture",
    "Moments",
    "OutputLaw",
    "PointMass",
    "Switch",
    "by_associative_scan",
    "by_scan",
    "chain_mixture",
    "every_path",
    "golden_chain",
    "hidden_markov",
    "ising",
    "markov_chain",
    "output_law",
    "output_moments",
    "run_on_host",
]
