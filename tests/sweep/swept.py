"""Swept files and finished runs, for tests of sweeps."""

import json

BASE = """
from ssppo_jax.schema import base_config, select

def get_config():
    config = base_config()
    select(config, "loss", "s_sppo", beta=0.05)
    return config

"""


def write_swept(folder, body, more=""):
    """A swept file: the body of sweep(add), and what else the file says (SEEDS, METRICS); returns
    its path."""
    path = folder / "grid.py"
    indented = "\n".join("    " + line for line in body.splitlines())
    path.write_text(f"{BASE}{more}\ndef sweep(add):\n{indented}\n")
    return str(path)


def log(folder, phase, **series):
    """Add records to a metrics.jsonl: each keyword a name and its values over steps and iterations
    0, 1, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "metrics.jsonl", "a") as file:
        for i, values in enumerate(zip(*series.values(), strict=True)):
            values = dict(zip(series, values, strict=True))
            line = {
                "step": 10 * i,
                "iteration": i,
                "phase": phase,
                "values": values,
                "wall": {"time": 0.0, "rate": 5.0},
            }
            file.write(json.dumps(line) + "\n")
