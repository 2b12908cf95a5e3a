"""What is saved comes back the same; what goes wrong says so and leaves the old checkpoint."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffsample import checkpoint
from diffsample.struct import pytree


class State(NamedTuple):
    x: jax.Array
    rest: object


@pytree
class Weights:
    kernel: jax.Array
    history: tuple


def tree():
    keys = jax.random.split(jax.random.key(1), 3)
    weights = Weights(jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3), (np.float64(0.1), jnp.int32(7)))
    return {"state": State(keys, None), "weights": weights, "list": [1.5, 3], "empty": jnp.zeros((2, 0))}


def raw(leaf):
    return jax.random.key_data(leaf) if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key) else leaf


def test_restore_like_gives_back_containers_dtypes_and_keys(tmp_path):
    checkpoint.save(tmp_path / "deep" / "state", tree())
    back = checkpoint.restore(tmp_path / "deep" / "state", like=tree())
    assert jax.tree.structure(back) == jax.tree.structure(tree())
    for found, expected in zip(jax.tree.leaves(back), jax.tree.leaves(tree()), strict=True):
        assert jnp.result_type(found) == jnp.result_type(expected)
        np.testing.assert_array_equal(raw(found), raw(expected))


def test_restore_alone_gives_numpy_arrays(tmp_path):
    checkpoint.save(tmp_path / "w", {"a": jnp.ones(3, jnp.bfloat16), "b": [np.arange(2)]})
    back = checkpoint.restore(tmp_path / "w")
    assert type(back["a"]) is type(back["b"][0]) is np.ndarray
    assert back["a"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(back["b"][0], [0, 1])


def test_restore_takes_shapes_and_shardings_for_like(tmp_path):
    checkpoint.save(tmp_path / "w", {"a": jnp.arange(4.0)})
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[-1])
    like = {"a": jax.ShapeDtypeStruct((4,), jnp.float16, sharding=sharding)}
    back = checkpoint.restore(tmp_path / "w", like)["a"]
    assert back.dtype == jnp.float16 and back.sharding == sharding
    np.testing.assert_array_equal(back, np.arange(4.0))


def test_restore_of_a_missing_path_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        checkpoint.restore(tmp_path / "nowhere")


@pytest.mark.parametrize("like", [{"a": jnp.ones(3)}, {"a": jnp.ones(2), "c": jnp.ones(2)}, {"b": jnp.ones(2)}])
def test_restore_refuses_another_shape_or_structure(tmp_path, like):
    checkpoint.save(tmp_path / "w", {"a": jnp.ones(2)})
    with pytest.raises(ValueError, match="checkpoint"):
        checkpoint.restore(tmp_path / "w", like)


def test_save_replaces_a_checkpoint_and_leaves_nothing_beside_it(tmp_path):
    checkpoint.save(tmp_path / "w", {"a": jnp.ones(2)})
    checkpoint.save(tmp_path / "w", {"b": jnp.zeros(1)})
    assert list(checkpoint.restore(tmp_path / "w")) == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


def test_save_that_fails_keeps_the_old_checkpoint(tmp_path):
    checkpoint.save(tmp_path / "w", {"a": jnp.ones(2)})
    with pytest.raises(Exception, match="object"):
        checkpoint.save(tmp_path / "w", {"a": object()})
    np.testing.assert_array_equal(checkpoint.restore(tmp_path / "w")["a"], [1.0, 1.0])


def test_save_refuses_to_replace_what_is_no_checkpoint(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="not a checkpoint"):
        checkpoint.save(tmp_path, {"a": jnp.ones(2)})
    assert (tmp_path / "thesis.tex").exists()
