"""The shipped masked model of the digits, its training and its command."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import diffsample as ds
from diffsample import __main__ as command
from diffsample import discrete, token_choices, training, training_tokens
from diffsample.nets import digit_tokens


def test_tokens_and_images_are_two_forms_of_one_digit():
    tokens = jax.random.randint(jax.random.key(0), (5, 64), 0, 17)
    images = digit_tokens.to_images(tokens)
    assert images.shape == (5, 8, 8, 1) and float(images.min()) >= -1 and float(images.max()) <= 1
    np.testing.assert_array_equal(digit_tokens.to_tokens(images), tokens)


def test_masks_of_the_loss_have_every_size_equally_often():
    masked = training_tokens.mask_at_random(jax.random.key(0), jnp.zeros((64, 64), int))
    np.testing.assert_array_equal(np.sort(np.asarray(masked.sum(axis=1))), np.arange(1, 65))
    assert abs(float(masked.mean(axis=0).std()) - np.sqrt(0.25 / 64 * 2 / 3)) < 0.02  # no position is preferred


def test_training_learns_a_constant_image():
    images = jnp.broadcast_to(digit_tokens.to_images(jnp.arange(64)[None] % 17), (8, 8, 8, 1))
    data = training.Data(images, jnp.zeros(8, jnp.int32))
    start = nnx.state(digit_tokens.net(nnx.Rngs(0)), nnx.Param)

    def loss(params, key, data):
        return training_tokens.masked_loss(params, key, data, batch=8)

    fitted = training.fit(jax.random.key(0), loss, start, data, 25, rate=5e-3)
    assert fitted.losses[0] == pytest.approx(np.log(17), abs=1e-4)  # the head starts at zero: uniform
    assert fitted.losses[-1] < 1.5


def test_shipped_model_knows_the_digits_and_its_class():
    # the bound on held-out digits was measured when it was trained; here on real digits, all of them
    pytest.importorskip("sklearn")
    data = training.digits_data()
    some = jnp.arange(0, 1797, 30)
    x, labels = digit_tokens.to_tokens(data.images[some]), data.labels[some]
    model, fit = digit_tokens.model(), digit_tokens.load()
    right, wrong = (
        float(jnp.mean(discrete.any_order_bound(jax.random.key(0), model, x, label, draws=8).value)) / 64 / np.log(2)
        for label in (labels, (labels + 5) % 10)
    )
    assert fit.bits_training < fit.bits < 2 and abs(right - fit.bits_training) < 0.15
    assert wrong > right + 0.3


def test_infilling_keeps_the_given_half():
    pytest.importorskip("sklearn")
    data = training.digits_data()
    x = digit_tokens.to_tokens(data.images[:4])
    upper = jnp.where(jnp.arange(64)[None] < 32, x, digit_tokens.MASK)
    sampler = discrete.Decoder(digit_tokens.model(), discrete.first_hitting(64, updates=8))
    out = ds.sample(jax.random.key(0), sampler, x=upper, cond=data.labels[:4])
    np.testing.assert_array_equal(out.x[:, :32], x[:, :32])
    assert (out.x < 17).all() and (out.calls <= 8).all()


@pytest.mark.parametrize("name", sorted(set(token_choices.DECODERS) - {"speculative"}))
def test_every_decoder_of_the_command_can_be_built(name):
    made = token_choices.decoder(name, 8, temperature=0.9)
    assert made.nfe >= 1
    drawn_by = made.policy if hasattr(made.policy, "proposal") else made
    assert 0.9 in jax.tree.leaves(drawn_by.proposal)


def test_speculative_decoding_of_the_command_takes_no_filter():
    assert token_choices.decoder("speculative", 16).drafts == 4
    with pytest.raises(ValueError, match="takes no --temperature"):
        token_choices.decoder("speculative", 16, top_p=0.9)


def test_command_draws_and_reports(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "picture.png"
    arguments = ["--model", "digit-tokens", "--updates", "4", "--number", "20", "--out", str(out)]
    assert command.main(arguments) == 0
    said = capsys.readouterr().out
    assert "4.0 a sequence" in said and "bits a token" in said and "class agreement" in said and out.exists()
    assert command.main(["--model", "digit-tokens", "--updates", "65"]) == 2
    assert command.main(["--model", "letters"]) == 2
    assert "1 .. 64" in capsys.readouterr().err


def test_command_compares_decoders(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "plot.png"
    arguments = ["compare", "--model", "digit-tokens", "--number", "20", "--calls", "2", "4"]
    assert command.main([*arguments, "--decoders", "first-hitting", "dyadic", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "Frechet distance" in said and "(7)" in said and "bits a token" in said and out.exists()
    assert command.main(["sweep", "--model", "digit-tokens"]) == 2
    assert command.main([*arguments, "--decoders", "nothing"]) == 2
    assert "there is no sweep of --model digit-tokens" in capsys.readouterr().err
