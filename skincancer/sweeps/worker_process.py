"""Process of a worker that forks its trials: start, orders and end."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from skincancer.sweeps.trial import GRACE_SECONDS
from skincancer.system.hardware import find_process


def new_log(folder: Path, slot: int) -> Path:
    """Return the log path of a slot, and delete logs of killed workers."""
    host = socket.gethostname()
    for log in folder.glob(f"slot_{glob.escape(host)}_*.log"):
        if find_process(int(log.stem.split("_")[-2])) is None:
            log.unlink(missing_ok=True)
    return folder / f"slot_{host}_{os.getpid()}_{slot}.log"


class Slot:
    """Process of one slot, in a separate session.

    The process reads orders from standard input. Its trials answer through a pipe.

    Args:
        command: Command line, to which `--pipe` and the number of the pipe are added.
        log: File for its output outside trials.
        environment: Environment variables of the process.
    """

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        reading, writing = os.pipe()
        self.pipe: IO[bytes] = open(reading, "rb", buffering=0)
        self.log = log
        try:
            with open(log, "wb") as output:
                self.process = subprocess.Popen(
                    [*command, "--pipe", str(writing)], stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT,
                    env=dict(environment), pass_fds=(writing,), start_new_session=True,
                )  # fmt: skip
        except BaseException:
            self.pipe.close()
            raise
        finally:
            os.close(writing)

    def send(self, message: Any) -> None:
        """Send a line, unless the process has ended."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.write((json.dumps(message) + "\n").encode())
            self.process.stdin.flush()

    def end(self) -> None:
        """End the process and its children, gently if it still runs."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            # The process ends at the end of its standard input.
            self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            # The group includes the loader processes.
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.pipe.close()


def exit_reason(code: int, log: Path) -> str:
    """Return why the process of a trial ended, from its exit code and log."""
    text = log.read_bytes()[-20_000:].decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    last = (errors or lines or ["no output"])[-1]
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if -code == signal.SIGKILL else ""
        return f"killed by {name}{hint}; last output: {last} (complete log: {log})"
    return f"exit code {code}: {last.removeprefix('error: ')} (complete log: {log})"
