"""A language model behind an OpenAI-compatible HTTP endpoint (vLLM, SGLang, hosted) as pairwise
judge.

It sees every two responses in both orders, P(a > b) = (P_ab + 1 - P_ba) / 2, so a judge that always
favours the first place says exactly 0.5. Every reply is kept on disk under a hash of what was
asked: an interrupted run neither asks nor pays twice.

An endpoint is not trusted. A reply that is late, large, compressed, cut or malformed is a failure,
and words of the endpoint that give the API key away are not shown."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import email.utils
import functools
import hashlib
import itertools
import json
import logging
import os
import random
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import anyio
import httpx2
import numpy as np
from anyio.from_thread import start_blocking_portal
from anyio.lowlevel import checkpoint

from ssppo_jax.config import Hidden, NonNegative, Positive, non_negative, one_of, positive
from ssppo_jax.errors import ConfigError
from ssppo_jax.files import default_cache
from ssppo_jax.oracles import secret
from ssppo_jax.oracles.judge_prompts import STYLES, NoVerdict, messages_of, probability
from ssppo_jax.oracles.protocol import Oracle, first_failure, symmetrise
from ssppo_jax.oracles.store import KeyedStore
from ssppo_jax.types import Failed, Prompt, Verdict

READING = 2  # counts up when replies are read otherwise; verdicts kept before are asked again
PER_REPLY, PER_TOKEN = 1 << 20, 1 << 10  # bytes that a reply may have, and more for each token
NEWER = "max_completion_tokens"  # what some endpoints call max_tokens
ENDED = ("", "stop", "stop_sequence", "end_turn", "eos", "eos_token")  # finish reasons
AT_ONCE = 8  # prompts a call: between calls a run may stop
IN_A_ROW = 10  # requests that fail, with none answered between them, before the rest is not asked
WRONG_SETTING, REFUSED = (401, 403, 404), (400, 413, 422)  # statuses that no other attempt mends


def _address(x: str) -> str | None:
    try:
        url = httpx2.URL(x)
        ok = url.scheme in ("http", "https") and bool(url.host) and (url.port or 80) < 1 << 16
        bare = not (url.userinfo or url.query or url.fragment)
    except httpx2.InvalidURL:
        ok = bare = False
    if ok and bare:
        return None
    return "an address that begins with http:// or https://, without a password, ? or #"


def _variable(x: str) -> str | None:
    ok = re.fullmatch(r"[A-Z_][A-Z0-9_]*|", x)
    return None if ok else "the name of an environment variable in capitals, not the key itself"


def judge(
    *,
    base_url: Annotated[str, Hidden(_address)] = "http://localhost:8000/v1",
    model: str = "",
    style: Annotated[str, one_of(*STYLES)] = "alpaca_eval",
    api_key_env: Annotated[str, Hidden(_variable)] = "OPENAI_API_KEY",
    logprobs: bool = True,
    temperature: NonNegative = 0.0,
    max_tokens: Annotated[int, non_negative] = 0,
    concurrency: Annotated[int, positive] = 8,
    attempts: Annotated[int, positive] = 4,
    retry_delay: NonNegative = 1.0,
    timeout: Positive = 60.0,
    deadline: Positive = 300.0,
    replies: str = "",
) -> Oracle:
    """Ask a judge for P(a beats b) in both orders: from token probabilities where offered, else
    from its words.

    Preferences [B,K,K], with the part `asymmetry` [B,K,K]: P_ab + P_ba - 1, above 0 where the first
    place is favoured. K responses cost K (K - 1) requests a prompt. A request that fails is tried
    again with growing, jittered waits, or after the server's Retry-After if that is longer. If all
    attempts fail, its prompt fails. After 10 such requests in a row the rest is not asked.

    A reply that the server cut, for length or another reason, holds no verdict, nor does thinking.
    An endpoint whose refusal names max_completion_tokens is asked again with that in place of
    max_tokens.

    Args:
        base_url: of the endpoint, up to and with /v1.
        model: its name for the model.
        style: alpaca_eval or mt_bench (`judge_prompts`).
        api_key_env: the environment variable that holds the key; sent only if it is set, written
          nowhere.
        logprobs: ask for token probabilities; a server that does not know them answers without.
        temperature: of the judge's own sampling.
        max_tokens: of its reply, which must end within them, thinking included; 0 takes 8 for
          alpaca_eval and 1024 for mt_bench.
        concurrency: requests under way at a time.
        attempts: of one request, at most.
        retry_delay: seconds before the second attempt, about; each further wait is twice as long.
        timeout: seconds for one attempt, from connecting to the last byte.
        deadline: seconds for all attempts of one request together.
        replies: the file in which replies are kept; empty: one per endpoint and model in
          $SSPPO_CACHE.

    Raises:
        ConfigError: no model is named; when asked, the server refuses the key or does not know the
          model.
    """
    if not model:
        raise ConfigError(
            "oracle judge: model is empty; say which model the endpoint shall use, as in"
            " --config.oracle.model=NAME"
        )
    most = max_tokens or (8 if style == "alpaca_eval" else 1024)
    endpoint = _Endpoint(
        url=base_url.rstrip("/") + "/chat/completions",
        api_key_env=api_key_env,
        concurrency=concurrency,
        attempts=attempts,
        retry_delay=retry_delay,
        timeout=timeout,
        deadline=deadline,
        largest=PER_REPLY + PER_TOKEN * most,
    )
    file = replies or _default_file(base_url, model)
    kept = KeyedStore(file, _kept)
    asked = {
        "model": model,
        "temperature": temperature,
        "max_tokens": most,
    } | ({"logprobs": True, "top_logprobs": 5} if logprobs else {})

    def one(send: Send, key: str, request: dict[str, Any]) -> float | Failed:
        if key in kept.known:
            return kept.known[key]
        answer = endpoint.ask(send, request, lambda reply: _read(style, reply))
        if not isinstance(answer, Failed):
            kept.add({key: {"value": answer}}, sync=False)  # a sync for each would hold up the rest
        return answer

    def ask(prompts: list[Prompt], responses: list[list[str]]) -> Verdict:
        bodies = [
            asked | {"messages": messages_of(STYLES[style], prompt, first, second)}
            for prompt, group in zip(prompts, responses, strict=True)
            for first, second in itertools.permutations(group, 2)
        ]
        keys = [_key(body) for body in bodies]
        different = dict(zip(keys, bodies, strict=True))  # equal requests are sent once
        endpoint.half_open()
        with endpoint.connected() as send, ThreadPoolExecutor(concurrency) as pool:
            found = pool.map(functools.partial(one, send), different.keys(), different.values())
            answers = dict(zip(different, found, strict=True))
        return _verdict([answers[key] for key in keys], len(prompts), len(responses[0]))

    return Oracle(ask, at_once=AT_ONCE)


def _default_file(base_url: str, model: str) -> Path:
    name = hashlib.sha256(f"{base_url}\n{model}".encode()).hexdigest()[:16]
    return default_cache() / "judge" / f"{name}.jsonl"


def _key(request: dict[str, Any]) -> str:
    """Return what the reply to a request is kept under."""
    content = json.dumps([READING, request], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _kept(fields: dict[str, Any]) -> float:
    """Return the verdict of a record; raise ValueError if it is none."""
    value = float(fields["value"])
    if not 0 <= value <= 1:
        raise ValueError("no verdict")
    return value


def _read(style: str, content: bytes) -> float:
    """Return P(the first is better) of a chat completion; raise NoVerdict where it holds none."""
    try:
        choice = json.loads(content)["choices"][0]
        text, ending = choice["message"]["content"], choice.get("finish_reason")
        logprobs = choice.get("logprobs") or {}
        tokens = logprobs.get("content")
    except (ValueError, RecursionError):
        raise NoVerdict("the judge's reply is not JSON") from None
    except (LookupError, TypeError, AttributeError):
        raise NoVerdict("the judge's reply is not a chat completion") from None
    if ending == "length":
        raise NoVerdict("the judge's reply was cut for its length; raise oracle.max_tokens")
    if ending is not None and ending not in ENDED:
        words = ending if isinstance(ending, str) else ""
        raise NoVerdict("the judge's reply ended before its time", words)
    if not isinstance(text, str):
        raise NoVerdict("the judge's reply holds no text")
    found = probability(STYLES[style], text, tokens)
    if found is None:
        raise NoVerdict("no verdict in the judge's reply", text[-60:])
    return found


def _verdict(answers: list[float | Failed], b: int, k: int) -> Verdict:
    """Return preferences from P(first is better) of every permutation. A prompt fails with the
    reason of its first failure."""
    n = k * (k - 1)
    failed = tuple(first_failure(answers[row * n : (row + 1) * n]) for row in range(b))
    numbers = [np.nan if isinstance(answer, Failed) else answer for answer in answers]
    shown_first = np.full((b, k, k), 0.5)
    shown_first[:, ~np.eye(k, dtype=bool)] = np.reshape(numbers, (b, n))  # row by row
    shown_first[[f is not None for f in failed]] = np.nan
    both = symmetrise(shown_first, shown_first.swapaxes(1, 2))
    return Verdict(both.preference, None, failed, {"asymmetry": both.asymmetry})


class _Reply(NamedTuple):
    """A whole reply."""

    status: int
    retry_after: str  # the header
    content: bytes


Send = Callable[[bytes, float], _Reply]  # a request's body, and the seconds that it may take


@dataclasses.dataclass
class _Endpoint:
    """Asks the endpoint until a reply holds a verdict, or until it must be taken for broken."""

    url: str
    api_key_env: str
    concurrency: int
    attempts: int
    retry_delay: float
    timeout: float
    deadline: float
    largest: int  # bytes of a reply
    failures: int = 0  # in a row
    limit: str = "max_tokens"  # what the endpoint calls it
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def key(self) -> str:
        """Return the API key, empty without one.

        Raises:
            ConfigError: it cannot stand in a header.
        """
        key = os.environ.get(self.api_key_env, "").strip()
        if not (key.isascii() and (key + "x").isprintable()):
            raise ConfigError(
                f"oracle judge: the environment variable {self.api_key_env} holds characters that"
                " no API key has, such as a line break; set it again"
            )
        return key

    @contextlib.contextmanager
    def connected(self) -> Iterator[Send]:
        """Keep connections open; yield the function that sends a request."""
        for library in ("httpx2", "httpcore2"):  # their logs show headers that may echo the key
            logging.getLogger(library).setLevel(logging.WARNING)
        key = self.key()
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        try:
            client = httpx2.AsyncClient(
                headers=headers | ({"Authorization": f"Bearer {key}"} if key else {}),
                verify=_trusted(),
                timeout=None,  # each request has one for the whole of it
                limits=httpx2.Limits(max_keepalive_connections=self.concurrency),
            )
        except (ImportError, ValueError, OSError, httpx2.InvalidURL):
            raise ConfigError(
                "oracle judge: the proxy or the certificates that the environment names"
                " (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE, SSL_CERT_DIR) cannot be used"
            ) from None
        with start_blocking_portal() as portal, portal.wrap_async_context_manager(client):
            portal.call(_look_up_apart)
            yield functools.partial(portal.call, _exchange, client, self.url, self.largest)

    def half_open(self) -> None:
        """After a break, let one request find out whether the endpoint is back."""
        self.failures = min(self.failures, IN_A_ROW - 1)

    def ask(
        self, send: Send, request: dict[str, Any], read: Callable[[bytes], float]
    ) -> float | Failed:
        """Return what `read` makes of the reply, or why there is none.

        Raises:
            ConfigError: the endpoint refuses the key or knows no such model.
        """
        if self.failures >= IN_A_ROW:
            return Failed(f"not asked: {IN_A_ROW} requests in a row had failed")
        answer = self._tried(send, request, read)
        with self.lock:
            self.failures = self.failures + 1 if isinstance(answer, Failed) else 0
        return answer

    def _tried(
        self, send: Send, request: dict[str, Any], read: Callable[[bytes], float]
    ) -> float | Failed:
        end = time.monotonic() + self.deadline
        for attempt in itertools.count():
            asked_wait = 0.0
            try:
                reply = self._sent(send, request, end)
                if reply.status in REFUSED:
                    words = self._said(reply.content)
                    return Failed(f"the judge refused the request ({reply.status}): {words}")
                asked_wait = _asked_wait(reply.retry_after)
                if reply.status != 200:
                    raise NoVerdict(f"HTTP {reply.status}")
                with self.lock:  # one at a time: JSON takes 25 times the memory of its text
                    return read(reply.content)
            except NoVerdict as error:
                reason = f"{error}: {self._shown(error.words)}" if error.words else str(error)
            if attempt + 1 == self.attempts:
                return Failed(reason)
            jitter = random.random() / 2
            wait = max(self.retry_delay * (2 ** min(attempt, 10) + jitter), asked_wait)
            if time.monotonic() + wait > end:
                return Failed(f"deadline of {self.deadline:g} s passed: {reason}")
            time.sleep(wait)
        raise AssertionError  # there is at least one attempt

    def _sent(self, send: Send, request: dict[str, Any], end: float) -> _Reply:
        """Return the reply to a request, sent again at once if the limit's name was refused."""
        limit = self.limit
        reply = self._reply(send, _body(request, limit), end)
        if reply.status in REFUSED and limit != NEWER and NEWER.encode() in reply.content:
            self.limit = NEWER
            reply = self._reply(send, _body(request, NEWER), end)
        if reply.status in WRONG_SETTING:
            raise ConfigError(
                f"the judge at {self.url} says {reply.status} ({self._said(reply.content)}); check"
                " oracle.base_url, oracle.model and the key in the environment variable"
                f" {self.api_key_env}"
            )
        return reply

    def _reply(self, send: Send, body: bytes, end: float) -> _Reply:
        """Return a whole reply; raise NoVerdict where none comes in time."""
        try:
            return send(body, min(self.timeout, end - time.monotonic()))
        except (TimeoutError, httpx2.TimeoutException):
            limits = f"oracle.timeout {self.timeout:g} s, oracle.deadline {self.deadline:g} s"
            raise NoVerdict(f"no whole reply in time ({limits})") from None
        except httpx2.ConnectError as error:
            raise NoVerdict("no connection to the judge", str(error)) from None
        except httpx2.RemoteProtocolError:
            raise NoVerdict("the judge's reply broke off, or is not HTTP") from None
        except NoVerdict:
            raise
        except Exception:  # what else the libraries raise on a broken reply
            raise NoVerdict("the connection to the judge broke") from None

    def _said(self, content: bytes) -> str:
        """Return the server's own words, shortened."""
        try:
            with self.lock:
                message = json.loads(content)["error"]
            text = str(message["message"] if isinstance(message, dict) else message)
        except (ValueError, LookupError, TypeError, RecursionError):
            text = content.decode(errors="replace")
        return self._shown(text)

    def _shown(self, words: str) -> str:
        """Return words that are not ours, shortened; none that give the key away."""
        plain = "".join(c if c.isprintable() else " " for c in words[:1000])
        short = " ".join(plain.split())[:200]
        hidden = secret.holds(short, self.key())
        return "its words are left out, because they hold the API key" if hidden else short


@functools.cache
def _trusted() -> ssl.SSLContext:
    """Return the certificates that are trusted; reading them takes a tenth of a second."""
    return httpx2.create_ssl_context()


class _NoWait(ThreadPoolExecutor):
    """Ends without its threads: one may wait for a name server that does not answer."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait=False, cancel_futures=cancel_futures)


async def _look_up_apart() -> None:
    """Let the event loop, when it closes, not wait for the threads that look up names."""
    asyncio.get_running_loop().set_default_executor(_NoWait())


def _body(request: dict[str, Any], limit: str) -> bytes:
    """Return a request in ASCII, in which lone surrogates are escapes."""
    renamed = {limit if name == "max_tokens" else name: x for name, x in request.items()}
    return json.dumps(renamed).encode()


async def _exchange(
    client: httpx2.AsyncClient, url: str, largest: int, body: bytes, seconds: float
) -> _Reply:
    """Return the reply to a request, if it is whole in so many seconds: with connecting, sending,
    the headers and the last byte.

    Raises:
        TimeoutError: it is not.
        NoVerdict: it is larger than `largest` bytes, or compressed.
    """
    content = bytearray()
    with anyio.fail_after(seconds):
        async with client.stream("POST", url, content=body) as response:
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise NoVerdict("the judge's reply is compressed, which was not asked for")
            async for piece in response.aiter_raw():
                content += piece
                if len(content) > largest:
                    raise NoVerdict(f"the judge's reply is larger than {largest} bytes")
                await checkpoint()  # time may pass over the pieces of one read
            header = response.headers.get("Retry-After", "")
    return _Reply(response.status_code, header, bytes(content))


def _asked_wait(retry_after: str) -> float:
    """Return the seconds of a Retry-After header, 0 without a readable one."""
    if retry_after.isdecimal():
        return float(retry_after)
    try:
        when = email.utils.parsedate_to_datetime(retry_after).timestamp()
    except (ValueError, TypeError, LookupError, OverflowError):
        return 0.0
    return max(0.0, when - time.time())


ORACLES = {"judge": judge}
