"""Classes made by `pytree`: what JAX's caches may take for what."""

from typing import Any

import equinox
import jax
import jax.numpy as jnp

import diffsample as ds
from diffsample import guidance, solvers
from diffsample.struct import pytree, static


@pytree
class One:
    p: Any
    q: Any
    shape: int = static(default=1)


@pytree
class Other:
    p: Any
    q: Any
    shape: int = static(default=1)


def test_structures_of_two_classes_differ_and_those_of_one_by_what_is_static():
    structure = jax.tree.structure
    assert structure(One(1, 2)) != structure(Other(1, 2))  # equal, if made by jax.tree_util.register_dataclass
    assert structure(One(1, 2)) == structure(One(3, 4))
    assert structure(One(1, 2)) != structure(One(1, 2, shape=2))
    assert [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(One(1, 2))] == [".p", ".q"]
    assert jax.tree.map(lambda leaf: 2 * leaf, One(1, 2, shape=3)) == One(2, 4, shape=3)


def test_no_program_runs_for_another_class():
    """Hashes of the structures differ, so that `jit` errs for one pair in a hundred; here are some thousand pairs."""
    classes = [pytree(type(f"Number{i}", (), {"__annotations__": {"p": Any, "q": Any}})) for i in range(60)]
    for compiled in (jax.jit, equinox.filter_jit):
        named = compiled(lambda tree: tree.p + int(type(tree).__name__[6:]))
        assert [int(named(kind(jnp.int32(0), 0))) for kind in classes] == list(range(60))


def test_rules_of_as_many_fields_are_not_taken_for_each_other_by_the_adaptive_solver():
    law, y, x = ds.exact.Gaussian(jnp.zeros(2), 1.0), jnp.array([2.0, 0.0]), jnp.ones((1, 2))
    A = guidance.operators.mask([1.0, 0.0])
    rules = guidance.dps_gaussian(law, A, y, 0.5), guidance.tmpd_diagonal(law, A, y, 0.5)
    process = ds.VariancePreserving()
    found = [solvers.solve_ode(jax.random.key(0), rule, process, x, stop=0.5).x for rule in rules]
    assert jnp.abs(found[0] - found[1]).max() > 1e-2
