"""A trained denoiser and classifier of 8x8 handwritten digits, shipped with the package.

The data are the 1797 real scans of scikit-learn's `load_digits` (Alpaydin and Kaynak 1998), values 0..16 scaled to
[-1, 1]. Made by `python -m diffsample.training digits`; loading needs no scikit-learn.

The denoiser is preconditioned as in Karras et al. 2022 (arXiv 2206.00364, table 1). With x-bar = x / alpha and
s = sigma / alpha,  D(x-bar; s) = c_skip x-bar + c_out F(c_in x-bar, c_noise, label),  c_noise = ln(s) / 4,
c_skip = d^2 / (s^2 + d^2),  c_out = s d / sqrt(s^2 + d^2),  c_in = 1 / sqrt(s^2 + d^2),  d = SIGMA_DATA.
F is trained for s in 0.002 .. 160.
"""

from collections.abc import Callable
from functools import lru_cache
from importlib import resources
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from diffsample.denoiser import Network
from diffsample.nets.classifier import Classifier
from diffsample.nets.unet import UNet
from diffsample.solvers.decisions import Decisions

PyTree: TypeAlias = Any

SHAPE = (8, 8, 1)
NULL = 10  # the label that means "no condition"
SCHEDULED = range(4, 11)  # network calls for which a solver schedule ships
SIGMA_DATA = 0.7520984435840296  # standard deviation of all pixels of the data


class Digits(NamedTuple):
    """The shipped models, and the moments of the data they were trained on."""

    params: PyTree  # of the denoiser, for `apply(params, x, c_noise, label)`
    classifier: Callable[[Array], Array]  # jitted: images [B, 8, 8, 1] -> logits [B, 10]
    accuracy: float  # of the classifier, on digits held out from its training
    sigma_data: float  # d of the preconditioning
    mean: np.ndarray  # [64] of all digits
    cov: np.ndarray  # [64, 64] of all digits, unbiased
    class_means: np.ndarray  # [10, 64]
    class_covs: np.ndarray  # [10, 64, 64]
    graphdef: nnx.GraphDef  # `nnx.merge(graphdef, params)` is the UNet module


def denoiser_net(rngs: nnx.Rngs) -> UNet:
    """The U-Net's architecture, with fresh parameters."""
    return UNet(SHAPE, classes=NULL, width=32, rngs=rngs)


def classifier_net(rngs: nnx.Rngs) -> Classifier:
    """The classifier's architecture, with fresh parameters."""
    return Classifier(SHAPE, classes=NULL, width=24, rngs=rngs)


def apply(params: PyTree, x: Array, c_noise: Array, label: Array) -> Array:
    """The raw network F.

    Args:
        params: `load().params`.
        x: [B, 8, 8, 1] scaled noisy images c_in x-bar, float32 or bfloat16.
        c_noise: scalar or [B], ln(sigma / alpha) / 4.
        label: int32 scalar or [B], 0..9, or `NULL`.

    Returns: F, in the shape and dtype of x.
    """
    return nnx.merge(_blank(denoiser_net)[0], params)(x, c_noise, label)


def classify(params: PyTree, images: Array) -> Array:
    """Logits [B, 10] of clean images [B, 8, 8, 1] by the classifier with these parameters."""
    return nnx.merge(_blank(classifier_net)[0], params)(images)


@lru_cache(maxsize=1)
def load() -> Digits:
    """The trained models and data moments, read once from the files of the package.

    >>> digits = load()
    >>> digits.classifier(digits.mean.reshape(1, 8, 8, 1)).shape
    (1, 10)
    """
    from diffsample import checkpoint

    with resources.as_file(resources.files("diffsample.nets") / "weights" / "digits") as path:
        tree = checkpoint.restore(path)
    filled = _filled(denoiser_net, tree["denoiser"]), _filled(classifier_net, tree["classifier"])
    with jax.ensure_compile_time_eval():  # the cache must hold arrays even where the first call is inside a trace
        params, judge = jax.tree.map(jnp.asarray, filled)
    return Digits(
        params=params,
        classifier=jax.tree_util.Partial(jax.jit(classify), judge),
        accuracy=float(tree["accuracy"]),
        sigma_data=float(tree["sigma_data"]),
        graphdef=_blank(denoiser_net)[0],
        **{name: tree[name] for name in ("mean", "cov", "class_means", "class_covs")},
    )


def network() -> Network:
    """The denoiser as a `Network`: any process, condition int32 [B] with labels 0..9 or `NULL`.

    >>> network().predicts
    'edm'
    """
    digits = load()
    return Network(apply, digits.params, predicts="edm", sigma_data=digits.sigma_data)


def schedule(calls: int) -> Decisions:
    """The solver schedule found for this model at 4 to 10 network calls, in times of `VariancePreserving()`.

    Found by `python -m diffsample search --calls N`: to an accurate run of the same noise for 4 and 5 calls, by Frechet
    distance for more (`--objective frechet --samples 500 --no-predictor --confirm 24`; 400 samples and no confirming
    for 8). The README says what they are worth. `solvers.usf` makes a table of it.

    Raises:
        ValueError: another number of calls.

    >>> schedule(5).nfe
    5
    """
    folder = resources.files("diffsample.nets") / "schedules"
    if calls not in SCHEDULED:
        raise ValueError(f"schedules ship for {SCHEDULED[0]} to {SCHEDULED[-1]} network calls, not {calls}; "
                         f"find another by python -m diffsample search --calls {calls}")  # fmt: skip
    return Decisions.from_json((folder / f"digits_{calls}.json").read_text())


@lru_cache(maxsize=2)
def _blank(build: Callable[[nnx.Rngs], nnx.Module]) -> tuple[nnx.GraphDef, nnx.State]:
    """Structure and abstract parameters of a module, computed without allocating it."""
    return nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))), nnx.Param)


def _filled(build: Callable[[nnx.Rngs], nnx.Module], values: PyTree) -> nnx.State:
    state = jax.tree.map(lambda a: a, _blank(build)[1])
    nnx.replace_by_pure_dict(state, values)
    return state
