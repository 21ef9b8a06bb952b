"""Answer a benchmark's questions by sampling from a model; what is answered is kept on disk."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from ssppo_jax.benchmark.contract import Benchmark, Question, digest_of
from ssppo_jax.data import EncodedPrompt, addresses
from ssppo_jax.data.chat import encode_chat, encode_text
from ssppo_jax.errors import ConfigError, DataError
from ssppo_jax.files import file_digest
from ssppo_jax.oracles.store import KeyedStore
from ssppo_jax.rollout.sample import sample_prompts
from ssppo_jax.runtime import EVALUATION, Runtime, build_runtime, sampling_params
from ssppo_jax.types import FINISH_NAMES, Failed, Prompt, PyTree, Samples
from ssppo_jax.weights import hf
from ssppo_jax.weights.source import resolve

log = logging.getLogger(__name__)

STREAM = 3  # of random keys; evaluations have 0, 1 and 2
WEIGHED = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt")
SHORTEST = 32  # slots of the narrowest prompt


class Answer(NamedTuple):
    """A sampled answer: its text, its tokens counted, and why it ended."""

    text: str
    tokens: int
    finish: str  # eos, length or stop


class Model:
    """A model that is loaded when the first question needs it."""

    def __init__(self, config: ConfigDict):
        self.config = config
        self.folder = resolve(config.model.source)
        self._samplers: dict[float, Any] = {}

    @functools.cached_property
    def digest(self) -> str:
        """Return the SHA-256 of the model's weights, settings and tokenizer files."""
        files = sorted({f for pattern in WEIGHED for f in self.folder.glob(pattern)})
        every = hashlib.sha256()
        for file in files:
            every.update(f"{file.name} {file_digest(file)}\n".encode())
        return every.hexdigest()

    @functools.cached_property
    def runtime(self) -> Runtime:
        """Build mesh, tokenizer and model; what the model can read bounds the prompts."""
        config = self.config
        room = hf.read_arch(self.folder).reach - config.sampling.max_new_tokens
        if room < 1:
            raise ConfigError(
                f"sampling.max_new_tokens={config.sampling.max_new_tokens} leaves no room for a"
                f" question in the {room + config.sampling.max_new_tokens} positions of"
                f" {config.model.source}; lower it"
            )
        config.data.max_prompt_length = min(room, config.data.max_prompt_length)
        runtime = build_runtime(config)
        shape = runtime.sampling_mesh.shape
        config.sampling.batch_size += -config.sampling.batch_size % (shape["data"] * shape["fsdp"])
        return runtime

    @functools.cached_property
    def params(self) -> PyTree:
        return self.runtime.load_params()

    def sampler(self, temperature: float) -> Any:
        if temperature not in self._samplers:
            sampling = sampling_params(self.config, temperature=temperature)
            made = self.runtime.make_sampler(num_samples=1, sampling=sampling)
            self._samplers[temperature] = made
        return self._samplers[temperature]


def open_answers(path: Path) -> KeyedStore[Answer]:
    """Open the file of answers; each line is one turn of one question."""
    return KeyedStore(path, lambda f: Answer(str(f["text"]), int(f["tokens"]), str(f["finish"])))


def messages_of(question: Question, answers: Sequence[str]) -> list[dict]:
    """Return the chat up to the turn that follows so many answers."""
    chat = [*question.before]
    for turn, answer in zip(question.turns, answers, strict=False):
        chat += [{"role": "user", "content": turn}, {"role": "assistant", "content": answer}]
    return [*chat, {"role": "user", "content": question.turns[len(answers)]}]


def key_of(question: Question, answers: Sequence[str]) -> str:
    """Return what the answer to the next turn is kept under."""
    return digest_of([question.id, messages_of(question, answers)])


def known_answers(question: Question, store: KeyedStore[Answer]) -> list[Answer]:
    """Return the answers to a question that the store holds, from the first turn on."""
    found: list[Answer] = []
    while len(found) < len(question.turns):
        answer = store.known.get(key_of(question, [a.text for a in found]))
        if answer is None:
            break
        found.append(answer)
    return found


def answer_all(
    model: Model, benchmark: Benchmark, questions: Sequence[Question], store: KeyedStore[Answer]
) -> list[list[Answer] | Failed]:
    """Answer every turn of every question that the store does not hold.

    Each answer is stored when its batch ends, so that a killed call is continued. Tokens do not
    depend on batches, so a continued call gives the same ones. A question whose conversation
    outgrows the model's positions fails.
    """
    failed: dict[str, Failed] = {}
    for turn in range(max((len(q.turns) for q in questions), default=0)):
        waiting: dict[float, list[tuple[Question, list[str]]]] = {}
        for question in questions:
            texts = [answer.text for answer in known_answers(question, store)]
            if len(texts) == turn < len(question.turns) and question.id not in failed:
                default = model.config.sampling.temperature
                heat = default if question.temperature is None else question.temperature
                waiting.setdefault(heat, []).append((question, texts))
        for heat, group in waiting.items():
            failed |= _answer_turn(model, benchmark, group, turn, heat, store)
    return [failed.get(q.id) or known_answers(q, store) for q in questions]


def _answer_turn(
    model: Model,
    benchmark: Benchmark,
    group: list[tuple[Question, list[str]]],
    turn: int,
    temperature: float,
    store: KeyedStore[Answer],
) -> dict[str, Failed]:
    """Sample the answers to one turn; return the questions that could not be asked."""
    runtime, failed = model.runtime, dict[str, Failed]()
    limit = model.config.data.max_prompt_length
    spots = addresses(f"{question.id}/{turn}" for question, _ in group)
    encoded, keys = [], {}
    for question, texts in group:
        chat = messages_of(question, texts)
        try:
            ids = _encode(runtime, chat, benchmark.chat)
        except DataError as error:
            failed[question.id] = Failed(f"turn {turn + 1} cannot be asked: {error}")
            continue
        if len(ids) > limit:
            failed[question.id] = Failed(f"turn {turn + 1} is longer than {limit} tokens")
            log.warning("question %s: %d tokens", question.id, len(ids))
            continue
        name = f"{question.id}/{turn}"
        encoded.append(EncodedPrompt(Prompt(name, tuple(chat)), ids, spots[name]))
        keys[name] = key_of(question, texts)
    if not encoded:
        return failed
    runtime.config.data.prompt_buckets = widths([len(e.tokens) for e in encoded])

    def done(batch: list[EncodedPrompt], samples: Samples, texts: list[list[str]]) -> None:
        rows = {}
        for i, (e, (text,)) in enumerate(zip(batch, texts, strict=True)):
            text, finish = said_before(text, benchmark.stop), FINISH_NAMES[samples.finish[i, 0]]
            if len(text) < len(texts[i][0]):
                finish = "stop"
            rows[keys[e.prompt.id]] = {
                "question": e.prompt.id,
                "text": text,
                "tokens": int(samples.length[i, 0]),
                "finish": finish,
            }
        store.add(rows)

    sample_prompts(
        runtime,
        model.sampler(temperature),
        model.params,
        encoded,
        jax.random.fold_in(runtime.key(EVALUATION, STREAM), turn),
        done=done,
        what=f"answer turn {turn + 1}" if turn else "answer",
    )
    return failed


def said_before(text: str, stop: Sequence[str]) -> str:
    """Return a text up to the first of the stop texts."""
    ends = [text.find(mark) for mark in stop]
    return text[: min((end for end in ends if end >= 0), default=len(text))]


def _encode(runtime: Runtime, chat: list[dict], templated: bool) -> Any:
    data = runtime.config.data
    if templated:
        system = [{"role": "system", "content": data.system_prompt}] if data.system_prompt else []
        turns = [*system, *chat]
        return encode_chat(runtime.tokenizer, turns, template=data.template, date=data.date)
    return encode_text(runtime.tokenizer, "".join(turn["content"] for turn in chat))


def widths(lengths: Sequence[int]) -> tuple[int, ...]:
    """Return prompt slots from the shortest question to the longest, each twice the one before."""
    widths = [SHORTEST]
    while widths[-1] < max(lengths):
        widths.append(2 * widths[-1])
    return tuple(width for width in widths if width >= min(lengths))
