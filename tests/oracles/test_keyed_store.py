"""One file of keyed records: written by several threads, read again by the next run."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from ssppo_jax.errors import UserError
from ssppo_jax.oracles.store import KeyedStore


def read(fields):
    return str(fields["text"])


def test_records_of_several_threads_are_whole_and_found_again(tmp_path):
    path, odd = tmp_path / "new" / "store.jsonl", "\u2028\x85\r\n\ud800 é"
    store = KeyedStore(path, read)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: store.add({f"k{i}": {"text": f"{i}{odd}" * 500}}), range(64)))
    expected = {f"k{i}": f"{i}{odd}" * 500 for i in range(64)}
    assert store.known == expected == KeyedStore(path, read).known


def test_nothing_added_makes_no_file_and_a_record_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "store.jsonl"
    KeyedStore(path, read).add({})
    assert not path.exists()
    path.write_text('{"key": "a", "text": "x"}\n{"key": "b"}\n')
    with pytest.raises(UserError, match=r"store\.jsonl:2: not a record \(no JSON, or a field"):
        KeyedStore(path, read)
    with pytest.raises(UserError, match=r"new: cannot be read: Is a directory"):
        (tmp_path / "new").mkdir()
        KeyedStore(tmp_path / "new", read)


def test_a_line_torn_by_a_kill_is_cut_off(tmp_path):
    path = tmp_path / "store.jsonl"
    path.write_text('{"key": "a", "text": "x"}\n{"key": "b", "te')
    assert KeyedStore(path, read).known == {"a": "x"}
    assert path.read_text() == '{"key": "a", "text": "x"}\n'
