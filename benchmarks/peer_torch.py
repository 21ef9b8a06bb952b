"""transformers `generate` and TRL's DPOTrainer: python benchmarks/peer_torch.py FOLDER TASK..., in
its own environment (torch, trl)."""

from __future__ import annotations

import tempfile
import time
import warnings

import torch
import work
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer

warnings.filterwarnings("ignore")


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def model_of(folder: str):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, work.DTYPE)).to(DEVICE)


def peak() -> float:
    return torch.cuda.max_memory_allocated() / 2**30 if DEVICE == "cuda" else work.host_peak()


def wait() -> None:
    """Until the device is done."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def sampling(folder: str, count: int, samples: int, warm: int) -> float:
    model, ids = (
        model_of(folder).eval(),
        torch.tensor(work.prompts(count), dtype=torch.long).to(DEVICE),
    )
    settings = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "pad_token_id": 2}
    lengths = {"min_new_tokens": work.NEW, "max_new_tokens": work.NEW}

    def run():
        mask = torch.ones_like(ids)
        out = model.generate(
            input_ids=ids, attention_mask=mask, num_return_sequences=samples, **settings, **lengths
        ).cpu()
        assert out.shape == (count * samples, work.PROMPT + work.NEW)

    return work.timed(run, warm=warm)


def training(folder: str, steps: int) -> float:
    """Seconds of the last of `steps` optimizer steps on 8 pairs, the reference's log-probs
    included."""
    count = work.PAIRS * steps
    rows = rows_of(work.prompts(count), work.completions(count))
    return steps_on(folder, rows, steps, per_device_train_batch_size=work.PAIRS)[-1]["seconds"]


def long_tailed(folder: str) -> dict[str, float]:
    """The same for pairs of long-tailed lengths. TRL pads a micro-batch to its longest row, so each
    has one pair: the least padding that it can have."""
    own, pairs = work.lengths(), work.LONG_TAILED
    rows = rows_of(work.prompts(pairs), work.long_completions(), own)
    cut = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": pairs}
    return steps_on(folder, rows, 1, **cut)[-1]


def rows_of(prompts, completions, lengths=None) -> list[dict]:
    """Pairs as TRL has them after encoding."""
    rows = []
    for i, (prompt, pair) in enumerate(zip(prompts, completions, strict=True)):
        chosen, rejected = pair if lengths is None else (pair[j][: lengths[i, j]] for j in (0, 1))
        ids = {
            "prompt_ids": prompt.tolist(),
            "chosen_ids": chosen.tolist(),
            "rejected_ids": rejected.tolist(),
        }
        rows.append(ids)
    return rows


def steps_on(folder: str, rows: list[dict], steps: int, **cut: int) -> list[dict[str, float]]:
    """Seconds and processor seconds of each optimizer step."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    longest = max(len(row[name]) for row in rows for name in ("chosen_ids", "rejected_ids"))
    times: list[dict[str, float]] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            wait()
            self.start = time.perf_counter(), time.process_time()

        def on_step_end(self, *_, **__):
            wait()
            seconds, spent = time.perf_counter(), time.process_time()
            times.append({"seconds": seconds - self.start[0], "cpu_seconds": spent - self.start[1]})

    text = {"prompt": "a", "chosen": "b", "rejected": "c"}
    config = DPOConfig(
        output_dir=tempfile.mkdtemp(),
        **cut,
        max_steps=steps,
        report_to=[],
        save_strategy="no",
        max_length=2 * work.PROMPT + longest,
        loss_type="sppo_hard",
        beta=work.BETA,
        learning_rate=work.RATE,
        use_cpu=DEVICE == "cpu",
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
    )
    data = Dataset.from_list([text] * len(rows))
    trainer = DPOTrainer(
        model=model_of(folder),
        args=config,
        train_dataset=data,
        processing_class=tokenizer,
        callbacks=[Clock()],
    )
    trainer.train_dataset = Dataset.from_list(
        rows
    )  # the very tokens, where the trainer keeps its own encoding
    trainer.train()
    return times


def offline(folder: str) -> dict:
    """Train DPO on given pairs with DPOTrainer, from the rows to the last step: seconds, and the
    loss of every step.

    The reference's log-probs are computed once, before the first step, and its copy is let go: the
    less time and memory of TRL's two ways."""
    config = DPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=work.PAIRS,
        precompute_ref_log_probs=True,
        precompute_ref_batch_size=work.PAIRS,
        num_train_epochs=work.EPOCHS,
        learning_rate=work.OFFLINE_RATE,
        lr_scheduler_type="constant",
        optim="adamw_torch",
        weight_decay=0.0,
        max_grad_norm=0.0,
        max_length=None,
        beta=work.OFFLINE_BETA,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=DEVICE == "cpu",
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
    )
    losses: list[float] = []
    rows = [{k: v for k, v in row.items() if k != "id"} for row in work.preferences()[0]]

    def run():
        trainer = DPOTrainer(
            model=model_of(folder),
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(folder),
        )
        trainer.train()
        losses.extend(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)

    return work.clocked(run, warm=0) | {"losses": losses}


def logprobs(folder: str) -> list[float]:
    model = model_of(folder).eval()
    ids = torch.tensor(work.prompts(4), dtype=torch.long).to(DEVICE)
    own = torch.tensor(work.completions(4)[:, 0], dtype=torch.long).to(DEVICE)
    with torch.inference_mode():
        logits = model(torch.cat([ids, own], 1)).logits[:, work.PROMPT - 1 : -1]
    return torch.log_softmax(logits.float(), -1).gather(-1, own[..., None])[..., 0].sum(-1).tolist()


if __name__ == "__main__":
    work.answer(
        {
            "logprobs": lambda folder: {"values": logprobs(folder)},
            "sample": lambda folder: {"seconds": sampling(folder, work.PROMPTS, work.SAMPLES, 1)},
            "queue": lambda folder: {
                "seconds": sampling(folder, work.QUEUE, work.QUEUE_SAMPLES, 0)
            },
            "train": lambda folder: {"seconds": training(folder, 3 if DEVICE == "cuda" else 2)},
            "offline": offline,
            "lengths": long_tailed,
        },
        peak,
    )
