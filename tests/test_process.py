"""Noising processes: published numbers, inverses, float32 accuracy, and what their constructors refuse."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffsample.betas import DiscreteBetas
from diffsample.process import Cosine, FlowMatching, Level, SubVP, VarianceExploding, VariancePreserving

SD = DiscreteBetas.scaled_linear()
PROCESSES = {
    "vp": VariancePreserving(),
    "vp-constant-rate": VariancePreserving(beta_min=5.0, beta_max=5.0),
    "subvp": SubVP(),
    "cosine": Cosine(),
    "ve": VarianceExploding(),
    "flow": FlowMatching(),
    "linear": DiscreteBetas.linear(),
    "scaled-linear": SD,
    "cosine-table": DiscreteBetas.cosine(),
    "zero-terminal": SD.zero_terminal_snr(),
    "three-betas": DiscreteBetas((0.1, 0.5, 0.9)),
}
UNIT_NORM = sorted(set(PROCESSES) - {"ve", "flow", "subvp"})
ONE_A_BRANCH = {name: PROCESSES[name] for name in ("vp", "subvp", "cosine", "ve", "flow", "linear", "zero-terminal")}
one_a_branch = pytest.mark.parametrize("process", ONE_A_BRANCH.values(), ids=ONE_A_BRANCH.keys())
every_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())


def inside(process, count=301):
    """Times from well below t_min to t_start, both dense near 0 and dense near the end."""
    return np.unique(np.concatenate([np.geomspace(1e-9, 1, count), np.linspace(1e-3, 1, count)])) * process.t_start


def everything(process):
    """The function t -> (alpha, sigma, half_logsnr)."""
    return lambda t: (process.alpha(t), process.sigma(t), process.half_logsnr(t))


def tables(betas):
    """The last alpha-bar and both ends of sigma/alpha."""
    t = np.array([1 / 1000, 1.0])
    return [betas.alpha(1.0) ** 2, *(betas.sigma(t) / betas.alpha(t))]


@pytest.mark.parametrize(
    ("value", "expected", "rtol"),
    [
        (VariancePreserving().alpha(1.0), 0.00657159, 1e-6),
        (VariancePreserving().half_logsnr(1.0), -5.0249784, 1e-8),
        (np.exp(-VariancePreserving().half_logsnr([1.0, 1e-3])), [152.16697, 0.01048599], 4e-7),
        (tables(DiscreteBetas.linear()), [4.035830e-5, 0.01000050, 157.40728], 2e-7),
        (tables(SD), [0.00466010, 0.0291672, 14.6146412], 2e-6),
        (DiscreteBetas.cosine().alpha([0.5, 1.0]) ** 2, [0.493844, 2.43e-9], 2e-3),
        (DiscreteBetas.cosine().alpha(0.5) ** 2, 0.493844, 1e-6),
        (SD.zero_terminal_snr().alpha([1e-3, 0.999, 1.0]) ** 2, [0.99915, 1.968e-7, 0.0], 1e-4),
        (VarianceExploding().half_logsnr(80.0), -4.382026634673881, 1e-15),
        (FlowMatching().half_logsnr([0.5, 0.75]), [0.0, -1.0986122886681098], 1e-15),
        (SubVP().sigma(0.3), VariancePreserving().sigma(0.3) ** 2, 1e-14),
        (SubVP().alpha(0.3), VariancePreserving().alpha(0.3), 0),
        (DiscreteBetas((0.19, 0.75)).alpha([0.5, 1.0]), [0.9, 0.45], 1e-15),
        (DiscreteBetas((0.19, 0.75)).alpha(0.75), 0.9 * np.sqrt(0.5), 1e-15),
        (DiscreteBetas((0.19, 0.75, 1.0)).alpha([2 / 3, 5 / 6, 1.0]), [0.45, 0.225, 0.0], 1e-14),
        (DiscreteBetas((0.19, 0.75)).time([-1, 0, 1]), [0.0, 0.5, 1.0], 0),
    ],
)
def test_process_reproduces_published_or_hand_computed_numbers(value, expected, rtol):
    np.testing.assert_allclose(value, expected, rtol=rtol)


def test_cosine_table_follows_the_cosine_process_before_the_clip():
    index = np.arange(0, 900)
    table, smooth = DiscreteBetas.cosine(), Cosine()
    np.testing.assert_allclose(table.alpha(table.time(index)), smooth.alpha((index + 1) / 1000), rtol=1e-11)
    assert table.betas[-1] == 0.999


@every_process
def test_clean_data_is_exact_and_silent(process):
    level = process.level(0)
    assert level == Level(0.0, 1.0, 0.0)
    assert np.copysign(1, level.sigma) == 1
    assert process.half_logsnr(0.0) == np.inf
    assert process.t_from_half_logsnr(np.inf) == 0


@pytest.mark.parametrize("name", ["flow", "zero-terminal"])
def test_pure_noise_is_exact_and_silent(name):
    process = PROCESSES[name]
    assert process.level(1.0) == Level(1.0, 0.0, 1.0)
    assert process.half_logsnr(1.0) == -np.inf
    assert process.t_from_half_logsnr(-np.inf) == 1
    assert process.half_logsnr(jnp.float32(1.0)) == -jnp.inf
    assert process.t_from_half_logsnr(jnp.float32(-jnp.inf)) == 1
    assert np.isfinite(process.half_logsnr(process.t_start)) and process.t_start < process.t_max


@every_process
def test_inverse_of_half_logsnr_returns_the_time(process):
    t = inside(process)
    np.testing.assert_allclose(process.t_from_half_logsnr(process.half_logsnr(t)), t, rtol=1e-12)


def test_inverse_holds_inside_the_last_cell_of_a_zero_terminal_table():
    process, t = PROCESSES["zero-terminal"], np.linspace(0.999, 1.0, 50)
    np.testing.assert_allclose(process.t_from_half_logsnr(process.half_logsnr(t)), t, rtol=1e-12)
    assert (np.diff(process.half_logsnr(t)) < 0).all()


@every_process
def test_half_logsnr_falls_strictly_and_the_range_is_consistent(process):
    t = inside(process)
    assert (np.diff(process.half_logsnr(t)) < 0).all()
    assert 0 < process.t_min < process.t_start <= process.t_max
    assert np.isfinite(process.half_logsnr(process.t_start))
    assert (process.alpha(t) > 0).all() and (process.sigma(t) > 0).all()


@pytest.mark.parametrize("name", UNIT_NORM)
def test_variance_preserving_families_keep_unit_variance(name):
    level = PROCESSES[name].level(inside(PROCESSES[name]))
    np.testing.assert_allclose(level.alpha**2 + level.sigma**2, 1, rtol=1e-14)


@every_process
def test_numpy_and_python_numbers_give_float64(process):
    for t in (0, 0.5, np.float32(0.5), np.array([0.25, 0.5], np.float32), [0.25, 0.5]):
        half_logsnr = process.half_logsnr(t)
        for value in (*process.level(t), half_logsnr, process.t_from_half_logsnr(half_logsnr)):
            assert isinstance(value, np.ndarray if np.ndim(t) else np.float64)
            assert value.dtype == np.float64 and value.shape == np.shape(t)


@one_a_branch
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_jax_numbers_keep_their_dtype_under_jit(process, dtype):
    t = jnp.full((2, 3), 0.5, dtype) if dtype == jnp.float32 else jnp.asarray(0.5, dtype)
    half_logsnr = jnp.full_like(t, 0.1)
    methods = jax.jit(lambda t, x: (*process.level(t), process.half_logsnr(t), process.t_from_half_logsnr(x)))
    for value in methods(t, half_logsnr):
        assert isinstance(value, jax.Array)
        assert (value.dtype, value.shape) == (dtype, t.shape)


@one_a_branch
def test_float32_is_accurate_to_rounding_however_small_the_time(process):
    t32 = jnp.asarray(inside(process), jnp.float32)
    t64 = np.asarray(t32, np.float64)
    # float32 places a time inside a table's cell to 6e-8 N, which the cells of fastest decay multiply by their slope
    rtol = 2e-5 if isinstance(process, DiscreteBetas) else 1e-6
    alpha, sigma, half_logsnr = jax.jit(everything(process))(t32)
    np.testing.assert_allclose(sigma, process.sigma(t64), rtol=1e-6)
    np.testing.assert_allclose(alpha, process.alpha(t64), rtol=rtol)
    np.testing.assert_allclose(half_logsnr, process.half_logsnr(t64), rtol=1e-6, atol=rtol)
    expected = process.t_from_half_logsnr(np.asarray(half_logsnr))
    np.testing.assert_allclose(jax.jit(process.t_from_half_logsnr)(half_logsnr), expected, rtol=3e-6)


@one_a_branch
def test_gradients_match_finite_differences(process, x64):
    t = np.array([0.003, 0.2, 0.71]) * process.t_max + 1e-5  # inside the cells of a table
    step = 1e-7
    _, slopes = jax.jit(lambda t: jax.jvp(everything(process), (t,), (jnp.ones_like(t),)))(jnp.asarray(t))
    above, below = everything(process)(t + step), everything(process)(t - step)
    for slope, high, low in zip(slopes, above, below, strict=True):
        np.testing.assert_allclose(slope, (high - low) / (2 * step), rtol=1e-5, atol=1e-8)
    back = jax.vmap(jax.grad(process.t_from_half_logsnr))(process.half_logsnr(jnp.asarray(t)))
    np.testing.assert_allclose(back * slopes[-1], 1, rtol=1e-9)


@one_a_branch
def test_gradients_are_finite_over_the_whole_range_in_float32(process):
    t = jnp.asarray(np.linspace(process.t_min, process.t_start, 50), jnp.float32)
    _, slopes = jax.jit(lambda t: jax.jvp(everything(process), (t,), (jnp.ones_like(t),)))(t)
    assert np.isfinite(slopes).all()


def test_zero_terminal_snr_keeps_the_first_level_and_the_length():
    rescaled = SD.zero_terminal_snr()
    assert rescaled.betas[0] == SD.betas[0] and len(rescaled.betas) == 1000
    assert (rescaled.betas[-1], rescaled.t_start, SD.t_start) == (1.0, 0.999, 1.0)
    np.testing.assert_array_less(rescaled.alpha(np.linspace(0.002, 1, 50)), SD.alpha(np.linspace(0.002, 1, 50)))


@every_process
def test_processes_equal_by_value_hash_and_serve_as_static_arguments(process):
    copy = dataclasses.replace(process)
    assert copy is not process and copy == process and hash(copy) == hash(process)
    assert sum(process == other for other in PROCESSES.values()) == 1
    traces = []
    alpha = jax.jit(lambda p, t: traces.append(p) or p.alpha(t), static_argnums=0)
    assert alpha(process, jnp.float32(0.5)) == alpha(copy, jnp.float32(0.5))
    assert len(traces) == 1


def test_fields_become_python_numbers_so_that_array_scalars_hash():
    assert hash(VariancePreserving(jnp.float32(0.5), np.float64(20))) == hash(VariancePreserving(0.5, 20.0))
    assert DiscreteBetas(tuple(np.array([0.1, 0.2]))) == DiscreteBetas((0.1, 0.2)) != DiscreteBetas((0.1, 0.3))
    assert {type(beta) for beta in DiscreteBetas(tuple(jnp.array([0.1, 0.2]))).betas} == {float}
    assert type(VarianceExploding(1, 2).sigma_max) is float


def test_beta_table_prints_in_one_line():
    assert repr(DiscreteBetas.linear()) == "DiscreteBetas(1000 betas from 0.0001 to 0.02)"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: VariancePreserving(beta_min=0.0), r"0 < beta_min <= beta_max, got beta_min=0.0, .*usual: 0.1 and 20"),
        (lambda: VariancePreserving(beta_min=3.0, beta_max=2.0), "got beta_min=3.0, beta_max=2.0"),
        (lambda: VariancePreserving(beta_max=float("inf")), "VariancePreserving needs a finite beta_max, got inf"),
        (lambda: SubVP(beta_min=-1.0), "got beta_min=-1.0"),
        (lambda: SubVP(beta_max=float("nan")), "SubVP needs a finite beta_max, got nan"),
        (lambda: Cosine(offset=0.0), "0 < offset < 1, got 0.0; the usual value is 0.008"),
        (lambda: Cosine(offset=1.0), "got 1.0"),
        (lambda: VarianceExploding(sigma_min=0.0), "got sigma_min=0.0, sigma_max=80.0; zero is added by grids"),
        (lambda: VarianceExploding(sigma_min=2.0, sigma_max=1.0), "0 < sigma_min < sigma_max, got sigma_min=2.0"),
        (lambda: DiscreteBetas((0.1,)), r"two betas or more, got shape \(1,\)"),
        (lambda: DiscreteBetas(np.full((2, 2), 0.1)), r"got shape \(2, 2\)"),  # pyright: ignore[reportArgumentType]
        (lambda: DiscreteBetas((0.1, 0.0, 0.2)), r"betas\[1\] = 0.0: each must lie in \(0, 1\)"),
        (lambda: DiscreteBetas((0.1, 1.0, 0.2)), r"betas\[1\] = 1.0: .*only the last may be 1"),
        (lambda: DiscreteBetas((0.1, 1.5)), r"betas\[1\] = 1.5"),
        (lambda: DiscreteBetas((float("nan"), 0.5)), r"betas\[0\] = nan"),
    ],
)
def test_constructors_refuse_impossible_values_by_name(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_half_indices_differ_from_k_diffusions_interpolation_as_measured():
    """specs/solvers.md, 7: log alpha-bar is linear between indices here, log(sigma / alpha) there."""
    table = DiscreteBetas.linear()
    noise = np.exp(-table.half_logsnr(table.time(np.arange(1000))))
    between = np.exp(-table.half_logsnr(table.time(np.arange(999) + 0.5)))
    apart = np.abs(between / np.sqrt(noise[1:] * noise[:-1]) - 1)
    np.testing.assert_allclose([apart[0], apart[10:].max(), apart[100:].max()], [3.9e-2, 1.2e-3, 2.3e-5], rtol=0.1)
