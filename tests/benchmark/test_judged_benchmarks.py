"""AlpacaEval, Arena-Hard and MT-Bench: requests, verdicts and aggregation, by hand."""

import gzip
import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize_scalar
from small_benchmarks import arena_files, canned, jsonl, load, mt_files

from ssppo_jax.benchmark.answers import Model, answer_all, messages_of, open_answers
from ssppo_jax.benchmark.contract import Graded, Question, Reply, ratio_of
from ssppo_jax.benchmark.result import different, read_result
from ssppo_jax.benchmark.run import dry_run, run_benchmark, settings_of
from ssppo_jax.benchmark.tasks import alpaca_eval, arena_hard, mt_bench
from ssppo_jax.errors import ConfigError, DataError
from ssppo_jax.types import Failed

CHATML = (
    "<|im_start|>system\nPick.\n<|im_end|>\n<|im_start|>user\n"
    "{instruction}|m:{output_1}|M:{output_2}\n<|im_end|>"
)
# What alpaca-eval 0.6.6 says of these instructions (tests/golden/make_benchmarks.py).
SWITCHED = {"one": True, "four": False, "three": True, "five": False}


def top(**logprobs):
    return [{"top_logprobs": [{"token": t, "logprob": p} for t, p in logprobs.items()]}]


def asked(instruction):
    return Question("0", (instruction,), meta={"reference": "old", "generator": "g", "dataset": ""})


def protocol_of(name, given):
    config, benchmark = load(name, given)
    return settings_of(config, benchmark, {}, None, benchmark.questions)["protocol"]


# ---- AlpacaEval ----------------------------------------------------------------------------------


def test_outputs_are_shown_in_the_packages_order():
    for instruction, switched in SWITCHED.items():
        assert alpaca_eval.switched(instruction) is switched
        chat = alpaca_eval.chat_of(CHATML)
        request = alpaca_eval.request_of(chat, asked(instruction), "new {output_1}")
        a, b = ("new {output_1}", "old") if switched else ("old", "new {output_1}")
        assert request.messages == [
            {"role": "system", "content": "Pick."},
            {"role": "user", "content": f"{instruction}|m:{a}|M:{b}"},
        ]
        assert request.max_tokens == 1 and request.logprobs


def test_the_preference_is_the_weight_of_the_two_tokens_alone():
    for instruction, switched in SWITCHED.items():
        tokens = top(m=math.log(0.3), M=math.log(0.1), Both=math.log(0.6))
        grade = alpaca_eval.grade(asked(instruction), ["new"], [Reply("Both", tokens)])
        first = 0.75
        want = 1 + first if switched else 2 - first
        assert grade["preference"] == pytest.approx(want)


@pytest.mark.parametrize(
    "reply, chance",
    [
        (Reply("m"), 1.0),
        (Reply("<think>m</think>M"), 0.0),
        (Reply("Both"), None),
        (Reply("Both", top(Both=-0.1)), None),
        (Reply("m", None, {"m": 0.25, "M": 0.75}), 0.25),
        # token probabilities that are not in OpenAI's form
        (Reply("x", ["m"]), None),
        (Reply("x", [{"top_logprobs": [{"token": "m"}]}]), None),
        (Reply("x", [{"top_logprobs": [{"token": "m", "logprob": None}]}]), None),
        (Reply("x", [{"top_logprobs": [{"token": "m", "logprob": 1e6}]}]), None),
    ],
)
def test_replies_without_probabilities_are_read_by_their_words(reply, chance):
    assert alpaca_eval.chance_of_first(reply) == chance


def test_the_raw_rate_is_the_mean_over_readable_preferences():
    given = [1.0, 2.0, 1.25, 0.0, None, "nonsense", 7.0]
    metrics, notes = alpaca_eval.aggregate(pd.DataFrame({"preference": given}))
    assert metrics["win_rate"].mean == pytest.approx(100 * (0 + 1 + 0.25 + 0.5) / 4)
    assert metrics["discrete_win_rate"].mean == pytest.approx(100 * (0 + 1 + 0 + 0.5) / 4)
    assert metrics["win_rate"].low < metrics["win_rate"].mean < metrics["win_rate"].high
    assert notes[0] == "3 of 7 preferences are unreadable and left out"
    assert "alpaca" in notes[1] and "length_controlled_winrate" not in metrics


def test_published_annotations_need_no_model(tmp_path):
    rows = [
        {
            "instruction": f"i{i}",
            "output_1": "a",
            "generator_1": "old",
            "output_2": "b",
            "generator_2": "new",
            "preference": 1 + i / 4,
        }
        for i in range(5)
    ]
    path = tmp_path / "annotations.json.gz"
    path.write_bytes(gzip.compress(json.dumps(rows).encode()))
    config, benchmark = load("alpaca_eval", {"benchmark.annotations": path})
    result = run_benchmark(config, benchmark, tmp_path)
    assert result["metrics"]["win_rate"]["mean"] == 50.0 and result["questions"] == 5
    assert result["model"]["source"] == "new"
    assert "runs as a whole" in dry_run(config, benchmark, tmp_path)
    rows[0]["preference"], rows[1]["preference"] = 0, "x"  # a draw, and what cannot be read
    path = tmp_path / "others.json.gz"
    path.write_bytes(gzip.compress(json.dumps(rows).encode()))
    with pytest.raises(ConfigError, match="holds answers to other settings"):
        run_benchmark(*load("alpaca_eval", {"benchmark.annotations": path}), tmp_path)
    result = run_benchmark(*load("alpaca_eval", {"benchmark.annotations": path}), tmp_path / "two")
    grades = list(read_result(tmp_path / "two").grades().values())
    assert [row["grade"]["preference"] for row in grades] == [1.5, None, 1.5, 1.75, 2.0]


# ---- Arena-Hard ----------------------------------------------------------------------------------


def played(*verdicts):
    return arena_hard.grade([Reply(f"so: [[{v}]]") for v in verdicts], 3)


def test_a_verdict_counts_for_the_right_player_in_both_games():
    won = played("B>>A", "A>>B")  # the model is B in the first game and A in the second
    assert (won["wins"], won["losses"], won["ties"]) == (6, 0, 0)
    split = played("A>B", "A=B")
    assert (split["wins"], split["losses"], split["ties"]) == (0, 1, 1)
    assert isinstance(arena_hard.grade([Reply("?"), Reply("[[A>B]] [[B>A]]")], 3), Failed)
    one = arena_hard.grade([Reply("?"), Reply("[[A>B]]")], 3)
    assert one["wins"] == 1 and one["unreadable_games"] == 1


def test_the_win_rate_is_bradley_terrys_maximum_likelihood():
    rng = np.random.default_rng(0)
    games = rng.choice(arena_hard.VERDICTS, size=(60, 2), p=[0.1, 0.2, 0.2, 0.3, 0.2])
    graded = [
        Graded(Question(str(i), ("",)), [""], [1], [], played(*pair))
        for i, pair in enumerate(games)
    ]
    found = arena_hard.aggregate(graded)["win_rate"]

    def nll(strength):  # each tie is half a win and half a loss
        p, total = 1 / (1 + np.exp(-strength)), 0.0
        for first, second in games:
            for verdict, model in ((first, "B"), (second, "A")):
                weight = 3 if len(verdict) == 4 else 1
                won = 0.5 if "=" in verdict else float(verdict.replace(">", "")[0] == model)
                total -= weight * (won * np.log(p) + (1 - won) * np.log(1 - p))
        return total

    best = minimize_scalar(nll, bounds=(-5, 5), method="bounded", options={"xatol": 1e-9}).x
    assert found.mean == pytest.approx(100 / (1 + np.exp(-best)), abs=1e-4)
    assert found.low < found.mean < found.high and found.n == 60


def test_other_reference_answers_are_other_settings(tmp_path):
    """Of the same model's name and the same questions: the two results stood in one table."""
    one, two = (
        protocol_of("arena_hard", arena_files(tmp_path, text=text)) for text in ("old", "new")
    )
    (gap,) = different(one, two)
    assert gap.startswith("references: ")


# ---- MT-Bench ------------------------------------------------------------------------------------


def test_the_second_turn_follows_the_models_own_answer_in_its_template(tmp_path, monkeypatch):
    config, benchmark = load("mt_bench", mt_files(tmp_path / "data"))
    seen = canned(monkeypatch, lambda prompt: "first {answer}")
    model, store = Model(config), open_answers(tmp_path / "answers.jsonl")
    answer_all(model, benchmark, benchmark.questions, store)
    by_hand = (
        "<|im_start|>user\nWrite {x}.<|im_end|>\n<|im_start|>assistant\nfirst {answer}<|im_end|>\n"
        "<|im_start|>user\nAgain.<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = dict(seen)["1/1"]
    assert model.runtime.tokenizer.decode(ids) == by_hand
    assert ids == list(model.runtime.tokenizer(by_hand, add_special_tokens=False)["input_ids"])
    assert benchmark.questions[0].temperature == 0.7 and benchmark.questions[1].temperature == 0.0


def test_each_turn_is_graded_with_its_own_template(tmp_path):
    _, benchmark = load("mt_bench", mt_files(tmp_path))
    texts = [
        [r.messages[1]["content"] for r in benchmark.requests(q, ["one {question}", "two"])]
        for q in benchmark.questions
    ]
    assert texts[0] == [
        "Rate this.\nWrite {x}.\none {question}",
        "Rate the end.\nWrite {x}.\none {question}\nAgain.\ntwo",
    ]
    assert texts[1][0].endswith("\ntwo") and texts[1][1].endswith("\nfour")  # the reference answers


def test_a_folder_of_ones_own_that_lacks_a_part_is_told(tmp_path):
    given = mt_files(tmp_path)
    prompts = tmp_path / "judge_prompts.jsonl"
    whole = prompts.read_text()
    prompts.write_text(
        "".join(line + "\n" for line in whole.split("\n")[:-1] if "math" not in line)
    )
    with pytest.raises(DataError, match=r"no judge prompt single-math-v1, single-math-v1-multi-tu"):
        load("mt_bench", given)
    prompts.write_text(whole)
    worked = tmp_path / "mt_bench" / "reference_answer" / "gpt-4.jsonl"
    jsonl(worked, [{"question_id": 2, "choices": []}])
    with pytest.raises(DataError, match=r"a row without choices\[0\]\.turns"):
        load("mt_bench", given)


def test_the_same_files_in_another_folder_are_the_same_settings(tmp_path):
    one, two = (protocol_of("mt_bench", mt_files(tmp_path / place)) for place in ("one", "two"))
    assert one == two


def test_one_question_has_no_interval():
    one, two = ratio_of([7.0], [1.0]), ratio_of([7.0, 8.0], [1.0, 1.0])
    assert one.mean == 7.0 and not np.isfinite([one.low, one.high]).any()
    assert two.mean == 7.5 and np.isfinite([two.low, two.high]).all()


@pytest.mark.parametrize(
    "text, rating",
    [("Rating: [[7]]", 7.0), ("[[6.5]] then [[9]]", 6.5), ("[8]", 8.0), ("ten", None),
     ("[[11]]", None), ("[[0]]", None), ("<think>[[2]]</think>[[3]]", 3.0)],
)  # fmt: skip
def test_ratings_are_read_as_fastchat_reads_them(text, rating):
    assert mt_bench.rating_of(Reply(text)) == rating


def test_unreadable_ratings_are_left_out_and_not_zero(tmp_path):
    _, benchmark = load("mt_bench", mt_files(tmp_path))
    replies = [["[[8]]", "none"], ["[[4]]", "[[6]]"]]
    graded = []
    for question, texts in zip(benchmark.questions, replies, strict=True):
        said = [Reply(text) for text in texts]
        grade = benchmark.grade(question, ["a", "b"], said)
        graded.append(Graded(question, ["a", "b"], [1, 1], said, grade))
    found = benchmark.aggregate(graded)
    assert found["score"].mean == 6.0 and found["turn_1"].mean == 6.0
    assert (found["turn_2"].mean, found["turn_2"].n) == (6.0, 1)
    assert found["writing"].mean == 8.0 and found["math"].mean == 5.0
    names = {"model": "m", "judge": "j/k"}
    assert benchmark.write_official(tmp_path, graded, names) == [
        "1 ratings are unreadable and left out"
    ]
    rows = (tmp_path / "model_judgment" / "j-k_single.jsonl").read_text().split("\n")[:-1]
    assert [json.loads(row)["score"] for row in rows] == [8.0, -1, 4.0, 6.0]


def test_a_chat_of_one_turn_is_the_question():
    question = Question("0", ("a", "b"))
    assert messages_of(question, []) == [{"role": "user", "content": "a"}]
