"""The exact output law of decoders on the reference chain (specs/discrete.md section 1.5): no Monte Carlo."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffsample import discrete, exact

pytestmark = pytest.mark.usefixtures("x64")

MASKS = np.full(5, 3)


def law_of(policy, **parts):
    chain = exact.golden_chain()
    law = exact.output_law(discrete.Decoder(chain.model(), policy, **parts), MASKS)
    return law, law.total_variation(chain.log_prob), law.divergence(chain.log_prob)


def padded(levels, updates=16):
    """The grid with idle updates at the end, so that grids of several lengths are one program."""
    return np.pad(levels, (0, updates + 1 - len(levels)))


def test_token_by_token_in_random_order_is_exact():
    law, tv, kl = law_of(discrete.first_hitting(5))
    assert tv < 1e-12 and abs(kl) < 1e-12 and law.calls == pytest.approx(5.0)
    assert law.entropy() == pytest.approx(4.596364, abs=1e-6)


GROUPS = {
    (2, 2, 1): (0.123638, 0.048427),
    (1, 2, 2): (0.093749, 0.029450),
    (1, 1, 1, 2): (0.041607, 0.007725),
    (2, 1, 1, 1): (0.091428, 0.024398),
    (3, 2): (0.240751, 0.174438),
    (2, 3): (0.187441, 0.111859),
}


@pytest.mark.parametrize("sizes", GROUPS)
def test_first_hitting_in_groups(sizes):
    law, *found = law_of(discrete.first_hitting(5, sizes=sizes))
    np.testing.assert_allclose(found, GROUPS[sizes], atol=1e-5)
    assert law.calls == pytest.approx(len(sizes))


def test_extrapolation_is_second_order_at_no_call():
    law, *found = law_of(discrete.first_hitting(5, sizes=[1, 2, 2]), proposal=discrete.Extrapolated())
    np.testing.assert_allclose(found, (0.0450, 0.0077), atol=5e-5)
    assert law.calls == pytest.approx(3.0)
    _, *found = law_of(discrete.first_hitting(5, sizes=[1, 1, 1, 2]), proposal=discrete.Extrapolated(linear=True))
    np.testing.assert_allclose(found, (0.0140, 0.0013), atol=5e-5)


def test_given_groups_and_bisection():
    for groups, golden in (([0, 1, 0, 1, 0], (0.179867, 0.098404)), ([1, 0, 1, 0, 1], (0.143166, 0.049421))):
        _, *found = law_of(discrete.given_order(groups))
        np.testing.assert_allclose(found, golden, atol=1e-5)
    law, tv, _ = law_of(discrete.dyadic(5))
    assert tv < 1e-12 and law.calls == pytest.approx(3.0)


ANCESTRAL = {
    1: (0.487429, 0.771232),
    2: (0.259261, 0.199650),
    4: (0.133867, 0.055540),
    8: (0.068097, 0.015260),
    16: (0.034326, 0.004070),
}


@pytest.mark.parametrize("steps", ANCESTRAL)
def test_ancestral_sampling_on_a_uniform_grid(steps):
    law, *found = law_of(discrete.ancestral(padded(discrete.levels(discrete.Polynomial(), steps))))
    np.testing.assert_allclose(found, ANCESTRAL[steps], atol=1e-5)
    assert law.calls == pytest.approx(steps * (1 - (1 - 1 / steps) ** 5))  # E-NFE: calls only where something changed


@pytest.mark.slow
@pytest.mark.parametrize(
    "steps, golden", [(32, (0.017231, 0.001058)), (64, (0.008634, 0.000270)), (128, (0.004321, 0.000068))]
)
def test_ancestral_sampling_on_fine_grids(steps, golden):
    _, *found = law_of(discrete.ancestral(padded(discrete.levels(discrete.Polynomial(), steps), 128)))
    np.testing.assert_allclose(found, golden, atol=1e-5)


@pytest.mark.parametrize("steps, golden", [(2, (0.280207, 0.231217)), (8, (0.077744, 0.020507))])
def test_md4_cosine_schedule_is_the_linear_one_on_a_cosine_grid(steps, golden):
    levels = discrete.levels(discrete.Cosine(), steps)
    np.testing.assert_allclose(levels[:-1], np.cos(np.pi / 2 * np.arange(steps) / steps), atol=1e-12)
    _, *found = law_of(discrete.ancestral(padded(levels)))
    np.testing.assert_allclose(found, golden, atol=1e-5)


@pytest.mark.parametrize("steps", [2, 4])
def test_asynchronous_clocks_have_the_law_and_the_calls_of_the_grid(steps):
    law, *found = law_of(discrete.asynchronous(discrete.levels(discrete.Polynomial(), steps), 5))
    np.testing.assert_allclose(found, ANCESTRAL[steps], atol=1e-5)
    assert law.calls == pytest.approx(steps * (1 - (1 - 1 / steps) ** 5))


def test_a_bound_on_the_group_brings_the_asynchronous_law_closer_to_the_exact_one():
    levels = discrete.levels(discrete.Polynomial(), 1)
    law, *found = law_of(discrete.asynchronous(levels, 5, most=2))
    np.testing.assert_allclose(found, GROUPS[2, 2, 1], atol=1e-5)  # one interval in groups of two, in random order
    assert law.calls == pytest.approx(3.0)
    _, one, _ = law_of(discrete.asynchronous(levels, 5, most=1))
    assert one < 1e-12


@pytest.mark.slow
def test_trapezoidal_with_exact_unmasking():
    for steps, golden in ((4, (0.03356, 0.00455)), (8, (0.01505, 0.00105))):
        policy = discrete.trapezoidal(discrete.levels(discrete.Polynomial(), steps))
        _, *found = law_of(policy, proposal=discrete.Extrapolated(linear=True))
        np.testing.assert_allclose(found, golden, atol=1e-5)


def test_prompts_leave_the_conditional_law():
    chain = exact.golden_chain()
    prompt = np.array([3, 1, 3, 3, 0])
    law = exact.output_law(discrete.Decoder(chain.model(), discrete.first_hitting(5)), prompt)
    assert (law.x[:, [1, 4]] == [1, 0]).all() and law.calls == pytest.approx(3.0)
    given = chain.log_prob(jnp.asarray(prompt[None]))[0]
    assert law.total_variation(lambda x: chain.log_prob(x) - given) < 1e-12


def test_choosing_by_the_law_is_exact_token_by_token():
    for score in (discrete.confidence, discrete.margin, discrete.negative_entropy):
        _, tv, _ = law_of(discrete.best_first(5, score))
        assert tv < 1e-12
    _, tv, _ = law_of(discrete.best_first(5, discrete.margin, temperature=0.1))
    assert tv < 1e-12


def test_choosing_groups_by_the_law():
    for score, golden in (
        (discrete.confidence, (0.332791, 0.336277)),
        (discrete.margin, (0.332791, 0.336277)),
        (discrete.negative_entropy, (0.322873, 0.307918)),
    ):
        _, *found = law_of(discrete.best_first(5, score, sizes=[2, 2, 1]))
        np.testing.assert_allclose(found, golden, atol=1e-5)


def test_choosing_by_the_sampled_token_is_biased_even_token_by_token():
    # computed in exact fractions: one by one, positions that tie hold 8 % of the mass, and the first of them counts
    golden = {
        (1, 1, 1, 1, 1): (0.661489, 2.442840, 1.662371),
        (2, 2, 1): (0.511813, 1.160348, 2.682610),
        (3, 2): (0.408368, 0.731840, 3.902525),
        (5,): (0.487429, 0.771232, 5.367596),
    }
    for sizes, wanted in golden.items():
        law, *found = law_of(discrete.low_confidence(5, sizes=sizes))
        np.testing.assert_allclose((*found, law.entropy()), wanted, atol=1e-5)


def test_threshold_and_entropy_bound():
    for policy, golden, calls in (
        (discrete.threshold(5, np.log(0.5)), (0.181214, 0.143407), 4.0820),
        (discrete.entropy_bounded(5, 0.5), (0.0, 0.0), 5.0),
        (discrete.entropy_bounded(5, 1.0), (0.257661, 0.219109), 3.4420),
        (discrete.entropy_bounded(5, 2.0), (0.377536, 0.442666), 2.2400),
    ):
        law, *found = law_of(policy)
        np.testing.assert_allclose(found, golden, atol=1e-5)
        assert law.calls == pytest.approx(calls, abs=5e-5)


def test_blocks_from_left_to_right_are_a_fixed_order():
    _, tv, _ = law_of(discrete.blockwise(discrete.best_first(1), 5, 1))
    assert tv < 1e-12
    _, tv, kl = law_of(discrete.blockwise(discrete.low_confidence(5, updates=2), 5, 5))
    _, *whole = law_of(discrete.low_confidence(5, updates=2))
    np.testing.assert_allclose((tv, kl), whole, atol=1e-12)


def test_remasking_at_eight_steps():
    levels = discrete.levels(discrete.Polynomial(), 8)
    for policy, golden in (
        (discrete.remask_at_most(levels, 0.1), (0.07109, 0.01710)),
        (discrete.remask_rescaled(levels, 0.5), (0.09094, 0.02698)),
        (discrete.remask_at_most(levels, 0.0), ANCESTRAL[8]),
    ):
        _, *found = law_of(policy)
        np.testing.assert_allclose(found, golden, atol=1e-5)


@pytest.mark.slow
def test_remasking_and_flow_correctors_at_fine_steps():
    levels = discrete.levels(discrete.Polynomial(), 32)
    for policy, golden in (
        (discrete.remask_at_most(levels, 0.1), (0.02885, 0.00318)),
        (discrete.remask_at_most(levels, 0.02), (0.01772, 0.00117)),
        (discrete.flow_corrector(levels, 15.0), (0.10794, 0.03903)),
    ):
        _, *found = law_of(policy)
        np.testing.assert_allclose(found, golden, atol=1e-5)


def test_uniform_gibbs_corrects_and_confident_gibbs_does_not():
    policy = discrete.ancestral(discrete.levels(discrete.Polynomial(), 4))
    _, *found = law_of(policy, corrector=discrete.Gibbs())
    np.testing.assert_allclose(found, (0.03685, 0.00453), atol=1e-5)
    _, *found = law_of(policy, corrector=discrete.Informed(1))
    np.testing.assert_allclose(found, (0.12635, 0.05214), atol=1e-5)


@pytest.mark.slow
def test_confident_gibbs_hurts_more_at_finer_steps():
    fine = discrete.ancestral(discrete.levels(discrete.Polynomial(), 8))
    _, *found = law_of(fine, corrector=discrete.Informed(1))
    np.testing.assert_allclose(found, (0.17451, 0.10092), atol=1e-5)


def test_two_gibbs_redraws_correct_more_than_one():
    # on three tokens: five make too many outcomes a step for two redraws
    chain = exact.markov_chain([0.5, 0.3, 0.2], [[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.25, 0.25, 0.5]], 3)
    policy, tv = discrete.first_hitting(3, sizes=[3]), []
    for corrections in (1, 2):
        sampler = discrete.Decoder(chain.model(), policy, corrector=discrete.Gibbs(), corrections=corrections)
        law = exact.output_law(sampler, np.full(3, 3))
        tv.append(law.total_variation(chain.log_prob))
        assert law.calls == pytest.approx(1 + corrections, abs=1.0)
    assert 0.01 < tv[1] < 0.8 * tv[0]
