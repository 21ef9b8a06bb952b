"""What a response's code may try against the run and the machine, one attempt a row, and what must
become of it. None passes its test, none ends the run, none reaches another process or file, and
nothing of it is left. It holds without namespaces too, and for root."""

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ssppo_jax.oracles.sandbox import child
from ssppo_jax.oracles.sandbox.run import Limits, supervised
from ssppo_jax.oracles.sandbox.supervisor import clear

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Landlock and seccomp are Linux's")
LIMITS = Limits(seconds=1.0, memory_mb=256, disk_mb=4, strict=True)
REFUSED = r"failed: .*(PermissionError|Errno 1\b|Errno 13\b)"
UNKNOWN = r"failed: OSError: \[Errno 38\]"  # a call newer than the filter
NOT_PASSED = r"(failed|crash|time|memory|output|disk): "
# {victim}: the pid of another process of this user; {secret}: a file of this user; {pid_of}: ...
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
    "own a socket by ioctl": "fcntl.ioctl(socket.socketpair()[0], 0x8902, struct.pack('i', victim))",
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
    "scheduling attributes": raw("sched_setattr", "victim", "struct.pack('IIQiIQQQ', 48, 5, *[0] * 6)", 0),
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
    "trace the supervisor": raw("ptrace", 16, "os.getppid()", 0, 0),
    "read memory": raw("process_vm_readv", "victim", 0, 0, 0, 0, 0),
    "write memory": raw("process_vm_writev", "victim", 0, 0, 0, 0, 0),
    "memory file": "open(f'/proc/{victim}/mem', 'r+b')",
    "memory file of the supervisor": "open(f'/proc/{os.getppid()}/mem', 'r+b')",
    "its own memory file": "open('/proc/self/mem', 'r+b')",
    "environment": "open(f'/proc/{victim}/environ').read()",
    "descriptors": "os.listdir(f'/proc/{victim}/fd')",
    "take a descriptor": raw("pidfd_getfd", 3, 0, 0),
    "memory pressure": "open('/proc/self/oom_score_adj', 'w').write('-1000')",
    "magic keys": "open('/proc/sysrq-trigger', 'w')",
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
    "device": "open('/dev/mem', 'rb')",
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
        "        if name.endswith('say'):\n            v('refused', 'x')\n            v('broken', 'x')\n"
        "    frame = frame.f_back\n"
    ),
    "a word of its own": (
        "frame = sys._getframe()\nwhile frame:\n    for v in [*frame.f_locals.values()]:\n"
        "        if isinstance(v, dict) and 'word' in v:\n            v['word'] = 'x' * 1000000\n"
        "    frame = frame.f_back\n"
    ),
    "a reason that is no text": (
        "class E(Exception):\n    def __str__(self): return 5\nraise E"
    ),
    "a reason that raises": (
        "class E(Exception):\n    def __str__(self): raise SystemExit(0)\nraise E"
    ),
    "a reason without end": (
        "class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E"
    ),
    "a huge reason": "raise ValueError('x' * (50 << 20))",
    "a reason of half characters": "raise ValueError('\\ud800' * 300)",
    "an error of no class": "class M(type):\n    __name__ = 5\nclass E(Exception, metaclass=M): pass\nraise E",
    "exit": "sys.exit(0)",
    "exit at once": "os._exit(0)",
    "abort": "os.abort()",
    "fault": "ctypes.string_at(0)",
    "stop itself": "signal.raise_signal(signal.SIGSTOP)",
    "no recursion": "sys.setrecursionlimit(20)",
    "no builtins": "import builtins\nfor n in dir(builtins):\n    if n[0] != '_': delattr(builtins, n)",
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
    "no end of ending": (
        "class E:\n    def __del__(self):\n        while True: pass\nE()"
    ),
    "deaf": "for s in {1, 2, 3, 15, 24, 14}: signal.signal(s, signal.SIG_IGN)\nwhile True: pass",
    "recursion": "sys.setrecursionlimit(10 ** 9)\ndef f(): f()\nf()",
    "recursion in C": "sys.setrecursionlimit(10 ** 9)\nx = []\nfor i in range(10 ** 6): x = [x]\nrepr(x)",
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
        "for n in (b'\\n', b'\\xff\\xfe', b'-rf', b' ', b'\\x01', b'x' * 255, '\\u2028'.encode()):\n"
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
ATTEMPTS = {
    **{f"signals: {k}": (v, REFUSED) for k, v in SIGNALS.items()},
    **{f"scheduling: {k}": (v, REFUSED) for k, v in SCHEDULING.items()},
    **{f"memory: {k}": (v, REFUSED) for k, v in OTHERS_MEMORY.items()},
    **{f"processes: {k}": (v, REFUSED) for k, v in PROCESSES.items()},
    **{f"files: {k}": (v, REFUSED) for k, v in FILES.items()},
    **{f"system: {k}": (v, REFUSED) for k, v in SYSTEM.items()},
    **{f"network: {k}": (v, REFUSED) for k, v in NETWORK.items()},
    **{f"results: {k}": (v, NOT_PASSED) for k, v in RESULTS.items()},
    **{f"floods: {k}": (v, NOT_PASSED) for k, v in FLOODS.items()},
    **{f"sources: {k}": (v, NOT_PASSED) for k, v in SOURCES.items()},
}
UNKNOWN_TO_THE_FILTER = {
    "memory: advise another's memory",
    "system: a new way to mount",
    "system: flags of a file, the new way",
}


@pytest.fixture(scope="module")
def harm(tmp_path_factory):
    """Run every attempt; what became of each, and what each left or changed."""
    top = tmp_path_factory.mktemp("attacks")
    secret, folder = top / "home" / "secret", top / "code"
    secret.parent.mkdir()
    folder.mkdir()
    secret.write_text("untouched")
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    head = HEAD.format(victim=victim.pid, secret=str(secret))

    def one(attempt):
        (name, (code, _)), namespaces = attempt
        source = code if name.startswith("sources") else f"{head}\n{code}\n"
        try:
            return supervised(source, ["assert add(1, 2) == 3"], LIMITS._replace(namespaces=namespaces))
        except BaseException as error:
            return error

    def state(pid):
        return os.sched_getaffinity(pid), os.sched_getscheduler(pid), os.getpriority(0, pid)

    before = state(victim.pid), state(0), secret.stat()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(folder))
        tried = [*itertools.product(ATTEMPTS.items(), (False,))]
        with ThreadPoolExecutor(2) as pool:
            became = dict(zip(ATTEMPTS, pool.map(one, tried), strict=True))
    after = state(victim.pid), state(0), secret.stat()
    alive = victim.poll() is None
    victim.kill()
    victim.wait()
    left = [path for path in top.rglob("*") if path not in (secret, secret.parent, folder)]
    yield {
        "became": became,
        "unchanged": before == after and secret.read_text() == "untouched",
        "alive": alive,
        "left": left,
    }
    clear(str(top))


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_an_attempt_is_refused_or_ended(attempt, harm):
    report, wanted = harm["became"][attempt], ATTEMPTS[attempt][1]
    if attempt in UNKNOWN_TO_THE_FILTER:
        wanted = UNKNOWN
    assert not isinstance(report, BaseException) and not report.broken
    said = f"{report.outcome.outcome}: {report.outcome.reason}"
    assert re.match(wanted, said, re.DOTALL), said
    assert report.left == 0


def test_nothing_was_reached_changed_or_left(harm):
    assert harm["alive"] and harm["unchanged"] and harm["left"] == []
    assert len(ATTEMPTS) >= 150
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
