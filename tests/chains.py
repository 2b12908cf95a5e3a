"""The linear-Gaussian chain of the path tests with its exact law of paths, and a tree small enough to enumerate."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from diffsample.smc.paths.filter import Path
from diffsample.smc.paths.models import GaussianModel, PathModel
from diffsample.struct import pytree

OBSERVED = np.array([0.5, 1.2, -0.3, -1.0, 0.4, 2.0])
LOG_Z = -9.8475334  # Kalman filter of the `particles` package
PRODUCTS = 1.0039764  # E[sum_k x_k x_k+1]


def exact_paths() -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of x_0:5 given the observations: the precision of the chain plus that of the data."""
    n = len(OBSERVED)
    precision = np.diag(np.eye(n)[0]) + np.eye(n) / 0.25
    for k in range(1, n):
        move = np.eye(n)[k] - 0.9 * np.eye(n)[k - 1]
        precision += np.outer(move, move) / 0.49
    covariance = np.linalg.inv(precision)
    return covariance @ (OBSERVED / 0.25), covariance


def drift(x, y):
    return 0.9 * x


def log_likelihood(x, y):
    return -0.5 * ((x[:, 0] - y) / 0.5) ** 2 - 0.5 * jnp.log(2 * jnp.pi * 0.25)


def chain() -> GaussianModel:
    """x_0 ~ N(0, 1), x_k = 0.9 x + 0.7 z, y = x + 0.5 z."""
    return GaussianModel(jnp.zeros(1), 1.0, drift, 0.7, log_likelihood, jnp.asarray(OBSERVED, jnp.zeros(1).dtype))


def draw_paths(key, n: int):
    """n paths [n, 6, 1] from the exact law."""
    mean, covariance = exact_paths()
    z = jax.random.normal(key, (n, 6, 1))
    root = jnp.asarray(np.linalg.cholesky(covariance), z.dtype)
    return jnp.asarray(mean, z.dtype)[None, :, None] + jnp.einsum("ij,njd->nid", root, z)


def path_z_scores(x) -> np.ndarray:
    """z-scores of the 6 means and 21 covariances of paths [R, 6] against the exact law."""
    x = np.asarray(x, np.float64)
    mean, covariance = exact_paths()
    variances = np.diag(covariance)
    centred = x - mean
    second = (centred.T @ centred / len(x) - covariance)[np.tril_indices(6)]
    spread = (np.outer(variances, variances) + covariance**2)[np.tril_indices(6)]
    return np.concatenate([centred.mean(0) / np.sqrt(variances), second / np.sqrt(spread)]) * np.sqrt(len(x))


@pytree
class Guided(PathModel):
    """The same law of paths through other moves, N(0.5 x + 0.3 y, 0.8^2), whose ratio enters the potential."""

    data: jax.Array

    @property
    def rows(self):
        return self.data

    def draw(self, keys, row):
        return jax.vmap(lambda key: jax.random.normal(key, (1,)))(keys)

    def move(self, keys, before, row):
        return 0.5 * before + 0.3 * row + 0.8 * self.draw(keys, row)

    def log_transition(self, before, x, row):
        return -0.5 * ((x - 0.5 * before - 0.3 * row)[:, 0] / 0.8) ** 2

    def log_start(self, after, row):
        return log_likelihood(after, row)

    def log_potential(self, before, after, row):
        wanted = -0.5 * ((after - 0.9 * before)[:, 0] / 0.7) ** 2
        return wanted - self.log_transition(before, after, row) + log_likelihood(after, row)


DEPTH, CHILDREN = 3, 3
LEAVES = CHILDREN**DEPTH


@pytree
class Tree(PathModel):
    """Random walks from the root of a ternary tree; x is the number of the node in its depth."""

    log_odds: jax.Array  # [DEPTH, LEAVES], of each node among its siblings

    @property
    def rows(self):
        return jnp.arange(DEPTH), self.log_odds

    def draw(self, keys, row):
        return self.move(keys, jnp.zeros(keys.shape[0], int), row)

    def move(self, keys, before, row):
        options = before[:, None] * CHILDREN + jnp.arange(CHILDREN)[None]
        child = jax.vmap(jax.random.categorical)(keys, row[1][options])
        return before * CHILDREN + child

    def log_transition(self, before, x, row):
        return jnp.where(x // CHILDREN == before, row[1][x], -jnp.inf)

    def log_start(self, after, row):
        return jnp.zeros(after.shape)

    def log_potential(self, before, after, row):
        return jnp.zeros(after.shape)


def tree(seed: int = 0) -> tuple[Tree, np.ndarray]:
    """(the tree with random odds, random scores [DEPTH, LEAVES] of its nodes)."""
    rng = np.random.default_rng(seed)
    odds = rng.dirichlet(np.ones(CHILDREN), size=(DEPTH, LEAVES // CHILDREN)).reshape(DEPTH, LEAVES)
    return Tree(jnp.log(jnp.asarray(odds))), rng.normal(0.0, 1.0, (DEPTH, LEAVES))


def leaf_law(model: Tree, log_weight: np.ndarray) -> np.ndarray:
    """[LEAVES] by enumeration: product of the odds along each path times exp(log_weight of the leaf)."""
    log_odds = np.asarray(model.log_odds, np.float64)
    law = np.zeros(LEAVES)
    for path in itertools.product(range(CHILDREN), repeat=DEPTH):
        node, total = 0, 0.0
        for depth, child in enumerate(path):
            node = node * CHILDREN + child
            total += log_odds[depth, node]
        law[node] = np.exp(total + log_weight[node])
    return law / law.sum()


def g_test(counts: np.ndarray, law: np.ndarray) -> float:
    """2 n KL(frequencies, law): chi-squared with len(law) - 1 degrees of freedom if law is right."""
    n, seen = counts.sum(), counts > 0
    return float(2 * np.sum(counts[seen] * np.log(counts[seen] / (n * law[seen]))))


def leaves(path: Path):
    """The last node."""
    return path.x[-1]
