"""A language model behind an OpenAI-compatible HTTP endpoint (vLLM, SGLang, hosted) as pairwise
judge.

It sees every two responses in both orders, P(a > b) = (P_ab + 1 - P_ba) / 2, so a judge that always
favours the first place says exactly 0.5. Every reply is kept on disk under a hash of what was
asked: an interrupted run neither asks nor pays twice. `endpoint` sends the requests."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import numpy as np

from ssppo_jax.config import Hidden, NonNegative, Positive, non_negative, one_of, positive
from ssppo_jax.errors import ConfigError
from ssppo_jax.oracles.endpoint import (
    PER_REPLY,
    PER_TOKEN,
    Endpoint,
    Send,
    address_rule,
    default_file,
    variable_rule,
)
from ssppo_jax.oracles.judge_prompts import (
    STYLES,
    NoVerdict,
    completion,
    messages_of,
    probability,
)
from ssppo_jax.oracles.protocol import Oracle, first_failure, symmetrise
from ssppo_jax.oracles.store import KeyedStore
from ssppo_jax.types import Failed, Prompt, Verdict

READING = 2  # counts up when replies are read otherwise; verdicts kept before are asked again
ENDED = ("", "stop", "stop_sequence", "end_turn", "eos", "eos_token")  # finish reasons
AT_ONCE = 8  # prompts a call: between calls a run may stop


def judge(
    *,
    base_url: Annotated[str, Hidden(address_rule)] = "http://localhost:8000/v1",
    model: str = "",
    style: Annotated[str, one_of(*STYLES)] = "alpaca_eval",
    api_key_env: Annotated[str, Hidden(variable_rule)] = "OPENAI_API_KEY",
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
    endpoint = Endpoint(
        url=base_url.rstrip("/") + "/chat/completions",
        api_key_env=api_key_env,
        concurrency=concurrency,
        attempts=attempts,
        retry_delay=retry_delay,
        timeout=timeout,
        deadline=deadline,
        largest=PER_REPLY + PER_TOKEN * most,
    )
    file = replies or default_file(base_url, model)
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
    text, tokens, ending = completion(content)
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


ORACLES = {"judge": judge}
