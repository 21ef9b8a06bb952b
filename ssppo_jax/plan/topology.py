"""Describe TPU slices, whose compiler runs on any Linux machine, so that steps are planned without
one.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re

import jax

from ssppo_jax.errors import ConfigError
from ssppo_jax.runs.throughput import CHIPS

_NAME = re.compile(r"(v\d+[a-z]?):(\d+(x\d+){1,2})")
# What the compiler would otherwise look for in vain, and complain of: this machine has no TPU. It
# changes no answer.
SILENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
}
EXAMPLES = "v5e:4x4, v5p:4x4x4, v6e:8x8"


def devices_of(topology: str) -> list[jax.Device]:
    """Return the chips of a slice such as 'v5e:8x8' as devices that can only be compiled for.

    Raises:
      ConfigError: another form, a slice the compiler does not know, or no TPU compiler here, with
        what to install.
    """
    form = _NAME.fullmatch(topology)
    if not form or form[1] not in {chip.name for chip in CHIPS}:
        raise ConfigError(f"--topology={topology}: give generation:shape, such as {EXAMPLES}")
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            "planning needs the TPU compiler: pip install 'ssppo_jax[plan]' (libtpu==0.0.52; no TPU"
            " is needed)"
        )
    for name, value in SILENT.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    try:
        found = list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except Exception as error:  # JAX and the plug-in raise kinds of their own
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"--topology={topology}: the TPU compiler does not know it ({reason})"
        ) from None
    wanted = math.prod(map(int, form[2].split("x")))
    if len(found) != wanted:
        raise ConfigError(
            f"--topology={topology}: {wanted} chips were asked for, the compiler describes"
            f" {len(found)}"
        )
    return found
