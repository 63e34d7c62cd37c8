"""Measure training steps on the CPU with and without `keep_freed_memory`.

Both alternate, each in a separate process.

python benchmarks/allocator.py [--backbone tf_efficientnet_lite0] [--size 128] [--batch 64] [--steps 8] [--rounds 3]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

STEP = "--one"


def one(backbone: str, size: int, batch: int, steps: int, keep: bool) -> float:
    """Return images per second, from the median step after the first two."""
    import timm
    import torch

    from skincancer.system.hardware import keep_freed_memory

    if keep:
        keep_freed_memory()
    model = timm.create_model(backbone, num_classes=7).train().to(memory_format=torch.channels_last)
    image = torch.rand(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters())
    seconds = []
    for _ in range(steps + 2):
        start = time.perf_counter()
        model(image).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return batch / statistics.median(seconds[2:])


def main() -> None:
    """Print images per second with and without the setting, and the ratio of each round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(STEP, choices=["keep", "return"], help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.one:
        print(one(a.backbone, a.size, a.batch, a.steps, a.one == "keep"))
        return
    ratios = []
    for _ in range(a.rounds):
        rates = {}
        for kind in ("return", "keep"):
            command = [sys.executable, __file__, *sys.argv[1:], STEP, kind]
            rates[kind] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        ratios.append(rates["keep"] / rates["return"])
        print(
            f"returned {rates['return']:.1f} images/s, kept {rates['keep']:.1f} images/s, ratio {ratios[-1]:.2f}",
            flush=True,
        )
    print(
        f"ratio: median {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), {a.backbone} at {a.size} px"
    )


if __name__ == "__main__":
    main()
