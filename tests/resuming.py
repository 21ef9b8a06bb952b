"""Processes that train and are killed at a chosen place: shared by the tests of resuming."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SMALL = {  # one bucket and few tokens: a run is mostly tracing and compiling
    "data.heldout": 2,
    "data.prompt_buckets": 256,
    "sampling.max_new_tokens": 6,
    "sampling.num_samples": 3,
    "train.prompts_per_iteration": 8,
    "train.batch_size": 4,
}

# Imports the package once and forks a process for each line of its input. A process runs `train`
# with one function replaced by a version that kills it at its n-th call. No backend of JAX is
# started before a fork.
SERVER = """
import json, os, signal, sys, time, traceback
import jax, numpy as np
from ssppo_jax import evaluate, runtime
from ssppo_jax.training import train
from ssppo_jax.runs.report import build
from ssppo_jax.rollout import collect
from ssppo_jax.rollout import score as score_phase
from ssppo_jax.weights import checkpoint
from ssppo_jax.__main__ import main
import transformers

def deadly(owner, name, call, number=signal.SIGKILL):
    original, calls = getattr(owner, name), []
    def replacement(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)
    setattr(owner, name, replacement)

def prepare(where):
    build.build_report = lambda folder: folder  # no report: its figures take seconds
    if where == "asked":         # SIGTERM in the first iteration's training: saves, exits with 75
        deadly(train, "take_rows", 1, signal.SIGTERM)
        deadly(train, "take_micro_batch", 1, signal.SIGTERM)
    elif where == "sampling":    # the second iteration's samples are being made
        deadly(collect, "sample_prompts", 1)
    elif where == "telling policies":  # not a kill: says what each iteration starts from
        rollout = train.Trainer._rollout
        def told(self, params, *rest):
            print("policy", sum(float(np.abs(x).sum()) for x in jax.tree.leaves(params)))
            return rollout(self, params, *rest)
        train.Trainer._rollout = told
    elif where == "stopped while sampling":  # SIGTERM behind an evaluation: 75, evaluated again
        deadly(collect, "sample_prompts", 2, signal.SIGTERM)
    elif where == "scoring":     # they are sampled and judged, the rollout is not yet written
        deadly(score_phase, "score_rows", 1)
    elif where == "saving":      # a checkpoint in the second iteration: arrays, no manifest yet
        deadly(checkpoint, "write_manifest", 1)
    elif where == "behind":      # a checkpoint hangs, and the run is an iteration further
        checkpoint.write_manifest = lambda folder: time.sleep(1000)
        deadly(train, "take_rows", 2)
    elif where == "other keys":  # not a kill: the negative control, keys that were not restored
        key = runtime.Runtime.key
        runtime.Runtime.key = lambda self, stream, index=0: key(self, stream, index + 1000)

def work(task):
    code = 1
    said = os.open(task["said"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    try:
        prepare(task["kill"])
        code = main(task["argv"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        work(json.loads(line))
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def surroundings(folder):
    """Return the environment of runs on one CPU device that share models and programs."""
    return {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "SSPPO_CACHE": str(folder / "models"),
        "SSPPO_PROGRESS": "off",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        "HF_HUB_OFFLINE": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }


@contextlib.contextmanager
def launcher(shared):
    """Give run(workdir, kill, expect, kind), whose processes share caches in a folder."""
    # One device, and no last passes of the compiler. `make faults` kills runs that have them.
    flags = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    environment = os.environ | surroundings(shared) | {"XLA_FLAGS": flags}
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def run(workdir, kill="never", expect=0, kind=None):
        keys = [f"--config.{key}={value}" for key, value in (SMALL | (kind or {})).items()]
        argv = ["train", "--config=smoke", f"--workdir={workdir}", *keys]
        said = shared / "said.txt"
        print(
            json.dumps({"argv": argv, "kill": kill, "said": str(said)}),
            file=server.stdin,
            flush=True,
        )
        assert server.stdout.readline().strip() == str(expect), said.read_text()[-3000:]
        return workdir

    with server:  # it ends with its input
        yield run


def log_of(workdir):
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k != "wall"} for r in records]


def files_of(workdir, rows="pairs"):
    names = ["policy/model.safetensors", f"{rows}.jsonl", "samples.jsonl", "result.json"]
    return {name: (workdir / name).read_bytes() for name in names}


def difference(workdir, whole):
    """Return what differs between two runs; None if nothing but times does."""
    one, other = files_of(workdir), files_of(whole)
    wrong = [name for name in one if one[name] != other[name]]
    wrong += ["metrics.jsonl"] if log_of(workdir) != log_of(whole) else []
    return ", ".join(wrong) or None


def check_continues(shared, rows, settings):
    """Fail unless a run that was stopped and killed ends like the uninterrupted one."""
    with launcher(shared) as launch:
        whole = launch(shared / "whole", kind=settings)
        launch(shared / "killed", kill="asked", expect=75, kind=settings)
        launch(shared / "killed", kill="saving", expect=-signal.SIGKILL, kind=settings)
        killed = launch(shared / "killed", kind=settings)
    assert files_of(killed, rows) == files_of(whole, rows)
    assert log_of(killed) == log_of(whole)
    assert any(r["phase"] == "train" and r["values"]["update_norm"] > 0 for r in log_of(whole))
