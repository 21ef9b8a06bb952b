"""A learned oracle: the reward model of make_reward.py, sharpened, at the dose of config.py."""

from pathlib import Path

from ssppo_jax.config import load_config, load_module
from ssppo_jax.files import read_json
from ssppo_jax.schema import select

STUDY = load_module(str(Path(__file__).parent / "config.py"))
SEEDS, METRICS = STUDY.SEEDS[:5], STUDY.METRICS
FIT = Path(STUDY.MODEL) / "fit"
SHARP = 0.1  # of the temperature that fits the held-out pairs best


def get_config():
    config = load_config(str(Path(__file__).parent / "config.py"))
    select(config, "oracle", "reward_model", source=str(FIT / "reward_model"), max_length=64)
    config.oracle.batch_size = 128
    calibrated = read_json(FIT / "result.json")["reward_temperature"]
    config.oracle.reward_temperature = SHARP * calibrated
    return config


def sweep(add):
    for label in ("SPPO", "S-SPPO", "gate alone", "SPPO, beta 0.16"):
        add(STUDY.METHODS[label], label=label)
