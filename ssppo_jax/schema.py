"""List every key of a run (default, meaning, rule) and check rules that span several keys.

The defaults are the S-SPPO paper's where it states them (arXiv 2606.01561). `base_config()` is the
start of every config file.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ssppo_jax import config as cfg
from ssppo_jax.config import Component, Key
from ssppo_jax.data import GIVEN, SOURCES
from ssppo_jax.data.chat import DATE
from ssppo_jax.data.framing import template_problem
from ssppo_jax.distributed.mesh import AXES, batch_ways, mesh_shape, sampling_shape
from ssppo_jax.errors import ConfigError
from ssppo_jax.losses import ADVANTAGES, COMPANIONS, GATES, LOSSES, ROW_KINDS, ROWS, TIES
from ssppo_jax.models.attention import IMPLEMENTATIONS
from ssppo_jax.models.decoder import REMAT_POLICIES
from ssppo_jax.models.lora import TARGETS
from ssppo_jax.models.policy import LAYERS, POOLINGS
from ssppo_jax.optimizer import (
    OPTIMIZERS,
    ROUNDINGS,
    SCHEDULES,
    STATE_DTYPES,
    rounding_of,
)
from ssppo_jax.oracles import ORACLES
from ssppo_jax.oracles.named import TAKEN, read_named
from ssppo_jax.rollout.importance import MODES
from ssppo_jax.rollout.pairs import GATE_LEVELS, WIN_RATE_ESTIMATORS
from ssppo_jax.rollout.similarity import EMBED_TEXTS, SIMILARITIES
from ssppo_jax.runs.trackers import TRACKERS, names_of
from ssppo_jax.types import Batch, Max, Mean, Min, Policy

_DTYPES = cfg.one_of("float32", "bfloat16")


def _layer_rule(value) -> str | None:
    return (
        None
        if value in LAYERS or value.isdigit()
        else f"one of {', '.join(LAYERS)}, or a block's number"
    )


def _pattern(value: str) -> str | None:
    try:
        re.compile(value)
    except re.error as error:
        return f"a regular expression ({error})"
    return None


def _oracles(value: str) -> str | None:
    try:
        read_named(value, ORACLES)
    except ConfigError as error:
        return f"oracles ({error})"
    return None


def _trackers(value: str) -> str | None:
    try:
        names_of(value)
    except ConfigError as error:
        return f"trackers, separated by commas ({error})"
    return None


KEYS: tuple[Key, ...] = (
    Key("seed", 0, "the run's seed; every random key is folded from it", cfg.non_negative),
    # model
    Key(
        "model.source",
        "embedded:smollm2",
        "weights: embedded:smollm2, a Hugging Face folder or repo id, a .gguf file, or random:tiny",
    ),
    Key(
        "model.dtype",
        "float32",
        "compute dtype; log-softmax and token sums are float32 whatever it is",
        _DTYPES,
    ),
    Key(
        "model.param_dtype",
        "float32",
        "dtype of parameters and optimizer state; see optimizer.rounding for bfloat16",
        _DTYPES,
    ),
    Key(
        "model.remat",
        "none",
        "what the backward pass recomputes: nothing, all but matrix products (dots; offload keeps"
        " them in host memory), all (full)",
        cfg.one_of(*REMAT_POLICIES),
    ),
    Key(
        "model.attention",
        "einsum",
        "how prompts are read and completions trained on: einsum; xla or cudnn"
        " (jax.nn.dot_product_attention); splash (Pallas, TPU)",
        cfg.one_of(*IMPLEMENTATIONS),
    ),
    Key(
        "model.attention_chunk",
        0,
        "with model.attention=einsum, queries whose attention scores exist at one time; 0: all",
        cfg.non_negative,
    ),
    Key(
        "model.logprob_chunk",
        4096,
        "vocabulary entries whose logits exist at one time",
        cfg.positive,
    ),
    Key("model.decode_unroll", 1, "layers inlined per scan step while sampling", cfg.positive),
    Key(
        "loss.repulsion_pooling",
        "last_token",
        "one vector per response (reconstruction)",
        cfg.one_of(*POOLINGS),
    ),
    Key(
        "loss.repulsion_layer",
        "final_post_norm",
        "which hidden state is repelled (reconstruction): "
        + ", ".join(LAYERS)
        + ", or a block's number",
        _layer_rule,
    ),
    Key(
        "loss.sft_weight",
        0.0,
        "weight of the chosen response's negative log-likelihood per token beside a pair loss; 0:"
        " none",
        cfg.non_negative,
    ),
    # mesh
    Key(
        "mesh.replica",
        1,
        "groups of devices that each hold all parameters and split the batch; only gradients pass"
        " between them. Set it to the number of TPU slices, or of nodes; -1: the rest",
    ),
    Key("mesh.data", -1, "devices that split the batch; -1: the rest"),
    Key("mesh.fsdp", 1, "devices that split batch and parameters; -1: the rest"),
    Key("mesh.tensor", 1, "devices that split heads, mlp width and vocabulary; -1: the rest"),
    Key(
        "sampling.mesh.data",
        0,
        "devices that split the prompts while sampling; -1: the rest; 0: as in training",
    ),
    Key(
        "sampling.mesh.tensor",
        0,
        "devices that split heads, mlp width and vocabulary while sampling; -1: the rest; 0: as in"
        " training",
    ),
    # processes
    Key(
        "distributed.timeout",
        3600.0,
        "seconds that the processes of a run wait for each other before it ends and names who is"
        " missing",
        cfg.positive,
    ),
    # data
    Key("data.heldout", 64, "prompts kept out of training, for evaluation", cfg.positive),
    Key(
        "data.max_prompt_length",
        512,
        "longer prompts are dropped, counted and listed; never cut",
        cfg.positive,
    ),
    Key(
        "data.prompt_buckets",
        (64, 128, 256, 512),
        "prompt lengths that programs are compiled for",
        cfg.increasing,
    ),
    Key(
        "data.completion_buckets",
        (0,),
        "completion lengths that scoring and training are compiled for, below"
        " sampling.max_new_tokens, which is always one; 0: it alone",
        lambda x: None if x == (0,) else cfg.increasing(x),
    ),
    Key(
        "data.date",
        DATE,
        "date that a chat template prints as today's, so that prompts do not depend on the day",
        cfg.iso_date,
    ),
    Key(
        "data.template",
        "model",
        "chat template: model (the tokenizer's own), plain (User: ..., for a base model), or a"
        " file with a Jinja template",
    ),
    Key("data.system_prompt", "", "system turn before every prompt; empty: none"),
    Key(
        "data.few_shot",
        "",
        'JSON lines of answered examples put before every prompt, {"prompt": ..., "completion":'
        " ...}; empty: none",
    ),
    Key(
        "data.prompt_template",
        "{prompt}",
        "text that the last turn of every prompt is put into; {prompt} is the prompt, another name"
        " a field of its row",
        template_problem,
    ),
    # sampling
    Key(
        "sampling.num_samples",
        5,
        "K, responses per prompt",
        lambda x: None if x >= 2 else "2 or more",
    ),
    Key(
        "sampling.refill",
        0.25,
        "share of a batch's slots that must be free before waiting prompts take them; 1: whole"
        " batches",
        cfg.fraction,
    ),
    Key("sampling.temperature", 1.0, "0 takes the most likely token", cfg.non_negative),
    Key("sampling.top_k", 0, "keep the k most likely tokens; 0 keeps all", cfg.non_negative),
    Key("sampling.top_p", 1.0, "keep the smallest set of tokens with this mass", cfg.fraction),
    Key(
        "sampling.min_p",
        0.0,
        "keep tokens at least this fraction as likely as the likeliest",
        cfg.unit,
    ),
    Key("sampling.max_new_tokens", 512, "T, completion slots", cfg.positive),
    Key(
        "sampling.batch_size",
        16,
        "prompts sampled at one time; 0: as many as the devices' memory holds",
        cfg.non_negative,
    ),
    Key(
        "sampling.param_dtype",
        "model",
        "dtype of the weights while sampling; model: as model.param_dtype; int8: the layers'"
        " kernels in 8 bits, one scale for each output channel, the rest in model.dtype",
        cfg.one_of("model", "float32", "bfloat16", "int8"),
    ),
    Key(
        "sampling.cache_dtype",
        "model",
        "dtype of the keys and values that sampling keeps; model: as model.dtype",
        cfg.one_of("model", "float32", "bfloat16"),
    ),
    # judging
    Key(
        "oracle.max_failed_fraction",
        0.1,
        "abort when the oracle fails on more of an iteration's prompts than this",
        cfg.unit,
    ),
    Key(
        "oracle.reward_temperature",
        0.0,
        "pairs from an oracle of rewards: reward gap that makes the odds e to 1; 0: the higher"
        " reward wins",
        cfg.non_negative,
    ),
    # pairs
    Key(
        "pairs.win_rate_estimator",
        "pairwise",
        "how win rates come from the preference matrix: " + ", ".join(WIN_RATE_ESTIMATORS),
        cfg.one_of(*WIN_RATE_ESTIMATORS),
    ),
    Key("pairs.include_self", True, "count the self pair as 1/2, as the papers do"),
    Key(
        "pairs.gate_level",
        "pair",
        "where the gate acts: the chosen pair (Alg. 1), the group mean (eq. 3.1), each P_ij, or"
        " nowhere",
        cfg.one_of(*GATE_LEVELS),
    ),
    Key(
        "pairs.drop_ties",
        False,
        "leave out groups whose responses all score the same (counted either way)",
    ),
    Key(
        "pairs.train_ties",
        False,
        "train such groups with the first response as the winner where the loss has a hard label"
        f" (all pair losses but {', '.join(TIES)}); false: weight 0",
    ),
    Key(
        "similarity.encoder",
        "embedded:minilm",
        "sentence encoder: embedded:minilm, a folder, or a repo id",
    ),
    Key(
        "similarity.name",
        "relu_cosine",
        "max(0, cos) in the paper; cosine: below 0 the linear and power gates strengthen a"
        " preference; token_jaccard: shared words, no encoder",
        cfg.one_of(*SIMILARITIES),
    ),
    Key(
        "similarity.embed_text",
        "response",
        "what is embedded (reconstruction)",
        cfg.one_of(*EMBED_TEXTS),
    ),
    Key(
        "similarity.prefix",
        "",
        "put before each text that is embedded; nomic-embed-text wants 'clustering: '",
    ),
    Key(
        "similarity.max_length",
        256,
        "word pieces read of each text; longer ones are counted",
        cfg.positive,
    ),
    # groups
    Key(
        "group.filter_groups",
        False,
        "leave out groups whose rewards are all equal (DAPO's dynamic sampling)",
    ),
    Key(
        "group.max_num_gen_batches",
        1,
        "with filter_groups: rounds of sampling, at most, to fill the iteration; one where"
        " prompts_per_iteration is 0",
        cfg.positive,
    ),
    Key(
        "group.overlong_buffer_len",
        0,
        "tokens before max_new_tokens over which a length penalty grows (DAPO's soft overlong"
        " punishment); 0: none; -1: a fifth of max_new_tokens, DAPO's share",
        lambda x: None if x >= -1 else "-1 or more",
    ),
    Key(
        "group.overlong_penalty_factor",
        1.0,
        "the length penalty at max_new_tokens",
        cfg.non_negative,
    ),
    Key(
        "group.mask_truncated_completions",
        False,
        "responses cut at max_new_tokens do not train (they count in the advantages)",
    ),
    Key(
        "group.logprob_temperature",
        "sampling",
        "what divides the logits of a group loss's log-probs, old and new: sampling (the sampler's"
        " temperature, as in TRL and verl), or raw (1, another distribution than the one sampled)",
        cfg.one_of("sampling", "raw"),
    ),
    Key(
        "group.first_old_logp",
        "own",
        "old log-probs of a group loss in the first update of a rollout: own (its own, gradient"
        " stopped, so that the ratio is 1, as in TRL), or scored (computed before the update, by"
        " another program; ratio/first_step_gap says how far apart they are)",
        cfg.one_of("own", "scored"),
    ),
    # optimisation
    Key("optimizer.learning_rate", 5e-7, "peak learning rate", cfg.positive),
    Key(
        "optimizer.schedule",
        "linear",
        "decay after warm-up; an iteration that takes fewer steps than planned (ties, filtered"
        " groups, failed prompts) still passes its whole share of it",
        cfg.one_of(*SCHEDULES),
    ),
    Key("optimizer.warmup_ratio", 0.1, "fraction of the schedule spent warming up", cfg.unit),
    Key(
        "optimizer.max_grad_norm",
        0.0,
        "clip the gradient's global norm; 0: no clipping",
        cfg.non_negative,
    ),
    Key(
        "optimizer.state_dtype",
        "param",
        "dtype of the optimizer's moments; param: the parameters' own, float32 with"
        " optimizer.rounding=master",
        cfg.one_of(*STATE_DTYPES),
    ),
    Key(
        "optimizer.rounding",
        "master",
        "how bfloat16 parameters take updates that are smaller than their last place: master"
        " (float32 parameters in the optimizer's state, 4 bytes a parameter more), stochastic (up"
        " or down at random, exact in the mean, no memory), or nearest (such updates are lost)",
        cfg.one_of(*ROUNDINGS),
    ),
    Key(
        "optimizer.scope",
        "run",
        "the schedule and optimizer state span the run, or restart each iteration",
        cfg.one_of("run", "iteration"),
    ),
    Key(
        "optimizer.schedule_epochs",
        0.0,
        "length of the schedule in epochs when scope is iteration (the papers: 18, stopped after"
        " 1); 0: train.epochs",
        cfg.non_negative,
    ),
    # loop
    Key("train.iterations", 3, "self-play iterations; pi_t is refreshed at each", cfg.positive),
    Key(
        "train.prompts_per_iteration",
        0,
        "prompts sampled per iteration, in shuffled passes; 0: the data cut into as many disjoint"
        " parts as iterations (the papers)",
        cfg.non_negative,
    ),
    Key(
        "train.epochs", 1, "passes over an iteration's rollout (TRL's num_iterations)", cfg.positive
    ),
    Key(
        "train.batch_size",
        64,
        "prompts per optimizer step, over all devices",
        cfg.positive,
    ),
    Key("train.micro_batches", 1, "gradient accumulation: parts a batch is cut into", cfg.positive),
    Key(
        "train.max_token_len",
        0,
        "tokens of a micro-batch on one device, in scoring and training: rows of like length, as"
        " many as fit (verl's ppo_max_token_len_per_gpu); 0: train.micro_batches parts of equally"
        " many rows",
        cfg.non_negative,
    ),
    Key(
        "train.padding_free",
        False,
        "pack the rows of a micro-batch into one stream without padding, in scoring and training;"
        " train.max_token_len then counts real tokens (TRL's padding_free, verl's"
        " use_remove_padding)",
    ),
    Key(
        "train.reference",
        "iteration",
        "the reference of pair and opponent losses: pi_t, or the initial policy",
        cfg.one_of("iteration", "initial"),
    ),
    Key(
        "train.kl_reference",
        "initial",
        "the reference of a group loss, which is that of its KL term (loss.beta): the initial"
        " policy, as in TRL and verl, or pi_t, from which the first update of a rollout has no KL",
        cfg.one_of("initial", "iteration"),
    ),
    Key(
        "train.reference_storage",
        "host",
        "where the initial policy waits for KL logging: in the host's memory, on disk (read again"
        " in each iteration), on the device, or off",
        cfg.one_of("host", "disk", "device", "off"),
    ),
    Key(
        "train.sampler_bound",
        1.0,
        "the run aborts when log-probs of sampler and trainer differ by more than this many times"
        " what rounding in their dtypes explains; 0: never",
        cfg.non_negative,
    ),
    Key(
        "train.importance_sampling_correction",
        False,
        "weigh responses by the trainer's probability over the one they were drawn with: for"
        " sampling at another temperature or dtype than the trainer's, or with top-k, top-p, min-p",
    ),
    Key(
        "train.importance_sampling_mode",
        "sequence_mask",
        "what is weighed, a token or a response, and what becomes of weights above clip_max: set to"
        " it (truncate) or to 0 (mask)",
        cfg.one_of(*MODES),
    ),
    Key(
        "train.importance_sampling_clip_max",
        3.0,
        "the largest importance weight; 0: none",
        cfg.non_negative,
    ),
    Key("train.term_norms", True, "log the gradient norm of each loss term, once per iteration"),
    Key(
        "train.select_by",
        "",
        "logged number of evaluations whose highest value names the best policy, which is kept and"
        " exported as policy_best/: eval/win_rate, eval/keywords/win_rate; empty: none",
    ),
    Key(
        "train.carry",
        "last",
        "which policy the next iteration starts from: the last one trained, or the best evaluated"
        " so far (train.select_by)",
        cfg.one_of("last", "best"),
    ),
    Key(
        "train.patience",
        0,
        "end the run after so many evaluations without a new best (train.select_by); 0: never",
        cfg.non_negative,
    ),
    # low-rank adapters
    Key(
        "lora.rank",
        0,
        "rank of the adapters that are trained in place of the model; 0: the model itself",
        cfg.non_negative,
    ),
    Key("lora.alpha", 16.0, "an adapter's share is multiplied by alpha / rank", cfg.positive),
    Key(
        "lora.dropout",
        0.0,
        "dropout of an adapter's input while training",
        lambda x: None if 0 <= x < 1 else "in [0, 1)",
    ),
    Key(
        "lora.targets",
        TARGETS,
        "regular expression: which projections have adapters (layers/attn/q, layers/mlp/up, ...)",
        _pattern,
    ),
    # fitting a reward
    Key(
        "fit.head",
        "reward",
        "what the command fit makes of preference pairs: reward (a decoder with a score) or"
        " pairwise (a PairRM, from DeBERTa)",
        cfg.one_of("reward", "pairwise"),
    ),
    # evaluation
    Key(
        "eval.every",
        1,
        "iterations between evaluations on held-out prompts; 0: only first and last",
        cfg.non_negative,
    ),
    Key("eval.num_samples", 2, "responses per held-out prompt and policy", cfg.positive),
    Key(
        "eval.final_num_samples", 4, "the same, for the first and the last evaluation", cfg.positive
    ),
    Key("eval.temperature", 1.0, "sampling temperature of evaluations", cfg.non_negative),
    Key("eval.top_p", 0.0, "the same of top-p; 0: as sampling.top_p", cfg.unit),
    Key(
        "eval.max_new_tokens",
        0,
        "completion slots of evaluations; 0: as sampling.max_new_tokens",
        cfg.non_negative,
    ),
    Key(
        "eval.system_prompt",
        "",
        "system turn before every held-out prompt; empty: as data.system_prompt",
    ),
    Key(
        "eval.oracles",
        "",
        "oracles beside the one that trains, asked about the same held-out responses:"
        " keywords,relevance, or a JSON list with their settings",
        _oracles,
    ),
    Key(
        "eval.previous",
        False,
        "also compare the policy with that of the evaluation before (previous/win_rate)",
    ),
    Key(
        "eval.reference_outputs",
        "",
        "file of fixed outputs that the policy is also compared with (reference/win_rate)",
    ),
    # checkpoints
    Key(
        "checkpoint.every",
        1,
        "iterations between checkpoints; 0: none but the final one",
        cfg.non_negative,
    ),
    Key(
        "checkpoint.final",
        True,
        "save the state of the finished run; false spares a sweep three copies of the model"
        " per run",
    ),
    Key(
        "checkpoint.every_steps",
        0,
        "optimizer steps between checkpoints inside an iteration; 0: none",
        cfg.non_negative,
    ),
    Key(
        "checkpoint.async_save",
        True,
        "save in the background while the run goes on; takes a copy of the training state in the"
        " host's memory",
    ),
    Key("checkpoint.keep", 2, "checkpoints kept", lambda x: None if x >= 2 else "2 or more"),
    Key("checkpoint.export", True, "write the final policy as a Hugging Face folder"),
    Key(
        "export.dtype",
        "source",
        "dtype of the exported policy; source: that of the model the run began with. float32 keeps"
        " every digit that was trained; another dtype rounds it",
        cfg.one_of("source", "float32", "bfloat16", "float16"),
    ),
    # trackers
    Key(
        "tracking.report_to",
        "",
        "trackers that show the run beside its own log, separated by commas: "
        + ", ".join(sorted(TRACKERS))
        + ", or path/to/file.py:CLASS; empty: none",
        _trackers,
    ),
    Key(
        "tracking.project",
        "ssppo_jax",
        "project of wandb and trackio, experiment of mlflow",
        lambda x: None if x else "a name",
    ),
    Key("tracking.run_name", "", "the run's name there; empty: that of its folder"),
)

COMPONENTS: tuple[Component, ...] = (
    Component("data.source", SOURCES, "quickstart", "where prompts come from"),
    Component("oracle", ORACLES, "sentiment", "who judges"),
    Component("advantage", ADVANTAGES, "grpo", "rewards of a group -> advantages (group losses)"),
    Component("pairs.gate", GATES, "linear", "similarity -> factor on the win-rate margin"),
    Component("loss", LOSSES, "s_sppo", "the objective"),
    Component("optimizer", OPTIMIZERS, "rmsprop", "the optimizer"),
)

ELSEWHERE = {  # TRL's and verl's names of what stands under another key here
    "num_iterations": "train.epochs",
    "steps_per_generation": "train.prompts_per_iteration = per_device_train_batch_size x devices x"
    " steps_per_generation / num_generations (TRL counts micro-steps and completions; unset it is"
    " gradient_accumulation_steps, one optimizer step a rollout)",
    "generation_batch_size": "train.prompts_per_iteration = generation_batch_size /"
    " num_generations (TRL counts completions)",
    "num_generations": "sampling.num_samples",
    "max_completion_length": "sampling.max_new_tokens",
    "max_new_tokens": "sampling.max_new_tokens",
    "max_prompt_length": "data.max_prompt_length",
    "chat_template": "data.template",
    "chat_template_path": "data.template",
    "temperature": "sampling.temperature",
    "scale_rewards": "advantage.scale_rewards (of advantage.name=grpo)",
    "r": "lora.rank",
    "lora_r": "lora.rank",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "target_modules": "lora.targets",
    "lora_target_modules": "lora.targets",
    "num_train_epochs": "train.iterations = num_train_epochs x prompts / prompts_per_iteration (it"
    " counts passes over the prompts; train.epochs are passes over one rollout)",
    "max_steps": "train.iterations = max_steps x batch_size / prompts_per_iteration / epochs",
    "gradient_accumulation_steps": "train.micro_batches",
    "per_device_train_batch_size": "train.batch_size = per_device_train_batch_size x devices x"
    " gradient_accumulation_steps / num_generations (TRL's GRPO counts completions of a micro-step"
    " on one device)",
    "warmup_steps": "optimizer.warmup_ratio = warmup_steps / all steps",
    "rpo_alpha": "loss.sft_weight",
    "init_from": "model.source = the folder of the run whose policy this one begins with",
    "sampler_tolerance": "train.sampler_bound, a factor on bounds that follow from the dtypes; 1 is"
    " usual, whatever the tolerance was",
    "metric_for_best_model": "train.select_by",
    "load_best_model_at_end": "train.select_by (the best policy is exported as policy_best/)",
    "early_stopping_patience": "train.patience",
    "report_to": "tracking.report_to",
    "run_name": "tracking.run_name",
    "project": "tracking.project",
    # verl's
    "train_batch_size": "train.prompts_per_iteration (verl counts the prompts of a rollout)",
    "ppo_mini_batch_size": "train.batch_size (prompts of an optimizer step)",
    "ppo_micro_batch_size_per_gpu": "train.micro_batches = ppo_mini_batch_size x n / devices /"
    " ppo_micro_batch_size_per_gpu (a number of parts; verl's is a number of responses)",
    "ppo_max_token_len_per_gpu": "train.max_token_len",
    "log_prob_max_token_len_per_gpu": "train.max_token_len (scoring and training have one)",
    "use_dynamic_bsz": "train.max_token_len (above 0)",
    "use_remove_padding": "train.padding_free",
    "logger": "tracking.report_to",
    "project_name": "tracking.project",
    "experiment_name": "tracking.run_name",
    "ppo_epochs": "train.epochs",
    "total_epochs": "train.iterations = total_epochs x prompts / train_batch_size (verl counts"
    " passes over the prompts)",
    "n": "sampling.num_samples",
    "attn_implementation": "model.attention",
    "learning_rate": "optimizer.learning_rate",
    "lr": "optimizer.learning_rate",
    "loss_type": "loss.name",
    "epsilon": "loss.epsilon",
    "epsilon_high": "loss.epsilon_high",
    "mask_truncated_completions": "group.mask_truncated_completions",
    "dynamic_sampling": "group.filter_groups",
    "reward_funcs": "oracle.name=python and its keyword function",
    "reward_weights": "oracle.name=python and its keyword weights",
    "kl_loss_coef": "loss.beta",
    "bf16_stochastic_round": "optimizer.rounding",
    "importance_sampling_cap": "train.importance_sampling_clip_max",
    "vllm_importance_sampling_correction": "train.importance_sampling_correction",
    "vllm_importance_sampling_mode": "train.importance_sampling_mode",
    "vllm_importance_sampling_clip_max": "train.importance_sampling_clip_max",
    "vllm_importance_sampling_cap": "train.importance_sampling_clip_max",
    "rollout_is": "train.importance_sampling_mode (token_truncate or sequence_truncate), with"
    " train.importance_sampling_correction=true",
    "rollout_is_threshold": "train.importance_sampling_clip_max",
}


def base_config() -> ConfigDict:
    """Return every key at its default, locked: a typo in a config file raises and names the nearest
    key.
    """
    return cfg.build(KEYS, COMPONENTS)


def select(config: ConfigDict, path: str, name: str, /, **overrides) -> None:
    """Choose a component in a config file, e.g. select(config, "loss", "dpo", beta=0.1).

    A loss brings the settings elsewhere that make it the published method (`losses.COMPANIONS`);
    lines after this one may change them."""
    tables = {c.path: c.table for c in COMPONENTS}
    if path not in tables:
        raise ConfigError(f"select(config, {path!r}, ...): choose one of {', '.join(tables)}")
    table = tables[path]
    before = _companions(config)
    cfg.choose(config, path, table, name, **overrides)
    if path == "loss":
        _bring_companions(config, before)


def _companions(config: ConfigDict) -> Mapping[str, Any]:
    """Return the keys outside the loss that belong to the chosen loss's method."""
    return cast(Mapping[str, Any], COMPANIONS.get(config.loss.name, {}))


def _bring_companions(config: ConfigDict, before: Mapping[str, Any]) -> None:
    """Set the keys that belong to the chosen loss's method; reset those that the former loss had
    set.
    """
    now, default, flat = _companions(config), cfg.flatten(base_config()), cfg.flatten(config)
    for path, value in before.items():
        if path not in now and flat[path] == value:
            cfg.assign(config, COMPONENTS, path, default[path])
    for path, value in now.items():
        cfg.assign(config, COMPONENTS, path, value)


def method_notes(config: ConfigDict) -> list[str]:
    """Say which keys the loss has set, and which of them depart from the published method."""
    flat, name = cfg.flatten(config), config.loss.name
    wanted = _companions(config)
    kept = [f"{path}={value}" for path, value in wanted.items() if flat[path] == value]
    notes = [f"loss.name={name} brings " + " ".join(kept)] if kept else []
    return notes + [
        f"loss.name={name} with {path}={flat[path]} is not the published method, which has"
        f" {path}={value}"
        for path, value in wanted.items()
        if flat[path] != value
    ]


def cautions(config: ConfigDict) -> list[str]:
    """Say what in a configuration that runs can lead to a wrong conclusion."""
    found, group = [], ROWS.get(config.loss.name) == "group"
    if group and config.loss.get("beta", 0) and config.train.kl_reference == "iteration":
        found.append(
            "train.kl_reference=iteration: the KL to pi_t and its gradient are 0 in the first"
            f" update of a rollout, so with one update per rollout loss.beta={config.loss.beta:g}"
            " does nothing"
        )
    moving = config.train.iterations > 1 and config.train.reference == "iteration"
    if (
        GIVEN.get(config.data.source.name, False)
        and ROWS.get(config.loss.name) == "pair"
        and moving
    ):
        found.append(
            "train.reference=iteration: the reference is the policy at the start of each of"
            f" {config.train.iterations} iterations. Set train.reference=initial for the offline"
            " method as published, whose reference is the initial policy throughout"
        )
    if config.eval.oracles and GIVEN.get(config.data.source.name, False):
        found.append(
            f"eval.oracles={config.eval.oracles} is not asked: the responses of data.source.name="
            f"{config.data.source.name} are given, and none is sampled; `evaluate` compares the"
            " policies by an oracle"
        )
    if group or ROWS.get(config.loss.name) == "opponent":
        found += _sampling_cautions(config, group)
    return found + _precision_cautions(config)


def _sampling_cautions(config: ConfigDict, group: bool) -> list[str]:
    """Say where a policy gradient is not that of the distribution sampled from."""
    found, sampling, name = [], config.sampling, config.loss.name
    corrected = config.train.importance_sampling_correction
    remedy = "set train.importance_sampling_correction=true"
    raw = not group or config.group.logprob_temperature == "raw"
    if raw and sampling.temperature != 1 and not corrected:
        found.append(
            f"sampling.temperature={sampling.temperature:g}: {name} takes log-probs at temperature"
            " 1, so its gradient is not that of the distribution sampled from; "
            + ("set group.logprob_temperature=sampling" if group else remedy)
        )
    if sampling.param_dtype == "int8" and not corrected:
        found.append(
            f"sampling.param_dtype=int8: responses are drawn with rounded weights, and {name} takes"
            f" them for the policy's own; {remedy}"
        )
    cuts = {"top_k": sampling.top_k > 0, "top_p": sampling.top_p < 1, "min_p": sampling.min_p > 0}
    keys = ", ".join(f"sampling.{key}={sampling[key]:g}" for key, cut in cuts.items() if cut)
    if keys and corrected:
        found.append(
            f"{keys}: importance weights cannot bring back the tokens that are never drawn, so"
            f" {name}'s gradient lacks their share"
        )
    elif keys:
        found.append(
            f"{keys}: {name} takes log-probs over all tokens, so its gradient is not that of the"
            f" distribution sampled from; {remedy}, which corrects all but the tokens that are"
            " never drawn"
        )
    return found


def _precision_cautions(config: ConfigDict) -> list[str]:
    """Say what bfloat16 would lose in parameters, moments and an exported model."""
    found, optimizer, half = [], config.optimizer, config.model.param_dtype == "bfloat16"
    if half and optimizer.rounding == "nearest":
        found.append(
            "model.param_dtype=bfloat16 with optimizer.rounding=nearest: an update below 1/512 of"
            f" a parameter is lost, at optimizer.learning_rate={optimizer.learning_rate:g} of most"
            " of them; train/update_share logs the share that moved. Set"
            " optimizer.rounding=stochastic (no memory) or master (4 bytes a parameter)"
        )
    own = half and rounding_of(config) != "master"
    decay = max(optimizer.get("b2", 0), optimizer.get("decay", 0))
    if (optimizer.state_dtype == "bfloat16" or (optimizer.state_dtype == "param" and own)) and (
        decay > 0.99 and optimizer.name != "lion"
    ):
        found.append(
            f"{optimizer.name}'s mean square is kept in bfloat16, where a decay of {decay:g} stops"
            " far below the mean (0.999: at a quarter), so steps are too large; set"
            " optimizer.state_dtype=float32"
        )
    if half and config.lora.rank:
        found.append(
            "model.param_dtype=bfloat16 with lora.rank: policy/ rounds the merged weights to"
            " bfloat16 and is not exactly the policy that is evaluated; adapters/ is"
        )
    return found


def load(spec: str, overrides: dict[str, str], devices: int | None = None) -> ConfigDict:
    """Load a config file with overrides and check it; batch and mesh too when `devices` is given.

    Raises:
      ConfigError: every problem with the file's own values and the overrides, at once.
    """
    config = cfg.load_config(spec)
    if not isinstance(config, ConfigDict):
        raise ConfigError(
            f"--config={spec}: get_config() returns {type(config).__name__}; begin it with"
            " config = base_config(), and return that"
        )
    given = cfg.flatten(config)
    lacking = [path for key in KEYS if (path := key.path) not in given]
    lacking += [f"{c.path}.name" for c in COMPONENTS if f"{c.path}.name" not in given]
    if lacking:
        raise ConfigError(
            f"--config={spec}: get_config() leaves out {', '.join(lacking[:5])}"
            f"{', ...' if len(lacking) > 5 else ''}; begin it with config = base_config()"
        )
    cfg.raise_problems(cfg.by_hand(config, COMPONENTS))
    problems = cfg.override(config, overrides, COMPONENTS, ELSEWHERE, chosen=select)
    problems += _value_problems(config) if devices is None else _problems(config, devices)
    cfg.raise_problems(problems)
    return config


def check(config: ConfigDict, devices: int) -> None:
    """Check everything that can be known before a compile: ranges, keywords, mesh and batch sizes.

    Raises:
      ConfigError: all problems at once.
    """
    cfg.raise_problems(_problems(config, devices))


def _value_problems(config: ConfigDict) -> list[str]:
    problems = cfg.rule_problems(config, KEYS, COMPONENTS)
    return problems + _keyword_problems(config, problems)


def _problems(config: ConfigDict, devices: int) -> list[str]:
    problems = _value_problems(config)
    try:
        shape = mesh_shape({axis: config.mesh[axis] for axis in AXES}, devices)
        sampling = sampling_shape(shape, config.sampling.mesh.to_dict())
        problems += _batch_problems(config, batch_ways(shape), batch_ways(sampling))
    except ConfigError as e:
        problems.append(str(e))
    if max(config.data.prompt_buckets, default=0) < config.data.max_prompt_length:
        problems.append(
            f"data.prompt_buckets={config.data.prompt_buckets}: the last must reach "
            f"data.max_prompt_length={config.data.max_prompt_length}"
        )
    problems += _reference_problems(config) + ([] if problems else _gate_problems(config))
    if config.eval.final_num_samples < config.eval.num_samples:
        problems.append(
            f"eval.final_num_samples={config.eval.final_num_samples} is below eval.num_samples="
            f"{config.eval.num_samples}; the baseline is sampled final_num_samples times"
        )
    problems += _rows_problems(config) + _schedule_problems(config)
    return problems + _selection_problems(config)


# What a function of a user's own must look like: its arguments, and what it returns.
CALLS = {
    "loss": (2, "a loss is f(policy, batch, *, key=default) and returns (Mean, {name: Mean})"),
    "pairs.gate": (1, "a gate is f(similarity, *, key=default) and returns a factor for each"),
    "advantage": (1, "an advantage is f(reward, *, key=default) and returns one for each reward"),
    "oracle": (
        0,
        "an oracle is made by f(*, key=default), which returns Oracle(ask); a reward function is"
        " chosen by oracle.name=python and oracle.function=NAME",
    ),
    "data.source": (0, "a source is f(*, key=default) and returns a list of Prompt"),
}


def _call_problems(config: ConfigDict) -> list[str]:
    """List the functions of a user's own that do not take the arguments they will be given."""
    problems = []
    for c in COMPONENTS:
        name = cfg.flatten(config)[f"{c.path}.name"]
        if c.path not in CALLS or not cfg.OWN.fullmatch(name):
            continue
        count, contract = CALLS[c.path]
        signature = inspect.signature(c.table[name])
        try:
            signature.bind(*[None] * count)
        except TypeError:
            problems.append(
                f"{c.path}={name}: it takes {signature}; {contract.replace('NAME', name)}"
            )
    return problems


def _keyword_problems(config: ConfigDict, known: list[str]) -> list[str]:
    """Ask loss, gate and advantage about their keywords with abstract arrays, computing nothing.

    A component that breaks a rule already is not asked: its answer would be the same problem.
    """
    shapes = ((3,), (3, 2), (3, 2, 4))  # B, K and T differ, so that a mistaken axis shows
    row, pair, tokens = (_abstract(shape, jnp.float32) for shape in shapes)
    fields: dict[str, Any] = dict.fromkeys(Batch._fields, tokens)
    fields |= dict.fromkeys(("win_rate", "target", "advantage"), pair)
    fields |= dict.fromkeys(("p_win", "similarity", "weight"), row)
    for name, shape in (("prompt", (3, 5)), ("prompt_length", (3,)), ("completion", (3, 2, 4))):
        fields[name] = _abstract(shape, jnp.int32)
    questions = (
        ("loss", config.loss, LOSSES, (Policy(tokens, tokens), Batch(**fields))),
        ("pairs.gate", config.pairs.gate, GATES, (row,)),
        ("advantage", config.advantage, ADVANTAGES, (pair,)),
    )
    problems = _call_problems(config)
    for path, node, table, arrays in questions:
        if any(problem.startswith((f"{path}.", f"{path}=")) for problem in [*known, *problems]):
            continue
        try:
            made: Any = jax.eval_shape(cfg.bind(table, node), *arrays)
        except Exception as error:
            own = cfg.OWN.fullmatch(node.name)
            if own is None and not isinstance(error, (ConfigError, ValueError)):
                raise
            told = str(error)
            if own is not None and not isinstance(error, ConfigError):
                said = str(error).partition("\n")[0]  # JAX goes on about its tracers
                told = f"{cfg.place_of(error, own['file'])}{type(error).__name__}: {said}"
            problems.append(f"{path}={node.name}: {told}{_advice(path, error)}")
            continue
        if path == "loss":
            problems += _loss_problems(node.name, made)
        elif path == "pairs.gate" and _shape_of(made) != row.shape:
            problems.append(
                f"{path}={node.name}: for an array of shape {row.shape} it returns"
                f" {_named(made)}; {CALLS[path][1]}"
            )
    return problems


def _gate_problems(config: ConfigDict) -> list[str]:
    """Name a similarity at which a gate of a user's own turns a verdict around or leaves [0, 1]."""
    name = config.pairs.gate.name
    if not cfg.OWN.fullmatch(name):
        return []
    similarity = np.linspace(-1, 1, 201, dtype=np.float32)  # a NumPy array, as in a run
    try:
        with np.errstate(all="ignore"):
            factor = np.asarray(cfg.bind(GATES, config.pairs.gate)(similarity))
    except Exception as error:
        place = cfg.place_of(error, name.rpartition(":")[0])
        return [f"pairs.gate={name}: {place}{type(error).__name__} on a NumPy array: {error}"]
    right = np.isfinite(factor) & (factor >= 0) & ((factor <= 1) | (similarity < 0))
    if right.all():
        return []
    return [
        f"pairs.gate={name}: at a similarity of {similarity[~right][-1]:.2f} it gives"
        f" {factor[~right][-1]:.3g}; a gate gives 0 (a tie) to 1 (the verdict as it is), and for"
        " similarities from -1 to 0 no negative number"
    ]


def _advice(path: str, error: Exception) -> str:
    """Return what helps with a mistake that JAX or NumPy tells in its own words."""
    jax_only = (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError)
    branches = "truth value" in str(error) or "Only scalar arrays" in str(error)
    if branches or isinstance(error, jax_only):
        return "; use jax.numpy, and jnp.where in place of if"
    if isinstance(error, AttributeError) and path == "loss":
        return f"; a batch has {', '.join(Batch._fields)}"
    return ""


def _shape_of(made: Any) -> Any:
    return getattr(made, "shape", None)


def _named(made: Any) -> str:
    """Return what an abstract result is called in a message."""
    shape = _shape_of(made)
    return f"a {type(made).__name__}" if shape is None else f"an array of shape {shape}"


def _loss_problems(name: str, made: Any) -> list[str]:
    """List what is wrong with an abstract result of a loss."""
    if not _is_loss(made):
        return [
            f"loss={name}: it returns {_named(made)}; a loss returns (Mean, {{name: Mean}}), as"
            " sum_terms of ssppo_jax.losses.core does"
        ]
    wrong = {key: x for key, x in made[1].items() if not isinstance(x, (Mean, Max, Min))}
    if wrong:
        return [
            f"loss={name}: its metric {key!r} is {_named(x)}; a metric is a Mean, Max or Min, as"
            " weighted_mean of ssppo_jax.losses.core returns"
            for key, x in wrong.items()
        ]
    if wide := {leaf.shape for leaf in jax.tree.leaves(made) if leaf.shape}:
        return [f"loss={name}: its totals and weights must be scalars, and one has shape {wide}"]
    return []


def _is_loss(made: Any) -> bool:
    return (
        isinstance(made, tuple)
        and len(made) == 2
        and isinstance(made[0], Mean)
        and isinstance(made[1], dict)
    )


def _abstract(shape: tuple[int, ...], dtype: Any) -> Any:
    """Return an array without values, which stands for one while a function is traced."""
    return jax.ShapeDtypeStruct(shape, dtype)


def _rows_problems(config: ConfigDict) -> list[str]:
    """List what the loss's kind of rows asks of other keys."""
    kind, name, problems = ROWS.get(config.loss.name, "pair"), config.loss.name, []
    if kind not in ROW_KINDS:
        problems.append(f"loss={name}: its ROWS is {kind!r}; allowed: {', '.join(ROW_KINDS)}")
    if kind == "opponent":
        if config.sampling.num_samples != 2:
            problems.append(
                f"sampling.num_samples={config.sampling.num_samples}: {name} learns from one sample"
                " of the policy and one of its opponent; set 2"
            )
        if config.train.reference != "initial":
            problems.append(
                f"train.reference={config.train.reference}: {name}'s opponent is made with a fixed"
                " reference; set initial"
            )
    if kind == "group" and config.sampling.temperature == 0:
        problems.append(
            f"sampling.temperature=0.0: the responses to a prompt would all be the same, and {name}"
            " learns from their differences; set it above 0"
        )
    if kind in ("group", "opponent") and GIVEN.get(config.data.source.name, False):
        problems.append(
            f"data.source.name={config.data.source.name}: {name} learns from the policy's own"
            " samples, and these responses are given; choose a pair loss or sft, or a source of"
            " prompts"
        )
    if config.train.importance_sampling_correction and GIVEN.get(config.data.source.name, False):
        problems.append(
            "train.importance_sampling_correction weighs samples by the sampler's log-probs, and"
            f" data.source.name={config.data.source.name} gives the responses; set false"
        )
    if config.loss.sft_weight and kind != "pair":
        problems.append(
            f"loss.sft_weight={config.loss.sft_weight:g}: {name} has no chosen response to add the"
            " likelihood of; set 0, or choose a pair loss"
        )
    problems += _importance_problems(config, kind)
    group, slots = config.group, config.sampling.max_new_tokens
    if group.filter_groups and kind != "group":
        problems.append(
            f"group.filter_groups: {name} does not learn from groups of rewards; leave it false"
        )
    if group.max_num_gen_batches > 1 and not group.filter_groups:
        problems.append(
            f"group.max_num_gen_batches={group.max_num_gen_batches} needs group.filter_groups=true"
        )
    if group.overlong_buffer_len > slots:
        problems.append(
            f"group.overlong_buffer_len={group.overlong_buffer_len} exceeds"
            f" sampling.max_new_tokens={slots}; lower it"
        )
    return problems


def _importance_problems(config: ConfigDict, kind: str) -> list[str]:
    """List what importance weights ask of other keys."""
    train, name, problems = config.train, config.loss.name, []
    if not train.importance_sampling_correction:
        return []
    mode = train.importance_sampling_mode
    if mode.startswith("token") and (kind == "pair" or name == "xpo"):
        whole = mode.replace("token", "sequence")
        problems.append(
            f"train.importance_sampling_mode={mode}: {name} compares whole responses; set {whole}"
        )
    if config.sampling.temperature == 0:
        problems.append(
            "train.importance_sampling_correction=true with sampling.temperature=0.0: the most"
            " likely token is drawn for certain, so weights mean nothing; set one of them otherwise"
        )
    return problems


def _reference_problems(config: ConfigDict) -> list[str]:
    """List what the loss's reference asks of other keys."""
    problems, name = [], config.loss.name
    key = "kl_reference" if ROWS.get(name) == "group" else "reference"
    used = key == "reference" or config.loss.get("beta", 1)  # a loss without beta may read it
    if used and config.train[key] == "initial" and config.train.reference_storage == "off":
        problems.append(
            f"train.{key}=initial needs train.reference_storage=host, disk or device, not off"
        )
    if name == "inpo" and config.loss.tau and config.train.reference != "initial":
        problems.append(
            f"train.reference={config.train.reference}: inpo weighs a fixed reference against pi_t"
            f" by loss.tau={config.loss.tau:g}; set initial, or loss.tau=0"
        )
    return problems


def _selection_problems(config: ConfigDict) -> list[str]:
    """List what choosing the best evaluated policy asks of other keys."""
    train, problems = config.train, []
    for key, off in (("carry", "last"), ("patience", 0)):
        if train[key] != off and not train.select_by:
            problems.append(
                f"train.{key}={train[key]} needs to know the best policy; set train.select_by,"
                " such as eval/win_rate"
            )
    if not train.select_by or _oracles(config.eval.oracles):
        return problems
    labels = [one.label for one in read_named(config.eval.oracles, ORACLES)]
    opponents = ["previous"] * config.eval.previous
    opponents += ["reference"] * bool(config.eval.reference_outputs)
    names = [
        "/".join(filter(None, ("eval", oracle, opponent, rate)))
        for rate in ("win_rate", "length_controlled_win_rate")
        for oracle in ("", *labels)
        for opponent in ("", *opponents)
    ]
    label, _, rest = train.select_by.removeprefix("eval/").partition("/")
    # What rewards an oracle gives is known when it has been asked, so their names are let through.
    reward = not train.select_by.endswith("win_rate") and (not rest or label not in TAKEN)
    if train.select_by not in names and not (train.select_by.startswith("eval/") and reward):
        problems.append(
            f"train.select_by={train.select_by!r}: no evaluation logs that; it may be"
            f" {', '.join(names)}, or a reward, such as eval/reward"
        )
    if not config.eval.every:
        problems.append(
            "train.select_by chooses among evaluations, and with eval.every=0 there is one; set"
            " eval.every=1"
        )
    return problems


def _schedule_problems(config: ConfigDict) -> list[str]:
    epochs = config.optimizer.schedule_epochs
    if epochs and config.optimizer.scope != "iteration":
        return [
            f"optimizer.schedule_epochs={epochs:g} is used when optimizer.scope=iteration; set"
            " that, or leave it at 0"
        ]
    if 0 < epochs < config.train.epochs:
        return [
            f"optimizer.schedule_epochs={epochs:g} is below train.epochs={config.train.epochs}: the"
            " epochs after its end would train at rate 0"
        ]
    return []


def _batch_problems(config: ConfigDict, ways: int, sampling_ways: int) -> list[str]:
    problems = []
    batch, micro = (
        config.train.batch_size,
        max(config.train.micro_batches, 1),
    )  # below 1 is reported by its own rule
    if batch % micro or (batch // micro) % ways:
        problems.append(
            f"train.batch_size={batch} must be a multiple of train.micro_batches x replica x data x"
            f" fsdp = {micro} x {ways}; try {-(-batch // (micro * ways)) * micro * ways}"
        )
    problems += _token_problems(config)
    slots = config.sampling.batch_size
    if slots % sampling_ways:
        problems.append(
            f"sampling.batch_size={slots} must be a multiple of replica x data x fsdp ="
            f" {sampling_ways} of the sampling mesh; try"
            f" {-(-slots // sampling_ways) * sampling_ways}"
        )
    if 0 < config.train.prompts_per_iteration < batch:
        problems.append(
            f"train.prompts_per_iteration={config.train.prompts_per_iteration} is below"
            f" train.batch_size={batch}; lower the batch or raise the portion"
        )
    return problems


def _token_problems(config: ConfigDict) -> list[str]:
    """List what micro-batches of so many tokens ask of other keys."""
    c, problems = config.train, []
    kind = ROWS.get(config.loss.name)
    k = {"group": config.sampling.num_samples, "response": 1}.get(kind or "pair", 2)
    longest = max(config.data.prompt_buckets, default=0)
    if c.padding_free:
        longest = config.data.max_prompt_length
    longest += k * config.sampling.max_new_tokens
    if c.padding_free and not c.max_token_len:
        problems.append(
            "train.padding_free=true needs train.max_token_len, the tokens of a micro-batch on one"
            f" device; try {2 * longest}"
        )
    if 0 < c.max_token_len < longest:
        problems.append(
            f"train.max_token_len={c.max_token_len} holds no row of full length, a prompt and"
            f" {k} responses of sampling.max_new_tokens, {longest} tokens; raise it to that"
        )
    if c.max_token_len and c.micro_batches > 1:
        problems.append(
            f"train.micro_batches={c.micro_batches} and train.max_token_len={c.max_token_len} both"
            " cut a batch; leave one of them at its default"
        )
    return problems


def help_text(config: ConfigDict) -> str:
    """Return every key with its value in `config` and its meaning."""
    return cfg.help_text(KEYS, COMPONENTS, config)
