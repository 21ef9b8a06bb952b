"""What a job of a sweep does. A job imports this alone, not JAX: its command does that."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission


class Task:
    """A run's command in one process of a job. A preempted job saves and is submitted again."""

    def __init__(self, command: list[str], output: Path):
        self.command, self.output = command, output

    def __call__(self) -> int:
        """Run the command and return its exit code; SIGTERM is passed on to it."""
        import submitit

        rank = submitit.JobEnvironment().global_rank
        output = self.output.with_stem(f"{self.output.stem}_{rank}") if rank else self.output
        # SLURM sends the signal of a preemption to every process of a job. Only this one is to act
        # on it. A process that is started while a signal is ignored ignores it too.
        own = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        with open(output, "ab") as log:
            self.child = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        signal.signal(signal.SIGUSR2, own)
        signal.signal(signal.SIGTERM, lambda *_: self._stop())
        while (code := self.child.poll()) is None:
            time.sleep(0.1)
        return code

    def checkpoint(self) -> DelayedSubmission:
        """Let the run save; return what is to be submitted again. submitit calls it."""
        from submitit.helpers import DelayedSubmission

        self._stop()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.child.pid, 0)  # `Popen.wait` may hold its lock: this is its own thread
        return DelayedSubmission(Task(self.command, self.output))

    def _stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.child.pid, signal.SIGTERM)
