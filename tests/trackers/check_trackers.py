"""Show runs by TensorBoard, wandb, MLflow and trackio, offline; read each back (`make trackers`).

    python tests/trackers/check_trackers.py [FOLDER]

Needs the four packages. Not run by pytest. One run is stopped (SIGTERM) and continued, another is
killed (SIGKILL) and continued. A row of the table says how many numbers of metrics.jsonl a tracker
has, how many it lacks or has twice, and whether configuration, samples and report are there. After
a kill a tracker may lack what was on its way to it, or in the buffers of its package."""

import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests"))

from resuming import surroundings  # noqa: E402

CONFIG = ROOT / "tests" / "slurm" / "grid.py"
NAMES = ("tensorboard", "wandb", "mlflow", "trackio")
PROJECT = "check"
Found = tuple[Counter, bool, int, bool]  # (name, step, value), configuration, tables, report


def main() -> int:
    folder = Path(*sys.argv[1:2] or [tempfile.mkdtemp(prefix="trackers_")]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.update(
        surroundings(folder),
        PYTHONPATH=str(ROOT),
        WANDB_MODE="offline",
        WANDB_DIR=str(folder),
        MLFLOW_TRACKING_URI=f"file:{folder}/mlruns",
        MLFLOW_ALLOW_FILE_STORE="true",  # MLflow advises a SQLite file instead
        TRACKIO_DIR=str(folder / "trackio"),
    )
    bad = 0
    print("| run | tracker | numbers | lacking | twice | configuration | tables | report |")
    print("|---|---|---|---|---|---|---|---|")
    for number, how in ((signal.SIGTERM, "stopped"), (signal.SIGKILL, "killed")):
        run = folder / how
        code = broken_off(run, number)
        assert code == (75 if how == "stopped" else -number), (run.with_suffix(".txt"), code)
        subprocess.run(command(run), check=True, cwd=folder, stdout=subprocess.DEVNULL)
        logged = numbers(run)
        for name in NAMES:
            shown, configuration, tables, report = globals()[name](folder, run)
            lacking, twice = logged - shown, shown - logged
            exact = how == "stopped" or name == "tensorboard"
            whole = not lacking and configuration and tables == 3
            whole &= report or name == "tensorboard"  # which has no files
            bad += bool(twice) or (exact and not whole)
            print(
                f"| {how} | {name} | {logged.total()} | {lacking.total()} | {twice.total()} |"
                f" {configuration} | {tables} | {report} |",
                flush=True,
            )
    bad += not_stopped_by_services_that_are_down(folder)
    print(f"{bad} faults; everything is in {folder}")
    return bool(bad)


def not_stopped_by_services_that_are_down(folder: Path) -> int:
    """Train with addresses where nobody answers; the run has to end whole and to say so."""
    os.environ.update(
        WANDB_MODE="online",
        WANDB_BASE_URL="http://127.0.0.1:9",
        WANDB_API_KEY="a" * 40,
        MLFLOW_TRACKING_URI="http://127.0.0.1:9",
        TRACKIO_SPACE_ID="nobody/nothing",
    )
    run, names, bad = folder / "down", ("wandb", "mlflow", "trackio"), 0
    said = subprocess.run(command(run, names), cwd=folder, capture_output=True, text=True)
    for name in names:
        state = json.loads((run / "trackers" / f"{name}.json").read_bytes())
        right = said.returncode == 0 and (run / "result.json").is_file() and state["failures"] > 0
        told = said.stderr.count(f"{name} fails (")
        print(f"down: {name}: code {said.returncode}, failures {state['failures']}, told {told}")
        bad += not right or told > 1
    return bad


def command(run: Path, names: Sequence[str] = NAMES) -> list[str]:
    return [
        sys.executable, "-m", "ssppo_jax", "train", f"--config={CONFIG}", f"--workdir={run}",
        f"--config.tracking.report_to={','.join(names)}", f"--config.tracking.project={PROJECT}",
    ]  # fmt: skip


def broken_off(run: Path, number: int) -> int:
    """Train, send the signal as soon as the second iteration is logged, return the exit code."""
    with open(run.with_suffix(".txt"), "w", encoding="utf-8") as said:
        process = subprocess.Popen(command(run), cwd=run.parent, stdout=said, stderr=said)
        log = run / "metrics.jsonl"
        while process.poll() is None:
            if log.is_file() and b'"iteration": 1' in log.read_bytes():
                process.send_signal(number)
                break
            time.sleep(0.02)
        return process.wait()


def numbers(run: Path) -> Counter:
    """What the log holds, but for times, which a continued run measures again."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    return Counter(
        (f"{line['phase']}/{name}", line["step"], short(value))
        for line in lines
        for name, value in line["values"].items()
        if value is not None
    )


def short(value: float) -> str:
    """A number as TensorBoard keeps it, in float32."""
    return f"{struct.unpack('f', struct.pack('f', value))[0]:.6g}"


def own(run: Path, name: str) -> str:
    return json.loads((run / "trackers" / f"{name}.json").read_bytes())["id"]


def is_number_of(name: str, run: Path) -> bool:
    """Whether a tracker's series is one of the log's, and not of its times or of the machine."""
    return name in {logged for logged, _, _ in numbers(run)}


def tensorboard(folder: Path, run: Path) -> Found:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    shown = Counter(
        (name, event.step, short(event.value))
        for name in events.Tags()["scalars"]
        if is_number_of(name, run)
        for event in events.Scalars(name)
    )
    texts = events.Tags()["tensors"]
    return shown, "config/text_summary" in texts, sum("samples" in name for name in texts), False


def wandb(folder: Path, run: Path) -> Found:
    from wandb.proto import wandb_internal_pb2

    shown, config, seen = Counter(), set(), set()
    for file in folder.glob(f"wandb/offline-run-*-{own(run, 'wandb')}/*.wandb"):
        for data in wandb_records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            config |= {item.key for item in record.run.config.update}
            entries = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            seen |= set(entries)
            for name, value in entries.items():
                if is_number_of(name, run):
                    shown[name, entries["step"], short(value)] += 1
    tables = {"/".join(name.split("/")[:2]) for name in seen if name.startswith("samples/")}
    return shown, "loss.name" in config, len(tables), any("report" in name for name in seen)


def wandb_records(data: bytes) -> Iterator[bytes]:
    """Cut a .wandb file into its records: blocks of 32 KiB, as LevelDB's log has them."""
    place, parts, head = 7, [], struct.Struct("<IHB")  # checksum, length, kind
    while place + head.size <= len(data):
        left = 2**15 - place % 2**15
        if left < head.size:
            place += left
            continue
        _, length, kind = head.unpack_from(data, place)
        parts.append(data[place + head.size : place + head.size + length])
        place += head.size + length
        if kind in (1, 4):  # whole, or the last part
            yield b"".join(parts)
            parts = []


def mlflow(folder: Path, run: Path) -> Found:
    from mlflow import MlflowClient

    client, name = MlflowClient(), own(run, "mlflow")
    found = client.get_run(name)
    assert found.info.status == "FINISHED", found.info.status
    shown = Counter(
        (metric, point.step, short(point.value))
        for metric in found.data.metrics
        if is_number_of(metric, run)
        for point in client.get_metric_history(name, metric)
    )
    files = {file.path for file in client.list_artifacts(name)}
    tables = len(client.list_artifacts(name, "samples"))
    configuration = found.data.params["loss.name"] == "s_sppo" and "config.json" in files
    return shown, configuration, tables, "report.html" in files


def trackio(folder: Path, run: Path) -> Found:
    from trackio.sqlite_storage import SQLiteStorage

    name, shown, tables = own(run, "trackio"), Counter(), 0
    for row in SQLiteStorage.get_logs(PROJECT, name):
        tables += any(key.startswith("samples/") for key in row)
        for key, value in row.items():
            if is_number_of(key, run):
                shown[key, row["step"], short(value)] += 1
    config = SQLiteStorage.get_run_config(PROJECT, name)
    files = {file["name"] for file in SQLiteStorage.get_artifacts(PROJECT)}
    return shown, config["loss.name"] == "s_sppo", tables, f"{name}-report.html" in files


if __name__ == "__main__":
    sys.exit(main())
