"""The plain PyTorch script that fit is compared with: the same images in the same roles, and nothing else of this project's training.

    python benchmarks/bare_loop.py --dataset ham10000 --root FOLDER --split 80:20 --size 128 --batch 64 --epochs 8 --class-weights
    python benchmarks/bare_loop.py --dataset malignant_vs_benign --root FOLDER --split official --size 224 --batch 32 --epochs 6 --jitter

tf_efficientnet_lite0 with the ImageNet weights of the offline package, flips, AdamW 1e-3, one cycle; learns from the training part,
never looks at validation, and is tested after the last epoch.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import timm
import torch
from side_by_side import machine
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score
from torch import Tensor, nn
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

from skincancer.data.prepared import PreparedData, prepare_data
from skincancer.models.weights import load_backbone
from skincancer.schema import DataConfig

BACKBONE = "tf_efficientnet_lite0"


class Network(nn.Module):
    """Normalisation, backbone, a linear layer; takes uint8 or float images in [0, 255]."""

    def __init__(self, size: int, classes: int, weights: str) -> None:
        super().__init__()
        backbone = load_backbone(BACKBONE, size, weights).backbone
        statistics = timm.data.resolve_model_data_config(backbone)
        self.normalise = v2.Normalize([255 * m for m in statistics["mean"]], [255 * s for s in statistics["std"]])
        self.layers = nn.Sequential(backbone, nn.Linear(backbone.num_features, classes))

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) to logits (B, C)."""
        return self.layers(self.normalise(image.float()))


def flip(image: Tensor) -> Tensor:
    """Flip each image or not, both ways."""
    for axis in (-1, -2):
        image = torch.where((torch.rand(len(image)) < 0.5).view(-1, 1, 1, 1), image.flip(axis), image)
    return image


def load(data: PreparedData, role: str) -> tuple[Tensor, Tensor]:
    """Return the images of a role, uint8 (N, 3, H, W) channels_last, and their labels."""
    rows = data.rows(role)
    images = torch.from_numpy(data.store.images[rows.index.to_numpy()]).permute(0, 3, 1, 2)
    return images, torch.tensor(rows["label"].to_numpy())


def main() -> None:
    """Train, test, print."""
    parser = argparse.ArgumentParser(description="A bare PyTorch loop.", allow_abbrev=False)
    parser.add_argument("--dataset", default="demo", help="a name from the catalog")
    parser.add_argument("--root", help="its folder; the demo needs none")
    parser.add_argument("--split", default="80:20")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--class-weights", action="store_true", help="by the square root of the inverse frequency")
    parser.add_argument("--jitter", action="store_true", help="light colour jitter")
    parser.add_argument("--weights", default="imagenet", choices=["imagenet", "none"])
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()

    torch.manual_seed(given.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = prepare_data(DataConfig(dataset=given.dataset, root=given.root, split=given.split, size=given.size))
    images, labels = load(data, "train")
    counts = torch.bincount(labels, minlength=len(data.classes))
    model = Network(given.size, len(data.classes), given.weights).to(device, memory_format=torch.channels_last)
    loss_of = nn.CrossEntropyLoss(weight=(counts**-0.5).to(device) if given.class_weights else None)
    steps = len(images) // given.batch  # an epoch leaves out a last batch that is not full
    optimizer = torch.optim.AdamW(model.parameters(), lr=given.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=given.lr, total_steps=given.epochs * steps)
    jitter = v2.ColorJitter(brightness=0.1, contrast=0.1, saturation=0.1, hue=0.02)
    print(f"{machine(str(device))}\n{' '.join(sys.argv)}: {len(images):,} training images")

    start = time.perf_counter()
    for epoch in range(given.epochs):
        model.train()
        total = 0.0
        for rows in torch.randperm(len(images))[: steps * given.batch].view(steps, given.batch):
            image = flip(images[rows])
            if given.jitter:
                image = torch.stack([jitter(one) for one in image])  # on a whole batch it would draw once
            image = image.to(device).contiguous(memory_format=torch.channels_last)
            loss = loss_of(model(image), labels[rows].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}: loss {total / steps:.4f}, {(time.perf_counter() - start) / 60:.1f} min", flush=True)

    model.eval()
    images, labels = load(data, "test")
    with torch.inference_mode():
        logits = torch.cat([model(part.to(device)).cpu() for part in images.split(given.batch)])
    truth, probability = labels.numpy(), logits.double().softmax(1).numpy()
    guess = probability.argmax(1)
    binary = probability.shape[1] == 2
    auroc = roc_auc_score(truth, probability[:, 1] if binary else probability, multi_class="ovr", average="macro")
    print(
        f"test, {len(truth):,} images: accuracy {accuracy_score(truth, guess):.4f}, balanced accuracy "
        f"{balanced_accuracy_score(truth, guess):.4f}, macro AUROC {auroc:.4f}; "
        f"{(time.perf_counter() - start) / 60:.1f} minutes, test included"
    )


if __name__ == "__main__":
    main()
