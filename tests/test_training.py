"""The trainer on problems with known answers, and the digits command end to end."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffsample import checkpoint, metrics, training
from diffsample.nets import digits


def toy_data(n=40):
    images = jnp.sign(jax.random.normal(jax.random.key(0), (n, *digits.SHAPE)))
    return training.Data(images, jnp.arange(n) % 10)


def noisy_square(params, key, data):
    return jnp.mean((params["w"] - data - jax.random.normal(key, data.shape)) ** 2)


def small_batches(params, key, data):
    return training.denoising_loss(params, key, data, batch=16)


def test_fit_finds_the_minimum_and_is_decided_by_its_key():
    start, target = {"w": jnp.zeros(3)}, jnp.array([1.0, -2.0, 0.5])
    first = training.fit(jax.random.key(0), noisy_square, start, target, 600, rate=0.05)
    again = training.fit(jax.random.key(0), noisy_square, start, target, 600, rate=0.05)
    other = training.fit(jax.random.key(1), noisy_square, start, target, 600, rate=0.05)
    np.testing.assert_allclose(first.params["w"], target, atol=0.2)
    np.testing.assert_array_equal(first.params["w"], again.params["w"])
    assert np.any(first.params["w"] != other.params["w"])
    assert first.losses.shape == (600,) and first.losses[-50:].mean() < first.losses[:5].mean() / 2
    np.testing.assert_array_equal(start["w"], 0.0)


def test_fit_averages_the_parameters():
    # With a loss of gradient -1 Adam climbs steadily and then slower as its rate falls: the average lags behind.
    def climbing(params, key, data):
        return -params["w"]

    fitted = training.fit(jax.random.key(0), climbing, {"w": jnp.float32(0.0)}, None, 100, rate=0.1)
    long = training.fit(jax.random.key(0), climbing, {"w": jnp.float32(0.0)}, None, 100, rate=0.1, halflife=0.5)
    assert 0.5 * -fitted.losses[-1] < long.params["w"] < fitted.params["w"] <= -fitted.losses[-1]


def test_fit_refuses_no_steps():
    with pytest.raises(ValueError, match="at least 1"):
        training.fit(jax.random.key(0), noisy_square, {"w": jnp.zeros(3)}, jnp.zeros(3), 0)


def test_posterior_mean_is_bayes_rule_over_the_members():
    data = toy_data()
    x = data.images[:4] + 3.0 * jax.random.normal(jax.random.key(1), (4, *digits.SHAPE))
    s, label = jnp.array([3.0, 4.0, 5.0, 3.0]), jnp.array([0, 1, digits.NULL, 3])
    found = training.posterior_mean(x, s, label, data)
    for i in range(4):
        member = np.ones(40, bool) if label[i] == digits.NULL else np.asarray(data.labels == label[i])
        images = np.asarray(data.images, np.float64)[member]
        log_w = -np.sum((np.asarray(x[i], np.float64) - images) ** 2, axis=(1, 2, 3)) / (2 * float(s[i]) ** 2)
        weights = np.exp(log_w - log_w.max())
        np.testing.assert_allclose(found[i], np.tensordot(weights / weights.sum(), images, 1), atol=1e-4)


def test_posterior_mean_at_little_noise_is_the_member_itself():
    data = toy_data()
    found = training.posterior_mean(data.images[:5] + 1e-3, jnp.full(5, 0.002), jnp.full(5, digits.NULL), data)
    np.testing.assert_allclose(found, data.images[:5], atol=1e-6)


def test_drop_labels_makes_the_stated_share_null_and_keeps_the_rest():
    labels = jnp.arange(20000) % 10
    dropped = training.drop_labels(jax.random.key(2), labels, 0.15)
    null = np.asarray(dropped == digits.NULL)
    assert abs(null.mean() - 0.15) < 0.01  # four standard errors
    np.testing.assert_array_equal(dropped[~null], labels[~null])


def test_draw_levels_reaches_both_ends_of_the_sampling_range():
    s = np.asarray(training.draw_levels(jax.random.key(3), 20000))
    assert 0.0019 < s.min() < 0.003 and 120 < s.max() < 161
    assert np.mean(s > 20) > 0.03 and np.mean(s < 0.02) > 0.03 and np.mean((s > 0.1) & (s < 2)) > 0.4


def test_denoising_loss_decreases_in_a_few_steps():
    labels = jnp.arange(40) % 10
    data = training.Data(jnp.broadcast_to(labels[:, None, None, None] / 4.5 - 1, (40, *digits.SHAPE)), labels)
    start = training._initial(digits.denoiser_net, jax.random.key(4))
    fitted = training.fit(jax.random.key(5), small_batches, start, data, 40, rate=5e-3)
    before, after = (jax.jit(small_batches)(p, jax.random.key(6), data) for p in (start, fitted.params))
    assert after < 0.8 * before


def test_denoising_loss_of_an_idle_network_is_one_at_every_level():
    # One member of size d: E (x0 - c_skip x)^2 = s^2 d^2 / (s^2 + d^2) = c_out^2, whatever s is.
    data = training.Data(digits.SIGMA_DATA * jnp.ones((1, *digits.SHAPE)), jnp.zeros(1, jnp.int32))
    params = training._initial(digits.denoiser_net, jax.random.key(7))  # its output starts at zero
    loss = jax.jit(lambda params, key: training.denoising_loss(params, key, data, batch=256))
    assert float(loss(params, jax.random.key(8))) == pytest.approx(1.0, abs=0.05)


def test_digits_data_without_scikit_learn_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'diffsample\[digits\]'"):
        training.digits_data()


def test_shipped_moments_are_those_of_the_data():
    pytest.importorskip("sklearn")
    flat = np.asarray(training.digits_data().images).reshape(-1, 64)
    mean, cov = metrics.moments(flat)
    np.testing.assert_allclose(digits.load().mean, mean, atol=1e-6)
    np.testing.assert_allclose(digits.load().cov, cov, atol=1e-6)


def test_command_prints_its_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        training.main(["--help"])
    printed = capsys.readouterr().out
    assert all(option in printed for option in ("--out", "--steps", "--seed"))


@pytest.mark.slow
def test_command_writes_a_checkpoint_of_the_shipped_structure(tmp_path, capsys):
    pytest.importorskip("sklearn")
    assert training.main(["digits", "--out", str(tmp_path / "digits"), "--steps", "20", "--seed", "1"]) == 0
    assert "held-out accuracy" in capsys.readouterr().out
    made = checkpoint.restore(tmp_path / "digits")
    assert jax.tree.map(np.shape, made["denoiser"]) == jax.tree.map(
        np.shape, checkpoint.restore(digits.__file__.replace("digits.py", "weights/digits"))["denoiser"]
    )
