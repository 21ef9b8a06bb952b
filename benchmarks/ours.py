"""Our side: python benchmarks/ours.py FOLDER TASK..., tasks logprobs, sample, queue, train, groups,
iteration, ceiling, lengths, lengths_whole."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import work

from ssppo_jax import schema
from ssppo_jax.data import EncodedPrompt, cut_of, pad_batch
from ssppo_jax.distributed.mesh import put_rows, put_whole
from ssppo_jax.losses.core import ratio_stats
from ssppo_jax.models import flops
from ssppo_jax.optimizer import make_run_optimizer
from ssppo_jax.rollout.sample import sample_prompts
from ssppo_jax.rollout.score import score_rows
from ssppo_jax.runs.metrics import read_metrics
from ssppo_jax.runs.throughput import memory_peaks, work_of
from ssppo_jax.runtime import ROUNDING, build_runtime, sampling_params
from ssppo_jax.steps import (
    LaidStep,
    fresh_state,
    make_gradient,
    make_score_step,
    make_train_step,
    make_update,
)
from ssppo_jax.training.train import lay, train
from ssppo_jax.types import Batch, Prompt

ROOT = Path(__file__).parents[1]


def runtime_of(folder: str, **overrides):
    given = {
        "model.source": folder,
        "model.dtype": work.DTYPE,
        "model.param_dtype": work.DTYPE,
        "model.attention": os.environ.get("BENCH_ATTENTION", "einsum"),
        "model.remat": os.environ.get("BENCH_REMAT", "dots"),
        "optimizer.name": "adamw",  # as TRL and Tunix
        "data.prompt_buckets": f"({work.PROMPT},)",
        "data.max_prompt_length": work.PROMPT,
        "sampling.max_new_tokens": work.NEW,
        "sampling.num_samples": work.SAMPLES,
        "loss.beta": work.BETA,
        "optimizer.learning_rate": work.RATE,
        "train.batch_size": work.PAIRS,
        "train.micro_batches": work.PAIRS // 2 if work.DTYPE == "float32" else 1,
        "train.prompts_per_iteration": work.PAIRS,
    }
    given |= {key.replace("__", "."): value for key, value in overrides.items()}
    return build_runtime(
        schema.load(str(ROOT / "configs/quickstart.py"), {k: str(v) for k, v in given.items()}, 1)
    )


def sampling(folder: str, count: int, samples: int, rows: int) -> float:
    """Seconds to sample `samples` responses of full length to each of `count` prompts, as a run's
    rollout does."""
    runtime = runtime_of(folder, sampling__num_samples=samples, sampling__batch_size=rows)
    runtime = dataclasses.replace(
        runtime, eos=(runtime.arch.vocab_size - 1,)
    )  # nothing may end early, on any side
    params = runtime.load_params()
    sampler = runtime.make_sampler(num_samples=samples, sampling=sampling_params(runtime.config))
    encoded = [
        EncodedPrompt(Prompt(str(i), ()), ids, i) for i, ids in enumerate(work.prompts(count))
    ]

    def run():
        done = sample_prompts(runtime, sampler, params, encoded, jax.random.key(0))
        assert done.metrics["tokens"] > 0.99 * count * samples * work.NEW

    batch = put_rows(runtime.mesh, pad_batch(encoded, np.arange(rows), rows, work.PROMPT).prompts)
    real = put_rows(runtime.mesh, np.ones(rows, bool))
    slots = sampler.start(params, batch, jax.random.key(0), real)
    sampler.look(
        sampler.run(params, slots, put_whole(runtime.mesh, np.int32(0)))
    )  # compiled; decodes nothing
    del slots
    return work.timed(run, warm=0)


def batch_of(count: int, k: int, copies: int = 1, length: int = work.PROMPT) -> Batch:
    """`count` rows of K completions; or every prompt `copies` times, with K / copies completions
    each."""
    rows, k = count * copies, k // copies
    prompt = np.repeat(work.prompts(count, length), copies, axis=0)
    own = np.random.default_rng(1).integers(100, 40000, (rows, k, work.NEW)).astype(np.int32)
    per_token, per_response = np.zeros(own.shape, np.float32), np.zeros(own.shape[:2], np.float32)
    fields = dict.fromkeys(("old_logp", "ref_logp", "init_logp"), per_token)
    fields |= {
        "prompt": prompt,
        "prompt_length": np.full(rows, length, np.int32),
        "completion": own,
    }
    fields |= {"mask": np.ones_like(per_token), "weight": np.ones(rows, np.float32)}
    fields |= dict.fromkeys(("win_rate", "target"), per_response + np.float32(0.5))
    fields |= {"p_win": np.full(rows, 0.5, np.float32), "similarity": np.zeros(rows, np.float32)}
    return Batch(**fields, advantage=per_response + np.float32(1.0))


def training(folder: str, batch: Batch, loss: str, **overrides) -> float:
    """Seconds of one optimizer step, the reference's log-probs included.

    As in a run's iteration the reference is the policy before its updates: it is scored then, and
    never a second copy."""
    runtime = runtime_of(folder, loss__name=loss, **overrides)
    c, apply = runtime.config, runtime.make_apply()
    optimizer = make_run_optimizer(c, runtime.key(ROUNDING))
    objective = runtime.loss
    step = jax.jit(make_train_step(apply, objective, ratio_stats, optimizer), donate_argnums=0)
    score = jax.jit(make_score_step(apply))
    state = fresh_state(runtime.mesh, runtime.load_params(), optimizer)
    micro = c.train.micro_batches

    def run():
        nonlocal state
        cut = jax.tree.map(lambda x: x.reshape(micro, len(x) // micro, *x.shape[1:]), batch)
        fields = (cut.prompt, cut.prompt_length, cut.completion, cut.mask)
        parts = [put_rows(runtime.mesh, part) for part in zip(*fields, strict=True)]
        logp = np.stack([np.asarray(score(state.params, *part).logp) for part in parts])
        cut = cut._replace(ref_logp=logp, old_logp=logp)
        state, metrics = step(state, put_rows(runtime.mesh, cut, axis=1))
        assert np.isfinite(float(metrics["loss"].result()))

    return work.timed(run)


def long_tailed(folder: str, *, cut: bool) -> dict[str, float]:
    """One optimizer step, the reference's log-probs included, on pairs of long-tailed lengths; cut
    by length and packed, or every row at its T slots."""
    own, pairs = work.lengths(), work.LONG_TAILED
    given = {"train__batch_size": pairs, "train__prompts_per_iteration": pairs}
    given |= {"train__micro_batches": pairs // 2, "sampling__max_new_tokens": work.LONGEST}
    if cut:  # a micro-batch has as many tokens as one of two whole rows
        given |= {"train__micro_batches": 1, "train__padding_free": True}
        given |= {"train__max_token_len": 2 * (work.PROMPT + 2 * work.LONGEST)}
        given |= {"data__completion_buckets": "(256,384,512,768)"}
    runtime = runtime_of(folder, loss__name="sppo_hard", **given)
    config, apply, rows = runtime.config, runtime.make_apply(), np.arange(pairs)
    rule = cut_of(config, 1)
    batch = batch_of(pairs, 2)
    mask = (np.arange(work.LONGEST) < own[:, :, None]).astype(np.float32)
    tokens = dict.fromkeys(("old_logp", "ref_logp", "init_logp"), np.zeros_like(mask))
    batch = batch._replace(completion=work.long_completions(), mask=mask, **tokens)
    optimizer = make_run_optimizer(config, runtime.key(ROUNDING))
    parts = (apply, runtime.loss, ratio_stats)
    whole = jax.jit(make_train_step(*parts, optimizer), donate_argnums=0)
    laid = LaidStep(
        make_gradient(*parts), make_update(optimizer), most=pairs, params=runtime.abstract_params
    )
    score = jax.jit(make_score_step(apply), static_argnames="slots")
    state = fresh_state(runtime.mesh, runtime.load_params(), optimizer)

    def placed(batch):
        if cut:
            return lay(runtime.mesh, batch, rows, rule)
        m = config.train.micro_batches
        parted = jax.tree.map(lambda x: x.reshape(m, len(x) // m, *x.shape[1:]), batch)
        return put_rows(runtime.mesh, parted, axis=1)

    if not cut:  # one shape: compiled without running it
        whole = whole.lower(state, placed(batch)).compile()
        score_rows(runtime, score, state.params, jax.tree.map(lambda x: x[:2], batch), "ours")

    def run():
        nonlocal state
        logp, _ = score_rows(runtime, score, state.params, batch, "ours")
        scored = placed(batch._replace(ref_logp=logp, old_logp=logp))
        state, metrics = (laid if cut else whole)(state, scored)
        assert np.isfinite(float(metrics["loss"].result()))

    spent = work.clocked(run, warm=1 if cut else 0)
    done = work_of(runtime.arch, batch, [rows], rule, adapters=False)
    useful = done.flops + flops.forward(runtime.arch, batch.prompt_length, own)
    return spent | {"padding": done.padding_share, "tokens": done.tokens, "flops": useful}


def offline(folder: str) -> dict:
    """Train DPO on given pairs as `train` does, from the file to the last step: seconds, with
    reading, compiling and the reference, and the loss of every step."""
    given = {
        "model.source": folder,
        "model.dtype": work.DTYPE,
        "model.param_dtype": work.DTYPE,
        "model.remat": os.environ.get("BENCH_REMAT", "dots"),
        "data.source.name": "answered",
        "data.heldout": 1,
        "data.max_prompt_length": 160,
        "data.prompt_buckets": "(160,)",
        "sampling.max_new_tokens": 128,
        "loss.name": "dpo",
        "loss.beta": work.OFFLINE_BETA,
        "optimizer.learning_rate": work.OFFLINE_RATE,
        "train.iterations": 1,
        "train.prompts_per_iteration": 0,
        "train.epochs": work.EPOCHS,
        "train.batch_size": work.PAIRS,
        "train.micro_batches": work.PAIRS // 2 if work.DTYPE == "float32" else 1,
        "train.term_norms": "false",
        "eval.every": 0,
        "eval.oracles": "",
        "checkpoint.every": 0,
        "checkpoint.final": "false",
        "checkpoint.export": "false",
    }
    with tempfile.TemporaryDirectory() as place:
        rows = Path(place) / "pairs.jsonl"
        trained, held_out = work.preferences()
        rows.write_text("".join(json.dumps(row) + "\n" for row in [*trained, held_out]), "utf-8")
        given["data.source.path"] = rows
        config = schema.load("quickstart", {k: str(v) for k, v in given.items()}, 1)
        workdir = Path(place) / "run"
        workdir.mkdir()
        spent = work.clocked(lambda: train(config, workdir), warm=0)
        steps = [
            r["values"] for r in read_metrics(workdir / "metrics.jsonl") if r["phase"] == "train"
        ]
    return spent | {"losses": [step["loss"] for step in steps]}


def peak() -> float:
    found = memory_peaks()
    return found.get("device_peak_gib", found["host_peak_gib"])


def logprobs(folder: str) -> list[float]:
    """Sums over the winners of the first four prompts, for the comparison before anything is
    timed."""
    runtime = runtime_of(folder)
    score = jax.jit(make_score_step(runtime.make_apply()))
    tokens, own = work.prompts(4), work.completions(4)[:, :1]
    length = np.full(4, work.PROMPT, np.int32)
    found = score(runtime.load_params(), tokens, length, own, np.ones(own.shape, np.float32))
    return np.asarray(found.logp).sum(-1)[:, 0].tolist()


def ceiling(folder: str) -> dict[str, float]:
    """Operations a second of the model's matrix products alone: one decoding step of 128 rows, 2048
    tokens of training.

    Every layer has weights, activations and cotangents of its own: they come from memory as in the
    model, and no two products are one. Of each the largest entry is kept, which no compiler can
    push into it."""
    arch = runtime_of(folder).arch
    d, f, heads, kv = (
        arch.hidden_size,
        arch.mlp_dim,
        arch.num_heads * arch.head_dim,
        arch.num_kv_heads * arch.head_dim,
    )
    shapes = [(d, heads + 2 * kv), (heads, d), (d, 2 * f), (f, d)] * arch.num_layers + [
        (d, arch.vocab_size)
    ]
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape, np.float32), work.DTYPE)

    @jax.jit
    def decoding(x, w):
        return jnp.max(x @ w)

    @jax.jit
    def training(x, w, dy):
        return decoding(x, w), jnp.max(dy @ w.T), jnp.max(x.T @ dy)

    found = {}
    for name, rows, passes in (("decode", 128, 1), ("train", 2048, 3)):
        products = [(normal(rows, n), normal(n, m)) for n, m in shapes]
        if name == "train":
            products = [(x, w, normal(rows, w.shape[1])) for x, w in products]
        each = decoding if name == "decode" else training
        whole = jax.jit(lambda products: [each(*product) for product in products])  # noqa: B023  called at once
        seconds = min(work.timed(lambda: jax.block_until_ready(whole(products))) for _ in range(3))  # noqa: B023
        found[name] = 2.0 * passes * rows * sum(n * m for n, m in shapes) / seconds
    return found


def groups(folder: str) -> dict[str, float]:
    """Two long prompts with eight completions each: prompts once, and repeated for every
    completion."""

    def seconds(copies: int) -> float:
        sizes = {
            "train__batch_size": 2 * copies,
            "train__prompts_per_iteration": 2 * copies,
            "train__micro_batches": 2,
        }
        return training(folder, batch_of(2, 8, copies, work.LONG), "grpo", **sizes)

    return {"seconds": seconds(1), "repeated": seconds(8)}


def iteration(folder: str) -> dict[str, float]:
    """Seconds of the quickstart's second self-play iteration, by phase; `host` is what no phase
    accounts for."""
    short = {
        "train.iterations": "2",
        "eval.every": "0",
        "data.heldout": "8",
        "eval.final_num_samples": "2",
    }
    quick = {
        "model.source": folder,
        "checkpoint.every": "0",
        "checkpoint.final": "false",
        "checkpoint.export": "false",
    }
    config = schema.load(
        str(ROOT / "configs/quickstart.py"), short | quick | {"train.term_norms": "false"}, 1
    )
    with tempfile.TemporaryDirectory() as workdir:
        train(config, Path(workdir))
        records = list(read_metrics(Path(workdir) / "metrics.jsonl"))
    ends = [r["wall"]["time"] for r in records if r["phase"] == "iteration"]
    mine = {
        r["phase"]: r["wall"] for r in records if r["iteration"] == 1 and r["phase"] != "evaluate"
    }
    found = {phase: mine[phase]["seconds"] for phase in ("generate", "judge", "score")}
    found["train"] = ends[1] - mine["score"]["time"]
    return found | {"host": ends[1] - ends[0] - sum(found.values()), "seconds": ends[1] - ends[0]}


if __name__ == "__main__":
    work.answer(
        {
            "logprobs": lambda folder: {"values": logprobs(folder)},
            "sample": lambda folder: {
                "seconds": sampling(folder, work.PROMPTS, work.SAMPLES, work.PROMPTS)
            },
            "queue": lambda folder: {
                "seconds": sampling(folder, work.QUEUE, work.QUEUE_SAMPLES, work.QUEUE)
            },
            "train": lambda folder: {
                "seconds": training(folder, batch_of(work.PAIRS, 2), "sppo_hard")
            },
            "offline": offline,
            "lengths": lambda folder: long_tailed(folder, cut=True),
            "lengths_whole": lambda folder: long_tailed(folder, cut=False),
            "groups": groups,
            "iteration": iteration,
            "ceiling": ceiling,
        },
        peak,
    )
