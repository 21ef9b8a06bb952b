"""Make the model that every run starts from: random parameters, then SFT by this package.

    python experiments/accuracy/make_model.py

writes into runs/accuracy-model the folders random (with a tokenizer of digits and words), sft (a
run) and model (the policy). Seeds are fixed. The questions of the demonstrations are not those of
the runs: they have another seed of reasoning-gym."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from config import MODEL, get_config
from steps import SETTINGS, TASK, terms_of, worked

from ssppo_jax import train
from ssppo_jax.config import load_module
from ssppo_jax.data import SOURCES
from ssppo_jax.files import write_records
from ssppo_jax.models.arch import tiny_arch

START = load_module(str(Path(__file__).parents[1] / "overconfidence/start.py"))
DEMONSTRATIONS = 8192
HASTY, WRONG = 0.4, 0.4  # share of additions without working, and of these that are wrong
SIZES = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 4, "head_dim": 16}


def demonstrations() -> list[dict]:
    """Return questions of reasoning-gym with their working."""
    rng = np.random.default_rng(0)
    asked = SOURCES["reasoning_gym"](
        task=TASK, settings=SETTINGS, size=DEMONSTRATIONS, task_seed=10**6
    )
    texts = [prompt.text for prompt in asked]
    return [{"prompt": t, "completion": worked(terms_of(t), rng, HASTY, WRONG)} for t in texts]


def main() -> None:
    folder = Path(MODEL)
    arch = tiny_arch(vocab_size=25, mlp_dim=192, bos_id=None, eos_ids=(3,), **SIZES)
    START.save_random(arch, START.of_sums("+=:,;.~"), folder / "random")
    write_records(folder / "sft.jsonl", demonstrations())
    train(get_config("sft"), folder / "sft")
    shutil.copytree(folder / "sft" / "policy", folder / "model")


if __name__ == "__main__":
    main()
