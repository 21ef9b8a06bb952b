"""The most memory this process has held so far, on the host and on its devices."""

from __future__ import annotations

import resource
import sys

import jax

GIB = 2**30


def peaks() -> dict[str, float]:
    """`host_peak_gib`, of the process since it started, compilation included; `device_peak_gib`, of the fullest device.

    The second is absent where the backend does not say: on a CPU, whose memory is the host's.
    """
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    found = {"host_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB}
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    used = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
    return found | ({"device_peak_gib": max(used) / GIB} if used else {})
