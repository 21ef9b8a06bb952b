"""Load prompts: `SOURCES` maps a name to a function of keyword arguments that returns `Prompt`s."""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import resources
from typing import Any

import numpy as np

from ssppo_jax.config import expanded, told_by_line
from ssppo_jax.data.environment import load_environment, rows_of
from ssppo_jax.errors import ConfigError, DataError, listed
from ssppo_jax.files import BYTE_ORDER_MARK, read_lines
from ssppo_jax.types import Prompt

ROLES = ("system", "user", "assistant")
DEEPEST = 50  # lists and objects inside one another, in a row's metadata
# Columns of which a chat template would make a part of the prompt.
PARTS = ("tools", "chat_template_kwargs")
# What other models read beside text: columns, and kinds of a turn's parts.
MEDIA = ("image", "images", "video", "videos", "audio", "audios", "image_url", "input_audio")
# Columns that trainers of given responses learn from.
RESPONSES = ("chosen", "rejected", "completion", "label")

Row = dict | str  # a parsed row, or the reason why there is none
_log = logging.getLogger(__name__)


def quickstart() -> list[Prompt]:
    """Load the short single-turn instructions that come with the package."""
    file = resources.files("ssppo_jax").joinpath("data/prompts/quickstart.jsonl")
    return _prompts(_json_rows(file.read_bytes(), "quickstart.jsonl"))


def jsonl(
    *,
    path: str = "",
    prompt_field: str = "",
    answer_field: str = "",
    id_field: str = "",
    duplicates: str = "error",
) -> list[Prompt]:
    """Read one JSON object a line: {"prompt": str} or {"messages": [...]}, an optional "id", and
    metadata.

    Without "id" the id is a hash of the messages, so it survives re-ordering. A byte-order mark and
    CRLF line ends are read.

    Args:
        path: the file to read.
        prompt_field: column with the prompt (string) or the messages (list of turns); empty:
          "prompt" or "messages".
        answer_field: column with the answer that an oracle checks against; empty: "answer".
        id_field: column with the prompt's id; empty takes "id", or a hash of the messages.
        duplicates: error, or keep_first to keep the first of the rows that share an id and log how
          many went.

    Raises:
        ConfigError: no path. DataError: the file cannot be read, is empty, or has bad rows
          (`file:line: reason`).
    """
    if not path:
        raise ConfigError(
            "data source 'jsonl' needs a path: --config.data.source.path=prompts.jsonl"
        )
    return _prompts(json_lines(path), prompt_field, answer_field, id_field, duplicates)


def tfds(
    *,
    data_dir: str = "",
    builder: str = "",
    split: str = "train",
    prompt_field: str = "prompt",
    answer_field: str = "",
    id_field: str = "",
    duplicates: str = "error",
) -> list[Prompt]:
    """Read a prepared TensorFlow Datasets data set in array_record format, without TensorFlow.

    Args:
        data_dir: folder of one prepared version (.../name/1.0.0), or the root folder when `builder`
          is given.
        builder: data set name (name or name/config:version) to look up under `data_dir`; empty
          reads `data_dir` itself.
        split: split or slice, e.g. train or train[:1000].
        prompt_field: column with the prompt (string) or the messages (roles and contents).
        answer_field: column with the answer that an oracle checks against; empty: "answer".
        id_field: column with the prompt's id; empty takes a hash of the messages.
        duplicates: error, or keep_first to keep the first of the rows that share an id and log how
          many went.

    Raises:
        ConfigError: nothing to read, tensorflow_datasets missing. DataError: unreadable data set or
          bad rows.
    """
    if not (data_dir or builder):
        raise ConfigError(
            "data source 'tfds' needs a folder: --config.data.source.data_dir=.../my_prompts/1.0.0"
        )
    rows = tfds_rows(data_dir, builder=builder, split=split)
    return _prompts(rows, prompt_field, answer_field, id_field, duplicates)


def hf(
    *,
    repo_id: str = "",
    split: str = "train",
    subset: str = "",
    revision: str = "",
    prompt_field: str = "prompt",
    answer_field: str = "",
    id_field: str = "",
    duplicates: str = "error",
) -> list[Prompt]:
    """Read a Hugging Face data set by id or local folder; code from the repository is never run.

    Args:
        repo_id: data set id (owner/name) or local folder.
        split: split or slice, e.g. train or train[:1000].
        subset: the data set's configuration name; empty takes its default.
        revision: commit or tag, for a run that can be repeated; empty takes the newest.
        prompt_field: column with the prompt (string) or the messages (list of turns).
        answer_field: column with the answer that an oracle checks against; empty: "answer".
        id_field: column with the prompt's id; empty takes a hash of the messages.
        duplicates: error, or keep_first to keep the first of the rows that share an id and log how
          many went.

    Raises:
        ConfigError: no id, or `datasets` not installed. DataError: the data set cannot be loaded or
          has bad rows.
    """
    if not repo_id:
        raise ConfigError(
            "data source 'hf' needs a data set: --config.data.source.repo_id=owner/name"
        )
    rows = hub_rows(repo_id, split=split, subset=subset, revision=revision)
    return _prompts(rows, prompt_field, answer_field, id_field, duplicates)


def environment(*, environment: str = "") -> list[Prompt]:
    """Read the prompts of an environment as the verifiers library has them; oracle `environment`
    checks the responses.

    Args:
        environment: path/to/file.py:NAME of an object with `dataset` and `rubric`, or of a function
          without arguments that makes it.

    Raises:
        ConfigError: no environment, or one of several turns. DataError: it has bad rows.
    """
    made = load_environment(environment)
    with told_by_line(environment, "reading its data set"):
        return _prompts(_plain_rows(rows_of(made), environment))


SOURCES = {
    "quickstart": quickstart,
    "jsonl": jsonl,
    "tfds": tfds,
    "hf": hf,
    "environment": environment,
}


def hub_rows(repo_id: str, *, split: str, subset: str, revision: str) -> Iterator[tuple[str, Row]]:
    """Load a Hugging Face data set by id or local folder, as (`hf:id[split]:number`, row).

    Raises:
        ConfigError: `datasets` is not installed. DataError: the data set cannot be loaded.
    """
    library = _require("datasets", install="'ssppo_jax[hf]'")
    try:
        table = library.load_dataset(
            repo_id, subset or None, split=split, revision=revision or None
        )
    except Exception as exc:  # many types: no network, no such id, gated, bad split
        raise DataError(
            f"Hugging Face data set {repo_id!r}, split {split!r}, cannot be loaded: {exc}"
        ) from exc
    return _plain_rows(table, f"hf:{repo_id}[{split}]")


def tfds_rows(data_dir: str, *, builder: str = "", split: str) -> Iterator[tuple[str, Row]]:
    """Load a prepared TFDS data set, as (`tfds:name[split]:number`, row).

    Raises:
        ConfigError: tensorflow_datasets is not installed. DataError: the data set cannot be loaded.
    """
    library = _require("tensorflow_datasets", install="tensorflow-datasets")
    local = data_dir and "://" not in data_dir
    folder = str(expanded(data_dir)) if local else data_dir or None
    name = builder or data_dir
    try:
        made = (
            library.builder(builder, data_dir=folder)
            if builder
            else library.builder_from_directory(folder)
        )
        source = made.as_data_source(split=split)
    except Exception as exc:  # many types: unknown split, missing folder, tfrecord files
        raise DataError(
            f"tfds {name}, split {split!r}: {exc}\n(only data sets prepared with"
            " file_format='array_record' can be read without TensorFlow)"
        ) from exc
    return _plain_rows((source[i] for i in range(len(source))), f"tfds:{name}[{split}]")


def _require(module: str, *, install: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as exc:
        raise ConfigError(f"this data source needs {module}: pip install {install}") from exc


def json_lines(path: str) -> Iterator[tuple[str, Row]]:
    """Read a file of JSON lines as (`file:line`, row); a line that is none gives the reason.

    Raises:
        DataError: the file cannot be read, or is of another kind; with the call that converts it.
    """
    try:
        blob = expanded(path).read_bytes()
    except OSError as exc:
        raise DataError(f"{path}: cannot be read: {exc.strerror}") from exc
    for what, is_it, call in OTHER_KINDS:
        if is_it(path, blob):
            raise DataError(
                f"{path} is {what}, and rows are read from JSON lines, one object a line. In"
                f" Python: pandas.{call.format(path=path)}.to_json('rows.jsonl',"
                " orient='records', lines=True)"
            )
    return _json_rows(blob, path)


def _is_table(path: str, blob: bytes) -> bool:
    return path.lower().endswith((".csv", ".tsv")) and not blob.lstrip().startswith(b"{")


def _is_array(path: str, blob: bytes) -> bool:
    """Return whether a file is one list of objects, which a line of JSON lines never is."""
    return re.match(rb"\s*\[\s*\{", blob.removeprefix(BYTE_ORDER_MARK)) is not None


OTHER_KINDS: tuple[tuple[str, Callable[[str, bytes], bool], str], ...] = (
    ("a Parquet file", lambda _, blob: blob.startswith(b"PAR1"), "read_parquet('{path}')"),
    ("compressed", lambda _, blob: blob.startswith(b"\x1f\x8b"), "read_json('{path}', lines=True)"),
    (
        "text in UTF-16",
        lambda _, blob: blob.startswith((b"\xff\xfe", b"\xfe\xff")),
        "read_json('{path}', lines=True, encoding='utf-16')",
    ),
    ("one JSON list", _is_array, "read_json('{path}', encoding='utf-8-sig')"),
    ("a table", _is_table, "read_csv('{path}', sep=None, engine='python')"),
)


def _json_rows(blob: bytes, name: str) -> Iterator[tuple[str, Row]]:
    for n, line in enumerate(read_lines(blob), 1):
        yield f"{name}:{n}", _parse(line)


def _parse(line: bytes) -> Row:
    if b"\0" in line:
        return "contains a NUL byte"
    if not line.strip():
        return "empty line"
    try:
        row = json.loads(
            line.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_no_constant
        )
    except UnicodeDecodeError as exc:
        return f"not UTF-8: byte 0x{line[exc.start]:02x} at column {exc.start + 1}"
    except json.JSONDecodeError as exc:
        return f"not JSON: {exc.msg} at column {exc.colno}"
    except RecursionError:
        return "not JSON: nested too deeply"
    except ValueError as exc:
        return f"not JSON: {exc}"
    return (
        row if isinstance(row, dict) else f"a row must be a JSON object, not {type(row).__name__}"
    )


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict:
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} occurs twice")
    return dict(pairs)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _plain_rows(rows: Iterable[dict], source: str) -> Iterator[tuple[str, Row]]:
    """Yield a data set's rows as plain values, each with its place."""
    for n, row in enumerate(rows, 1):
        try:
            plain: Row = _plain(row)
        except UnicodeDecodeError as exc:
            plain = f"not UTF-8: {exc.reason} at byte {exc.start}"
        yield f"{source}:{n}", plain


def _plain(value: Any) -> Any:
    """Turn a data set's values (bytes, NumPy scalars and arrays) into plain Python ones."""
    match value:
        case bytes():
            return value.decode("utf-8")
        case dict():
            return {key: _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case np.ndarray() | np.generic():
            plain: Any = value.tolist()
            return _plain(plain) if isinstance(plain, (bytes, list)) else plain
    return value


def _prompts(
    rows: Iterable[tuple[str, Row]],
    field: str = "",
    answer_field: str = "",
    id_field: str = "",
    duplicates: str = "error",
) -> list[Prompt]:
    """Turn every row into a Prompt with its own id, or raise one DataError that names every bad
    row.
    """
    if duplicates not in ("error", "keep_first"):
        raise ConfigError(f"duplicates={duplicates!r} is unknown; allowed: error, keep_first")
    prompts, bad, first_seen, repeats, place = [], [], {}, 0, ""
    for place, row in rows:
        try:
            prompt = _prompt(row, field, answer_field, id_field)
        except ValueError as exc:
            bad.append(f"{place}: {exc}")
            continue
        if prompt.id not in first_seen:
            first_seen[prompt.id] = place
            prompts.append(prompt)
        elif duplicates == "keep_first":
            repeats += 1
        else:
            bad.append(
                f"{place}: duplicate id {prompt.id!r}, first used at {first_seen[prompt.id]}"
            )
    if bad:
        raise DataError(
            "\n".join([f"{len(bad)} bad rows:" if len(bad) > 1 else "1 bad row:", *listed(bad)])
        )
    if not prompts:
        raise DataError("the data source holds no prompts")
    if repeats:
        _log.warning(
            "%d of %d rows repeat an earlier id and were left out", repeats, repeats + len(prompts)
        )
    _name_unused(prompts, place.rpartition(":")[0])
    return prompts


def _name_unused(prompts: list[Prompt], source: str) -> None:
    """Say which columns are no part of any prompt, the loudest those that others train on."""
    count = Counter(key for p in prompts for key, value in p.meta.items() if value is not None)
    given = [key for key in RESPONSES if key in count]
    if given:
        _log.warning(
            "%s: NOT USED: %s (%d of %d rows). Every response is sampled from the policy; responses"
            " and labels in the data are for data.source.name=answered",
            source,
            ", ".join(given),
            max(count[key] for key in given),
            len(prompts),
        )
    others = [key for key in count if key not in given]
    if others:
        _log.info("%s: columns that only an oracle may use: %s", source, ", ".join(others))


def _prompt(row: Row, field: str, answer_field: str, id_field: str) -> Prompt:
    """Turn one row into a Prompt; raise ValueError with the reason if that cannot be."""
    if isinstance(row, str):
        raise ValueError(row)
    if not field and "prompt" in row and "messages" in row:
        raise ValueError('has both "prompt" and "messages"; keep one')
    other = "" if field else " (prompt_field of the source jsonl, tfds or hf names another)"
    field = field or ("messages" if "messages" in row else "prompt")
    if field not in row:
        has = ", ".join(map(str, row)) or "nothing"
        raise ValueError(f'missing field "{field}"; the row has: {has}{other}')
    for named in filter(None, (answer_field, id_field)):
        field_of(row, named)
    messages = read_messages(row[field], field)
    id_field = id_field or "id"
    name = _id(row[id_field]) if id_field in row else _content_id(messages)
    meta = {key: value for key, value in row.items() if key not in (field, id_field)}
    if answer_field and answer_field != "answer":
        if "answer" in row:
            raise ValueError(f'has both "answer" and "{answer_field}"; remove one of them')
        meta["answer"] = row[answer_field]
        meta.pop(answer_field, None)
    media = [key for key in MEDIA if meta.get(key) is not None]
    if media:
        raise ValueError(
            f'has "{media[0]}", and models here read text alone; remove the column, or the row'
        )
    for key in PARTS:
        if meta.get(key):
            raise ValueError(
                f'has "{key}", of which no prompt is made here; remove the column, or write what'
                " the model should read into a turn"
            )
    _check_meta(meta)
    return Prompt(name, messages, meta)


def field_of(row: Mapping[str, Any], name: str) -> Any:
    """Return a field of a row; raise ValueError with those that there are if it is missing."""
    if name not in row:
        raise ValueError(f'missing field "{name}"; the row has: {", ".join(map(str, row))}')
    return row[name]


def answered_turns(path: str) -> tuple[dict, ...]:
    """Read answered examples, {"prompt": str, "completion": str} a line, as turns of a chat.

    Raises:
        DataError: the file cannot be read, is empty, or has bad rows (`file:line: reason`).
    """
    turns, bad = [], []
    for place, row in json_lines(path):
        try:
            turns += _answered(row)
        except ValueError as exc:
            bad.append(f"{place}: {exc}")
    if bad or not turns:
        raise DataError("\n".join(listed(bad)) or f"{path}: holds no examples")
    return tuple(turns)


def _answered(row: Row) -> list[dict]:
    if isinstance(row, str):
        raise ValueError(row)
    if set(row) != {"prompt", "completion"}:
        raise ValueError(f'an example has "prompt" and "completion"; this row: {", ".join(row)}')
    pairs = (("user", "prompt"), ("assistant", "completion"))
    return [read_turn({"role": role, "content": row[key]}, f'"{key}"') for role, key in pairs]


def check_prompt(prompt: Prompt) -> None:
    """Raise ValueError with the reason if no run could use a prompt, whatever source made it."""
    if not isinstance(prompt.id, str):
        raise ValueError(f"its id is a {type(prompt.id).__name__}; make it a text")
    if not isinstance(prompt.messages, (list, tuple)):
        kind = "text" if isinstance(prompt.messages, str) else type(prompt.messages).__name__
        raise ValueError(f'"messages" is a {kind}; make it ({{"role": "user", "content": TEXT}},)')
    read_messages(list(prompt.messages), "messages")
    if not all(isinstance(turn["content"], str) for turn in prompt.messages):
        raise ValueError('"messages" has a content in parts; write each content as one text')
    if not isinstance(prompt.meta, dict):
        raise ValueError(f"its meta is a {type(prompt.meta).__name__}; make it a dict")
    _check_meta(prompt.meta)


def read_messages(value: Any, field: str) -> tuple[dict, ...]:
    """Return the turns of a prompt: a text, a list of turns, or a record of their columns.

    Raises:
      ValueError: it is no conversation that ends with the user's turn; says which part is wrong.
    """
    if isinstance(value, str) and field != "messages":
        return (read_turn({"role": "user", "content": value}, f'"{field}"'),)
    value = without_columns(value, f'"{field}"')
    if not isinstance(value, list):
        allowed = "a list of turns" if field == "messages" else "a string (or a list of turns)"
        raise ValueError(f'"{field}" must be {allowed}, not {type(value).__name__}')
    if not value:
        raise ValueError(f'"{field}" is empty')
    turns = tuple(read_turn(turn, f'"{field}" turn {n}') for n, turn in enumerate(value, 1))
    if turns[-1]["role"] != "user":
        raise ValueError(f'"{field}" must end with a user turn, not {turns[-1]["role"]}')
    return turns


def without_columns(value: Any, what: str) -> Any:
    """Return turns as a list: TFDS and HF store a sequence of records as a record of sequences."""
    if not isinstance(value, dict) or {*value} != {"role", "content"}:
        return value
    roles, contents = value["role"], value["content"]
    if not isinstance(roles, list):
        return value
    if not isinstance(contents, list) or len(contents) != len(roles):
        raise ValueError(f"{what} has not as many contents as roles")
    return [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]


def read_turn(turn: Any, what: str) -> dict:
    """Return a turn's role and text.

    Raises:
      ValueError: it has another role, no text, or more than a run would read.
    """
    if not isinstance(turn, dict) or not {"role", "content"} <= set(turn):
        raise ValueError(f'{what} must be an object with "role" and "content"')
    extra = [
        key for key, value in turn.items() if key not in ("role", "content") and value is not None
    ]
    if extra:
        raise ValueError(f"{what} has fields nothing would read: {', '.join(map(str, extra))}")
    if turn["role"] not in ROLES:
        raise ValueError(f"{what} has role {turn['role']!r}; allowed: {', '.join(ROLES)}")
    content = _text_of(turn["content"], what)
    if not isinstance(content, str):
        raise ValueError(f"{what} content must be a string, not {type(content).__name__}")
    if not content.strip():
        raise ValueError(f"{what} is empty")
    check_text(content, what)
    return {"role": turn["role"], "content": content}


def _text_of(content: Any, what: str) -> Any:
    """Return the text of a content that is one part of text; refuse images and the like by name."""
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        return content
    kinds = [part.get("type") for part in content]
    other = [kind for kind in kinds if kind != "text"]
    if other:
        raise ValueError(f"{what} has a part {other[0]!r}, and models here read text alone")
    if len(content) != 1:
        raise ValueError(f"{what} has {len(content)} parts of text; write it as one string")
    return content[0].get("text")


def _check_meta(value: Any, what: str = "", depth: int = 0) -> None:
    """Check that metadata can be written as JSON in UTF-8, as journal and records write it."""
    if depth > DEEPEST:
        raise ValueError(f"{what} is nested too deeply")
    match value:
        case str():
            _check_unicode(value, what)
        case dict():
            for key, item in value.items():
                if not isinstance(key, str):
                    raise ValueError(f"{what} has a key that is no text: {key!r}")
                _check_unicode(key, f"the name {key!a}")
                _check_meta(item, what or f'"{key}"', depth + 1)
        case list() | tuple():
            for item in value:
                _check_meta(item, what, depth + 1)
        case None | bool() | int() | float():
            pass
        case _:
            raise ValueError(
                f"{what} holds a value of type {type(value).__name__}, neither text nor a number;"
                " turn it into text, or remove the column"
            )


def check_text(text: str, what: str) -> None:
    """Raise ValueError for a text that no tokenizer or file of text takes."""
    if "\0" in text:
        raise ValueError(f"{what} contains a NUL character")
    _check_unicode(text, what)


def _check_unicode(text: str, what: str) -> None:
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError(f"{what} contains half of a surrogate pair (invalid Unicode)")


def _id(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError(f"id must be a string or an integer, not {type(value).__name__}")
    name = str(value)
    if not name.strip() or not name.isprintable():
        raise ValueError(f"id must be non-empty printable text, not {name!r}")
    return name


def _content_id(messages: tuple[Any, ...]) -> str:
    return "h" + hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).hexdigest()[:16]
