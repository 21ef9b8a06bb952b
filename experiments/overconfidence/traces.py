"""Three runs of config.py that keep a checkpoint of every iteration, for measure.py."""

from pathlib import Path

from ssppo_jax.config import load_config, load_module

STUDY = load_module(str(Path(__file__).parent / "config.py"))
SEEDS, METRICS = STUDY.SEEDS[4:5], STUDY.METRICS


def get_config():
    config = load_config(str(Path(__file__).parent / "config.py"))
    config.checkpoint.every = 1
    config.checkpoint.keep = config.train.iterations + 1
    config.checkpoint.final = True
    return config


def sweep(add):
    for label in ("SPPO", "S-SPPO", "random gate"):
        add(STUDY.METHODS[label], label=label)
