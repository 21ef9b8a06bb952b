"""The process that starts one response's code, watches it, ends it and clears up. `run` executes
this file as a starter, which forks a supervisor for each response. It imports no ssppo_jax.

    standard input: the settings, then the code and its tests  ->  standard output: one JSON report

The starter loads Python and this folder's files once. It waits until there is something to read,
and leaves the reading to its fork. So nothing of a response is left in it for the next one. It
ends when the run does, and as a supervisor ended that gave no report.

The run may lose this process at any time. What a response can reach is this process at most: the
code runs in a child (`child`) in a session of its own and, where the system grants them, in user,
PID, network, mount, IPC and UTS namespaces. The child is ready and confined before it is sent any
code. It answers each step with that step's word, drawn at random and sent with the step. So code
cannot speak of tests that it has not been sent, and cannot report that the system is to blame.

If the run or the starter dies, the supervisor sees it and kills the child. If the supervisor dies,
the kernel kills the child (PR_SET_PDEATHSIG)."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import os
import select
import signal
import stat
import struct
import sys
import time
from types import ModuleType

MOST_OUTPUT = 1 << 20  # bytes that code and tests may print together
MOST_SAID = 1 << 25  # bytes of one step's answer
MOST_ENTRIES = 4096  # files and folders
MOST_THREADS = 128
POLL = 0.05  # seconds between looks at what the child has used
STARTING = 60.0  # seconds until the child must be ready
CLEARING = 20.0  # seconds that removing its folder may take
LINUX = sys.platform.startswith("linux")  # elsewhere there are limits alone
_NAMESPACES = {  # CLONE_NEW... of sched.h
    "user": 0x10000000,
    "mount": 0x00020000,
    "UTS": 0x04000000,
    "IPC": 0x08000000,
    "PID": 0x20000000,
    "network": 0x40000000,
}
_PRIVATE, _RECURSIVE, _NOSUID, _NODEV, _DETACH = 1 << 18, 1 << 14, 2, 4, 2
_SUBREAPER, _DUMPABLE = 36, 4


def read_message(source: int) -> bytes:
    """Return the next message: its length in four bytes, then its bytes.

    Raises:
        EOFError: the other side has gone.
    """
    return _exactly(source, struct.unpack("=I", _exactly(source, 4))[0])


def _exactly(source: int, size: int) -> bytes:
    found = b""
    while len(found) < size:
        piece = os.read(source, size - len(found))
        if not piece:
            raise EOFError
        found += piece
    return found


def write_message(target: int, message: bytes) -> None:
    """Write a message as `read_message` reads it."""
    whole = struct.pack("=I", len(message)) + message
    while whole:
        whole = whole[os.write(target, whole) :]


# ---- namespaces ----------------------------------------------------------------------------------


def separate() -> list[str]:
    """Enter new namespaces, as many as the system grants, and return their names. The PID namespace
    begins with the next child."""
    if not LINUX:
        return []
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    without_user = [name for name in _NAMESPACES if name != "user"]
    for names in (list(_NAMESPACES), without_user, ["user", "PID"], ["PID"]):
        if libc.unshare(sum(_NAMESPACES[name] for name in names)) == 0:
            break
    else:
        return []
    if "user" in names:
        with contextlib.suppress(OSError):  # then it is nobody there: no harm
            _write("/proc/self/setgroups", "deny")
            _write("/proc/self/uid_map", f"{user} {user} 1")
            _write("/proc/self/gid_map", f"{group} {group} 1")
    return names


def _write(path: str, text: str) -> None:
    target = os.open(path, os.O_WRONLY)
    try:
        os.write(target, text.encode())
    finally:
        os.close(target)


def mount(folder: str, megabytes: int) -> bool:
    """Put a file system in memory, of a fixed size, in the folder's place; return whether that was
    possible. It is seen in this mount namespace alone and ends with it."""
    libc = ctypes.CDLL(None, use_errno=True)
    size = f"size={2 * megabytes}m,nr_inodes={2 * MOST_ENTRIES},mode=700".encode()
    private = libc.mount(b"none", b"/", None, ctypes.c_ulong(_PRIVATE | _RECURSIVE), None) == 0
    flags = ctypes.c_ulong(_NOSUID | _NODEV)
    return private and libc.mount(b"code", folder.encode(), b"tmpfs", flags, size) == 0


# ---- the folder ----------------------------------------------------------------------------------


def overfull(folder: str, megabytes: int, mounted: bool) -> bool:
    """Return true if the folder holds more bytes, or more files and folders, than it may."""
    most = megabytes << 20
    if mounted:
        used = os.statvfs(folder)
        entries = used.f_files - used.f_ffree
        return (used.f_blocks - used.f_bfree) * used.f_frsize > most or entries > MOST_ENTRIES
    total, entries, waiting = 0, 0, [folder]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as found:
                for entry in found:
                    entries += 1
                    with contextlib.suppress(FileNotFoundError):
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(entry.path)
                    if total > most or entries > MOST_ENTRIES:
                        return True
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
        except OSError:  # a path too long for the system
            return True
    return False


def clear(folder: str) -> int:
    """Remove a folder and all in it, however deep; return how much had to be left behind.

    A folder's folders are moved up beside it before it is removed, so no path grows long."""
    try:
        top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return 0
    except OSError:
        return 1
    mark, moved, end = os.urandom(8).hex(), 0, time.monotonic() + CLEARING
    try:
        while True:
            names, removed = os.listdir(top), 0
            for name in names:
                if time.monotonic() > end:
                    break
                inner, done = _take_apart(top, name, f"{mark}-{moved}-")
                moved, removed = moved + inner, removed + done
            if not removed:
                break
    finally:
        os.close(top)
    try:
        os.rmdir(folder)
    except OSError:
        return max(1, len(names))
    return 0


def _take_apart(top: int, name: str, prefix: str) -> tuple[int, int]:
    """Remove one entry; return how many folders came up from within it, and 1 if it is gone."""
    with contextlib.suppress(OSError):
        os.unlink(name, dir_fd=top)
        return 0, 1
    came = 0
    with contextlib.suppress(OSError):
        at = _opened(top, name)
        try:
            for inner in os.listdir(at):
                try:
                    os.unlink(inner, dir_fd=at)
                except OSError:
                    with contextlib.suppress(OSError):
                        os.close(_opened(at, inner))  # a folder must be writable to be moved
                        os.rename(inner, f"{prefix}{came}", src_dir_fd=at, dst_dir_fd=top)
                        came += 1
        finally:
            os.close(at)
        os.rmdir(name, dir_fd=top)
        return came, 1
    return came, 0


def _opened(parent: int, name: str) -> int:
    """Return a descriptor of a folder, made readable and writable first."""
    if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
        os.chmod(name, 0o700, dir_fd=parent)
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)


# ---- the child -----------------------------------------------------------------------------------


class Child:
    """The confined process and its three pipes."""

    def __init__(self, settings: dict, folder: str, child: ModuleType, shapes: ModuleType):
        self.shapes = shapes
        orders, self.orders = os.pipe()
        self.results, results = os.pipe()
        self.printed, printed = os.pipe()
        self.ended: int | None = None  # its exit code, or minus the signal that ended it
        self.seconds = 0.0  # of processor time
        self.waiting = b""  # read from it and not yet a whole line
        self.output = 0
        self.pid = os.fork()
        if self.pid == 0:
            try:
                child.main(settings, folder, (orders, results, printed), read_message, shapes)
            finally:
                os._exit(70)
        for end in (orders, results, printed):
            os.close(end)
        for end in (self.orders, self.results, self.printed):
            os.set_blocking(end, False)
        _prctl(_DUMPABLE, 0)  # nobody of this user may look into this process or trace it

    def send(self, message: dict, end: float) -> bool:
        """Send a step; return false if the child has gone, or does not read it in time."""
        text = json.dumps(message).encode()
        whole, ready = struct.pack("=I", len(text)) + text, select.poll()
        ready.register(self.orders, select.POLLOUT)
        while whole and ready.poll(max(0.0, 1000 * (end - time.monotonic()))):
            try:
                whole = whole[os.write(self.orders, whole) :]
            except OSError:
                return False
        return not whole

    def line(self, end: float, watch) -> tuple[bytes | None, str]:
        """Return the child's next line, or None and the limit that it went over ("" if it ended).

        `watch` looks at what it has used, and returns the name of a limit or ""."""
        ready = select.poll()  # not select: descriptors may have high numbers
        for stream in (self.results, self.printed):
            ready.register(stream, select.POLLIN)
        looked = 0.0
        while b"\n" not in self.waiting:
            now = time.monotonic()
            if now >= end:
                return None, "time"
            if now - looked > POLL:
                looked, over = now, watch()
                if over:
                    return None, over
            for stream, _ in ready.poll(1000 * min(end - now, POLL)):
                piece = _piece(stream)
                if piece == b"":  # closed: the process has ended, or has closed it
                    ready.unregister(stream)
                    if stream == self.results:
                        return None, ""
                elif stream == self.results:
                    self.waiting += piece or b""
                else:
                    self.output += len(piece or b"")
            if self.output > MOST_OUTPUT or len(self.waiting) > MOST_SAID:
                return None, "output"
        line, _, self.waiting = self.waiting.partition(b"\n")
        return line, ""

    def threads(self) -> int:
        """Return how many threads it has."""
        try:
            return os.stat(f"/proc/{self.pid}/task").st_nlink - 2
        except OSError:
            return 0

    def unlinked(self) -> int:
        """Return the bytes of files that it holds open and has removed from its folder."""
        total = 0
        with contextlib.suppress(OSError):
            for number in os.listdir(f"/proc/{self.pid}/fd"):
                with contextlib.suppress(OSError):
                    held = os.stat(f"/proc/{self.pid}/fd/{number}")
                    if stat.S_ISREG(held.st_mode) and not held.st_nlink:
                        total += held.st_blocks * 512
        return total

    def end(self) -> None:
        """Kill it, and all that it may have started."""
        with contextlib.suppress(OSError):
            os.kill(self.pid, signal.SIGKILL)
            os.killpg(self.pid, signal.SIGKILL)
        _, status, used = os.wait4(self.pid, 0)  # if it had ended before, then as it had
        self.ended = os.waitstatus_to_exitcode(status)
        self.seconds = used.ru_utime + used.ru_stime
        _end_orphans()


def _prctl(what: int, value: int) -> None:
    if LINUX:
        ctypes.CDLL(None).prctl(*(ctypes.c_ulong(number) for number in (what, value, 0, 0, 0)))


def _piece(stream: int) -> bytes | None:
    try:
        return os.read(stream, 1 << 16)
    except BlockingIOError:
        return None


def _end_orphans() -> None:
    """Kill what the child left behind: orphans become this process's children (PR_SET_SUBREAPER).
    Under the strict filters it cannot have started anything."""
    for _ in range(1000):
        try:
            if os.waitpid(-1, os.WNOHANG)[0]:
                continue
            with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
                left = file.read().split()
        except (ChildProcessError, OSError):
            return
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.002)


def _loaded(name: str, path: str) -> ModuleType:
    """Return a file of this folder as a module: the package itself is not imported here."""
    spec = importlib.util.spec_from_file_location(f"ssppo_{name}", path)
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- one response --------------------------------------------------------------------------------


def main(child: str, shapes: str) -> None:
    """Fork a supervisor each time that the run asks, one after the other, until the run ends."""
    loaded = _loaded("child", child), _loaded("shapes", shapes)
    own = os.getpid()
    _prctl(_DUMPABLE, 0)  # nobody of this user may look into this process or trace it
    asked = select.poll()
    asked.register(0, select.POLLIN)
    while asked.poll()[0][1] & select.POLLIN:
        pid = os.fork()
        if pid == 0:
            try:
                _supervisor(own, *loaded)
            finally:
                os._exit(70)
        end = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if end < 0:
            os.kill(own, -end)
        if end:
            os._exit(end)


def _supervisor(starter: int, *files: ModuleType) -> None:
    """Run one response's code and its tests, and report."""
    _prctl(_DUMPABLE, 1)  # else it may not name the user of its namespace
    settings = json.loads(read_message(0))
    signal.alarm(int(STARTING + settings["seconds"] + CLEARING) + 10)  # whatever else may happen
    _prctl(_SUBREAPER, 1)
    report = {"namespaces": [], "mounted": False, "released": False, "replies": [], "limit": ""}
    report |= {"ended": None}
    folder = settings["folder"]
    try:
        os.mkdir(folder, 0o700)
        _supervised(settings, folder, report, starter, *files)
    except Exception as error:
        if report["released"]:  # by what the code did
            report["limit"] = "crash"
        else:
            report["broken"] = f"the sandbox could not be set up: {type(error).__name__}: {error}"
    if report["mounted"]:
        ctypes.CDLL(None).umount2(folder.encode(), _DETACH)
    report["left"] = clear(folder)
    with contextlib.suppress(OSError):  # the run has gone
        write_message(1, json.dumps(report).encode())
    os._exit(0)


def _supervised(
    settings: dict, folder: str, report: dict, starter: int, *files: ModuleType
) -> None:
    """Run the child to its end, and enter into the report what becomes of it."""
    report["namespaces"] = names = separate() if settings["namespaces"] else []
    report["mounted"] = mounted = "mount" in names and mount(folder, settings["disk_mb"])
    child = Child(settings, folder, *files)

    def watch() -> str:
        if os.getppid() != starter or select.select([0], [], [], 0)[0]:
            return "orphaned"  # nothing more is sent while the code runs: readable means closed
        if child.threads() > MOST_THREADS:
            return "memory"
        full = overfull(folder, settings["disk_mb"], mounted)
        loose = not mounted and child.unlinked() > settings["disk_mb"] << 20
        return "disk" if full or loose else ""

    try:
        first, _ = child.line(time.monotonic() + STARTING, lambda: "")
        kind, _, detail = (first or b"broken ").decode().partition(" ")
        if kind != "ready":  # refused or broken
            why = bytes.fromhex(detail).decode()
            report[kind] = why or "the process for the code ended or hung at its start"
            return
        steps = json.loads(read_message(0))
        report["released"] = True
        limit = _steps(child, steps, settings["seconds"], report["replies"], watch)
    finally:
        child.end()
    unfinished = len(report["replies"]) < len(steps) or any(report["replies"])
    if unfinished and limit in ("", "time") and overfull(folder, settings["disk_mb"], mounted):
        limit = "disk"
    if not limit and child.ended in (-signal.SIGXCPU, -signal.SIGKILL):
        limit = "time" if child.seconds >= settings["seconds"] else ""
    report |= {"limit": limit, "ended": child.ended}


def _steps(child: Child, steps: list[dict], seconds: float, replies: list[str], watch) -> str:
    """Send the code and then the tests, one after the other; return the limit that ended it.

    Constants that tests compare with stay here (`shapes.hold`)."""
    end = time.monotonic() + seconds
    for step in steps:
        word, held = os.urandom(16).hex(), []
        if step.get("held_back"):
            text, held = child.shapes.hold(step["test"])
            step = step | {"test": text}
        if not child.send(step | {"word": word}, end):
            return "time" if time.monotonic() >= end else ""
        while True:
            line, limit = child.line(end, watch)
            if line is None:
                return limit
            said, *parts = line.split(b" ")
            if said == word.encode():  # other lines are the code's own
                break
            child.output += len(line)
        try:
            reason, values = (bytes.fromhex(part.decode()).decode() for part in parts)
            reason = reason or child.shapes.judged(json.loads(values), held)
        except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError):
            return "crash"  # not as the process for the code writes it
        replies.append(reason)
        if reason and "code" in step:
            return ""
    return ""


if __name__ == "__main__":
    main(*sys.argv[1:])
