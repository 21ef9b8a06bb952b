"""Sample responses to prompts, into a file that an interrupted command continues."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from ssppo_jax import files
from ssppo_jax.config import flatten
from ssppo_jax.data import EncodedPrompt, fingerprint
from ssppo_jax.data.prepare import encode, prepare_heldout
from ssppo_jax.data.sources import check_prompt, jsonl
from ssppo_jax.errors import ConfigError, DataError
from ssppo_jax.rollout.sample import sample_prompts
from ssppo_jax.runs.folder import history_of
from ssppo_jax.runtime import EVALUATION, Runtime, build_runtime, sampling_params
from ssppo_jax.types import FINISH_NAMES, Prompt

log = logging.getLogger(__name__)

CHUNK = 64  # prompts between two writes, at least; an interruption loses at most so many
# Keys that responses depend on, and those among them that change no token.
DECIDING = ("seed", "model.", "sampling.", "data.", "lora.")
BATCHING = ("sampling.batch_size", "sampling.refill", "sampling.mesh.")


def respond(config: ConfigDict, texts: Sequence[str] | None = None, path: str = "") -> list[dict]:
    """Sample `sampling.num_samples` responses to each text, each prompt of a file, or each held-out
    prompt.

    Each record has ids, raw log-probs and the finish reason.

    Args:
        config: names the model, the sampling and, without texts and path, the data.
        texts: prompts.
        path: a JSONL file of prompts, as data source `jsonl` reads it.
    """
    runtime = build_runtime(config)
    encoded = _prompts(config, runtime, texts, path)
    return [row for rows in _answers(runtime, encoded, lambda: False) for row in rows]


def respond_into(
    output: Path,
    config: ConfigDict,
    texts: Sequence[str] | None = None,
    path: str = "",
    *,
    stopped: Callable[[], bool] = lambda: False,
) -> int:
    """Write the records of `respond` to a JSONL file; return how many responses it holds.

    They are added some prompts at a time. A file that an interrupted call left is continued: a
    response depends on its prompt, the settings and the seed, not on what was sampled with it. The
    settings stand beside it, in `output`.settings.json.

    Raises:
        ConfigError: the file is there with other settings or prompts, or without any.
        Interrupted: `stopped()` became true; the same call continues.
    """
    runtime = build_runtime(config)
    encoded = _prompts(config, runtime, texts, path)
    done = _claimed(output, config, encoded)
    left = [e for e in encoded if e.prompt.id not in done]
    if done:
        log.info("%s: %d of %d prompts are answered", output, len(done), len(encoded))
    if not output.is_file():
        files.write_lines(output, ())
    for rows in _answers(runtime, left, stopped):
        files.append(output, "".join(files.to_json(row) + "\n" for row in rows).encode())
    return len(encoded) * config.sampling.num_samples


def _prompts(
    config: ConfigDict, runtime: Runtime, texts: Sequence[str] | None, path: str
) -> list[EncodedPrompt]:
    if texts or path:
        turns = [({"role": "user", "content": text},) for text in texts or ()]
        given = [Prompt(f"prompt-{i}", messages) for i, messages in enumerate(turns)]
        for prompt in given:
            try:
                check_prompt(prompt)
            except ValueError as error:
                raise DataError(f"--prompt, {prompt.id}: {error}") from None
        field = config.data.source.get("prompt_field", "")  # where it is a key: of source jsonl
        given += jsonl(path=path, prompt_field=field) if path else []
        twice = [name for name, n in Counter(p.id for p in given).items() if n > 1]
        if twice:
            raise DataError(f"{path}: the id {twice[0]!r} is that of a --prompt; give it another")
        return encode(given, runtime.tokenizer, config.data)[0]
    history = history_of(config.model.source)
    (encoded,), _ = prepare_heldout(
        config.data, [runtime.tokenizer], seed=config.seed, history=history
    )
    return encoded


def _answers(
    runtime: Runtime, encoded: Sequence[EncodedPrompt], stopped: Callable[[], bool]
) -> Iterator[list[dict]]:
    """Yield the records of some prompts at a time, in their order."""
    if not encoded:
        return
    config, key = runtime.config, runtime.key(EVALUATION, 2)
    sampler = runtime.make_sampler(
        num_samples=config.sampling.num_samples, sampling=sampling_params(config)
    )
    params, size = runtime.load_params(), max(CHUNK, sampler.slots)
    for start in range(0, len(encoded), size):
        some = encoded[start : start + size]
        whole = len(some) == len(encoded)
        what = "generate" if whole else f"generate from {start + 1} of {len(encoded)}"
        sampled = sample_prompts(runtime, sampler, params, some, key, stopped=stopped, what=what)
        s = sampled.samples
        yield [
            {
                "prompt_id": e.prompt.id,
                "prompt": e.prompt.text,
                "sample": k,
                "response": text,
                "finish": FINISH_NAMES[s.finish[i, k]],
                "tokens": s.tokens[i, k, : s.length[i, k]].tolist(),
                "logp": [round(float(x), 6) for x in s.logp[i, k, : s.length[i, k]]],
            }
            for i, e in enumerate(some)
            for k, text in enumerate(sampled.texts[i])
        ]


def _claimed(output: Path, config: ConfigDict, encoded: Sequence[EncodedPrompt]) -> set[str]:
    """Write or check the settings beside a file; return the prompts that it answers already."""
    beside = output.with_name(output.name + ".settings.json")
    settings = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in flatten(config).items()
        if key.startswith(DECIDING) and not key.startswith(BATCHING)
    } | {"prompts": fingerprint(encoded)}
    if not output.is_file() or not output.stat().st_size:
        files.write_json(beside, settings)
        return set()
    if not beside.is_file():
        raise ConfigError(
            f"--output={output} is there and has no {beside.name}; give another file, or remove it"
        )
    old = files.read_json(beside)
    other = [
        key for key in sorted(old.keys() | settings.keys()) if old.get(key) != settings.get(key)
    ]
    if other:
        raise ConfigError(
            f"--output={output} was made with other settings ({', '.join(other)}); continue it with"
            " its own, or give another file"
        )
    rows = list(files.read_records(output))
    counts = Counter(row.get("prompt_id") for row in rows)
    done = {name for name, n in counts.items() if n == config.sampling.num_samples}
    if len(done) < len(counts) or not output.read_bytes().endswith(b"\n"):  # torn by a kill
        files.write_records(output, [row for row in rows if row.get("prompt_id") in done])
    return {str(name) for name in done}
