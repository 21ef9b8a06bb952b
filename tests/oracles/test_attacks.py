"""What a response's code may try against the run and the machine, one attempt a row. None passes
its test, none ends the run, none reaches another process or file, and nothing of it is left. It
holds without namespaces too, and for root. SSPPO_ATTACKS=all runs every attempt in both ways."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ssppo_jax.oracles.code import code
from ssppo_jax.oracles.sandbox import child
from ssppo_jax.oracles.sandbox import run as sandbox
from ssppo_jax.oracles.sandbox.run import Limits, Starters, supervised
from ssppo_jax.oracles.sandbox.supervisor import clear
from ssppo_jax.types import Prompt

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Landlock and seccomp are Linux's")
LIMITS = Limits(seconds=0.5, memory_mb=256, disk_mb=4, strict=True)
NOT_PASSED = r"(failed|crash|time|memory|output|disk): "
EVERY_WAY = os.environ.get("SSPPO_ATTACKS") == "all"
# victim: the pid of another process of this user; secret: the path of a file of this user
HEAD = """
import ctypes, fcntl, gc, json, os, resource, signal, socket, struct, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *values):
    if number < 0:
        raise PermissionError("no such call here")
    values = [v if isinstance(v, (bytes, type(None))) else ctypes.c_long(v) for v in values]
    if libc.syscall(ctypes.c_long(number), *values) < 0:
        raise OSError(ctypes.get_errno(), "refused")
victim, secret = {victim}, {secret!r}
"""


def raw(name, *values):
    """A system call by its number on this machine."""
    which = 1 if os.uname().machine == "aarch64" else 0
    numbers = {**child._REFUSED, "clone": child._CLONE, "tgkill": child._TGKILL}
    return f"call({numbers[name][which]}, {', '.join(map(str, values))})"


SIGNALS = {
    "kill": "os.kill(victim, 9)",
    "kill everything": "os.kill(-1, 0)",  # 0 only asks whether it might
    "kill its group": "os.kill(0, 9)",
    "kill another group": "os.killpg(victim, 9)",
    "kill the supervisor": "os.kill(os.getppid() or victim, 9)",
    "tkill": raw("tkill", "victim", 9),
    "tgkill": raw("tgkill", "victim", "victim", 9),
    "queue a signal": raw("rt_sigqueueinfo", "victim", 9, "bytes(128)"),
    "queue a signal to a thread": raw("rt_tgsigqueueinfo", "victim", "victim", 9, "bytes(128)"),
    "open a process": "os.pidfd_open(victim)",
    "signal an open process": raw("pidfd_send_signal", 3, 9, 0, 0),
    "own a pipe for another": "fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, victim)",
    "own a pipe for a group": "fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, -victim)",
    "own a pipe for the supervisor": "fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, os.getppid())",
    "own a pipe for a thread": "fcntl.fcntl(os.pipe()[0], 15, struct.pack('ii', 0, victim))",
    "choose a pipe's signal": "fcntl.fcntl(os.pipe()[0], 10, 9)",
    "wake by a pipe": "fcntl.fcntl(os.pipe()[0], fcntl.F_SETFL, os.O_ASYNC)",
    "wake by what is printed": "fcntl.fcntl(1, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)",
    "wake by ioctl": "fcntl.ioctl(os.pipe()[0], 0x5452, struct.pack('i', 1))",
    "own by ioctl": "fcntl.ioctl(socket.socketpair()[0], 0x8901, struct.pack('i', victim))",
    "own a socket": "fcntl.ioctl(socket.socketpair()[0], 0x8902, struct.pack('i', victim))",
    "watch a folder by signal": "fcntl.fcntl(os.open('.', 0), fcntl.F_NOTIFY, fcntl.DN_CREATE)",
    "lease a file": "fcntl.fcntl(os.open('x', os.O_CREAT), fcntl.F_SETLEASE, fcntl.F_WRLCK)",
    "outlive its parent": "\n".join(
        ("if libc.prctl(1, 0, 0, 0, 0):", "    raise OSError(ctypes.get_errno(), 'refused')")
    ),
    "a new session": "os.setsid()",
    "another group": "os.setpgid(0, 0)",
    "type at the terminal": "fcntl.ioctl(0, 0x5412, b'x')",
}
SCHEDULING = {
    "affinity": "os.sched_setaffinity(victim, {0})",
    "affinity of the supervisor": "os.sched_setaffinity(os.getppid(), {0})",
    "scheduling class": "os.sched_setscheduler(victim, os.SCHED_IDLE, os.sched_param(0))",
    "real time": "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(99))",
    "scheduling parameters": raw("sched_setparam", "victim", "struct.pack('i', 0)"),
    "scheduling attributes": raw(
        "sched_setattr", "victim", "struct.pack('IIQiIQQQ', 48, 5, *[0] * 6)", 0
    ),
    "priority": "os.setpriority(os.PRIO_PROCESS, victim, 19)",
    "priority of the user": "os.setpriority(os.PRIO_USER, 0, 19)",
    "priority of input and output": raw("ioprio_set", 1, "victim", "3 << 13"),
    "limits of another": "resource.prlimit(victim, resource.RLIMIT_NOFILE, (0, 0))",
    "limits of its own": "resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "move memory pages": raw("move_pages", "victim", 0, 0, 0, 0, 0),
    "migrate memory": raw("migrate_pages", "victim", 64, "bytes(8)", "bytes(8)"),
}
OTHERS_MEMORY = {
    "trace": raw("ptrace", 16, "victim", 0, 0),
    "trace the supervisor": raw("ptrace", 16, "os.getppid() or victim", 0, 0),
    "read memory": raw("process_vm_readv", "victim", 0, 0, 0, 0, 0),
    "write memory": raw("process_vm_writev", "victim", 0, 0, 0, 0, 0),
    "memory file": "open(f'/proc/{victim}/mem', 'r+b')",
    "memory file of the supervisor": "open(f'/proc/{os.getppid() or victim}/mem', 'r+b')",
    "its own memory file": "open('/proc/self/mem', 'r+b')",
    "environment": "open(f'/proc/{victim}/environ').read()",
    "descriptors": "os.listdir(f'/proc/{victim}/fd')",
    "take a descriptor": raw("pidfd_getfd", 3, 0, 0),
    "memory pressure": "open('/proc/self/oom_score_adj', 'w').write('-1000')",
    "name of the machine": "open('/proc/sys/kernel/hostname', 'w')",
    "settings of the kernel": "open('/proc/sys/kernel/core_pattern', 'w')",
    "advise another's memory": "call(440, 3, 0, 0, 0, 0)",
    "shared memory": raw("shmget", 0, 4096, "0o1600"),
    "messages": raw("msgget", 0, "0o1600"),
    "semaphores": raw("semget", 0, 1, "0o1600"),
    "memory beyond its limit": raw("memfd_create", "b'x'", 0),
}
PROCESSES = {
    "fork": "os.fork()",
    "fork bomb": "while True: os.fork()",
    "exec": "os.execv('/bin/true', ['true'])",
    "spawn": "os.posix_spawn('/bin/true', ['true'], {})",
    "clone": raw("clone", 17, 0, 0, 0, 0),
    "shell": "raise PermissionError if os.system('true') else SystemExit",
    "namespaces": raw("unshare", "0x10000000"),
    "another's namespace": raw("setns", 3, 0),
    "ring of requests": raw("io_uring_setup", 1, "bytes(120)"),
    "program for the kernel": raw("bpf", 0, 0, 0),
    "measure": raw("perf_event_open", 0, 0, 0, 0, 0),
    "handle faults": raw("userfaultfd", 0),
    "user": "os.setuid(1)",
    "groups": "os.setgroups([])",
    "privileges": raw("capset", "struct.pack('Ii', 0x20080522, 0)", "bytes([255]) * 24"),
}
FILES = {
    "read": "open(secret).read()",
    "write": "open(secret, 'w')",
    "remove": "os.unlink(secret)",
    "cut": "os.truncate(secret, 0)",
    "move": "os.rename(secret, 'mine')",
    "link": "os.link(secret, 'mine')",
    "through a symbolic link": "os.symlink(secret, 'link')\nopen('link', 'a')",
    "mode": "os.chmod(secret, 0)",
    "owner": "os.chown(secret, 1, 1)",
    "times": "os.utime(secret, (0, 0))",
    "attributes": "os.setxattr('.', 'user.x', b'1')",
    "new file elsewhere": "open(os.path.dirname(secret) + '/new', 'w')",
    "list elsewhere": "os.listdir(os.path.dirname(secret))",
    "new file above": "open('../new', 'w')",
    "shared memory folder": "open('/dev/shm/new', 'w')",
    "device": "open('/dev/ptmx', 'r+b')",
    "make a device": "os.mknod('disk', 0o60600, os.makedev(8, 0))",
    "make a queue": "os.mkfifo('queue')",
    "by handle": raw("open_by_handle_at", 3, "bytes(64)", 0),
    "immutable": (
        "f = open('x', 'w')\nfcntl.ioctl(f, 0x40086602, struct.pack('l', 0x10))\nprint('fixed')"
    ),
    "immutable by attributes": "fcntl.ioctl(open('x', 'w'), 0x401c5820, bytes(28))",
    "mount": raw("mount", "b'none'", "b'.'", "b'tmpfs'", 0, 0),
    "unmount": raw("umount2", "os.getcwdb()", 2),
    "another root": "os.chroot('.')",
    "move its folder": "os.rename(os.getcwd(), os.getcwd() + '-mine')",
    "remove its folder": "os.rmdir(os.getcwd())",
    "flush all disks": raw("sync"),
}
SYSTEM = {
    "host name": "socket.sethostname('x')",
    "domain name": raw("setdomainname", "b'x'", 1),
    "restart": raw("reboot", 0, 0, 0, 0),
    "swap": raw("swapoff", "b'/x'"),
    "clock": "time.clock_settime(time.CLOCK_REALTIME, time.time())",
    "clock's rate": raw("adjtimex", "bytes(208)"),
    "kernel log": raw("syslog", 10, 0, 0),
    "accounting": raw("acct", 0),
    "module": raw("init_module", 0, 0, "b''"),
    "next kernel": raw("kexec_load", 0, 0, 0, 0),
    "keys": raw("keyctl", 0, 0, 0, 0, 0),
    "personality": raw("personality", "0x40000"),
    "ports": raw("iopl", 3),
    "a new way to mount": "call(430, b'tmpfs', 0)",
    "flags of a file, the new way": "call(469, -100, b'x', bytes(24), 24, 0)",
}
NETWORK = {
    "internet": "socket.socket()",
    "local socket": "socket.socket(socket.AF_UNIX)",
    "kernel's socket": "socket.socket(16, socket.SOCK_RAW, 0)",
    "pair of datagrams": "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
    "send elsewhere": "socket.socketpair()[0].sendto(b'x', '/dev/log')",
    "connect a pair": "socket.socketpair()[0].connect('/dev/log')",
    "bind a pair": "socket.socketpair()[0].bind('here')",
    "pass a descriptor": "socket.send_fds(socket.socketpair()[0], [b'x'], [1])",
}
EVERYWHERE = """
def everywhere(data):
    for number in range(3, 64):
        try:
            os.set_blocking(number, False)
            os.write(number, data)
        except OSError:
            pass
"""
RESULTS = {
    "deep JSON": EVERYWHERE + "everywhere(b'[' * 60000 + b'\\n')\nos._exit(0)",
    "deep JSON with a key": EVERYWHERE + "everywhere(b'{\"a\":' * 10000 + b'\\n')\nos._exit(0)",
    "a refusal": EVERYWHERE + "everywhere(b'refused 78\\n')\nos._exit(0)",
    "a broken sandbox": EVERYWHERE + "everywhere(b'broken 78\\n')\nos._exit(0)",
    "a ready word": EVERYWHERE + "everywhere(b'ready \\n\\n\\n')\nos._exit(0)",
    "empty words": EVERYWHERE + "everywhere(b' \\n \\n \\n0\\n')\nos._exit(0)",
    "no UTF-8": EVERYWHERE + "everywhere(bytes(range(256)) * 200)\nos._exit(0)",
    "no end of a line": EVERYWHERE + "while True: everywhere(b'x' * 4096)",
    "lines without end": EVERYWHERE + "while True: everywhere(b'x \\n' * 1000)",
    "take the next order": "os.read(4, 1 << 16)\nos._exit(0)",
    "give itself orders": "os.write(4, b'1234')",
    "close all": "os.closerange(0, 64)\nwhile True: pass",
    "close the results": "os.close(3)",
    "say more than once": (
        "frame = sys._getframe()\nwhile frame:\n    for v in [*frame.f_locals.values()]:\n"
        "        if isinstance(v, dict) and 'word' in v:\n"
        "            for kind in ('refused', 'broken', 'ready', 'x'):\n"
        "                os.write(3, f'{kind} 78\\n'.encode())\n    frame = frame.f_back\n"
    ),
    "refuse by the harness itself": (
        "frame = sys._getframe()\nwhile frame:\n    for name, v in [*frame.f_globals.items()]:\n"
        "        if name.endswith('say'):\n            v('refused', 'x')\n"
        "            v('broken', 'x')\n"
        "    frame = frame.f_back\n"
    ),
    "a word of its own": (
        "frame = sys._getframe()\nwhile frame:\n    for v in [*frame.f_locals.values()]:\n"
        "        if isinstance(v, dict) and 'word' in v:\n            v['word'] = 'x' * 1000000\n"
        "    frame = frame.f_back\n"
    ),
    "an object that equals everything": (
        "class E:\n    def __eq__(self, other): return True\n    def __bool__(self): return True\n"
        "def add(a, b): return E()\n"
    ),
    "a number that equals everything": (
        "class E(int):\n    def __eq__(self, other): return True\n    __hash__ = None\n"
        "def add(a, b): return E(4)\n"
    ),
    "answers for the tests": (
        "frame = sys._getframe()\nwhile 'step' not in frame.f_locals:\n    frame = frame.f_back\n"
        "word, nothing = frame.f_locals['step']['word'], '[]'.encode().hex()\n"
        "while True:\n    os.write(3, f'{word}  {nothing}\\n'.encode())\n"
        "    size = struct.unpack('=I', os.read(4, 4))[0]\n"
        "    word = json.loads(os.read(4, size))['word']\n"
    ),
    "a reason that is no text": ("class E(Exception):\n    def __str__(self): return 5\nraise E"),
    "a reason that raises": (
        "class E(Exception):\n    def __str__(self): raise SystemExit(0)\nraise E"
    ),
    "a reason without end": (
        "class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E"
    ),
    "a huge reason": "raise ValueError('x' * (50 << 20))",
    "a reason of half characters": "raise ValueError('\\ud800' * 300)",
    "an error of no class": (
        "class M(type):\n    __name__ = 5\nclass E(Exception, metaclass=M): pass\nraise E"
    ),
    "exit": "sys.exit(0)",
    "exit at once": "os._exit(0)",
    "abort": "os.abort()",
    "fault": "ctypes.string_at(0)",
    "stop itself": "signal.raise_signal(signal.SIGSTOP)",
    "no recursion": "sys.setrecursionlimit(20)",
    "no builtins": (
        "import builtins\nfor n in dir(builtins):\n    if n[0] != '_': delattr(builtins, n)"
    ),
    "no modules": "sys.modules.clear()",
    "no output": "sys.stdout.close()\nsys.stderr.close()\nos.close(1)\nos.close(2)\nos.close(0)",
    "another json": "json.loads = lambda text: {'word': 'x', 'test': 'pass', 'entries': []}",
    "trace": "sys.settrace(lambda *_: None)\nsys.setprofile(lambda *_: None)",
    "replace exec": "import builtins\nbuiltins.exec = builtins.compile = lambda *_, **__: None",
    "a module that is not one": "sys.modules['__main__'] = sys.modules['solution'] = 5",
}
FLOODS = {
    "memory": "x = bytearray(1 << 33)",
    "memory by little": "x = []\nwhile True: x.append(bytes(1 << 20))",
    "descriptors": "x = []\nwhile True: x.append(open('/dev/null'))",
    "pipes": "x = []\nwhile True: x.append(os.pipe())",
    "threads": (
        "threading.stack_size(32768)\nwhile True:\n"
        "    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
    ),
    "loop": "while True: pass",
    "loop in C": "sum(range(10 ** 15))",
    "loop in a pattern": "import re\nre.match('(a+)+$', 'a' * 60 + 'b')",
    "sleep": "time.sleep(1000)",
    "sleep in a thread": "threading.Thread(target=time.sleep, args=(1000,)).start()",
    "dead lock": "lock = threading.Lock()\nlock.acquire()\nlock.acquire()",
    "no end of ending": ("class E:\n    def __del__(self):\n        while True: pass\nE()"),
    "deaf": "for s in {1, 2, 3, 15, 24, 14}: signal.signal(s, signal.SIG_IGN)\nwhile True: pass",
    "recursion": "sys.setrecursionlimit(10 ** 9)\ndef f(): f()\nf()",
    "recursion in C": (
        "sys.setrecursionlimit(10 ** 9)\nx = []\nfor i in range(10 ** 6): x = [x]\nrepr(x)"
    ),
    "print": "while True: print('x' * 65536)",
    "print errors": "while True: sys.stderr.write('x' * 65536)",
    "a huge file": "f = open('x', 'wb')\nwhile True: f.write(bytes(1 << 16)); f.flush()",
    "a hollow file": "open('x', 'wb').truncate(1 << 40)",
    "room for a file": "os.posix_fallocate(os.open('x', os.O_CREAT | os.O_WRONLY), 0, 1 << 30)",
    "many files": "n = 0\nwhile True:\n    n += 1\n    open(str(n), 'wb').write(bytes(1 << 20))",
    "many empty files": "n = 0\nwhile True:\n    n += 1\n    os.close(os.open(str(n), os.O_CREAT))",
    "many empty folders": "n = 0\nwhile True:\n    n += 1\n    os.mkdir(str(n))",
    "folders far down": "for n in range(3000):\n    os.mkdir('d')\n    os.chdir('d')",
    "folders far down without end": "while True:\n    os.mkdir('d')\n    os.chdir('d')",
    "long names far down": "while True:\n    os.mkdir('d' * 255)\n    os.chdir('d' * 255)",
    "many links": "n = 0\nwhile True:\n    n += 1\n    os.symlink('x' * 4000, str(n))",
    "a circle of links": "os.symlink('.', 'l')\nos.symlink('/', 'm')\nos.symlink(secret, 'n')",
    "folders that cannot be listed": "os.mkdir('a', 0)\nos.mkdir('b')\nos.mkdir('b/c', 0)",
    "odd names": (
        "for n in (b'\\n', b'\\xff\\xfe', b'-rf', b' ', b'\\x01', b'x' * 255, b'\\xe2\\x80'):\n"
        "    os.mkdir(n)\n    open(n + b'/' + n, 'w').write('x')"
    ),
    "removed and held": (
        "x = []\nwhile True:\n    x.append(open('x', 'wb'))\n    os.unlink('x')\n"
        "    x[-1].write(bytes(1 << 20))\n    x[-1].flush()"
    ),
}
SOURCES = {
    "deep source": "x = " + "(" * 5000 + ")" * 5000,
    "deep lists": "x = " + "[" * 150 + "]" * 150,
    "long source": "x = 1\n" * 200000,
    "a null byte": "x = 1\0",
    "half a character": "x = '\ud800'",
    "a wide line": "x = 1" + " + 1" * 100000,
}
REFUSED = {
    "signals": SIGNALS,
    "scheduling": SCHEDULING,
    "memory": OTHERS_MEMORY,
    "processes": PROCESSES,
    "files": FILES,
    "system": SYSTEM,
    "network": NETWORK,
}
ENDED = {"results": RESULTS, "floods": FLOODS, "sources": SOURCES}
BOTH_WAYS = {
    *("descriptors", "threads", "a huge file", "many files", "many empty folders"),
    *("folders far down", "folders that cannot be listed", "odd names", "removed and held"),
}


def refused(attempt):
    """A test that passes if the system refuses the attempt."""
    return (
        f"try:\n{textwrap.indent(attempt, '    ')}\nexcept (PermissionError, ValueError):\n"
        f"    pass\n"
        "except OSError as error:\n    assert error.errno in (1, 13, 18, 38), error\n"
        "else:\n    raise AssertionError('it was allowed')\n"
    )


def rows(groups):
    return [(group, name) for group, attempts in groups.items() for name in attempts]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A file and a process that attempts are aimed at, and the folder of temporary files."""
    top = tmp_path_factory.mktemp("attacks")
    secret, folder = top / "home" / "secret", top / "code"
    secret.parent.mkdir()
    folder.mkdir()
    secret.write_text("untouched")
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])

    def state():
        pids = (victim.pid, 0)
        how = [
            (os.sched_getaffinity(p), os.sched_getscheduler(p), os.getpriority(0, p)) for p in pids
        ]
        return how, secret.stat(), secret.read_text(), victim.poll(), os.umask(os.umask(0o22))

    before = state()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(folder))
        yield HEAD.format(victim=victim.pid, secret=str(secret)), folder
    after, left = state(), [path for path in top.rglob("*") if path.is_relative_to(folder)]
    victim.kill()
    victim.wait()
    clear(str(folder))
    assert before == after and left == [folder]


@pytest.mark.parametrize("namespaces", [True, False], ids=["namespaces", "without"])
@pytest.mark.parametrize("group", REFUSED)
def test_the_system_refuses_each_of_a_group(group, namespaces, place):
    tests = [refused(attempt) for attempt in REFUSED[group].values()]
    report = supervised(place[0], tests, LIMITS._replace(namespaces=namespaces, seconds=10.0))
    names = [name for name, ok in zip(REFUSED[group], report.each, strict=True) if not ok]
    assert report.outcome.outcome == "passed" and not names, (names, report.outcome)


@pytest.fixture(scope="module")
def ended(place):
    """Run the attempts that the system cannot refuse, two at a time; what became of each."""
    head = place[0]

    def one(task):
        (group, name), namespaces = task
        source = ENDED[group][name]
        source = source if group == "sources" else f"{head}\n{source}\n"
        limits = LIMITS._replace(namespaces=namespaces)
        try:
            return supervised(source, ["assert add(1, 2) == 3"], limits, None, starters)
        except BaseException as error:
            return error

    tasks = [
        (row, namespaces)
        for row in rows(ENDED)
        for namespaces in (True, False)
        if EVERY_WAY or row[1] in BOTH_WAYS or namespaces == (row[0] != "floods")
    ]
    with Starters() as starters, ThreadPoolExecutor(3) as pool:  # each after another's
        became = list(pool.map(one, tasks))
    found = {}
    for (row, _), report in zip(tasks, became, strict=True):
        found.setdefault(row, []).append(report)
    return found


@pytest.mark.parametrize("row", rows(ENDED), ids=": ".join)
def test_an_attempt_is_ended_and_is_wrong(row, ended):
    for report in ended[row]:
        assert not isinstance(report, BaseException) and not report.broken
        said = f"{report.outcome.outcome}: {report.outcome.reason}"
        assert re.match(NOT_PASSED, said) and report.left == 0, said


def test_there_are_many_and_no_process_is_left(ended):
    assert len(rows(REFUSED)) + len(rows(ENDED)) >= 150
    threads = Path("/proc/self/task").glob("*/children")
    assert len(" ".join(one.read_text() for one in threads).split()) == 1  # the victim


# ---- what is killed, and what lives on -----------------------------------------------------------

SLEEPER = """
import ctypes, time
ctypes.CDLL(None).prctl(15, b"{mark}", 0, 0, 0)
time.sleep(100)
"""
RUN = """
import json, sys, tempfile, threading
from ssppo_jax.oracles.sandbox.run import Limits, supervised
tempfile.tempdir = sys.argv[1]
for source, strict, namespaces in json.loads(sys.argv[2]):
    limits = Limits(100.0, 256, 4, strict, namespaces)
    threading.Thread(target=supervised, args=(source, [], limits)).start()
"""


def named(mark):
    """The pids of processes of this name."""
    found = []
    for comm in Path("/proc").glob("[0-9]*/comm"):
        try:
            if comm.read_text().strip() == mark:
                found.append(int(comm.parent.name))
        except OSError:
            continue
    return found


def until(condition, seconds=15.0):
    end = time.monotonic() + seconds
    while not (held := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return held


def test_when_the_run_is_killed_the_code_dies_and_its_folders_go(tmp_path):
    ways = [(strict, namespaces) for strict in (True, False) for namespaces in (True, False)]
    marks = [f"r{os.getpid()}{strict:d}{namespaces:d}" for strict, namespaces in ways]
    tasks = [(SLEEPER.format(mark=mark), *way) for mark, way in zip(marks, ways, strict=True)]
    run = subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path), json.dumps(tasks)])
    try:
        assert until(lambda: all(named(mark) for mark in marks), 60.0), "the code did not start"
        assert len(list(tmp_path.iterdir())) == len(ways)
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
    assert until(lambda: not any(named(mark) for mark in marks) and not list(tmp_path.iterdir()))


@pytest.mark.parametrize("namespaces", [True, False], ids=["namespaces", "without"])
def test_when_its_supervisor_is_killed_the_code_dies_and_the_run_goes_on(
    namespaces, tmp_path, monkeypatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mark, got = f"k{os.getpid()}{namespaces:d}", []
    limits = LIMITS._replace(namespaces=namespaces, seconds=30.0)
    source = SLEEPER.format(mark=mark)
    thread = threading.Thread(target=lambda: got.append(supervised(source, ["pass"], limits)))
    thread.start()
    (pid,) = until(lambda: named(mark))
    status = Path(f"/proc/{pid}/status").read_text()
    os.kill(int(re.search(r"PPid:\t(\d+)", status)[1]), signal.SIGKILL)
    thread.join(20)
    assert got[0].outcome == ("crash", 0, "its supervisor ended with -9")
    assert until(lambda: not named(mark))
    assert list(tmp_path.iterdir()) == []


def test_a_starter_serves_many_and_carries_nothing_from_one_to_the_next():
    """What one response changes or says is unknown to the next; a dead supervisor costs one."""
    leave = "import sys, os, builtins\nbuiltins.left = sys.left = 'zebra'\nos.environ['LEFT'] = '1'"
    find = (
        "import sys, os, gc, builtins\n"
        "assert not hasattr(sys, 'left') and not hasattr(builtins, 'left')\n"
        "assert 'LEFT' not in os.environ\n"
        "texts = [o for o in gc.get_objects() if isinstance(o, (str, bytes, list, dict, tuple))]\n"
        "assert not any('arbez'[::-1] in repr(o) for o in texts)"
    )
    kill = "import os\nos.kill(os.getppid(), 9)"
    trusted = LIMITS._replace(strict=False, namespaces=False)
    with Starters() as starters:
        served = set()
        for source, limits, wanted in (
            (leave, LIMITS, "passed"),
            (find, LIMITS, "passed"),
            (kill, trusted, "crash"),
            (find, LIMITS, "passed"),
        ):
            report = supervised(source, ["assert 1 + 1 == 2"], limits, None, starters)
            assert report.outcome.outcome == wanted, report.outcome
            served |= {starter.pid for starter in starters._idle}
        assert len(served) == 2  # one until the kill, one after it
        (idle,) = starters._idle
        os.kill(idle.pid, signal.SIGKILL)  # by a system short of memory, say
        os.waitid(os.P_PID, idle.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet noticed
        report = supervised(find, ["assert 1 + 1 == 2"], LIMITS, None, starters)
        assert report.outcome.outcome == "passed", report.outcome
    assert not any(Path(f"/proc/{pid}").exists() for pid in served)


def test_a_sandbox_that_broke_leaves_the_next_response_alone(monkeypatch):
    """The steps that a broken supervisor never read are not the next one's settings."""
    seen = []
    with Starters() as starters:
        for folder in ("/nonexistent", None):
            with monkeypatch.context() as patch:
                if folder:
                    patch.setattr(tempfile, "gettempdir", lambda: "/nonexistent")
                report = supervised("x = 1", ["assert x == 1"], LIMITS, None, starters)
            seen.append((bool(report.broken), report.outcome.outcome))
    assert seen == [(True, "crash"), (False, "passed")]


@pytest.mark.parametrize("namespaces", [True, False], ids=["namespaces", "without"])
def test_processes_that_trusted_code_leaves_behind_are_ended(namespaces):
    """Without filters code may start processes; they end with it, in sessions of their own too."""
    mark = f"d{os.getpid()}{namespaces:d}"
    source = "import os\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n{}"
    source = source.format(textwrap.indent(SLEEPER.format(mark=mark), "        "))
    limits = LIMITS._replace(strict=False, namespaces=namespaces, seconds=20.0)
    wait = "import time\nfor n in range(100):\n    time.sleep(0.01)\nassert True"
    assert supervised(source, [wait], limits).outcome.outcome == "passed"
    assert not named(mark)


# ---- what cannot be removed, and what cannot be started ------------------------------------------


def prompt():
    return Prompt("p", ({"role": "user", "content": "add"},), {"tests": "assert add(1, 2) == 3"})


ADD = "def add(a, b):\n    return a + b\n"


def test_what_cannot_be_removed_is_counted(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / "code" / name).mkdir(parents=True)

    def refuse(*_, **__):
        raise PermissionError(1, "no")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", refuse)
        assert clear(str(tmp_path / "code")) == 2
    assert clear(str(tmp_path / "code")) == 0 and clear(str(tmp_path / "code")) == 0
    monkeypatch.setattr(sandbox, "clear", lambda folder: 2)
    verdict = code().ask([prompt()], [[ADD]])
    assert verdict.reward.tolist() == [[1.0]] and verdict.parts["left"].tolist() == [[2.0]]


def test_a_system_without_room_for_a_process_fails_the_prompt_and_not_the_run(monkeypatch):
    def full():
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(sandbox, "_start", full)
    verdict = code().ask([prompt()], [[ADD, ADD]])
    assert "no process could be started" in verdict.failed[0].reason
    assert np.isnan(verdict.reward).all()


def test_the_code_sees_neither_the_settings_nor_the_tests_before_it_has_run():
    """They are sent after it, so it cannot answer for them."""
    source = "import sys\nframe, seen = sys._getframe(), ''\nwhile frame:\n"
    source += "    seen += repr(frame.f_locals)\n    frame = frame.f_back\n"
    word = "assert 'ze' + 'bra' not in seen and 'ssppo-code-' in seen  # zebra"
    assert supervised(source, [word], LIMITS._replace(seconds=5.0)).outcome.outcome == "passed"
