"""A language model behind an OpenAI-compatible HTTP endpoint (vLLM, SGLang, hosted) as pairwise
judge.

It sees every two responses in both orders, P(a > b) = (P_ab + 1 - P_ba) / 2, so a judge that always
favours the first place says exactly 0.5. Every reply is kept on disk under a hash of what was
asked: an interrupted run neither asks nor pays twice."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import InvalidHeader, MaxRetryError
from urllib3.util import Retry

from ssppo_jax.config import NonNegative, Positive, non_negative, one_of, positive
from ssppo_jax.errors import ConfigError
from ssppo_jax.files import default_cache
from ssppo_jax.oracles.judge_prompts import STYLES, messages_of, probability
from ssppo_jax.oracles.protocol import Oracle, first_failure, symmetrise
from ssppo_jax.oracles.store import KeyedStore
from ssppo_jax.types import Failed, Prompt, Verdict

LARGEST_REPLY = 4 << 20  # bytes
AT_ONCE = 8  # prompts a call: between calls a run may stop
IN_A_ROW = 10  # requests that fail, with none answered between them, before the rest is not asked
WRONG_SETTING, REFUSED = (401, 403, 404), (400, 413, 422)  # statuses that no other attempt mends


def _address(x: str) -> str | None:
    ok = x.startswith(("http://", "https://"))
    return None if ok else "an address that begins with http:// or https://"


def judge(
    *,
    base_url: Annotated[str, _address] = "http://localhost:8000/v1",
    model: str = "",
    style: Annotated[str, one_of(*STYLES)] = "alpaca_eval",
    api_key_env: str = "OPENAI_API_KEY",
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

    Args:
        base_url: of the endpoint, up to and with /v1.
        model: its name for the model.
        style: alpaca_eval or mt_bench (`judge_prompts`).
        api_key_env: the environment variable that holds the key; sent only if it is set, written
          nowhere.
        logprobs: ask for token probabilities; a server that does not know them answers without.
        temperature: of the judge's own sampling.
        max_tokens: of its reply; 0 takes 8 for alpaca_eval and 1024 for mt_bench.
        concurrency: requests under way at a time.
        attempts: of one request, at most.
        retry_delay: seconds before the second attempt, about; each further wait is twice as long.
        timeout: seconds for one attempt, from sending to the last byte.
        deadline: seconds after which no further attempt of a request begins.
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
    # urllib3 does not wait after a first failure: one counted beforehand makes it wait
    retry = Retry(attempts, backoff_factor=retry_delay / 2, backoff_jitter=retry_delay / 2)
    retry = retry.increment("POST", base_url)
    endpoint = _Endpoint(base_url, api_key_env, retry, timeout, deadline)
    endpoint.session.mount(base_url, HTTPAdapter(pool_maxsize=concurrency))
    file = replies or _default_file(base_url, model)
    kept = KeyedStore(file, lambda fields: float(fields["value"]))
    asked = {
        "model": model,
        "temperature": temperature,
        "max_tokens": max_tokens or (8 if style == "alpaca_eval" else 1024),
    } | ({"logprobs": True, "top_logprobs": 5} if logprobs else {})

    def one(key: str, request: dict[str, Any]) -> float | Failed:
        if key in kept.known:
            return kept.known[key]
        answer = endpoint.ask(request, lambda reply: _read(style, reply))
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
        with ThreadPoolExecutor(concurrency) as pool:
            found = pool.map(one, different.keys(), different.values())
            answers = dict(zip(different, found, strict=True))
        return _verdict([answers[key] for key in keys], len(prompts), len(responses[0]))

    return Oracle(ask, at_once=AT_ONCE)


def _default_file(base_url: str, model: str) -> Path:
    name = hashlib.sha256(f"{base_url}\n{model}".encode()).hexdigest()[:16]
    return default_cache() / "judge" / f"{name}.jsonl"


def _key(request: dict[str, Any]) -> str:
    """Return what the reply to a request is kept under."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def _read(style: str, reply: dict[str, Any]) -> float:
    """Return P(the first is better) of a chat completion; raise on anything that is no verdict."""
    choice = reply["choices"][0]
    text, tokens = choice["message"]["content"] or "", (choice.get("logprobs") or {}).get("content")
    found = probability(STYLES[style], text, tokens)
    if found is None or not 0 <= found <= 1:
        raise ValueError(f"no verdict in the judge's reply {text[-60:]!r}")
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


class _Endpoint:
    """Asks the endpoint until a reply holds a verdict, or until it must be taken for broken."""

    def __init__(
        self, base_url: str, api_key_env: str, retry: Retry, timeout: float, deadline: float
    ):
        self.url = base_url.rstrip("/") + "/chat/completions"
        self.api_key_env, self.timeout, self.deadline = api_key_env, timeout, deadline
        self.retry = retry  # counts attempts and says how long to wait before the next
        self.lock, self.failures = threading.Lock(), 0
        self.session = requests.Session()
        self.session.auth = self._sign  # without one, ~/.netrc would be looked into

    def _sign(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        key = os.environ.get(self.api_key_env)
        if key:
            request.headers["Authorization"] = f"Bearer {key}"
        return request

    def half_open(self) -> None:
        """After a break, let one request find out whether the endpoint is back."""
        self.failures = min(self.failures, IN_A_ROW - 1)

    def ask(self, request: dict[str, Any], read: Callable[[dict], float]) -> float | Failed:
        """Return what `read` makes of the reply, or why there is none.

        Raises:
            ConfigError: the endpoint refuses the key or knows no such model.
        """
        if self.failures >= IN_A_ROW:
            return Failed(f"not asked: {IN_A_ROW} requests in a row had failed")
        answer = self._tried(request, read)
        with self.lock:
            self.failures = self.failures + 1 if isinstance(answer, Failed) else 0
        return answer

    def _tried(self, request: dict[str, Any], read: Callable[[dict], float]) -> float | Failed:
        end, retry = time.monotonic() + self.deadline, self.retry
        while True:
            try:
                return self._attempt(request, read)
            except ConfigError:
                raise
            except Exception as error:  # of the network, the server, or a reply without a verdict
                reason = f"{type(error).__name__}: {_short(str(error), 120)}"
                response = getattr(error, "response", None)
            try:
                retry = retry.increment("POST", self.url)
            except MaxRetryError:
                return Failed(reason)
            wait = max(retry.get_backoff_time(), _asked_wait(retry, response))
            if time.monotonic() + wait > end:
                return Failed(f"deadline of {self.deadline:g} s passed: {reason}")
            time.sleep(wait)

    def _attempt(self, request: dict[str, Any], read: Callable[[dict], float]) -> float | Failed:
        end = time.monotonic() + self.timeout
        with self.session.post(
            self.url, json=request, stream=True, timeout=self.timeout, allow_redirects=False
        ) as response:
            content, status = _body(response, end), response.status_code
        if status in WRONG_SETTING:
            raise ConfigError(
                f"the judge at {self.url} says {status} ({_said(content)}); check oracle.base_url,"
                f" oracle.model and the key in the environment variable {self.api_key_env}"
            )
        if status in REFUSED:
            return Failed(f"the judge refused the request ({status}): {_said(content)}")
        if status != 200:
            raise requests.HTTPError(f"HTTP {status}", response=response)
        return read(json.loads(content))


def _body(response: requests.Response, end: float) -> bytes:
    """Return the reply's bytes, read within the time and size allowed."""
    content = b""
    for piece in response.iter_content(1 << 14):
        content += piece
        if time.monotonic() > end:
            raise TimeoutError("the reply did not end in time")
        if len(content) > LARGEST_REPLY:
            raise ValueError(f"the reply is larger than {LARGEST_REPLY} bytes")
    return content


def _asked_wait(retry: Retry, response: requests.Response | None) -> float:
    """Return the seconds of a Retry-After header, 0 without a readable one."""
    try:
        return 0.0 if response is None else retry.get_retry_after(response.raw) or 0.0
    except InvalidHeader:
        return 0.0


def _said(content: bytes) -> str:
    """Return the server's own words, shortened."""
    try:
        message = json.loads(content)["error"]
        text = message["message"] if isinstance(message, dict) else str(message)
    except (ValueError, KeyError, TypeError):
        text = content.decode(errors="replace")
    return _short(text, 200)


def _short(text: str, most: int) -> str:
    return " ".join(text.split())[:most]


ORACLES = {"judge": judge}
