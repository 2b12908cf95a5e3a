"""Ready operators against dense matrices and NumPy, and what is refused before sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsample as ds
from diffsample import guidance, solvers
from diffsample.guidance import operators
from diffsample.guidance.measurement import Spectral, apply, pinv

RNG = np.random.default_rng(0)
IMAGE = (4, 6, 2)
FREQUENCIES = (RNG.random((4, 6)) < 0.4).astype(float)
KERNEL = RNG.random((3, 2))
READY = {
    "mask": operators.mask((RNG.random(IMAGE) < 0.5).astype(float)),
    "downsample": operators.downsample(IMAGE, 2),
    "grayscale": operators.grayscale(IMAGE, (0.7, 0.2)),
    "grayscale(one channel)": operators.grayscale(IMAGE, (0.0, 0.3)),
    "blur": operators.blur(IMAGE, KERNEL),
    "blur(singular)": operators.blur(IMAGE, [[0.5, 0.5]]),  # the highest frequency along rows vanishes
    "fourier": operators.fourier(IMAGE, FREQUENCIES),
    "matrix": operators.matrix(RNG.normal(size=(5, 48)), IMAGE),
    "matrix(tall, singular)": operators.matrix(RNG.normal(size=(60, 7)) @ RNG.normal(size=(7, 48)), IMAGE, (6, 10)),
    "radon": operators.radon((4, 6, 1), [0.0, 30.0, 90.0]),
}


def dense(operator):
    """[m, d], column by column."""
    d = int(np.prod(operator.shape))
    columns = jax.vmap(lambda unit: operator(unit.reshape(operator.shape)).ravel())(jnp.eye(d))
    return np.asarray(columns).T


@pytest.mark.parametrize("name", READY)
def test_axes_are_the_singular_value_decomposition(x64, name):
    operator = READY[name]
    assert isinstance(operator, Spectral)
    A, x = dense(operator), RNG.normal(size=operator.shape)
    y = operator(jnp.asarray(x))
    np.testing.assert_allclose(y.ravel(), A @ x.ravel(), atol=1e-12)
    c = operator.to_axes(jnp.asarray(x))
    np.testing.assert_allclose(operator.from_axes(c), x, atol=1e-12)
    np.testing.assert_allclose(np.sum(np.abs(c) ** 2), np.sum(x**2), rtol=1e-12)
    np.testing.assert_allclose(operator.measured(y), operator.singular_values * c, atol=1e-11)  # U'A = diag(s) V'
    s = np.sort(np.broadcast_to(operator.singular_values, c.shape).ravel())[::-1]
    np.testing.assert_allclose(s, np.pad(np.linalg.svd(A)[1], (0, max(0, s.size - len(A)))), atol=1e-10)
    inverse = np.linalg.pinv(A, rcond=1e-10)
    other = RNG.normal(size=y.shape)  # outside the range, where there is an outside
    np.testing.assert_allclose(operator.pinv(jnp.asarray(other)).ravel(), inverse @ other.ravel(), atol=1e-9)


def test_operators_measure_what_they_say(x64):
    x = RNG.normal(size=IMAGE)
    pooled = x.reshape(2, 2, 3, 2, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(READY["downsample"](jnp.asarray(x)), pooled, atol=1e-14)
    np.testing.assert_allclose(READY["grayscale"](jnp.asarray(x))[..., 0], x @ [0.7, 0.2], atol=1e-14)
    moved = [np.roll(x, (i - 1, j - 1), (0, 1)) * KERNEL[i, j] for i in range(3) for j in range(2)]
    np.testing.assert_allclose(READY["blur"](jnp.asarray(x)), sum(moved), atol=1e-14)
    spectrum = np.fft.fft2(x, axes=(0, 1), norm="ortho") * FREQUENCIES[..., None]
    np.testing.assert_allclose(READY["fourier"](jnp.asarray(x)), np.stack([spectrum.real, spectrum.imag], -1))
    image = RNG.random((4, 6, 1))
    lines = READY["radon"](jnp.asarray(image))
    np.testing.assert_allclose(lines.sum(axis=1), np.full(3, image.sum()), rtol=1e-12)
    columns = image[..., 0].sum(axis=0)  # at 0 degrees, bins fall half way between the 6 columns
    np.testing.assert_allclose(lines[0, 1:8], (np.pad(columns, (1, 0)) + np.pad(columns, (0, 1))) / 2, atol=1e-12)
    np.testing.assert_allclose(operators.gaussian_kernel(5, 1.3).sum(), 1.0)


def test_one_operator_a_sample():
    masks = (RNG.random((3, 4)) < 0.5).astype(np.float32)
    x = jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32)
    each = operators.per_sample(operators.mask(masks))
    np.testing.assert_array_equal(apply(each, x), masks * x)
    np.testing.assert_array_equal(pinv(each, jnp.asarray(masks * x)), masks * x)
    law = ds.exact.Gaussian(np.zeros(4), np.eye(4))
    rule = guidance.replacement(law, each, masks * x)
    sampler = solvers.linear(rule, solvers.ddim(ds.VarianceExploding(), [9.0, 1.0, 0.0]))
    out = ds.sample(jax.random.key(0), sampler, (3, 4))
    np.testing.assert_allclose(masks * out, masks * x, atol=1e-6)


def test_a_callable_pytree_keeps_its_arrays_as_leaves():
    traces = []

    def scaled(factor, x0):
        traces.append(1)
        return factor * x0

    def run(factor):
        rule = guidance.dps(ds.exact.Gaussian(0.0, 1.0), jax.tree_util.Partial(scaled, factor), jnp.ones(4))
        sampler = solvers.linear(rule, solvers.ddim(ds.VarianceExploding(), [9.0, 1.0, 0.0]))
        return ds.sample(jax.random.key(0), sampler, (4,))

    first = run(jnp.float32(1.0))
    count = len(traces)
    assert not np.allclose(run(jnp.float32(3.0)), first)
    assert len(traces) == count


LAW = ds.exact.Gaussian([0.0, 0.0, 0.0], 1.0)
SEEN = operators.mask([1.0, 0.0, 1.0])
RULES = {
    "dps": lambda A, y: guidance.dps(LAW, A, y),
    "mmps": lambda A, y: guidance.mmps(LAW, A, y, 0.1),
    "ddnm": lambda A, y: guidance.ddnm(LAW, A, y),
    "red_diff": lambda A, y: guidance.red_diff(LAW, A, y),
    "psld": lambda A, y: guidance.psld(LAW, A, y, encode=lambda v: v, decode=lambda v: v),
    "observe": lambda energy, y: guidance.observe(LAW, y, [1, 0, 1], 2.0, energy),
}


def draw(rule):
    sampler = solvers.linear(rule, solvers.ddim(ds.VarianceExploding(), [9.0, 1.0, 0.0]))
    return ds.sample(jax.random.key(0), sampler, (2, 3))


@pytest.mark.parametrize(
    ("rule", "operator", "y", "error", "message"),
    [
        ("dps", lambda x0: x0[:2], jnp.ones(3), ValueError, r"y has shape \(3,\).*must be \(2,\) or \(2, 2\)"),
        ("dps", lambda x0: x0[:2], jnp.ones((5, 2)), ValueError, "y has shape"),
        ("dps", lambda x0: x0 @ jnp.ones((4, 2)), jnp.ones(2), ValueError, r"fails on one sample of shape \(3,\)"),
        ("mmps", jnp.round, jnp.ones(3), ValueError, "zero everywhere"),
        ("psld", jnp.sign, jnp.ones(3), ValueError, "zero everywhere"),
        ("red_diff", lambda x0: jnp.argmax(x0).astype(float), jnp.ones(()), ValueError, "zero everywhere"),
        ("dps", lambda x0: jax.pure_callback(np.sin, x0, x0, vmap_method="sequential"), jnp.ones(3), ValueError,
         "gradient, and JAX cannot form it"),
        ("dps", lambda x0: (x0 > 0).astype(int), jnp.ones(3), TypeError, "one real array"),
        ("dps", SEEN, 1j * jnp.ones(3), TypeError, "y must be real"),
        ("observe", lambda x0, y, mask: x0, jnp.ones(3), ValueError, r"the energy.*\(2,\), got shape \(2, 3\)"),
        ("dps", lambda x0: jnp.fft.fft(x0), jnp.ones(3), TypeError, "stack real and imaginary"),
        ("dps", jnp.eye(3), jnp.ones(3), TypeError, r"operators.matrix\(A\)"),
        ("ddnm", lambda x0: x0[:2], jnp.ones(2), TypeError, "pseudo-inverse"),
        ("ddnm", SEEN, jnp.ones(3), ValueError, "outside the range"),
        ("ddnm", SEEN, jnp.array([[1.0, 0.0, 1.0], [1.0, 0.5, 1.0]]), ValueError, "outside the range"),
        ("ddnm", SEEN, jnp.ones(2), ValueError, "does not fit"),
    ],
)  # fmt: skip
def test_bad_operators_and_measurements_are_refused_before_sampling(rule, operator, y, error, message):
    with pytest.raises(error, match=message):
        draw(RULES[rule](operator, y))


def test_lists_of_numbers_are_measurements_and_weights():
    as_lists = guidance.dps(LAW, SEEN, [1.0, 0.0, 1.0], [0.3, 0.6])
    np.testing.assert_array_equal(
        draw(as_lists), draw(guidance.dps(LAW, SEEN, jnp.array([1.0, 0, 1]), jnp.array([0.3, 0.6])))
    )


def test_bad_numbers_are_refused_when_the_rule_is_made():
    y = jnp.array([1.0, 0.0, 1.0])
    for make, message in [
        (lambda: guidance.tmpd(LAW, SEEN, y, 0.0, size=3), "sigma_y=0.0 must be positive"),
        (lambda: guidance.dps_gaussian(LAW, SEEN, y, -1.0), "must be positive"),
        (lambda: guidance.pigdm(LAW, SEEN, y, -1.0), "must not be negative"),
        (lambda: guidance.pigdm(LAW, SEEN, y, np.ones((2, 2))), r"a number or one a sample"),
        (lambda: guidance.mmps(LAW, SEEN, y, 1.0, iterations=0), "iterations=0"),
        (lambda: guidance.tmpd(LAW, SEEN, y, 1.0, size=0), "size=0"),
        (lambda: draw(guidance.tmpd(LAW, SEEN, y, 1.0, size=2)), "told of 2 numbers"),
        (lambda: guidance.ddrm(LAW, SEEN, y, eta=1.5), "eta=1.5"),
        (lambda: guidance.ddnm(LAW, SEEN, y, eta=-0.1), "eta=-0.1"),
        (lambda: guidance.lgd_mc(LAW, lambda x0, _: x0.sum(), draws=0), "draws=0"),
        (lambda: guidance.stsl(LAW, SEEN, y, corrections=0), "corrections=0"),
        (lambda: draw(guidance.loss_guidance(LAW, lambda x0, _: x0)), "must be a scalar"),
        (lambda: draw(guidance.loss_guidance(LAW, lambda x0, y: x0.sum(), jnp.ones(3))), "batch axis"),
        (lambda: operators.mask([0.5, 1.0]), "0 and 1 only"),
        (lambda: operators.downsample((4, 6, 1), 4), "divide the sides"),
        (lambda: operators.downsample((1, 4, 6, 1), 2), "without the batch axis"),
        (lambda: operators.grayscale((4, 4, 3), (0.5, 0.5)), "must be 3 numbers"),
        (lambda: operators.blur((4, 4, 1), np.ones((5, 5))), "fit into"),
        (lambda: operators.fourier((4, 4, 1), np.ones((4, 5))), "of 0 and 1"),
        (lambda: operators.matrix(np.ones(3)), r"finite matrix \[m, d\]"),
        (lambda: operators.matrix(np.ones((2, 3)), (2, 2)), "does not map"),
        (lambda: operators.radon((4, 4, 3), [0.0]), "one channel"),
        (lambda: operators.radon((4, 4, 1), []), "at least one angle"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()


@pytest.mark.parametrize("rule", [guidance.tmpd_diagonal, guidance.pigdm, guidance.diffpir, guidance.dps_gaussian])
def test_pure_noise_is_refused_by_rules_that_divide_by_alpha(rule):
    flow = ds.FlowMatching()
    with pytest.raises(ValueError, match="alpha = 0 at t = 1"):
        solvers.linear(rule(LAW, SEEN, jnp.zeros(3), 0.1), solvers.ddim(flow, [1.0, 0.5, 0.0]))
    solvers.linear(rule(LAW, SEEN, jnp.zeros(3), 0.1), solvers.ddim(flow, [0.99, 0.5, 0.0]))
