"""Settings for every test. JAX itself reads JAX_COMPILATION_CACHE_DIR, so a persistent cache needs no line here."""

from collections.abc import Iterator

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64() -> Iterator[None]:
    """Run the test with 64-bit floats and integers."""
    with jax.enable_x64(True):
        yield
