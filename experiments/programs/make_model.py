"""Make the model that every run starts from: random parameters, then SFT by this package.

    python experiments/programs/make_model.py

writes into runs/programs-model the prompts with their tests, and the folders random (with a
tokenizer of names, digits and words), sft (a run) and model (the policy). Seeds are fixed. The
steps of the demonstrations are not those of the prompts: they are drawn from another seed."""

from __future__ import annotations

import shutil
from pathlib import Path

from config import MODEL, get_config
from programs import START, demonstrations, rows, tokenizer

from ssppo_jax import train
from ssppo_jax.files import write_records
from ssppo_jax.models.arch import tiny_arch

PROMPTS, DEMONSTRATIONS, HASTY = 1024, 8192, 0.4
SIZES = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 4, "head_dim": 16}


def main() -> None:
    folder, made = Path(MODEL), tokenizer()
    arch = tiny_arch(vocab_size=len(made), mlp_dim=192, bos_id=None, eos_ids=(3,), **SIZES)
    START.save_random(arch, made, folder / "random")
    write_records(folder / "prompts.jsonl", rows(PROMPTS, 1))
    write_records(folder / "sft.jsonl", demonstrations(DEMONSTRATIONS, 2, HASTY))
    train(get_config("sft"), folder / "sft")
    shutil.copytree(folder / "sft" / "policy", folder / "model")


if __name__ == "__main__":
    main()
