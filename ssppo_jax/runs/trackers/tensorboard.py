"""TensorBoard: `tensorboard --logdir=RUN/tensorboard`."""

from __future__ import annotations

import shutil
from typing import Any

from ssppo_jax.runs.trackers.protocol import Run, Tracker, package

ROWS = 32  # of a table: TensorBoard draws it as one text


class TensorBoard(Tracker):
    """Write event files into the run's folder, anew at each start, by tensorboardX.

    It needs neither torch nor TensorFlow.
    """

    remade = True

    def __init__(self):
        self.writer_class = package("tensorboardX", "tensorboard").SummaryWriter

    def start(self, run: Run) -> str:
        folder = run.folder / "tensorboard"
        shutil.rmtree(folder, ignore_errors=True)
        self.writer = self.writer_class(str(folder))
        rows = [{"key": key, "value": value} for key, value in run.config.items()]
        self.writer.add_text("config", markdown(rows))
        return ""

    def log(self, step: int, values: dict[str, float], time: float) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step, walltime=time)
        self.writer.flush()

    def table(self, name: str, step: int, rows: list[dict[str, Any]]) -> None:
        more = f"\n\n{len(rows) - ROWS} more rows are in the run's folder" * (len(rows) > ROWS)
        self.writer.add_text(name, markdown(rows[:ROWS]) + more, step)

    def finish(self, how: str) -> None:
        self.writer.close()


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return a table in Markdown; a cell is one line, without marks that would part it."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    cells = [[str(x).replace("|", "\\|").replace("\n", "<br>") for x in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


TRACKERS = {"tensorboard": TensorBoard}
