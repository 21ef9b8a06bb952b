"""Makes trl_offline.npz: ten steps of TRL's DPOTrainer and of its SFTTrainer on a tiny model.

    python -m ssppo_jax convert --input=random:tiny --output=/tmp/tiny
    python -m venv venv && venv/bin/pip install torch==2.13.0 trl==1.16.0 transformers==5.23.0
    venv/bin/python tests/golden/make_trl_offline.py /tmp/tiny

The trainers are TRL's own, from the rows to the losses: its formatting, tokenising, batching,
model, loss and optimizer step. Only the order of the rows is set, to that of the list. The chat
template ends a turn with the end token and nothing behind it: TRL also learns what a template
writes there.

The file holds the rows, the loss of every step, and of DPO the accuracies and margins."""

import json
import pathlib
import shutil
import sys
import tempfile

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>'"
    " }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WORDS = ("sea", "sun", "moon", "tree", "river", "stone", "cloud", "bird", "fish", "road", "wind")
STEPS, BATCH = 10, 4
SETTINGS = {
    "per_device_train_batch_size": BATCH,
    "max_steps": STEPS,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "optim": "adamw_torch",
    "weight_decay": 0.0,
    "max_grad_norm": 0.0,
    "logging_steps": 1,
    "report_to": "none",
    "save_strategy": "no",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
}


def rows():
    """Pairs of unequal lengths, some with an earlier turn and a system turn."""
    rng, found = np.random.default_rng(0), []
    for i in range(STEPS * BATCH):
        said = [" ".join(rng.choice(WORDS, n)) for n in rng.integers(1, 9, 3)]
        prompt = [{"role": "user", "content": f"{i}: {said[0]}?"}]
        if i % 5 == 0:
            prompt = [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hello."},
                {"role": "assistant", "content": "Yes?"},
                *prompt,
            ]
        found.append(
            {
                "prompt": prompt,
                "chosen": [{"role": "assistant", "content": said[1] + "."}],
                "rejected": [{"role": "assistant", "content": said[2] + "!"}],
            }
        )
    return found


class InOrder:
    """Take the rows in the order of the list."""

    def _get_train_sampler(self, dataset=None):
        return torch.utils.data.SequentialSampler(dataset or self.train_dataset)


class Dpo(InOrder, DPOTrainer):
    pass


class Sft(InOrder, SFTTrainer):
    pass


def model_of(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    return model, tokenizer


def history(trainer, *names):
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {name: np.array([entry[name] for entry in log], np.float64) for name in names}


def main(folder):
    given, out = rows(), {}
    with tempfile.TemporaryDirectory() as work:
        model, tokenizer = model_of(folder)
        trainer = Dpo(
            model=model,
            args=DPOConfig(output_dir=work, beta=0.1, max_length=None, **SETTINGS),
            train_dataset=Dataset.from_list(given),
            processing_class=tokenizer,
        )
        names = ("loss", "rewards/accuracies", "rewards/margins")
        out |= {f"dpo/{name}": x for name, x in history(trainer, *names).items()}
        model, tokenizer = model_of(folder)
        answered = [{"prompt": r["prompt"], "completion": r["chosen"]} for r in given]
        trainer = Sft(
            model=model,
            args=SFTConfig(output_dir=work, completion_only_loss=True, max_length=None, **SETTINGS),
            train_dataset=Dataset.from_list(answered),
            processing_class=tokenizer,
        )
        out |= {f"sft/{name}": x for name, x in history(trainer, "loss").items()}
        shutil.rmtree(work, ignore_errors=True)
    target = pathlib.Path(__file__).parent / "trl_offline.npz"
    np.savez(target, rows=json.dumps(given), template=TEMPLATE, **out)
    for name, value in out.items():
        print(name, np.round(value, 5))


if __name__ == "__main__":
    main(sys.argv[1])
