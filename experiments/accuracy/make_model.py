"""Make the model that every run starts from: random parameters, then SFT by this package.

    python experiments/accuracy/make_model.py

writes into runs/accuracy-model the folders random (with a tokenizer of digits and words), sft (a
run) and model (the policy). Seeds are fixed. The questions of the demonstrations are not those of
the runs: they have another seed of reasoning-gym."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
from config import MODEL, get_config
from steps import SETTINGS, TASK, terms_of, worked

from ssppo_jax import train
from ssppo_jax.config import load_module
from ssppo_jax.data import SOURCES
from ssppo_jax.files import write_records
from ssppo_jax.models.arch import tiny_arch
from ssppo_jax.weights import hf, names

START = load_module(str(Path(__file__).parents[1] / "overconfidence/start.py"))
DEMONSTRATIONS = 8192
HASTY, WRONG = 0.4, 0.4  # share of additions without working, and of these that are wrong
TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ '<end>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
SIZES = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 4, "head_dim": 16}


def tokenizer():
    """Make a tokenizer whose tokens are digits, signs, "Calculate" and "####"; spaces are none."""
    from tokenizers import Regex, decoders, pre_tokenizers

    made = START.word_level([*START.SPECIALS, "####", "Calculate", *"0123456789", *"+=:,;.~"])
    each = Regex(r"####|[A-Za-z]+|[^\sA-Za-z]")
    made.pre_tokenizer = pre_tokenizers.Split(each, behavior="removed", invert=True)
    made.decoder = decoders.Fuse()
    return START.wrapped(made, TEMPLATE)


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
    with tempfile.TemporaryDirectory() as files:
        tokenizer().save_pretrained(files)
        hf.save_params(
            START.random_parameters(arch), arch, folder / "random", tokenizer_from=Path(files)
        )
    count = sum(int(np.prod(names.shape(leaf, arch))) for leaf in names.leaves(arch))
    print(f"{folder}: {count:,} parameters")
    write_records(folder / "sft.jsonl", demonstrations())
    train(get_config("sft"), folder / "sft")
    shutil.copytree(folder / "sft" / "policy", folder / "model")


if __name__ == "__main__":
    main()
