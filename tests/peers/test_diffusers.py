"""Against diffusers: its schedulers are stepped with the exact score, at the levels that they themselves say.

Schedulers keep float32 tables, whose rounding is not the formula's: the levels are read from the scheduler, and its
tables are given more digits (not other values) before it runs. Where an option of theirs changes the orders of the
first or last steps it is switched off; so is a last step into sigma = 0 where they cannot take it (UniPC and the noise
forms). Left out as no oracles: singlestep order 3 (their inner stage is the second-order midpoint rule, not the
third-order method's; k-diffusion has that one), the stochastic form of DPM-Solver++ of order 3 (the 1/2 of its
curvature term has the wrong sign; with it turned they agree, and k-diffusion's dpmpp_3m_sde has it right), churn (the
network does not see the noise that they add), DDIM with linspace spacing (wrong strides).
"""

import sys
from functools import partial

import numpy as np
import pytest
from numpy_runner import START, mixture_x0, run_table

import diffsample as ds
from diffsample import solvers

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

pytestmark = pytest.mark.filterwarnings("ignore")  # their deprecations
TOLERANCE = 1e-5
STEPS = 9
VP = ds.VariancePreserving(0.1, 100.0)  # any process with alpha^2 + sigma^2 = 1 has their levels; this one has them all
VE = ds.VarianceExploding(0.001, 5000.0)
FLOW = ds.FlowMatching()
KEPT = {"lower_order_final": False}
NOT_CLEAN = {"final_sigmas_type": "sigma_min", **KEPT}


def scheduler(name: str, mu: float | None = None, sigmas=None, **config):
    import diffusers

    made = getattr(diffusers, f"{name}Scheduler")(**config)
    given = {"mu": mu, "sigmas": sigmas and sigmas(STEPS)}
    made.set_timesteps(STEPS, **{key: value for key, value in given.items() if value is not None})
    for table in ("sigmas", "sigmas_interpol", "alphas_cumprod", "alphas", "betas"):
        if torch.is_tensor(getattr(made, table, None)):
            setattr(made, table, getattr(made, table).double())
    return made


def by_sigma(scheduler) -> tuple[np.ndarray, np.ndarray]:
    """sigma / alpha at the calls, and those of the grid (where repeated levels count once)."""
    noise = scheduler.sigmas.numpy()
    return noise, np.array(list(dict.fromkeys(noise)))


def by_index(scheduler) -> tuple[np.ndarray, np.ndarray]:
    signal = scheduler.alphas_cumprod[scheduler.timesteps].numpy()
    noise = np.sqrt((1 - signal) / signal)
    return noise, np.append(list(dict.fromkeys(noise)), 0.0)


def by_interpolation(scheduler) -> tuple[np.ndarray, np.ndarray]:
    noise, grid = by_sigma(scheduler)
    return np.where(np.arange(len(noise)) % 2, scheduler.sigmas_interpol.numpy(), noise), grid


def flow_times(scheduler) -> tuple[np.ndarray, np.ndarray]:
    noise = (scheduler.sigmas / (1 - scheduler.sigmas)).numpy()
    return noise, noise


def times(process: ds.Process, noise: np.ndarray) -> np.ndarray:
    noise = noise if process is FLOW else np.minimum(noise, 1e8)  # alpha = 0
    with np.errstate(divide="ignore"):
        return np.asarray(process.t_from_half_logsnr(-np.log(noise)))


def eps(x, x0, level):
    return (x - level.alpha * x0) / level.sigma


def velocity(x, x0, level):
    return eps(x, x0, level) - x0


def v(x, x0, level):
    return level.alpha * eps(x, x0, level) - level.sigma * x0


def exploding_v(x, x0, level):
    """v in terms of x / alpha."""
    scale = 1 / np.sqrt(1 + level.sigma**2)
    return scale * (x - x0) / level.sigma - level.sigma * scale * x0


def preconditioned(x, x0, level):
    """What the network of EDM gives, at data of standard deviation 1/2."""
    total = level.sigma**2 + 0.25
    return (x0 - 0.25 / total * x) / (level.sigma * 0.5 / np.sqrt(total))


def gap(theirs, solver, *, process=VP, levels=by_sigma, predict=eps, keep=slice(None), patch=None, **options) -> float:
    """Largest difference of the outputs over the largest output; the draw of call i is that of row i + 1."""
    calls, grid = levels(theirs)
    table = solver(process, times(process, grid)[keep])
    x = START * table.now.sigma[0]
    draws = np.random.default_rng(0).standard_normal((len(theirs.timesteps) + 2, START.size))
    sample = torch.tensor(x).reshape(1, 1, 3, 3)
    for i, t in enumerate(theirs.timesteps):
        if patch:
            draw = partial(lambda noise, *_, **__: noise, torch.tensor(draws[i + 1]).reshape(sample.shape))
            patch.setattr(sys.modules[type(theirs).__module__], "randn_tensor", draw, raising=False)
        if hasattr(theirs, "scale_model_input"):
            theirs.scale_model_input(sample, t)
        level, state = process.level(times(process, calls[i])), sample.double().numpy().ravel()
        output = predict(state, mixture_x0(state, level), level)
        sample = theirs.step(torch.tensor(output).reshape(sample.shape), t, sample, **options).prev_sample
    ours = run_table(table, mixture_x0, x, draws)
    difference = np.abs(ours - sample.double().numpy().ravel()).max() / np.abs(ours).max()
    print(f"{type(theirs).__name__} {table.about.name}: {difference:.1e}")
    return difference


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim_equals_diffusers(eta, spacing, monkeypatch):
    # a table that the steps divide: they move by 1000 // 9 indices, whatever the spacing
    made = scheduler("DDIM", clip_sample=False, timestep_spacing=spacing, num_train_timesteps=STEPS * 100)
    solver = partial(solvers.ddim, eta=eta)
    assert gap(made, solver, levels=by_index, patch=monkeypatch, eta=eta) < TOLERANCE


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_ddpm_equals_diffusers(large, spacing, monkeypatch):
    variance = "fixed_large" if large else "fixed_small"
    made = scheduler("DDPM", clip_sample=False, variance_type=variance, timestep_spacing=spacing)
    made.timesteps[-1] = 0  # a last step from any other index draws noise into clean data
    assert gap(made, partial(solvers.ddpm, large=large), levels=by_index, patch=monkeypatch) < TOLERANCE


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("kind", ["midpoint", "heun"])
def test_dpmpp_multistep_equals_diffusers(order, kind):
    made = scheduler("DPMSolverMultistep", solver_order=order, solver_type=kind, **KEPT)
    # three outputs start with the rule of two that solver_type names
    assert gap(made, partial(solvers.dpmpp, order=order, taylor=kind == "heun")) < TOLERANCE


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("kind", ["midpoint", "heun"])
def test_dpm_multistep_equals_diffusers(order, kind):
    made = scheduler(
        "DPMSolverMultistep", algorithm_type="dpmsolver", solver_order=order, solver_type=kind, **NOT_CLEAN
    )
    assert gap(made, partial(solvers.dpm_multistep, order=order, taylor=kind == "heun")) < TOLERANCE


@pytest.mark.parametrize(("order", "kind"), [(1, "midpoint"), (2, "midpoint"), (2, "heun")])
def test_sde_dpmpp_equals_diffusers(order, kind, monkeypatch):
    made = scheduler(
        "DPMSolverMultistep", algorithm_type="sde-dpmsolver++", solver_order=order, solver_type=kind, **KEPT
    )
    assert gap(made, partial(solvers.sde_dpmpp, order=order, heun=kind == "heun"), patch=monkeypatch) < TOLERANCE


@pytest.mark.parametrize("algorithm", ["dpmsolver", "dpmsolver++"])
@pytest.mark.parametrize("order", [1, 2])
def test_singlestep_equals_diffusers(order, algorithm):
    """On levels uniform in log-SNR, where their stages lie at a fixed share of the step."""
    config = {"algorithm_type": algorithm, "use_exponential_sigmas": True, "lower_order_final": True}
    made = scheduler("DPMSolverSinglestep", solver_order=order, final_sigmas_type="sigma_min", **config)
    made.sigmas[-1] = made.sigmas[-2] / 2  # theirs stands still in its last step
    solver = solvers.dpmpp_singlestep if algorithm == "dpmsolver++" else solvers.dpm_singlestep
    orders, keep = ([1] * STEPS, slice(None)) if order == 1 else ([2] * 4 + [1], [0, 2, 4, 6, 8, 9])
    assert made.order_list == ([1] * STEPS if order == 1 else [1, 2] * 4 + [1])
    assert gap(made, partial(solver, orders=orders), keep=keep) < TOLERANCE


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("bh1", [False, True])
@pytest.mark.parametrize("noise_form", [False, True])
def test_unipc_equals_diffusers(order, bh1, noise_form):
    config = {"solver_type": "bh1" if bh1 else "bh2", "predict_x0": not noise_form}
    made = scheduler("UniPCMultistep", solver_order=order, **config, **NOT_CLEAN)
    assert gap(made, partial(solvers.unipc, order=order, bh1=bh1, noise_form=noise_form)) < TOLERANCE


def test_unipc_into_clean_data_equals_diffusers():
    assert gap(scheduler("UniPCMultistep"), solvers.unipc) < TOLERANCE


@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_equals_diffusers(order):
    assert (
        gap(scheduler("DEISMultistep", solver_order=order, **KEPT), partial(solvers.deis_log_rho, order=order))
        < TOLERANCE
    )


@pytest.mark.parametrize("clean", [True, False])
def test_pndm_without_runge_kutta_equals_diffusers(clean):
    made = scheduler("PNDM", skip_prk_steps=True, set_alpha_to_one=clean, steps_offset=1)
    levels = by_index
    if not clean:
        first = made.alphas_cumprod[0].item()

        def levels(theirs):
            calls, grid = by_index(theirs)
            return calls, np.append(grid[:-1], np.sqrt((1 - first) / first))

    assert gap(made, partial(solvers.spndm, order=4), levels=levels) < TOLERANCE


def test_ipndm_equals_diffusers():
    noise = np.append(np.geomspace(100.0, 0.02, STEPS), 0.0)
    made = scheduler("IPNDM", trained_betas=(noise / np.sqrt(1 + noise**2)).tolist())
    made.alphas = torch.sqrt(1 - made.betas**2)
    noise = (made.betas / made.alphas).numpy()
    assert gap(made, solvers.ipndm, levels=lambda _: (noise, noise), predict=v) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "solver", "levels"),
    [
        ("EulerDiscrete", solvers.euler, by_sigma),
        ("EulerAncestralDiscrete", solvers.euler_ancestral, by_sigma),
        ("HeunDiscrete", solvers.heun, by_sigma),
        ("KDPM2Discrete", solvers.dpm2, by_interpolation),
        ("LMSDiscrete", solvers.lms, by_sigma),
    ],
)
def test_exploding_scheduler_equals_diffusers(name, solver, levels, monkeypatch):
    assert gap(scheduler(name), solver, process=VE, levels=levels, patch=monkeypatch) < TOLERANCE


def test_edm_euler_equals_diffusers():
    assert gap(scheduler("EDMEuler"), solvers.euler, process=VE, predict=preconditioned) < TOLERANCE


@pytest.mark.parametrize("order", [1, 2, 3])
def test_edm_dpmpp_equals_diffusers(order):
    made = scheduler("EDMDPMSolverMultistep", solver_order=order, **KEPT)
    assert gap(made, partial(solvers.dpmpp, order=order), process=VE, predict=preconditioned) < TOLERANCE


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_euler_equals_diffusers(shift):
    made = scheduler("FlowMatchEulerDiscrete", shift=shift)
    assert gap(made, solvers.ddim, process=FLOW, levels=flow_times, predict=velocity) < TOLERANCE


def test_flow_matching_heun_equals_diffusers():
    made = scheduler("FlowMatchHeunDiscrete", shift=3.0)

    def levels(theirs):
        noise = (theirs.sigmas / (1 - theirs.sigmas)).numpy()
        return noise, np.array(list(dict.fromkeys(noise)))

    assert gap(made, solvers.flow_heun, process=FLOW, levels=levels, predict=velocity) < TOLERANCE


@pytest.mark.parametrize("tau", [0.0, 0.6, 1.0])
@pytest.mark.parametrize(("predictor", "corrector"), [(1, 1), (1, 2), (2, 2), (2, 3), (3, 3), (3, 4)])
def test_sa_solver_equals_diffusers(predictor, corrector, tau, monkeypatch):
    made = scheduler("SASolver", predictor_order=predictor, corrector_order=corrector, **KEPT)
    last = made.timesteps[-1]
    made.tau_func = lambda t: tau * float(t > last)  # the authors' last step draws no noise; theirs leaves it to tau
    solver = partial(solvers.sa_solver, predictor=predictor, corrector=corrector, tau=tau, few_steps=True)
    assert gap(made, solver, patch=monkeypatch) < TOLERANCE


STABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
ZERO = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
DYNAMIC = {"use_dynamic_shifting": True}
FLOWING = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
IMPORTED = [
    ("DDIM", {**STABLE, "clip_sample": False, "set_alpha_to_one": False}),
    ("DDIM", {"clip_sample": False, "num_train_timesteps": 900, **ZERO}),
    ("DDPM", {"clip_sample": False, "beta_schedule": "squaredcos_cap_v2", "variance_type": "fixed_large"}),
    ("DDPM", {"clip_sample": False, "timestep_spacing": "trailing"}),
    ("PNDM", {**STABLE, "skip_prk_steps": True}),
    (
        "PNDM",
        {"skip_prk_steps": True, "set_alpha_to_one": True, "trained_betas": np.geomspace(1e-4, 0.01, 1000).tolist()},
    ),
    ("EulerDiscrete", STABLE),
    ("EulerDiscrete", {**STABLE, "use_karras_sigmas": True, "timestep_spacing": "leading"}),
    ("EulerDiscrete", {**STABLE, "timestep_spacing": "leading", "final_sigmas_type": "sigma_min"}),
    ("EulerDiscrete", {**STABLE, **ZERO}),
    ("EulerAncestralDiscrete", {**STABLE, **ZERO}),
    ("HeunDiscrete", {}),
    ("HeunDiscrete", {"use_karras_sigmas": True}),
    ("LMSDiscrete", {**STABLE, "use_exponential_sigmas": True}),
    *[
        ("DPMSolverMultistep", {**STABLE, "solver_order": order, "lower_order_final": low, **more})
        for order in (2, 3)
        for low in (True, False)
        for more in ({}, {"timestep_spacing": "leading"}, {"use_karras_sigmas": True, "solver_type": "heun"})
    ],
    ("DPMSolverMultistep", {**STABLE, **ZERO}),
    ("DPMSolverMultistep", {"euler_at_final": True, "final_sigmas_type": "sigma_min", "lower_order_final": False}),
    ("DPMSolverMultistep", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min", "solver_order": 3}),
    ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}),
    *[("UniPCMultistep", {"solver_order": order}) for order in (1, 2, 3)],
    ("UniPCMultistep", {"solver_order": 3, "solver_type": "bh1", "final_sigmas_type": "sigma_min"}),
    ("UniPCMultistep", {**STABLE, **ZERO, "solver_order": 3}),
    ("UniPCMultistep", {"predict_x0": False, "final_sigmas_type": "sigma_min", "solver_order": 3}),
    ("UniPCMultistep", {"use_karras_sigmas": True, "sigma_min": 0.03, "sigma_max": 14.0}),
    *[("DEISMultistep", {"solver_order": order, "timestep_spacing": "leading"}) for order in (1, 2, 3)],
    ("EDMEuler", {"sigma_schedule": "exponential"}),
    ("EDMDPMSolverMultistep", {"sigma_max": 100.0, "rho": 5.0, "solver_order": 3}),
    ("FlowMatchEulerDiscrete", {"shift": 3.0}),
    ("FlowMatchEulerDiscrete", {"stochastic_sampling": True}),
    ("FlowMatchEulerDiscrete", {"shift": 3.0, "use_karras_sigmas": True}),
    ("FlowMatchEulerDiscrete", {"shift": 3.0, "use_exponential_sigmas": True}),
    ("FlowMatchEulerDiscrete", {"shift": 3.0, "use_beta_sigmas": True, "shift_terminal": 0.1}),
    *[
        ("FlowMatchEulerDiscrete", {**DYNAMIC, "mu": 0.8, "time_shift_type": kind, **more})
        for kind in ("exponential", "linear")
        for more in ({}, {"shift_terminal": 0.05}, {"sigmas": lambda n: np.linspace(1, 1 / n, n)})
    ],
    *[
        ("DPMSolverMultistep", {**FLOWING, "solver_order": order, **more})
        for order in (2, 3)
        for more in ({}, {"lower_order_final": False}, {"solver_type": "heun", "final_sigmas_type": "sigma_min"})
    ],
    ("DPMSolverMultistep", {**FLOWING, **DYNAMIC, "mu": 0.8}),
    ("DPMSolverMultistep", {**FLOWING, "algorithm_type": "sde-dpmsolver++"}),
    ("DPMSolverMultistep", {**FLOWING, "prediction_type": "epsilon"}),
    *[("UniPCMultistep", {**FLOWING, "solver_order": order}) for order in (1, 2, 3)],
    ("UniPCMultistep", {**FLOWING, **DYNAMIC, "mu": 0.8, "shift_terminal": 0.05}),
    ("UniPCMultistep", {**FLOWING, "sigmas": lambda n: np.linspace(1, 1 / n, n)}),
    ("UniPCMultistep", {**FLOWING, "use_karras_sigmas": True, "sigma_min": 0.02, "sigma_max": 50.0}),
    ("UniPCMultistep", {"solver_order": 3, "disable_corrector": [0, 3]}),
    ("UniPCMultistep", {**STABLE, "use_beta_sigmas": True}),
    ("EulerDiscrete", {**STABLE, "use_beta_sigmas": True}),
    ("DPMSolverMultistep", {**STABLE, "use_beta_sigmas": True, "solver_order": 3}),
    ("DPMSolverMultistep", {**STABLE, "use_lu_lambdas": True}),
    *[
        ("DPMSolverMultistep", {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1, **more})
        for more in ({}, {"timestep_spacing": "leading", "steps_offset": 1})
    ],
]
EXPLODING = ("Euler", "Heun", "LMS", "EDM")


@pytest.mark.parametrize(("name", "config"), IMPORTED)
def test_imported_scheduler_equals_diffusers(name, config, monkeypatch):
    made, given = scheduler(name, **config), {key: config[key] for key in ("mu", "sigmas") if key in config}
    keys = {key: value for key, value in config.items() if key not in given}
    found = solvers.from_diffusers({"_class_name": f"{name}Scheduler", **keys}, **given)
    flow = name.startswith("Flow") or "use_flow_sigmas" in config
    levels = flow_times if flow else by_sigma if hasattr(made, "sigmas") else by_index
    if not made.config.get("set_alpha_to_one", True):
        calls, noise = levels(made)
        noise[-1] = np.sqrt(1 / made.alphas_cumprod[0].item() - 1)
        levels = lambda _: (calls, noise)  # noqa: E731

    grid = found.grid(STEPS)
    with np.errstate(divide="ignore"):
        ours, theirs = grid.sigma / grid.alpha, levels(made)[1]
    if flow:  # 1 - 1e-6 has few digits in their float32
        ours, theirs = grid.t, times(FLOW, theirs)
    np.testing.assert_allclose(ours, theirs, rtol=5e-4)  # theirs is float32
    process = FLOW if flow else VE if name.startswith(EXPLODING) else VP
    predict = {"noise": eps, "v": v, "velocity": velocity, "edm": preconditioned}[found.predicts]
    if process is VE and found.predicts == "v":
        predict = exploding_v
    tableau = lambda p, t: found.tableau(p, ds.times.custom(p, t))  # noqa: E731
    assert gap(made, tableau, process=process, levels=levels, predict=predict, patch=monkeypatch) < 2 * TOLERANCE
