"""The process in which a response's code runs against its tests. `supervisor` loads this file and
forks; it imports no ssppo_jax.

    orders: the code, then one test after another  ->  results (descriptor 3): a line for each step

Before it is sent any code, this process gives up for good: privileges, starting processes, the
network, signals to others, other processes' scheduling, reading outside Python and the system's
libraries, writing outside its folder, and more than its share of memory, processor time and file
size. Landlock and seccomp, Linux's filters for files and system calls, enforce this. Neither needs
privileges, and nothing in the process can undo them."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import linecache
import os
import platform
import resource
import struct
import sys
import types

RESULTS, ORDERS = 3, 4
LONGEST_REASON = 200
EMPTY_LINES = 100  # of standard input
_DEATH_SIGNAL, _NO_NEW_PRIVS, _SECCOMP, _FILTER = 1, 38, 22, 2
_CAPABILITIES = 0x20080522  # version 3 of capset's header


class Unsupported(Exception):
    """This system cannot confine code."""


# ---- files: Landlock -----------------------------------------------------------------------------

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # the same on every architecture
_READ = (1 << 0) | (1 << 2) | (1 << 3)  # execute (shared libraries), read files, list folders
_WRITE = (1 << 1) | (1 << 14)  # write files, cut them
_RIGHTS = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 5: 0xFFFF}  # by the kernel's Landlock version
READABLE = ("/usr", "/lib", "/lib64", "/bin", "/etc", "/dev/urandom", "/dev/zero")


def _landlock(folder: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_CREATE, None, ctypes.c_size_t(0), 1)
    if version < 1:
        raise Unsupported("Landlock is not available in this kernel")
    rights = _RIGHTS[max(v for v in _RIGHTS if v <= version)]
    handled = struct.pack("=Q", rights)
    ruleset = libc.syscall(_CREATE, handled, ctypes.c_size_t(len(handled)), 0)
    if ruleset < 0:
        raise OSError(ctypes.get_errno(), "Landlock: no rule set")
    readable = {*READABLE, sys.prefix, sys.base_prefix, sys.exec_prefix, *sys.path}
    allowances = [*((path, _READ) for path in readable if path), (folder, rights)]
    for path, allowed in [*allowances, ("/dev/null", _READ | _WRITE)]:
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
        rights &= (1 << 0) | (1 << 2) | _WRITE
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
    "sethostname": (170, 161), "pidfd_open": (434, 434), "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119), "sched_setaffinity": (203, 122), "sched_setattr": (314, 274),
    "ioprio_set": (251, 30), "migrate_pages": (256, 238), "move_pages": (279, 239),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "memfd_create": (319, 279),
    "acct": (163, 89), "quotactl": (179, 60), "syslog": (103, 116), "iopl": (172, -1),
    "ioperm": (173, -1), "adjtimex": (159, 171), "clock_adjtime": (305, 266),
    "delete_module": (176, 106), "kexec_file_load": (320, 294), "swapoff": (168, 225),
    "setdomainname": (171, 162), "vhangup": (153, 58), "fanotify_init": (300, 262),
    "setuid": (105, 146), "setgid": (106, 144), "setreuid": (113, 145), "setregid": (114, 143),
    "setgroups": (116, 159), "setresuid": (117, 147), "setresgid": (119, 149),
    "setfsuid": (122, 151), "setfsgid": (123, 152), "capset": (126, 91), "connect": (42, 203),
    "bind": (49, 200), "sendmsg": (46, 211), "sendmmsg": (307, 269), "sync": (162, 81),
}
# fmt: on
_CLONE, _CLONE3, _TGKILL, _PRLIMIT = (56, 220), (435, 435), (234, 131), (302, 261)
_FCNTL, _IOCTL, _PRCTL, _SOCKETPAIR, _SENDTO = (72, 25), (16, 29), (157, 167), (53, 199), (44, 206)
# Calls since Linux 5.2 are unknown to it, but for close_range, openat2, faccessat2, epoll_pwait2
# and futex_waitv.
_NEW, _KNOWN = 424, (436, 437, 439, 441, 449)
_SIGNALLING = (8, 10, 15, 1024, 1026)  # F_SETOWN, F_SETSIG, F_SETOWN_EX, F_SETLEASE, F_NOTIFY
_SETFL, _ASYNC = 4, 0x2000
# TCGETS (isatty), TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX: the rest sets flags of files,
# owners of signals, terminals
_HARMLESS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
_ANOTHERS = (1, 35, 62)  # PR_SET_PDEATHSIG, PR_SET_MM, PR_SCHED_CORE
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN, _AND = 0x20, 0x15, 0x35, 0x45, 0x06, 0x54
_ALLOWED, _KILLED, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_THREAD = 0x00010000  # CLONE_THREAD
Step = tuple[int, int, int, int]


def _seccomp() -> None:
    if platform.machine() not in _MACHINES:
        raise Unsupported(
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


def _program(which: int, machine: int) -> list[Step]:
    """Return (code, jump if true, jump if false, value) of the steps of a classic BPF filter over
    struct seccomp_data."""
    refused, unknown = (_RETURN, 0, 0, _ERROR | errno.EPERM), (_RETURN, 0, 0, _ERROR | errno.ENOSYS)
    allowed, number = (_RETURN, 0, 0, _ALLOWED), (_LOAD, 0, 0, 0)

    def low(n: int) -> Step:  # half of the system call's argument n
        return (_LOAD, 0, 0, 16 + 8 * n)

    def high(n: int) -> Step:
        return (_LOAD, 0, 0, 20 + 8 * n)

    def of(call: tuple[int, int], *body: Step) -> list[Step]:
        """Return the steps of one call; what they do not decide goes on after them."""
        return [(_EQUAL, 0, len(body) + 1, call[which]), *body, number]

    def each(values: tuple[int, ...], verdict: Step) -> list[Step]:
        return [step for value in values for step in ((_EQUAL, 0, 1, value), verdict)]

    def given(n: int) -> list[Step]:
        """Return the steps that refuse a pointer."""
        return [low(n), (_EQUAL, 1, 0, 0), refused, high(n), (_EQUAL, 1, 0, 0), refused]

    steps = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, machine), (_RETURN, 0, 0, _KILLED), number]
    if which == 0:  # the x32 calls of x86_64 have numbers of their own
        steps += [(_AT_LEAST, 0, 1, 0x40000000), refused]
    steps += each(tuple(n[which] for n in _REFUSED.values() if n[which] >= 0), refused)
    # glibc falls back to clone, whose flags can be read: threads are allowed, processes are not
    steps += of(_CLONE3, unknown)
    steps += of(_CLONE, low(0), (_ANY_BIT, 1, 0, _THREAD), refused)
    # a signal to oneself (abort) is allowed
    steps += of(_TGKILL, low(0), (_EQUAL, 1, 0, os.getpid()), refused)
    steps += of(_PRLIMIT, *given(2))  # limits may be read, not set
    # a descriptor can send signals to any process of the user: to whom, and which
    asynchronous = ((_EQUAL, 0, 3, _SETFL), low(2), (_ANY_BIT, 0, 1, _ASYNC), refused)
    steps += of(_FCNTL, low(1), *each(_SIGNALLING, refused), *asynchronous)
    steps += of(_IOCTL, low(1), *each(_HARMLESS, allowed), refused)
    steps += of(_PRCTL, low(0), *each(_ANOTHERS, refused))
    # a pair of streams talks to itself alone; datagrams could be sent to any socket of the system
    steps += of(_SOCKETPAIR, low(1), (_AND, 0, 0, 15), (_EQUAL, 1, 0, 1), refused)
    steps += of(_SENDTO, *given(4))
    steps += [(_AT_LEAST, 0, 1 + 2 * len(_KNOWN), _NEW), *each(_KNOWN, allowed), unknown]
    return [*steps, allowed]


def _prctl(libc, *values) -> None:
    padded = [*values, *(0,) * (5 - len(values))]
    if libc.prctl(*(v if isinstance(v, bytes) else ctypes.c_ulong(v) for v in padded)):
        raise OSError(ctypes.get_errno(), "prctl")


# ---- privileges and limits -----------------------------------------------------------------------


def _confine(settings: dict, folder: str) -> None:
    """Give up what the module's head lists; what takes filters only where they are asked for.

    Raises:
      Unsupported: this system has no such filters. OSError: they could not be set.
    """
    _limit(settings)
    if not sys.platform.startswith("linux"):
        if settings["strict"]:
            raise Unsupported("it is not Linux")
        return
    libc = ctypes.CDLL(None, use_errno=True)
    with (
        contextlib.suppress(OSError),
        open("/proc/self/oom_score_adj", "w", encoding="ascii") as file,
    ):
        file.write("1000")  # where memory runs out, this process goes before the run
    _prctl(libc, _NO_NEW_PRIVS, 1)
    header, none = struct.pack("=Ii", _CAPABILITIES, 0), bytes(24)
    if libc.capset(header, none):
        raise OSError(ctypes.get_errno(), "capset")
    _prctl(libc, _DEATH_SIGNAL, 9)
    if settings["strict"]:
        _landlock(folder)
        _seccomp()


def _limit(settings: dict) -> None:
    seconds, megabyte = int(settings["seconds"]) + 1, 1 << 20
    for what, most in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, settings["memory_mb"] * megabyte),
        (resource.RLIMIT_FSIZE, settings["disk_mb"] * megabyte),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, megabyte),
    ):
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))


# ---- the code and its tests ----------------------------------------------------------------------


def main(settings: dict, folder: str, pipes: tuple[int, int, int], read, shapes) -> None:
    """Become the process for the code, and serve: the code first, then a test at a time.

    `pipes` are the orders, the results and what is printed. `read` reads a message, `shapes` is the
    module that runs a test.
    """
    os.setsid()
    _descriptors(*pipes)
    os.environ.update(HOME=folder, TMPDIR=folder)
    os.chdir(folder)
    try:
        _confine(settings, folder)
    except Unsupported as error:
        return _say("refused", str(error))
    except OSError as error:
        return _say("broken", f"the code could not be confined: {error}")
    _say("ready", "")
    module = types.ModuleType("solution")
    module.__file__ = "solution.py"
    sys.modules["solution"] = sys.modules["__main__"] = module
    sys.argv, own = ["solution.py"], os.getpid()
    while True:
        step = json.loads(read(ORDERS))
        values: list = []
        reason = _reason(step, module, shapes, values)
        if os.getpid() != own:
            os._exit(0)  # the code forked, and this is not the process that was asked
        _say(step["word"], reason, json.dumps(values))


def _descriptors(orders: int, results: int, printed: int) -> None:
    """Leave this process five descriptors: an input of empty lines, twice what is printed, the
    results and the orders."""
    empty, lines = os.pipe()
    os.write(lines, b"\n" * EMPTY_LINES)
    wanted = [empty, printed, printed, results, orders]
    above = [fcntl.fcntl(one, fcntl.F_DUPFD, 100) for one in wanted]
    for number, one in enumerate(above):
        os.dup2(one, number)
    os.closerange(ORDERS + 1, 1 << 20)


def _say(word: str, *texts: str) -> None:
    parts = [text.encode("utf-8", "backslashreplace").hex() for text in texts]
    line = f"{' '.join([word, *parts])}\n".encode()
    while line:
        line = line[os.write(RESULTS, line) :]


def _reason(step: dict, module: types.ModuleType, shapes, values: list) -> str:
    """Return why the code or a test did not run to its end; empty if it did. `values` gets what a
    test says."""
    try:
        if "code" in step:
            code = step["code"]
            linecache.cache["<response>"] = (len(code), None, code.splitlines(True), "<response>")
            exec(compile(code, "<response>", "exec", dont_inherit=True), module.__dict__)
            return ""
        return shapes.run(step["test"], module, step["entries"], values)[:LONGEST_REASON]
    except BaseException as error:  # SystemExit and KeyboardInterrupt are no way to pass
        return _told(error)


def _told(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:LONGEST_REASON]
    except BaseException:  # its __str__ is the code's own
        return "an error that cannot be printed"
