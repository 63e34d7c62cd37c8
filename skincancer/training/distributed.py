"""The ranks of one run: those of this machine are started where nobody else does, and all end together.

Rank 0 writes the run. Every other rank holds a line (a TCP connection) to rank 0, on which it says how it ends; a line that closes
without a word is a rank that died. A thread on each rank listens, because the main thread may wait in a collective call of a rank
that is gone, where neither an error nor a signal would ever reach it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, NoReturn

import pytorch_lightning as pl
from mlflow.tracking import MlflowClient
from pytorch_lightning.callbacks import Callback

from skincancer.errors import RunError, SkinCancerError
from skincancer.runs.lifecycle import RunWriter, close_lost
from skincancer.schema import TrainerConfig
from skincancer.system.credentials import format_error
from skincancer.system.interrupts import Interrupted, ignore_signals
from skincancer.system.launcher import PARENT, is_rank_zero, launcher
from skincancer.training.launch import count_ranks

# how long the main thread may take to leave when the end is known, before the watching thread ends the process; rank 0 writes the end
GRACE_SECONDS = {"rank 0": 10.0, "others": 2.0}
_JOIN_SECONDS = 60.0  # for the lines; the process group has already formed
_NEWS_SECONDS = (
    2.0  # a rank that dies closes its collectives and its line at once; the error may be seen before the line
)
_WRITE_SECONDS = 10.0  # for a run's end, where the store may be out of reach too
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}  # a machine without power closes no line: 30 s


@dataclass(frozen=True)
class Ending:
    """How a rank ended: `done`, `interrupted` by a signal, or `failed`; `rank` is the rank it started with."""

    kind: str
    rank: int
    reason: str = ""
    signum: int = 0

    @property
    def status(self) -> str:
        """What the run became."""
        return "KILLED" if self.kind == "interrupted" else "FAILED"

    @property
    def exit_code(self) -> int:
        """What a shell expects."""
        return 128 + self.signum if self.kind == "interrupted" else 1


def _interrupted(rank: int, signum: int) -> Ending:
    return Ending("interrupted", rank, f"interrupted by {signal.Signals(signum).name}", signum)


class _Line:
    """A connection to another rank: messages are lines of JSON."""

    def __init__(self, connection: socket.socket, who: str = "", run_id: str = "") -> None:
        self.connection, self.text = connection, b""
        self.who, self.rank, self.done, self.run_id = who, 0, False, run_id
        connection.settimeout(5)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def fileno(self) -> int:
        """For select."""
        return self.connection.fileno()

    def send(self, message: Mapping[str, object]) -> None:
        """Send, if there still is somebody."""
        with contextlib.suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def read(self) -> dict[str, Any] | None:
        """Return the message that has arrived, {} for less than one, None for the end of the line."""
        try:
            data = self.connection.recv(65536)
        except OSError:
            return None
        self.text += data
        message, end, rest = self.text.partition(b"\n")
        if end:
            self.text = rest
            return dict(json.loads(message))
        return {} if data else None


class Ranks(Callback):
    """A context and a callback: starts the other ranks of this machine where nobody else does, and ends all when one ends.

    Inside the block rank 0 learns of a rank that died, failed or was interrupted, and the others of rank 0, wherever they run. The
    block then ends with what happened: on rank 0 a `RunError` that names the rank, or `Interrupted`. With one rank it does nothing.

    Args:
        trainer: of the experiment, checked by `check_launcher`.
        run: the run on rank 0, else None; its end is written from here if the main thread cannot.
        client: of the run's store; where rank 0 is gone, the others write the run's end.
    """

    def __init__(self, trainer: TrainerConfig, run: RunWriter | None, client: MlflowClient) -> None:
        self.count, self.nodes, self.run, self.client = count_ranks(trainer), trainer.num_nodes, run, client
        started = "LOCAL_RANK" in os.environ or launcher()
        self.local_processes = 1 if started else self.count // self.nodes
        self.rank = 0 if is_rank_zero() else -1  # until the process group tells
        self.ending: Ending | None = None
        self.children: dict[int, subprocess.Popen[bytes]] = {}
        self._lines: list[_Line] = []
        self._known = threading.Event()  # how the run ends
        self._left = threading.Event()  # the main thread is past the block, and ends by itself
        self._variables: dict[str, str | None] = {}
        self._orphaned = ""  # the id of the run that rank 0 cannot end any more

    # ------------------------------------------------------------------------------------------------------------- starting

    def __enter__(self) -> Ranks:
        """Start the other ranks of this machine, and listen."""
        if self.count == 1:
            return self
        self._signals, self._wakeup = socket.socketpair()
        for end in (self._signals, self._wakeup):
            end.setblocking(False)
        self._before = signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        if self.local_processes > 1:
            self._start_children()
        self._thread = threading.Thread(target=self._watch, name="ranks", daemon=True)
        self._thread.start()
        return self

    def _start_children(self) -> None:
        """Start this command line once for every other device; LOCAL_RANK tells Lightning that somebody did."""
        node = int(os.environ.get("NODE_RANK", 0))
        told = {
            "MASTER_ADDR": os.environ.get("MASTER_ADDR", "127.0.0.1"),
            "MASTER_PORT": os.environ.get("MASTER_PORT", str(_free_port())),
            "NODE_RANK": str(node), "WORLD_SIZE": str(self.count), "LOCAL_RANK": "0", PARENT: str(os.getpid()),
        }  # fmt: skip
        self._variables = {name: os.environ.get(name) for name in told}
        os.environ.update(told)
        command = [sys.executable, "-m", "skincancer.fit", *sys.argv[1:]]
        for local_rank in range(1, self.local_processes):
            rank = node * self.local_processes + local_rank
            self.children[rank] = subprocess.Popen(command, env={**os.environ, "LOCAL_RANK": str(local_rank)})

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Open the lines, once the process group has formed."""
        if self.count == 1 or self._lines:
            return
        self.rank = trainer.global_rank
        if self.rank == 0:
            self._answer(trainer)
        else:
            port, token, who, run_id = trainer.strategy.broadcast(("", "", "", ""))  # what rank 0 says
            address = os.environ["MASTER_ADDR"] if self.nodes > 1 else "127.0.0.1"
            line = _Line(socket.create_connection((address, port), timeout=_JOIN_SECONDS), who, run_id)
            line.send({"token": token, "rank": self.rank, "who": _who(self.rank)})
            self._lines.append(line)

    def _answer(self, trainer: pl.Trainer) -> None:
        both = socket.has_dualstack_ipv6() and self.nodes > 1
        server = socket.create_server(
            ("" if self.nodes > 1 else "127.0.0.1", 0), backlog=self.count, dualstack_ipv6=both,
            family=socket.AF_INET6 if both else socket.AF_INET,
        )  # fmt: skip
        token = secrets.token_hex(16)
        assert self.run is not None
        trainer.strategy.broadcast((server.getsockname()[1], token, _who(0), self.run.run_id))
        server.settimeout(_JOIN_SECONDS)
        with server:
            while len(self._lines) < self.count - 1:
                line = _Line(server.accept()[0])
                hello = line.read() or {}
                if secrets.compare_digest(str(hello.get("token")), token):
                    line.rank, line.who = hello["rank"], hello["who"]
                    self._lines.append(line)

    # ------------------------------------------------------------------------------------------------------------- watching

    def _watch(self) -> None:
        deadline = float("inf")
        while not self._left.is_set():
            gone = {rank: process.poll() for rank, process in self.children.items()}  # before what they said is read
            lines = [line for line in self._lines if not line.done]
            listened: list[Any] = [*lines, self._signals]  # a death before the signal that follows it
            for ready in select.select(listened, [], [], 0.25)[0]:
                self._hear(ready)
            self._look(gone)
            if self.ending and deadline == float("inf"):
                deadline = time.monotonic() + GRACE_SECONDS["rank 0" if self.rank == 0 else "others"]
            if time.monotonic() > deadline and not self._left.is_set():
                self._end_process()

    def _hear(self, ready: socket.socket | _Line) -> None:
        if not isinstance(ready, _Line):
            for number in ready.recv(16):
                if number in (signal.SIGINT, signal.SIGTERM):
                    self._end_with(_interrupted(self.rank, number))
            return
        message = ready.read()
        if message is None:
            ready.done = True
            self._lose(ready.rank, ready.who)
        elif message.get("kind") == "done":
            ready.done = True
        elif message:
            self._end_with(Ending(**message))

    def _look(self, gone: Mapping[int, int | None]) -> None:
        """Look at the processes that were started here, or at the one that started this one."""
        done = {line.rank for line in self._lines if line.done}
        for rank, code in gone.items():
            if rank in done:
                continue
            if code in (130, 143):
                self._end_with(_interrupted(rank, code - 128))
            elif code:
                self._end_with(Ending("failed", rank, self._obituary(rank, _who(rank, self.children[rank].pid))))
        if PARENT in os.environ and not self.children and os.getppid() != int(os.environ[PARENT]):
            self._lose(0, f"rank 0 (process {os.environ[PARENT]})")

    def _lose(self, rank: int, who: str) -> None:
        """Take a rank for gone; rank 0 ends the run by itself where it has said how it ends, before its line closed."""
        if rank == 0 and self.ending is None and self._lines:
            self._orphaned = self._lines[0].run_id
        self._end_with(Ending("failed", rank, self._obituary(rank, who)))

    def _obituary(self, rank: int, who: str) -> str:
        code = None
        if rank in self.children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self.children[rank].wait(_NEWS_SECONDS)
        if code is None:
            return f"{who} is gone without a word: killed, out of memory, or its machine is lost"
        if code < 0:
            return f"{who} was ended by {signal.Signals(-code).name}"
        return f"{who} ended with exit code {code}; what it said stands above"

    def _end_with(self, ending: Ending) -> None:
        """Keep the first word on how the run ends; what follows are its consequences. Others learn of this process's own end."""
        if self.ending is None:
            self.ending = ending
            if ending.rank == self.rank or self.rank == 0:
                self._tell(ending)
            self._known.set()

    def _tell(self, ending: Ending) -> None:
        for line in self._lines:
            line.send(asdict(ending))

    def _end_orphaned(self) -> None:
        """Write down the end of a run whose rank 0 died; each rank that learns of it tries, and the first one's word stands."""
        if self._orphaned and self.ending:
            _within(_WRITE_SECONDS, close_lost, self.client, self._orphaned, self.ending.reason)

    def _end_process(self) -> NoReturn:
        """End this process from the watching thread: the main thread waits for somebody who is gone."""
        assert self.ending is not None
        reason = self.ending.reason
        if self.ending.signum and not self._lines:  # torchrun and SLURM send it also where another rank failed
            reason += " before all ranks had come; what they say tells whether one failed"
        if self.run is not None:
            _within(_WRITE_SECONDS, self.run.close, self.ending.status, reason)
        self._end_orphaned()
        self._end_children()
        if self.rank <= 0 or self.ending.rank == self.rank:
            print(f"{'' if self.ending.signum else 'error: '}{reason}", file=sys.stderr, flush=True)
        os._exit(self.ending.exit_code)

    # --------------------------------------------------------------------------------------------------------------- ending

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Say how this rank ends, end those that were started here, and raise what ended the run."""
        if self.count == 1:
            return
        if error is None:
            self._tell(Ending("done", self.rank))
        else:
            ignore_signals()  # the thread still hears them
            if not isinstance(error, SkinCancerError):
                self._known.wait(_NEWS_SECONDS)  # a signal, or a collective call that broke, may follow a rank's death
            if not isinstance(error, Interrupted):
                self._end_with(Ending("failed", self.rank, f"{_who(self.rank)} failed: {format_error(error)}"[:4000]))
        self._left.set()
        self._thread.join()
        self._end_orphaned()
        signal.set_wakeup_fd(self._before)
        self._end_children(GRACE_SECONDS["rank 0"] if error is None else 0.0)
        for connection in (self._signals, self._wakeup, *(line.connection for line in self._lines)):
            connection.close()
        for name, value in self._variables.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        if error is None or self.ending is None or self.ending.rank == self.rank:
            return
        if self.rank == 0:
            if self.ending.kind == "interrupted":
                raise Interrupted(self.ending.signum) from error
            raise RunError(self.ending.reason) from error
        print(f"rank {self.rank} ends: {self.ending.reason}", file=sys.stderr)
        raise SystemExit(self.ending.exit_code) from error

    def _end_children(self, patience: float = 0.0) -> None:
        """End the ranks that were started here; those that have been told leave by themselves within seconds."""
        _wait(self.children.values(), patience)
        for process in self.children.values():
            process.terminate()
        _wait(self.children.values(), GRACE_SECONDS["others"])
        for process in self.children.values():
            process.kill()


def _wait(processes: Iterable[subprocess.Popen[bytes]], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))


def _within(seconds: float, write: Callable[..., None], *arguments: Any) -> None:
    """Call in a thread of its own, and wait no longer than so many seconds."""
    writer = threading.Thread(target=write, args=arguments, daemon=True)
    writer.start()
    writer.join(seconds)


def _who(rank: int, pid: int | None = None) -> str:
    return f"rank {rank} (process {pid or os.getpid()} on {socket.gethostname()})"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
