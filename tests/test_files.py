"""Files are whole or old, and a line of JSON is never cut inside a string."""

import json
import math
import os

import pytest

from ssppo_jax import config, files
from ssppo_jax.errors import ConfigError, DataError
from ssppo_jax.plan.compile import read_model
from ssppo_jax.weights.encoder import locate_encoder
from ssppo_jax.weights.source import resolve


def test_a_write_that_dies_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "deep" / "f.txt"
    files.write_lines(path, ["old"])

    def half(file):
        file.write(b"half of the n")
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        files.write_atomically(path, half)
    assert path.read_text() == "old\n"


def test_what_is_written_is_on_the_disk_before_it_takes_the_name(tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: steps.append("fsync"))
    monkeypatch.setattr(os, "replace", lambda old, new: steps.append("replace"))
    files.write_lines(tmp_path / "f", ["x"])
    assert steps == ["fsync", "replace", "fsync"]  # the file, its name, the folder


def test_json_keeps_every_letter_whatever_the_locale_says(tmp_path, monkeypatch):
    monkeypatch.setattr("locale.getpreferredencoding", lambda *_: "ascii")
    value = {"text": "é\u2028☕", "list": [1, 2.5, None]}
    files.write_json(tmp_path / "v.json", value)
    assert files.read_json(tmp_path / "v.json") == value
    assert "é\\u2028☕".encode() in (tmp_path / "v.json").read_bytes()


def test_records_are_cut_at_line_feeds_alone(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_bytes('\ufeff{"text": "a\u2028b\u0085c"}\r\n{"n": 1}\n'.encode())
    assert list(files.read_records(path)) == [{"text": "a\u2028b\u0085c"}, {"n": 1}]


LINE_ENDS = [*"\r\n\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"]  # all that str.splitlines knows


@pytest.mark.parametrize("character", [*LINE_ENDS, "\ud83d"], ids=ascii)
def test_a_record_is_one_line_for_every_reader_and_comes_back_whole(tmp_path, character):
    """Also half of a surrogate pair, which UTF-8 cannot hold."""
    path, record = tmp_path / "r.jsonl", {f"a{character}b": [f"é{character}☕", {"x": character}]}
    files.write_records(path, [record, {"n": 1}])
    assert len(path.read_bytes().splitlines()) == 2
    assert len(path.read_text(encoding="utf-8").splitlines()) == 2
    assert list(files.read_records(path)) == [record, {"n": 1}]
    assert "é".encode() in path.read_bytes() and "☕".encode() in path.read_bytes()
    files.write_json(tmp_path / "r.json", record)
    assert files.read_json(tmp_path / "r.json") == record


@pytest.mark.parametrize("line", [b"[1]", b"null", b"[" * 100_000])
def test_a_line_that_is_no_object_is_named(tmp_path, line):
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"n": 1}\n' + line + b"\n")
    with pytest.raises(DataError, match=r"r\.jsonl:2: not a JSON record"):
        list(files.read_records(path))


def test_a_torn_last_line_is_left_out_and_cut_off(tmp_path, caplog):
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n": 2, "to')
    assert list(files.read_records(path)) == [{"n": 1}]
    assert f"{path}:2: the last line is incomplete" in caplog.text
    assert files.whole_lines(path) == ([b'{"n": 1}'], True)
    assert path.read_bytes() == b'{"n": 1}\n'


def test_another_line_that_is_not_json_is_named(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"n": 1}\noops\n{"n": 2}\n')
    with pytest.raises(DataError, match=r"r\.jsonl:2: not a JSON record"):
        list(files.read_records(path))


@pytest.mark.parametrize("read", [config.expanded, read_model, locate_encoder, resolve])
def test_the_home_of_a_user_that_is_not_there_is_named_wherever_a_path_is_read(read):
    with pytest.raises(ConfigError, match="'~nosuchuser/x' begins with the home folder of a user"):
        read("~nosuchuser/x")


def test_the_cache_folder_is_the_users_choice(monkeypatch, tmp_path):
    monkeypatch.setenv("SSPPO_CACHE", str(tmp_path))
    assert files.default_cache() == tmp_path
    monkeypatch.setenv("SSPPO_CACHE", "")
    assert files.default_cache().parts[-2:] == (".cache", "ssppo_jax")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SSPPO_CACHE", "~/cache")  # quoted, so that no shell has put the home there
    assert files.default_cache() == tmp_path / "cache"
    monkeypatch.setenv("SSPPO_CACHE", "~nosuchuser/x")
    with pytest.raises(ConfigError, match="set SSPPO_CACHE to one"):
        files.default_cache()


def test_a_number_that_is_none_is_null_at_any_depth_and_the_rest_stays():
    value = {"a": [1.5, math.nan, (math.inf, -math.inf)], "b": {"c": math.nan, "d": "NaN", "e": 2}}
    wanted = {"a": [1.5, None, [None, None]], "b": {"c": None, "d": "NaN", "e": 2}}
    text = files.to_json(value)
    assert json.loads(text) == wanted and "Infinity" not in text


def test_a_json_file_holds_no_nan(tmp_path):
    files.write_json(tmp_path / "x.json", {"low": -math.inf, "text": "\u2028é"})
    assert files.read_json(tmp_path / "x.json") == {"low": None, "text": "\u2028é"}
