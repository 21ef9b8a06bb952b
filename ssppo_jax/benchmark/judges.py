"""Judges of answers: an OpenAI-compatible endpoint, or any model folder in this process.

`JUDGES` maps a name to a factory of `Judge`; its keywords are the keys `judge.*`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from ml_collections import ConfigDict

from ssppo_jax.benchmark.answers import Model
from ssppo_jax.benchmark.contract import Reply, Request, digest_of
from ssppo_jax.benchmark.likelihood import Likelihood
from ssppo_jax.config import Hidden, NonNegative, Positive, bind, positive
from ssppo_jax.data.chat import encode_chat, encode_text
from ssppo_jax.distributed.progress import bar
from ssppo_jax.errors import ConfigError, DataError
from ssppo_jax.oracles.endpoint import (
    PER_REPLY,
    PER_TOKEN,
    Endpoint,
    address_rule,
    variable_rule,
)
from ssppo_jax.oracles.judge_prompts import NoVerdict, completion
from ssppo_jax.oracles.store import KeyedStore
from ssppo_jax.runtime import with_source
from ssppo_jax.types import Failed

Add = Callable[[Request, Reply], None]  # keeps a reply


@dataclasses.dataclass(frozen=True)
class Judge:
    """Answer requests.

    Attributes:
        ask: answers requests; it calls `add` for every reply as it comes.
        identity: what a result says of the judge, and what a kept reply belongs to.
        paid: replies cost money; a dry run says so.
    """

    ask: Callable[[Sequence[Request], Add], list[Reply | Failed]]
    identity: dict[str, Any]
    paid: bool = True


def endpoint(
    *,
    base_url: Annotated[str, Hidden(address_rule)] = "http://localhost:8000/v1",
    model: str = "",
    version: str = "",
    api_key_env: Annotated[str, Hidden(variable_rule)] = "OPENAI_API_KEY",
    concurrency: Annotated[int, positive] = 8,
    attempts: Annotated[int, positive] = 4,
    retry_delay: NonNegative = 1.0,
    timeout: Positive = 120.0,
    deadline: Positive = 600.0,
) -> Callable[[ConfigDict, str], Judge]:
    """Ask a model behind an OpenAI-compatible HTTP endpoint (vLLM, SGLang, hosted).

    An endpoint whose refusal names max_completion_tokens is asked again with that in place of
    max_tokens. One that refuses a temperature or token probabilities by name is asked without.

    Args:
        base_url: of the endpoint, up to and with /v1.
        model: its name for the model.
        version: of the model, where the name does not say it; a result names it.
        api_key_env: the environment variable that holds the key; sent only if it is set, written
          nowhere.
        concurrency: requests under way at a time.
        attempts: of one request, at most.
        retry_delay: seconds before the second attempt, about; each further wait is twice as long.
        timeout: seconds for one attempt, from connecting to the last byte.
        deadline: seconds for all attempts of one request together.
    """

    def make(config: ConfigDict, benchmark: str) -> Judge:
        if not model:
            raise ConfigError(
                f"benchmark {benchmark} is graded by a judge and none is named; give"
                " --judge=MODEL with --config.judge.base_url=ADDRESS/v1, or a model of your own"
                " in this process: --judge=local:SOURCE"
            )
        server = Endpoint(
            url=base_url.rstrip("/") + "/chat/completions",
            api_key_env=api_key_env,
            concurrency=concurrency,
            attempts=attempts,
            retry_delay=retry_delay,
            timeout=timeout,
            deadline=deadline,
            largest=PER_REPLY + PER_TOKEN * (1 << 16),
            node="judge",
        )

        def ask(requests: Sequence[Request], add: Add) -> list[Reply | Failed]:
            server.half_open()
            with (
                bar(len(requests), what="judge", unit="requests") as progress,
                server.connected() as send,
                ThreadPoolExecutor(concurrency) as pool,
            ):

                def one(request: Request) -> Reply | Failed:
                    answer = server.ask(send, body_of(request, model), _read)
                    if not isinstance(answer, Failed):
                        add(request, answer)
                    progress.update()
                    return answer

                return list(pool.map(one, requests))

        return Judge(ask, {"kind": "endpoint", "model": model, "version": version})

    return make


def body_of(request: Request, model: str) -> dict[str, Any]:
    """Return a request as the endpoint reads it."""
    body: dict[str, Any] = {
        "model": model,
        "messages": request.messages,
        "temperature": request.temperature,
        "max_tokens": request.max_tokens,
    }
    return body | ({"logprobs": True, "top_logprobs": 5} if request.logprobs else {})


def _read(content: bytes) -> Reply:
    """Return the text of a chat completion; raise NoVerdict where there is none."""
    text, tokens, _ = completion(content)
    if not isinstance(text, str) or not text.strip():
        raise NoVerdict("the judge's reply holds no text; a judge that thinks needs more tokens")
    return Reply(text, tokens)


def local(
    *, source: str = "", batch_size: Annotated[int, positive] = 2
) -> Callable[[ConfigDict, str], Judge]:
    """Let a model of this process judge, by the probabilities of the verdicts.

    A request is the model's prompt, in its own chat template. The reply is the likeliest of the
    verdicts that the benchmark knows, and holds all their probabilities, made to sum to 1. No
    explanation is sampled, so this is not the protocol of a published number.

    Args:
        source: anything that `model.source` may be.
        batch_size: requests read at a time.
    """

    def make(config: ConfigDict, benchmark: str) -> Judge:
        if not source:
            raise ConfigError(
                "judge local needs a model: --judge=local:embedded:smollm2, or local:FOLDER"
            )
        own = with_source(config, source)
        own.sampling.max_new_tokens = 16  # nothing is sampled; this leaves the room of a verdict
        model = Model(own)

        @functools.cache
        def likelihood() -> Likelihood:
            return Likelihood(model.runtime, model.params, batch_size=batch_size)

        def ask(requests: Sequence[Request], add: Add) -> list[Reply | Failed]:
            tokenizer, reach = model.runtime.tokenizer, model.runtime.arch.reach
            contexts, ends, rows, found = [], [], [], dict[int, Reply | Failed]()
            for i, request in enumerate(requests):
                try:
                    context = encode_chat(tokenizer, request.messages, date=own.data.date)
                except DataError as error:
                    found[i] = Failed(str(error))
                    continue
                verdicts = [encode_text(tokenizer, v).tolist() for v in request.verdicts]
                if len(context) + max(map(len, verdicts)) > reach:
                    found[i] = Failed(f"the judge reads {reach} tokens; the request is longer")
                    continue
                contexts.append(context.tolist())
                ends.append(verdicts)
                rows.append(i)

            def done(index: int, scores: list[tuple[float, bool]]) -> None:
                request = requests[rows[index]]
                logp = np.array([score for score, _ in scores], np.float64)
                chance = np.exp(logp - np.logaddexp.reduce(logp))
                named = dict(zip(request.verdicts, chance.tolist(), strict=True))
                reply = Reply(request.verdicts[int(chance.argmax())], None, named)
                add(request, reply)
                found[rows[index]] = reply

            likelihood().score(contexts, ends, done, what="judge")
            return [found[i] for i in range(len(requests))]

        identity = {"kind": "local", "model": source, "version": model.digest[:16]}
        return Judge(ask, identity, paid=False)

    return make


JUDGES: dict[str, Callable[..., Any]] = {"endpoint": endpoint, "local": local}


def build_judge(config: ConfigDict) -> Judge:
    """Return the configured judge.

    Raises:
        ConfigError: none is named.
    """
    return bind(JUDGES, config.judge)()(config, config.benchmark.name)


class Replies:
    """The replies of a judge, kept on disk under what was asked, so that none is paid for twice."""

    def __init__(self, path: Path, judge: Judge):
        self.judge = judge
        self.store: KeyedStore[Reply] = KeyedStore(path, _kept)
        self.failed: dict[str, Failed] = {}

    def key(self, request: Request) -> str:
        return digest_of([self.judge.identity, request])

    def missing(self, requests: Sequence[Request]) -> list[Request]:
        """Return the requests without a reply, equal ones once."""
        keyed = {self.key(request): request for request in requests}
        return [request for key, request in keyed.items() if key not in self.store.known]

    def ask(self, requests: Sequence[Request]) -> None:
        """Ask what has no reply yet. Replies are kept on disk as they come, failures in memory."""
        missing = self.missing(requests)
        if not missing:
            return

        def add(request: Request, reply: Reply) -> None:
            self.store.add({self.key(request): reply._asdict()}, sync=False)

        for request, answer in zip(missing, self.judge.ask(missing, add), strict=True):
            if isinstance(answer, Failed):
                self.failed[self.key(request)] = answer

    def to(self, requests: Sequence[Request]) -> list[Reply] | Failed:
        """Return the replies to requests that were asked, or the first failure."""
        keys = [self.key(request) for request in requests]
        failed = next((self.failed[key] for key in keys if key in self.failed), None)
        return failed or [self.store.known[key] for key in keys]


def _kept(fields: dict[str, Any]) -> Reply:
    if not isinstance(fields["text"], str):
        raise ValueError("no reply")
    return Reply(fields["text"], fields.get("tokens"), fields.get("chances"))
