"""Networks of every kind, on every process, from every framework; wrong ones fail when traced, readably."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsample as ds
from diffsample import solvers

VP, VE, FLOW = ds.VariancePreserving(), ds.VarianceExploding(), ds.FlowMatching()
KEY = jax.random.key(0)
KINDS = ["noise", "data", "v", "velocity", "score", "edm"]
LAW = ds.exact.Gaussian(0.7, 0.3)


def answer(kind, process):
    """The exact network of N(0.7, 0.3) in one parametrisation: a function of (x, t), written from the closed form."""

    def apply(params, x, t, cond):
        mean, variance = 0.7, 0.3
        if kind == "edm":
            rho = jnp.exp(4 * t)
            alpha, sigma, scaled = 1.0, rho, x * jnp.sqrt(rho**2 + 0.25)
        else:
            alpha, sigma, scaled = process.alpha(t), process.sigma(t), x
        x0 = mean + alpha * variance / (alpha**2 * variance + sigma**2) * (scaled - alpha * mean)
        eps = (scaled - alpha * x0) / sigma
        if kind == "edm":
            total = sigma**2 + 0.25
            return (x0 - 0.25 / total * scaled) * jnp.sqrt(total) / (sigma * 0.5)
        return {
            "noise": eps,
            "data": x0,
            "v": alpha * eps - sigma * x0,
            "velocity": eps - x0,
            "score": -eps / sigma,
        }[kind]

    return apply


@pytest.mark.parametrize("process", [VP, VE, FLOW], ids=["vp", "ve", "flow"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_the_same_denoiser(x64, kind, process):
    grid = ds.times.uniform_logsnr(process, 6, start=process.t_start * 0.99, zero=False)
    x = 2.0 * jax.random.normal(KEY, (16,), jnp.float64) * grid.sigma[0]
    table = solvers.dpmpp(process, grid)
    network = ds.Network(answer(kind, process), predicts=kind)
    expected = ds.sample(KEY, solvers.linear(LAW, table), x=x)
    np.testing.assert_allclose(ds.sample(KEY, solvers.linear(network, table), x=x), expected, rtol=1e-8)


def test_a_network_of_one_process_runs_on_any_other(x64):
    trained = ds.Network(answer("noise", VP), predicts="noise", process=VP)
    for process in (VE, FLOW, ds.Cosine()):
        start = process.t_from_half_logsnr(-4.0)
        grid = ds.times.uniform_logsnr(process, 6, start=start, zero=False)
        x = jax.random.normal(KEY, (16,), jnp.float64) * grid.sigma[0]
        table = solvers.ddim(process, grid)
        with pytest.raises(ValueError, match="AnyProcess"):
            solvers.linear(trained, table)
        moved = ds.sample(KEY, solvers.linear(ds.AnyProcess(trained), table), x=x)
        np.testing.assert_allclose(moved, ds.sample(KEY, solvers.linear(LAW, table), x=x), rtol=1e-9)


def test_any_process_refuses_levels_beyond_the_training():
    trained = ds.AnyProcess(ds.Network(answer("noise", VP), predicts="noise", process=VP))
    with pytest.raises(ValueError, match=r"noisier than -5\.025"):
        solvers.linear(trained, solvers.ddim(FLOW, ds.times.uniform_logsnr(FLOW, 6)))
    with pytest.raises(ValueError, match="names its own process"):
        solvers.linear(ds.AnyProcess(ds.Network(answer("noise", VP))), solvers.ddim(VP, [1.0, 0.5]))


@pytest.mark.parametrize("kind", ["noise", "score", "edm"])
def test_pure_noise_start_needs_a_kind_that_knows_x0(kind):
    with pytest.raises(ValueError, match="alpha = 0"):
        solvers.linear(ds.Network(answer(kind, FLOW), predicts=kind), solvers.ddim(FLOW, [1.0, 0.5, 0.0]))


def test_times_reach_the_network_as_declared():
    seen = []

    def spy(params, x, t, cond):
        jax.debug.callback(lambda t: seen.append(np.asarray(t)), t)
        return x

    process = ds.DiscreteBetas.linear()
    grid = ds.times.trailing(process, 4)
    for time, expected in (
        (None, grid.t[:-1]),
        (ds.process_time, grid.t[:-1]),
        (ds.TableIndex(1000), [999, 749, 499, 249]),
        (ds.noise_scale, grid.sigma[:-1] / grid.alpha[:-1]),
        (ds.quarter_log_noise, np.log(grid.sigma[:-1] / grid.alpha[:-1]) / 4),
    ):
        seen.clear()
        sampler = solvers.linear(ds.Network(spy, predicts="data", time=time), solvers.ddim(process, grid))
        jax.block_until_ready(ds.sample(KEY, sampler, (2, 3)))
        jax.effects_barrier()
        assert all(t.shape == (2,) for t in seen)
        np.testing.assert_allclose([t[0] for t in seen], expected, rtol=1e-5)


def test_bfloat16_network_keeps_a_float32_state():
    dtypes = []

    def half(params, x, t, cond):
        dtypes.append((x.dtype, t.dtype))
        return x * params

    network = ds.Network(half, jnp.bfloat16(0.5), predicts="data", dtype=jnp.bfloat16)
    out = ds.sample(KEY, solvers.linear(network, solvers.dpmpp(VP, ds.times.uniform(VP, 5))), (2, 3))
    assert dtypes == [(jnp.bfloat16, jnp.float32)] and out.dtype == jnp.float32


@pytest.mark.parametrize(
    ("apply", "kind", "message"),
    [
        (lambda p, x, t, c: x[:, :1], ValueError, r"shape \(2, 1\) for x of shape \(2, 3\)"),
        (lambda p, x, t, c: x.astype(int), TypeError, "int32"),
        (lambda p, x, t, c: jnp.concatenate([x, x], 1), ValueError, "predicts a variance"),
    ],
)
def test_wrong_outputs_fail_at_trace_time(apply, kind, message):
    sampler = solvers.linear(ds.Network(apply), solvers.ddim(VP, [1.0, 0.5, 0.0]))
    with pytest.raises(kind, match=message):
        ds.sample(KEY, sampler, (2, 3))


def test_wrong_constructions_are_named():
    with pytest.raises(ValueError, match="'epsilon' is not a prediction kind"):
        ds.Network(answer("noise", VP), predicts="epsilon")
    with pytest.raises(TypeError, match="apply must be a function"):
        ds.Network({"w": 1.0})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"time must be a function of the Level.*'sigma'"):
        ds.Network(answer("noise", VP), time="sigma")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Fixed; rules go around it"):
        solvers.linear(ds.AnyProcess(ds.guidance.fixed(LAW, 1)), solvers.ddim(VP, [1.0, 0.0]))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"wrap a network as"):
        solvers.linear({}, solvers.ddim(VP, [1.0, 0.0]))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="call a solver"):
        solvers.linear(LAW, solvers.ddim)  # type: ignore[arg-type]


def run(network, cond=None):
    return ds.sample(KEY, solvers.linear(network, solvers.ddim(VP, ds.times.uniform(VP, 4))), (5, 3), cond=cond)


def weighted(w, x, t, cond):
    return (x @ w) * t[:, None] + (0.0 if cond is None else cond[:, None])


def test_adapters_agree_and_new_weights_do_not_trace_again():
    from flax import linen, nnx

    traces = []

    class Modern(nnx.Module):
        def __init__(self, w):
            self.w = nnx.Param(w)

        def __call__(self, x, t, cond=None):
            traces.append("nnx")
            return weighted(self.w[...], x, t, cond)

    class Classic(linen.Module):
        @linen.compact
        def __call__(self, x, t, cond=None):
            traces.append("linen")
            return weighted(self.param("w", linen.initializers.zeros, (3, 3)), x, t, cond)

    @jax.tree_util.register_pytree_node_class
    class Equinoxish:
        def __init__(self, w, activation):
            self.w, self.activation = w, activation

        def tree_flatten(self):
            return (self.w, self.activation), None

        @classmethod
        def tree_unflatten(cls, _, children):
            return cls(*children)

        def __call__(self, x, t, cond=None):
            traces.append("equinox")
            return self.activation(x @ self.w * t + (0.0 if cond is None else cond))

    def plain(x, t, cond=None):
        return weighted(W, x, t, cond)

    def same(value):
        return value

    W = 0.3 * jax.random.normal(jax.random.key(1), (3, 3))

    def networks(w):
        yield ds.from_nnx(Modern(w), predicts="v")
        yield ds.from_linen(Classic(), {"params": {"w": w}}, predicts="v")
        yield ds.from_equinox(Equinoxish(w, same), predicts="v")

    for cond in (None, jnp.arange(5.0)):
        expected = run(ds.Network(weighted, W, predicts="v"), cond)
        np.testing.assert_allclose(run(ds.from_callable(plain, predicts="v"), cond), expected, rtol=1e-5, atol=1e-6)
        for network in networks(W):
            np.testing.assert_allclose(run(network, cond), expected, rtol=1e-5, atol=1e-6)
    count = len(traces)
    for network in networks(2 * W):
        run(network)
    assert len(traces) == count


def test_real_equinox_module():
    eqx = pytest.importorskip("equinox")
    mlp = eqx.nn.MLP(3, 3, 8, 1, key=KEY)

    def call(model, x, t, cond):
        return model(x) * t

    expected = run(ds.Network(lambda p, x, t, c: jax.vmap(mlp)(x) * t[:, None], predicts="v"))
    np.testing.assert_allclose(run(ds.from_equinox(mlp, call, predicts="v")), expected, rtol=1e-5, atol=1e-6)
