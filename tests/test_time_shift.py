"""Time shift: the base method without shifts, what the variance selects, algorithm 3 written out, the batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsample as ds
from diffsample import solvers
from diffsample.process import Level

BETAS = ds.DiscreteBetas.linear()
GRID = ds.times.trailing(BETAS, 8)
KEY = jax.random.key(0)
ABAR = BETAS.alpha(BETAS.time(np.arange(1000))) ** 2


def mixture():
    return ds.exact.Mixture([0.4, 0.6], [-1.0, 0.8], [0.3, 0.2])


BASES = {
    "ddim": solvers.ddim,
    "ddim-eta": lambda p, g: solvers.ddim(p, g, eta=0.6),
    "ddpm": solvers.ddpm,
    "plms": solvers.plms,
    "spndm": solvers.spndm,
    "fpndm": solvers.fpndm,
}


def shifted(name, grid=GRID, law=None, window=40, cutoff=0, data_var=0.0):
    law = law or mixture()
    options = {"window": window, "cutoff": cutoff, "data_var": data_var}
    if isinstance(name, tuple):
        return solvers.shifted_exponential(law, BETAS, grid, order=name[0], noise_form=name[1], **options)
    return solvers.shifted(law, BASES[name](BETAS, grid), **options)


@pytest.mark.parametrize("name", [*BASES, (1, False), (2, False), (3, False), (2, True), (3, True)])
def test_no_window_or_a_high_cutoff_is_the_base_method(x64, name):
    if isinstance(name, tuple):
        table = solvers.exp_multistep(BETAS, GRID, order=name[0], noise_form=name[1])
    else:
        table = BASES[name](BETAS, GRID)
    x = jax.random.normal(jax.random.key(1), (3, 5))
    expected, path = ds.sample(KEY, solvers.linear(mixture(), table), x=x, record=lambda v: (v.x, v.std, v.level.t))
    for window, cutoff in ((0, 0), (50, 1000)):
        sampler = shifted(name, window=window, cutoff=cutoff)
        out, seen = ds.sample(KEY, sampler, x=x, record=lambda v: (v.x, v.std, v.level.t))
        np.testing.assert_allclose(out, expected, rtol=1e-11, atol=1e-11)
        np.testing.assert_allclose(seen[0], path[0], rtol=1e-11, atol=1e-11)
        np.testing.assert_allclose(seen[2], np.repeat(path[2][:, None], 3, axis=1), rtol=1e-12)
        assert sampler.nfe == table.calls
        if table.registers == 1:
            np.testing.assert_allclose(seen[1], np.repeat(path[1][:, None], 3, axis=1), atol=1e-11)


def of_variance(var, d=64):
    """A sample whose unbiased variance is var."""
    x = np.random.default_rng(0).normal(size=d)
    return (x - x.mean()) * np.sqrt(var / x.var(ddof=1)) + 0.3


def chosen(x, center, window=1000, **options):
    level = shifted("ddim", window=window, **options)._shifted(jnp.asarray(np.atleast_2d(x)), center)
    return np.rint(np.asarray(level.t) * 1000 - 1).astype(int)


def test_the_variance_selects_its_index_inside_the_window(x64):
    for k in (150, 400, 620, 900):
        assert chosen(of_variance(1 - ABAR[k]), 500) == k
        assert chosen(of_variance(1 - ABAR[k]), 500, window=41) == np.clip(k, 480, 520)
    assert chosen(of_variance(1e-9), 3, window=21) == 0 and chosen(of_variance(9.0), 995, window=21) == 999


def test_exact_samples_are_shifted_by_the_table_unless_data_var_is_given(x64):
    """specs/solvers.md, 4.3: data of variance s^2 per image, linear betas."""
    for s2, shifts in ((0.25, (16, 20, 28, 44, 94)), (0.1, (6, 7, 10, 17, 42))):
        for t, shift in zip((900, 700, 500, 300, 100), shifts, strict=True):
            x = of_variance(1 - ABAR[t] * (1 - s2))
            assert chosen(x, t) == t + shift
            assert chosen(x, t, data_var=s2) == t


def test_ties_go_to_the_lowest_index(x64):
    x = np.array([1, -1, 1, -1, 0.5, -0.5, 0.5, -0.5, 0.0])  # variance 5 / 8, between 1/4 and 1
    sampler = shifted("ddim", window=1000)
    table = Level(np.array([0.1, 0.2]), np.zeros(2), np.array([0.5, 1.0]))
    assert float(dataclasses.replace(sampler, table=table)._shifted(jnp.asarray(x)[None], 0).t[0]) == 0.1


def levels(k):
    return (np.sqrt(ABAR[k]), np.sqrt(1 - ABAR[k])) if k >= 0 else (1.0, 0.0)


def by_hand(x, window, cutoff, order):
    """Algorithm 3 for one sample, over DDIM or the exponential method of order 2 on x0."""
    index = np.rint(GRID.t * 1000 - 1).astype(int)
    e, past, seen = index[0], [], []
    for i in range(len(index) - 1):
        (a, s), (b, t) = levels(e), levels(index[i + 1])
        seen.append(e)
        x0 = np.asarray(mixture().predict(jnp.asarray(x)[None], Level(None, a, s)).x0)[0]
        mean = x0
        if order == 2 and past and t:
            h, back = np.log(b * s / (t * a)), np.log(past[-1][1] / past[-1][2])
            slope = (x0 - past[-1][0]) / (np.log(a / s) - back)
            mean = x0 + slope * (h - 1 + np.exp(-h)) / (1 - np.exp(-h)) if np.log(a / s) - back > 1e-9 else x0
        past.append((x0, a, s))
        x = t / s * x + (b - t / s * a) * mean
        e = index[i + 1]
        if index[i] > cutoff and e >= 0:
            near = np.arange(max(e - window // 2, 0), min(e + window // 2, 999) + 1)
            e = near[np.argmin(np.abs(x.var(ddof=1) - (1 - ABAR[near])))]
    return x, seen


@pytest.mark.parametrize("order", [1, 2])
def test_the_published_algorithm_written_out(x64, order):
    x = np.asarray(jax.random.normal(jax.random.key(1), (3, 12)))
    name = "ddim" if order == 1 else (2, False)
    out, t = ds.sample(KEY, shifted(name, window=30, cutoff=300), x=jnp.asarray(x), record=lambda v: v.level.t)
    for i in range(3):
        expected, seen = by_hand(x[i], 30, 300, order)
        np.testing.assert_array_equal(np.rint(np.asarray(t)[:, i] * 1000 - 1), seen)
        np.testing.assert_allclose(out[i], expected, rtol=1e-9)
    assert np.abs(np.asarray(t) - GRID.t[:-1, None]).max() > 5e-3  # it did shift


@pytest.mark.parametrize("name", ["ddpm", "fpndm", (3, False)])
def test_a_sample_does_not_depend_on_its_batch(name):
    sampler = shifted(name)
    whole, t = ds.sample(KEY, sampler, (6, 7), record=lambda v: v.level.t)
    np.testing.assert_allclose(ds.sample(KEY, sampler, (2, 7), first=3), whole[3:5], rtol=1e-4, atol=1e-5)
    assert np.abs(np.diff(t, axis=1)).max() > 0.01 and np.isfinite(whole).all()


def tilted(params, x, t, cond):
    return jnp.tanh(params * x) + 0.1 * cond[:, None] + 0.1 * t[:, None]


def test_guidance_bfloat16_and_gradients():
    network = ds.Network(tilted, jnp.float32(0.8), predicts="noise")

    def run(scale, dtype=jnp.float32):
        guided = ds.guidance.apg(network, 2, scale, radius=0.7, momentum=-0.5)
        return ds.sample(KEY, shifted("spndm", law=guided), (4, 5), cond=jnp.arange(4) % 2, dtype=dtype)

    np.testing.assert_array_equal(run(3.0, jnp.bfloat16), run(3.0).astype(jnp.bfloat16))
    assert np.isfinite(jax.grad(lambda scale: run(scale).sum())(3.0))


def test_what_it_refuses():
    vp = ds.VariancePreserving()
    with pytest.raises(TypeError, match="DiscreteBetas"):
        solvers.shifted(mixture(), solvers.ddim(vp, [1.0, 0.5, 0.1]), window=4, cutoff=0)
    with pytest.raises(ValueError, match="table times"):
        shifted("ddim", grid=ds.times.uniform(BETAS, 7))
    for window in (-1, 4.5):
        with pytest.raises(ValueError, match=f"window={window}"):
            shifted("ddim", window=window)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"data_var=-1\.0"):
        solvers.shifted(mixture(), solvers.ddim(BETAS, GRID), window=4, cutoff=0, data_var=-1.0)
    for table in (solvers.dpmpp(BETAS, GRID), solvers.ghvb(BETAS, GRID), solvers.ddpm(BETAS, GRID, large=True)):
        with pytest.raises(ValueError, match="base method"):
            solvers.shifted(mixture(), table, window=4, cutoff=0)
    with pytest.raises(ValueError, match="two numbers"):
        ds.sample(KEY, shifted("ddim"), (4,))
