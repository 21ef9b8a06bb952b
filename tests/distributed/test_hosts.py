"""Several processes are one run: the same losses, texts judged once, and nobody waits for ever."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from jax.errors import JaxRuntimeError
from small_runs import MESH, SMALL, SMOKE, configure

from ssppo_jax.distributed import hosts
from ssppo_jax.distributed.rendezvous import meet
from ssppo_jax.errors import ConfigError, LostProcess
from ssppo_jax.runs.metrics import read_metrics
from ssppo_jax.training.train import train
from ssppo_jax.weights import hf

ROOT = Path(__file__).parents[2]


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def start(command, devices):
    # compiled as here: the same bits
    flags = re.sub(r"(device_count)=\d+", rf"\1={devices}", os.environ["XLA_FLAGS"])
    quiet = {
        "XLA_FLAGS": flags,
        "JAX_PLATFORMS": "cpu",
        "SSPPO_PROGRESS": "off",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *command], env=os.environ | quiet, cwd=ROOT, **pipes)


def finish(processes):
    """The JSON lines of their outputs, which the CPU's collectives write into; a failure of one
    shows what it said."""
    outputs = [process.communicate(timeout=300) for process in processes]
    for process, (_, error) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, error[-3000:]
    return [
        [line for line in out.splitlines() if line.startswith(("{", '["'))] for out, _ in outputs
    ]


# ---- a run ---------------------------------------------------------------------------------------

RUN = {
    "train.iterations": "1",
    "train.prompts_per_iteration": "8",
    "eval.every": "0",
    "train.term_norms": "false",
}


def test_two_processes_of_four_devices_train_as_one_of_eight(tmp_path):
    keys = [f"--config.{key}={value}" for key, value in (MESH | SMALL | RUN).items()]
    port, folder = free_port(), tmp_path / "two"
    where = [f"--coordinator=localhost:{port}", "--num_processes=2"]
    command = [
        "-m",
        "ssppo_jax",
        "train",
        f"--config={SMOKE}",
        f"--workdir={folder}",
        *where,
        *keys,
    ]
    processes = [start([*command, f"--process_id={i}"], 4) for i in range(2)]
    result = train(
        configure(**{key.replace(".", "__"): value for key, value in RUN.items()}), tmp_path / "one"
    )
    _, other = finish(processes)
    assert not other and json.loads((folder / "result.json").read_text()) == pytest.approx(result)
    one, two = (list(read_metrics(tmp_path / name / "metrics.jsonl")) for name in ("one", "two"))
    assert [r["phase"] for r in one] == [r["phase"] for r in two]
    for a, b in zip(one, two, strict=True):
        assert a["values"].keys() == b["values"].keys()
        for name in set(a["values"]) & {"loss", "entropy", "logp_per_token", "win_rate"}:
            assert a["values"][name] == pytest.approx(b["values"][name], rel=1e-5, abs=1e-5), (
                a["phase"],
                name,
            )
    for name in ("samples.jsonl", "baseline.json", "prompts.json"):
        assert (tmp_path / "one" / name).read_text() == (tmp_path / "two" / name).read_text(), name
    assert texts_of(tmp_path / "one") == texts_of(tmp_path / "two")
    arch = hf.read_arch(folder / "policy")
    trained = [
        dict(hf.flatten(hf.load_params(tmp_path / name / "policy", arch)))
        for name in ("one", "two")
    ]
    for path, value in trained[0].items():
        np.testing.assert_allclose(value, trained[1][path], rtol=1e-3, atol=1e-4, err_msg=path)
    own, other = (
        (folder / name).read_text().splitlines() for name in ("verdicts.jsonl", "verdicts_1.jsonl")
    )
    assert own and other and len(own) + len(other) == len(pairs_judged(tmp_path / "one"))


def texts_of(folder):
    rows = map(json.loads, (folder / "pairs.jsonl").read_text().splitlines())
    return [(row["prompt_id"], row["winner"], row["loser"]) for row in rows]


def pairs_judged(folder):
    return (folder / "verdicts.jsonl").read_text().splitlines()


# ---- its parts -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def said():
    """What each of two processes said, by name."""
    port = free_port()
    outputs = finish(
        [
            start([str(ROOT / "tests/distributed/two_processes.py"), str(port), str(i)], 1)
            for i in range(2)
        ]
    )
    return [dict(map(json.loads, lines)) for lines in outputs]


def test_what_is_exchanged_arrives_whole_and_in_order(said):
    want = [{"from": 0, "long": "x" * 10}, {"from": 1, "long": "x" * 1010}]
    assert said[0]["exchange"] == said[1]["exchange"] == want
    assert [s["first"] for s in said] == [True, False]


def test_work_of_the_first_reaches_all_and_so_does_its_failure(said):
    assert [s["on_first"] for s in said] == ["fine0", "fine0"]
    assert [s["on_first fails"] for s in said] == [["ConfigError", "a folder is missing"]] * 2


def test_rows_are_shared_by_owner_and_a_failure_in_one_is_raised_in_all(said):
    assert said[0]["share"] == said[1]["share"] == [[[20], [0, 10]], [0, 10, 20]]
    assert [s["share for one"] for s in said] == [[[0, 1]]] * 2
    assert [s["share fails"] for s in said] == [["DataError", "line 3"]] * 2
    assert [s["odd error"] for s in said] == [["UserError", "process 1: Unsendable: a"]] * 2


def test_processes_that_differ_are_told_in_what(said):
    for kind, message in (s["compare"] for s in said):
        assert kind == "ConfigError" and "seed: process 0 has '0', process 1 has '1'" in message
        assert "version" not in message


def test_a_divided_array_comes_whole_to_each_host(said):
    assert [s["on_host"] for s in said] == [[[0, 1, 2], [3, 4, 5]]] * 2


def test_votes_are_counted_alike_everywhere_one_step_late(said):
    assert [s["votes"] for s in said] == [[False, False, False, True, True]] * 2
    assert [s["agreed"] for s in said] == [True, True]


def test_who_does_not_come_is_named(said):
    kind, message = said[0]["late"]
    assert kind == "UserError"
    assert "the last meeting: process 1 of 2 did not come within 3 s" in message


def meeting(port, processes, index, timeout=10.0):
    """What `meet` says, on a thread."""
    pool = ThreadPoolExecutor(1)
    return pool.submit(meet, f"localhost:{port}", processes, index, timeout)


@pytest.mark.parametrize(
    ("said", "lost"),
    [
        ("UNKNOWN: Gloo all-reduce failed: pair.cc: Connection closed by peer [::1]:4\nmore", True),
        (
            "UNKNOWN: Gloo AllGather failed: pair.cc: Connection reset by peer",
            True,
        ),
        ("UNAVAILABLE: The coordination service is not reachable", True),
        ("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes", False),
    ],
)
def test_the_loss_of_a_process_is_told_from_other_errors_of_jax(monkeypatch, said, lost):
    assert hosts.lost(JaxRuntimeError(said)) is None  # nobody to lose
    monkeypatch.setattr(hosts, "alone", lambda: False)
    told = hosts.lost(JaxRuntimeError(said))
    assert (told is not None) == lost
    assert not lost or isinstance(told, LostProcess)
    assert not lost or re.search(r"another process .*\(U.*\); look at its log", str(told))


def test_processes_meet_in_whatever_order_they_come():
    port = free_port()
    early = [meeting(port, 3, 2), meeting(port, 3, 1)]
    time.sleep(0.3)
    assert not any(e.done() for e in early)
    assert [e.result(20) for e in (meeting(port, 3, 0), *early)] == [None] * 3


def test_processes_that_never_start_are_named():
    port = free_port()
    first, second = meeting(port, 4, 0, 1.0), meeting(port, 4, 2, 1.0)
    with pytest.raises(ConfigError, match="process 1, 3 of 4 did not come within 1 s"):
        first.result(20)
    with pytest.raises(
        ConfigError, match=f"process 0 did not answer at localhost:{port} within 1 s"
    ):
        second.result(20)


@contextlib.contextmanager
def silent(port):
    """A connection of somebody else's, such as a port scanner's."""
    while True:
        try:
            guest = socket.create_connection(("localhost", port), timeout=1.0)
            break
        except OSError:
            time.sleep(0.05)
    with guest:
        yield


def test_a_number_given_twice_and_a_taken_port_are_refused():
    port = free_port()
    first, twins = meeting(port, 3, 0), [meeting(port, 3, 1, 1.0) for _ in range(2)]
    with pytest.raises(ConfigError, match="--process_id=1 of --num_processes=3 was given twice"):
        first.result(20)
    assert all(isinstance(t.exception(20), ConfigError) for t in twins)
    with (
        socket.create_server(("", free_port())) as s,
        pytest.raises(ConfigError, match="cannot be had on this host"),
    ):
        meet(f"localhost:{s.getsockname()[1]}", 2, 0, 1.0)
    for wrong in ("localhost", "localhost:99999"):
        with pytest.raises(ConfigError, match="give HOST:PORT"):
            meet(wrong, 2, 0, 1.0)


def test_a_guest_that_says_nothing_is_passed_over(monkeypatch):
    port = free_port()
    first = meeting(port, 2, 0)
    with silent(port):
        time.sleep(0.3)
        second = meeting(port, 2, 1)
        assert [first.result(30), second.result(30)] == [None, None]


# ---- flags and environment -----------------------------------------------------------------------


def test_one_process_is_alone_and_waits_for_nobody():
    assert hosts.alone() and hosts.is_first() and hosts.mine(7)
    hosts.wait("nobody")
    hosts.compare({"a": "b"})
    assert hosts.exchange("x", "") == ["x"] and hosts.on_first(lambda: 3) == 3
    order, (value,) = hosts.share([5, 6], lambda rows: rows + 1, "")
    assert order.tolist() == [0, 1] and value.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("flags", "environ", "place"),
    [
        (("", "", ""), {}, None),
        (("", "", ""), {"SLURM_STEP_NUM_TASKS": "1", "TPU_WORKER_HOSTNAMES": "a"}, None),
        (("", "", ""), {"SLURM_STEP_NUM_TASKS": "4"}, hosts.Place()),
        (("", "", ""), {"OMPI_COMM_WORLD_SIZE": "2"}, hosts.Place()),
        (("", "", ""), {"TPU_WORKER_HOSTNAMES": "a,b"}, hosts.Place()),
        (("auto", "", ""), {}, hosts.Place()),
        (("h:1", "4", "3"), {"SLURM_STEP_NUM_TASKS": "4"}, hosts.Place("h:1", 4, 3)),
    ],
)
def test_flags_come_first_then_the_clusters_environment(flags, environ, place):
    assert hosts.place_of(*flags, environ) == place


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("h:1", "", ""), "--num_processes and --process_id must stand beside --coordinator"),
        (("", "2", "0"), "--coordinator must stand beside"),
        (("h:1", "2", "2"), "--process_id=2 of --num_processes=2"),
        (("h:1", "two", "0"), "--num_processes=two"),
    ],
)
def test_flags_that_make_no_sense_are_refused(flags, words):
    with pytest.raises(ConfigError, match=words):
        hosts.place_of(*flags, {})
