"""Exploratory: SSPO's weight with other gates, at the rate that SSPO and GMPO have in common.

GMPO is SSPO's weight with a hard clip that acts on one side. `log_clip` at GMPO's reach acts on
both sides, `arctan_log` at that reach is soft, and `identity` is no gate."""

from pathlib import Path

from ssppo_jax.config import load_config, load_module

STUDY = load_module(str(Path(__file__).parent / "config.py"))
SEEDS, METRICS = STUDY.JUDGED_SEEDS[:5], STUDY.METRICS
REACH = {  # pi/(2 temperature) is GMPO's 0.4
    "loss.sspo_temperature_pos": 3.93,
    "loss.sspo_temperature_neg": 3.93,
}
GATES = {
    "log_clip": REACH,
    "arctan_log at 0.4": REACH,
    "identity": {},
    "sigmoid": {"loss.sspo_temperature_pos": 1.0, "loss.sspo_temperature_neg": 1.05},
}


def get_config():
    return load_config(str(Path(__file__).parent / "config.py"))


def sweep(add):
    for name, keys in GATES.items():
        point, label = STUDY.point("sspo", STUDY.BEST["sspo"])
        gate = {"loss.sspo_gate": name.partition(" ")[0], **keys}
        add(point | gate, label=label.replace("sspo", f"sspo {name}", 1))
