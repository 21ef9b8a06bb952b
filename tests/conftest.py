"""The strictness every test runs under: 8 virtual CPU devices, no silent rank promotion, warnings
are errors, and the shapes and dtypes that annotations state are checked at every call."""

import os
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        # Tiny programs spend their time in the compiler: far less of it without its last passes.
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false",
    )
)
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests reach no network

import jax
import jaxtyping
import pytest

jaxtyping.install_import_hook(
    [f"ssppo_jax.{room}" for room in ("types", "losses", "models", "sampling")],
    "checked.typechecked",
)

jax.config.update("jax_numpy_rank_promotion", "raise")
# Whole runs build the same programs again and again: a process of the tests keeps its own.
COMPILED = tempfile.TemporaryDirectory(prefix="ssppo-compiled-")
jax.config.update("jax_compilation_cache_dir", COMPILED.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory):
    """Whole runs keep their models in a folder of the test's and draw no progress bars."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSPPO_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("SSPPO_PROGRESS", "off")
        yield


def pytest_unconfigure():
    COMPILED.cleanup()
