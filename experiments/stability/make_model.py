"""Make the model that every run starts from: random parameters, then SFT by this package.

    python experiments/stability/make_model.py

writes into runs/stability-model the folders random (with a tokenizer of digits and words), sft and
slips (two runs, the second goes on from the first with more mistakes) and model (the policy). Seeds
are fixed. The questions of the demonstrations are not those of the runs: they have other seeds of
reasoning-gym."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from config import MODEL, get_config
from sums import SETTINGS, TASK, terms_of, worked

from ssppo_jax import train
from ssppo_jax.config import load_module
from ssppo_jax.data import SOURCES
from ssppo_jax.files import write_records
from ssppo_jax.models.arch import tiny_arch

START = load_module(str(Path(__file__).parents[1] / "overconfidence/start.py"))
DEMONSTRATIONS = 8192
# Share of additions whose tens are wrong by one, and the seed of the questions.
STEPS = {"sft": (0.1, 10**6), "slips": (0.25, 2 * 10**6)}
SIZES = {"hidden_size": 64, "num_layers": 3, "num_heads": 4, "num_kv_heads": 4, "head_dim": 16}


def demonstrations(mistakes: float, seed: int) -> list[dict]:
    """Return questions of reasoning-gym with their working, wrong in places."""
    rng = np.random.default_rng(seed)
    asked = SOURCES["reasoning_gym"](
        task=TASK, settings=SETTINGS, size=DEMONSTRATIONS, task_seed=seed
    )
    texts = [prompt.text for prompt in asked]
    return [{"prompt": t, "completion": worked(terms_of(t), rng, mistakes)} for t in texts]


def main() -> None:
    folder = Path(MODEL)
    arch = tiny_arch(vocab_size=24, mlp_dim=192, bos_id=None, eos_ids=(3,), **SIZES)
    START.save_random(arch, START.of_sums("+=:,;."), folder / "random")
    for step, (mistakes, seed) in STEPS.items():
        write_records(folder / f"{step}.jsonl", demonstrations(mistakes, seed))
        train(get_config(step), folder / step)
    shutil.copytree(folder / "slips" / "policy", folder / "model")


if __name__ == "__main__":
    main()
