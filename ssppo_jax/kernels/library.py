"""The C files beside this one, compiled for this processor when first needed, kept under $SSPPO_CACHE/kernels and made
known to XLA."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax

from ssppo_jax.disk import default_cache
from ssppo_jax.types import Array

log = logging.getLogger(__name__)
FOLDER = Path(__file__).parent
HANDLERS = (
    "ssppo_product",
    "ssppo_attend_token",
    "ssppo_attend",
    "ssppo_attend_back",
    "ssppo_logprobs",
    "ssppo_logprobs_back",
)
FLAGS = [
    "-std=gnu11",
    "-O3",
    "-fopenmp-simd",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-psabi",
    "-shared",
    "-fPIC",
]


@functools.cache
def missing() -> str | None:
    """Why the kernels cannot be used on this machine (said once in the log, too); None once they are ready."""
    try:
        library = ctypes.CDLL(str(compiled()))
    except subprocess.CalledProcessError as error:
        reason = f"{error.cmd[0]} failed: {error.stderr.strip() or error}"
    except OSError as error:
        reason = str(error)
    else:
        for name in HANDLERS:
            jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
        return None
    log.warning("sampling on this CPU takes twice as long without the kernels of ssppo_jax/kernels: %s", reason)
    return reason


def check_float32(*arrays: Array) -> None:
    """The C reads whatever bytes it is given as float32.

    Raises:
      TypeError: an array that is not.
    """
    wrong = {str(x.dtype) for x in arrays} - {"float32"}
    if wrong:
        raise TypeError(f"these kernels are float32, and were given {', '.join(sorted(wrong))}")


def compiled() -> Path:
    """The shared library's path. $CC, or else gcc or cc, makes it: in a second, once for each processor and compiler.

    Several processes may make it at once, and each finds a whole file.

    Raises:
      OSError: there is no compiler, or the cache cannot be written.
      subprocess.CalledProcessError: the compiler failed.
    """
    compiler = shlex.split(os.environ.get("CC", "")) or [c for c in map(shutil.which, ("gcc", "cc")) if c][:1]
    if not compiler:
        raise FileNotFoundError("there is no C compiler: install gcc")
    native = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
    command = [*compiler, *FLAGS, native, f"-I{jax.ffi.include_dir()}"]
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True).stdout
    units = sorted(FOLDER.glob("*.c"))
    sources = [path.read_text() for path in (*sorted(FOLDER.glob("*.h")), *units)]
    key = "\n".join((*sources, *command, version, _processor(), jax.__version__))
    library = default_cache() / "kernels" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    if not library.is_file():
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            fresh = Path(folder) / library.name
            whole = [*command, *map(str, units), "-o", str(fresh), "-lm"]
            subprocess.run(whole, capture_output=True, text=True, check=True)
            fresh.replace(library)
    return library


def _processor() -> str:
    """What `native` depends on: a cache on a shared disk serves machines of several kinds."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    return platform.processor()
