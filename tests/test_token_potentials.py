"""Weights of masked decoders against enumeration of every path (specs/smc.md, sections 4.3 to 4.5 and 9.1 c)."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import token_paths as tp

import diffsample as ds
from diffsample import discrete, smc
from diffsample.compiles import count_compiles
from diffsample.smc import combine, token_guidance, token_product, token_weights
from diffsample.struct import pytree

POLICIES = {
    "random order": lambda: discrete.first_hitting(3),
    "given order": lambda: discrete.given_order([1, 2, 0]),
    "most confident": lambda: discrete.best_first(3),
}


def two_experts(exponents):
    return token_product([tp.chain().model(), tp.other_chain().model()], exponents)


def joint(exponents, reward=None):
    """prod p_i(x)^beta_i exp(reward(x)) of every sequence."""
    x = jnp.asarray(tp.sequences())
    total = sum(b * c.log_prob(x) for b, c in zip(exponents, (tp.chain(), tp.other_chain()), strict=True))
    return np.exp(np.asarray(total) + (0.0 if reward is None else np.asarray(reward(x))))


def zeros_reward(x):
    """Counts token 0, masks not counted, and a pair."""
    return 0.8 * jnp.sum(x == 0, axis=1) - 0.5 * (x[:, 0] == x[:, 2])


def zeros_score(view):
    return zeros_reward(view.x)


@pytree
class Scaled:
    """A multiple of `zeros_reward`, its strength a leaf: one program with and without it."""

    strength: Any

    def __call__(self, view):
        return self.strength * zeros_reward(view.x)


@pytest.mark.parametrize(
    ("exponents", "temperature", "strength"),
    [((1.0, 0.0), 1.0, 0.0), ((2.0, 0.0), 1.0, 0.0), ((0.7, 1.6), 1.0, 0.0), ((-0.5, 1.5), 1.0, 0.0),
     ((0.7, 1.6), 1.7, 1.0)],
)  # fmt: skip
@pytest.mark.parametrize("name", POLICIES)
def test_any_order_weights_are_exact_for_any_proposal_and_reward(x64, name, exponents, temperature, strength):
    decoder = discrete.Decoder(two_experts(exponents), POLICIES[name](), discrete.Temperature(temperature))
    law = tp.tilted_law(decoder, token_weights(decoder, Scaled(strength)))
    np.testing.assert_allclose(law, joint(exponents, lambda x: strength * zeros_reward(x)), rtol=1e-12)


def test_reward_tilted_proposals_leave_weights_that_no_token_changes(x64):
    """Given order, so that a path's weight is a product of sums over each of its states' next token."""
    policy = discrete.given_order([0, 1, 2])
    decoder = discrete.Decoder(tp.chain().model(), policy, smc.RewardTilted(zeros_reward))
    potential = token_weights(decoder, zeros_score)
    np.testing.assert_allclose(tp.tilted_law(decoder, potential), joint((1.0, 0.0), zeros_reward), rtol=1e-12)
    x, _, log_w = tp.weighted_paths(decoder, potential)
    same_first_two = log_w[np.lexsort(x.T[::-1])].reshape(9, 3)
    np.testing.assert_allclose(same_first_two, same_first_two[:, :1].repeat(3, axis=1), atol=1e-12)


def test_fk_steering_by_sampled_completions_is_exact_for_any_key(x64):
    for seed in (0, 1):
        decoder = discrete.Decoder(tp.chain().model(), discrete.given_order([0, 1, 2]))
        value = smc.x0_reward(decoder.model, zeros_reward, jax.random.key(seed), samples=3)
        law = tp.tilted_law(decoder, token_weights(decoder, value))
        np.testing.assert_allclose(law, joint((1.0, 0.0), zeros_reward), rtol=1e-12)


def test_debiased_guidance_samples_the_tilted_joint(x64):
    """p(x | y)^scale p(x)^(1 - scale), which guided decoding alone does not."""
    mixture = ds.exact.chain_mixture([tp.chain(), tp.other_chain()], [0.7, 0.3])
    x, label, scale = jnp.asarray(tp.sequences()), jnp.array([1]), 2.5
    decoder = discrete.Decoder(token_guidance(mixture.model(), mixture.null, scale), discrete.first_hitting(3))
    wanted = scale * tp.other_chain().log_prob(x) + (1 - scale) * mixture.log_prob(x)
    law = tp.tilted_law(decoder, token_weights(decoder), cond=label)
    np.testing.assert_allclose(law, np.exp(wanted), rtol=1e-12)
    paths, p, _ = tp.weighted_paths(decoder, token_weights(decoder), cond=label)
    plain = np.bincount(paths @ np.array([9, 3, 1]), p, minlength=27)
    assert 0.5 * np.abs(plain - law / law.sum()).sum() > 0.02


def test_position_after_value_is_biased_and_refused(x64):
    """Pitfall 18: the same weights after LLaDA's rule miss the target; the library reports it instead."""
    model = two_experts((2.0, 0.0))
    decoder = discrete.Decoder(model, discrete.low_confidence(3))

    @pytree
    class Believing(smc.TokenWeights):
        """As if the token had been drawn by its law."""

        def __call__(self, transition, memory):
            after: Any = transition.after
            honest = after._replace(reveal=after.reveal._replace(log_q=after.reveal.log_p))
            return super().__call__(transition._replace(after=honest), memory)

    law, wanted = tp.tilted_law(decoder, Believing(model, None)), joint((2.0, 0.0))
    assert abs(law.sum() / wanted.sum() - 1) > 0.03
    assert 0.5 * np.abs(law / law.sum() - wanted / wanted.sum()).sum() > 0.1
    run = smc.feynman_kac(decoder, token_weights(decoder), particles=4)
    with pytest.raises(FloatingPointError, match="NaN"):
        ds.sample(jax.random.key(0), run, (4, 3))


@pytest.mark.slow
def test_weights_of_several_positions_tend_to_exact_ones(x64):
    """Path B on the ancestral grid: the error is the experts' own error of factorising."""
    wanted, errors = joint((0.7, 1.6)), []
    for updates in (1, 2, 4):
        policy = discrete.ancestral(discrete.levels(discrete.Polynomial(), updates))
        decoder = discrete.Decoder(two_experts((0.7, 1.6)), policy)
        law = tp.tilted_law(decoder, token_weights(decoder))
        errors.append(0.5 * np.abs(law / law.sum() - wanted / wanted.sum()).sum())
    assert errors[0] > 1.4 * errors[1] > 1.4 * 1.4 * errors[2]


def test_mask_tempering_is_the_kernel_ratio_of_factorised_laws(x64):
    """Both parts together against the product form sum beta log p_i + (1 - B) log r - log K, path by path."""
    exponents, levels = (0.7, 1.6), np.array([1.0, 0.6, 0.25, 0.0])
    experts = [tp.chain(), tp.other_chain()]
    decoder = discrete.Decoder(two_experts(exponents), discrete.ancestral(levels))
    potential = combine(token_weights(decoder), smc.MaskTempering(sum(exponents)))
    x, p, log_w = tp.weighted_paths(decoder, potential)
    plain = brute_force_paths(experts, exponents, 1 - levels)
    found = {}
    for tokens, probability, weight in zip(x.tolist(), p, log_w, strict=True):
        found.setdefault(tuple(tokens), []).append((probability, weight))
    for tokens, pairs in plain.items():
        mine, theirs = np.array(sorted(found[tokens])), np.array(sorted(pairs))
        assert mine[:, 0].sum() == pytest.approx(theirs[:, 0].sum(), rel=1e-10)
        for power in (1, 2):
            total = [(pair[:, 0] * np.exp(power * pair[:, 1])).sum() for pair in (mine, theirs)]
            assert total[0] == pytest.approx(total[1], rel=1e-10)


def brute_force_paths(experts, exponents, alphas):
    """{sequence: [(probability, log-weight)]} over all mask patterns of each step."""
    paths = {(3, 3, 3): [(1.0, 0.0)]}
    for older, newer in itertools.pairwise(alphas):
        kappa, new = (newer - older) / (1 - older), {}
        for x, pairs in paths.items():
            laws = [np.asarray(c.law(jnp.array([x])))[0] for c in experts]
            product = np.prod([law**b for law, b in zip(laws, exponents, strict=True)], axis=0)
            proposal = product / product.sum(axis=-1, keepdims=True)
            options = [range(4) if token == 3 else (token,) for token in x]
            for y in itertools.product(*options):
                log_p, log_r, k = np.zeros(2), 0.0, 1.0
                for at, (old, token) in enumerate(zip(x, y, strict=True)):
                    if old == 3 and token == 3:
                        log_p, k = log_p + np.log1p(-kappa) if kappa < 1 else log_p - np.inf, k * (1 - kappa)
                    elif old == 3:
                        log_p = log_p + np.log(kappa) + np.log([law[at, token] for law in laws])
                        log_r, k = log_r + np.log(1 - older / newer), k * kappa * proposal[at, token]
                    else:
                        log_r += np.log(older / newer)
                if k > 0:
                    weight = np.dot(exponents, log_p) + (1 - sum(exponents)) * log_r - np.log(k)
                    new.setdefault(y, []).extend((p * k, w + weight) for p, w in pairs)
        paths = new
    return paths


def test_kernel_ratio_of_exact_reversals_is_exact_in_big_steps(x64):
    """Joint reverse kernels by Bayes, three steps from all masks, any proposal (specs/smc.md 4.3 ii)."""
    exponents, alphas = np.array([0.7, 1.6]), [1e-3, 0.4, 0.75, 1.0]
    states = np.stack(np.meshgrid(*[np.arange(4)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    clean = np.array([np.exp(np.asarray(c.log_prob(jnp.asarray(states)))) for c in (tp.chain(), tp.other_chain())])
    masks = (states == 3).sum(axis=1)

    def noised(alpha):
        return clean * (1 - alpha) ** masks * alpha ** (3 - masks)

    rng, weighted = np.random.default_rng(0), np.prod(noised(alphas[0]) ** exponents[:, None], axis=0)
    for older, newer in itertools.pairwise(alphas):
        keep = older / newer
        same, lost = states[:, None] == states[None], (states[None] == 3) & (states[:, None] != 3)
        stays = np.where(states[:, None] == 3, 1.0 * same, np.where(lost, 1 - keep, keep * same))
        forward = stays.prod(axis=-1)  # r(x_t = column | x_s = row)
        start, end = noised(older), noised(newer)
        reverse = end[:, :, None] * forward[None] / np.where(start > 0, start, 1.0)[:, None]  # p_i(row | column)
        proposal = np.where(forward > 0, rng.uniform(0.2, 1.0, forward.shape), 0.0)
        proposal /= proposal.sum(axis=0, keepdims=True)
        possible = (forward > 0) & (reverse > 0).all(axis=0)
        logs = [np.log(np.where(possible, value, 1.0)) for value in (reverse, forward, proposal)]
        log_p, log_r, log_k = (jnp.asarray(value) for value in logs)
        log_w = smc.kernel_ratio(log_p, log_r, log_k, jnp.asarray(exponents))
        weighted = np.where(possible, proposal * np.exp(np.asarray(log_w)), 0.0) @ weighted
        np.testing.assert_allclose(weighted, np.prod(end ** exponents[:, None], axis=0), rtol=1e-10, atol=1e-15)


def test_feynman_kac_over_a_decoder_samples_the_tempered_joint_and_is_one_program():
    """Squared chain with a reward: unbiased normaliser, the law of one pick a group; no compile for other exponents."""
    groups, k = 1500, 24

    def run(beta):
        decoder = discrete.Decoder(token_product([tp.chain().model()], [beta]), discrete.first_hitting(3))
        sampler = smc.feynman_kac(decoder, token_weights(decoder, zeros_score), particles=k)
        return ds.sample(jax.random.key(0), sampler, (groups * k, 3))

    out = run(2.0)
    wanted = joint((2.0, 0.0), zeros_reward)
    ratio = np.exp(np.asarray(out.log_z, np.float64)) / wanted.sum()
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / groups**0.5
    place = out.grouped @ jnp.array([9, 3, 1])
    shares = jax.vmap(lambda at, w: jnp.bincount(at, w, length=27))(place, out.weights * jnp.exp(out.log_z)[:, None])
    shares = np.asarray(shares, np.float64) / wanted.sum()
    error = shares.std(axis=0) / groups**0.5
    # 27 unbiased cells: false alarm 2e-4
    assert (np.abs(shares.mean(axis=0) - wanted / wanted.sum()) < 4.5 * error).all()
    assert int(out.inner.calls.max()) == 3
    with count_compiles() as compiles:
        run(1.5)
    assert compiles.count == 0


def test_token_weights_refuse_what_they_cannot_weigh():
    model = tp.chain().model()
    process = ds.VariancePreserving()
    linear = ds.solvers.linear(ds.exact.Gaussian(0.0, 1.0), ds.solvers.ddpm(process, ds.times.uniform(process, 4)))
    decoder = discrete.Decoder(model, discrete.first_hitting(3))
    with pytest.raises(ValueError, match="masked decoder"):
        smc.feynman_kac(linear, token_weights(decoder), particles=2)
    with pytest.raises(ValueError, match="one each"):
        token_product([model, model], [1.0])
    with pytest.raises(ValueError, match="one vocabulary"):
        token_product([model, ds.exact.markov_chain([0.5, 0.5], [[0.9, 0.1], [0.2, 0.8]], 3).model()], [1.0, 1.0])
    with pytest.raises(ValueError, match="samples=0"):
        smc.x0_reward(model, zeros_reward, jax.random.key(0), samples=0)
