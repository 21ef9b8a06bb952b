"""The process in which a response's code runs against its tests. `run` executes this file; it
imports no ssppo_jax.

    stdin: one pickled request  ->  file descriptor 3: one JSON line for the code and one for each
      test

Before any of it runs, this process gives up for good: starting processes, the network, signals to
others, reading outside Python and the system's libraries, writing outside its folder, and more than
its share of memory, processor time and file size. Landlock and seccomp, Linux's filters for files
and system calls, enforce this. Neither needs privileges, and nothing in the process can undo them.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import pickle
import platform
import resource
import struct
import sys

RESULTS = 3
LONGEST_REASON = 200
_NO_NEW_PRIVS, _SECCOMP, _FILTER = 38, 22, 2

# ---- files: Landlock -----------------------------------------------------------------------------

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # the same on every architecture
_READ = (1 << 0) | (1 << 2) | (1 << 3)  # execute (shared libraries), read files, list folders
_RIGHTS = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 5: 0xFFFF}  # by the kernel's Landlock version
READABLE = ("/usr", "/lib", "/lib64", "/bin", "/etc", "/dev/null", "/dev/urandom", "/dev/zero")


def _landlock(folder: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_CREATE, None, ctypes.c_size_t(0), 1)
    if version < 1:
        raise OSError("Landlock is not available in this kernel")
    rights = _RIGHTS[max(v for v in _RIGHTS if v <= version)]
    handled = struct.pack("=Q", rights)
    ruleset = libc.syscall(_CREATE, handled, ctypes.c_size_t(len(handled)), 0)
    if ruleset < 0:
        raise OSError(ctypes.get_errno(), "Landlock: no rule set")
    readable = {*READABLE, sys.prefix, sys.base_prefix, sys.exec_prefix, *sys.path}
    for path, allowed in [*((path, _READ) for path in readable if path), (folder, rights)]:
        _allow(libc, ruleset, path, allowed & rights)
    _prctl(libc, _NO_NEW_PRIVS, 1)
    if libc.syscall(_RESTRICT, ruleset, 0):
        raise OSError(ctypes.get_errno(), "Landlock: not applied")
    os.close(ruleset)


def _allow(libc, ruleset: int, path: str, rights: int) -> None:
    try:
        at = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # not there: nothing to allow
    if not os.path.isdir(path):
        rights &= (1 << 0) | (1 << 1) | (1 << 2)
    rule = struct.pack("=Qi", rights, at)
    if libc.syscall(_ADD, ruleset, 1, rule, 0):
        raise OSError(ctypes.get_errno(), f"Landlock: no rule for {path}")
    os.close(at)


# ---- system calls: seccomp -----------------------------------------------------------------------

# name: (x86_64, aarch64); -1 where an architecture has none
# fmt: off
_REFUSED = {
    "fork": (57, -1), "vfork": (58, -1), "execve": (59, 221), "execveat": (322, 281),
    "kill": (62, 129), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424), "pidfd_getfd": (438, 438),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "socket": (41, 198), "io_uring_setup": (425, 425), "setsid": (112, 157), "setpgid": (109, 154),
    "setrlimit": (160, 164), "setpriority": (141, 140), "unshare": (272, 97), "setns": (308, 268),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "mknod": (133, -1), "mknodat": (259, 33), "truncate": (76, 45), "chmod": (90, -1),
    "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, -1),
    "fchown": (93, 55), "lchown": (94, -1), "fchownat": (260, 54), "utime": (132, -1),
    "utimes": (235, -1), "utimensat": (280, 88), "futimesat": (261, -1), "setxattr": (188, 5),
    "lsetxattr": (189, 6), "fsetxattr": (190, 7), "shmget": (29, 194), "msgget": (68, 186),
    "semget": (64, 190), "mq_open": (240, 180), "add_key": (248, 217), "request_key": (249, 218),
    "keyctl": (250, 219), "bpf": (321, 280), "perf_event_open": (298, 241),
    "userfaultfd": (323, 282), "personality": (135, 92), "init_module": (175, 105),
    "finit_module": (313, 273), "kexec_load": (246, 104), "reboot": (169, 142),
    "swapon": (167, 224), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "sethostname": (170, 161),
}
# fmt: on
_CLONE, _CLONE3, _TGKILL, _PRLIMIT = (56, 220), (435, 435), (234, 131), (302, 261)
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOWED, _KILLED = 0x7FFF0000, 0x80000000
_THREAD = 0x00010000  # CLONE_THREAD


def _seccomp() -> None:
    if platform.machine() not in _MACHINES:
        raise OSError(
            f"no system call filter for {platform.machine()}; there is one for"
            f" {', '.join(_MACHINES)}"
        )
    program = b"".join(
        struct.pack("=HBBI", *step) for step in _program(*_MACHINES[platform.machine()])
    )
    held = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(held))
    libc = ctypes.CDLL(None, use_errno=True)
    _prctl(libc, _NO_NEW_PRIVS, 1)
    _prctl(libc, _SECCOMP, _FILTER, header)


def _program(which: int, machine: int) -> list[tuple[int, int, int, int]]:
    """Return (code, jump if true, jump if false, value) of the steps of a classic BPF filter over
    struct seccomp_data."""
    refused = (_RETURN, 0, 0, 0x00050000 | errno.EPERM)
    number = (_LOAD, 0, 0, 0)

    def low(n: int) -> tuple[int, int, int, int]:  # half of the system call's argument n
        return (_LOAD, 0, 0, 16 + 8 * n)

    def high(n: int) -> tuple[int, int, int, int]:
        return (_LOAD, 0, 0, 20 + 8 * n)

    steps = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, machine), (_RETURN, 0, 0, _KILLED), number]
    if which == 0:  # the x32 calls of x86_64 have numbers of their own
        steps += [(_AT_LEAST, 0, 1, 0x40000000), refused]
    for numbers in _REFUSED.values():
        if numbers[which] >= 0:
            steps += [(_EQUAL, 0, 1, numbers[which]), refused]
    # glibc falls back to clone, whose flags can be read: threads are allowed, processes are not
    steps += [(_EQUAL, 0, 1, _CLONE3[which]), (_RETURN, 0, 0, 0x00050000 | errno.ENOSYS)]
    steps += [(_EQUAL, 0, 3, _CLONE[which]), low(0), (_ANY_BIT, 1, 0, _THREAD), refused, number]
    # a signal to oneself (abort) is allowed
    steps += [(_EQUAL, 0, 3, _TGKILL[which]), low(0), (_EQUAL, 1, 0, os.getpid()), refused, number]
    # limits may be read, not set
    steps += [
        (_EQUAL, 0, 5, _PRLIMIT[which]),
        low(2),
        (_EQUAL, 0, 2, 0),
        high(2),
        (_EQUAL, 1, 0, 0),
        refused,
    ]
    return [*steps, (_RETURN, 0, 0, _ALLOWED)]


def _prctl(libc, *values) -> None:
    padded = [*values, *(0,) * (5 - len(values))]
    if libc.prctl(*(v if isinstance(v, bytes) else ctypes.c_ulong(v) for v in padded)):
        raise OSError(ctypes.get_errno(), "prctl")


# ---- limits --------------------------------------------------------------------------------------


def _limit(request: dict) -> None:
    seconds, megabyte = int(request["seconds"]) + 1, 1 << 20
    for what, most in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, request["memory_mb"] * megabyte),
        (resource.RLIMIT_FSIZE, request["disk_mb"] * megabyte),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))


# ---- the code and its tests ----------------------------------------------------------------------


def main() -> None:
    request = pickle.load(sys.stdin.buffer)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    token, results = request["token"], os.fdopen(RESULTS, "w")

    def say(**line) -> None:
        results.write(json.dumps(line | {"token": token}) + "\n")
        results.flush()

    _limit(request)
    if request["strict"]:
        try:
            _landlock(os.getcwd())
            _seccomp()
        except OSError as error:
            return say(sandbox=str(error))
    scope = {"__name__": "__response__", "__builtins__": __builtins__}
    reason = _run(request["code"], scope)
    say(code=reason)
    if not reason:
        for test in request["tests"]:
            say(test=_run(test, scope))
    os._exit(0)  # without the threads and exit handlers that the code left behind


def _run(code: str, scope: dict) -> str:
    """Return why the code did not run to its end; empty if it did."""
    try:
        exec(compile(code, "<response>", "exec"), scope)
        return ""
    except BaseException as error:  # SystemExit and KeyboardInterrupt are no way to pass
        return f"{type(error).__name__}: {error}"[:LONGEST_REASON]


if __name__ == "__main__":
    main()
