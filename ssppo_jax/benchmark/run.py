"""Run a benchmark: answer, judge, grade, aggregate, write. A killed run is continued by the same
command."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ssppo_jax.benchmark.answers import Answer, Model, answer_all, known_answers, open_answers
from ssppo_jax.benchmark.contract import (
    Benchmark,
    Graded,
    Question,
    Request,
    as_file_name,
    digest_of,
)
from ssppo_jax.benchmark.judges import Judge, Replies, build_judge
from ssppo_jax.benchmark.result import claim, write_result
from ssppo_jax.config import flatten
from ssppo_jax.data.chat import encode_text
from ssppo_jax.errors import GateError
from ssppo_jax.oracles.answers import said
from ssppo_jax.types import Failed

log = logging.getLogger(__name__)

# files, whose content is in digests
PATHS = ("path", "fewshot_path", "references", "difficulties", "templates", "folder")
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "max_new_tokens", "param_dtype",
            "cache_dtype")  # fmt: skip
SHOWN = ("benchmark.", "judge.")  # nodes of the config that a result holds
MOST_FAILED = 0.5  # of the questions; with more failures there is no result


def run_benchmark(config: ConfigDict, benchmark: Benchmark, folder: Path) -> dict[str, Any]:
    """Return the result of a benchmark, which is also in folder/result.json.

    Raises:
        ConfigError: the folder holds other answers, or a judge is needed and none named.
        GateError: more than half of the questions failed; what succeeded is kept.
    """
    start = time.perf_counter()
    graded: list[Graded] = []
    rows: list[dict[str, Any]] = []
    if benchmark.whole is None:
        settings, graded, notes = _answered(config, benchmark, folder)
        metrics = benchmark.aggregate(graded)
    else:
        claim(folder, settings_of(config, benchmark, {"source": config.model.source}, None))
        metrics, notes, model, rows = benchmark.whole(folder)
        settings = settings_of(config, benchmark, model or model_of(config, Model(config)), None)
    seconds = time.perf_counter() - start
    return write_result(
        folder, benchmark, settings, metrics, graded, notes=notes, seconds=seconds, rows=rows
    )


def _answered(
    config: ConfigDict, benchmark: Benchmark, folder: Path
) -> tuple[dict[str, Any], list[Graded], list[str]]:
    """Answer and grade a benchmark's questions; return also its settings, and notes."""
    questions = _asked(config, benchmark)
    judge = _judge(config, benchmark, questions)
    model = Model(config)
    settings = settings_of(config, benchmark, model_of(config, model), judge, questions)
    claim(folder, settings)
    store = open_answers(folder / "answers.jsonl")
    answered = answer_all(model, benchmark, questions, store)
    graded = grade_all(config, benchmark, judge, folder, questions, answered)
    check_failures(graded, folder)
    judged_by = judge.identity["model"] if judge else ""
    names = {"model": name_of(config.model.source), "judge": judged_by}
    official = folder / "official"
    official.mkdir(exist_ok=True)
    return settings, graded, benchmark.write_official(official, graded, names) or []


def _asked(config: ConfigDict, benchmark: Benchmark) -> list[Question]:
    limit = config.benchmark.limit
    return benchmark.questions[:limit] if limit else benchmark.questions


def _judge(config: ConfigDict, benchmark: Benchmark, questions: Sequence[Question]) -> Judge | None:
    """Return the judge; none where the benchmark asks none."""
    probe = benchmark.requests(questions[0], ["" for _ in questions[0].turns])
    named = config.judge.get("model") or config.judge.get("source")
    return build_judge(config) if probe or named else None


def model_of(config: ConfigDict, model: Model) -> dict[str, Any]:
    """Return what a result says of the model."""
    dtypes = {k: config.model[k] for k in ("dtype", "param_dtype")}
    return {"source": config.model.source, "digest": model.digest, **dtypes}


def settings_of(
    config: ConfigDict,
    benchmark: Benchmark,
    model: Mapping[str, Any],
    judge: Judge | None,
    questions: Sequence[Question] = (),
) -> dict[str, Any]:
    """Return what a result says of itself: the `protocol`, equal where results compare, the model
    and the seed."""
    own = {k: v for k, v in config.benchmark.items() if k not in ("name", *PATHS)}
    sampling = {name: config.sampling[name] for name in SAMPLING}
    asked = None
    if judge is not None:
        asked = judge.identity | {"max_tokens": config.judge.max_tokens or "the benchmark's"}
    content = [[q.id, q.turns, q.before, q.temperature] for q in questions]
    references = [{str(key): value for key, value in q.meta.items()} for q in questions]
    protocol = {
        "benchmark": config.benchmark.name,
        "version": benchmark.version,
        "settings": own,
        "asked": f"{len(questions)} questions, SHA-256 {digest_of(content)[:16]}",
        "references": f"SHA-256 {digest_of(references)[:16]}",
        "prompting": {
            "chat_template": config.data.template if benchmark.chat else "none",
            "system_prompt": config.data.system_prompt if benchmark.chat else "",
            "date": config.data.date if benchmark.chat else "",
        },
        "sampling": sampling,
        "judge": asked,
    }
    return {
        "protocol": protocol,
        "model": dict(model),
        "seed": config.seed,
        "details": dict(benchmark.details),
        "config": {k: v for k, v in flatten(config).items() if k.startswith(SHOWN)},
    }


def name_of(source: str) -> str:
    """Return a model source as a file name."""
    parts = [part for part in source.rstrip("/").split("/") if part]
    if len(parts) > 1 and parts[-1] in ("policy", "policy_best"):
        parts = parts[-2:]
    elif len(parts) > 2 and parts[-2] == "checkpoints":
        parts = [parts[-3], parts[-1]]
    else:
        parts = parts[-1:]
    return as_file_name("-".join(parts)) or "model"


def grade_all(
    config: ConfigDict,
    benchmark: Benchmark,
    judge: Judge | None,
    folder: Path,
    questions: Sequence[Question],
    answered: Sequence[list[Answer] | Failed],
) -> list[Graded]:
    """Ask the judge about all answers, and grade them."""
    texts = [[] if isinstance(a, Failed) else _spoken(a) for a in answered]
    asked = [
        [] if isinstance(answers, Failed) else _requests(config, benchmark, question, own)
        for question, answers, own in zip(questions, answered, texts, strict=True)
    ]
    replies = Replies(folder / "replies.jsonl", judge) if judge else None
    if replies is not None:
        replies.ask(list(itertools.chain(*asked)))
    graded = []
    for question, requests, answers, own in zip(questions, asked, answered, texts, strict=True):
        if isinstance(answers, Failed):
            graded.append(Graded(question, [], [], [], answers))
            continue
        whole, tokens = [a.text for a in answers], [a.tokens for a in answers]
        heard = replies.to(requests) if replies is not None else []
        if isinstance(heard, Failed):
            graded.append(Graded(question, whole, tokens, [], heard))
        else:
            grade = benchmark.grade(question, own, heard)
            graded.append(Graded(question, whole, tokens, heard, grade))
    return graded


def _spoken(answers: Sequence[Answer]) -> list[str]:
    """Return answers as they are graded: what follows the thinking."""
    return [said(answer.text).strip("\n") for answer in answers]


def _requests(
    config: ConfigDict, benchmark: Benchmark, question: Question, texts: list[str]
) -> list[Request]:
    """Return what the judge is asked, with as many tokens for a reply as the config says."""
    found, most = benchmark.requests(question, texts), config.judge.max_tokens
    return [request._replace(max_tokens=most) for request in found] if most else found


def check_failures(graded: Sequence[Graded], folder: Path) -> None:
    """Stop where most questions failed: a mean of the rest would be another benchmark.

    Raises:
        GateError: more than half failed.
    """
    reasons = [one.grade.reason for one in graded if isinstance(one.grade, Failed)]
    if len(reasons) <= MOST_FAILED * len(graded):
        if reasons:
            log.warning("%d of %d questions failed; they are left out", len(reasons), len(graded))
        return
    common = max(set(reasons), key=reasons.count)
    raise GateError(
        f"{len(reasons)} of {len(graded)} questions failed, so there is no result; mostly:"
        f" {common}\nAnswers and replies are kept in {folder}: mend the cause and run the same"
        " command again, and only what is missing is done"
    )


# ---- a dry run -----------------------------------------------------------------------------------


def dry_run(config: ConfigDict, benchmark: Benchmark, folder: Path) -> str:
    """Say what a run would ask the judge, without sampling or asking.

    Tokens are counted with the model's own tokenizer. Answers that are not sampled yet count as
    `sampling.max_new_tokens`, so that the number is a bound.
    """
    if benchmark.whole is not None:
        return f"{config.benchmark.name} runs as a whole: what it will ask cannot be counted before"
    questions = _asked(config, benchmark)
    judge = _judge(config, benchmark, questions)
    model = Model(config)
    store = open_answers(folder / "answers.jsonl")
    known = [known_answers(question, store) for question in questions]
    turns = sum(len(q.turns) for q in questions)
    have = sum(map(len, known))
    lines = [f"{len(questions)} questions, {turns} answers, of which {have} are sampled"]
    if judge is None:
        return lines[0] + "\nno judge is asked"
    tokenizer = model.runtime.tokenizer
    requests, fresh_tokens = [], 0
    for question, own in zip(questions, known, strict=True):
        missing = len(question.turns) - len(own)
        found = _requests(config, benchmark, question, _spoken(own) + [""] * missing)
        requests += found
        fresh_tokens += missing * len(found) * config.sampling.max_new_tokens
    missing_requests = Replies(folder / "replies.jsonl", judge).missing(requests)
    counted = sum(
        len(encode_text(tokenizer, turn["content"]))
        for request in missing_requests
        for turn in request.messages
    )
    out = sum(request.max_tokens for request in missing_requests)
    kept = len(requests) - len(missing_requests)
    lines.append(f"{len(requests)} requests, of which {kept} have a kept reply or are repeated")
    lines.append(
        f"tokens to send: at most {counted + fresh_tokens:,} (counted with the model's tokenizer)"
    )
    lines.append(f"tokens to receive: at most {out:,}")
    if judge.paid:
        lines.append("the judge is an endpoint: multiply by its prices")
    if requests:
        lines.append("the first request:")
        lines += [f"--- {turn['role']}\n{turn['content']}" for turn in requests[0].messages]
    return "\n".join(lines)


def table(result: Mapping[str, Any]) -> str:
    """Return a result as lines to print."""
    protocol = result["protocol"]
    lines = [f"{protocol['benchmark']}: {result['model']['source']}"]
    for name, e in result["metrics"].items():
        if e["mean"] is None or e["mean"] != e["mean"]:
            lines.append(f"  {name:24s} none")
        elif math.isfinite(e["low"]) and math.isfinite(e["high"]):
            interval = f"[{e['low']:.4f}, {e['high']:.4f}]"
            lines.append(f"  {name:24s} {e['mean']:.4f} {interval}  n={e['n']}")
        else:
            lines.append(f"  {name:24s} {e['mean']:.4f}  n={e['n']}")
    lines.append(f"  failures {result['failures']} of {result['questions']}")
    lines += [f"  note: {note}" for note in result["notes"]]
    return "\n".join(lines)
