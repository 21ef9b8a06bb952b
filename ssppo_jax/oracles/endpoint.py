"""Ask an OpenAI-compatible HTTP endpoint (vLLM, SGLang, hosted) until a reply can be read.

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
from typing import Any, NamedTuple, TypeVar

import anyio
import httpx2
from anyio.from_thread import start_blocking_portal
from anyio.lowlevel import checkpoint

from ssppo_jax.errors import ConfigError
from ssppo_jax.files import default_cache
from ssppo_jax.oracles import secret
from ssppo_jax.oracles.judge_prompts import NoVerdict
from ssppo_jax.types import Failed

PER_REPLY, PER_TOKEN = 1 << 20, 1 << 10  # bytes that a reply may have, and more for each token
OPTIONAL = ("temperature", "logprobs", "top_logprobs")  # what some endpoints refuse
NEWER = "max_completion_tokens"  # what some endpoints call max_tokens
IN_A_ROW = 10  # requests that fail, with none answered between them, before the rest is not asked
WRONG_SETTING, REFUSED = (401, 403, 404), (400, 413, 422)  # statuses that no other attempt mends

log = logging.getLogger(__name__)
T = TypeVar("T")


def address_rule(x: str) -> str | None:
    with contextlib.suppress(httpx2.InvalidURL):
        url = httpx2.URL(x)
        ok = url.scheme in ("http", "https") and url.host and (url.port or 80) < 1 << 16
        if ok and not (url.userinfo or url.query or url.fragment):
            return None
    return "an address that begins with http:// or https://, without a password, ? or #"


def variable_rule(x: str) -> str | None:
    ok = re.fullmatch(r"[A-Z_][A-Z0-9_]*|", x)
    return None if ok else "the name of an environment variable in capitals, not the key itself"


def default_file(base_url: str, model: str) -> Path:
    name = hashlib.sha256(f"{base_url}\n{model}".encode()).hexdigest()[:16]
    return default_cache() / "judge" / f"{name}.jsonl"


class HttpReply(NamedTuple):
    """A whole reply."""

    status: int
    retry_after: str  # the header
    content: bytes


Send = Callable[[bytes, float], HttpReply]  # a request's body, and the seconds that it may take


@dataclasses.dataclass
class Endpoint:
    """Asks the endpoint until a reply holds a verdict, or until it must be taken for broken."""

    url: str
    api_key_env: str
    concurrency: int
    attempts: int
    retry_delay: float
    timeout: float
    deadline: float
    largest: int  # bytes of a reply
    node: str = "oracle"  # of the config, for errors
    failures: int = 0  # in a row
    limit: str = "max_tokens"  # what the endpoint calls it
    left_out: set[str] = dataclasses.field(default_factory=set)  # of OPTIONAL, refused by it
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def key(self) -> str:
        """Return the API key, empty without one.

        Raises:
            ConfigError: it cannot stand in a header.
        """
        key = os.environ.get(self.api_key_env, "").strip()
        if not (key.isascii() and (key + "x").isprintable()):
            raise ConfigError(
                f"{self.node}: the environment variable {self.api_key_env} holds characters that"
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
                f"{self.node}: the proxy or the certificates that the environment names"
                " (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE, SSL_CERT_DIR) cannot be used"
            ) from None
        with start_blocking_portal() as portal, portal.wrap_async_context_manager(client):
            portal.call(_look_up_apart)
            yield functools.partial(portal.call, _exchange, client, self.url, self.largest)

    def half_open(self) -> None:
        """After a break, let one request find out whether the endpoint is back."""
        self.failures = min(self.failures, IN_A_ROW - 1)

    def ask(self, send: Send, request: dict[str, Any], read: Callable[[bytes], T]) -> T | Failed:
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

    def _tried(self, send: Send, request: dict[str, Any], read: Callable[[bytes], T]) -> T | Failed:
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

    def _sent(self, send: Send, request: dict[str, Any], end: float) -> HttpReply:
        """Return the reply to a request, sent again at once without what its refusal names."""
        for _ in range(1 + len(OPTIONAL) + 1):
            with self.lock:
                limit, left_out = self.limit, frozenset(self.left_out)
            reply = self._reply(send, _body(request, limit, left_out), end)
            if reply.status not in REFUSED or not self._learns(reply.content, limit, left_out):
                break
        if reply.status in WRONG_SETTING:
            raise ConfigError(
                f"the judge at {self.url} says {reply.status} ({self._said(reply.content)}); check"
                f" {self.node}.base_url, {self.node}.model and the key in the environment"
                f" variable {self.api_key_env}"
            )
        return reply

    def _learns(self, refusal: bytes, limit: str, left_out: frozenset[str]) -> bool:
        """Change what requests hold as a refusal says; return whether the refused one would now be
        another. Another thread may have learned the same meanwhile.

        Reasoning models of some endpoints take max_completion_tokens, and refuse a temperature or
        token probabilities by name, in quotes.
        """
        with self.lock:
            if limit != NEWER and NEWER.encode() in refusal:
                self.limit = NEWER
                return True
            named = {name for name in OPTIONAL if f"'{name}'".encode() in refusal}
            if "logprobs" in named:
                named.add("top_logprobs")  # it may not stand alone
            fresh = named - self.left_out
            self.left_out |= fresh
        for name in sorted(fresh):
            log.warning("%s refuses %s; it is asked without", self.url, name)
        return bool(named - left_out)

    def _reply(self, send: Send, body: bytes, end: float) -> HttpReply:
        """Return a whole reply; raise NoVerdict where none comes in time."""
        try:
            return send(body, min(self.timeout, end - time.monotonic()))
        except (TimeoutError, httpx2.TimeoutException):
            limits = (
                f"{self.node}.timeout {self.timeout:g} s, {self.node}.deadline {self.deadline:g} s"
            )
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


def _body(request: dict[str, Any], limit: str, left_out: frozenset[str]) -> bytes:
    """Return a request in ASCII, in which lone surrogates are escapes."""
    kept = {name: x for name, x in request.items() if name not in left_out}
    renamed = {limit if name == "max_tokens" else name: x for name, x in kept.items()}
    return json.dumps(renamed).encode()


async def _exchange(
    client: httpx2.AsyncClient, url: str, largest: int, body: bytes, seconds: float
) -> HttpReply:
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
    return HttpReply(response.status_code, header, bytes(content))


def _asked_wait(retry_after: str) -> float:
    """Return the seconds of a Retry-After header, 0 without a readable one."""
    if retry_after.isdecimal():
        return float(retry_after)
    try:
        when = email.utils.parsedate_to_datetime(retry_after).timestamp()
    except (ValueError, TypeError, LookupError, OverflowError):
        return 0.0
    return max(0.0, when - time.time())
