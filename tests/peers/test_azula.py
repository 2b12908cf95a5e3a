"""Against azula in float64: moment matching and fixed covariances around one nonlinear denoiser, one state, one level.

azula's guided denoisers return the posterior mean; the pair here has it as x0. Its Krylov iterations are compared one
by one, so that the iterates are the same and not only their limit.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsample as ds
from diffsample import guidance
from diffsample.guidance import krylov, operators

torch = pytest.importorskip("torch")
pytest.importorskip("azula")
pytestmark = pytest.mark.filterwarnings("ignore")  # other libraries' own

RNG = np.random.default_rng(0)
W, A = RNG.normal(size=(5, 5)) / 2, RNG.normal(size=(3, 5))
X, Y, SIGMA_Y = RNG.normal(size=(2, 5)), RNG.normal(size=(2, 3)), 0.3
TIME = 0.4
TOLERANCE = 1e-10


def field(weights, x, t, cond):
    return jnp.tanh(x @ weights.T) @ weights  # a gradient: its Jacobian is symmetric and positive, as CG needs


@pytest.fixture
def peer():
    """azula's wrapper of the same function, and its level."""
    from azula.denoise import Denoiser, DiracPosterior
    from azula.noise import VPSchedule

    class Same(Denoiser):
        schedule = VPSchedule()

        def forward(self, x_t, t, **kwargs):
            return DiracPosterior(mean=torch.tanh(x_t @ torch.tensor(W).T) @ torch.tensor(W))

    return Same()


def linear(x):
    return x @ torch.tensor(A).T


def theirs(rule):
    return rule(torch.tensor(X), torch.tensor(TIME, dtype=torch.float64)).mean.detach().numpy()


def ours(make, schedule):
    alpha, sigma = (float(v) for v in schedule(torch.tensor(TIME, dtype=torch.float64)))
    level = ds.Level(TIME, alpha, sigma)
    at = ds.Point(level, level, jnp.int32(0), jnp.int32(0), jax.random.split(jax.random.key(0), 2))
    rule = make(ds.Network(field, jnp.asarray(W), predicts="data"), operators.matrix(A), jnp.asarray(Y))
    x = jnp.asarray(X)
    return rule(x, at, None, rule.init(x))[0].x0


@pytest.mark.parametrize("solver", ["gmres", "cg"])
@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_mmps_is_azulas(x64, peer, solver, iterations):
    from azula.guidance.mmps import MMPSDenoiser
    from azula.linalg.covariance import IsotropicCovariance

    noise = IsotropicCovariance(torch.tensor(SIGMA_Y**2, dtype=torch.float64))
    expected = theirs(MMPSDenoiser(peer, torch.tensor(Y), linear, noise, solver, iterations))
    solve = {"gmres": krylov.minimal_residual, "cg": krylov.conjugate_gradient}[solver]
    found = ours(lambda d, A, y: guidance.mmps(d, A, y, SIGMA_Y, iterations=iterations, solver=solve), peer.schedule)
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE)


def test_tmpd_diagonal_is_azulas(x64, peer):
    from azula.guidance.tmpd import TMPDenoiser

    expected = theirs(TMPDenoiser(peer, torch.tensor(Y), linear, SIGMA_Y**2))
    found = ours(lambda d, A, y: guidance.tmpd_diagonal(d, A, y, SIGMA_Y), peer.schedule)
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE)


def test_jfps_is_azulas(x64, peer):
    from azula.guidance.jfps import JFPSDenoiser
    from azula.linalg.covariance import IsotropicCovariance

    noise, prior = (IsotropicCovariance(torch.tensor(v, dtype=torch.float64)) for v in (SIGMA_Y**2, 1.7))
    expected = theirs(JFPSDenoiser(peer, torch.tensor(Y), linear, noise, prior, "cg", 3))  # 3 numbers: exact
    found = ours(lambda d, A, y: guidance.jfps(d, A, y, SIGMA_Y, data_var=1.7), peer.schedule)
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_diffpir_is_azulas(x64, peer):
    from azula.guidance.diffpir import DiffPIRDenoiser

    expected = theirs(DiffPIRDenoiser(peer, torch.tensor(Y), linear, SIGMA_Y**2, 7.0, "cg", 5))
    found = ours(lambda d, A, y: guidance.diffpir(d, A, y, SIGMA_Y, lam=7.0), peer.schedule)
    np.testing.assert_allclose(found, expected, rtol=1e-8)
