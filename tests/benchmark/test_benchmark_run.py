"""A benchmark from questions to result.json: resumed, refused, judged by a real HTTP server."""

import json
import os
import sys

import numpy as np
import pytest
from http_judge import reply, serving
from small_benchmarks import arena_files, canned, jsonl, load

from ssppo_jax.__main__ import main
from ssppo_jax.benchmark import answers
from ssppo_jax.benchmark.contract import digest_of
from ssppo_jax.benchmark.harness import make_lm
from ssppo_jax.benchmark.run import dry_run, run_benchmark
from ssppo_jax.distributed.stop import RunLock
from ssppo_jax.errors import ConfigError, DataError, GateError

ANNOTATED = ("instruction", "output_1", "output_2", "generator_2", "preference")
FIRST = "A thought. [[A>>B]]"


def says(text):
    return lambda body, n: (200, reply(text), {})


def run(folder, given, url, judge="j", **more):
    config, benchmark = load("arena_hard", given | {"judge.base_url": url} | more, judge=judge)
    return run_benchmark(config, benchmark, folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A sampled run with a judge that always favours the first place: (folder, keys, result)."""
    home = tmp_path_factory.mktemp("arena")
    given, folder = arena_files(home), home / "out"
    folder.mkdir()
    with serving(says(FIRST)) as (server, url):
        result = run(folder, given, url)
        assert len(server.bodies) == 6
    return folder, given, result


def test_a_judge_that_favours_the_first_place_says_half(whole):
    metrics = whole[2]["metrics"]
    assert metrics["win_rate"]["mean"] == 50.0
    assert metrics["won_where_shown_first"]["mean"] == 100.0
    assert metrics["won_where_shown_second"]["mean"] == 0.0


def test_a_result_names_all_that_it_depends_on(whole):
    folder, _, result = whole
    assert result == json.loads((folder / "result.json").read_text())
    protocol = result["protocol"]
    assert protocol["judge"]["model"] == "j" and "against old" in protocol["version"]
    assert protocol["sampling"]["max_new_tokens"] == 8 and len(result["model"]["digest"]) == 64
    assert result["failures"] == 0 and result["versions"]["jax"]
    official = folder / "official" / "model_answer" / "random-tiny.jsonl"
    rows = [json.loads(line) for line in official.read_text().split("\n") if line]
    assert [row["question_id"] for row in rows] == ["q0", "q1", "q2"]
    assert set(rows[0]["choices"][0]["turns"][0]) == {"content", "token_len"}


def test_a_rerun_neither_samples_nor_asks(whole, monkeypatch):
    folder, given, result = whole
    monkeypatch.setattr(answers, "sample_prompts", None)
    with serving(says("nonsense")) as (server, url):
        again = run(folder, given, url)
    assert not server.bodies
    assert again["metrics"] == result["metrics"]


def test_a_killed_run_goes_on_with_the_same_answers(whole, tmp_path):
    """Tokens are addressed by question: those sampled alone equal those of the whole batch."""
    folder, given, _ = whole
    lines = (folder / "answers.jsonl").read_text().split("\n")[:-1]
    (tmp_path / "settings.json").write_bytes((folder / "settings.json").read_bytes())
    (tmp_path / "answers.jsonl").write_text(lines[0] + "\n" + lines[1][:20])
    with serving(says(FIRST)) as (_, url):
        run(tmp_path, given, url)
    found = (tmp_path / "answers.jsonl").read_text().split("\n")[:-1]
    assert sorted(found) == sorted(lines)


def test_other_settings_are_refused_and_named(whole):
    folder, given, _ = whole
    with pytest.raises(ConfigError, match=r"max_new_tokens.*8.*7"):
        run(folder, given, "http://localhost:1/v1", **{"sampling.max_new_tokens": 7})


def test_a_failing_judge_stops_and_loses_nothing(tmp_path, monkeypatch):
    asked = canned(monkeypatch, lambda prompt: "yes")
    given = arena_files(tmp_path) | {"judge.attempts": 1}

    def half(body, n):
        good = "say 1" in body["messages"][1]["content"]
        return (200, reply("[[A=B]]"), {}) if good else (500, b"down", {})

    with serving(half) as (_, url), pytest.raises(GateError, match=r"2 of 3 .*HTTP 500"):
        run(tmp_path, given, url)
    assert not (tmp_path / "result.json").exists() and len(asked) == 3
    with serving(says("[[A=B]]")) as (server, url):
        result = run(tmp_path, given, url)
    assert len(server.bodies) == 4 and len(asked) == 3
    assert result["metrics"]["win_rate"]["mean"] == 50.0 and result["failures"] == 0


def test_unreadable_verdicts_are_counted_and_left_out(tmp_path, monkeypatch):
    canned(monkeypatch, lambda prompt: "yes")
    given = arena_files(tmp_path)

    def verdict(body, n):
        text = body["messages"][1]["content"]
        first = text.index("yes") < text.index("reference")
        if "say 2" in text:
            return 200, reply("[[A>B]] or [[B>A]]"), {}
        return 200, reply("[[A>B]]" if first else "[[B>A]]"), {}

    with serving(verdict) as (_, url):
        result = run(tmp_path, given, url)
    assert result["failures"] == 1 and result["metrics"]["win_rate"]["mean"] == 100.0
    assert "unreadable" in next(iter(result["failure_reasons"]))


def test_newer_endpoints_are_asked_as_they_want(tmp_path, monkeypatch):
    canned(monkeypatch, lambda prompt: "yes")

    def picky(body, n):
        if "max_tokens" in body:
            return 400, b'{"error": "use max_completion_tokens"}', {}
        if "temperature" in body:
            return 400, b'{"error": "Unsupported value: \'temperature\'"}', {}
        return 200, reply("<think>[[B>A]]</think> [[A=B]]"), {}

    with serving(picky) as (server, url):
        result = run(tmp_path, arena_files(tmp_path), url, **{"judge.max_tokens": 50})
    assert server.bodies[-1]["max_completion_tokens"] == 50
    assert result["metrics"]["win_rate"]["mean"] == 50.0
    assert result["protocol"]["judge"]["max_tokens"] == 50


def test_a_dry_run_counts_and_asks_nothing(tmp_path):
    config, benchmark = load("arena_hard", arena_files(tmp_path), judge="j")
    told = dry_run(config, benchmark, tmp_path)
    assert "3 questions, 3 answers, of which 0 are sampled" in told
    assert "6 requests" in told and "tokens to receive: at most 24,576" in told
    assert "<|User Prompt|>\nsay 0" in told
    assert not list(tmp_path.glob("*.json"))


def test_what_is_missing_is_said_before_anything_is_sampled(tmp_path):
    with pytest.raises(ConfigError, match=r"no GSM8K questions.*benchmark\.path=FILE"):
        load("gsm8k", {})
    with pytest.raises(DataError, match="no answer; the row has: question"):
        load("gsm8k", {"benchmark.path": jsonl(tmp_path / "x.jsonl", [{"question": "1+1?"}])})
    with pytest.raises(DataError, match=r"bad.jsonl:1: not JSON"):
        (tmp_path / "bad.jsonl").write_text("{")
        load("gsm8k", {"benchmark.path": tmp_path / "bad.jsonl"})
    with pytest.raises(ConfigError, match="did you mean 'gsm8k'"):
        load("gsm8", {})
    given = arena_files(tmp_path)
    jsonl(tmp_path / "reference.jsonl", [{"question_id": "q0", "choices": []}])
    with pytest.raises(DataError, match="record 1 has no choices"):
        load("arena_hard", given)
    given = arena_files(tmp_path)
    jsonl(tmp_path / "question.jsonl", [{"question_id": "q0", "turns": ["a"]}] * 2)
    with pytest.raises(DataError, match="'q0' occurs twice"):
        load("arena_hard", given)
    jsonl(tmp_path / "question.jsonl", [{"question_id": "q0", "turns": "a"}])
    with pytest.raises(DataError, match="question q0: its turns are no list of texts"):
        load("arena_hard", given)
    jsonl(tmp_path / "null.jsonl", [dict.fromkeys(ANNOTATED, "x")])
    with pytest.raises(DataError, match="not one preference from 1 to 2"):
        load("alpaca_eval", {"benchmark.annotations": tmp_path / "null.jsonl"})
    config, benchmark = load("arena_hard", arena_files(tmp_path))
    with pytest.raises(ConfigError, match=r"none is named; give --judge=MODEL"):
        run_benchmark(config, benchmark, tmp_path)


def test_a_second_process_in_a_folder_is_refused(tmp_path, capsys):
    given = [f"--config.{key}={value}" for key, value in arena_files(tmp_path).items()]
    command = ["benchmark", "--name=arena_hard", "--model=random:tiny", f"--output={tmp_path}"]
    with RunLock(tmp_path):
        assert main([*command, *given, "--judge=j", "--config.sampling.max_new_tokens=8"]) == 1
    assert f"pid {os.getpid()}" in capsys.readouterr().err


def test_the_harness_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(ConfigError, match=r"pip install 'ssppo_jax\[lm-eval\]'"):
        make_lm(None)
    with pytest.raises(ConfigError, match=r"benchmark\.tasks=arc_easy"):
        load("lm_eval", {})


def test_a_digest_knows_values_and_no_addresses():
    long = np.zeros(2000), np.r_[np.zeros(1000), 1, np.zeros(999)]
    assert digest_of([object()]) == digest_of([object()])
    assert digest_of(long[0]) != digest_of(long[1])
