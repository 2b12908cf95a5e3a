"""Against diffusers.guiders, on the same pair of outputs in float64.

Left out as no oracles, each seen: smoothed-energy guidance (its two branches of the blur are swapped), tangential
guidance through its class (reads an attribute that does not exist; its function is used), perturbed and skip-layer
guidance at scale 1 (they drop a branch and lose one from the strength), zero-init outside the first steps (ignores
`start`), magnitude-aware guidance on 4-D arrays (a three-axis norm that torch refuses). Frequency-decoupled guidance
needs kornia. Zero-star and tangential guidance compute in float32 inside: 2e-6 relative.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsample as ds
from diffsample import guidance

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
guiders = pytest.importorskip("diffusers.guiders")

pytestmark = pytest.mark.filterwarnings("ignore")  # their deprecations
LEVEL = ds.Level(0.5, 0.6, 0.8)
DATA = np.random.default_rng(0).normal(size=(3, 2, 4, 6))  # three outputs of two samples


def table(params, x, t, cond):
    return params[cond, x.reshape(len(x), -1)[:, 0].astype(int)]  # x is the sample's number, in any order of branches


def ours(build, outputs=DATA, kind="velocity", state=None, index=9):
    """The rule's output in the network's own space, and its memory."""
    rule = build(ds.Network(table, jnp.asarray(outputs), predicts=kind))
    x = jnp.ones(outputs.shape[1:]) * jnp.arange(outputs.shape[1]).reshape(-1, *(1,) * (outputs.ndim - 2))
    at = ds.Point(LEVEL, LEVEL, jnp.int32(index), jnp.int32(0), jax.random.split(jax.random.key(0), len(x)))
    prediction, state = rule(x, at, jnp.zeros(len(x), int), rule.init(x) if state is None else state)
    return (prediction.x0 if kind == "data" else prediction.eps - prediction.x0), state


def theirs(guider, outputs=DATA[:2], step=9):
    guider.set_state(step=step, num_inference_steps=20, timestep=torch.tensor(0.0))
    return guider.forward(*map(torch.tensor, outputs)).pred.numpy()


@pytest.mark.parametrize(("radius", "eta"), [(0.0, 1.0), (0.0, 0.0), (1.5, 0.3)])
def test_apg_with_momentum_is_theirs(x64, radius, eta):
    from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance

    buffer, state = MomentumBuffer(-0.5), None
    for shift in range(3):
        outputs = np.roll(DATA, shift, axis=-1) + shift
        expected = normalized_guidance(
            torch.tensor(outputs[0]), torch.tensor(outputs[1]), 3.0, buffer, eta, radius, True
        )

        def build(network):
            return guidance.apg(network, 1, 4.0, radius=radius or None, momentum=-0.5, eta=eta)

        found, state = ours(build, outputs, "data", state)
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-10, atol=1e-11)
        np.testing.assert_allclose(state.average, buffer.running_average.numpy(), rtol=1e-10, atol=1e-11)


def test_apg_on_raw_outputs_is_their_guider(x64):
    guider = guiders.AdaptiveProjectedGuidance(
        guidance_scale=3.0, adaptive_projected_guidance_rescale=1.5, eta=0.3, use_original_formulation=True
    )
    found, _ = ours(lambda d: guidance.apg(d, 1, 4.0, radius=1.5, eta=0.3, space=guidance.VELOCITY))
    np.testing.assert_allclose(found, theirs(guider), rtol=1e-10, atol=1e-11)


def test_apg_mix_is_theirs(x64):
    """With one formula for both scales (w - 1 times the difference, from the conditional output)."""
    guider = guiders.AdaptiveProjectedMixGuidance(
        guidance_scale=2.5, adaptive_projected_guidance_scale=9.0, use_original_formulation=True
    )
    state = None
    for step in range(8):
        outputs = 5 * np.roll(DATA, step, axis=-1) + step
        guider.set_state(step=step, num_inference_steps=20, timestep=torch.tensor(0.0))
        if step == 0:
            guider.prepare_inputs({})  # makes the buffer
        expected = guider.forward(*map(torch.tensor, outputs[:2])).pred.numpy()
        found, state = ours(lambda d: guidance.apg_mix(d, 1), outputs, state=state, index=step)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)


def test_cfg_and_rescale_are_theirs(x64):
    for share in (0.0, 0.7):
        guider = guiders.ClassifierFreeGuidance(guidance_scale=4.0, guidance_rescale=share)
        found, _ = ours(lambda d, share=share: guidance.rescale(d, 1, 4.0, share, space=guidance.VELOCITY))
        np.testing.assert_allclose(found, theirs(guider), rtol=1e-9, atol=1e-11)


def test_zero_star_and_its_first_steps_are_theirs(x64):
    guider = guiders.ClassifierFreeZeroStarGuidance(guidance_scale=4.0, zero_init_steps=2)
    for step in (0, 1, 2, 9):
        found, _ = ours(lambda d: guidance.cfg_zero(d, 1, 4.0, zero_steps=2), index=step)
        np.testing.assert_allclose(found, theirs(guider, step=step), rtol=2e-6, atol=2e-6)


def test_tangential_guidance_is_theirs(x64):
    from diffusers.guiders.tangential_classifier_free_guidance import normalized_guidance

    expected = normalized_guidance(torch.tensor(DATA[0]), torch.tensor(DATA[1]), 4.0).numpy()
    found, _ = ours(lambda d: guidance.tcfg(d, 1, 4.0))
    np.testing.assert_allclose(found, expected, rtol=5e-6, atol=5e-6)


def test_magnitude_aware_guidance_is_theirs(x64):
    flat = DATA.reshape(3, 2, 24)[:, :, :, None][..., 0][:, :, None]  # [B, 1, 24]
    guider = guiders.MagnitudeAwareGuidance(guidance_scale=10.0, alpha=0.5)
    found, _ = ours(lambda d: guidance.mambo_g(d, 1, 10.0, 0.5), flat)
    np.testing.assert_allclose(found, theirs(guider, flat[:2]), rtol=1e-9, atol=1e-11)


def test_autoguidance_is_theirs(x64):
    guider = guiders.AutoGuidance(guidance_scale=2.5, auto_guidance_layers=[0], dropout=0.1)
    worse = ds.Network(table, jnp.asarray(DATA[[1]]), predicts="velocity")
    found, _ = ours(lambda d: guidance.autoguidance(d, worse, 2.5))
    np.testing.assert_allclose(found, theirs(guider), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["SkipLayerGuidance", "PerturbedAttentionGuidance"])
def test_perturbed_guidance_is_theirs(x64, name):
    options = {"skip_layer_guidance_layers": [0]} if name.startswith("Skip") else {"perturbed_guidance_layers": [0]}
    prefix = "skip_layer" if name.startswith("Skip") else "perturbed"
    options |= {f"{prefix}_guidance_scale": 2.8, f"{prefix}_guidance_start": 0.0, f"{prefix}_guidance_stop": 1.0}
    guider = getattr(guiders, name)(guidance_scale=4.0, **options)
    worse = ds.Network(table, jnp.asarray(DATA[[2]]), predicts="velocity")
    found, _ = ours(lambda d: guidance.perturbed(d, worse, 1, 4.0, 2.8))
    np.testing.assert_allclose(found, theirs(guider, DATA), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("parallel", [None, [0.5, 0.0, 2.0]])
def test_frequency_decoupled_guidance_is_theirs(x64, parallel):
    """On sides that are powers of two; kornia pads others, where here every band is half as large, rounded up."""
    pytest.importorskip("kornia")
    outputs = np.random.default_rng(1).normal(size=(2, 2, 16, 32, 3))
    guider = guiders.FrequencyDecoupledGuidance(
        [9.0, 4.0, 2.0], parallel_weights=parallel, use_original_formulation=True
    )
    expected = theirs(guider, np.moveaxis(outputs, -1, 2))
    found, _ = ours(lambda d: guidance.fdg(d, 1, [10.0, 5.0, 3.0], parallel=parallel), outputs, "data")
    np.testing.assert_allclose(np.moveaxis(found, -1, 1), expected, rtol=1e-10, atol=1e-11)
