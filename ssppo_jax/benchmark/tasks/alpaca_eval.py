"""AlpacaEval 2 (arXiv 2404.04475): is the answer preferred to the reference output?

The judge sees both outputs in the order that the package's annotator shows them, and answers with
one token, m or M. The preference is 2 - P(first is better) in [1, 2], turned back if the order was
switched; 2 means that the model wins. The raw win rate is 100 mean(preference - 1). The
length-controlled one is the package's own (`alpaca-eval`, an extra), never a model of ours."""

from __future__ import annotations

import csv
import importlib.metadata
import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from ssppo_jax.benchmark.contract import (
    Benchmark,
    Grade,
    Graded,
    Question,
    Reply,
    Request,
    Whole,
    mean_of,
)
from ssppo_jax.benchmark.rows import read_rows
from ssppo_jax.benchmark.templates import fill, read_text
from ssppo_jax.config import expanded
from ssppo_jax.errors import ConfigError, DataError
from ssppo_jax.evaluate import Estimate
from ssppo_jax.files import file_digest, installed, write_json
from ssppo_jax.oracles.judge_prompts import STYLES, NoVerdict, probability
from ssppo_jax.types import Failed

ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"
TEMPLATE = "alpaca_eval/evaluators_configs/alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt"
BOARD = f"alpaca_eval/leaderboards/data_AlpacaEval_2/{ANNOTATOR}_leaderboard.csv"
REMEDY = "type: pip install --no-deps alpaca-eval==0.6.6"
SWITCH = "is_switched_outputs"  # with the instruction and seed 0, it seeds the order
FIRST, SECOND = "m", "M"
Z = 1.959964  # of a 95% interval


def alpaca_eval(
    config: ConfigDict,
    *,
    path: str = "",
    annotations: str = "",
    difficulties: str = "",
    templates: str = "",
) -> Benchmark:
    """Compare answers to 805 instructions with reference outputs: raw and length-controlled rate.

    Args:
        path: the reference outputs: the official JSON file (`instruction`, `output`, `generator`,
          `dataset`), or annotations, of which output_1 is taken.
        annotations: published annotations to aggregate; no model is asked.
        difficulties: df_gamed.csv of tatsu-lab/alpaca_eval; empty lets the package download it.
        templates: the judge's template; empty takes that of the installed alpaca-eval.
    """
    if annotations:
        return _published(annotations, difficulties)
    rows = read_rows(path, fields=("instruction",), what="AlpacaEval instructions")
    questions = []
    for i, row in enumerate(rows):
        reference = row.get("output", row.get("output_1"))
        if not isinstance(reference, str):
            raise DataError(f"{path}: record {i + 1} has neither output nor output_1")
        meta = {
            "reference": reference,
            "generator": row.get("generator", row.get("generator_1", "reference")),
            "dataset": row.get("dataset", ""),
        }
        questions.append(Question(str(i), (str(row["instruction"]),), meta=meta))
    file = expanded(templates) if templates else installed("alpaca-eval", TEMPLATE, remedy=REMEDY)
    messages = chat_of(read_text(file))
    package = "" if templates else f", alpaca-eval {importlib.metadata.version('alpaca-eval')}"
    generators = sorted({str(q.meta["generator"]) for q in questions})
    return Benchmark(
        f"{ANNOTATOR}{package}, template {file_digest(file)[:16]}, against {', '.join(generators)}",
        questions,
        grade,
        headline="length_controlled_winrate",
        paired="preference",
        requests=lambda question, answers: [request_of(messages, question, answers[-1])],
        aggregate=lambda graded: aggregate(_frame(graded), difficulties)[0],
        sampling={"sampling.max_new_tokens": 2048, "sampling.temperature": 0.7},
        write_official=lambda folder, graded, names: _write(folder, graded, names, difficulties),
    )


def chat_of(template: str) -> list[dict[str, str]]:
    """Return the turns of a template that is written with <|im_start|> and <|im_end|>."""
    turns = []
    for part in template.strip().split("<|im_start|>")[1:]:
        role, _, content = part.partition("\n")
        turns.append({"role": role.strip(), "content": content.split("<|im_end|>", 1)[0].strip()})
    if not turns:
        raise DataError("the template of AlpacaEval's judge holds no turns between <|im_start|>")
    return turns


def switched(instruction: str) -> bool:
    """Say if the package's annotator shows the outputs of an instruction in the other order."""
    return random.Random(SWITCH + instruction + "0").choices([False, True], k=1)[0]


def request_of(messages: Sequence[dict[str, str]], question: Question, answer: str) -> Request:
    """Return the annotator's request: one token at temperature 1, with its probabilities."""
    outputs = [question.meta["reference"], answer]
    if switched(question.turns[0]):
        outputs.reverse()
    fields = {"instruction": question.turns[0], "output_1": outputs[0], "output_2": outputs[1]}
    turns = [{**turn, "content": fill(turn["content"], fields)} for turn in messages]
    return Request(turns, (FIRST, SECOND), max_tokens=1, temperature=1.0, logprobs=True)


def grade(question: Question, answers: list[str], replies: list[Reply]) -> Grade | Failed:
    """Return the preference in [1, 2]; 2: the answer is better than the reference output."""
    chance = chance_of_first(replies[0])
    if chance is None:
        return Failed("unreadable: the judge's reply is neither m nor M")
    preference = 2 - chance
    if switched(question.turns[0]):
        preference = 3 - preference
    return {"preference": preference}


def chance_of_first(reply: Reply) -> float | None:
    """Return P(m) / (P(m) + P(M)) of the verdict's token; None if neither is there.

    With one token, these are the exact tokens, as in the package. A longer reply, such as one after
    thinking, is read by its last word.
    """
    if reply.chances:
        return reply.chances[FIRST]
    try:
        if isinstance(reply.tokens, list) and len(reply.tokens) == 1:
            listed = {t["token"]: t["logprob"] for t in reply.tokens[0].get("top_logprobs") or []}
            first, second = (math.exp(listed[t]) if t in listed else 0.0 for t in (FIRST, SECOND))
            if first + second > 0:
                return first / (first + second)
        return probability(STYLES["alpaca_eval"], reply.text, reply.tokens)
    except (NoVerdict, LookupError, TypeError, AttributeError, OverflowError):
        return None  # also of token probabilities in another form than OpenAI's


# ---- aggregation ---------------------------------------------------------------------------------


def _frame(graded: Sequence[Graded]) -> pd.DataFrame:
    """Return annotations in the order of the questions; NaN where there is no preference."""
    rows = [
        {
            "instruction": one.question.turns[0],
            "dataset": one.question.meta["dataset"],
            "output_1": one.question.meta["reference"],
            "generator_1": one.question.meta["generator"],
            "output_2": one.answers[-1] if one.answers else "",
            "generator_2": "model",
            "annotator": ANNOTATOR,
            "preference": one.values.get("preference", math.nan),
        }
        for one in graded
    ]
    return pd.DataFrame(rows)


def aggregate(frame: pd.DataFrame, difficulties: str = "") -> tuple[dict[str, Estimate], list[str]]:
    """Return the win rates in percent with intervals, and notes.

    A preference of 0 is a draw in older files (1.5). What is not in [1, 2] is left out, as the
    package does, and counted. The length-controlled interval is from the package's standard error.
    """
    preference = _read(frame["preference"])
    kept = preference.dropna().to_numpy(np.float64) - 1
    metrics = {
        "win_rate": mean_of(100 * kept),
        "discrete_win_rate": mean_of(50 * (1 + np.sign(kept - 0.5))),
    }
    notes = []
    if unreadable := preference.isna().sum():
        notes.append(f"{unreadable} of {len(frame)} preferences are unreadable and left out")
    found, note = length_controlled(frame, difficulties)
    if found is None:
        return metrics, [*notes, note]
    return metrics | {"length_controlled_winrate": found}, notes


def _read(preference: pd.Series) -> pd.Series:
    """Return preferences in [1, 2], of which 0 is a draw, and NaN for what is none."""
    numbers = pd.to_numeric(preference, errors="coerce").replace({0.0: 1.5})
    return numbers.where(numbers.between(1, 2))


def length_controlled(frame: pd.DataFrame, difficulties: str) -> tuple[Estimate | None, str]:
    """Return the package's length-controlled rate by its standard error; or none, and why."""
    try:
        from alpaca_eval.metrics import glm_winrate
    except ImportError as error:
        why = "needs the alpaca-eval package: pip install 'ssppo_jax[alpaca]'"
        return None, f"no length-controlled rate: it {why} ({error})"
    frame = frame.assign(preference=pd.to_numeric(frame["preference"], errors="coerce"))
    downloads: Callable[..., Any] = glm_winrate.hf_hub_download
    if difficulties:
        file = expanded(difficulties)
        if not file.is_file():
            raise DataError(f"--config.benchmark.difficulties={difficulties}: no such file")
        downloads = lambda **_: str(file)  # noqa: E731  stands for the package's own download
    try:
        with mock.patch.object(glm_winrate, "hf_hub_download", downloads):
            found = glm_winrate.get_length_controlled_winrate(
                frame, save_weights_dir=None, is_add_glm_preference_inplace=False
            )
    except Exception as error:  # no network, another file, fewer instructions than difficulties
        text = " ".join(str(error).split())[:160] or type(error).__name__
        return None, (
            "no length-controlled rate: the package's model of instruction difficulties could not"
            f" be fitted ({text}); give the file df_gamed.csv of tatsu-lab/alpaca_eval:"
            " --config.benchmark.difficulties=FILE"
        )
    rate, half = float(found["length_controlled_winrate"]), Z * float(found["lc_standard_error"])
    return Estimate(rate, rate - half, rate + half, int(found["n_total"])), ""


def _published(annotations: str, difficulties: str) -> Benchmark:
    """Return the benchmark that aggregates annotations made elsewhere."""
    fields = ("instruction", "output_1", "output_2", "generator_2", "preference")
    frame = pd.DataFrame(read_rows(annotations, fields=fields, what="AlpacaEval annotations"))
    names = sorted({str(name) for name in frame.generator_2})
    if len(names) != 1:
        raise DataError(f"{annotations}: outputs of several models: {', '.join(names[:5])}")
    read = _read(frame["preference"])
    if not read.notna().any():
        raise DataError(f"{annotations}: not one preference from 1 to 2 (0: a draw)")

    def whole(folder: Path) -> Whole:
        metrics, notes = aggregate(frame, difficulties)
        listed = leaderboard_row(names[0])
        if listed:
            gap = metrics["win_rate"].mean - float(listed["win_rate"])
            notes.append(
                f"the leaderboard in alpaca-eval lists {names[0]} with a raw rate of"
                f" {listed['win_rate']} (difference {gap:.1e}) and a length-controlled one of"
                f" {listed['length_controlled_winrate'] or 'nothing'}"
            )
        rows = [
            {"id": str(i), "grade": {"preference": p}, "answers": [text]}
            for i, (p, text) in enumerate(zip(read, frame.output_2, strict=True))
        ]
        digest = file_digest(expanded(annotations))
        return Whole(metrics, notes, {"source": names[0], "digest": digest}, rows)

    return Benchmark(
        f"published annotations of {ANNOTATOR}",
        [],
        grade,
        headline="length_controlled_winrate",
        paired="preference",
        whole=whole,
    )


def leaderboard_row(name: str) -> dict[str, str] | None:
    """Return a model's row of the leaderboard that the package ships; None if there is none."""
    try:
        board = installed("alpaca-eval", BOARD, remedy=REMEDY)
    except ConfigError:
        return None
    rows = csv.DictReader(read_text(board).split("\n"))
    return next((row for row in rows if next(iter(row.values())) == name), None)


def _write(
    folder: Path, graded: Sequence[Graded], names: Mapping[str, str], difficulties: str
) -> list[str]:
    """Write model_outputs.json, reference_outputs.json and annotations.json as the package does."""
    frame = _frame(graded).assign(generator_2=names["model"])
    for name, n in (("model_outputs", 2), ("reference_outputs", 1)):
        outputs = frame.rename(columns={f"output_{n}": "output", f"generator_{n}": "generator"})
        columns = ["dataset", "instruction", "output", "generator"]
        write_json(folder / f"{name}.json", outputs[columns].to_dict("records"))
    annotations = frame.assign(annotator=f"{ANNOTATOR} by {names['judge']}")
    write_json(folder / "annotations.json", annotations.to_dict("records"))
    return aggregate(frame, difficulties)[1]


BENCHMARKS = {"alpaca_eval": alpaca_eval}
