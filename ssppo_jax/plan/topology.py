"""Describe TPU slices and GPU nodes, whose compilers run on any Linux machine, so that steps are
planned without one.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
from typing import Any, NamedTuple

import jax

from ssppo_jax.errors import ConfigError
from ssppo_jax.runs.throughput import CHIPS

_TPU = re.compile(r"(v\d+[a-z]?):(\d+(x\d+){1,3})")
_GPU = re.compile(r"([a-z]+\d+):(?:(\d+)x)?(\d+)")
# What the compiler would otherwise look for in vain, and complain of: this machine has no TPU. It
# changes no answer.
SILENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # two plans at one time: neither holds a chip
}
EXAMPLES = "v5e:4x4, v5p:4x4x4, v5e:16x16x2 (of two slices), h100:8, or h100:4x8 (nodes x GPUs)"
DIMENSIONS = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2}  # of a slice; one number more counts slices
# What XLA's compiler for NVIDIA GPUs asks about a chip, in its own words. The limits of blocks and
# registers are those of every generation since A100.
TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared}
  threads_per_core_limit: 2048
  core_count: {cores}
  fpus_per_core: {lanes}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth}
  l2_cache_size: {l2}
  clock_rate_ghz: {clock}
  device_memory_size: {memory}
  shared_memory_per_block_optin: {optin}
  cuda_compute_capability {{ major: {major} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
device_description_str: "NVIDIA {name}"
"""


class Gpu(NamedTuple):
    """Hold what NVIDIA's tuning guides and architecture papers say of a chip."""

    major: int  # of the compute capability
    cores: int  # streaming multiprocessors
    lanes: int  # float32 lanes of each
    shared: int  # bytes of shared memory of each
    l2: int  # bytes
    clock: float  # GHz, boost


GPUS = {
    "a100": Gpu(8, 108, 64, 164 * 2**10, 40 * 2**20, 1.41),
    "h100": Gpu(9, 132, 128, 228 * 2**10, 50 * 2**20, 1.98),
    "h200": Gpu(9, 132, 128, 228 * 2**10, 50 * 2**20, 1.98),
    "b200": Gpu(10, 148, 128, 228 * 2**10, 126 * 2**20, 1.97),
}


class Machine(NamedTuple):
    """Hold devices that can only be compiled for."""

    devices: list[jax.Device]
    per_node: int  # devices within one fast network: of a GPU node, or of a TPU slice

    @property
    def hosts(self) -> int:
        return len({device.process_index for device in self.devices})


def machine_of(topology: str) -> Machine:
    """Describe TPU slices such as 'v5e:8x8' and 'v5e:8x8x2', or GPUs such as 'h100:8' and
    'h100:4x8'.

    Raises:
      ConfigError: another form, a machine the compiler does not know, or no compiler here, with
        what to install.
    """
    gpus, slice_ = _GPU.fullmatch(topology), _TPU.fullmatch(topology)
    if gpus and gpus[1] in GPUS:
        nodes, each = int(gpus[2] or 1), int(gpus[3])
        return Machine(_gpus(topology, gpus[1], nodes, each), each)
    if slice_ and slice_[1] in {chip.name for chip in CHIPS} - set(GPUS):
        sizes, dimensions = slice_[2].split("x"), DIMENSIONS[slice_[1]]
        if len(sizes) - dimensions not in (0, 1):
            raise ConfigError(
                f"--topology={topology}: a slice of {slice_[1]} has {dimensions} dimensions, and"
                f" one number more counts slices; give a shape such as {EXAMPLES}"
            )
        slices = int(sizes.pop()) if len(sizes) > dimensions else 1
        found = _slices(topology, f"{slice_[1]}:{'x'.join(sizes)}", slices)
        return Machine(found, len(found) // slices)
    known = ", ".join([*GPUS, *(chip.name for chip in CHIPS if chip.name not in GPUS)])
    raise ConfigError(
        f"--topology={topology}: give a chip ({known}) and a shape, such as {EXAMPLES}"
    )


def _gpus(topology: str, name: str, nodes: int, each: int) -> list[jax.Device]:
    if not importlib.util.find_spec("jax_cuda12_plugin"):
        raise ConfigError(
            "planning for GPUs needs XLA's compiler for them: pip install --no-deps"
            f" jax-cuda12-plugin=={jax.__version__} jax-cuda12-pjrt=={jax.__version__} (no GPU is"
            " needed)"
        )
    gpu, chip = GPUS[name], next(chip for chip in CHIPS if chip.name == name)
    target = TARGET.format(
        **gpu._asdict(),
        optin=gpu.shared - 1024,
        bandwidth=int(chip.bandwidth),
        memory=int(chip.memory),
        name=name.upper(),
    )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    shape = {"topology": f"1x{nodes}x{each}", "target_config": target}
    return _devices(topology, "GPU", platform="cuda", topology_name="", **shape)


def _slices(topology: str, name: str, slices: int) -> list[jax.Device]:
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            "planning needs the TPU compiler: pip install 'ssppo_jax[plan]' (libtpu==0.0.52; no TPU"
            " is needed)"
        )
    for variable, value in SILENT.items():
        os.environ.setdefault(variable, value)
    found = _devices(topology, "TPU", platform="tpu", topology_name=name, num_slices=slices)
    wanted = slices * math.prod(map(int, name.partition(":")[2].split("x")))
    if len(found) != wanted:
        raise ConfigError(
            f"--topology={topology}: {wanted} chips were asked for, the compiler describes"
            f" {len(found)}"
        )
    return found


def _devices(topology: str, kind: str, **how: Any) -> list[jax.Device]:
    """Return the devices that a compiler describes."""
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(**how).devices)
    except Exception as error:  # JAX and the plug-in raise kinds of their own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"--topology={topology}: the {kind} compiler does not know it ({reason})"
        ) from None
