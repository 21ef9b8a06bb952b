"""Prompts come in whole or not at all, in an order that is a function of integers."""

import datetime
import inspect
import json
import re
import sys
import types
import zlib
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from test_chat import CHATML, byte_tokenizer

from ssppo_jax.config import load_function
from ssppo_jax.data import (
    SOURCES,
    EncodedPrompt,
    History,
    address,
    addresses,
    encode_prompts,
    epoch_batches,
    fingerprint,
    portion,
    portion_sizes,
    question,
    split_prompts,
)
from ssppo_jax.data.chat import encode_chat
from ssppo_jax.data.prepare import load_prompts, prepare_prompts
from ssppo_jax.data.sources import jsonl
from ssppo_jax.errors import ConfigError, DataError
from ssppo_jax.types import Prompt


def prompt(name, text=None):
    return Prompt(name, ({"role": "user", "content": text or f"Say {name}."},))


def many(n):
    return [prompt(f"p{i}") for i in range(n)]


def read(tmp_path, blob):
    path = tmp_path / "in.jsonl"
    path.write_bytes(blob if isinstance(blob, bytes) else blob.encode())
    return SOURCES["jsonl"](path=str(path))


def reasons(tmp_path, blob):
    """The report's lines, with the folder taken off."""
    with pytest.raises(DataError) as caught:
        read(tmp_path, blob)
    return [line.replace(f"{tmp_path}/", "") for line in str(caught.value).splitlines()]


# ---- sources


def test_quickstart_prompts_are_many_short_and_all_different():
    prompts = SOURCES["quickstart"]()
    texts = [p.text for p in prompts]
    assert len(prompts) == 480 and len({p.id for p in prompts}) == 480
    assert len({" ".join(t.casefold().split()) for t in texts}) == 480
    assert all(
        4 <= len(t.split()) <= 20 and len(p.messages) == 1
        for t, p in zip(texts, prompts, strict=True)
    )
    words = [frozenset(t.casefold().rstrip(".?!").split()) for t in texts]
    close = [
        (a, b) for i, a in enumerate(words) for b in words[:i] if len(a & b) / len(a | b) > 0.6
    ]
    assert not close, close


def test_jsonl_keeps_turns_ids_and_everything_else_as_meta(tmp_path):
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": " u\n"}]
    rows = [{"id": "a", "prompt": "hé {{ None", "answer": [1, 2.5]}, {"id": 7, "messages": turns}]
    first, second = read(tmp_path, "\n".join(json.dumps(r, ensure_ascii=False) for r in rows))
    assert first == Prompt("a", ({"role": "user", "content": "hé {{ None"},), {"answer": [1, 2.5]})
    assert second == Prompt("7", tuple(turns), {}) and second.text == " u\n"


def test_unicode_line_separators_do_not_split_a_row(tmp_path):
    (row,) = read(tmp_path, '{"prompt": "a\u2028b\u0085c"}\n')
    assert row.text == "a\u2028b\u0085c"


def test_a_missing_id_is_a_hash_of_the_content_alone(tmp_path):
    a, b = read(tmp_path, '{"prompt": "one"}\n{"prompt": "two", "extra": 1}\n')
    b2, a2 = read(tmp_path, '{"extra": 2, "prompt": "two"}\n{"prompt": "one"}\n')
    assert (a.id, b.id) == (a2.id, b2.id) and a.id != b.id
    # Ids address random keys and must not move between versions: sha256 of [{"content": "one",
    # "role": "user"}].
    assert a.id == "h35eef251e2d9187a"


BAD_LINES = [
    (b'{"prompt": "x"', "not JSON"),
    (b"[1]", "a row must be a JSON object, not list"),
    (b'{"prompt": NaN}', "NaN is not a JSON number"),
    (b'{"prompt": "x", "prompt": "y"}', "the key 'prompt' occurs twice"),
    (b"[" * 100_000, "nested too deeply"),
    (b'{"prompt": "a\0b"}', "NUL byte"),
    (b'{"prompt": "a\\u0000b"}', "NUL character"),
    (b'{"prompt": "a\\ud800b"}', "surrogate"),
    (b'{"prompt": "caf\xe9"}', "not UTF-8: byte 0xe9 at column 16"),
    (b"", "empty line"),
    (b'{"text": "x"}', 'missing field "prompt"; the row has: text'),
    (b"{}", "the row has: nothing"),
    (b'{"prompt": ""}', '"prompt" is empty'),
    (b'{"prompt": " \\n"}', '"prompt" is empty'),
    (b'{"prompt": null}', '"prompt" must be a string (or a list of turns), not NoneType'),
    (b'{"prompt": 3}', "not int"),
    (b'{"messages": "x"}', '"messages" must be a list of turns, not str'),
    (b'{"messages": []}', '"messages" is empty'),
    (b'{"messages": ["x"]}', 'must be an object with "role" and "content"'),
    (b'{"messages": [{"role": "user"}]}', 'must be an object with "role" and "content"'),
    (
        b'{"messages": [{"role": "human", "content": "x"}]}',
        "role 'human'; allowed: system, user, assistant",
    ),
    (b'{"messages": [{"role": "user", "content": ["x"]}]}', "content must be a string, not list"),
    (
        b'{"messages": [{"role": "user", "content": "x", "tool": 1}]}',
        "fields nothing would read: tool",
    ),
    (
        b'{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}',
        "must end with a user turn, not assistant",
    ),
    (
        b'{"prompt": "x", "messages": [{"role": "user", "content": "x"}]}',
        'both "prompt" and "messages"',
    ),
    (b'{"messages": [{"role": "user", "content": null}]}', "content must be a string, not None"),
    (b'{"messages": {"role": ["user"], "content": null}}', "not as many contents as roles"),
    (b'{"messages": {"role": ["user"], "content": []}}', "not as many contents as roles"),
    (b'{"prompt": "x", "answer": "a\\ud83d"}', '"answer" contains half of a surrogate pair'),
    (b'{"prompt": "x", "m": {"n": ["\\ude00"]}}', '"m" contains half of a surrogate pair'),
    (b'{"prompt": "x", "\\ud83d": 1}', "the name '\\ud83d' contains half of a surrogate pair"),
    (b'{"prompt": "x", "m": ' + b"[" * 99 + b"]" * 99 + b"}", '"m" is nested too deeply'),
    (b'{"prompt": "x", "tools": [{"name": "f"}]}', 'has "tools", of which no prompt is made'),
    (
        b'{"prompt": "x", "chat_template_kwargs": {"enable_thinking": false}}',
        'has "chat_template_kwargs", of which no prompt is made',
    ),
    (b'{"prompt": "x", "id": true}', "id must be a string or an integer, not bool"),
    (b'{"prompt": "x", "id": 1.5}', "id must be a string or an integer, not float"),
    (b'{"prompt": "x", "id": ""}', "id must be non-empty printable text"),
    (b'{"prompt": "x", "id": "a\\nb"}', "id must be non-empty printable text"),
]


@pytest.mark.parametrize(
    ("line", "reason"), BAD_LINES, ids=[reason[:30] for _, reason in BAD_LINES]
)
def test_a_bad_row_is_reported_by_file_line_and_reason(tmp_path, line, reason):
    header, *rows = reasons(tmp_path, b'{"prompt": "good"}\n' + line + b'\n{"prompt": "fine"}\n')
    assert header == "1 bad row:" and len(rows) == 1
    assert rows[0].startswith("in.jsonl:2: ") and reason in rows[0]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("rows.csv", b"prompt,answer\na,b\n", "rows.csv is a table.*read_csv"),
        (
            "rows.json",
            b'\xef\xbb\xbf [\n {"prompt": "x"}]',
            "is one JSON list.*read_json.*lines=True",
        ),
        ("rows", b"PAR1\0", "a Parquet file.*read_parquet"),
        ("rows.jsonl.gz", b"\x1f\x8b\x08", "is compressed"),
        ("rows.jsonl", '{"prompt": "x"}'.encode("utf-16"), "UTF-16.*encoding='utf-16'"),
    ],
)
def test_a_file_of_another_kind_is_told_as_one_with_the_call_that_converts_it(
    tmp_path, monkeypatch, name, content, told
):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(content)
    with pytest.raises(DataError, match=told) as caught:
        jsonl(path=name)
    assert "\n" not in str(caught.value)
    call = re.search(r"pandas\.(.*)$", str(caught.value))[1]
    if name.endswith((".csv", ".json")) or "utf-16" in call:
        exec(f"import pandas; pandas.{call}")
        assert jsonl(path="rows.jsonl")[0].text in ("a", "x")


def test_a_table_by_name_that_holds_json_lines_is_read(tmp_path):
    (tmp_path / "rows.csv").write_text('{"prompt": "x"}\n')
    assert jsonl(path=str(tmp_path / "rows.csv"))[0].text == "x"


def test_what_is_no_part_of_a_prompt_is_named(tmp_path, caplog):
    """Rows of a preference data set look as if their responses were trained on."""
    caplog.set_level("INFO")
    rows = [
        {"prompt": "a", "chosen": "good", "rejected": "bad", "level": 1, "tools": []},
        {"prompt": "b", "chosen": "good", "rejected": None, "answer": "5", "tools": None},
        {"prompt": "c", "rejected": None},
    ]
    assert len(read(tmp_path, "\n".join(map(json.dumps, rows)))) == 3
    warning, note = caplog.records
    assert warning.levelname == "WARNING" and note.levelname == "INFO"
    text = warning.getMessage()
    assert "in.jsonl: NOT USED: chosen, rejected (2 of 3 rows)" in text
    assert note.getMessage().endswith("that only an oracle may use: level, tools, answer")


def test_prompts_alone_need_no_word(tmp_path, caplog):
    caplog.set_level("INFO")
    read(tmp_path, '{"id": "a", "prompt": "x"}')
    assert not caplog.records


def test_all_bad_rows_are_reported_at_once(tmp_path):
    good = b'{"prompt": "x"}'
    header, *rows = reasons(
        tmp_path, b"\n".join(line for bad, _ in BAD_LINES[:5] for line in (bad, good)) + b"\n"
    )
    # The repeated good row is a duplicate of itself from its second time on.
    assert header == "9 bad rows:"
    assert [int(r.split(":")[1]) for r in rows] == [1, 3, 4, 5, 6, 7, 8, 9, 10]


def test_a_long_report_is_cut_and_says_by_how_much(tmp_path):
    lines = reasons(tmp_path, b"oops\n" * 50)
    assert lines[0] == "50 bad rows:" and len(lines) == 22 and lines[-1] == "... and 30 more"


def test_duplicate_ids_name_the_first_use(tmp_path):
    _, row = reasons(
        tmp_path, '{"id": 1, "prompt": "x"}\n{"id": "2", "prompt": "y"}\n{"id": "1", "prompt": "z"}'
    )
    assert row == "in.jsonl:3: duplicate id '1', first used at in.jsonl:1"


def test_a_byte_order_mark_and_crlf_are_read_and_hide_no_error(tmp_path):
    path = tmp_path / "windows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "x\xe2\x80\xa8y"}\r\n{"prompt": "z"}\r\n')
    assert [prompt.text for prompt in SOURCES["jsonl"](path=str(path))] == ["x\u2028y", "z"]
    _, bad = reasons(tmp_path, b'\xef\xbb\xbf{"prompt": "x"}\r\n{}\r\n')
    assert bad.startswith("in.jsonl:2: missing")


@pytest.mark.parametrize("blob", [b"", b"\n"])
def test_an_empty_file_is_an_error(tmp_path, blob):
    with pytest.raises(DataError, match=r"no prompts|empty line"):
        read(tmp_path, blob)


def test_a_missing_file_or_path_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.jsonl: cannot be read: No such file"):
        SOURCES["jsonl"](path=str(tmp_path / "nowhere.jsonl"))
    with pytest.raises(ConfigError, match="needs a path"):
        SOURCES["jsonl"]()


def test_every_source_keyword_has_a_plain_default_and_a_line_of_help():
    for name, source in SOURCES.items():
        for keyword, parameter in inspect.signature(source).parameters.items():
            assert parameter.kind is parameter.KEYWORD_ONLY, (name, keyword)
            assert isinstance(parameter.default, (str, int, float, bool)), (name, keyword)
            assert f"\n        {keyword}: " in source.__doc__, (name, keyword)


# ---- TFDS


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    import tensorflow_datasets as tfds

    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            text = tfds.features.Text()
            turns = tfds.features.Sequence({"role": text, "content": text})
            columns = {
                "name": text,
                "prompt": text,
                "chat": turns,
                "score": tfds.features.Scalar(np.float32),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(columns))

        def _split_generators(self, dl_manager):
            return {
                "train": self._rows(4),
                "same": self._rows(3, name="same"),
                "blank": self._rows(2, text=""),
            }

        def _generate_examples(self):
            raise NotImplementedError

        def _rows(self, n, name="", text="é"):
            for i in range(n):
                turns = [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": "b"},
                ] * i
                turns.append({"role": "user", "content": f"turn {i}"})
                row = {
                    "name": name or f"n{i}",
                    "prompt": text and f"{text} {i}",
                    "chat": turns,
                    "score": i / 2,
                }
                yield i, row

    builder = Tiny(data_dir=str(tmp_path_factory.mktemp("tfds")), file_format="array_record")
    tfds.disable_progress_bar()
    builder.download_and_prepare()
    return str(builder.data_dir)


def test_tfds_array_record_reads_without_tensorflow(tfds_folder):
    prompts = SOURCES["tfds"](data_dir=tfds_folder, id_field="name")
    assert "tensorflow" not in sys.modules
    by_id = {p.id: p for p in prompts}
    assert sorted(by_id) == ["n0", "n1", "n2", "n3"] and by_id["n3"].text == "é 3"
    assert by_id["n3"].meta["score"] == 1.5 and by_id["n3"].meta["chat"]["role"][:2] == [
        "user",
        "assistant",
    ]
    assert len(SOURCES["tfds"](data_dir=tfds_folder, split="train[:2]")) == 2


def test_a_tfds_folder_in_a_store_keeps_its_address(monkeypatch):
    library = types.SimpleNamespace(builder_from_directory=lambda folder: addresses.append(folder))
    addresses = []
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", library)
    for folder in ("gs://bucket/my/1.0.0", "~/my/1.0.0"):
        with pytest.raises(DataError, match="tfds"):
            SOURCES["tfds"](data_dir=folder)
    assert addresses == ["gs://bucket/my/1.0.0", str(Path.home() / "my/1.0.0")]


def test_tfds_reads_chat_turns_and_builder_names(tfds_folder):
    root = tfds_folder.removesuffix("/tiny/1.0.0")
    prompts = SOURCES["tfds"](data_dir=root, builder="tiny", prompt_field="chat", id_field="name")
    longest = max(prompts, key=lambda p: len(p.messages))
    assert len(longest.messages) == 7 and longest.messages[1] == {
        "role": "assistant",
        "content": "b",
    }
    assert longest.text == "turn 3"


def test_tfds_errors_name_row_split_and_field(tfds_folder):
    with pytest.raises(DataError, match=r"tfds:.*\[blank\]:1: \"prompt\" is empty"):
        SOURCES["tfds"](data_dir=tfds_folder, split="blank")
    with pytest.raises(
        DataError, match='missing field "nmae"; the row has: chat, name, prompt, score'
    ):
        SOURCES["tfds"](data_dir=tfds_folder, id_field="nmae")
    with pytest.raises(DataError, match=r"Unknown split 'test'"):
        SOURCES["tfds"](data_dir=tfds_folder, split="test")
    with pytest.raises(DataError, match="array_record"):
        SOURCES["tfds"](data_dir=tfds_folder + "/nowhere")
    with pytest.raises(ConfigError, match="needs a folder"):
        SOURCES["tfds"]()


def test_repeated_ids_are_an_error_unless_asked_to_keep_the_first(tfds_folder, caplog):
    options = {"data_dir": tfds_folder, "split": "same", "id_field": "name"}
    with pytest.raises(DataError, match="2 bad rows"):
        SOURCES["tfds"](**options)
    assert len(SOURCES["tfds"](**options, duplicates="keep_first")) == 1
    assert "2 of 3 rows repeat an earlier id" in caplog.text
    with pytest.raises(ConfigError, match="allowed: error, keep_first"):
        SOURCES["tfds"](**options, duplicates="drop")


# ---- Hugging Face


def fake_datasets(monkeypatch, load):
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load))


def test_hf_rows_become_prompts_and_remote_code_is_never_asked_for(monkeypatch):
    calls = []

    def load(*args, **kwargs):
        calls.append((args, kwargs))
        turns = [{"role": "user", "content": "hi", "name": None}]
        return [
            {"prompt": "one", "prompt_id": "x", "score": 2},
            {"prompt": turns, "prompt_id": "y", "score": 3},
        ]

    fake_datasets(monkeypatch, load)
    one, two = SOURCES["hf"](
        repo_id="me/data", split="train_prefs", id_field="prompt_id", revision="abc"
    )
    assert calls == [(("me/data", None), {"split": "train_prefs", "revision": "abc"})]
    assert one == Prompt("x", ({"role": "user", "content": "one"},), {"score": 2})
    assert two.messages == ({"role": "user", "content": "hi"},)


def test_hf_metadata_that_is_no_json_is_named_at_load(monkeypatch):
    """The judge's journal and the records of a run would fail on it after the first rollout."""
    rows = [
        {"prompt": "a", "made": datetime.datetime(2024, 1, 1)},
        {"prompt": "b", "n": np.int64(3), "text": b"caf\xc3\xa9", "x": np.float32(0.5)},
        {"prompt": "c", "picture": object()},
    ]
    fake_datasets(monkeypatch, lambda *a, **k: rows)
    with pytest.raises(DataError) as caught:
        SOURCES["hf"](repo_id="me/data")
    assert str(caught.value).split("\n") == [
        "2 bad rows:",
        'hf:me/data[train]:1: "made" holds a value of type datetime, neither text nor a number;'
        " turn it into text, or remove the column",
        'hf:me/data[train]:3: "picture" holds a value of type object, neither text nor a number;'
        " turn it into text, or remove the column",
    ]
    rows[:] = rows[1:2]
    (prompt,) = SOURCES["hf"](repo_id="me/data")
    assert prompt.meta == {"n": 3, "text": "café", "x": 0.5} and type(prompt.meta["n"]) is int


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (
            Prompt("p", ({"role": "user", "content": "x"},), {"day": datetime.date(2024, 1, 1)}),
            "date",
        ),
        (Prompt("p", ({"role": "user", "content": "x"},), {1: "a"}), "a key that is no text: 1"),
        (Prompt("p", ({"role": "user", "content": ["x"]},)), "content must be a string, not list"),
        (Prompt("p", ({"role": "user"},)), 'must be an object with "role" and "content"'),
        (Prompt("p", ()), "is empty"),
    ],
)
def test_a_source_of_ones_own_is_checked_as_well(monkeypatch, made, reason):
    monkeypatch.setitem(SOURCES, "mine", lambda: [made])
    settings = {"source": {"name": "mine"}, "heldout": 0, "max_prompt_length": 99}
    with pytest.raises(DataError, match=f"data source 'mine':\nprompt 'p': .*{reason}"):
        prepare_prompts(settings, byte_tokenizer(), seed=0)


def test_hf_errors_name_the_row_the_data_set_and_the_extra(monkeypatch):
    fake_datasets(monkeypatch, lambda *a, **k: [{"prompt": "ok"}, {"prompt": None}])
    with pytest.raises(DataError, match=r"hf:me/data\[train\]:2: \"prompt\" must be a string"):
        SOURCES["hf"](repo_id="me/data")

    def offline(*args, **kwargs):
        raise ConnectionError("no network")

    fake_datasets(monkeypatch, offline)
    with pytest.raises(DataError, match=r"'me/data', split 'train', cannot be loaded: no network"):
        SOURCES["hf"](repo_id="me/data")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'ssppo_jax\[hf\]'"):
        SOURCES["hf"](repo_id="me/data")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ConfigError, match="pip install tensorflow-datasets"):
        SOURCES["tfds"](data_dir="anything")
    with pytest.raises(ConfigError, match="needs a data set"):
        SOURCES["hf"]()


# ---- split


@pytest.mark.parametrize(
    ("n", "heldout", "seed"), [(2, 1, 0), (50, 10, 0), (50, 10, 1), (97, 96, 3), (5, 0, 0)]
)
def test_split_is_a_partition_of_the_asked_size(n, heldout, seed):
    split = split_prompts(many(n), heldout=heldout, seed=seed)
    train, out = {p.id for p in split.train}, {p.id for p in split.heldout}
    assert len(out) == heldout and len(train) == n - heldout
    assert not train & out and train | out == {p.id for p in many(n)} and split.duplicates == ()


def test_split_does_not_depend_on_file_order_but_on_the_seed():
    rows = many(40)
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(40)]
    assert split_prompts(rows, heldout=8, seed=0) == split_prompts(shuffled, heldout=8, seed=0)
    assert (
        split_prompts(rows, heldout=8, seed=0).heldout
        != split_prompts(rows, heldout=8, seed=1).heldout
    )


def test_adding_prompts_rarely_moves_others_across_the_split():
    before = {p.id for p in split_prompts(many(100), heldout=20, seed=0).heldout}
    after = {p.id for p in split_prompts(many(105), heldout=20, seed=0).heldout}
    assert len(before - after) <= 5


def test_copies_of_heldout_texts_are_kept_out_of_training_and_named():
    rows = many(30)
    held = split_prompts(rows, heldout=10, seed=0).heldout
    say = ("SAY", "say", "sAY", "saY", "SaY", "SAy")  # each differs from the others too
    copies = [prompt(f"copy {word}", f"  {held[0].text.replace('Say', word)}\n") for word in say]
    split = split_prompts([*rows, *copies], heldout=10, seed=0)
    train, out = ({p.id for p in part} for part in (split.train, split.heldout))
    assert held[0].id in out and split.duplicates  # else this test shows nothing
    assert set(split.duplicates) == {c.id for c in copies} - out and not train & {
        c.id for c in copies
    }
    assert len(train) + len(out) + len(split.duplicates) == 36


@pytest.mark.parametrize(
    "one, two",
    [
        ("What is 3 + 5?", "what is  3+5"),
        ("Tell me, please, a tale.", "Tell me please a tale"),
        ("It’s “true” — no?", 'it\'s "true" - no'),
        ("Add ３ and ５", "Add 3 and 5"),  # full width
        ("Ende gut. Alles GROẞ!", "ende gut alles gross"),
        ("What is 3 + 5?", "What is 5 + 3?"),
        ("2.5 × 4 × 10 =", "10 × 2.5 × 4 ="),
    ],
)
def test_twins_in_other_dress_are_one_question(one, two):
    twins = [prompt("a", one), prompt("b", two)]
    assert question(twins[0]) == question(twins[1])
    split = split_prompts([*many(20), *twins], heldout=21, seed=0)  # one is left to train on
    sides = [{p.id for p in part} & {"a", "b"} for part in split[:2]]
    assert not (sides[0] and sides[1]) and len(split.train) + len(split.duplicates) == 1


@pytest.mark.parametrize(
    "one, two",
    [
        ("What is 3 + 5?", "What is 3 - 5?"),
        ("What is 1.5?", "What is 15?"),
        ("What is 3 - 5?", "What is 5 - 3?"),
        ("What is 2 * 3 + 5?", "What is 2 * 5 + 3?"),
        ("What is 2^3 + 5?", "What is 2^5 + 3?"),
        ("What is 1 - 2 + 3?", "What is 1 - 3 + 2?"),
        ("What is a1 + 2?", "What is a2 + 1?"),
        ("Is x != y true?", "Is x == y true?"),
        ("Decode .- -...", "Decode .-- ..."),
        ("Sort ab c", "Sort a bc"),
        ("f(x, y)", "f(y, x)"),
    ],
)
def test_different_questions_are_not_twins(one, two):
    assert question(prompt("a", one)) != question(prompt("b", two))


def test_a_canonical_form_decides_before_the_text():
    asked = [
        Prompt(n, prompt(n, n).messages, canonical=c) for n, c in zip("abc", "xxy", strict=True)
    ]
    assert question(asked[0]) == question(asked[1]) != question(asked[2])


def test_what_earlier_runs_held_out_comes_first_and_what_they_trained_on_comes_last():
    rows = many(30)
    before = split_prompts(rows, heldout=10, seed=0)
    history = History(
        frozenset(map(question, before.train)), {p.id: question(p) for p in before.heldout}
    )
    assert {p.id for p in split_prompts(rows, heldout=10, seed=1).heldout} != {
        p.id for p in before.heldout
    }  # else this test shows nothing
    again = split_prompts(rows, heldout=10, seed=1, history=history)
    assert {p.id for p in again.heldout} == {p.id for p in before.heldout} and again.seen == ()
    # Five prompts are new: they are held out before any that was trained on, after the old ones.
    new = [prompt(f"new{i}", f"Sing {i}") for i in range(5)]
    more = split_prompts([*new, *rows], heldout=17, seed=1, history=history)
    assert {p.id for p in more.heldout[:10]} == {p.id for p in before.heldout}
    assert {p.id for p in more.heldout[10:15]} == {p.id for p in new}
    assert more.seen == tuple(p.id for p in more.heldout[15:])
    # The same id with another text is another prompt.
    other = [prompt(p.id, "Sing " + p.id) for p in rows]
    assert split_prompts(other, heldout=10, seed=1, history=history) == split_prompts(
        other, heldout=10, seed=1
    )


@pytest.mark.parametrize("heldout", [-1, 5, 6])
def test_a_split_that_leaves_nothing_is_an_error(heldout):
    with pytest.raises(ConfigError, match=f"heldout={heldout} of 5 prompts; allowed: 0 to 4"):
        split_prompts(many(5), heldout=heldout, seed=0)


def test_a_single_prompt_cannot_be_split():
    with pytest.raises(ConfigError, match="give at least 2 prompts"):
        split_prompts(many(1), heldout=1, seed=0)


def test_a_train_set_of_copies_only_is_an_error():
    with pytest.raises(ConfigError, match="repeats a held-out one"):
        split_prompts([prompt("a", "same"), prompt("b", "same")], heldout=1, seed=0)


# ---- order


@pytest.mark.parametrize(("count", "portions"), [(10, 3), (9, 3), (7, 7), (1, 1), (1000, 16)])
def test_portions_are_disjoint_and_cover_all_prompts(count, portions):
    parts = [portion(t, count, portions=portions, seed=4) for t in range(portions)]
    assert sorted(np.concatenate(parts)) == list(range(count))
    sizes = [len(p) for p in parts]
    assert max(sizes) - min(sizes) <= 1 and sizes == portion_sizes(count, portions=portions)


def test_iterations_past_the_last_portion_pass_over_the_prompts_again():
    """A run that was made longer: what it trained on before stays, and no part repeats another."""
    passes = [[portion(3 * n + t, 13, portions=3).tolist() for t in range(3)] for n in range(2)]
    for parts in passes:
        assert sorted(i for part in parts for i in part) == list(range(13))
        assert [len(part) for part in parts] == portion_sizes(13, portions=3)
    assert sorted(passes[0][0]) != sorted(passes[1][0])


@pytest.mark.parametrize(("count", "size"), [(12, 4), (10, 4), (5, 5), (7, 3)])
def test_online_passes_never_repeat_a_prompt_within_a_pass(count, size):
    per_pass = count // size
    for epoch in range(3):
        seen = [
            portion(epoch * per_pass + i, count, prompts_per_iteration=size)
            for i in range(per_pass)
        ]
        seen = np.concatenate(seen)
        assert len(set(seen.tolist())) == len(seen) == per_pass * size
        assert seen.min() >= 0 and seen.max() < count


def test_online_passes_are_shuffled_anew_and_reach_every_prompt():
    passes = [portion(t, 12, prompts_per_iteration=12).tolist() for t in range(4)]
    assert (
        all(sorted(p) == list(range(12)) for p in passes) and len({tuple(p) for p in passes}) == 4
    )
    reached = np.concatenate([portion(t, 10, prompts_per_iteration=4) for t in range(20)])
    assert set(reached.tolist()) == set(range(10))


def test_seeds_do_not_share_passes():
    passes = [
        [tuple(portion(t, 12, prompts_per_iteration=12, seed=s)) for t in range(5)]
        for s in (0, 1, 2)
    ]
    assert len({p for group in passes for p in group}) == 15


def test_the_order_is_pinned():
    # A checkpoint stores only the iteration; another shuffle in a later Grain must not pass
    # unnoticed.
    assert portion(1, 10, prompts_per_iteration=4, seed=0).tolist() == [7, 2, 9, 8]
    assert portion(1, 10, portions=3, seed=0).tolist() == [5, 7, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"portions": 0}, "portions=0 with 10 training prompts; allowed: 1 to 10"),
        ({"portions": 11}, "portions=11 with 10"),
        (
            {"prompts_per_iteration": 11},
            "train.prompts_per_iteration=11 with 10 training prompts.* 0 .all of them. to 10",
        ),
        ({"prompts_per_iteration": -1}, "prompts_per_iteration=-1"),
    ],
)
def test_impossible_portions_are_errors(options, message):
    with pytest.raises(ConfigError, match=message):
        portion(0, 10, **options)
    with pytest.raises(ConfigError, match=message):
        portion_sizes(10, **({"portions": 3} | options))


def test_online_iterations_have_one_size():
    assert portion_sizes(10, portions=4, prompts_per_iteration=3) == [3] * 4


def test_fingerprint_sees_ids_texts_meta_tokens_order_and_settings():
    def digest(rows, tokens=(1, 2), **settings):
        encoded = [EncodedPrompt(p, np.array(tokens, np.int32), address(p.id)) for p in rows]
        return fingerprint(encoded, **({"seed": 0, "portions": 3} | settings))

    rows = many(4)
    base = digest(rows)
    assert base == digest(many(4))
    changed = [
        digest(rows, seed=1),
        digest(rows, tokens=(1, 3)),  # another date in the template, say
        digest(rows[:3]),
        digest(rows[::-1]),
        digest([*rows[:3], prompt("p3", "Say p3!")]),
        digest([*rows[:3], prompt("q3", rows[3].text)]),
        digest([*rows[:3], Prompt("p3", rows[3].messages, {"answer": 4})]),
    ]
    assert len({base, *changed}) == 8


# ---- addresses and encoding


def test_an_address_is_the_crc_of_the_id():
    assert address("q0001") == zlib.crc32(b"q0001") and isinstance(address("q0001"), np.uint32)


def test_colliding_ids_get_different_addresses_in_any_order():
    assert address("plumless") == address("buckeroo")
    spots = addresses(["plumless", "x", "buckeroo"])
    assert len(set(spots.values())) == 3 and spots == addresses(["buckeroo", "plumless", "x"])
    assert spots["buckeroo"] == address("buckeroo") and spots["x"] == address("x")
    assert all(isinstance(a, np.uint32) for a in spots.values())


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def test_encoding_keeps_ids_and_addresses_and_lists_the_dropped(tokenizer):
    rows = [prompt("short", "hi"), prompt("long", "x" * 99), prompt("mid", "x" * 9)]
    limit = len(encode_chat(tokenizer, rows[2].messages))
    encoded, dropped = encode_prompts(rows, tokenizer, max_prompt_length=limit)
    assert [e.prompt.id for e in encoded] == ["short", "mid"]
    np.testing.assert_array_equal(encoded[1].tokens, encode_chat(tokenizer, rows[2].messages))
    assert encoded[1].address == address("mid")
    assert dropped.rows == (("long", limit + 90),) and dropped.total == 3
    assert str(dropped) == f"dropped 1 of 3 prompts longer than {limit} tokens: long ({limit + 90})"
    assert (
        str(encode_prompts(rows, tokenizer, max_prompt_length=999)[1])
        == "all 3 prompts have at most 999 tokens"
    )


@pytest.mark.parametrize(
    "opened, thinks",
    [("<think>\n", True), ("<think>", True), ("<think>\n\n</think>\n\n", False), ("", False)],
)
def test_a_template_that_opens_the_thinking_is_told_to_the_oracles(opened, thinks):
    template = CHATML.replace("assistant\n", "assistant\n" + opened)
    (row,), _ = encode_prompts(
        [prompt("a", "<think>")], byte_tokenizer(template=template), max_prompt_length=99
    )
    assert row.prompt.meta.get("opens_thinking", False) is thinks


def test_a_long_list_of_dropped_prompts_is_cut_and_counted(tokenizer):
    rows = [prompt("short", "hi"), *(prompt(f"l{i}", "x" * 99) for i in range(30))]
    _, dropped = encode_prompts(rows, tokenizer, max_prompt_length=50)
    assert (
        len(dropped.rows) == 30
        and str(dropped).endswith(" and 10 more")
        and "l19 (" in str(dropped)
    )


def test_dropping_every_prompt_is_an_error(tokenizer):
    with pytest.raises(DataError, match="no prompt is left: dropped 2 of 2"):
        encode_prompts(many(2), tokenizer, max_prompt_length=3)


def test_prompts_the_template_refuses_are_all_named():
    tokenizer = byte_tokenizer(template="{{ raise_exception('never') }}")
    with pytest.raises(DataError) as caught:
        encode_prompts(many(25), tokenizer, max_prompt_length=99)
    lines = str(caught.value).splitlines()
    assert (
        lines[0].startswith("prompt 'p0': ") and len(lines) == 21 and lines[-1] == "... and 5 more"
    )


def test_an_epoch_takes_every_row_once_and_none_is_shuffled_like_another():
    config = ConfigDict({"seed": 3, "train": {"batch_size": 8, "epochs": 2}})
    steps = [epoch_batches(config, iteration, 20) for iteration in (0, 1)]
    assert [len(rows) for rows in steps[0]] == [8, 8, 4, 8, 8, 4]
    epochs = [np.concatenate(part) for both in steps for part in (both[:3], both[3:])]
    for rows in epochs:
        np.testing.assert_array_equal(np.sort(rows), np.arange(20))
    assert len({rows.tobytes() for rows in epochs}) == 4
    for one, again in zip(steps[1], epoch_batches(config, 1, 20), strict=True):
        np.testing.assert_array_equal(one, again)


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda: None, "gives a NoneType; a source returns a list of Prompt"),
        (lambda: ["Name a tree."], "gives a str; a source returns a list of Prompt"),
        (list, "gives no prompt; a source returns a list of Prompt"),
    ],
)
def test_what_is_no_list_of_prompts_is_named(monkeypatch, made, told):
    monkeypatch.setitem(SOURCES, "mine", made)
    with pytest.raises(DataError, match=told):
        load_prompts({"name": "mine"})


def test_a_source_may_be_a_generator_and_its_mistakes_have_a_line(tmp_path, monkeypatch):
    file = tmp_path / "mine.py"
    file.write_text(
        "from ssppo_jax.types import Prompt\n"
        "def made(*, rows=2):\n"
        "    for n in range(rows):\n"
        "        yield Prompt(str(n), ({'role': 'user', 'content': f'Count to {4 / (1 - n)}.'},))\n"
    )
    load_function(f"{file}:made")
    monkeypatch.setitem(SOURCES, f"{file}:made", load_function(f"{file}:made"))
    assert [p.id for p in load_prompts({"name": f"{file}:made", "rows": 1})] == ["0"]
    with pytest.raises(DataError, match=r"mine\.py:4: ZeroDivisionError"):
        load_prompts({"name": f"{file}:made", "rows": 2})
