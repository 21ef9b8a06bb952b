"""The pilot behind PLAN.md's sample size: SPPO and S-SPPO under the oracle that likes flourish, at
two rates.

Its seeds are not those of the study."""

from pathlib import Path

from ssppo_jax.config import load_config, load_module

STUDY = load_module(str(Path(__file__).parent / "config.py"))
SEEDS = (100, 101, 102)
METRICS = STUDY.METRICS
PAIR = {"SPPO": STUDY.SPPO, "S-SPPO": {}}


def get_config():
    return load_config(str(Path(__file__).parent / "config.py"))


def sweep(add):
    for rate in (1e-4, 2e-4):
        for label, changes in PAIR.items():
            point = {"oracle.bias": "florid", **changes, "optimizer.learning_rate": rate}
            add(point, label=f"{rate:g}: {label}")
