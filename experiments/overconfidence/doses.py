"""The dose: what share of the prompts fixes the meaning of a response. 0.3 is config.py's."""

from pathlib import Path

from ssppo_jax.config import load_config, load_module

STUDY = load_module(str(Path(__file__).parent / "config.py"))
SEEDS, METRICS = STUDY.SEEDS[:5], STUDY.METRICS
DOSES = (0.0, 0.6, 0.1)


def get_config():
    return load_config(str(Path(__file__).parent / "config.py"))


def sweep(add):
    for dose in DOSES:
        for label in ("SPPO", "S-SPPO"):
            point = {"data.source.duplicates": dose, **STUDY.METHODS[label]}
            add(point, label=f"p = {dose:g}: {label}")
