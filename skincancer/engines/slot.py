"""Process of an engine that forks orders, and the order that it runs."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from skincancer.engines.orders import CONFIG, GRACE_SECONDS, Checked, Ended, Epoch, Event, Order, Result, RunCreated
from skincancer.system.hardware import find_process
from skincancer.system.launcher import without_launcher

COMMAND = (sys.executable, "-m", "skincancer.order_process")
# Number of bytes at the end of a log that are read for the reason of a failure.
LOG_TAIL = 20_000


class Slot:
    """Process of one slot, in a separate session.

    The process reads orders from standard input. Its orders answer through a pipe.

    Args:
        folder: folder of the log.
        number: number of the slot.
        environment: environment variables to set.
    """

    def __init__(self, folder: Path, number: int, environment: Mapping[str, str]) -> None:
        reading, writing = os.pipe()
        self.pipe: IO[bytes] = open(reading, "rb", buffering=0)
        self.log = _new_log(folder, number)
        # An order is not a rank, even if a launcher started its engine.
        # Without buffering, the last line of a log is the reason of a failure.
        variables = {**without_launcher(os.environ), "PYTHONUNBUFFERED": "1", **environment}
        try:
            with open(self.log, "wb") as output:
                self.process = subprocess.Popen(
                    [*COMMAND, "--pipe", str(writing)], stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT,
                    env=variables, pass_fds=(writing,), start_new_session=True,
                )  # fmt: skip
        except BaseException:
            self.pipe.close()
            raise
        finally:
            os.close(writing)

    def send(self, message: Any) -> None:
        """Send a line, unless the process has ended."""
        assert self.process.stdin is not None
        # ValueError: standard input is closed.
        with contextlib.suppress(OSError, ValueError):
            self.process.stdin.write((json.dumps(message) + "\n").encode())
            self.process.stdin.flush()

    def leave(self) -> None:
        """Close standard input, which ends the process and its order."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()

    def end(self) -> None:
        """End the process and its children, gently if it still runs."""
        self.leave()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            # The group includes the loader processes.
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.pipe.close()
        self.log.unlink(missing_ok=True)


def _new_log(folder: Path, number: int) -> Path:
    """Return the log path of a slot, and delete logs of killed engines."""
    folder.mkdir(parents=True, exist_ok=True)
    host = socket.gethostname()
    for log in folder.glob(f"slot_{glob.escape(host)}_*.log"):
        if find_process(int(log.stem.split("_")[-2])) is None:
            log.unlink(missing_ok=True)
    return folder / f"slot_{host}_{os.getpid()}_{number}.log"


class RunningOrder:
    """Order in a slot, and its messages as events.

    Args:
        order: the order, which starts.
        slot: idle slot.
        folder: folder for the config and the log of the order.
    """

    def __init__(self, order: Order, slot: Slot, folder: Path) -> None:
        self.order, self.slot = order, slot
        self.log = folder / f"{order.name}.log"
        self.log.unlink(missing_ok=True)
        config = folder / f"{order.name}.yaml"
        if order.config:
            config.write_text(order.config, encoding="utf-8")
        self.succeeded = False
        self.code: int | None = None
        self._rest = b""
        self._result: Result | None = None
        slot.send({
            "kind": order.kind, "config": str(config) if order.config else "",
            "argv": [str(config) if word == CONFIG else word for word in order.argv],
            "log": str(self.log), "number": order.number, "parent": order.parent, "params": dict(order.params),
        })  # fmt: skip

    def read(self) -> list[Event]:
        """Read messages, after the pipe became readable or the process ended."""
        chunk = self.slot.pipe.read(65536)
        # At the end of the pipe, no process of this slot is left.
        if not chunk:
            code = self.slot.process.wait()
            return [self.ended(code)]
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return [event for line in lines for event in self._take(json.loads(line))]

    def _take(self, message: Mapping[str, Any]) -> list[Event]:
        number = self.order.number
        if "run" in message:
            return [RunCreated(number, message["run"])]
        if "epoch" in message:
            return [Epoch(number, message["epoch"], message["value"], message["last"])]
        if "facts" in message:
            return [Checked(number, message["facts"])]
        if "objective" in message:
            self._result = Result("complete", float(message["objective"]))
        elif message.get("pruned"):
            self._result = Result("pruned")
        elif "exit" in message:
            return [self.ended(message["exit"])]
        return []

    def ended(self, code: int) -> Ended:
        """Return the end of the order, from its exit code."""
        self.code = code
        # Without a log, the process failed before the order.
        if not self.log.exists():
            with contextlib.suppress(OSError):
                self.slot.log.rename(self.log)
        result = self._result if self.order.kind == "trial" else Result("complete")
        self.succeeded = code == 0 and result is not None
        if code or result is None:
            result = Result("failed", reason=exit_reason(code, self.log))
        return Ended(self.order.number, result, self.log)


def wait_for(running: Mapping[int, RunningOrder], seconds: float) -> list[int]:
    """Return the keys of the orders with messages, after at most this time."""
    if not running:
        time.sleep(seconds)
        return []
    with selectors.DefaultSelector() as selector:
        for key, order in running.items():
            selector.register(order.slot.pipe, selectors.EVENT_READ, key)
        return [int(key.data) for key, _ in selector.select(seconds)]


def exit_reason(code: int, log: Path) -> str:
    """Return why the process of an order ended, from its exit code and log."""
    text = log_tail(log)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    last = (errors or lines or ["no output"])[-1]
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if -code == signal.SIGKILL else ""
        return f"killed by {name}{hint}; last output: {last} (complete log: {log})"
    return f"exit code {code}: {last.removeprefix('error: ')} (complete log: {log})"


def log_tail(log: Path) -> str:
    """Return the end of a log, "" without one."""
    return log.read_bytes()[-LOG_TAIL:].decode(errors="replace") if log.exists() else ""
