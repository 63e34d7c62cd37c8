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
    """Have glibc keep freed memory for the next batch instead of handing it back to the system.

    On a CPU the pages of every large tensor are otherwise mapped and cleared anew: a third of the time of a training step of
    tf_efficientnet_lite0 (benchmarks/allocator.py), and half of the time of its answers (benchmarks/predict.py). It holds for the whole
    process, which from then on keeps its peak of memory. Does nothing where the C library is another.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: large blocks from the heap
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: never shrink it


def device_name(accelerator: str) -> str:
    """Return what a Trainer with this `accelerator` computes on, such as "NVIDIA A100" or "Intel Xeon …, 8 cores"."""
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
    """Return the tags that say which process owns a run: host, pid, process start, boot id."""
    return {
        "host": socket.gethostname(),
        "pid": str(os.getpid()),
        "process_start": f"{psutil.Process().create_time():.2f}",
        "boot_id": _boot_id(),
    }


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"{psutil.boot_time():.0f}"


def owner_alive(tags: Mapping[str, str]) -> bool | None:
    """Say whether the process that owns a run lives; None where this machine cannot know (other host, or since rebooted)."""
    if tags.get("host") != socket.gethostname() or tags.get("boot_id") != _boot_id():
        return None
    try:
        process = find_process(int(tags["pid"]))
    except (KeyError, ValueError):
        return False
    return process is not None and f"{process.create_time():.2f}" == tags.get("process_start")


def find_process(pid: int) -> psutil.Process | None:
    """Return a process of this machine that lives; None where it is gone, or dead and not waited for, as in a container without an init."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process
    except psutil.Error:
        return None
