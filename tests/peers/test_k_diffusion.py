"""Against k-diffusion in float64: same levels, same closed-form model, same draws.

Its samplers draw through `noise_sampler(sigma, sigma_next)`, the normalised increments of one Brownian motion, or
through `torch.randn_like` where they churn; both are handed the draws of the table's rows.
"""

import importlib.util
import sys
from types import ModuleType

import numpy as np
import pytest
from numpy_runner import START, mixture_x0, run_table

import diffsample as ds
from diffsample import solvers

torch = pytest.importorskip("torch")
for requirement in ("scipy", "torchdiffeq", "torchsde", "tqdm"):
    pytest.importorskip(requirement)

pytestmark = pytest.mark.filterwarnings("ignore")  # other libraries' own
TOLERANCE = 1e-12
PROCESS = ds.VarianceExploding(0.02, 200.0)  # wide, so that churn stays inside
SIGMAS = np.append(np.geomspace(80.0, 0.05, 9) ** 1.02, 0.0)
CHURN = {"churn": 6.0, "churn_min": 0.1, "churn_max": 60.0, "churn_noise": 1.01}


@pytest.fixture(scope="module")
def peer() -> ModuleType:
    """`k_diffusion.sampling` alone: the package itself imports image and training libraries."""
    found = importlib.util.find_spec("k_diffusion")
    if found is None or not found.submodule_search_locations:
        pytest.skip("k-diffusion is not installed")
    package, utils = ModuleType("k_diffusion"), ModuleType("k_diffusion.utils")
    package.__path__ = list(found.submodule_search_locations)
    utils.append_dims = lambda x, dims: x[(...,) + (None,) * (dims - x.ndim)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "k_diffusion", package)
        patch.setitem(sys.modules, "k_diffusion.utils", utils)
        package.utils = utils
        return importlib.import_module("k_diffusion.sampling")


def brownian(draws):
    """A noise sampler whose increments are these draws, one a call; calls that start anew at a level share them."""
    start, at, total = None, None, None

    def noise(sigma, to):
        nonlocal start, at, total
        if start is None or sigma < start:
            start, at, total = sigma, sigma, 0.0
        total, at = total + torch.sqrt(at - to) * torch.tensor(next(draws)), to
        return total / torch.sqrt(sigma - to)

    return noise


def model(x, sigma, **_):
    return torch.tensor(mixture_x0(x.numpy(), PROCESS.level(float(np.ravel(sigma)[0]))))


def gap(sample, table, **options) -> float:
    """Largest difference of the two samplers' outputs; both see the same draws, in the order of the table's rows."""
    draws = np.random.default_rng(0).standard_normal((table.rows + 1, START.size))
    x, drawing = 80.0 * START, np.flatnonzero((table.c != 0).any(axis=1))
    if "noise_sampler" in options:
        options["noise_sampler"] = brownian(iter(draws[drawing]))
    theirs = sample(model, torch.tensor(x), **options, disable=True)
    ours = run_table(table, mixture_x0, x, draws)
    difference = np.abs(ours - theirs.numpy()).max()
    print(f"{sample.__name__}: {difference:.1e}")
    return difference


ODE = {
    "euler": solvers.euler,
    "heun": solvers.heun,
    "dpm_2": solvers.dpm2,
    "dpmpp_2m": solvers.dpmpp,
}
SDE = [  # their sampler and its arguments, our solver and its own
    *[("euler_ancestral", {"eta": eta}, solvers.euler_ancestral, {"eta": eta}) for eta in (1, 0.5)],
    *[("dpm_2_ancestral", {"eta": eta}, solvers.dpm2, {"eta": eta}) for eta in (1, 0.5)],
    *[("dpmpp_2s_ancestral", {"eta": eta}, solvers.dpmpp_2s_ancestral, {"eta": eta}) for eta in (1, 0.5)],
    *[("dpmpp_sde", {"eta": eta}, solvers.dpmpp_sde, {"eta": eta}) for eta in (1, 0.5)],
    ("dpmpp_sde", {"r": 0.3}, solvers.dpmpp_sde, {"r": 0.3}),
    *[("dpmpp_2m_sde", {"eta": eta}, solvers.sde_dpmpp, {"eta": eta}) for eta in (1, 0.4)],
    ("dpmpp_2m_sde", {"solver_type": "heun"}, solvers.sde_dpmpp, {"heun": True}),
    *[("dpmpp_3m_sde", {"eta": eta}, solvers.sde_dpmpp, {"order": 3, "eta": eta}) for eta in (1, 0.4)],
]


@pytest.mark.parametrize("name", ODE)
def test_deterministic_sampler_equals_k_diffusion(name, peer):
    table = ODE[name](PROCESS, SIGMAS)
    assert gap(getattr(peer, f"sample_{name}"), table, sigmas=torch.tensor(SIGMAS)) < TOLERANCE


@pytest.mark.parametrize(("name", "options", "solver", "own"), SDE)
def test_stochastic_sampler_equals_k_diffusion(name, options, solver, own, peer):
    options = {"sigmas": torch.tensor(SIGMAS), "noise_sampler": None, **options}
    assert gap(getattr(peer, f"sample_{name}"), solver(PROCESS, SIGMAS, **own), **options) < TOLERANCE


@pytest.mark.parametrize(("name", "solver"), [("heun", solvers.heun), ("euler", solvers.euler)])
def test_churn_equals_k_diffusion(name, solver, peer, monkeypatch):
    table = solver(PROCESS, SIGMAS, **CHURN)
    draws = np.random.default_rng(0).standard_normal((table.rows + 1, START.size))
    steps = iter(draws[:-1][table.stage == 0])  # theirs draws before every step, and may not use it
    monkeypatch.setattr(torch, "randn_like", lambda x: torch.tensor(next(steps)))
    names = {"churn": "s_churn", "churn_min": "s_tmin", "churn_max": "s_tmax", "churn_noise": "s_noise"}
    options = {names[key]: value for key, value in CHURN.items()}
    assert (table.c != 0).any()
    assert gap(getattr(peer, f"sample_{name}"), table, sigmas=torch.tensor(SIGMAS), **options) < TOLERANCE


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_lms_equals_k_diffusion(order, peer):
    table = solvers.lms(PROCESS, SIGMAS, order=order)
    assert gap(peer.sample_lms, table, sigmas=torch.tensor(SIGMAS), order=order) < TOLERANCE


@pytest.mark.parametrize("calls", [7, 8, 9])
def test_dpm_solver_fast_equals_k_diffusion(calls, peer):
    orders = solvers.singlestep_orders(calls, 3)
    lambdas = torch.linspace(np.log(1 / 80.0), np.log(1 / 0.05), len(orders) + 1, dtype=torch.float64)
    table = solvers.dpm_singlestep(PROCESS, np.exp(-lambdas.numpy()), orders=orders)
    ends = {"sigma_min": torch.tensor(0.05, dtype=torch.float64), "sigma_max": torch.tensor(80.0, dtype=torch.float64)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peer.torch, "linspace", lambda *_, **__: lambdas)  # theirs would be float32
        assert gap(peer.sample_dpm_fast, table, n=calls, **ends) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "options", "build"),
    [
        ("karras", {"rho": 5.0}, lambda n, ends: ds.times.karras(PROCESS, n, rho=5.0, **ends)),
        ("exponential", {}, lambda n, ends: ds.times.uniform_logsnr(PROCESS, n, **ends)),
        ("polyexponential", {"rho": 2.0}, lambda n, ends: ds.times.polyexponential(PROCESS, n, rho=2.0, **ends)),
    ],
)
def test_grid_equals_k_diffusion(name, options, build, peer):
    theirs = getattr(peer, f"get_sigmas_{name}")(12, 0.05, 80.0, **options)
    ours = build(12, {"start": 80.0, "stop": 0.05})
    np.testing.assert_allclose(ours.sigma, theirs, rtol=2e-5)  # their ramp is float32


def test_times_of_variance_preserving_equal_k_diffusion(peer):
    grid = ds.times.uniform(ds.VariancePreserving(), 12, stop=1e-3)
    np.testing.assert_allclose(
        grid.sigma / grid.alpha, peer.get_sigmas_vp(12), rtol=5e-4
    )  # theirs has sqrt(exp(small) - 1) in float32
