"""Settings for every test. JAX itself reads JAX_COMPILATION_CACHE_DIR, so a persistent cache needs no line here."""

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
MAPS, MOST_MAPS = Path("/proc/self/maps"), 16_000  # Linux allows 65,530, and each compiled program holds about four


@pytest.fixture
def x64() -> Iterator[None]:
    """Run the test with 64-bit floats and integers."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module", autouse=True)
def few_compiled_programs() -> Iterator[None]:
    """Drop compiled programs in time: XLA crashes the process at the system's limit of memory maps."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
