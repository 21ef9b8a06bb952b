"""Weights & Biases, online or offline (WANDB_MODE=offline, then `wandb sync FOLDER`)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ssppo_jax.errors import ConfigError
from ssppo_jax.runs.trackers.protocol import Run, Tracker, package

log = logging.getLogger(__name__)

CODES = {"finished": 0, "interrupted": 1, "failed": 1}


class WandB(Tracker):
    """Log to a run of Weights & Biases.

    The step is a value of each record and the x axis, not wandb's own step: that may not fall, and
    the steps of phases do.
    """

    def __init__(self):
        self.wandb = package("wandb", "wandb")
        settings = self.wandb.setup().settings
        if settings.mode in ("online", "shared") and not (
            settings.api_key or self.wandb.login(prompt=False, verify=False)
        ):
            raise ConfigError(
                "tracking.report_to: wandb has no login; type: wandb login, or set WANDB_API_KEY,"
                " or WANDB_MODE=offline"
            )

    def start(self, run: Run) -> str:
        quiet = self.wandb.Settings(console="off", silent=True, init_timeout=30, finish_timeout=60)
        try:
            self.run = self.wandb.init(
                project=run.project,
                name=run.name,
                id=run.id or None,
                resume="allow",
                config=run.config,
                allow_val_change=True,
                settings=quiet,
            )
        except Exception:
            self.wandb.teardown()  # or the next try finds the id in use
            raise
        self.run.define_metric("step", hidden=True)
        self.run.define_metric("*", step_metric="step")
        folder = self.run.settings.sync_dir
        log.info("wandb: %s", self.run.url or f"offline; to upload it: wandb sync {folder}")
        return self.run.id

    def log(self, step: int, values: dict[str, float], time: float) -> None:
        self.run.log(values | {"step": step})

    def table(self, name: str, step: int, rows: list[dict[str, Any]]) -> None:
        cells = [list(row.values()) for row in rows]
        self.run.log({name: self.wandb.Table(columns=list(rows[0]), data=cells), "step": step})

    def attach(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        self.run.log({path.stem: self.wandb.Html(text, inject=False)})

    def finish(self, how: str) -> None:
        self.run.finish(exit_code=CODES[how])


TRACKERS = {"wandb": WandB}
