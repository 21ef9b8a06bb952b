"""Read fixed outputs that a policy is compared with."""

from __future__ import annotations

from collections.abc import Sequence

from ssppo_jax.config import expanded
from ssppo_jax.data import EncodedPrompt
from ssppo_jax.data.sources import json_lines
from ssppo_jax.errors import DataError
from ssppo_jax.files import BYTE_ORDER_MARK, parse_json

# Columns of a row, the first that is there counts for the output.
PROMPT = ("prompt_id", "prompt", "instruction")
OUTPUT = ("output", "response")


def read_references(path: str, encoded: Sequence[EncodedPrompt]) -> list[list[str]]:  # B x 1
    """Read fixed outputs that the policy is compared with, one for each held-out prompt.

    The file is JSONL, or a JSON list as AlpacaEval publishes outputs. A row has the prompt's text
    or id (`prompt`, `instruction`, `prompt_id`) and the text (`output`, `response`). The first row
    of a prompt counts.

    Raises:
        DataError: the file cannot be read, or held-out prompts have no output.
    """
    file = expanded(path)
    if not file.is_file():
        raise DataError(f"eval.reference_outputs={path!r}: there is no such file")
    text = file.read_bytes().removeprefix(BYTE_ORDER_MARK)
    whole = text.lstrip()[:1] == b"["
    rows = parse_json(text, file) if whole else [row for _, row in json_lines(path)]
    found: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        if isinstance(row, str) and not whole:  # the reason why the line holds no row
            raise DataError(f"{file}: row {number}: {row}")
        fields = row if isinstance(row, dict) else {}
        asked = [str(fields[key]) for key in PROMPT if key in fields]
        said = next((fields[key] for key in OUTPUT if key in fields), None)
        if not asked or not isinstance(said, str):
            raise DataError(
                f"{file}: row {number} must have one of {', '.join(PROMPT)} and a text"
                f" as {' or '.join(OUTPUT)}"
            )
        for name in asked:
            found.setdefault(name, said)
    texts = [found.get(e.prompt.id, found.get(e.prompt.text)) for e in encoded]
    missing = [e.prompt.text for e, text in zip(encoded, texts, strict=True) if text is None]
    if missing:
        raise DataError(
            f"{file} has no output for {len(missing)} of {len(encoded)} held-out prompts, such as"
            f" {missing[0][:80]!r}; add them"
        )
    return [[text] for text in texts if text is not None]
