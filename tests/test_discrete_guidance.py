"""Guided and marginal models on chains, and uniform noise on small joints: exact output laws, no Monte Carlo."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsample as ds
from diffsample import discrete, exact, smc
from diffsample.smc.tokens.experts import GivenCondition

double = pytest.mark.usefixtures("x64")
MASKS = np.full(5, 3)
Y = jnp.array([1])


def mixture():
    second = exact.markov_chain([0.2, 0.2, 0.6], [[0.1, 0.1, 0.8], [0.3, 0.4, 0.3], [0.5, 0.4, 0.1]], 5)
    return exact.chain_mixture([exact.golden_chain(), second], [0.7, 0.3])


def of_class(law, x, cond):
    return jnp.take_along_axis(law.log_class(x), cond[:, None], axis=1)[:, 0]


def by_classifier(scale, policy):
    """The unconditional model guided by the exact classifier to y = 1."""
    law = mixture()
    free = smc.token_product([GivenCondition(law.model(), jnp.asarray(law.null))], [1.0])
    guide = discrete.classifier_guided(jax.tree_util.Partial(of_class, law), scale)
    return exact.output_law(discrete.Decoder(free, policy, guide), MASKS, Y)


def tilted(scale):
    """log of p(x | y)^scale p(x)^(1 - scale), normalised over all sequences."""
    law, every = mixture(), jnp.asarray(list(itertools.product(range(3), repeat=5)))

    def log(x):
        inside = of_class(law, x, jnp.ones(len(x), int)) - law.log_prior[1]
        return scale * (law.log_prob(x) + inside) + (1 - scale) * law.log_prob(x)

    total = jax.nn.logsumexp(log(every))
    return lambda x: log(x) - total


@double
@pytest.mark.parametrize("scale, tv", [(1.0, 0.0), (0.5, 0.0596), (2.0, 0.0881), (3.0, 0.1312)])
def test_classifier_guidance_one_by_one_is_exact_at_scale_one_and_only_there(scale, tv):
    found = by_classifier(scale, discrete.first_hitting(5)).total_variation(tilted(scale))
    assert found == pytest.approx(tv, abs=1e-12 if scale == 1 else 5e-5)


@double
def test_classifier_guidance_and_classifier_free_guidance_coincide():
    law = mixture()
    guided = smc.token_guidance(law.model(), jnp.asarray(law.null), 2.0)
    policy = discrete.first_hitting(5, sizes=[2, 3])
    free = exact.output_law(discrete.Decoder(guided, policy), MASKS, Y)
    enumerated = by_classifier(2.0, policy)
    np.testing.assert_array_equal(free.x, enumerated.x)
    np.testing.assert_allclose(free.p, enumerated.p, atol=1e-12)


@double
def test_gradient_guidance_is_enumeration_where_the_classifier_is_linear():
    weights = jax.random.normal(jax.random.key(0), (5, 4))

    def of_hot(hot, cond):
        return jnp.sum(hot * weights[None], axis=(1, 2))

    def of_tokens(x, cond):
        return of_hot(jax.nn.one_hot(x, 4, dtype=weights.dtype), cond)

    chain, policy = exact.golden_chain(), discrete.given_order([0, 1, 0, 1, 1])
    guides = discrete.classifier_guided_by_gradient(of_hot, 4, 1.5), discrete.classifier_guided(of_tokens, 1.5)
    first, second = (exact.output_law(discrete.Decoder(chain.model(), policy, guide), MASKS) for guide in guides)
    np.testing.assert_allclose(first.p, second.p, atol=1e-12)
    plain = exact.output_law(discrete.Decoder(chain.model(), policy), MASKS)
    assert np.abs(first.p - plain.p).sum() > 0.1


def marginal_model():
    return discrete.MarginalModel(log_marginal, exact.golden_chain(), 3, 3)


def log_marginal(chain, x, cond):
    return chain.log_prob(x) + 7.0  # a constant that all share must not matter


@double
def test_marginal_model_has_the_likelihood_the_conditionals_and_the_residual_of_its_chain():
    chain, model = exact.golden_chain(), marginal_model()
    x = jnp.array([[0, 1, 2, 1, 0], [3, 1, 3, 3, 0]])
    np.testing.assert_allclose(model.log_likelihood(x), chain.log_prob(x), rtol=1e-12)
    positions = jnp.broadcast_to(jnp.arange(5), (2, 5))
    np.testing.assert_allclose(
        model.log_probs(model(x, jnp.ones(2), None), positions), jnp.log(chain.law(x)), rtol=1e-10
    )

    def log_probs(x, at):
        return jnp.log(jnp.take_along_axis(chain.law(x), at[..., None], axis=1))

    np.testing.assert_allclose(model.residual(log_probs, x, jnp.array([2, 1])), 0.0, atol=1e-12)
    law = exact.output_law(discrete.Decoder(model, discrete.first_hitting(5)), MASKS)
    assert law.total_variation(chain.log_prob) < 1e-12


@double
def test_block_gibbs_with_all_positions_is_exact_from_any_start():
    # all tokens at once, independently; then a joint redraw of all, or of two given the third, whose own law is right
    chain = exact.markov_chain([0.5, 0.3, 0.2], [[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.25, 0.25, 0.5]], 3)
    model = discrete.MarginalModel(log_marginal, chain, 3, 3)
    tv = {}
    for block in (1, 2, 3):
        sampler = discrete.Decoder(model, discrete.first_hitting(3, updates=1), corrector=discrete.BlockGibbs(block))
        tv[block] = exact.output_law(sampler, np.full(3, 3)).total_variation(chain.log_prob)
    assert tv[3] < 1e-12 and tv[2] < 1e-12 and 0.01 < tv[1] < 0.4


JOINT = np.array([[0.30, 0.05, 0.02], [0.03, 0.25, 0.05], [0.05, 0.05, 0.20]])


def noisy_pair(alpha):
    """p(x0 pair, noisy pair) [3, 3, 3, 3] of two correlated tokens under uniform noise."""
    kernel = alpha * jnp.eye(3) + (1 - alpha) / 3
    return jnp.einsum("ab,ac,bd->abcd", jnp.asarray(JOINT, kernel.dtype), kernel, kernel)


def leave_one_out(params, x, t, cond):
    """log p(x0_l | the other noisy token), [B, 2, 3]."""
    table = noisy_pair(1 - t[0])
    first, second = table.sum(axis=(1, 2)), table.sum(axis=(0, 3))
    laws = jnp.stack([first.T[x[:, 1]], second.T[x[:, 0]]], axis=1)
    return jnp.log(laws)


def posterior(params, x, t, cond):
    """log p(x0_l | both noisy tokens), [B, 2, 3]."""
    table = noisy_pair(1 - t[0])
    return jnp.log(
        jnp.stack([table.sum(axis=1)[:, x[:, 0], x[:, 1]].T, table.sum(axis=0)[:, x[:, 0], x[:, 1]].T], axis=1)
    )


def uniform_law(features, step_law, steps):
    model = discrete.MaskedModel(features, as_it_is, (), vocab=3, mask_id=3, time=itself)
    levels = discrete.levels(discrete.Polynomial(), steps)
    sampler = discrete.uniform_ancestral(model, levels, step_law=step_law)
    laws = [exact.output_law(sampler, np.array(start)) for start in itertools.product(range(3), repeat=2)]
    return np.mean([law.p for law in laws], axis=0)


def as_it_is(params, h, positions):
    return h


def itself(m):
    return m


@double
def test_uniform_noise_is_first_order_and_its_two_parametrisations_agree():
    wanted = JOINT.ravel()
    coarse, fine = (uniform_law(leave_one_out, discrete.leave_one_out_step, n) for n in (8, 16))
    errors = [0.5 * np.abs(p - wanted).sum() for p in (coarse, fine)]
    assert errors[0] < 0.1 and 1.7 < errors[0] / errors[1] < 2.3
    np.testing.assert_allclose(uniform_law(posterior, discrete.posterior_step, 8), coarse, atol=1e-12)


def test_uniform_noise_samples_belong_to_their_keys():
    model = discrete.MaskedModel(leave_one_out, as_it_is, (), vocab=3, mask_id=3, time=itself)
    sampler = discrete.uniform_ancestral(model, discrete.levels(discrete.Polynomial(), 8))
    out = ds.sample(jax.random.key(0), sampler, (20000, 2))
    assert (out.calls == 8).all()
    alone = ds.sample(jax.random.key(0), sampler, (1, 2), first=17)
    np.testing.assert_array_equal(alone.x[0], out.x[17])
    shares = np.bincount(np.asarray(out.x @ jnp.array([3, 1])), minlength=9) / 20000
    wanted = uniform_law(leave_one_out, discrete.leave_one_out_step, 8)
    np.testing.assert_array_less(np.abs(shares - wanted), 4.5 * np.sqrt(wanted / 20000))


def test_bad_input_of_guided_and_uniform_models_is_refused():
    with pytest.raises(TypeError, match="log_marginal"):
        discrete.MarginalModel(None, (), 3, 3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="block=0"):
        discrete.BlockGibbs(0)
    with pytest.raises(ValueError, match="masks would be left"):
        discrete.uniform_ancestral(marginal_model(), [1.0, 0.5])  # pyright: ignore[reportArgumentType]
