"""A judge behind HTTP, against a real local server: both orders, and every way a server can
fail."""

import itertools
import json
import math
import time

import numpy as np
import pytest
from http_judge import Cut, Hang, reply, serving, shown, token

from ssppo_jax.errors import ConfigError, GateError, UserError
from ssppo_jax.oracles.endpoint import _trusted
from ssppo_jax.oracles.judge import judge
from ssppo_jax.oracles.judge_prompts import STYLES, NoVerdict, messages_of, probability
from ssppo_jax.oracles.protocol import checked, consult, drop_failed
from ssppo_jax.types import Prompt

CANARY = "sk-canary-7f3a"
PROMPTS = [
    Prompt(f"p{i}", ({"role": "user", "content": f"question {i} with {{first}} in it"},))
    for i in range(2)
]
RESPONSES = [["rock", "paper", "scissors"], ["a", "bb", "a"]]
BEATS = {("rock", "scissors"), ("paper", "rock"), ("scissors", "paper")}


def ok(text, tokens=None):
    return 200, reply(text, tokens), {}


def fair(body, _):
    """Rock, paper, scissors; else the longer text; m is the first."""
    first, second = (a or b for a, b in shown(body))
    return ok(
        "m"
        if (first, second) in BEATS or (len(first) > len(second) and (second, first) not in BEATS)
        else "M"
    )


@pytest.fixture
def make(tmp_path):
    """oracle(url, **settings) that keeps its replies in the test's folder and waits for nothing."""

    def made(url, **settings):
        given = {
            "model": "j",
            "replies": str(tmp_path / "replies.jsonl"),
            "retry_delay": 0.0,
            "timeout": 5.0,
        }
        return judge(base_url=url, **(given | settings))

    return made


def ask(oracle, n=2):
    return checked(oracle.ask(PROMPTS[:n], RESPONSES[:n]), (n, 3))


# ---- verdicts ------------------------------------------------------------------------------------


def test_a_judge_that_always_favours_the_first_place_says_one_half_and_is_found_out(make):
    with serving(lambda body, n: ok("m")) as (_, url):
        verdict = ask(make(url))
    np.testing.assert_array_equal(verdict.preference, np.full((2, 3, 3), 0.5, np.float32))
    off = ~np.eye(3, dtype=bool)
    np.testing.assert_array_equal(verdict.parts["asymmetry"][:, off], 1.0)


def test_a_rock_paper_scissors_judge_stays_intransitive(make):
    with serving(fair) as (_, url):
        p = ask(make(url)).preference[0]
    assert (p[0, 2], p[2, 1], p[1, 0]) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("style", STYLES)
def test_token_probabilities_are_used_where_they_are_offered(style, make):
    one, two = STYLES[style].first, STYLES[style].second
    words = one if style == "alpaca_eval" else f"Because. [[{one}]]"
    before = [] if style == "alpaca_eval" else [token("Because"), token(". [[")]
    after = [] if style == "alpaca_eval" else [token("]]")]
    odds = {one: math.log(0.6), two: math.log(0.2), "x": math.log(0.2)}

    def behave(body, n):
        return ok(words, [*before, token(one, **odds), *after])

    with serving(behave) as (server, url):
        verdict = ask(make(url, style=style), n=1)
    assert verdict.parts["asymmetry"][0, 0, 1] == pytest.approx(2 * 0.75 - 1)
    assert all(body["logprobs"] is True and body["model"] == "j" for body in server.bodies)
    assert server.bodies[0]["max_tokens"] == (8 if style == "alpaca_eval" else 1024)


def test_without_token_probabilities_the_words_count_and_a_tie_is_one_half():
    style = STYLES["mt_bench"]
    found = [probability(style, f"[[B]] at first, but [[{v}]]", None) for v in "ABC"]
    assert found == [1.0, 0.0, 0.5]
    assert probability(style, "A is better", None) is None and probability(style, "", None) is None
    short = STYLES["alpaca_eval"]
    found = [probability(short, text, []) for text in ("m", "M", "**M**", " m.\n")]
    assert found == [1.0, 0.0, 0.0, 1.0]
    assert probability(short, "model m", []) is None
    tied = [token("C", A=math.log(0.1), B=math.log(0.3), C=math.log(0.6))]
    assert probability(style, "[[C]]", tied) == pytest.approx(0.4)
    # no token is the verdict alone: the words
    assert probability(style, "[[A]]", [token("[[A]]", A=0.0)]) == 1.0


def odds(first, second, *rest):
    """Log-probs of tokens: 0.6 for the first, 0.2 for the second; others share the rest."""
    shares = {first: 0.6, second: 0.2} | dict.fromkeys(rest, 0.2 / max(1, len(rest)))
    return {text: math.log(share) for text, share in shares.items()}


WRONG = {"A": math.log(0.1), "B": math.log(0.9)}  # of a letter that is not the verdict
SPLIT = [token("[["), token("A", odds("A", "B", "As")), token("]]")]
SMILE = "\N{SLIGHTLY SMILING FACE}".encode()
TOKENISED = {
    "the letter with its brackets": (
        [token("Not"), token(" A", WRONG), token(": [[A", odds(": [[A", ": [[B")), token("]]")]
    ),
    "the letter with the closing ones": [token("[["), token("A]]", odds("A]]", "B]]", "A is"))],
    "one token": [token("[[A]]", odds("[[A]]", "[[B]]", "[[", "A"))],
    "several ways to go on": [
        token("[["),
        token("A", {"A": math.log(0.4), "A]]": math.log(0.2), "B]]\n": math.log(0.2)}),
        token("]]"),
    ],
    "a letter behind it": [*SPLIT, token(" as"), token(" A", WRONG), token(" is fine.")],
    "a letter in front": [token("A", WRONG), token(" is worse: "), *SPLIT],
    "an end mark": [*SPLIT, token("<|im_end|>")],
    "a token that was not among the likeliest": [
        token("[["),
        {**token("A", B=math.log(0.2)), "logprob": math.log(0.6)},
        token("]]"),
    ],
    "half a letter in each of two tokens": [
        {**token("\ufffd"), "bytes": list(SMILE[:2])},
        {**token("\ufffd"), "bytes": list(SMILE[2:])},
        *SPLIT,
    ],
    "signs of the vocabulary": [token("▁Well"), token("Ċ"), token("Ġ[["), *SPLIT[1:]],
}


@pytest.mark.parametrize("how", TOKENISED)
def test_the_verdict_does_not_depend_on_how_it_is_cut_into_tokens(how):
    pieces = [bytes(t.get("bytes") or t["token"].encode()) for t in TOKENISED[how]]
    text = (
        b"".join(pieces).decode().removesuffix("<|im_end|>").translate(str.maketrans("▁Ċ", " \n"))
    )
    text = text.replace("Ġ", " ").strip()
    assert probability(STYLES["mt_bench"], text, TOKENISED[how]) == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("m", [token("m", odds("m", "M", "model"))]),
        ("m", [token("\n"), token(" m", odds(" m", " M", "Model")), token("<|im_end|>")]),
        ("**m**", [token("**"), token("m", odds("m", "M")), token("**")]),
        ("**m**", [token("**m", odds("**m", "M", "**model")), token("**")]),
        ("m.", [token("m.", odds("m.", "M.", "m is"))]),
    ],
)
def test_a_short_verdict_does_not_depend_on_how_it_is_cut_into_tokens(text, tokens):
    assert probability(STYLES["alpaca_eval"], text, tokens) == pytest.approx(0.75)


def test_the_tokens_of_the_thinking_do_not_count():
    style, thought = STYLES["mt_bench"], [token("[["), token("B", WRONG), token("]]")]
    tokens = [token("<think>"), *thought, token("</think>"), *SPLIT]
    hidden = probability(style, "[[A]]", tokens)  # the server took the thinking out of the text
    shown = probability(style, "<think>[[B]]</think>[[A]]", tokens)
    assert hidden == shown == pytest.approx(0.75)
    short = [token("<think>"), token("M"), token("</think>"), token("m", odds("m", "M"))]
    assert probability(STYLES["alpaca_eval"], "<think>M</think>m", short) == pytest.approx(0.75)


def test_thinking_that_did_not_end_is_no_verdict():
    assert probability(STYLES["mt_bench"], "<think>At first [[A]], but", None) is None
    assert probability(STYLES["alpaca_eval"], "<think>m", None) is None


def test_tokens_of_another_text_leave_the_words():
    assert probability(STYLES["mt_bench"], "[[A]]", [token("so"), token("A", WRONG)]) == 1.0


@pytest.mark.parametrize("logprob", [math.nan, math.inf, 1.0, "-1", None, True, 10**400])
def test_a_log_prob_that_is_none_is_no_verdict(logprob):
    tokens = [token("m", m=-0.5, M=logprob)]
    with pytest.raises(NoVerdict, match="is not a number of at most 0"):
        probability(STYLES["alpaca_eval"], "m", tokens)


@pytest.mark.parametrize("logprob", [-math.inf, -9999, -(10**400)])
def test_a_log_prob_without_bound_is_no_chance(logprob):
    assert probability(STYLES["alpaca_eval"], "m", [token("m", m=-0.5, M=logprob)]) == 1.0


def test_texts_are_shown_as_they_are_and_in_both_orders(make):
    with serving(fair) as (server, url):
        ask(make(url, logprobs=False), n=1)
    seen = {tuple(a or b for a, b in shown(body)) for body in server.bodies}
    assert seen == set(itertools.permutations(RESPONSES[0], 2))
    assert all(
        "question 0 with {first} in it" in body["messages"][1]["content"] for body in server.bodies
    )
    assert not any("logprobs" in body for body in server.bodies)


def test_several_turns_are_shown_with_their_roles():
    turns = (
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes?"},
        {"role": "user", "content": "go"},
    )
    asked = messages_of(STYLES["mt_bench"], Prompt("p", turns), "x", "y")[1]["content"]
    assert "User: hi\n\nAssistant: yes?\n\nUser: go" in asked


# ---- a server that fails -------------------------------------------------------------------------


def fails(how):
    if how == "hangs":
        raise Hang(1.2)
    if how == "half a reply":
        raise Cut(reply("m")[:20])
    if how == "nothing":
        raise Hang(0.0)
    return {
        "garbage": (200, b"<html>\xff", {}),
        "no verdict": ok("I cannot say."),
        "other JSON": (200, b'{"choices": []}', {}),
        "500": (500, b"oops", {}),
        "429": (429, b"{}", {"Retry-After": "0"}),
        "redirect": (302, b"", {"Location": "http://127.0.0.1:1/"}),
        "endless": (200, b"x" * (5 << 20), {}),
    }[how]


FAILURES = [
    "garbage", "no verdict", "other JSON", "500", "429",
    "redirect", "endless", "hangs", "half a reply", "nothing",
]  # fmt: skip


@pytest.mark.parametrize("how", FAILURES)
def test_a_failure_is_tried_again(how, make):
    seen = set()

    def behave(body, n):
        if shown(body) not in seen:
            seen.add(shown(body))
            return fails(how)
        return fair(body, n)

    with serving(behave) as (server, url):
        verdict = ask(make(url, attempts=2, timeout=0.8 if how == "hangs" else 5.0), n=1)
    assert verdict.failed == (None,) and len(server.bodies) == 12
    assert verdict.preference[0, 0, 2] == 1.0


@pytest.mark.parametrize("how", FAILURES)
def test_what_fails_for_good_is_a_counted_drop_and_never_a_number(how, make):
    def behave(body, n):
        return fails(how) if "question 1" in body["messages"][1]["content"] else fair(body, n)

    with serving(behave) as (_, url):
        verdict = ask(make(url, attempts=2, timeout=0.8 if how == "hangs" else 5.0))
    assert verdict.failed[0] is None and np.isnan(verdict.preference[1]).all()
    kept = drop_failed(verdict, max_failed_fraction=0.5)
    assert kept.rows.tolist() == [0] and sum(kept.reasons.values()) == 1
    with pytest.raises(
        GateError,
        match=r"failed on 1 of 2 prompts .* more than the allowed max_failed_fraction = 0.1",
    ):
        drop_failed(verdict, max_failed_fraction=0.1)


def many(n):
    return [Prompt(f"p{i}", ({"role": "user", "content": f"question {i}"},)) for i in range(n)]


def test_retry_after_is_waited_for(make):
    def behave(body, n):
        return (429, b"", {"Retry-After": "1"}) if n == 0 else fair(body, n)

    with serving(behave) as (_, url):
        start = time.monotonic()
        assert ask(make(url, concurrency=1), n=1).failed == (None,)
    assert 1 <= time.monotonic() - start < 5


@pytest.mark.parametrize("header", ["0.5", "soon", "Thu, 01 Jan 2026 00:00:00 GMT"])
def test_a_retry_after_that_says_nothing_is_no_failure(header, make):
    def behave(body, n):
        return (503, b"", {"Retry-After": header}) if n == 0 else fair(body, n)

    with serving(behave) as (server, url):
        assert ask(make(url, concurrency=1), n=1).failed == (None,)
    assert len(server.bodies) == 7


def one_pair(oracle):
    """The reason why the first of two requests failed."""
    return oracle.ask(many(1), [["a", "b"]]).failed[0].reason


def test_waits_grow_and_have_jitter(make, monkeypatch):
    naps = []
    monkeypatch.setattr("ssppo_jax.oracles.endpoint.time.sleep", naps.append)
    with serving(lambda body, n: fails("500")) as (server, url):
        assert "500" in one_pair(make(url, attempts=5, retry_delay=2.0, concurrency=1))
    assert len(server.bodies) == 10 and len(naps) == 8
    for waits in (naps[:4], naps[4:]):
        assert all(2 * 2**i <= wait <= 2 * 2**i + 1 for i, wait in enumerate(waits))
    assert naps[:4] != naps[4:]


def test_no_attempt_begins_after_the_deadline(make):
    start = time.monotonic()
    with serving(lambda body, n: fails("500")) as (server, url):
        reason = one_pair(make(url, attempts=50, retry_delay=0.1, deadline=0.5, concurrency=2))
        assert reason.startswith("deadline of 0.5 s passed: HTTP 500")
        assert 4 <= len(server.bodies) <= 8 and time.monotonic() - start < 3
    with serving(lambda body, n: (429, b"", {"Retry-After": "3600"})) as (_, url):
        assert "deadline" in one_pair(make(url))  # it is not even waited for
    assert time.monotonic() - start < 6


def test_nobody_there_ends_soon_and_says_so(make):
    oracle = make("http://127.0.0.1:9/v1", attempts=2, concurrency=1)
    verdict = oracle.ask(many(9), [["a", "b"]] * 9)
    assert all(failed is not None for failed in verdict.failed)
    reasons = [failed.reason for failed in verdict.failed]
    assert "no connection to the judge" in reasons[0] and reasons[-1].startswith(
        "not asked: 10 requests in a row had failed"
    )


def test_failures_with_answers_between_them_are_no_break(make):
    with serving(lambda body, n: fails("500") if n % 2 else fair(body, n)) as (server, url):
        verdict = make(url, attempts=1, concurrency=1).ask(many(15), [["a", "b"]] * 15)
    assert len(server.bodies) == 30 and all("500" in failed.reason for failed in verdict.failed)


def test_after_a_break_one_request_finds_out_whether_the_endpoint_is_back(make):
    down = True

    def behave(body, n):
        return fails("500") if down else fair(body, n)

    with serving(behave) as (server, url):
        oracle = make(url, attempts=1, concurrency=1)
        for asked in (10, 11):
            assert all(oracle.ask(many(9), [["a", "b"]] * 9).failed)
            assert len(server.bodies) == asked
        down = False
        assert not any(oracle.ask(many(9), [["a", "b"]] * 9).failed)


@pytest.mark.parametrize(
    ("status", "content"), [(401, b'{"error": {"message": "bad key"}}'), (404, b"no model j")]
)
def test_a_refused_key_or_an_unknown_model_ends_at_once_without_showing_the_key(
    status, content, make, monkeypatch
):
    monkeypatch.setenv("JUDGE_KEY", CANARY)
    with serving(lambda body, n: (status, content, {})) as (server, url):
        oracle = make(url, api_key_env="JUDGE_KEY", concurrency=1)
        with pytest.raises(
            ConfigError, match=f"says {status} .*(bad key|no model j).*JUDGE_KEY"
        ) as error:
            ask(oracle)
    assert len(server.bodies) <= 2 and CANARY not in str(error.value)


def test_a_request_the_server_will_not_take_is_not_repeated(make):
    with serving(lambda body, n: (400, b'{"error": "context too long"}', {})) as (server, url):
        verdict = ask(make(url), n=1)
    assert "refused the request (400): context too long" in verdict.failed[0].reason
    assert len(server.bodies) == 6


@pytest.mark.parametrize("style", STYLES)
def test_a_reply_that_was_cut_holds_no_verdict_and_the_setting_is_named(style, make):
    words = {"alpaca_eval": "m", "mt_bench": "At first I would say [[A]], but"}[style]
    with serving(lambda body, n: (200, reply(words, finish_reason="length"), {})) as (_, url):
        assert "raise oracle.max_tokens" in one_pair(make(url, style=style, attempts=1))


def test_an_endpoint_of_the_newer_name_is_asked_with_it_and_asked_once_more_only(make):
    refusal = {"error": {"message": "Unsupported parameter: use 'max_completion_tokens' instead."}}

    def behave(body, n):
        if "max_tokens" in body:
            return 400, json.dumps(refusal).encode(), {}
        return fair(body, n)

    with serving(behave) as (server, url):
        assert ask(make(url, concurrency=1, max_tokens=7)).failed == (None, None)
    assert [body.get("max_completion_tokens") for body in server.bodies] == [None] + [7] * 9
    assert not any("max_tokens" in body for body in server.bodies[1:])
    refused = (400, json.dumps(refusal).encode(), {})
    with serving(lambda body, n: refused) as (server, url):
        assert "refused the request (400)" in one_pair(make(url, concurrency=1, model="other"))
    assert len(server.bodies) == 3  # the second request goes by the newer name at once


def test_all_attempts_together_end_at_the_deadline(make):
    def behave(body, n):
        if n > 1:
            raise Hang(15.0)
        return fails("500")

    start = time.monotonic()
    with serving(behave) as (server, url):
        reason = one_pair(make(url, attempts=9, timeout=30.0, deadline=0.4, concurrency=2))
    assert reason.startswith("deadline of 0.4 s passed: no whole reply in time")
    assert len(server.bodies) == 4 and time.monotonic() - start < 10


def test_a_response_with_half_a_letter_is_asked_about(make):
    with serving(lambda body, n: ok("m")) as (server, url):
        verdict = make(url).ask(many(1), [["a\ud800", "b"]])
    assert verdict.failed == (None,)
    assert any("a\ud800" in body["messages"][1]["content"] for body in server.bodies)


# ---- what it costs and what it keeps -------------------------------------------------------------


def test_nothing_is_asked_twice_not_even_by_another_run_after_a_failure(make):
    broken = True

    def behave(body, n):
        return fails("500") if broken and shown(body)[0][0] == "paper" else fair(body, n)

    with serving(behave) as (server, url):
        first = ask(make(url, attempts=1))
        assert first.failed[0] is not None and first.failed[1] is None
        # "a", "bb", "a": only (a, bb), (bb, a) and (a, a) differ
        assert len(server.bodies) == 6 + 3
        broken = False
        second = ask(make(url, attempts=1))
        assert second.failed == (None, None) and len(server.bodies) == 9 + 2
        third = consult(make(url), PROMPTS, RESPONSES)
        assert len(server.bodies) == 11
    np.testing.assert_array_equal(second.preference, third.preference)
    np.testing.assert_array_equal(second.parts["asymmetry"], third.parts["asymmetry"])


def test_a_torn_last_line_is_asked_again_and_a_bad_one_is_named(make, tmp_path):
    with serving(fair) as (server, url):
        ask(make(url), n=1)
        path = tmp_path / "replies.jsonl"
        path.write_bytes(path.read_bytes()[:-3])
        ask(make(url), n=1)
        assert len(server.bodies) == 7
        whole = path.read_bytes()
        for bad in (b"{}", b'{"key": "a", "value": NaN}', b'{"key": "a", "value": 7}', b"[" * 9999):
            path.write_bytes(bad + b"\n" + whole)
            with pytest.raises(UserError, match=r"replies.jsonl:1: not a record"):
                make(url)


def test_the_key_goes_to_the_server_and_nowhere_else(make, monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    with serving(fair) as (server, url):
        ask(make(url))
    assert set(server.keys) == {f"Bearer {CANARY}"}
    assert not any(CANARY in file.read_text() for file in tmp_path.iterdir())
    assert CANARY not in "".join(capfd.readouterr())
    monkeypatch.delenv("OPENAI_API_KEY")
    with serving(fair) as (server, url):
        ask(make(url, replies=str(tmp_path / "other.jsonl")))
    assert set(server.keys) == {None}


@pytest.mark.parametrize("concurrency", [1, 3])
def test_so_many_requests_are_under_way_at_a_time(concurrency, make):
    def behave(body, n):
        late = time.monotonic() + 0.3  # on a busy machine the others may take their time to come
        while server.now < concurrency and time.monotonic() < late:
            time.sleep(0.01)
        time.sleep(0.02)  # one too many would come now
        return fair(body, n)

    with serving(behave) as (server, url):
        ask(make(url, concurrency=concurrency))
    assert server.most == concurrency


def test_a_key_that_no_header_can_hold_is_named_by_its_variable_alone(make, monkeypatch, tmp_path):
    with serving(fair) as (server, url):
        for key in (f"{CANARY}\nX: y", f"{CANARY}é"):
            monkeypatch.setenv("OPENAI_API_KEY", key)
            with pytest.raises(ConfigError, match="variable OPENAI_API_KEY holds") as error:
                ask(make(url))
            assert CANARY not in str(error.value) and not server.bodies
        monkeypatch.setenv("OPENAI_API_KEY", f" {CANARY}\r\n")  # as from a file
        ask(make(url))
    assert set(server.keys) == {f"Bearer {CANARY}"}


@pytest.mark.parametrize("name", ["ALL_PROXY", "SSL_CERT_FILE"])
def test_a_proxy_or_certificates_that_cannot_be_used_are_named(name, make, monkeypatch):
    _trusted.cache_clear()
    monkeypatch.setenv(name, "gopher://nonsense")
    with pytest.raises(ConfigError, match=name):
        ask(make("http://127.0.0.1:9/v1"))
