"""What was compiled once is found again, where the user has said nothing else."""

import os
import subprocess
import sys

import pytest

CODE = """
import jax, jax.numpy as jnp, logging
from ssppo_jax.distributed.backend import keep_compiled
keep_compiled()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((3, 3)))
print(jax.config.jax_compilation_cache_dir)
"""


def run(**environ):
    quiet = {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env=os.environ | quiet | environ,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


@pytest.mark.parametrize("by_user", [False, True])
def test_programs_are_kept_in_the_cache_folder_or_where_the_user_says(by_user, tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    environ = {"SSPPO_CACHE": str(ours)} | (
        {"JAX_COMPILATION_CACHE_DIR": str(theirs)} if by_user else {}
    )
    folder = theirs if by_user else ours / "compiled"
    assert run(**environ) == str(folder)
    kept = {path.name for path in folder.glob("*-cache")}
    assert kept and by_user != ours.exists()
    run(**environ)
    assert {path.name for path in folder.glob("*-cache")} == kept  # found again: nothing new
