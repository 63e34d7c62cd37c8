"""Processes and devices of this machine."""

from __future__ import annotations

import ctypes
import os
import platform
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next batch.

    Otherwise the pages of every large CPU tensor are mapped and cleared again: a third of the time of a training step of
    tf_efficientnet_lite0 (benchmarks/allocator.py), and half of its inference time (benchmarks/predict.py). The whole process then
    keeps its peak of memory. Does nothing with another C library.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        # M_MMAP_MAX: allocate large blocks on the heap.
        mallopt(-4, 0)
        # M_TRIM_THRESHOLD: never shrink the heap.
        mallopt(-1, 2**31 - 1)


def device_name(accelerator: str) -> str:
    """Return the device of a Trainer, such as "NVIDIA A100".

    Args:
        accelerator: `accelerator` of the Trainer, such as auto, gpu or cpu.
    """
    import torch

    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return f"{platform.processor() or platform.machine()} (mps)"
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.processor() or platform.machine()}, {psutil.cpu_count()} cores"


def owner_tags() -> dict[str, str]:
    """Return the tags that identify this process as owner of a run."""
    return {
        "host": socket.gethostname(),
        "pid": str(os.getpid()),
        "process_start": f"{psutil.Process().create_time():.2f}",
        "boot_id": _boot_id(),
        "pid_namespace": _pid_namespace(),
    }


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"{psutil.boot_time():.0f}"


def _pid_namespace() -> str:
    """Return the PID namespace of this process, "" where there are none."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def owner_alive(tags: Mapping[str, str]) -> bool | None:
    """Return whether the process that owns a run is alive.

    None if the process ran on another host, before this host was rebooted, or in another container (PID namespace). Owners of older
    versions have no PID namespace and count as in the same one.
    """
    here = {"host": socket.gethostname(), "boot_id": _boot_id()}
    # Containers with the name of their host cannot see each other's processes.
    if "pid_namespace" in tags:
        here["pid_namespace"] = _pid_namespace()
    if any(tags.get(name) != value for name, value in here.items()):
        return None
    try:
        process = find_process(int(tags["pid"]))
    except (KeyError, ValueError):
        return False
    return process is not None and f"{process.create_time():.2f}" == tags.get("process_start")


def find_process(pid: int) -> psutil.Process | None:
    """Return a live process of this machine, or None.

    Zombies count as exited: in a container without an init process they stay in the process table.
    """
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process
    except psutil.Error:
        return None


def most_processes() -> int:
    """Return the largest useful number of processes."""
    # Some more processes than CPU cores help with slow disks.
    return max(16, 4 * (os.cpu_count() or 1))
