"""Connection of the driver to a Ray cluster, and errors of Ray as messages."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import RayError

from skincancer.engines.local import usable_cores
from skincancer.errors import RunError


def connect(address: str) -> None:
    """Connect this process to a cluster, or start one on this machine.

    Args:
        address: HOST:PORT, "auto" for $RAY_ADDRESS, or "local".

    Raises:
        RunError: The cluster cannot be reached, or refuses the token of this machine.
    """
    if ray.is_initialized():
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    # With 0, Ray would otherwise leave the GPUs visible to orders without one, and warn about it.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        if address == "local":
            ray.init(address="local", num_cpus=usable_cores(), include_dashboard=False, **options)
        else:
            ray.init(address=os.environ["RAY_ADDRESS"] if address == "auto" else address, **options)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        # The cause contains the answer of the head.
        text = " ".join(f"{error} {error.__cause__ or ''}".split())
        raise RunError(f"--cluster {address}: the cluster cannot be used: {text[:300]}. {_remedy(text)}.") from error
    finally:
        # Ray replaces the handlers of `signals_as_interrupts`.
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _remedy(text: str) -> str:
    if "token" in text.lower() or "unauthenticated" in text.lower():
        return (
            "This machine has no token, or another one than the head. Copy ~/.ray/auth_token of the head to this machine, and set "
            "RAY_AUTH_MODE=token"
        )
    if "version mismatch" in text.lower():
        return "Install the same versions of Ray and Python on all machines"
    return "Run `ray start --head` on HOST and `ray start --address HOST:PORT` on this machine, and open its ports"


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
