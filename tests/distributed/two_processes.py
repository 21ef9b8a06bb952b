"""What `test_hosts.py` runs in each of two processes: python two_processes.py PORT INDEX.
Prints JSON lines."""

import json
import sys
import time

import jax
import numpy as np

from ssppo_jax.distributed import hosts
from ssppo_jax.distributed.stop import StopSignal
from ssppo_jax.errors import ConfigError, DataError


def said(name, value):
    print(json.dumps([name, value]), flush=True)


def told(name, work):
    """The error that `work` raises."""
    try:
        said(name, [None, str(work())])
    except Exception as error:
        said(name, [type(error).__name__, str(error)])


def fail_on(process, error):
    if jax.process_index() == process:
        raise error
    return "fine"


class Unsendable(Exception):
    def __init__(self, a, b):
        super().__init__(a)


def main(port, index):
    hosts.start(hosts.Place(f"localhost:{port}", 2, index), timeout=60)
    said("first", hosts.is_first())
    said(
        "exchange", hosts.exchange({"from": index, "long": "x" * (10 + 1000 * index)}, "a greeting")
    )
    said(
        "on_first",
        hosts.on_first(lambda: fail_on(1, RuntimeError("process 1 worked")) + str(index)),
    )
    told(
        "on_first fails",
        lambda: hosts.on_first(lambda: fail_on(0, ConfigError("a folder is missing"))),
    )
    order, parts = hosts.share([5, 7, 4], lambda rows: rows * 10, "work")
    said("share", [[part.tolist() for part in parts], np.concatenate(parts)[order].tolist()])
    said(
        "share for one",
        [part.tolist() for part in hosts.share([2, 2], lambda rows: rows, "work")[1]],
    )
    told(
        "share fails",
        lambda: hosts.share([0, 1], lambda rows: fail_on(1, DataError("line 3")), "work"),
    )
    told(
        "odd error",
        lambda: hosts.share([0, 1], lambda rows: fail_on(1, Unsendable("a", "b")), "work"),
    )
    told("compare", lambda: hosts.compare({"seed": str(index), "version": "1"}))
    sharded = jax.NamedSharding(jax.make_mesh((2,), ("x",)), jax.P("x"))
    x = jax.make_array_from_callback(
        (2, 3), sharded, lambda at: np.arange(6.0, dtype=np.float32).reshape(2, 3)[at]
    )
    said("on_host", hosts.on_host(x).tolist())
    with StopSignal() as stop:
        votes = []
        for step in range(5):
            stop.requested = stop.requested or (index == 1 and step >= 2)
            votes.append(stop.voted())
        said("votes", votes)
        said("agreed", stop.agreed())
    hosts.set_patience(3.0)
    if index == 1:
        time.sleep(6.0)  # too late for the last meeting
    told("late", lambda: hosts.wait("the last meeting"))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
