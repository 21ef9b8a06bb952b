"""Check the rules between keys: loss and rows, batch and mesh, schedule, reference, selection."""

from __future__ import annotations

import difflib

from ml_collections import ConfigDict

from ssppo_jax.data import GIVEN
from ssppo_jax.distributed.mesh import AXES, batch_ways, mesh_shape, sampling_shape
from ssppo_jax.errors import ConfigError
from ssppo_jax.losses import ROWS
from ssppo_jax.oracles import ORACLES
from ssppo_jax.oracles.named import TAKEN, read_named
from ssppo_jax.schema.keys import oracles_rule


def problems_between(config: ConfigDict, devices: int) -> list[str]:
    """List every broken rule between keys, on a machine with so many devices."""
    problems: list[str] = []
    try:
        shape = mesh_shape({axis: config.mesh[axis] for axis in AXES}, devices)
        sampling = sampling_shape(shape, config.sampling.mesh.to_dict())
        problems += _batch_problems(config, batch_ways(shape), batch_ways(sampling))
    except ConfigError as e:
        problems.append(str(e))
    if max(config.data.prompt_buckets, default=0) < config.data.max_prompt_length:
        problems.append(
            f"data.prompt_buckets={config.data.prompt_buckets}: the last must reach "
            f"data.max_prompt_length={config.data.max_prompt_length}; set"
            f" --config.data.prompt_buckets={config.data.max_prompt_length}, or several lengths of"
            " which that is the last"
        )
    problems += _reference_problems(config)
    if config.eval.final_num_samples < config.eval.num_samples:
        problems.append(
            f"eval.final_num_samples={config.eval.final_num_samples} is below eval.num_samples="
            f"{config.eval.num_samples}; the baseline is sampled final_num_samples times"
        )
    problems += _rows_problems(config) + _schedule_problems(config)
    return problems + _selection_problems(config)


def _rows_problems(config: ConfigDict) -> list[str]:
    """List what the loss's kind of rows asks of other keys."""
    kind, name, problems = ROWS.get(config.loss.name, "pair"), config.loss.name, []
    given = GIVEN.get(config.data.source.name, False)
    if kind == "opponent":
        if "mixture_coef" not in config.loss:
            problems.append(
                f"loss={name}: its opponent is sampled from a mixture with the reference, whose"
                " share is the loss's keyword mixture_coef; give it one, as in"
                " mixture_coef: float = 0.5"
            )
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
    if kind in ("group", "opponent") and given:
        problems.append(
            f"data.source.name={config.data.source.name}: {name} learns from the policy's own"
            " samples, and these responses are given; choose a pair loss or sft, or a source of"
            " prompts"
        )
    if config.train.importance_sampling_correction and given:
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
    if config.train.rollout_lag and kind != "group":
        problems.append(
            f"train.rollout_lag={config.train.rollout_lag}: only group losses weigh old samples by"
            f" their probability ratio, and {name} is none; set 0"
        )
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
    if mode.startswith("token") and (kind in ("pair", "response") or name == "xpo"):
        whole = mode.replace("token", "sequence")
        problems.append(
            f"train.importance_sampling_mode={mode}: {name} weighs whole responses; set {whole}"
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


def evaluated(select_by: str) -> str:
    """Return the number of evaluations that `train.select_by` names, without eval/ or evaluate/, as
    it stands in metrics.jsonl; "" if it names none."""
    phase, _, name = select_by.partition("/")
    return name if phase in ("eval", "evaluate") else ""


def _selection_problems(config: ConfigDict) -> list[str]:
    """List what choosing the best evaluated policy asks of other keys."""
    train, problems = config.train, []
    for key, off in (("carry", "last"), ("patience", 0)):
        if train[key] != off and not train.select_by:
            problems.append(
                f"train.{key}={train[key]} needs to know the best policy; set train.select_by,"
                " such as eval/win_rate"
            )
    if not train.select_by or oracles_rule(config.eval.oracles):
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
    measure = evaluated(train.select_by)
    label, _, rest = measure.partition("/")
    # What rewards an oracle gives is known when it has been asked, so their names are let through.
    typo = difflib.get_close_matches(f"eval/{measure}", names, n=1, cutoff=0.85)
    reward = not measure.endswith("win_rate") and (not rest or label not in TAKEN) and not typo
    if f"eval/{measure}" not in names and not (measure and reward):
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
    batch = config.train.batch_size
    micro = max(config.train.micro_batches, 1)  # below 1 is reported by its own rule
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
