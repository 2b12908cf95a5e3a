"""Configurations of diffusers as they stand in the wild; the real schedulers are compared in tests/peers."""

import json

import jax
import numpy as np
import pytest
from numpy_runner import START, mixture_x0, run_table

import diffsample as ds
from diffsample import solvers

STABLE = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "steps_offset": 1, "trained_betas": None, "clip_sample": False, "set_alpha_to_one": False,
    "_diffusers_version": "0.6.0",
}  # fmt: skip


def read(name: str, **config) -> solvers.Scheduler:
    """As from the file: through JSON, where infinity and None have their own spelling."""
    return solvers.from_diffusers(json.loads(json.dumps({"_class_name": f"{name}Scheduler", **config})))


def indices(found: solvers.Scheduler, steps: int) -> list[float]:
    return (found.grid(steps).t * 1000 - 1).round(9).tolist()


def same(table, other) -> bool:
    draws = np.random.default_rng(0).standard_normal((table.rows + 1, START.size))
    ours, theirs = (run_table(t, mixture_x0, START, draws) for t in (table, other))
    return np.abs(ours - theirs).max() < 1e-13


def test_stable_diffusion_file_gives_its_table_and_indices():
    found = read("PNDM", skip_prk_steps=True, **STABLE)
    assert found.predicts == "noise"
    assert abs(found.process.alpha(1.0) ** 2 - 0.00466010) < 1e-8
    assert indices(found, 10) == [901, 801, 701, 601, 501, 401, 301, 201, 101, 1, 0]
    assert found.tableau(found.process, found.grid(10)).calls == 11


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [
        ("linspace", [999, 899, 799, 699, 599, 500, 400, 300, 200, 100, -1]),
        ("leading", [900, 810, 720, 630, 540, 450, 360, 270, 180, 90, -1]),
        ("trailing", [999, 899, 799, 699, 599, 499, 399, 299, 199, 99, -1]),
    ],
)
def test_dpm_solver_spacing_has_the_published_indices(spacing, expected):
    assert indices(read("DPMSolverMultistep", timestep_spacing=spacing), 10) == expected


def test_karras_sigmas_run_between_the_ends_of_the_table():
    grid = read("DPMSolverMultistep", use_karras_sigmas=True, **STABLE).grid(3)
    noise = grid.sigma / grid.alpha
    middle = ((14.6146412 ** (1 / 7) + 0.0291672 ** (1 / 7)) / 2) ** 7
    np.testing.assert_allclose(noise, [14.6146412, middle, 0.0291672, 0.0], rtol=2e-6)


def test_zero_terminal_snr_ends_where_each_class_ends():
    trailing = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
    assert read("DDIM", **{**STABLE, **trailing}).process.alpha(1.0) == 0
    assert abs(read("EulerDiscrete", **{**STABLE, **trailing}).process.alpha(1.0) ** 2 / 2**-24 - 1) < 1e-9


def test_flow_shift_is_applied_twice_at_the_end_as_in_diffusers():
    grid = read("FlowMatchEulerDiscrete", shift=3.0).grid(10)
    assert grid.t[0] == 1 and grid.t[-1] == 0
    assert abs(grid.t[-2] - 0.00893) < 5e-6


def test_order_three_ends_on_lower_orders_below_fifteen_steps_only():
    found = read("DPMSolverMultistep", solver_order=3)
    used = [(found.tableau(found.process, found.grid(n)).B[:, 0] != 0).sum(1).tolist() for n in (9, 15)]
    assert used[0] == [0, 1, 2, 3, 3, 3, 3, 3, 2, 1]
    assert used[1] == [0, 1, 2, *[3] * 12, 1]


def test_unipc_ends_on_lower_orders_at_any_number_of_steps():
    lowered, plain = read("UniPCMultistep", solver_order=3), read("UniPCMultistep", solver_order=2)
    grid = lowered.grid(20)
    tables = [found.tableau(found.process, grid) for found in (lowered, plain)]
    predictors = [(table.B[:, 0] != 0).sum(1) for table in tables]  # with the corrector's outputs in the same row
    assert predictors[0][10] == 4 and predictors[1][10] == 3
    assert not same(tables[0], solvers.unipc(lowered.process, grid, order=3))
    assert same(tables[1], solvers.unipc(plain.process, grid, order=2))


@pytest.mark.parametrize(
    ("name", "config", "solver"),
    [
        ("DDIM", {"clip_sample": False}, solvers.ddim),
        ("DDPM", {"clip_sample": False, "variance_type": "fixed_large"}, lambda p, g: solvers.ddpm(p, g, large=True)),
        ("EulerDiscrete", {}, solvers.euler),
        ("EulerAncestralDiscrete", {}, solvers.euler_ancestral),
        ("HeunDiscrete", {}, solvers.heun),
        ("LMSDiscrete", {}, solvers.lms),
        ("DPMSolverMultistep", {}, solvers.dpmpp),
        ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}, solvers.sde_dpmpp),
        ("UniPCMultistep", {}, solvers.unipc),
        ("DEISMultistep", {"lower_order_final": False}, lambda p, g: solvers.deis_log_rho(p, g, order=2)),
        ("EDMEuler", {}, solvers.euler),
        ("EDMDPMSolverMultistep", {"solver_type": "heun"}, lambda p, g: solvers.dpmpp(p, g, taylor=True)),
        ("FlowMatchEulerDiscrete", {}, solvers.ddim),
    ],
)
def test_scheduler_is_the_solver_of_its_class(name, config, solver):
    found = read(name, **config)
    grid = found.grid(8)
    assert same(found.tableau(found.process, grid), solver(found.process, grid))


def test_imported_scheduler_samples():
    found = read("UniPCMultistep", prediction_type="v_prediction")
    sampler = solvers.linear(ds.exact.PointMass(2.0), found.tableau(found.process, found.grid(5)))
    x = ds.sample(jax.random.key(0), sampler, (2, 3))
    np.testing.assert_allclose(x, 2.0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("DDIM", "clip_sample", True),
        ("DDIM", "timestep_spacing", "linspace"),
        ("DDPM", "variance_type", "learned_range"),
        ("DDPM", "thresholding", True),
        ("DDPM", "beta_schedule", "sigmoid"),
        ("PNDM", "skip_prk_steps", False),
        ("EulerDiscrete", "interpolation_type", "log_linear"),
        ("EulerDiscrete", "prediction_type", "epsilons"),
        ("DPMSolverMultistep", "algorithm_type", "sde-dpmsolver"),
        ("DPMSolverMultistep", "variance_type", "learned"),
        ("UniPCMultistep", "shift_terminal", 0.1),
        ("UniPCMultistep", "solver_p", {}),
        ("UniPCMultistep", "solver_type", "bh1"),
        ("UniPCMultistep", "lower_order_final", False),
        ("UniPCMultistep", "predict_x0", False),
        ("EDMEuler", "final_sigmas_type", "sigma_min"),
        ("FlowMatchEulerDiscrete", "use_dynamic_shifting", True),
        ("FlowMatchEulerDiscrete", "invert_sigmas", True),
        ("LMSDiscrete", "no_such_key", 1),
    ],
)
def test_what_cannot_be_reproduced_is_refused_by_key_and_value(name, key, value):
    clipping = {"clip_sample": False} if name in ("DDIM", "DDPM") else {}
    with pytest.raises(ValueError) as refusal:
        read(name, **{**clipping, key: value})
    blamed = "final_sigmas_type" if key == "predict_x0" else key  # one of the two has to change
    assert blamed in str(refusal.value) and (blamed != key or repr(value) in str(refusal.value))


@pytest.mark.parametrize(
    ("name", "config", "blamed"),
    [
        ("DPMSolverMultistep", {"use_flow_sigmas": True, "prediction_type": "v_prediction"}, "v_prediction"),
        ("DPMSolverMultistep", {"use_flow_sigmas": True, "use_lu_lambdas": True}, "use_lu_lambdas"),
        ("UniPCMultistep", {"use_flow_sigmas": True, "use_beta_sigmas": True}, "use_beta_sigmas"),
        ("UniPCMultistep", {"use_flow_sigmas": True, "final_sigmas_type": "sigma_min"}, "final_sigmas_type"),
        ("UniPCMultistep", {"use_beta_sigmas": True, "final_sigmas_type": "sigma_min"}, "final_sigmas_type"),
        ("DEISMultistep", {"use_flow_sigmas": True}, "use_flow_sigmas"),
        ("EulerDiscrete", {"use_beta_sigmas": True, "use_karras_sigmas": True}, "use_beta_sigmas"),
        ("DPMSolverMultistep", {"lambda_min_clipped": -3.0, "timestep_spacing": "trailing"}, "trailing"),
    ],
)
def test_options_that_do_not_go_together_are_refused(name, config, blamed):
    with pytest.raises(ValueError, match=blamed):
        read(name, **config).grid(8)


FLUX = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "use_dynamic_shifting": True,
        "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096}  # fmt: skip


def test_dynamic_shift_follows_the_number_of_image_tokens():
    """specs/solvers.md, 7: e^mu / (e^mu + 1/t - 1), mu linear from 0.5 at 256 tokens to 1.15 at 4096."""
    for tokens, mu in ((256, 0.5), (4096, 1.15), (2176, 0.825)):
        grid = solvers.from_diffusers(FLUX, image_seq_len=tokens, sigmas=lambda n: np.linspace(1, 1 / n, n)).grid(4)
        odds = np.exp(mu) * np.array([0.75, 0.5, 0.25]) / np.array([0.25, 0.5, 0.75])
        np.testing.assert_allclose(grid.t, [1, *(odds / (1 + odds)), 0], rtol=1e-12)
        again = solvers.from_diffusers(FLUX, mu=mu, sigmas=lambda n: np.linspace(1, 1 / n, n)).grid(4)
        np.testing.assert_allclose(grid.t, again.t, rtol=1e-12)


def test_size_is_asked_for_where_it_is_needed_and_nowhere_else():
    with pytest.raises(ValueError, match="either mu or image_seq_len"):
        solvers.from_diffusers(FLUX)
    with pytest.raises(ValueError, match="either mu or image_seq_len"):
        solvers.from_diffusers(FLUX, mu=1.0, image_seq_len=256)
    with pytest.raises(ValueError, match=r"mu=1.0 is for use_dynamic_shifting"):
        solvers.from_diffusers({**FLUX, "use_dynamic_shifting": False}, mu=1.0)
    with pytest.raises(ValueError, match=r"sigmas\(5\) has shape \(4,\)"):
        solvers.from_diffusers(FLUX, mu=1.0, sigmas=lambda n: np.ones(4)).grid(5)
    with pytest.raises(ValueError, match="levels of flow matching"):
        solvers.from_diffusers({"_class_name": "EulerDiscreteScheduler"}, sigmas=lambda n: np.ones(n))


def test_terminal_shift_ends_where_it_says():
    grid = solvers.from_diffusers({**FLUX, "shift_terminal": 0.1}, mu=1.0).grid(10)
    np.testing.assert_allclose(grid.t[[0, -2, -1]], [1, 0.1, 0], rtol=1e-12)


def test_corrector_can_be_left_out_of_a_step():
    plain, without = (read("UniPCMultistep", disable_corrector=skip) for skip in ([], [0, 2]))
    grid = plain.grid(8)
    own = [(found.tableau(found.process, grid).A[:, 0, 0] != 0).tolist() for found in (plain, without)]
    corrected = [not kept for kept in own[0]], [not kept for kept in own[1]]
    assert sum(corrected[0]) == sum(corrected[1]) + 2


def test_absent_clip_sample_means_true_as_in_diffusers():
    with pytest.raises(ValueError, match="clip_sample=True"):
        read("DDIM")


def test_a_path_is_no_configuration():
    with pytest.raises(TypeError, match=r"json\.load.*'scheduler_config"):
        solvers.from_diffusers("scheduler_config.json")  # type: ignore[arg-type]


def test_unknown_class_is_refused_with_the_list():
    with pytest.raises(ValueError, match=r"'LCMScheduler'.*DDIMScheduler"):
        read("LCM")


@pytest.mark.parametrize(
    ("name", "config", "steps"),
    [
        ("DDIM", {"clip_sample": False, "timestep_spacing": "trailing"}, 7),
        ("DDIM", {"clip_sample": False, "set_alpha_to_one": False}, 10),
        ("DDPM", {"clip_sample": False, "variance_type": "fixed_large", "steps_offset": 1}, 10),
        ("DEISMultistep", {"use_karras_sigmas": True}, 10),
        ("EulerDiscrete", {"final_sigmas_type": "sigma_min"}, 10),
        ("DPMSolverMultistep", {}, 1000),
        ("EulerDiscrete", {"timestep_spacing": "leading", "steps_offset": 1}, 1000),
    ],
)
def test_grid_refuses_steps_that_cannot_be_reproduced(name, config, steps):
    with pytest.raises(
        ValueError, match=r"timestep_spacing|set_alpha|variance_type|final_sigmas|num_train|steps_offset"
    ):
        read(name, **config).grid(steps)
