"""Responses to a file of prompts come out the same however often the command was stopped, and a
conversation streams what the sampler would have drawn."""

import dataclasses
import json

import pytest

from ssppo_jax import schema
from ssppo_jax.data.prepare import encode
from ssppo_jax.errors import ConfigError, Interrupted
from ssppo_jax.inference import chat, generate
from ssppo_jax.runtime import build_runtime, sampling_params
from ssppo_jax.types import FINISH_LENGTH, Prompt

SETTINGS = {
    "data.prompt_buckets": "256",
    "sampling.max_new_tokens": "4",
    "sampling.num_samples": "2",
    "sampling.batch_size": "8",
    "train.micro_batches": "1",
}


class Shared:
    """A runtime whose samplers are compiled once for all calls of this file."""

    def __init__(self, runtime):
        self.runtime, self.samplers = runtime, {}

    def __getattr__(self, name):
        return getattr(self.runtime, name)

    def make_sampler(self, **settings):
        key = repr(settings)
        if key not in self.samplers:
            self.samplers[key] = self.runtime.make_sampler(**settings)
        return self.samplers[key]


@pytest.fixture(scope="module")
def config():
    return schema.load("smoke", SETTINGS)


@pytest.fixture(scope="module")
def shared(config, own_cache):
    return Shared(build_runtime(config))


@pytest.fixture
def ours(shared, monkeypatch):
    def build(config):
        own = Shared(dataclasses.replace(shared.runtime, config=config))
        own.samplers = shared.samplers
        return own

    for room in (generate, chat):
        monkeypatch.setattr(room, "build_runtime", build)
    monkeypatch.setattr(generate, "CHUNK", 1)


@pytest.fixture
def prompts(tmp_path):
    """20 prompts, every other one a conversation, so three writes of 8 at most."""
    rows = [{"id": f"p{i}", "prompt": f"Say {i}."} for i in range(0, 20, 2)]
    for i in range(1, 20, 2):
        turns = [("user", "Hi"), ("assistant", "Hello."), ("user", f"Say {i}.")]
        messages = [{"role": role, "content": content} for role, content in turns]
        rows.append({"id": f"p{i}", "messages": messages})
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_stopped_command_continues_its_file_to_the_same_bytes(ours, config, prompts, tmp_path):
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    assert generate.respond_into(whole, config, path=prompts) == 40
    records = [json.loads(line) for line in whole.read_text().splitlines()]
    assert [r["prompt_id"] for r in records[:4]] == ["p0", "p0", "p2", "p2"]
    assert len(records) == 40 and records[-1]["prompt"] == "Say 19."
    asked = []

    def stopped():
        asked.append(1)
        return parts.is_file() and parts.stat().st_size > 0

    with pytest.raises(Interrupted):
        generate.respond_into(parts, config, path=prompts, stopped=stopped)
    assert asked and parts.read_bytes() == b"".join(whole.read_bytes().splitlines(True)[:16])
    with open(parts, "r+b") as file:
        file.truncate(parts.stat().st_size - 5)  # and torn by a kill
    generate.respond_into(parts, config, path=prompts)
    assert parts.read_bytes() == whole.read_bytes()
    generate.respond_into(parts, config, path=prompts)  # finished: nothing is added
    assert parts.read_bytes() == whole.read_bytes()


def test_a_file_of_other_settings_or_prompts_is_not_continued(ours, config, prompts, tmp_path):
    out = tmp_path / "out.jsonl"
    generate.respond_into(out, config, ["Hi"])
    before = out.read_bytes()
    other = schema.load("smoke", SETTINGS | {"sampling.top_k": "5"})
    with pytest.raises(ConfigError, match=r"made with other settings \(sampling.top_k\)"):
        generate.respond_into(out, other, ["Hi"])
    with pytest.raises(ConfigError, match=r"made with other settings \(prompts\)"):
        generate.respond_into(out, config, ["Ho"])
    (tmp_path / "out.jsonl.settings.json").unlink()
    with pytest.raises(ConfigError, match=r"is there and has no out.jsonl.settings.json"):
        generate.respond_into(out, config, ["Hi"])
    assert out.read_bytes() == before


# ---- chat


def test_a_conversation_streams_the_samplers_words_and_reads_them_again(ours, config, capsys):
    talk = chat.Conversation(config)
    pieces = list(talk.answer("Say hi."))
    assert len(pieces) > 1
    prompt = Prompt("turn-0", ({"role": "user", "content": "Say hi."},))
    encoded, _ = encode([prompt], talk.runtime.tokenizer, config.data)
    from ssppo_jax.rollout.sample import sample_prompts

    sampler = talk.runtime.make_sampler(num_samples=1, sampling=sampling_params(config), slots=8)
    key = talk.runtime.key(generate.EVALUATION, 3)
    wanted = sample_prompts(talk.runtime.runtime, sampler, talk.params, encoded, key)
    said = "".join(pieces)
    assert said == wanted.texts[0][0]
    assert talk.cut == (wanted.samples.finish[0, 0] == FINISH_LENGTH)
    list(talk.answer("And again?"))
    assert [turn["role"] for turn in talk.turns] == ["user", "assistant", "user", "assistant"]
    assert talk.turns[1]["content"] == said


def test_the_terminal_begins_anew_ends_and_says_when_it_is_too_long(ours, config, capsys):
    lines = iter(["Hi", "/new", "x" * 400, "/quit", "never read"])
    chat.chat(config, read=lambda prompt: next(lines))
    out = capsys.readouterr().out
    assert out.startswith(chat.HELP) and "begin another conversation with /new" in out
    assert next(lines) == "never read"
    lines = iter(["a \udce9", UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "bad byte"), "/quit"])

    def read(prompt):
        line = next(lines)
        if isinstance(line, Exception):
            raise line
        return line

    chat.chat(config, read=read)  # bytes that are not UTF-8, as two kinds of terminals give them
    out = capsys.readouterr().out
    assert "half of a surrogate pair" in out and "this line is not utf-8: bad byte" in out
    chat.chat(config, read=lambda prompt: (_ for _ in ()).throw(EOFError))
