"""Encode chat turns to token ids and decode them; no other place does either.

Sampler, trainer, oracles and evaluation all receive the ids made here. Decoded text is never
encoded again.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateSyntaxError

from ssppo_jax.config import expanded
from ssppo_jax.errors import ConfigError, DataError, GateError
from ssppo_jax.types import FINISH_EOS, Samples

_TAIL = 16  # tokens of a prompt's end in which such a mark is looked for
_THINKS = re.compile(r"(?:<(?:think|thinking|thought|reasoning)>|\[THINK\])\s*$")
PLAIN_TEMPLATE = (
    "{{ bos_token or '' }}{% for message in messages %}{{ message['role'] | capitalize }}: {{"
    " message['content'] }}\n\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)

# None: the template that the tokenizer carries.
TEMPLATES = {"model": None, "plain": PLAIN_TEMPLATE}

DATE = "2024-07-26"  # what Llama 3.1's template prints where it is told no date
# Of strftime; %s, seconds since 1970, depends on the time zone and is left out.
DIRECTIVES = (*"aAbBcCdDeFgGhHIjmMnpPrRStTuUVwWxXyYzZf", *(f"-{c}" for c in "deHIjmMSy"))


def encode_chat(
    tokenizer: Any,
    messages: Sequence[dict],
    *,
    template: str = "model",
    answered: bool = False,
    date: str = DATE,
) -> np.ndarray:  # [P] int32
    """Encode a chat up to the assistant's first token, or with `answered` to the end of its last
    turn.

    The chat template writes every special token (BOS included), so encoding adds none and BOS is
    not doubled. A message that spells a special token ("<|im_end|>") keeps its text: it is encoded
    as ordinary characters and cannot end a turn. Added tokens that the tokenizer does not mark
    special are encoded as the tokenizer does.

    Args:
        tokenizer: a transformers tokenizer.
        messages: turns with "role" and "content".
        template: "model" for the tokenizer's own chat template, "plain" for `PLAIN_TEMPLATE`, or
          the path of a file with a Jinja template.
        answered: the last turn is an answer to be read whole, and no further one is asked for.
        date: YYYY-MM-DD. A template that prints the date gets this one, at midnight, whatever the
          clock says. So the ids depend neither on the day nor on the time zone.

    Raises:
        ConfigError: unknown template, no chat template under "model", or a BOS written twice.
        DataError: the template refuses these turns or changes their text, or a spelled special
          token cannot stay text.
    """
    marked, spelled = _mark_specials(tokenizer, messages)
    text = _render(tokenizer, marked, template, answered=answered, date=date)
    _check_verbatim(text, marked, answered=answered)
    ids = _encode_marked(tokenizer, text, spelled) if spelled else _encode(tokenizer, text)
    if not ids:
        raise DataError("the chat template turned this prompt into no tokens at all")
    beyond = getattr(tokenizer, "beyond_model", {})  # `load_tokenizer` leaves them here
    written = next((beyond[i] for i in ids if i in beyond), None)
    if written is not None:
        raise DataError(
            f"the chat template writes {written!r}, for which the model has no embedding; correct"
            " the template, or use the tokenizer that belongs to the model"
        )
    # Only a doubled first BOS is wrong: templates may open every turn with it (SmolLM2: BOS is
    # <|im_start|>).
    if tokenizer.bos_token_id is not None and ids[:2] == [tokenizer.bos_token_id] * 2:
        raise ConfigError(
            f"the prompt starts with BOS ({tokenizer.bos_token!r}) twice: the chat template writes"
            " it and something adds it again; remove one of them"
        )
    return np.asarray(ids, np.int32)


def encode_text(tokenizer: Any, text: str) -> np.ndarray:  # [P] int32
    """Encode plain text as it stands: no chat template, no BOS; for models without a chat."""
    return np.asarray(_encode(tokenizer, text), np.int32)


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """Decode a completion (`tokens[:length]`) without special tokens, spaces untouched."""
    return tokenizer.decode(
        [int(i) for i in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


def opens_thinking(tokenizer: Any, ids: np.ndarray) -> bool:  # [P] int32
    """Return true if a prompt ends with the mark that begins the model's thinking, as the chat
    templates of DeepSeek-R1 and QwQ write it. The response then holds only the closing mark."""
    return bool(_THINKS.search(tokenizer.decode([int(i) for i in ids[-_TAIL:]])))


def eos_ids(tokenizer: Any, of_model: Sequence[int] = ()) -> tuple[int, ...]:
    """Return every id that ends a completion: the tokenizer's EOS and the model's, sorted.

    Args:
        tokenizer: a transformers tokenizer.
        of_model: what the generation config or the model's own names (`Arch.eos_ids`).

    Raises:
        ConfigError: no id is known, so no completion could ever end.
    """
    own = tokenizer.eos_token_id
    found = sorted({*of_model} if own is None else {own, *of_model})
    if not found:
        raise ConfigError(
            "no end-of-sequence token: the tokenizer has no eos_token and the generation config no"
            " eos_token_id; set eos_token in tokenizer_config.json"
        )
    return tuple(found)


def check_completions(samples: Samples, eos: Sequence[int]) -> None:
    """Check that a completion has EOS at its last position if it finished by EOS, and nowhere else.

    Only positions below `length` are read: prompts and padding may hold EOS.

    Raises:
        GateError: the first completion that breaks the rule, by its [b,k] index.
    """
    tokens, length, finish = (
        np.asarray(x) for x in (samples.tokens, samples.length, samples.finish)
    )
    slot = np.arange(tokens.shape[-1])
    is_eos = np.isin(tokens, np.asarray(eos)) & (slot < length[..., None])  # [B,K,T]
    expected = (slot == length[..., None] - 1) & (finish[..., None] == FINISH_EOS)
    wrong = np.argwhere((is_eos != expected).any(-1))
    if len(wrong):
        b, k = wrong[0]
        at = np.flatnonzero(is_eos[b, k]).tolist()
        raise GateError(
            f"completion [{b},{k}] has length {length[b, k]}, finish code {finish[b, k]} and EOS at"
            f" positions {at}; EOS must stand at the last position of completions that finished by"
            f" EOS and nowhere else ({len(wrong)} of {length.size} completions are wrong)"
        )


def _render(
    tokenizer: Any, messages: Sequence[dict], template: str, *, answered: bool, date: str
) -> str:
    chosen = template_text(template)
    if chosen is None and not tokenizer.chat_template:
        raise ConfigError(
            "the tokenizer has no chat template (is this a base model?); set"
            " --config.data.template=plain, or a file with a Jinja template, or use an"
            " instruction-tuned model"
        )
    written = tokenizer.get_chat_template() if chosen is None else chosen
    try:
        return tokenizer.apply_chat_template(
            list(messages),
            chat_template=_dated(written, date),
            add_generation_prompt=not answered,
            tokenize=False,
            date_string=datetime.fromisoformat(date).strftime("%d %b %Y"),  # as Llama 3 writes it
        )
    except ImportError:
        raise  # jinja2 is missing: not the data's fault
    except TemplateSyntaxError as exc:
        named = "the tokenizer's chat template" if chosen is None else f"data.template={template!r}"
        line = exc.lineno - ("strftime_now" in written)  # a macro stands before such a template
        raise ConfigError(f"{named}, line {line}: {exc.message}") from exc
    except Exception as exc:  # a template refuses turns by raising whatever it likes
        roles = ", ".join(message["role"] for message in messages)
        raise DataError(f"the chat template refuses turns ({roles}): {exc}") from exc


def template_text(name: str) -> str | None:
    """Return the chat template of a name or file; None for the one that the tokenizer carries.

    Raises:
        ConfigError: it is neither a name nor a file of text.
    """
    if name in TEMPLATES:
        return TEMPLATES[name]
    try:
        file = expanded(name)
        found = file.stat()
        text = _text_of(file, found.st_mtime_ns, found.st_size)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"data.template={name!r} is neither {' nor '.join(TEMPLATES)} nor a file of text"
            f" ({reason}); give one of these, or the path of a Jinja template"
        ) from None
    if not text.strip():
        raise ConfigError(f"data.template={name!r} is empty; it must write the turns of a chat")
    return text


@functools.cache  # asked for every prompt
def _text_of(file: Path, changed: int, size: int) -> str:
    """Return a file's text; time and size tell its versions apart."""
    del changed, size
    return file.read_text(encoding="utf-8")


@functools.cache
def _dated(template: str, date: str) -> str:
    """Put a macro `strftime_now` before a template that calls it.

    The function that transformers gives templates reads the clock, and another cannot be passed.
    The line break after the macro is trimmed away.
    """
    if "strftime_now" not in template:
        return template
    day = datetime.fromisoformat(date)
    steps = [("%%", "\0"), *((f"%{d}", day.strftime(f"%{d}")) for d in DIRECTIVES), ("\0", "%")]
    filters = "".join(f"|replace({old!r}, {new!r})" for old, new in steps)
    macro = "{% macro strftime_now(format) %}{{ format" + filters + " }}{% endmacro %}\n"
    return macro + template


def _check_verbatim(text: str, messages: Sequence[dict], *, answered: bool) -> None:
    """Check that the template kept every turn's text; it may strip outer spaces and earlier
    thoughts.
    """
    for i, message in enumerate(messages):
        whole = message["role"] != "assistant" or (answered and i == len(messages) - 1)
        if whole and message["content"].strip() not in text:
            raise DataError(
                f"the chat template changes or drops the {message['role']} turn"
                f" {message['content'][:60]!r}"
            )


def _encode(tokenizer: Any, text: str, *, specials_as_text: bool = False) -> list[int]:
    encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=specials_as_text)
    return list(encoded["input_ids"])


def _specials(tokenizer: Any) -> re.Pattern:
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    strings = sorted(added | set(tokenizer.all_special_tokens), key=lambda s: (-len(s), s))
    return re.compile("|".join(map(re.escape, strings)) or r"(?!)")


def _mark_specials(tokenizer: Any, messages: Sequence[dict]) -> tuple[list[dict], dict[str, str]]:
    """Replace each spelled special token by an unused private character; return what each stands
    for.
    """
    pattern = _specials(tokenizer)
    found = sorted({match for message in messages for match in pattern.findall(message["content"])})
    if not found:
        return list(messages), {}
    everything = "".join(message["content"] for message in messages)
    unused: Iterator[str] = (chr(c) for c in range(0xF0000, 0xFFFFE) if chr(c) not in everything)
    marks = dict(zip(found, unused, strict=False))
    marked = [
        {**m, "content": pattern.sub(lambda match: marks[match[0]], m["content"])} for m in messages
    ]
    return marked, {mark: special for special, mark in marks.items()}


def _encode_marked(tokenizer: Any, text: str, spelled: dict[str, str]) -> list[int]:
    """Split at the template's special tokens and encode the rest with specials as text.

    The split is proved: with a harmless letter for every mark it must equal the tokenizer's
    encoding.
    """
    # Text, special, text, special, ..., text.
    parts = re.split(f"({_specials(tokenizer).pattern})", text)

    def encode_parts(standing_for: dict[int, str]) -> list[int]:
        ids: list[int] = []
        for i, part in enumerate(parts):
            if i % 2:
                ids.append(tokenizer.convert_tokens_to_ids(part))
            elif part:
                ids += _encode(tokenizer, part.translate(standing_for), specials_as_text=True)
        return ids

    harmless = str.maketrans(dict.fromkeys(spelled, "x"))
    ids = encode_parts(str.maketrans(spelled))
    special_ids = [i for i in ids if i in set(tokenizer.all_special_ids)]
    same_split = encode_parts(harmless) == _encode(tokenizer, text.translate(harmless))
    written = [tokenizer.convert_tokens_to_ids(part) for part in parts[1::2]]
    if not same_split or special_ids != [i for i in written if i in set(tokenizer.all_special_ids)]:
        raise DataError(
            f"the prompt spells {', '.join(map(repr, sorted(spelled.values())))}, a special token,"
            " and this tokenizer cannot encode it as plain text; reword or remove this prompt"
        )
    return ids
