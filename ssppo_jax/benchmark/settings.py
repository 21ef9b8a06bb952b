"""Make the config of a benchmark: a run's keys for model, mesh and sampling, and two components of
its own, `benchmark` and `judge`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from ssppo_jax import config as cfg
from ssppo_jax import schema
from ssppo_jax.benchmark.contract import Benchmark, Question
from ssppo_jax.benchmark.judges import JUDGES
from ssppo_jax.benchmark.tasks import BENCHMARKS
from ssppo_jax.config import Component, Key
from ssppo_jax.data.sources import check_prompt
from ssppo_jax.errors import ConfigError, DataError, listed
from ssppo_jax.types import Prompt

KEYS = (
    Key(
        "benchmark.limit",
        0,
        "ask the first so many questions only; 0: all. heldout and"
        " published annotations are always whole",
        cfg.non_negative,
    ),
    Key(
        "judge.max_tokens",
        0,
        "tokens that a reply of the judge may have; 0: as the benchmark says. A judge that thinks"
        " first needs more",
        cfg.non_negative,
    ),
)
COMPONENTS = (
    Component("benchmark", BENCHMARKS, "gsm8k", "what is asked and how it is scored"),
    Component("judge", JUDGES, "endpoint", "who grades answers"),
)
# The keys of a run that a benchmark reads.
READ = ("seed", "model.", "mesh.", "sampling.", "data.date", "data.max_prompt_length",
        "data.template", "data.system_prompt")  # fmt: skip
HELDOUT_READS = ("data.", "eval.", "oracle.")
# A benchmark asks each question once, at its own temperature.
UNREAD = ("sampling.num_samples", "model.remat", "model.logprob_chunk")
DEFAULTS: Mapping[str, Any] = {
    "sampling.temperature": 0.0,
    "sampling.top_p": 1.0,
    "sampling.top_k": 0,
    "sampling.min_p": 0.0,
    "sampling.max_new_tokens": 512,
    "sampling.batch_size": 16,
    "data.max_prompt_length": 1 << 20,  # what the model reads is the limit
}
LOCAL = "local:"


def load(
    name: str, overrides: Mapping[str, str], *, spec: str = "", model: str = "", judge: str = ""
) -> ConfigDict:
    """Return the checked config of a benchmark on a model.

    Args:
        name: of the benchmark.
        overrides: key -> text, as `--config.KEY=VALUE`.
        spec: a config file whose keys are read (of `heldout`: data and oracle); empty takes the
          defaults.
        model: anything that `model.source` may be; empty leaves the config's.
        judge: the name of an endpoint's model, or local:SOURCE; empty leaves the config's.

    Raises:
        ConfigError: every problem at once.
    """
    try:
        benchmark = cfg.component(BENCHMARKS, name)
    except ConfigError as error:
        raise ConfigError(f"--name={name}: {error}") from None
    config = cfg.load_config(spec) if spec else schema.base_config()
    given = dict(overrides)
    if judge.startswith(LOCAL):
        given |= {"judge.name": "local", "judge.source": judge.removeprefix(LOCAL)}
    elif judge:
        given["judge.model"] = judge
    given.pop("benchmark.name", None)
    with config.unlocked():
        config.benchmark = benchmark
        config.judge = cfg.component(JUDGES, given.get("judge.name", "endpoint"))
        for key in KEYS:
            node, leaf = key.path.split(".")
            with config[node].unlocked():
                config[node][leaf] = key.default
        if not spec and name != "heldout":  # its prompts are read as in training
            for path, value in DEFAULTS.items():
                cfg.assign(config, (), path, value)
    if model:
        config.model.source = model
    given.pop("judge.name", None)
    every = (*schema.COMPONENTS, *COMPONENTS)
    problems = cfg.override(config, given, every, schema.ELSEWHERE, chosen=_chosen)
    problems += cfg.rule_problems(config, (*schema.KEYS, *KEYS), every)
    cfg.raise_problems(problems)
    return config


def _chosen(config: ConfigDict, path: str, name: str) -> None:
    tables = {c.path: c.table for c in (*schema.COMPONENTS, *COMPONENTS)}
    cfg.choose(config, path, tables[path], name)


def build(config: ConfigDict, overrides: Mapping[str, str]) -> Benchmark:
    """Return the configured benchmark; set the sampling keys that it asks for and no override
    does."""
    made = cfg.bind(BENCHMARKS, config.benchmark)(config)
    if not isinstance(made, Benchmark):
        raise ConfigError(
            f"benchmark {config.benchmark.name}: its factory returned a {type(made).__name__};"
            " return Benchmark(...) of ssppo_jax.benchmark.contract"
        )
    if made.whole is None and not made.questions:
        raise ConfigError(f"benchmark {config.benchmark.name} has no questions")
    _check_questions(made.questions)
    for path, value in made.sampling.items():
        if path not in overrides:
            cfg.assign(config, (), path, value)
    return made


def _check_questions(questions: Sequence[Question]) -> None:
    """Check that questions can be asked and told apart, whatever file they came from."""
    bad, names = [], set[str]()
    for question in questions:
        if question.id in names:
            bad.append(f"question {question.id!r} occurs twice")
        names.add(question.id)
        for turn in question.turns:
            asked = Prompt(question.id, (*question.before, {"role": "user", "content": turn}))
            try:
                check_prompt(asked)
            except ValueError as error:
                bad.append(f"question {question.id!r}: {error}")
    if bad:
        raise DataError("\n".join([f"{len(bad)} bad questions:", *listed(bad)]))


def help_text(config: ConfigDict) -> str:
    """Return the keys that a benchmark reads, with their values and meanings."""
    heldout = config.benchmark.name == "heldout"
    read = READ + (HELDOUT_READS if heldout else ())
    keys = [k for k in schema.KEYS if k.path.startswith(read) and k.path not in UNREAD]
    shown = [c for c in schema.COMPONENTS if heldout and c.path in ("data.source", "oracle")]
    return cfg.help_text((*KEYS, *keys), (*COMPONENTS, *shown), config)
