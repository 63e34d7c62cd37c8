"""Connection of the driver to a Ray cluster, and errors of Ray as messages."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import RayError

from skincancer.engines.local import usable_cores
from skincancer.errors import RunError

_REACH_SECONDS = 10.0


def connect(address: str) -> None:
    """Connect this process to a cluster, or start one on this machine.

    Args:
        address: HOST:PORT, "auto" for $RAY_ADDRESS, or "local".

    Raises:
        RunError: The cluster cannot be reached, or refuses the token of this machine.
    """
    if ray.is_initialized():
        return
    # Only the main thread has handlers.
    signals = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    handlers = {number: signal.getsignal(number) for number in signals}
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    # With 0, Ray would otherwise leave the GPUs visible to orders without one, and warn about it.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        if address == "local":
            ray.init(address="local", num_cpus=usable_cores(), include_dashboard=False, **options)
        else:
            target = os.environ["RAY_ADDRESS"] if address == "auto" else address
            _reach(target)
            with _without_stderr():
                ray.init(address=target, **options)
    except (OSError, RuntimeError, ValueError, RayError) as error:
        raise RunError(f"--cluster {address}: {_explain(error)}") from error
    finally:
        # Ray replaces the handlers of `signals_as_interrupts`.
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _reach(address: str) -> None:
    """Connect to the port of the head, because Ray would try for minutes.

    Raises:
        OSError: Nothing answers.
    """
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "://" not in address:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_SECONDS).close()


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Drop standard error, to which Ray prints each attempt to connect."""
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


def _explain(error: Exception) -> str:
    """Return why the cluster cannot be used, and the remedy."""
    # The cause contains the answer of the head.
    answer = f"{error} {error.__cause__ or ''}".lower()
    text = " ".join(str(error).split())[:500]
    if "token" in answer or "unauthenticated" in answer:
        return (
            "the head refused this machine, which has no token or another one. Copy ~/.ray/auth_token of the head to this machine, and "
            "set RAY_AUTH_MODE=token."
        )
    if "version mismatch" in answer:
        return f"{text} Install the same versions of Ray and Python on all machines."
    return (
        f"the cluster cannot be used: {text}. Run `ray start --head` on HOST and `ray start --address HOST:PORT` on this machine, and open "
        "the ports between them."
    )


@contextlib.contextmanager
def cluster_errors() -> Iterator[None]:
    """Convert the loss of the cluster to a RunError."""
    try:
        yield
    except RayError as error:
        text = " ".join(str(error).split())[:300]
        raise RunError(
            f"the Ray cluster was lost: {text}. Start it again and rerun the same command; finished trials are kept."
        ) from error
