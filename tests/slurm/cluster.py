"""A SLURM of one node, from Debian's packages slurm-wlm and munge, in a folder of its own."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scancel", "scontrol", "squeue")
CPUS = 4  # that the node claims, so that four runs are at work at a time
# No affinity: XLA splits its longest sums by the cores of its process.
CONF = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmUser=root
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd.pid
SlurmdLogFile={folder}/slurmd.log
SlurmdSpoolDir={folder}/spool
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmctldTimeout=300
SlurmdTimeout=300
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """Return the programs that are not installed."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    return [name for name in NEEDED if shutil.which(name, path=path) is None]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def one_node(folder: Path) -> Iterator[None]:
    """Start munge and SLURM; its commands find it by SLURM_CONF. End what was started."""
    folder.mkdir(mode=0o755)
    for name in ("spool", "state"):
        (folder / name).mkdir()
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    key, conf = folder / "munge.key", folder / "slurm.conf"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    host = socket.gethostname().partition(".")[0]
    conf.write_text(
        CONF.format(host=host, folder=folder, cpus=CPUS, controller=free_port(), daemon=free_port())
    )
    os.environ["SLURM_CONF"] = str(conf)
    munge = {
        "key-file": key,
        "socket": folder / "munge.socket",
        "pid-file": folder / "munge.pid",
        "log-file": folder / "munge.log",
        "seed-file": folder / "munge.seed",
    }
    options = [f"--{name}={value}" for name, value in munge.items()]
    with contextlib.ExitStack() as stack:
        stack.enter_context(daemon(folder, "munged", "--foreground", "--force", *options))
        wait(lambda: (folder / "munge.socket").exists(), "munged")
        stack.enter_context(daemon(folder, "slurmctld", "-D"))
        stack.enter_context(daemon(folder, "slurmd", "-D", "-N", host))
        wait(lambda: "idle" in asked("sinfo", "--noheader", "--format=%t"), "the node")
        yield


@contextlib.contextmanager
def daemon(folder: Path, *command: str) -> Iterator[None]:
    with open(folder / f"{command[0]}.said", "wb") as said:
        child = subprocess.Popen(command, stdout=said, stderr=said)
    try:
        yield
    finally:
        child.terminate()
        child.wait(30)


def asked(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout


def wait(ready, what: str, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > until:
            raise SystemExit(
                f"error: {what} did not start within {seconds:g} s; see the .log files"
            )
        time.sleep(0.2)
