"""Tests run in float64, with strict dtype promotion, array shapes checked at run time, and warnings as errors."""

import os
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import hypothesis
import jax
from jaxtyping import install_import_hook

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
# More than half of the time is compilation: workers share it, and a second run of the tests is spared it.
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parent.parent / ".pytest_cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

with install_import_hook("sgfbias", "beartype.beartype"):
    import sgfbias  # noqa: F401

hypothesis.settings.register_profile("default", deadline=None, max_examples=20, derandomize=True)
hypothesis.settings.load_profile("default")


def pytest_collection_modifyitems(items):
    """Files of long tests first, so that the short ones fill the other worker at the end."""
    items.sort(key=lambda item: "test_stud" not in item.nodeid)
