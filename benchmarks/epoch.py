"""Training epochs by fit's own machinery against a bare PyTorch loop over data in memory, in turns.

    python benchmarks/epoch.py --dataset ham10000 --root FOLDER
    python benchmarks/epoch.py --task segmentation --dataset isic2018_task1 --root FOLDER --batch 16

The bare loop trains the same network (also in train mode, channels_last, AdamW, cross-entropy; of masks BCE and SMP's Dice) on
the same images, held in memory as one uint8 tensor, in as many batches of the same sizes, with the same conversion and
normalisation; it never augments, validates or saves. One Trainer alternates epochs without augmentation and epochs with the
policy; before each, the bare loop runs one epoch, and each ratio is of such a pair.

An epoch of fit lasts from its start to the start of the next, less validation: batches, hooks, the epoch's record and both
checkpoints. The share of what follows the last batch is printed, since it does not grow with the number of images.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from batches import limit
from segmentation_models_pytorch.losses import DiceLoss
from side_by_side import machine, ratios, spread
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

from skincancer.config.resolve import resolve
from skincancer.data.datamodule import LesionDataModule
from skincancer.data.prepare import PreparedData, prepare_data
from skincancer.imaging.augmentation import Augment
from skincancer.models.factory import build_task
from skincancer.models.lightning import quiet_lightning
from skincancer.runs.store import connect
from skincancer.schema import AugmentConfig, Experiment
from skincancer.system.console import make_console
from skincancer.system.hardware import keep_freed_memory
from skincancer.training.callbacks import EpochRecord
from skincancer.training.recorder import FitRecorder
from skincancer.training.trainer import build_trainer

NETWORKS: dict[str, dict[str, str]] = {  # of each task
    "classification": {"model.backbone": "tf_efficientnet_lite0"},
    "segmentation": {"model.architecture": "unet", "model.backbone": "tu-tf_efficientnet_lite0"},
}
DICE = DiceLoss("binary")
POLICIES = ("none", "light")  # of the epochs of fit, in turns


class BareLoop:
    """Plain PyTorch: the network, AdamW, and the training images in memory."""

    def __init__(self, network: nn.Module, data: PreparedData, experiment: Experiment) -> None:
        rows = data.rows("train").index.to_numpy()
        self.images = torch.from_numpy(data.store.images[rows])
        self.truth = torch.tensor(data.rows("train")["label"].to_numpy())
        self.loss = cross_entropy
        if data.store.masks is not None:
            self.truth = torch.from_numpy(data.store.masks[rows])[:, None]
            self.loss = bce_and_dice
        self.batches = -(-len(rows) // experiment.data.batch_size)
        self.bf16 = experiment.trainer.precision == "bf16-mixed"
        self.network, self.settings = network, experiment.model.optimizer

    def to(self, device: torch.device) -> None:
        """Move to the device that fit trains on."""
        self.device = device
        self.network.to(device).train()
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=self.settings.lr, weight_decay=self.settings.weight_decay
        )

    def epoch(self) -> float:
        """Train for one epoch and return images a second."""
        synchronise(self.device)
        start = time.perf_counter()
        for rows in torch.randperm(len(self.images)).tensor_split(self.batches):
            image = self.images[rows].permute(0, 3, 1, 2).to(self.device)
            truth = self.truth[rows].to(self.device)
            image = image.float().div_(255)
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
                loss = self.loss(self.network(image).float(), truth)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        synchronise(self.device)
        return len(self.images) / (time.perf_counter() - start)


def bce_and_dice(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the loss of masks as a plain script would take it."""
    mask = mask.float()
    return binary_cross_entropy_with_logits(logits, mask) + DICE(logits, mask)


def synchronise(device: torch.device) -> None:
    """Wait for what the device still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class InTurns(pl.Callback):
    """Runs a bare epoch before each epoch of fit, changes the policy, and times fit's epochs; first of all callbacks."""

    def __init__(self, bare: BareLoop, datamodule: LesionDataModule) -> None:
        self.bare, self.datamodule = bare, datamodule
        self.rates: list[tuple[float, float]] = []  # images a second: bare, fit
        self.after_batches: list[float] = []  # share of fit's epoch
        self.validation = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End the epoch before, do the bare one, and start the clock of the next."""
        if trainer.current_epoch:
            self._finish()
        else:
            self.bare.to(trainer.strategy.root_device)
        policy = POLICIES[trainer.current_epoch % len(POLICIES)]
        self.datamodule.augment = Augment(AugmentConfig(policy=policy))
        self.bare_rate = self.bare.epoch()
        self.start = time.perf_counter()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note when the batches ended."""
        synchronise(self.bare.device)
        self.batches_end = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note how long validation took, its metrics included; the best checkpoint comes later."""
        self.validation = time.perf_counter() - self.batches_end

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End the last epoch."""
        self._finish()

    def _finish(self) -> None:
        synchronise(self.bare.device)
        seconds = time.perf_counter() - self.start - self.validation
        self.rates.append((self.bare_rate, len(self.bare.images) / seconds))
        self.after_batches.append(1 - (self.batches_end - self.start) / seconds)


def measure(experiment: Experiment, data: PreparedData, with_mlflow: bool, folder: Path) -> InTurns:
    """Train by fit's machinery, a bare epoch before each epoch."""
    console = make_console()
    console.quiet = True
    recorder = FitRecorder(experiment, data, console)
    task, loaded = build_task(experiment, data, experiment.model.weights)
    twin, _ = build_task(experiment, data, experiment.model.weights)
    with contextlib.ExitStack() as stack:
        run: Any = None
        if with_mlflow:
            client = connect(f"sqlite:///{folder}/mlruns/mlflow.db")
            run = stack.enter_context(recorder.start(client, loaded.source, None))
        datamodule = LesionDataModule(
            data, batch_size=experiment.data.batch_size, balance="none", balance_fixed=False, augment=experiment.augment,
            seed=experiment.seed, workers=experiment.data.workers,
        )  # fmt: skip
        trainer = build_trainer(experiment, recorder.folder if run else folder, [EpochRecord(run)], progress_bar=False)
        turns = InTurns(BareLoop(twin, data, experiment), datamodule)
        trainer.callbacks.insert(0, turns)  # type: ignore[attr-defined]  # set by its callback connector
        trainer.fit(task, datamodule)
    return turns


def main() -> None:
    """Measure and print a line a policy."""
    parser = argparse.ArgumentParser(description="fit against a bare PyTorch loop.", allow_abbrev=False)
    parser.add_argument("--task", default="classification", choices=[*NETWORKS])
    parser.add_argument("--dataset", default="demo", help="a name from the catalog")
    parser.add_argument("--root", help="its folder; the demo needs none")
    parser.add_argument("--images", type=int, default=1000, help="at most so many training images; 0 for all")
    parser.add_argument("--size", type=int, default=128, help="side in pixels")
    parser.add_argument("--batch", type=int, default=64, help="images a batch")
    parser.add_argument("--workers", type=int, default=0, help="loader processes of fit")
    parser.add_argument("--backbone", help="tf_efficientnet_lite0, or any other that the task takes (random weights)")
    parser.add_argument("--accelerator", default="auto", help="auto, cpu or gpu")
    parser.add_argument("--precision", default="32", choices=["32", "bf16-mixed"])
    parser.add_argument("--rounds", type=int, default=3, help="epochs of each kind, after one that warms up")
    parser.add_argument("--mlflow", action="store_true", help="fit writes a real run, into a temporary store")
    given = parser.parse_args()

    quiet_lightning()
    keep_freed_memory()  # as fit does; one process has one allocator, so that the bare loop gains by it too
    network = NETWORKS[given.task] | ({"model.backbone": given.backbone} if given.backbone else {})
    flags = {
        "task": given.task, "data.dataset": given.dataset, "data.root": given.root, "data.size": given.size, "data.batch_size": given.batch,
        "data.workers": given.workers, "augment.policy": "none", **network, "model.weights": "none",
        "trainer.accelerator": given.accelerator, "trainer.precision": given.precision,
        "trainer.max_epochs": len(POLICIES) * (1 + given.rounds), "trainer.limit_val_batches": 1,
    }  # fmt: skip
    experiment, _ = resolve(None, {name: value for name, value in flags.items() if value is not None})
    data = limit(prepare_data(experiment.data, task=given.task), given.images)
    with tempfile.TemporaryDirectory() as folder:
        turns = measure(experiment, data, given.mlflow, Path(folder))

    device = turns.bare.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    print(
        f"{machine(name)}\n{given.dataset}, {len(turns.bare.images):,} images at {given.size} px, "
        f"{turns.bare.batches} batches of at most {given.batch}, {' over '.join(network.values())}, precision {given.precision}, "
        f"{'with' if given.mlflow else 'without'} MLflow; median (min–max)"
    )
    for number, policy in enumerate(POLICIES):
        kept = slice(number + len(POLICIES), None, len(POLICIES))  # without the epoch that warms up
        bare, fit = zip(*turns.rates[kept], strict=True)
        after = [100 * share for share in turns.after_batches[kept]]
        print(
            f"fit, policy {policy:<6} {spread(fit)} images/s, bare loop {spread(bare)} images/s, "
            f"ratio {spread(ratios(fit, bare), 3)}; after the last batch {spread(after)} % of fit's epoch"
        )


if __name__ == "__main__":
    main()
