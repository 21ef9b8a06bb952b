"""Meet before JAX starts: JAX ends a process without saying which other one is missing."""

from __future__ import annotations

import contextlib
import socket
import time

from ssppo_jax.errors import ConfigError

_GO = b"go\n"


def meet(address: str, processes: int, index: int, timeout: float) -> None:
    """Return when all processes are there.

    Raises:
      ConfigError: a process does not come in time; the missing ones are named.
    """
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isdecimal() and 0 < int(port) < 2**16):
        raise ConfigError(f"--coordinator={address}: give HOST:PORT of process 0")
    until = time.monotonic() + timeout
    if index:
        _report(host, int(port), index, until, timeout)
    elif processes > 1:
        _gather(int(port), processes, until, timeout)


def _gather(port: int, processes: int, until: float, timeout: float) -> None:
    with contextlib.ExitStack() as stack:
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        try:
            listener = stack.enter_context(
                socket.create_server(
                    ("", port), family=family, backlog=processes, dualstack_ipv6=dual
                )
            )
        except OSError as error:
            raise ConfigError(
                f"--coordinator: port {port} cannot be had on this host ({error.strerror})"
            ) from None
        here: dict[int, socket.socket] = {}
        while len(here) < processes - 1:
            listener.settimeout(max(until - time.monotonic(), 0.001))
            try:
                guest = stack.enter_context(listener.accept()[0])
            except TimeoutError:
                missing = ", ".join(str(p) for p in range(1, processes) if p not in here)
                raise ConfigError(
                    f"process {missing} of {processes} did not come within {timeout:g} s: start all"
                    " of them with this --coordinator and --num_processes, each with a"
                    " --process_id of its own"
                ) from None
            except OSError:  # one that left again
                continue
            try:
                guest.settimeout(max(min(5.0, until - time.monotonic()), 0.001))
                number = int(guest.makefile().readline())
            except (OSError, ValueError):  # a port scanner, which may say nothing
                continue
            if number in here or not 0 < number < processes:
                raise ConfigError(
                    f"--process_id={number} of --num_processes={processes} was given twice, or is"
                    " too large"
                )
            here[number] = guest
        for guest in here.values():
            guest.sendall(_GO)


def _report(host: str, port: int, index: int, until: float, timeout: float) -> None:
    while True:
        left = until - time.monotonic()
        if left <= 0:
            raise ConfigError(
                f"process 0 did not answer at {host}:{port} within {timeout:g} s, or others are"
                " missing: its log says"
            )
        try:
            with socket.create_connection((host.strip("[]"), port), timeout=min(left, 5.0)) as s:
                s.settimeout(left)
                s.sendall(f"{index}\n".encode())
                if s.makefile("rb").readline() == _GO:
                    return
        except OSError:
            pass
        time.sleep(0.2)
