"""Train in an S3 server of this machine, kill, lose the machine, continue, compare (`make s3`).

    python tests/s3/s3.py [FOLDER]

Needs moto and s3fs. Not run by pytest. A row of the table is a run that was killed and continued
from a cache of its own, as another machine has it; it says whether it ends like the whole one."""

import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from moto.server import ThreadedMotoServer

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests"))

from resuming import difference, surroundings  # noqa: E402

CONFIG = ROOT / "tests" / "slurm" / "grid.py"
TRAIN = (sys.executable, "-m", "ssppo_jax", "train", f"--config={CONFIG}")
# A run is killed once this many objects of this kind have reached the store.
KILLS = {
    "before the first checkpoint is there": ("config.json", 1),
    "a checkpoint is on its way": ("arrays", 1),
    "a checkpoint is there": ("manifest.sha256", 1),
    "the second one is": ("manifest.sha256", 2),
    "the export is on its way": ("policy", 1),
}


def main() -> int:
    folder = Path(*sys.argv[1:2] or [tempfile.mkdtemp(prefix="s3_")]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    os.environ.update(
        surroundings(folder),
        PYTHONPATH=f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
        AWS_ENDPOINT_URL_S3=f"http://{host}:{port}",
        AWS_ACCESS_KEY_ID="nobody",
        AWS_SECRET_ACCESS_KEY="nothing",
        AWS_DEFAULT_REGION="us-east-1",
    )
    import s3fs

    store = s3fs.S3FileSystem(skip_instance_cache=True)
    store.mkdir("bucket")
    end(begin(folder, "disk", str(folder / "whole")))
    bad = 0
    print("| killed | like the uninterrupted run on a disk |\n|---|---|")
    for number, (what, (kind, count)) in enumerate(KILLS.items()):
        place = f"s3://bucket/{number}"
        run = begin(folder, f"first_{number}", place)
        while run.poll() is None and there(store, number, kind) < count:
            time.sleep(0.02)
        run.send_signal(signal.SIGKILL)
        ended = run.wait() == 0
        end(begin(folder, f"second_{number}", place))
        again = folder / f"again_{number}"
        store.invalidate_cache()
        store.get(f"bucket/{number}", str(again), recursive=True)
        wrong = "it had ended" if ended else difference(again, folder / "whole")
        bad += wrong is not None
        print(f"| {what} | {wrong or 'yes'} |", flush=True)
    server.stop()
    print(f"the runs: {folder}")
    return int(bad > 0)


def there(store, number: int, kind: str) -> int:
    store.invalidate_cache()
    return sum(kind in name for name in store.find(f"bucket/{number}"))


def begin(folder: Path, cache: str, workdir: str) -> subprocess.Popen:
    log = open(folder / "commands.log", "ab")  # noqa: SIM115  the child's
    environment = os.environ | {"SSPPO_CACHE": str(folder / "caches" / cache)}
    command = [*TRAIN, f"--workdir={workdir}"]
    return subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)


def end(process: subprocess.Popen) -> None:
    if code := process.wait(1800):
        raise SystemExit(f"error: exit code {code} of {' '.join(map(str, process.args))}")


if __name__ == "__main__":
    sys.exit(main())
