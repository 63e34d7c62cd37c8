"""Train with a plain PyTorch script, the reference for the results of fit.

    python benchmarks/bare_loop.py --dataset ham10000 --root FOLDER --split 80:20 --size 128 --batch 64 --epochs 8 --class-weights
    python benchmarks/bare_loop.py --dataset malignant_vs_benign --root FOLDER --split official --size 224 --batch 32 --epochs 6 --jitter
    python benchmarks/bare_loop.py --task segmentation --dataset isic2018_task1 --root FOLDER --size 128 --batch 16 --epochs 8

The script shares only the images and their subsets with fit. The network is tf_efficientnet_lite0 (for masks the encoder of SMP's
U-Net, with BCE + Dice and a threshold of 0.5) with the ImageNet weights of the offline package. Training uses flips, AdamW 1e-3 and
one cycle on the training set, ignores the validation set, and tests the weights of the last epoch. With --out the predictions are
saved in a folder that paired.py accepts as a run.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import pandas as pd
import timm
import torch
from segmentation_models_pytorch.losses import DiceLoss
from side_by_side import machine
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from skincancer.data.index import image_root
from skincancer.data.prepare import PreparedData, prepare_data
from skincancer.imaging.preprocessing import Preprocessing
from skincancer.metrics.mask_scorer import MaskRecipe, MaskScorer
from skincancer.metrics.prediction_files import predictions_table, write_predictions
from skincancer.models.segmenters import TIMM_PREFIX, build_segmenter
from skincancer.models.weights import load_backbone, load_encoder
from skincancer.schema.data import DataConfig

BACKBONE = "tf_efficientnet_lite0"


DICE = DiceLoss("binary")


class Network(nn.Module):
    """Normalisation and layers, for uint8 or float images in [0, 255]."""

    def __init__(self, task: str, size: int, classes: int, weights: str) -> None:
        super().__init__()
        statistics = timm.get_pretrained_cfg(BACKBONE)
        self.normalise = v2.Normalize([255 * m for m in statistics.mean], [255 * s for s in statistics.std])
        if task == "segmentation":
            self.layers = build_segmenter("unet", TIMM_PREFIX + BACKBONE, size)
            load_encoder(self.layers, TIMM_PREFIX + BACKBONE, size, weights)
        else:
            backbone = load_backbone(BACKBONE, size, weights).backbone
            self.layers = nn.Sequential(backbone, nn.Linear(backbone.num_features, classes))

    def forward(self, image: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to logits (B, C), or (B, 1, H, W) for masks."""
        return self.layers(self.normalise(image.float()))


def flip(image: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Flip each image and its mask at random, horizontally and vertically."""
    for axis in (-1, -2):
        flipped = (torch.rand(len(image)) < 0.5).view(-1, 1, 1, 1)
        image = torch.where(flipped, image.flip(axis), image)
        truth = torch.where(flipped, truth.flip(axis), truth) if truth.ndim == 4 else truth
    return image, truth


def load(data: PreparedData, role: str) -> tuple[Tensor, Tensor]:
    """Return the images of a subset and their labels or masks.

    Images are uint8 (N, 3, H, W), channels_last, labels int64 (N,), masks uint8 (N, 1, H, W).
    """
    rows = data.rows(role)
    images = torch.from_numpy(data.store.images[rows.index.to_numpy()]).permute(0, 3, 1, 2)
    if data.store.masks is not None:
        return images, torch.from_numpy(data.store.masks[rows.index.to_numpy()])[:, None]
    return images, torch.tensor(rows["label"].to_numpy())


def mask_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Return the sum of binary cross-entropy and Dice loss."""
    return binary_cross_entropy_with_logits(logits, mask.float()) + DICE(logits, mask.float())


def class_table(data: PreparedData, logits: Tensor) -> tuple[pd.DataFrame, str]:
    """Return the predictions for the test set, and their metrics as text."""
    rows = data.rows("test")
    truth, probability = rows["label"].to_numpy(), logits.double().softmax(1).numpy()
    guess = probability.argmax(1)
    binary = probability.shape[1] == 2
    auroc = roc_auc_score(truth, probability[:, 1] if binary else probability, multi_class="ovr", average="macro")
    return predictions_table(rows, truth, logits.numpy(), probability, data.classes), (
        f"accuracy {accuracy_score(truth, guess):.4f}, balanced accuracy {balanced_accuracy_score(truth, guess):.4f}, "
        f"macro AUROC {auroc:.4f}"
    )


def mask_table(data: PreparedData, logits: Tensor) -> tuple[pd.DataFrame, str]:
    """Return the scores of the test masks at their original size, and their means as text."""
    rows = data.rows("test")
    recipe = MaskRecipe(Preprocessing(logits.shape[-1], "stretch"), False, False)
    scorer = MaskScorer(data.index, image_root(data.root), recipe, data.store.views)
    squares = logits.sigmoid().numpy()[:, 0]
    scores = pd.DataFrame(scorer.score(row, square, 0.5) for row, square in zip(rows.index, squares, strict=True))
    means = ", ".join(
        f"{name} {scores[name].mean():.4f}" for name in ("dice", "jaccard", "thresholded_jaccard", "hd95")
    )
    return pd.concat([rows[["image_id", "lesion_id"]].reset_index(drop=True), scores], axis=1), means


def main() -> None:
    """Train, test and print the metrics."""
    parser = argparse.ArgumentParser(description="Plain PyTorch training loop.", allow_abbrev=False)
    parser.add_argument("--task", default="classification", choices=["classification", "segmentation"])
    parser.add_argument("--dataset", default="demo", help="name in the catalog")
    parser.add_argument("--root", help="folder of the data set; not needed for the demo")
    parser.add_argument("--split", default="80:20")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--class-weights", action="store_true", help="weight classes by 1/sqrt(frequency)")
    parser.add_argument("--jitter", action="store_true", help="light colour jitter")
    parser.add_argument("--weights", default="imagenet", choices=["imagenet", "none"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for classes.json and predictions/test.csv")
    given = parser.parse_args()

    torch.manual_seed(given.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings = DataConfig(dataset=given.dataset, root=given.root, split=given.split, size=given.size)
    data = prepare_data(settings, task=given.task)
    images, truth = load(data, "train")
    model = Network(given.task, given.size, len(data.classes), given.weights).to(
        device, memory_format=torch.channels_last
    )
    loss_of = mask_loss
    if given.task == "classification":
        counts = torch.bincount(truth, minlength=len(data.classes))
        loss_of = nn.CrossEntropyLoss(weight=(counts**-0.5).to(device) if given.class_weights else None)
    # An epoch drops an incomplete last batch.
    steps = len(images) // given.batch
    optimizer = torch.optim.AdamW(model.parameters(), lr=given.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=given.lr, total_steps=given.epochs * steps)
    jitter = v2.ColorJitter(brightness=0.1, contrast=0.1, saturation=0.1, hue=0.02)
    print(f"{machine(str(device))}\n{' '.join(sys.argv)}: {len(images):,} training images")

    start = time.perf_counter()
    for epoch in range(given.epochs):
        model.train()
        total = 0.0
        for rows in torch.randperm(len(images))[: steps * given.batch].view(steps, given.batch):
            image, target = flip(images[rows], truth[rows])
            if given.jitter:
                # Applied to a whole batch, the jitter would sample the same change for all images.
                image = torch.stack([jitter(one) for one in image])
            image = image.to(device).contiguous(memory_format=torch.channels_last)
            loss = loss_of(model(image), target.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}: loss {total / steps:.4f}, {(time.perf_counter() - start) / 60:.1f} min", flush=True)

    model.eval()
    images, _ = load(data, "test")
    with torch.inference_mode():
        logits = torch.cat([model(part.to(device)).float().cpu() for part in images.split(given.batch)])
    table, means = (mask_table if given.task == "segmentation" else class_table)(data, logits)
    print(f"test, {len(table):,} images: {means}; {(time.perf_counter() - start) / 60:.1f} minutes, test included")
    if given.out:
        write_predictions(table, given.out / "predictions/test.csv")
        (given.out / "classes.json").write_text(json.dumps({"classes": list(data.classes)}), encoding="utf-8")


if __name__ == "__main__":
    main()
