"""Several devices: groups shard without communication; a cloud over eight devices stays unbiased under any scheme."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from state_space import OBSERVED, Bootstrap, Observation

import diffsample as ds
from diffsample import smc

ROOT = Path(__file__).resolve().parent.parent
MESH = jax.make_mesh((1,), ("particles",))


def on_eight_devices(what: str) -> dict:
    flags = "--xla_force_host_platform_device_count=8"
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    command = [sys.executable, str(ROOT / "tests" / "eight_devices.py"), what]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_groups_on_eight_devices_need_no_communication_and_give_the_same_particles():
    seen = on_eight_devices("groups")
    assert seen["devices"] == 8 and seen["resampled"] > 0
    assert seen["collectives"] == 0
    assert seen["same"]


def test_guidance_in_one_call_of_twice_the_batch_needs_no_communication():
    seen = on_eight_devices("guided")
    assert seen["devices"] == 8 and seen["collectives"] == 0
    assert seen["gap"] < 2e-6


@pytest.mark.slow
def test_every_scheme_over_eight_devices_has_its_reference_variance_and_no_bias():
    seen = on_eight_devices("schemes")
    # specs/smc.md 1.9, relative variance of exp(log_z): 8 devices of 16 particles, resampled at every row; these are
    # variances of 4000 draws of an about log-normal estimate, good to 5 % (one standard error)
    reference = {"global": 0.113, "butterfly": 0.128, "one stage": 0.119, "ring": 0.133, "local": 0.144}
    for name, run in seen.items():
        assert abs(run["mean"] - 1) < 4 * run["error"], name
        assert abs(run["pooled"] - 1.462325) < 4 * run["pooled_error"], name
        assert run["twins"] < 1e-5 and run["eves"] == 127, name
        assert (run["collectives"] > 0) == (name != "one device"), name
    for name, variance in reference.items():
        assert abs(seen[name]["variance"] / variance - 1) < 0.2, name
    assert seen["global"]["log_z"] == pytest.approx(seen["one device"]["log_z"], rel=1e-6)
    assert seen["local"]["variance"] > seen["global"]["variance"]
    assert seen["island"]["variance"] < seen["local"]["variance"] * 1.05


@pytest.mark.parametrize("scheme", [smc.global_, smc.island])
def test_one_device_is_plain_resampling(scheme):
    def run(resample):
        fk = smc.feynman_kac(Bootstrap(OBSERVED), Observation(OBSERVED), particles=8, resample=resample)
        return ds.sample(jax.random.key(0), fk, (16,))

    plain, over = run(smc.systematic), run(scheme(MESH, "particles"))
    assert plain.diagnostics.resampled.any()
    if scheme is smc.global_:  # the others fold the number of the device into the key
        np.testing.assert_allclose(plain.log_z, over.log_z, rtol=1e-6)
    np.testing.assert_allclose(over.diagnostics.ess[:, 0], plain.diagnostics.ess[:, 0], rtol=1e-5)
    np.testing.assert_allclose(over.x[:, 0], over.x[:, 1], atol=1e-5)


def test_schemes_refuse_devices_and_slots_that_do_not_fit():
    with pytest.raises(ValueError, match="slots=0"):
        smc.ring(MESH, "particles", 0)
    fk = smc.feynman_kac(
        Bootstrap(OBSERVED), Observation(OBSERVED), particles=4, resample=smc.butterfly(MESH, "particles")
    )
    with pytest.raises(ValueError, match="a power of 2 of devices, at least 2, got 1"):
        ds.sample(jax.random.key(0), fk, (4,))


def test_chunked_calls_give_the_same_samples_with_levels_and_conditions_of_their_own():
    process = ds.VariancePreserving()
    grid = ds.times.uniform_logsnr(process, 4)
    mixture = ds.exact.Mixture(jnp.array([0.5, 0.5]), jnp.array([-1.0, 1.0]), 0.1)
    network = ds.guidance.apg(
        ds.Network(lambda p, x, t, c: jnp.tanh(x + 0.1 * c[:, None]) * t[:, None], predicts="noise"),
        null=0.0,
        scale=2.0,
        momentum=-0.5,
    )
    for denoiser, cond in ((network, jnp.arange(10.0)), (mixture, None)):
        table = ds.solvers.ddpm(process, grid)
        whole, cut = (
            ds.sample(jax.random.key(0), ds.solvers.linear(d, table), (10, 3), cond=cond)
            for d in (denoiser, smc.in_chunks(denoiser, 4))
        )
        np.testing.assert_allclose(whole, cut, rtol=1e-5, atol=1e-6)
    assert ds.solvers.linear(smc.in_chunks(network, 4), table).nfe == 8
    with pytest.raises(ValueError, match="size=0"):
        smc.in_chunks(network, 0)
