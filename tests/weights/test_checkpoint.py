import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ssppo_jax.errors import ConfigError, GateError, Interrupted, UserError, WriteError
from ssppo_jax.types import TrainState
from ssppo_jax.weights import checkpoint
from ssppo_jax.weights.checkpoint import MANIFEST, Checkpoints, find_damage

META = {
    "iteration": 3,
    "position": [4, 17],
    "seed": 42,
    "fingerprint": "ab12",
    "metrics_offset": 999,
}


class Momentum(NamedTuple):
    count: jax.Array
    trace: dict


def mesh(*shape):
    return jax.make_mesh(shape, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def state(value=0.0, shape=(8, 1)):
    """A train state with everything awkward in it: bfloat16, int32 scalars, key data, -0.0, a NaN
    with a payload."""
    sharded, replicated = (
        NamedSharding(mesh(*shape), PartitionSpec(*spec)) for spec in (("data", "fsdp"), ())
    )
    odd = np.array([0x7FC12345, 0x80000000, 0x00000001, 0xFF800000], np.uint32).view(np.float32)
    weight = jax.device_put(jnp.arange(128, dtype=jnp.float32).reshape(16, 8) + value, sharded)
    half = jax.device_put(jnp.linspace(-3, 3, 64).astype(jnp.bfloat16).reshape(8, 8), sharded)
    params = {"embed": weight, "layers": {"norm": half}}
    count = jax.device_put(jnp.int32(2**31 - 1), replicated)
    opt_state = (
        (),
        Momentum(count, {"embed": weight * 2, "layers": {"norm": None}}),
        jax.device_put(odd, replicated),
    )
    key = jax.device_put(jax.random.key_data(jax.random.key(7)), replicated)
    return {"train": TrainState(params, opt_state, count - 5), "key": key}


def like(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def assert_same_bits(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def save(folder, *steps, keep=2):
    checkpoints = Checkpoints(folder, keep=keep)
    for step in steps:
        checkpoints.save(step, state(step), META | {"step": step}, finite=True)
    return checkpoints


def flip(path: Path, bit: int):
    with open(path, "r+b") as file:
        place = bit // 8 % path.stat().st_size
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1 << bit % 8]))


def folders(path):
    return sorted(p.name for p in path.iterdir())


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two") / "run"
    save(folder, 1, 2)
    return folder


@pytest.fixture
def copy_of_two_steps(two_steps, tmp_path):
    return Path(shutil.copytree(two_steps, tmp_path / "copy"))


def test_what_was_saved_comes_back_bit_for_bit(tmp_path):
    original = state()
    Checkpoints(tmp_path).save(5, original, META, finite=True)
    again = Checkpoints(tmp_path)
    found, meta = again.restore(again.latest(), like(original))
    assert_same_bits(found, original)
    assert meta == META


def test_a_checkpoint_restores_on_another_mesh(two_steps):
    elsewhere = like(state(shape=(2, 4)))
    found, _ = Checkpoints(two_steps).restore(2, elsewhere)
    assert_same_bits(found, state(2))
    assert [x.sharding for x in jax.tree.leaves(found)] == [
        x.sharding for x in jax.tree.leaves(elsewhere)
    ]
    assert found["train"].params["embed"].addressable_shards[0].data.shape == (8, 2)


def test_one_flipped_bit_in_any_file_is_detected_and_the_older_checkpoint_wins(copy_of_two_steps):
    checkpoints = Checkpoints(copy_of_two_steps)
    newest = copy_of_two_steps / "step_00000002"
    files = [p for p in newest.rglob("*") if p.is_file() and p.stat().st_size]
    assert {MANIFEST, "meta.json", "manifest.ocdbt"} <= {p.name for p in files}
    for number, path in enumerate(files):
        flip(path, 1237 * number)
        assert checkpoints.latest() == 1, path
        assert list(checkpoints.damaged) == ["step_00000002"]
        with pytest.raises(UserError, match="no valid checkpoint of step 2"):
            checkpoints.restore(2, like(state()))
        flip(path, 1237 * number)
    assert checkpoints.latest() == 2


def test_every_byte_of_the_manifest_counts(copy_of_two_steps):
    manifest = copy_of_two_steps / "step_00000001" / MANIFEST
    for byte in range(manifest.stat().st_size):
        flip(manifest, 8 * byte + byte % 8)
        assert find_damage(manifest.parent), byte
        flip(manifest, 8 * byte + byte % 8)
    assert find_damage(manifest.parent) is None


@pytest.mark.parametrize("victim", ["meta.json", MANIFEST, "arrays/manifest.ocdbt"])
def test_a_missing_or_cut_file_is_damage(copy_of_two_steps, victim):
    path = copy_of_two_steps / "step_00000002" / victim
    path.write_bytes(path.read_bytes()[:-1])
    assert Checkpoints(copy_of_two_steps).latest() == 1
    path.unlink()
    assert Checkpoints(copy_of_two_steps).latest() == 1


def test_damage_is_reported_with_the_file(copy_of_two_steps, caplog):
    flip(copy_of_two_steps / "step_00000002" / "meta.json", 3)
    Checkpoints(copy_of_two_steps).latest()
    assert "step_00000002 is damaged" in caplog.text and "meta.json" in caplog.text


def test_only_damaged_checkpoints_never_mean_start_from_scratch(copy_of_two_steps):
    for step in copy_of_two_steps.iterdir():
        flip(step / "meta.json", 3)
    with pytest.raises(UserError, match=r"every checkpoint .* is damaged:\n.*step_00000002"):
        Checkpoints(copy_of_two_steps).latest()


def test_an_empty_folder_and_an_interrupted_first_save_have_nothing_to_resume(tmp_path, caplog):
    assert Checkpoints(tmp_path / "never").latest() is None
    (tmp_path / "tmp_00000001").mkdir()
    assert Checkpoints(tmp_path).latest() is None
    assert "interrupted" in caplog.text


def test_latest_without_validation_reads_no_arrays(copy_of_two_steps):
    flip(copy_of_two_steps / "step_00000002" / "meta.json", 3)
    assert Checkpoints(copy_of_two_steps).latest(validate=False) == 2


def test_old_steps_go_but_keep_valid_ones_stay(copy_of_two_steps):
    save(copy_of_two_steps, 3)
    assert folders(copy_of_two_steps) == ["step_00000002", "step_00000003"]


def test_a_damaged_step_does_not_count_as_kept(copy_of_two_steps):
    flip(copy_of_two_steps / "step_00000002" / "meta.json", 3)
    save(copy_of_two_steps, 3)
    assert folders(copy_of_two_steps) == ["step_00000001", "step_00000003"]


def test_damaged_steps_stay_to_be_looked_at_until_enough_valid_ones_exist(copy_of_two_steps):
    for step in copy_of_two_steps.iterdir():
        flip(step / "meta.json", 3)
    save(copy_of_two_steps, 3)
    assert folders(copy_of_two_steps) == ["step_00000001", "step_00000002", "step_00000003"]
    save(copy_of_two_steps, 4)
    assert folders(copy_of_two_steps) == ["step_00000003", "step_00000004"]


def test_a_kill_while_deleting_leaves_nothing_that_looks_damaged(copy_of_two_steps, monkeypatch):
    def half_delete(path, **_):
        (path / MANIFEST).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint.shutil, "rmtree", half_delete)
        save(copy_of_two_steps, 3)
    assert folders(copy_of_two_steps) == [
        "step_00000002",
        "step_00000003",
        "tmp_deleting_step_00000001",
    ]
    save(copy_of_two_steps, 4)
    assert folders(copy_of_two_steps) == ["step_00000003", "step_00000004"]


def test_a_second_start_removes_what_a_kill_left(copy_of_two_steps):
    checkpoints = Checkpoints(copy_of_two_steps)
    for name in ("tmp_00000003", "tmp_deleting_step_00000000"):
        (copy_of_two_steps / name).mkdir()
    checkpoints.clear()
    assert folders(copy_of_two_steps) == ["step_00000001", "step_00000002"]


def test_the_metas_of_what_is_kept_are_known_newest_first(copy_of_two_steps):
    checkpoints = Checkpoints(copy_of_two_steps)
    assert [meta["step"] for meta in checkpoints.metas()] == [2, 1]
    (copy_of_two_steps / "step_00000002" / "meta.json").write_bytes(b"{")
    assert [meta["step"] for meta in checkpoints.metas()] == [1]


def test_nothing_is_deleted_when_the_new_checkpoint_does_not_verify(copy_of_two_steps, monkeypatch):
    publish = Checkpoints._publish

    def publish_on_a_bad_disk(self, temporary, text, name):
        publish(self, temporary, text, name)
        flip(self.folder / name / "arrays" / "manifest.ocdbt", 40)
        return 0

    monkeypatch.setattr(Checkpoints, "_publish", publish_on_a_bad_disk)
    with pytest.raises(UserError, match="does not verify"):
        save(copy_of_two_steps, 3)
    assert folders(copy_of_two_steps) == ["step_00000001", "step_00000002", "step_00000003"]
    assert Checkpoints(copy_of_two_steps).latest() == 2


def test_saving_a_step_again_replaces_it_without_overwriting(copy_of_two_steps):
    checkpoints = Checkpoints(copy_of_two_steps)
    checkpoints.save(2, state(20), {"phase": "later"}, finite=True)
    assert folders(copy_of_two_steps) == ["step_00000002", "step_00000002.1"]
    found, meta = checkpoints.restore(checkpoints.latest(), like(state()))
    assert meta == {"phase": "later"}
    assert_same_bits(found, state(20))
    flip(copy_of_two_steps / "step_00000002.1" / "meta.json", 3)
    assert checkpoints.latest() == 2 and checkpoints.restore(2, like(state()))[1]["step"] == 2


def test_a_save_older_than_what_is_there_is_refused_unless_that_is_damaged(copy_of_two_steps):
    with pytest.raises(UserError, match="already holds step 2"):
        save(copy_of_two_steps, 0)
    flip(copy_of_two_steps / "step_00000002" / "meta.json", 3)
    flip(copy_of_two_steps / "step_00000001" / "meta.json", 3)
    save(copy_of_two_steps, 0)
    assert Checkpoints(copy_of_two_steps).latest() == 0


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_full_disk_is_an_error_and_the_older_checkpoints_stay(
    copy_of_two_steps, monkeypatch, function
):
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"step 3 .* No space left"):
        patch.setattr(checkpoint.os, function, full_disk)
        save(copy_of_two_steps, 3)
    assert folders(copy_of_two_steps) == ["step_00000001", "step_00000002"]
    save(copy_of_two_steps, 3)
    assert Checkpoints(copy_of_two_steps).latest() == 3


def test_arrays_that_cannot_be_written_are_an_error_and_the_older_checkpoints_stay(
    copy_of_two_steps, caplog
):
    """Orbax also raises in its threads: neither they nor its log print a traceback of it."""
    # on one device: one write, so none is in flight when it fails
    big = jnp.arange(300_000, dtype=jnp.float32)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # the kernel refuses to let a file grow further
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match="step 3 could not be written"):
            Checkpoints(copy_of_two_steps).save(3, {"big": big}, META, finite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    assert folders(copy_of_two_steps) == ["step_00000001", "step_00000002"]
    assert Checkpoints(copy_of_two_steps).latest() == 2


def test_a_save_in_the_background_holds_what_was_there_when_it_began(tmp_path):
    """The next step overwrites the arrays while they are being written."""
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    original, moving = state(), step(jax.tree.map(lambda x: x - 1, state()))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(5, moving, META, finite=True, background=True)
    for _ in range(3):
        moving = step(moving)
    checkpoints.wait()
    found, _ = checkpoints.restore(5, like(original))
    np.testing.assert_array_equal(found["train"].params["embed"], original["train"].params["embed"])


def test_the_error_of_a_background_save_is_raised_by_whoever_waits(copy_of_two_steps, monkeypatch):
    def save_badly():
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "write_manifest", full_disk)
            checkpoints.save(3, state(3), META, finite=True, background=True)
            while checkpoints.pending:
                time.sleep(0.01)

    checkpoints = Checkpoints(copy_of_two_steps)
    save_badly()
    with pytest.raises(WriteError, match=r"step 3 .* No space left"):
        checkpoints.wait()
    checkpoints.wait()  # once
    save_badly()
    with pytest.raises(WriteError, match=r"step 3 .* No space left"):
        checkpoints.save(4, state(4), META, finite=True)
    for ends_with in (None, Interrupted()):
        with pytest.raises(WriteError, match=r"step 3 .* No space left"), checkpoints:
            save_badly()
            if ends_with:
                raise ends_with
    assert folders(copy_of_two_steps) == ["step_00000001", "step_00000002"]


def test_an_error_of_the_run_is_not_hidden_by_that_of_its_last_save(
    copy_of_two_steps, monkeypatch, caplog
):
    monkeypatch.setattr(checkpoint, "write_manifest", full_disk)
    with (
        pytest.raises(GateError, match="not finite"),
        Checkpoints(copy_of_two_steps) as checkpoints,
    ):
        checkpoints.save(3, state(3), META, finite=True, background=True)
        raise GateError("the loss is not finite")
    assert "No space left" in caplog.text


def test_leaving_the_block_waits_for_the_save(tmp_path, monkeypatch):
    write = checkpoint.write_manifest
    monkeypatch.setattr(
        checkpoint, "write_manifest", lambda folder: (time.sleep(0.3), write(folder))
    )
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(), META, finite=True, background=True)
        assert checkpoints.pending and folders(tmp_path) == ["tmp_00000001"]
    assert folders(tmp_path) == ["step_00000001"]


KILL_SCRIPT = """
import os, signal, sys, threading, time
from pathlib import Path
from ssppo_jax.weights import checkpoint

replace = os.replace

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def kill_instead_of_publishing(old, new):
    kill() if Path(new).name.startswith("step_") else replace(old, new)

def kill_while_arrays_are_written(folder):
    while not [p for p in folder.glob("tmp_*/arrays*/**/d/*") if p.is_file()]:
        time.sleep(1e-4)
    kill()

def save_and_die(folder, point):
    if point == "arrays":
        threading.Thread(target=kill_while_arrays_are_written, args=(folder,)).start()
    if point == "before manifest":
        checkpoint.write_manifest = kill
    if point == "before rename":
        checkpoint.os.replace = kill_instead_of_publishing
    import jax.numpy as jnp
    checkpoint.Checkpoints(folder).save(2, {"x": jnp.ones(4_000_000)}, {}, finite=True)

for point in sys.argv[2:]:  # forked: importing jax again would cost seconds
    child = os.fork()
    if child == 0:
        save_and_die(Path(sys.argv[1]) / point, point)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_kill_9_at_any_point_of_a_save_leaves_the_previous_step(tmp_path):
    original = {"x": jax.device_put(jnp.arange(8.0), NamedSharding(mesh(8, 1), PartitionSpec()))}
    points = {
        "arrays": [False] * 3,
        "before manifest": [True, True, False],
        "before rename": [True] * 3,
    }
    for point in points:
        Checkpoints(tmp_path / point).save(1, original, META, finite=True)
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILL_SCRIPT, str(tmp_path), *points],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.stdout.split() == [str(-signal.SIGKILL)] * 3, result.stderr
    for point, reached in points.items():
        assert folders(tmp_path / point) == ["step_00000001", "tmp_00000002"]
        torn = tmp_path / point / "tmp_00000002"
        assert [(torn / f).exists() for f in ("arrays", "meta.json", MANIFEST)] == reached
        checkpoints = Checkpoints(tmp_path / point)
        assert checkpoints.latest() == 1
        assert_same_bits(checkpoints.restore(1, like(original))[0], original)
        checkpoints.save(2, original, META, finite=True)  # and the leftovers are in nobody's way
        assert folders(tmp_path / point) == ["step_00000001", "step_00000002"]


def changed(tree, **leaves):
    """`tree` of structs with the params replaced."""
    return tree | {"train": tree["train"]._replace(params=tree["train"].params | leaves)}


def test_a_checkpoint_that_does_not_fit_names_the_leaf(two_steps):
    checkpoints, target = Checkpoints(two_steps), like(state())
    embed = target["train"].params["embed"]
    wide = jax.ShapeDtypeStruct((16, 16), embed.dtype, sharding=embed.sharding)
    half = jax.ShapeDtypeStruct(embed.shape, jnp.bfloat16, sharding=embed.sharding)
    with pytest.raises(
        ConfigError, match=r"train/params/embed: saved as float32\[16, 8\], this run has .*16, 16"
    ):
        checkpoints.restore(2, changed(target, embed=wide))
    with pytest.raises(ConfigError, match=r"train/params/embed: .* bfloat16\[16, 8\]"):
        checkpoints.restore(2, changed(target, embed=half))
    with pytest.raises(ConfigError, match="train/params/head: this run needs it"):
        checkpoints.restore(2, changed(target, head=embed))
    with pytest.raises(
        ConfigError, match="train/params/layers/norm: saved, but this run has no such leaf"
    ):
        checkpoints.restore(2, changed(target, layers={}))
    with pytest.raises(ValueError, match=r"none given for train/params/embed"):
        checkpoints.restore(
            2, changed(target, embed=jax.ShapeDtypeStruct(embed.shape, embed.dtype))
        )
    with pytest.raises(UserError, match="steps there: 2, 1"):
        checkpoints.restore(9, target)


def test_a_state_that_is_not_finite_is_never_saved(tmp_path):
    with pytest.raises(GateError, match="step 4"):
        Checkpoints(tmp_path).save(4, state(), META, finite=False)
    assert folders(tmp_path) == []


def test_what_would_not_come_back_unchanged_is_refused_before_anything_is_written(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for leaf in (np.zeros(2), 3, jax.random.key(0)):
        with pytest.raises(TypeError, match="a/b"):
            checkpoints.save(1, {"a": {"b": leaf}}, META, finite=True)
    for meta in (
        {"position": (1, 2)},
        {1: "int key"},
        {"loss": float("nan")},
        {"array": jnp.ones(2)},
    ):
        with pytest.raises(TypeError):
            checkpoints.save(1, state(), meta, finite=True)
    with pytest.raises(ValueError, match="same path"):
        checkpoints.save(1, {"a/b": jnp.ones(2), "a": {"b": jnp.ones(2)}}, META, finite=True)
    assert folders(tmp_path) == []


def test_settings_that_cannot_be_safe_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="keep=1"):
        Checkpoints(tmp_path, keep=1)
