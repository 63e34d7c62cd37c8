"""The process of a worker's slot that forks its trials: how it is started, told what to do, and ended."""

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
    """Return where the process of a slot is to write, and remove what those of workers that were killed on this machine have left."""
    host = socket.gethostname()
    for log in folder.glob(f"slot_{glob.escape(host)}_*.log"):
        if find_process(int(log.stem.split("_")[-2])) is None:
            log.unlink(missing_ok=True)
    return folder / f"slot_{host}_{os.getpid()}_{slot}.log"


class Slot:
    """Such a process, in a session of its own: it takes orders on standard input, and its trials answer through a pipe.

    Args:
        command: gets `--pipe` and the pipe's number.
        log: takes what it prints outside its trials.
        environment: of it.
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

    def say(self, words: Any) -> None:
        """Send a line; a process that has ended does not hear it."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.write((json.dumps(words) + "\n").encode())
            self.process.stdin.flush()

    def end(self) -> None:
        """Leave nothing of it behind; one that is still there is asked first."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()  # which it takes for its end
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # and its loaders
        self.process.wait()
        self.pipe.close()


def why_ended(code: int, log: Path) -> str:
    """Say why a trial's process ended, from its exit code and the last it wrote."""
    text = log.read_bytes()[-20_000:].decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("error: ")]
    last = (told or lines or ["it wrote nothing"])[-1]
    if code < 0:
        name = signal.Signals(-code).name
        hint = "; the system kills so where memory runs out" if -code == signal.SIGKILL else ""
        return f"killed by {name}{hint}; last it wrote: {last} (all of it: {log})"
    return f"exit code {code}: {last.removeprefix('error: ')} (all of it: {log})"
