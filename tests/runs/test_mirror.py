"""A run's folder in a store: whatever is killed when, what is there is a folder to continue from.

The store is fsspec's own in memory; `make s3` runs the same against an S3 server."""

import json
import shutil
import sys
from itertools import count

import fsspec
import pytest

from ssppo_jax.__main__ import main
from ssppo_jax.errors import ConfigError, Interrupted, UserError, WriteError
from ssppo_jax.runs import mirror as mirrors
from ssppo_jax.runs.mirror import Mirror
from ssppo_jax.runs.report import build
from ssppo_jax.training import train as train_module
from ssppo_jax.weights.checkpoint import find_damage, write_manifest

STORE = fsspec.filesystem("memory")
NUMBER = count()


@pytest.fixture
def address(tmp_path, monkeypatch):
    monkeypatch.setenv("SSPPO_CACHE", str(tmp_path / "one"))
    return f"memory://bucket{next(NUMBER)}/run"


def elsewhere(tmp_path, monkeypatch, address, name="two"):
    """The same place, seen from another machine."""
    monkeypatch.setenv("SSPPO_CACHE", str(tmp_path / name))
    return Mirror(address)


def checkpoint(folder, step, offset):
    path = folder / "checkpoints" / f"step_{step:08d}"
    (path / "arrays" / "d").mkdir(parents=True)
    (path / "arrays" / "d" / "data").write_bytes(bytes([step]) * 1000)
    (path / "meta.json").write_text(json.dumps({"metrics_offset": offset}))
    write_manifest(path)


def work(folder, steps):
    """Go on to some steps as a run does: log, rollout, checkpoint, and two checkpoints are kept."""
    (folder / "rollouts").mkdir(parents=True, exist_ok=True)
    for step in steps:
        with open(folder / "metrics.jsonl", "ab") as log:
            log.write(b"x" * step + b"\n")
            offset = log.tell()
        (folder / "rollouts" / f"iteration_{step:05d}.npz").write_bytes(b"rows")
        checkpoint(folder, step, offset)
        (folder / "rollouts" / f"iteration_{step - 2:05d}.npz").unlink(missing_ok=True)
        shutil.rmtree(folder / "checkpoints" / f"step_{step - 2:08d}", ignore_errors=True)


def content(folder):
    skipped = ("run.lock", "mirror.json", "tmp_", "tensorboard")
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.relative_to(folder).as_posix().startswith(skipped)
    }


def test_another_machine_finds_the_folder_but_for_locks_and_half_written_files(
    address, tmp_path, monkeypatch
):
    with Mirror(address) as one:
        work(one.folder, (1, 2, 3))
        for name in ("run.lock", "tmp_4/arrays", "tensorboard/events", "policy/.x.tmp-12/model"):
            (one.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (one.folder / name).write_bytes(b"")
    with elsewhere(tmp_path, monkeypatch, address) as two:
        assert two.folder != one.folder
        expected = content(one.folder)
        expected.pop("policy/.x.tmp-12/model")
        assert content(two.folder) == expected and len(expected) == 9


def test_only_what_changed_is_put_again_also_by_another_machine(address, tmp_path, monkeypatch):
    put = []
    original = type(STORE).put_file
    monkeypatch.setattr(
        type(STORE),
        "put_file",
        lambda self, here, there, **how: (put.append(there), original(self, here, there, **how)),
    )
    with Mirror(address) as one:
        work(one.folder, (1, 2))
        one.push()
    first = len(put)
    with elsewhere(tmp_path, monkeypatch, address) as two:
        work(two.folder, (3,))
    again = [name.partition("/run/")[2] for name in put[first:]]
    assert again == [
        "metrics.jsonl",
        "rollouts/iteration_00003.npz",
        "checkpoints/step_00000003/arrays/d/data",
        "checkpoints/step_00000003/meta.json",
        "checkpoints/step_00000003/manifest.sha256",
    ]


class Killed(BaseException):
    pass


def killing(operation, left):
    """An operation on the store that works as often as `left` says, counted together."""

    def replacement(self, *args, **how):
        if next(left, None) is None:
            raise Killed
        return operation(self, *args, **how)

    return replacement


def test_killed_before_any_write_there_is_a_folder_to_continue_from(address, tmp_path, monkeypatch):
    """Every operation on the store in turn is the last one that a push gets to."""
    operations = ("put_file", "rm_file", "pipe_file")
    originals = {name: getattr(type(STORE), name) for name in operations}
    seen = set()
    for allowed in count():
        place = f"{address}{allowed}"
        one = elsewhere(tmp_path, monkeypatch, place, f"a{allowed}")
        one.__enter__()
        work(one.folder, (1, 2))
        one.push()
        work(one.folder, (3, 4))
        (one.folder / "result.json").write_text("{}")
        with monkeypatch.context() as patch:
            left = iter(range(allowed))
            for name in operations:
                patch.setattr(type(STORE), name, killing(originals[name], left))
            try:
                one._push()
                whole = True
            except Killed:
                whole = False
        one._lock.__exit__()
        with elsewhere(tmp_path, monkeypatch, place, f"b{allowed}") as two:
            steps = sorted((two.folder / "checkpoints").iterdir())
            assert steps and not any(find_damage(step) for step in steps)
            offset = json.loads((steps[-1] / "meta.json").read_text())["metrics_offset"]
            log = (two.folder / "metrics.jsonl").read_bytes()
            assert log[offset - 1 : offset] == b"\n"
            newest = int(steps[-1].name[-1])
            seen.add(newest)
            assert (two.folder / "rollouts" / f"iteration_{newest:05d}.npz").exists()
            if (two.folder / "result.json").exists():
                assert content(two.folder) == content(one.folder)
        if whole:
            break
    assert seen == {2, 3, 4} and allowed > 10


def test_the_run_started_last_owns_the_place_and_the_other_writes_nothing_more(
    address, tmp_path, monkeypatch
):
    one = Mirror(address)
    with pytest.raises(UserError, match=r"taken over by another run \(pid \d+ on host"), one:
        work(one.folder, (1,))
        one.push()
        with elsewhere(tmp_path, monkeypatch, address) as two:
            work(two.folder, (2,))
        work(one.folder, (2, 3))
    with elsewhere(tmp_path, monkeypatch, address, "three") as three:
        assert content(three.folder) == content(two.folder)


def test_a_second_run_of_this_machine_is_refused(address):
    with Mirror(address), pytest.raises(UserError, match="another run is using"), Mirror(address):
        pass


def test_a_folder_that_is_up_to_date_is_kept_and_a_stale_one_is_fetched_anew(
    address, tmp_path, monkeypatch
):
    with Mirror(address) as one:
        work(one.folder, (1, 2))
        one.push()
        work(one.folder, (3,))
        monkeypatch.setattr(one, "_push", lambda: None)  # killed before the push
    again = Mirror(address)
    with again:
        assert content(again.folder) == content(one.folder)  # it is ahead of the store
    with elsewhere(tmp_path, monkeypatch, address) as two:
        work(two.folder, (4,))
    monkeypatch.setenv("SSPPO_CACHE", str(tmp_path / "one"))
    with Mirror(address) as third:
        assert third.folder == one.folder and content(third.folder) == content(two.folder)


def test_a_push_that_fails_is_tried_again_and_the_last_one_is_an_error(
    address, monkeypatch, caplog
):
    def down(self, *_, **__):
        raise ConnectionError("no route to host")

    one = Mirror(address)
    with pytest.raises(WriteError, match=r"memory://.* not be written: ConnectionError"), one:
        work(one.folder, (1,))
        with monkeypatch.context() as patch:
            patch.setattr(type(STORE), "put_file", down)
            one.push()
        assert "no route to host" in caplog.text and "tries again" in caplog.text
        one.push()
        assert STORE.exists(f"{one.root}/metrics.jsonl")
        work(one.folder, (2,))
        monkeypatch.setattr(type(STORE), "put_file", down)
    with pytest.raises(Interrupted), Mirror(address) as one:
        work(one.folder, (3,))
        raise Interrupted  # the run's own end is not hidden


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("ftpp://host/run", "give s3://, gs:// or a path"),
        ("s3://bucket/run", "pip install 'ssppo_jax[s3]'"),
    ],
)
def test_a_store_that_cannot_be_reached_says_what_to_do(given, words, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ConfigError) as told:
        Mirror(given)
    assert words in str(told.value)


def test_processes_on_several_hosts_are_refused(address, monkeypatch):
    monkeypatch.setattr(mirrors.hosts, "exchange", lambda value, what: ["a", "b"])
    with pytest.raises(ConfigError, match="on 2 hosts"), Mirror(address):
        pass


def test_train_works_in_a_store_and_the_other_commands_say_that_they_do_not(
    address, tmp_path, monkeypatch, capsys
):
    def train(config, workdir, *, profile, on_saved):
        (workdir / "metrics.jsonl").write_text("{}\n")
        on_saved()
        assert STORE.exists(f"{address}/metrics.jsonl")
        (workdir / "result.json").write_text("{}")
        return {"win_rate": 0.5}

    monkeypatch.setattr(train_module, "train", train)
    monkeypatch.setattr(build, "build_report", lambda folder: folder / "report.html")
    command = ["train", "--config=smoke", "--config.train.batch_size=16"]
    assert main([*command, f"--workdir={address}"]) == 0
    assert "0.5" in capsys.readouterr().out and STORE.exists(f"{address}/result.json")
    for other in (
        ["sweep", "--config=smoke", f"--workdir={address}"],
        ["convert", "--input=random:tiny", f"--output={address}"],
        ["generate", "--config=smoke", f"--output={address}"],
        ["compare", f"--workdir={tmp_path}", f"--output={address}"],
    ):
        assert main(other) == 78
        assert "only train works in a store" in capsys.readouterr().err
    assert main([*command, "--workdir="]) == 78
    assert "no path is given; is a variable of the shell empty?" in capsys.readouterr().err


def test_what_others_keep_in_a_place_is_not_deleted(address):
    STORE.pipe_file(f"{address}/precious/weights.safetensors", b"x")
    with pytest.raises(ConfigError, match=r"holds files of no run, such as precious/weights"):
        Mirror(address).__enter__()
    assert STORE.cat_file(f"{address}/precious/weights.safetensors") == b"x"


@pytest.mark.parametrize("lock", ["", '{"pid": 1, "host": "h", "since": "now"}'])
def test_a_run_of_a_disk_that_was_copied_there_is_not_deleted(address, lock):
    """It brings its own run.lock along: an empty one, or of a killed run one with its holder."""
    STORE.pipe_file(f"{address}/run.lock", lock.encode())
    STORE.pipe_file(f"{address}/checkpoints/step_00000001/meta.json", b"x")
    with pytest.raises(ConfigError, match=r"holds files of no run, such as checkpoints/"):
        Mirror(address).__enter__()
    assert STORE.cat_file(f"{address}/checkpoints/step_00000001/meta.json") == b"x"
