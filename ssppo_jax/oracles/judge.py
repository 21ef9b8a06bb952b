"""A language model behind an OpenAI-compatible HTTP endpoint (vLLM, SGLang, hosted) as pairwise
judge.

Every two responses to a prompt are shown in both orders, P(a > b) = (P_ab + 1 - P_ba) / 2, so a
judge that always favours the first place says exactly 0.5. What it cannot be brought to answer is a
failure, counted, never a number. Every reply is kept on disk under a hash of what was asked:
nothing is asked, or paid, twice, whatever is interrupted."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ssppo_jax.config import NonNegative
from ssppo_jax.errors import ConfigError
from ssppo_jax.files import default_cache
from ssppo_jax.oracles.judge_prompts import STYLES, Messages, messages_of, probability
from ssppo_jax.oracles.protocol import Oracle, symmetrise, with_retries
from ssppo_jax.oracles.replies import Replies, key_of
from ssppo_jax.types import Failed, Prompt, Verdict

LARGEST_REPLY = 4 << 20  # bytes
AT_ONCE = 8  # prompts a call: between calls a run may stop
IN_A_ROW = 10  # requests that fail, with none answered between them, before the rest is not asked


def judge(
    *,
    base_url: str = "http://localhost:8000/v1",
    model: str = "",
    style: str = "alpaca_eval",
    api_key_env: str = "OPENAI_API_KEY",
    logprobs: bool = True,
    temperature: NonNegative = 0.0,
    max_tokens: int = 0,
    concurrency: int = 8,
    attempts: int = 4,
    retry_delay: float = 1.0,
    timeout: float = 60.0,
    deadline: float = 300.0,
    replies: str = "",
) -> Oracle:
    """P(a beats b) by a judge that sees both orders; from token probabilities where offered, else
    from its words.

    Preferences [B,K,K], with the part `asymmetry` [B,K,K]: P_ab + P_ba - 1, above 0 where the first
    place is favoured. K responses cost K (K - 1) requests a prompt. A request that fails is tried
    again with growing, jittered waits (or as long as the server's Retry-After says); one that fails
    for good fails its prompt. When 10 in a row have failed, those still waiting are not asked.

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
        ConfigError: a setting out of range; when asked, a server that refuses the key or does not
          know the model.
    """
    _check_settings(locals())
    client = _Client(base_url, api_key_env, timeout)
    kept = Replies(Path(replies) if replies else _default_file(base_url, model))
    ask = with_retries(
        client.post,
        attempts=attempts,
        base_delay=retry_delay,
        deadline=deadline,
        rng=np.random.default_rng(),
    )
    breaker = _Breaker(ask)
    limit = max_tokens or (8 if style == "alpaca_eval" else 1024)

    def body(messages: Messages) -> dict[str, Any]:
        asked = {
            "model": model,
            "messages": messages,
            "temperature": temperature,
            "max_tokens": limit,
        }
        return asked | ({"logprobs": True, "top_logprobs": 5} if logprobs else {})

    def one(request: dict) -> float | Failed:
        known = kept.get(request)
        if known is not None:
            return known
        answer = breaker(request, lambda reply: _read(style, reply))
        if not isinstance(answer, Failed):
            kept.put(request, answer)
        return answer

    def oracle(prompts: list[Prompt], responses: list[list[str]]) -> Verdict:
        k = len(responses[0])
        orders = list(itertools.permutations(range(k), 2))
        tasks = [
            (p, group[i], group[j])
            for p, group in zip(prompts, responses, strict=True)
            for i, j in orders
        ]
        requests = [body(messages_of(STYLES[style], *task)) for task in tasks]
        keys = [key_of(request) for request in requests]
        different = dict(
            zip(keys, requests, strict=True)
        )  # equal responses give equal requests: asked once
        breaker.half_open()
        with ThreadPoolExecutor(concurrency) as pool:
            answers = dict(zip(different, pool.map(one, different.values()), strict=True))
        return _verdict([answers[key] for key in keys], orders, len(prompts), k)

    oracle.at_once = AT_ONCE
    return oracle


def _check_settings(given: Mapping[str, Any]) -> None:
    problems = []
    if not given["base_url"].startswith(("http://", "https://")):
        problems.append(f"base_url={given['base_url']!r} must begin with http:// or https://")
    if not given["model"]:
        problems.append(
            "model is empty; say which model the endpoint shall use, as in"
            " --config.oracle.model=NAME"
        )
    if given["style"] not in STYLES:
        problems.append(f"style={given['style']!r} must be one of {', '.join(STYLES)}")
    for name, least in (("concurrency", 1), ("attempts", 1), ("max_tokens", 0)):
        if given[name] < least:
            problems.append(f"{name}={given[name]!r} must be at least {least}")
    for name in ("timeout", "deadline"):
        if not 0 < given[name] < math.inf:
            problems.append(f"{name}={given[name]!r} must be above 0 seconds, and finite")
    for name in ("temperature", "retry_delay"):
        if not 0 <= given[name] < math.inf:
            problems.append(f"{name}={given[name]!r} must be 0 or more, and finite")
    if problems:
        raise ConfigError("\n".join(f"oracle judge: {problem}" for problem in problems))


def _default_file(base_url: str, model: str) -> Path:
    name = hashlib.sha256(f"{base_url}\n{model}".encode()).hexdigest()[:16]
    return default_cache() / "judge" / f"{name}.jsonl"


def _read(style: str, reply: dict[str, Any]) -> float:
    """P(the first is better) of a chat completion; raises on anything that is not a verdict."""
    choice = reply["choices"][0]
    text, tokens = choice["message"]["content"] or "", (choice.get("logprobs") or {}).get("content")
    found = probability(STYLES[style], text, tokens)
    if found is None or not 0 <= found <= 1:
        raise ValueError(f"no verdict in the judge's reply {text[-60:]!r}")
    return found


def _verdict(
    answers: list[float | Failed], orders: list[tuple[int, int]], b: int, k: int
) -> Verdict:
    """Preferences from P(first is better) in every order; a prompt fails with the reason of its
    first failure."""
    shown_first = np.full((b, k, k), 0.5)
    failed: list[Failed | None] = [None] * b
    for at, answer in enumerate(answers):
        row, (i, j) = at // len(orders), orders[at % len(orders)]
        if isinstance(answer, Failed):
            failed[row] = failed[row] or answer
        else:
            shown_first[row, i, j] = answer
    both = symmetrise(shown_first, shown_first.swapaxes(1, 2))
    for x in both:
        x[[f is not None for f in failed]] = np.nan
    return Verdict(both.preference, None, tuple(failed), {"asymmetry": both.asymmetry})


class _Breaker:
    """Asks, until so many requests in a row have failed that the endpoint must be taken for
    broken."""

    def __init__(self, ask):
        self.ask, self.lock, self.failures = ask, threading.Lock(), 0

    def half_open(self) -> None:
        """After a break, let one request find out whether the endpoint is back."""
        self.failures = min(self.failures, IN_A_ROW - 1)

    def __call__(self, request: dict, read) -> float | Failed:
        if self.failures >= IN_A_ROW:
            return Failed(f"not asked: {IN_A_ROW} requests in a row had failed")
        answer = self.ask(request, read)
        with self.lock:
            self.failures = self.failures + 1 if isinstance(answer, Failed) else 0
        return answer


class _Client:
    """One POST to the endpoint; every attempt within `timeout`, whatever the server does."""

    def __init__(self, base_url: str, api_key_env: str, timeout: float):
        self.url, self.api_key_env, self.timeout = (
            base_url.rstrip("/") + "/chat/completions",
            api_key_env,
            timeout,
        )
        self.local = threading.local()

    def post(self, request: dict, read) -> float | Failed:
        """What `read` makes of the reply. Raises on what another attempt may mend.

        Raises:
            ConfigError: the endpoint refuses the key or knows no such model: no attempt will mend
              that.
        """
        end = time.monotonic() + self.timeout
        with self._session().post(
            self.url, json=request, stream=True, timeout=self.timeout, allow_redirects=False
        ) as r:
            content = _body(r, end)
            if r.status_code in (401, 403, 404):
                raise ConfigError(
                    f"the judge at {self.url} says {r.status_code} ({_said(content)}); check"
                    " oracle.base_url, oracle.model and the key in the environment variable"
                    f" {self.api_key_env}"
                )
            if r.status_code in (400, 413, 422):
                return Failed(f"the judge refused the request ({r.status_code}): {_said(content)}")
            if r.status_code != 200:
                raise Busy(f"HTTP {r.status_code}", _seconds(r.headers.get("Retry-After")))
        return read(json.loads(content))

    def _session(self):
        if not hasattr(self.local, "session"):
            import requests

            self.local.session = requests.Session()
            self.local.session.auth = self._sign  # without one, ~/.netrc would be looked into
        return self.local.session

    def _sign(self, request):
        key = os.environ.get(self.api_key_env)
        if key:
            request.headers["Authorization"] = f"Bearer {key}"
        return request


class Busy(Exception):
    """The server asks to come back later."""

    def __init__(self, reason: str, retry_after: float):
        super().__init__(reason)
        self.retry_after = retry_after


def _body(response, end: float) -> bytes:
    """The reply's bytes, read within the time and size allowed."""
    content = b""
    for piece in response.iter_content(1 << 14):
        content += piece
        if time.monotonic() > end:
            raise TimeoutError("the reply did not end in time")
        if len(content) > LARGEST_REPLY:
            raise ValueError(f"the reply is larger than {LARGEST_REPLY} bytes")
    return content


def _said(content: bytes) -> str:
    """The server's own words, short."""
    try:
        message = json.loads(content)["error"]
        text = message["message"] if isinstance(message, dict) else str(message)
    except (ValueError, KeyError, TypeError):
        text = content.decode(errors="replace")
    return " ".join(text.split())[:200]


def _seconds(header: str | None) -> float:
    try:
        return max(0.0, float(header or 0))
    except ValueError:  # a date
        return 0.0


ORACLES = {"judge": judge}
