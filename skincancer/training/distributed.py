"""Record how a run on several devices ended: one status and one reason.

Lightning's launcher starts the other ranks of this machine, torchrun and SLURM start all ranks. Each of them ends all ranks when one
exits with an error. Rank 0 writes the run, but may be killed before it can write the end. Every other rank therefore records its own
error in the run before it exits.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from types import TracebackType

import pytorch_lightning as pl
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from pytorch_lightning.callbacks import Callback

from skincancer.errors import RunError, SkinCancerError
from skincancer.runs.lifecycle import RunWriter, close_lost
from skincancer.system.credentials import format_error
from skincancer.system.interrupts import Interrupted, ignore_signals
from skincancer.system.launcher import PARENT, RUN_ID

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Ranks(Callback):
    """Context of the training by several ranks. With one rank the context does nothing.

    Args:
        trainer: trainer that this callback is added to.
        run: the run. None on ranks above 0.
        client: client of the store of the run.

    Raises:
        RunError: on rank 0, another rank has failed before.
    """

    def __init__(self, trainer: pl.Trainer, run: RunWriter | None, client: MlflowClient) -> None:
        self.trainer, self.run, self.client = trainer, run, client
        self.run_id = run.run_id if run else os.environ.get(RUN_ID, "")
        self._children: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Ranks:
        """Prepare this rank for signals that are sent to all ranks of the machine."""
        if self.trainer.world_size == 1:
            return self
        callbacks: list[Callback] = vars(self.trainer)["callbacks"]
        callbacks.insert(0, self)
        if PARENT in os.environ:
            # Rank 0 records the end of the run. If this rank exited before, Lightning's observer would kill rank 0.
            ignore_signals()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            threading.Thread(target=_exit_with, args=(int(os.environ[PARENT]),), daemon=True).start()
        else:
            os.environ.update({PARENT: str(os.getpid()), RUN_ID: self.run_id})
            # Processes inherit the mask: a signal during their start would otherwise end them before they can ignore it.
            signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        return self

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Share the id of the run, once all ranks have started."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        self.run_id = trainer.strategy.broadcast(self.run_id)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Stop Lightning's observer: from now on the other ranks end with this rank."""
        self._stop_observer()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Record the error of this rank, or raise the error of another rank."""
        if self.trainer.world_size == 1:
            return
        self._stop_observer()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        if error is None:
            return
        if self.run:
            reason = "" if isinstance(error, SkinCancerError) else self._failure()
            for child in self._children:
                child.kill()
            if reason:
                raise RunError(reason) from error
        elif self.run_id and not isinstance(error, Interrupted):
            who = f"rank {self.trainer.global_rank} (process {os.getpid()} on {socket.gethostname()})"
            close_lost(self.client, self.run_id, f"{who} failed: {format_error(error)}"[:4000])

    def _stop_observer(self) -> None:
        # Lightning's observer would kill rank 0 while the end of the run is recorded.
        started = getattr(self.trainer.strategy.launcher, "procs", [])
        self._children += started
        started.clear()

    def _failure(self) -> str:
        """Return the error that another rank has recorded, or its exit code."""
        with contextlib.suppress(MlflowException, OSError):
            if reason := self.client.get_run(self.run_id).data.tags.get("status_reason"):
                return reason
        for rank, child in enumerate(self._children, 1):
            if child.poll():
                return f"rank {rank} (process {child.pid}) exited with code {child.returncode}"
        return ""


def _exit_with(parent: int) -> None:
    """End this process when its parent has exited.

    Without it, a collective operation may wait for the parent for many minutes.
    """
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
