"""List every key of a run: its default, its meaning and its own rule.

The defaults are the S-SPPO paper's where it states them (arXiv 2606.01561)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ssppo_jax import config as cfg
from ssppo_jax.config import Component, Key
from ssppo_jax.config.rules import Rule
from ssppo_jax.data import SOURCES
from ssppo_jax.data.chat import DATE
from ssppo_jax.data.framing import template_problem
from ssppo_jax.errors import ConfigError
from ssppo_jax.losses import ADVANTAGES, GATES, LOSSES, TIES
from ssppo_jax.models.attention import IMPLEMENTATIONS
from ssppo_jax.models.decoder import REMAT_POLICIES
from ssppo_jax.models.lora import TARGETS
from ssppo_jax.models.policy import LAYERS, POOLINGS
from ssppo_jax.optimizer import OPTIMIZERS, ROUNDINGS, SCHEDULES, STATE_DTYPES
from ssppo_jax.oracles import ORACLES
from ssppo_jax.oracles.named import read_named
from ssppo_jax.rollout.importance import MODES
from ssppo_jax.rollout.pairs import GATE_LEVELS, WIN_RATE_ESTIMATORS
from ssppo_jax.rollout.similarity import EMBED_TEXTS, SIMILARITIES
from ssppo_jax.runs.trackers import TRACKERS, names_of

_DTYPES = cfg.one_of("float32", "bfloat16")


def _layer_rule(value) -> str | None:
    return (
        None
        if value in LAYERS or value.isdigit()
        else f"one of {', '.join(LAYERS)}, or a block's number"
    )


def _readable(read: Callable[[str], Any], what: str) -> Rule:
    """Allow what `read` takes; tell its error otherwise."""

    def rule(value: str) -> str | None:
        try:
            read(value)
        except (ConfigError, re.error) as error:
            return f"{what} ({error})"
        return None

    return rule


_pattern = _readable(re.compile, "a regular expression")
_trackers = _readable(names_of, "trackers, separated by commas")
oracles_rule = _readable(lambda value: read_named(value, ORACLES), "oracles")


def is_seed(x) -> str | None:
    """JAX folds 32 bits of a seed, so larger ones would repeat."""
    return None if 0 <= x < 2**32 else f"from 0 to {2**32 - 1}"


KEYS: tuple[Key, ...] = (
    Key("seed", 0, "the run's seed; every random key is folded from it", is_seed),
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
    Key("train.batch_size", 64, "prompts per optimizer step, over all devices", cfg.positive),
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
        "train.rollout_lag",
        0,
        "iterations between sampling a rollout and training on it, 0 or 1, of a group loss: 1 is as"
        " stale as one-step-off-policy training (the first iteration has no lag)",
        cfg.unit,
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
        "logged number of evaluations whose highest value (of eval/loss the lowest) names the best"
        " policy, which is kept and exported as policy_best/: eval/win_rate,"
        " eval/keywords/win_rate; empty: none",
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
        oracles_rule,
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
