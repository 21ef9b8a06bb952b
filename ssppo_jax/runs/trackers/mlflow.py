"""MLflow, in the store of MLFLOW_TRACKING_URI, or in MLflow's default one."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from ssppo_jax.runs.trackers.protocol import Run, Tracker, package

STATES = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
FORBIDDEN = re.compile(r"[^\w. /:-]")  # in the names of metrics and parameters
LONGEST = 500  # characters of a parameter's value that every release takes


class MLflow(Tracker):
    """Log to a run of MLflow by its client, which keeps no run per thread."""

    def __init__(self):
        # Its own tries take minutes and say each; the run tries again itself.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        self.mlflow = package("mlflow", "mlflow")
        self.id = ""

    def start(self, run: Run) -> str:
        self.client = self.mlflow.MlflowClient()
        self.id = run.id or self.id  # also of a start that failed behind create_run
        if self.id:
            self.client.update_run(self.id, status="RUNNING")
        else:
            found = self.client.get_experiment_by_name(run.project)
            place = found.experiment_id if found else self.client.create_experiment(run.project)
            self.id = self.client.create_run(place, run_name=run.name).info.run_id
            entries = [
                self.mlflow.entities.Param(FORBIDDEN.sub("_", key), str(value)[:LONGEST])
                for key, value in run.config.items()
            ]
            for first in range(0, len(entries), 100):  # a batch takes no more
                self.client.log_batch(self.id, params=entries[first : first + 100])
        # A parameter never changes there; a key of a run that continues may.
        text = json.dumps(run.config, indent=1, default=str)
        self.client.log_text(self.id, text, "config.json")
        return self.id

    def log(self, step: int, values: dict[str, float], time: float) -> None:
        entry, at = self.mlflow.entities.Metric, int(1000 * time)
        metrics = [entry(FORBIDDEN.sub("_", name), x, at, step) for name, x in values.items()]
        self.client.log_batch(self.id, metrics=metrics, synchronous=True)

    def table(self, name: str, step: int, rows: list[dict[str, Any]]) -> None:
        columns = {key: [row[key] for row in rows] for key in rows[0]}
        self.client.log_table(self.id, columns, f"{name}.json")

    def attach(self, path: Path) -> None:
        self.client.log_artifact(self.id, str(path))

    def finish(self, how: str) -> None:
        self.client.set_terminated(self.id, STATES[how])


TRACKERS = {"mlflow": MLflow}
