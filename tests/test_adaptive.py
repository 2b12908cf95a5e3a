"""Adaptive ODE and SDE solves: closed-form flows, the mixture of 10.1, moments, statistics, dense output."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_runner import REFERENCE, START

import diffsample as ds
from diffsample import solvers

VP = ds.VariancePreserving()
KEY = jax.random.key(0)
LAW = ds.exact.Gaussian(0.7, 0.25)


def mixture():
    return ds.exact.Mixture(np.array([0.3, 0.45, 0.25]), np.array([-1, 0.3, 1.1]), np.array([0.35, 0.25, 0.4]) ** 2)


def test_the_mixture_of_the_reference_problem_and_its_path(x64):
    controller = diffrax.PIDController(rtol=1e-11, atol=1e-11)
    x = jnp.asarray(START)[:, None]
    found = solvers.solve_ode(KEY, mixture(), VP, x, stop=0.01, solver=diffrax.Dopri8(), controller=controller,
                              times=[0.5, 0.2], dense=True)  # fmt: skip
    np.testing.assert_allclose(found.x[:, 0], REFERENCE, atol=1e-10)
    assert found.ok.all() and found.at_times is not None and found.path is not None
    np.testing.assert_allclose(found.path(0.01)[:, 0], REFERENCE, atol=1e-9)
    np.testing.assert_allclose(found.path(0.5), found.at_times[:, 0], atol=1e-9)
    np.testing.assert_allclose(found.path(1.0), x, atol=1e-12)
    there = solvers.solve_ode(KEY, mixture(), VP, found.at_times[:, 1], start=0.2, stop=0.01, solver=diffrax.Dopri8(),
                              controller=controller)  # fmt: skip
    np.testing.assert_allclose(there.x[:, 0], REFERENCE, atol=1e-7)  # at_times is interpolated


PROCESSES = [ds.SubVP(), ds.VarianceExploding(0.002, 80.0), ds.FlowMatching(), ds.DiscreteBetas.linear(20)]


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
def test_ode_follows_the_flow_of_a_gaussian_both_ways(process):
    begin, end = process.level(process.t_start), process.level(process.t_min)
    x = float(begin.sigma) * jnp.linspace(-2.0, 2.0, 6).reshape(2, 3)
    found = solvers.solve_ode(KEY, LAW, process, x)
    np.testing.assert_allclose(found.x, LAW.flow(x, begin, end), atol=2e-4)  # tolerance 1e-5 a step
    assert found.x.dtype == jnp.float32 and (found.steps > found.rejected).all()
    back = solvers.solve_ode(KEY, LAW, process, found.x, start=process.t_min, stop=process.t_start)
    np.testing.assert_allclose(back.x, x, rtol=2e-3, atol=2e-3 * float(begin.sigma))


def test_calls_are_counted_and_denoise_is_one_more():
    count = []

    def counted(params, x, t, cond):
        jax.debug.callback(lambda: count.append(1))
        return 0.5 * x

    network = ds.Network(counted, (), predicts="noise")
    for solve, denoise in ((solvers.solve_ode, False), (solvers.solve_ode, True), (solvers.solve_sde, False)):
        count.clear()
        found = solve(KEY, network, VP, jnp.ones((1, 2)), denoise=denoise)
        jax.effects_barrier()
        assert len(count) == found.calls[0]


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_sde_has_the_moments_of_the_law(strength):
    x = ds.diffuse(KEY, jnp.zeros((64, 256)), VP.level(1.0))
    controller = diffrax.PIDController(rtol=1e-3, atol=1e-3)
    found = solvers.solve_sde(KEY, LAW, VP, x, stop=0.01, controller=controller, strength=strength)
    level = VP.level(0.01)
    mean, var = 0.7 * level.alpha, 0.25 * level.alpha**2 + level.sigma**2
    n = found.x.size
    assert found.ok.all()
    # false alarm 1e-5 each, besides a bias of the tolerance
    assert abs(float(found.x.mean() - mean)) < 4.5 * np.sqrt(var / n) + 2e-3
    assert abs(float(found.x.var() / var - 1)) < 4.5 * np.sqrt(2 / n) + 4e-3


def test_sde_refines_one_path_and_forgets_its_start():
    x = jnp.ones((4, 3))
    fine, finer = (
        solvers.solve_sde(KEY, mixture(), VP, x, stop=0.01, controller=diffrax.PIDController(rtol=tol, atol=tol)).x
        for tol in (1e-2, 1e-3)
    )
    assert np.abs(fine - finer).max() < 0.05 and np.abs(np.diff(finer, axis=0)).min() > 1e-3
    other = solvers.solve_sde(jax.random.key(1), mixture(), VP, x, stop=0.01).x
    assert np.abs(other - fine).max() > 0.3
    alone = solvers.solve_sde(KEY, mixture(), VP, x[2:3], stop=0.01, first=2)
    np.testing.assert_allclose(alone.x[0], fine[2], atol=0.03)  # one path; rounding moves the steps along it


def tilted(params, x, t, cond):
    return jnp.tanh(params * x) + 0.1 * cond[:, None]


def test_guidance_without_memory_composes_and_differentiates():
    def run(scale):
        guided = ds.guidance.cfg(ds.Network(tilted, jnp.float32(0.8), predicts="noise"), 2, scale)
        return solvers.solve_ode(KEY, guided, VP, jnp.ones((2, 3)), cond=jnp.array([0, 1]), max_steps=64).x

    both = run(3.0)
    assert np.abs(both[0] - both[1]).max() > 1e-2
    slope = jax.grad(lambda scale: run(scale).sum())(3.0)
    np.testing.assert_allclose(slope, (run(3.1).sum() - run(2.9).sum()) / 0.2, rtol=2e-2)


def test_what_it_refuses():
    x, law = jnp.zeros((2, 1)), ds.exact.ClassMixture([0.5, 0.5], [-1.0, 1.0], 0.1, labels=[0, 1])
    cases = [
        (solvers.solve_ode, {"denoiser": ds.guidance.apg(law, 2, 3.0, momentum=-0.5)}, "APG|memory"),
        (solvers.solve_ode, {"denoiser": ds.guidance.cfg_pp(law, 2, 1.0)}, "is not coupled: it moves x0"),
        (solvers.solve_ode, {"stop": 0.0}, "must lie in"),
        (solvers.solve_ode, {"times": [0.2, 0.5]}, "in order"),
        (solvers.solve_sde, {"start": 0.1, "stop": 0.5}, "from noise to data"),
        (solvers.solve_sde, {"strength": 0.0}, "strength=0.0"),
    ]
    for solve, arguments, message in cases:
        options = {"denoiser": LAW, "process": VP} | arguments
        with pytest.raises(ValueError, match=message):
            solve(KEY, x=x, **options)
    found = solvers.solve_ode(KEY, LAW, VP, x, max_steps=2)
    assert not found.ok.any() and np.isnan(found.x).all()
