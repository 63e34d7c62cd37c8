"""Measure the share of augmentation in a training step, for each policy.

    python benchmarks/augmentation.py --steps 10 --size 128 --batch 64 --backbone tf_efficientnet_lite0

Each round measures one training step (forward, backward, AdamW; random weights, seven classes) and then every policy on the same
batch, so that a busy machine slows all of them alike. Medians over the rounds are printed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from skincancer.imaging.augmentation import Augment
from skincancer.imaging.augmentation_policies import POLICIES
from skincancer.schema.data import AugmentConfig


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the wall time of `work`, with an empty queue of the device before and after."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description="Share of augmentation in a training step.", allow_abbrev=False)
    parser.add_argument("--steps", type=int, default=10, help="measured rounds, after two warm-up rounds")
    parser.add_argument("--size", type=int, default=128, help="image size in pixels")
    parser.add_argument("--batch", type=int, default=64, help="images per batch")
    parser.add_argument("--backbone", default="tf_efficientnet_lite0", help="timm name of the backbone")
    given = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = timm.create_model(given.backbone, num_classes=7).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters())
    image = torch.rand(given.batch, 3, given.size, given.size, device=device)
    mask = (torch.rand(given.batch, 1, given.size, given.size, device=device) > 0.5).float()
    label = torch.randint(7, (given.batch,), device=device)

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(image), label).backward()
        optimizer.step()

    work: dict[str, Callable[[], object]] = {"step": step}
    for policy in POLICIES:
        augment = Augment(AugmentConfig(policy=policy))
        work[policy] = lambda augment=augment: augment(image, None, seed=0)
        work[f"{policy} with mask"] = lambda augment=augment: augment(image, mask, seed=0)
    times: dict[str, list[float]] = {name: [] for name in work}
    for index in range(given.steps + 2):
        for name, one in work.items():
            took = seconds(one, device)
            if index >= 2:
                times[name].append(took)

    where = torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    median = {name: 1000 * statistics.median(values) for name, values in times.items()}
    print(f"{given.backbone}, {given.batch} images of {given.size} px, {where}: a step takes {median['step']:.1f} ms")
    print(f"{'policy':<8}{'ms':>9}{'of a step':>11}{'with mask, ms':>16}{'of a step':>11}")
    for policy in POLICIES:
        plain, masked = median[policy], median[f"{policy} with mask"]
        print(f"{policy:<8}{plain:>9.1f}{plain / median['step']:>11.1%}{masked:>16.1f}{masked / median['step']:>11.1%}")


if __name__ == "__main__":
    main()
