"""Compare training epochs of fit with a bare PyTorch loop, in turns.

    python benchmarks/epoch.py --dataset ham10000 --root FOLDER
    python benchmarks/epoch.py --task segmentation --dataset isic2018_task1 --root FOLDER --batch 16

The bare loop trains the same network (train mode, channels_last, AdamW, cross-entropy; for masks BCE and SMP's Dice) on the same
images in batches of the same sizes, with the same conversion and normalisation. Its images are one uint8 tensor in memory. The loop
does not augment, validate or save. One Trainer alternates epochs without and with augmentation. The bare loop runs one epoch before
each of them, and each ratio compares such a pair.

The time of an epoch of fit is the time from its start to the start of the next epoch without validation: batches, hooks, the row of
the epoch and both checkpoints. The share of the work after the last batch is printed, because it does not grow with the images.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from pathlib import Path

import pytorch_lightning as pl
import torch
from batches import limit
from segmentation_models_pytorch.losses import DiceLoss
from side_by_side import machine, ratios, spread
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from skincancer.config.resolve import resolve
from skincancer.data.datamodule import LesionDataModule
from skincancer.data.prepare import PreparedData, prepare_data
from skincancer.imaging.augmentation import Augment
from skincancer.models.factory import build_task
from skincancer.models.lightning import quiet_lightning
from skincancer.runs.store import RunStore
from skincancer.schema.data import AugmentConfig
from skincancer.schema.experiment import Experiment
from skincancer.system.console import make_console
from skincancer.system.hardware import keep_freed_memory
from skincancer.training.callbacks import EpochRecord
from skincancer.training.recorder import FitRecorder
from skincancer.training.trainer import build_trainer

NETWORKS: dict[str, dict[str, str]] = {
    "classification": {"model.backbone": "tf_efficientnet_lite0"},
    "segmentation": {"model.architecture": "unet", "model.backbone": "tu-tf_efficientnet_lite0"},
}
DICE = DiceLoss("binary")
POLICIES = ("none", "light")


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
        """Move the network to the device that fit trains on."""
        self.device = device
        self.network.to(device).train()
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=self.settings.lr, weight_decay=self.settings.weight_decay
        )

    def epoch(self) -> float:
        """Train for one epoch and return images per second."""
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
    """Return the sum of binary cross-entropy and Dice loss."""
    mask = mask.float()
    return binary_cross_entropy_with_logits(logits, mask) + DICE(logits, mask)


def synchronise(device: torch.device) -> None:
    """Wait until the queue of the device is empty."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class InTurns(pl.Callback):
    """Run a bare epoch before each epoch of fit, and measure both.

    The callback also changes the augmentation policy. It must be the first of all callbacks.
    """

    def __init__(self, bare: BareLoop, datamodule: LesionDataModule) -> None:
        self.bare, self.datamodule = bare, datamodule
        # Images per second of the bare loop and of fit, and the share of an epoch of fit after its last batch.
        self.rates: list[tuple[float, float]] = []
        self.after_batches: list[float] = []
        self.validation = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Finish the previous epoch, run a bare epoch, and start the clock of the next epoch."""
        if trainer.current_epoch:
            self._finish()
        else:
            self.bare.to(trainer.strategy.root_device)
        policy = POLICIES[trainer.current_epoch % len(POLICIES)]
        self.datamodule.augment = Augment(AugmentConfig(policy=policy))
        self.bare_rate = self.bare.epoch()
        self.start = time.perf_counter()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record when the batches ended."""
        synchronise(self.bare.device)
        self.batches_end = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the time of validation with its metrics, before the best checkpoint is saved."""
        self.validation = time.perf_counter() - self.batches_end

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Finish the last epoch."""
        self._finish()

    def _finish(self) -> None:
        synchronise(self.bare.device)
        seconds = time.perf_counter() - self.start - self.validation
        self.rates.append((self.bare_rate, len(self.bare.images) / seconds))
        self.after_batches.append(1 - (self.batches_end - self.start) / seconds)


def measure(experiment: Experiment, data: PreparedData, with_mlflow: bool, folder: Path) -> InTurns:
    """Train with the classes of fit, and with a bare epoch before each epoch."""
    console = make_console()
    console.quiet = True
    recorder = FitRecorder(experiment, data, RunStore(f"sqlite:///{folder}/mlruns/mlflow.db"), console)
    task, loaded = build_task(experiment, data, from_checkpoint=False)
    twin, _ = build_task(experiment, data, from_checkpoint=False)
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(recorder.start(loaded.source)) if with_mlflow else None
        datamodule = LesionDataModule(
            data, batch_size=experiment.data.batch_size, balance="none", balance_fixed=False, augment=experiment.augment,
            seed=experiment.seed, workers=experiment.data.workers,
        )  # fmt: skip
        trainer = build_trainer(
            experiment, recorder.folder if run else folder, [EpochRecord(run, experiment.training.monitor)], False
        )
        turns = InTurns(BareLoop(twin, data, experiment), datamodule)
        vars(trainer)["callbacks"].insert(0, turns)
        trainer.fit(task, datamodule)
    return turns


def main() -> None:
    """Measure and print one line per policy."""
    parser = argparse.ArgumentParser(description="Epochs of fit and of a bare PyTorch loop.", allow_abbrev=False)
    parser.add_argument("--task", default="classification", choices=[*NETWORKS])
    parser.add_argument("--dataset", default="demo", help="name in the catalog")
    parser.add_argument("--root", help="folder of the data set; not needed for the demo")
    parser.add_argument("--images", type=int, default=1000, help="maximum number of training images; 0 for all")
    parser.add_argument("--size", type=int, default=128, help="image size in pixels")
    parser.add_argument("--batch", type=int, default=64, help="images per batch")
    parser.add_argument("--workers", type=int, default=0, help="loader processes of fit")
    parser.add_argument("--backbone", help="backbone of the task, with random weights (default: tf_efficientnet_lite0)")
    parser.add_argument("--accelerator", default="auto", help="auto, cpu or gpu")
    parser.add_argument("--precision", default="32", choices=["32", "bf16-mixed"])
    parser.add_argument("--rounds", type=int, default=3, help="measured epochs of each kind, after a warm-up epoch")
    parser.add_argument("--mlflow", action="store_true", help="record a real run in a temporary store")
    given = parser.parse_args()

    quiet_lightning()
    # fit changes the allocator of the process, which also makes the bare loop faster.
    keep_freed_memory()
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
        # Without the warm-up epoch of each policy.
        kept = slice(number + len(POLICIES), None, len(POLICIES))
        bare, fit = zip(*turns.rates[kept], strict=True)
        after = [100 * share for share in turns.after_batches[kept]]
        print(
            f"fit, policy {policy:<6} {spread(fit)} images/s, bare loop {spread(bare)} images/s, "
            f"ratio {spread(ratios(fit, bare), 3)}; after the last batch {spread(after)} % of fit's epoch"
        )


if __name__ == "__main__":
    main()
