"""A tracker of one's own, as a file that a configuration names."""

import json

from ssppo_jax.runs.trackers.protocol import Tracker


class Lines(Tracker):
    """Writes what it is told into the run's folder."""

    def start(self, run):
        self.file = open(run.folder / "shown.jsonl", "a", encoding="utf-8")  # noqa: SIM115
        return run.name

    def write(self, *what):
        self.file.write(json.dumps(what) + "\n")

    def log(self, step, values, time):
        self.write("log", step, values)

    def table(self, name, step, rows):
        self.write("table", name, len(rows))

    def attach(self, path):
        self.write("attach", path.name)

    def finish(self, how):
        self.write("finish", how)
        self.file.close()
