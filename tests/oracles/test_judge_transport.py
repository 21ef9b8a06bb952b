"""Replies of an endpoint that misbehaves: each is a counted failure, in time, in little memory, and
shows the API key nowhere."""

import base64
import itertools
import json
import math
import re
import socket
import threading
import time
import traceback
import tracemalloc
import zlib
from urllib.parse import quote

import numpy as np
import pytest
from http_judge import Cut, Hang, Raw, reply, serving, token

from ssppo_jax.errors import ConfigError
from ssppo_jax.oracles.judge import judge
from ssppo_jax.oracles.protocol import checked, drop_failed
from ssppo_jax.types import Prompt

KEY = "sk-canary-7f3a-Zq81xW"
BYTES = KEY.encode()
DEADLINE = 0.25  # seconds; the limit of one attempt is 30
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
ENCODED = {
    "plain": KEY,
    "in other case": KEY.upper(),
    "backwards": KEY[::-1],
    "in part": KEY[5:15],
    "with line breaks": "\n".join(KEY),
    "percent-encoded": "".join(f"%{b:02x}" for b in BYTES),
    "as HTML": "".join(f"&#{b};" for b in BYTES),
    "escaped": "".join(f"\\u{b:04x}" for b in BYTES),
    "in base64": base64.b64encode(BYTES).decode(),
    "in base64 as a header": base64.b64encode(b"Bearer " + BYTES).decode(),
    "in base64 for URLs": base64.urlsafe_b64encode(b"me:" + BYTES).decode(),
    "in base64 twice": base64.b64encode(base64.b64encode(BYTES)).decode(),
    "in base64 and quoted": quote(base64.b64encode(BYTES)),
    "in base32": base64.b32encode(BYTES).decode(),
    "in hexadecimal": BYTES.hex(),
    "as bytes": ":".join(f"{b:02x}" for b in BYTES),
    "as numbers": str(list(BYTES)),
}


def squeezed(size, times=1, wbits=31):
    """So many zeros, compressed so many times."""
    pieces = itertools.repeat(bytes(1 << 20), size >> 20)
    for _ in range(times):
        packer = zlib.compressobj(9, wbits=wbits)
        packed = [*map(packer.compress, pieces), packer.flush()]
        pieces = packed
    return b"".join(pieces)


def raw(*pieces):
    def behave(body, n):
        raise Raw(pieces)

    return behave


def endless(start, piece, pause=0.0):
    """The start, and then the same piece for ever, with pauses in between."""

    def behave(body, n):
        rest = itertools.cycle([piece, pause]) if pause else itertools.repeat(piece)
        raise Raw(itertools.chain([start], rest))

    return behave


def raises(what):
    def behave(body, n):
        raise what

    return behave


def says(content, status=200, **headers):
    content = content if isinstance(content, bytes) else content.encode()
    return lambda body, n: (status, content, headers)


def choice(**fields):
    return says(json.dumps({"choices": [fields]}))


def tokens(*entries, text="m"):
    return says(reply(text, list(entries)))


def echo(text, status=400):
    return says(json.dumps({"error": {"message": f"bad request: {text}"}}), status)


TABLE = {
    # ---- the key comes back
    **{f"400 with the key {how}": echo(text) for how, text in ENCODED.items()},
    "401 with the key": echo(KEY, 401),
    "401 with all headers": says(f"POST /v1 HTTP/1.1\r\nAuthorization: Bearer {KEY}\r\n", 401),
    "403 with the key in base64": echo(ENCODED["in base64"], 403),
    "404 with the key in a list": says(json.dumps({"error": [KEY]}), 404),
    "422 with the key": echo(KEY, 422),
    "a redirect that holds the key": says("", 302, Location=f"http://127.0.0.1:1/?key={KEY}"),
    "a redirect to itself": says("", 307, Location="/v1/chat/completions"),
    "headers that hold the key": says("", 500, **{"X-Echo": KEY, KEY: "1", "Retry-After": KEY}),
    "a status line that holds the key": raw(f"HTTP/1.1 500 {KEY}\r\n\r\n".encode()),
    "the key for a status": raw(f"{KEY}\r\n\r\n".encode()),
    "the key for a length": raw(HEAD + f"Content-Length: {KEY}\r\n\r\n".encode()),
    "the key for an encoding": says(reply("m"), **{"Content-Encoding": KEY}),
    "the key for a verdict": says(reply(KEY)),
    "the key for an end": says(reply("m", finish_reason=KEY)),
    "a cookie that holds the key": says("", 500, **{"Set-Cookie": f"k={KEY}"}),
    # ---- no chat completion
    "nothing": says(""),
    "no content": says("", 204),
    "HTML": says(b"<html>\xff"),
    "no UTF-8": says(b'{"choices": "\xff"}'),
    "a list": says("[1]"),
    "null": says("null"),
    "no choice": says('{"choices": []}'),
    "choices in a record": says('{"choices": {"0": {}}}'),
    "a choice that is null": says('{"choices": [null]}'),
    "an error with status 200": says('{"error": {"message": "overloaded"}}'),
    "a message that is text": choice(message="m"),
    "a refusal": choice(message={"content": None, "refusal": "no"}),
    "content in parts": choice(message={"content": [{"type": "text", "text": "m"}]}),
    "content that is a number": choice(message={"content": 1}),
    "nested too deep": says("[" * 100_000),
    "a number of 5000 digits": says('{"choices": ' + "9" * 5000 + "}"),
    "lone surrogates": says('{"choices": [{"message": {"content": "\\ud800"}}]}'),
    # ---- no verdict
    "no verdict": says(reply("I cannot say.")),
    "no text": says(reply("")),
    "cut for its length": says(reply("M", finish_reason="length")),
    "filtered": says(reply("m", finish_reason="content_filter")),
    "an end that is a record": says(reply("m", finish_reason={"a": 1})),
    "cut inside its thinking": says(reply("<think>M")),
    "all thinking": choice(message={"content": None, "reasoning_content": "m"}),
    "a log-prob that is NaN": tokens(token("m", m=math.nan, M=-3.0)),
    "another log-prob that is NaN": tokens(token("m", m=-0.1, x=math.nan)),
    "a log-prob that is infinite": tokens(token("m", m=math.inf)),
    "a log-prob above 0": tokens(token("m", m=3.0)),
    "a log-prob that is text": tokens(token("m", m="-0.1")),
    "a log-prob that is true": tokens(token("m", m=True)),
    "no log-prob": tokens({"token": "m"}),
    "log-probs that are a list": choice(message={"content": "m"}, logprobs=["m"]),
    "tokens that are text": choice(message={"content": "m"}, logprobs={"content": "m"}),
    "tokens that are null": tokens(None),
    "a token that is a number": tokens({"token": 1, "logprob": 0.0}),
    "alternatives that are text": tokens({"token": "m", "logprob": 0.0, "top_logprobs": "m"}),
    # ---- it takes its time
    "hangs": raises(Hang(15.0)),
    "the status drips": endless(b"HTTP/1.1 200 ", b"O", 0.05),
    "headers drip": endless(HEAD, b"a: b\r\n", 0.05),
    "the body drips": endless(HEAD + b"Content-Length: 999\r\n\r\n", b" ", 0.05),
    "chunks drip": endless(CHUNKED, b"1\r\n \r\n", 0.05),
    "a whole reply that does not close": endless(HEAD + b"\r\n" + reply("m"), b" ", 0.05),
    "half a reply and a pause": raw(HEAD + b"Content-Length: 99\r\n\r\n{", 15.0),
    "an error that drips": endless(b"HTTP/1.1 401 no\r\n\r\n", b"x", 0.05),
    "continues for ever": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 999),
    "asks for an hour": says("", 429, **{"Retry-After": "3600"}),
    "asks for a day in the future": says("", 503, **{"Retry-After": "Fri, 01 Jan 2100 00:00 GMT"}),
    "asks for ever": says("", 503, **{"Retry-After": "9" * 5000}),
    # ---- it takes memory
    "an endless body": endless(HEAD + b"\r\n", b"x" * (1 << 16)),
    "endless headers": endless(HEAD, b"a: b\r\n" * 1000),
    "an endless header": endless(HEAD, b"a" * (1 << 16)),
    "endless small chunks": endless(CHUNKED, b"1\r\n \r\n" * 999),
    "a gzip bomb": says(squeezed(200 << 20), **{"Content-Encoding": "gzip"}),
    "a deflate bomb": says(squeezed(200 << 20, wbits=15), **{"Content-Encoding": "deflate"}),
    "a bomb in a bomb": says(squeezed(200 << 20, 2), **{"Content-Encoding": "gzip, gzip"}),
    "a bomb of an error": says(squeezed(200 << 20), 400, **{"Content-Encoding": "gzip"}),
    "many empty lists": says("[" + "{}," * 330_000 + "0]"),
    # ---- the connection
    "closes at once": raises(Hang(0.0)),
    "half a reply": raises(Cut(reply("m")[:20])),
    "half a chunk": raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab"),
    "no HTTP": raw(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "status 99": raw(b"HTTP/1.1 099 \r\n\r\n"),
    "another protocol": raw(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n" + b"x" * 99),
    "two lengths": raw(HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nx"),
    "500": says("oops", 500),
    "529": says("{}", 529),
    "https without TLS": says(reply("m")),
}  # fmt: skip
FORMS = [" ".join(form.split()) for form in ENCODED.values()]
NAME_OF_PYTHON = re.compile(r"[a-z](Error|Exception|Timeout)\b|NoneType|object at|Traceback")


@pytest.fixture(scope="module", autouse=True)
def measured():
    """Trace allocations for the whole file: to start it takes a while."""
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """Ask about one pair of responses, or some more."""
    monkeypatch.setenv("JUDGE_KEY", KEY)

    def asked(url, responses=("a", "b"), **settings):
        given = {"attempts": 2, "retry_delay": 0.0, "timeout": 30.0, "deadline": DEADLINE}
        oracle = judge(
            base_url=url,
            model="j",
            api_key_env="JUDGE_KEY",
            replies=str(tmp_path / "replies.jsonl"),
            **(given | settings),
        )
        prompt = Prompt("p", ({"role": "user", "content": "question"},))
        return checked(oracle.ask([prompt], [list(responses)]), (1, len(responses)))

    return asked


@pytest.mark.parametrize("how", TABLE)
def test_a_reply_that_misbehaves_is_a_counted_failure(how, ask, tmp_path, caplog, capfd):
    caplog.set_level(0)
    settings = {"style": "mt_bench"} if how == "many empty lists" else {}
    with serving(TABLE[how]) as (_, url):
        url = url.replace("http:", "https:") if how == "https without TLS" else url
        tracemalloc.reset_peak()
        start, before = time.monotonic(), tracemalloc.get_traced_memory()[0]
        if how.startswith(("401", "403", "404")):
            with pytest.raises(ConfigError, match=how[:3]) as error:
                ask(url, **settings)
            shown = "".join(traceback.format_exception(error.value))
            reason = str(error.value)
        else:
            verdict = ask(url, **settings)
            kept = drop_failed(verdict, max_failed_fraction=1.0)
            assert np.isnan(verdict.preference).all() and sum(kept.reasons.values()) == 1
            shown = reason = verdict.failed[0].reason
        took, peak = time.monotonic() - start, tracemalloc.get_traced_memory()[1]
    assert took < 10 and (peak - before) < 100e6  # without a deadline it would be 15 s and more
    assert not NAME_OF_PYTHON.search(reason) and reason.isprintable()
    seen = "".join([shown, caplog.text, *capfd.readouterr()])
    seen += "".join(file.read_text() for file in tmp_path.iterdir())
    assert [form for form in FORMS if form in seen] == []


def test_a_name_server_that_hangs_ends_at_the_deadline(ask, monkeypatch):
    ended = threading.Event()

    def slow(*_, **__):
        ended.wait(15.0)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    start = time.monotonic()
    assert "no whole reply in time" in ask("http://nowhere.invalid/v1").failed[0].reason
    took = time.monotonic() - start
    ended.set()
    assert took < 10


def test_replies_that_come_together_are_read_one_after_another(ask, monkeypatch):
    """A megabyte of JSON takes 25 in memory, so 8 of them at a time would be too much."""
    now = most = 0

    def slow(style, content):
        nonlocal now, most
        now += 1
        most = max(most, now)
        time.sleep(0.02)
        now -= 1
        return 0.5

    monkeypatch.setattr("ssppo_jax.oracles.judge._read", slow)
    with serving(says(reply("m"))) as (_, url):
        assert ask(url, "abc", deadline=9.0).failed == (None,)
    assert most == 1


def test_the_table_is_long_enough():
    assert len(TABLE) >= 40
