"""Test Grad-CAM against the formula of the paper, shares of attention, and files of errors."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import log_loss
from torch import nn
from torch.nn import functional

from skincancer.data.mask_sources import TruthMasks
from skincancer.data.prepare import prepare_data
from skincancer.errors import RunError
from skincancer.metrics.prediction_files import predictions_table, write_predictions
from skincancer.models.grad_cam import grad_cam
from skincancer.models.tasks.classification import ClassificationTask
from skincancer.models.tasks.joint import JointTask
from skincancer.reports import error_analysis
from skincancer.schema.data import DataConfig
from skincancer.visualization import style

CLASSES = ["a", "b", "c"]
SETTINGS = {
    "dropout": 0.5, "freeze": "none", "unfreeze_epoch": None, "classes": CLASSES, "class_weights": None, "tta": "none",
    "optimizer": {"name": "adamw", "lr": 1e-2, "weight_decay": 0.01, "momentum": 0.9}, "channels_last": False, "seed": 0,
    "schedule": {"name": "constant", "warmup_epochs": 0.0, "step_epochs": 10, "gamma": 0.1},
}  # fmt: skip
LOSS = {"name": "cross_entropy", "label_smoothing": 0.0, "gamma": 2.0}


def classifier(backbone, size, **changes):
    torch.manual_seed(0)
    settings = {"backbone": backbone, "size": size, "head": "softmax", "head_hidden": 0, "loss": LOSS}
    return ClassificationTask(**(SETTINGS | settings | changes)).eval()


def joint(size, backbone="tu-test_resnet"):
    torch.manual_seed(0)
    loss = LOSS | {"masks": {"bce": 1.0}, "class_factor": 1.0, "alpha": 0.5, "beta": 0.5}
    settings = {"architecture": "unet", "backbone": backbone, "size": size, "threshold": None, "loss": loss}
    return JointTask(**(SETTINGS | settings)).eval()


def images(count, size):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def by_the_paper(features, logits, labels, size, lay_out=lambda features: features):
    """ReLU(Σ αᵏ Aᵏ), enlarged and brought to [0, 1]: features with a graph to the logits (B, classes), laid out as (B, C, h, w)."""
    score = logits[torch.arange(len(labels)), labels].sum()
    (gradient,) = torch.autograd.grad(score, features)
    gradient, features = lay_out(gradient), lay_out(features)
    weighted = (gradient.mean((2, 3), keepdim=True) * features).sum(1, keepdim=True).relu()
    enlarged = functional.interpolate(weighted, (size, size), mode="bilinear", align_corners=False)[:, 0].detach()
    low = enlarged.amin((1, 2), keepdim=True)
    return ((enlarged - low) / (enlarged.amax((1, 2), keepdim=True) - low).clamp_min(1e-12)).numpy()


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


CNNS = [
    ("test_efficientnet", 96, 3), ("test_convnext", 96, 3), ("test_mambaout", 64, 2), ("resnet18", 96, 3),
    slow("resnet50", 64, 2), slow("densenet169", 64, 2), slow("tf_efficientnet_lite0", 96, 3), slow("vgg16", 64, 2),
    slow("inception_v3", 139, 3), slow("mobilenetv3_small_050", 96, 3), slow("convnext_atto", 96, 3),
]  # fmt: skip


@pytest.mark.parametrize(("backbone", "size", "cells"), CNNS)
def test_maps_of_cnns_equal_the_papers(backbone, size, cells):
    task, image, labels = classifier(backbone, size), images(3, size), [0, 2, 1]
    features = task.backbone.forward_features(task.normalise(image))
    logits = task.head(task.backbone.forward_head(features))
    torch.testing.assert_close(logits, task(image))  # timm's two halves are its whole
    found = grad_cam(task, image, labels)
    assert found.cells == (cells, cells)
    assert found.values.dtype == np.float32
    assert found.values.shape == (3, size, size)
    assert found.values.min() >= 0
    assert found.values.max() == pytest.approx(1, abs=1e-5)
    lay_out = (lambda f: f.permute(0, 3, 1, 2)) if backbone == "test_mambaout" else (lambda f: f)
    np.testing.assert_allclose(found.values, by_the_paper(features, logits, labels, size, lay_out), atol=2e-4)


@pytest.mark.parametrize(("backbone", "size", "cells"), [("test_vit", 64, 4), slow("vit_tiny_patch16_224", 64, 4)])
def test_maps_of_vits_have_the_layout_of_patches(backbone, size, cells):
    task, image, labels = classifier(backbone, size), images(2, size), [2, 0]
    kept = []
    hook = task.backbone.blocks[-1].norm1.register_forward_hook(lambda module, given, output: kept.append(output))
    logits = task(image)
    hook.remove()
    (tokens,) = kept

    def patches(tokens):  # the first token is the class's
        return tokens[:, 1:].transpose(1, 2).reshape(2, -1, cells, cells)

    found = grad_cam(task, image, labels)
    assert found.cells == (cells, cells)
    np.testing.assert_allclose(found.values, by_the_paper(tokens, logits, labels, size, patches), atol=2e-4)


@pytest.mark.parametrize("size", [64, 50])
def test_maps_of_joint_models_match_the_images(size):
    task, image, labels = joint(size), images(2, size), [1, 2]
    padded, rows, columns = task.segmenter.pad(task.normalise(image))
    features = task.segmenter.encoder(padded)[-1]
    logits = task.segmenter.model.classification_head(features)
    torch.testing.assert_close(logits, task(image)[1])
    found = grad_cam(task, image, labels).values
    assert found.shape == (2, size, size)
    np.testing.assert_allclose(found, by_the_paper(features, logits, labels, 64)[:, rows, columns], atol=2e-4)


def test_a_task_is_left_as_it_was_and_frozen_backbones_have_maps():
    for freeze in ("none", "all"):
        task = classifier("test_resnet", 64, freeze=freeze, dropout=0.0)
        learning = {name for name, parameter in task.named_parameters() if parameter.requires_grad}
        before = task(images(1, 64))
        assert grad_cam(task, images(2, 64), [0, 1]).values.max() == pytest.approx(1, abs=1e-5)
        assert {name for name, parameter in task.named_parameters() if parameter.requires_grad} == learning
        assert all(parameter.grad is None for parameter in task.parameters())
        assert not any(module._forward_hooks for module in task.modules())
        torch.testing.assert_close(task(images(1, 64)), before)


class Brightness(nn.Module):
    """Features: how bright each 8 × 8 block is, and how dark."""

    def forward_features(self, image):
        mean = functional.avg_pool2d(image, 8).mean(1, keepdim=True)
        return torch.cat([mean, 1 - mean], 1)

    def forward_head(self, features):
        return features.mean((2, 3))

    def forward(self, image):
        return self.forward_head(self.forward_features(image))


def planted(**changes):
    """A task that predicts the second class for bright images and the first class for dark images."""
    task = classifier("test_resnet", 32, classes=["dark", "bright"], dropout=0.0, **changes)
    task.backbone, task.normalise = Brightness(), nn.Identity()
    task.head[-1] = nn.Linear(2, 2 if task.hparams["head"] == "softmax" else 1, bias=False)
    rows = torch.tensor([[-1.0, 1.0], [1.0, -1.0]])
    task.head[-1].weight.data = rows if task.hparams["head"] == "softmax" else rows[1:]
    return task


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_maps_are_high_at_the_pixels_of_the_class(head):
    image = torch.zeros(1, 3, 32, 32)
    image[:, :, :16, 16:] = 1
    mask = np.zeros((1, 32, 32), dtype=bool)
    mask[:, :16, 16:] = True
    bright, dark = (grad_cam(planted(head=head), image, [label]).values for label in (1, 0))
    # of bright, the four blocks of the corner have weight 1 and all others 0, but for the slope between them
    assert bright[0, 4:12, 20:28].min() == pytest.approx(1, abs=1e-5)
    assert not bright[0, 20:].any()
    share, mask_share = error_analysis.attention_shares(np.concatenate([bright, dark]), np.concatenate([mask, mask]))
    assert mask_share.tolist() == [0.25, 0.25]
    assert share[0] > 0.8
    assert share[1] < 0.05


class Tokens(Brightness):
    def forward_features(self, image):
        return super().forward_features(image).flatten(2).transpose(1, 2)[:, :7]

    def forward_head(self, features):
        return features.mean(1)


class Pooled(Brightness):
    global_pool = "token"


@pytest.mark.parametrize("backbone", [Tokens, Pooled])
def test_features_of_unknown_layout_are_refused(backbone):
    task = planted()
    task.backbone = backbone()
    with pytest.raises(RunError, match="test_resnet: the spatial layout of its features is unknown"):
        grad_cam(task, images(1, 32), [0])
    assert not any(module._forward_hooks for module in task.modules())


def test_shares_equal_hand_computed_ones():
    maps = np.array([[[1, 0.5], [0.5, 0]], [[0, 0], [0, 0]], [[0.2, 0.2], [0.2, 0.2]]], dtype=np.float32)
    masks = np.array([[[1, 0], [0, 1]], [[1, 1], [0, 0]], [[1, 0], [0, 0]]], dtype=bool)
    share, mask_share = error_analysis.attention_shares(maps, masks)
    np.testing.assert_allclose(share, [0.5, np.nan, 0.25], rtol=1e-6)
    np.testing.assert_allclose(mask_share, [0.5, 0.5, 0.25])


def test_errors_are_ranked_by_their_cross_entropy():
    rng = np.random.default_rng(0)
    probability = rng.dirichlet(np.ones(3), 200)
    label = rng.integers(-1, 3, 200)
    table = pd.DataFrame({"image_id": [f"i{i}" for i in range(200)], "lesion_id": [f"l{i}" for i in range(200)]})
    found = error_analysis.worst_errors(table, label, probability, CLASSES).set_index("image_id")
    wrong = (label >= 0) & (probability.argmax(1) != label)
    assert set(found.index) == set(table["image_id"][wrong])
    assert found["loss"].is_monotonic_decreasing
    for image_id, row in found.iterrows():
        i = int(image_id[1:])
        assert row["label"] == CLASSES[label[i]]
        assert row["prediction"] == CLASSES[probability[i].argmax()]
        assert row["loss"] == pytest.approx(log_loss([label[i]], probability[i : i + 1], labels=range(3)), rel=1e-9)
        assert row["p_label"] == probability[i, label[i]]
        assert row["p_prediction"] == probability[i].max()
    certain = error_analysis.worst_errors(table.head(1), np.array([0]), np.array([[0.0, 1.0, 0.0]]), CLASSES)
    assert np.isfinite(certain["loss"]).all()


def test_nested_sets_of_images_have_the_same_sample():
    large = [f"image{i}" for i in range(500)]
    small = large[::3]
    first = error_analysis.choose_sample(large, 64)
    assert len(set(first)) == 64
    assert [name for name in first if name in small] == error_analysis.choose_sample(small, 64)[
        : len(set(first) & set(small))
    ]
    assert error_analysis.choose_sample(large, 64, seed=1) != first
    assert error_analysis.choose_sample(small[::-1], 500) == error_analysis.choose_sample(small, 500)


# ------------------------------------------------------------------------------------------------------- files of a run


@pytest.fixture(scope="module")
def prepared(tiny_demo, session_cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKINCANCER_CACHE", str(session_cache))
        yield prepare_data(DataConfig(root=str(tiny_demo), size=64, split="40:60"), jobs=1)


def predict(folder, data, seed=0):
    """Write random predictions of the test set."""
    rows = data.rows("test")
    logits = np.random.default_rng(seed).normal(size=(len(rows), len(data.classes)))
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    table = predictions_table(rows, rows["label"].to_numpy(), logits, probability, data.classes)
    write_predictions(table, folder / "predictions/test.csv")
    return table


def task_for(data):
    return classifier("test_efficientnet", data.store.images.shape[1], classes=list(data.classes))


def test_files_of_a_classifier(prepared, tmp_path):
    table, task = predict(tmp_path, prepared).set_index("image_id"), task_for(prepared)
    assert error_analysis.explain_run(tmp_path, prepared, task, resize="stretch", batch_size=5, sample=8) == ""
    errors = pd.read_csv(tmp_path / "errors.csv", dtype={"image_id": str})
    assert list(errors) == ["image_id", "lesion_id", "label", "prediction", "p_label", "p_prediction", "loss"]
    assert len(errors) == (table["label"] != table["prediction"]).sum()
    assert (tmp_path / "figures/errors.png").stat().st_size > 10_000

    attention = error_analysis.read_attention(tmp_path / "attention.csv")
    assert list(attention) == error_analysis.ATTENTION_COLUMNS
    sampled = error_analysis.choose_sample(table.index, 8)
    assert set(attention["image_id"]) == {*sampled, *errors["image_id"].head(error_analysis.SHOWN_ERRORS)}
    assert set(attention["image_id"][attention["sample"]]) == set(sampled)
    assert (attention["class"].to_numpy() == table.loc[attention["image_id"], "prediction"]).all()
    # one image anew, alone, its mask read from the file and brought to the square by numpy
    row = attention.dropna().iloc[0]
    at = int(np.flatnonzero(prepared.index["image_id"] == row["image_id"])[0])
    image = torch.from_numpy(np.array(prepared.store.images[[at]])).permute(0, 3, 1, 2) / 255
    (map_,) = grad_cam(task, image, [prepared.classes.index(row["class"])]).values
    mask = np.asarray(Image.open(prepared.root / prepared.index["mask"][at]).convert("L")) > 127
    y, x = (((np.arange(64) + 0.5) * side / 64).astype(int) for side in mask.shape)  # the nearest pixel
    square = mask[np.ix_(y, x)]
    assert row["mask_share"] == pytest.approx(square.mean(), abs=1e-9)
    assert row["attention_in_mask"] == pytest.approx(map_[square].sum() / map_.sum(), rel=1e-4)

    means = error_analysis.attention_means(attention).set_index("metric")
    chosen = attention[attention["sample"]].dropna()
    for name in ("attention_in_mask", "mask_share"):
        assert means.loc[name, "value"] == pytest.approx(chosen[name].mean())
        assert means.loc[name, "low"] <= means.loc[name, "value"] <= means.loc[name, "high"]


def test_masks_of_crops_are_cropped_too(prepared, tiny_demo, tmp_path):
    config = DataConfig(root=str(tiny_demo), size=64, split="40:60", crop=True, masks="truth", crop_margin=0.5)
    cropped = prepare_data(config, TruthMasks(), jobs=1)
    row = 0
    box = cropped.store.table.loc[row, ["left", "top", "right", "bottom"]].astype(int)
    mask = error_analysis._square_mask(cropped, row, "stretch")
    whole = error_analysis._square_mask(prepared, row, "stretch")
    width, height = cropped.index[["width", "height"]].iloc[row]
    area = (box["right"] - box["left"]) * (box["bottom"] - box["top"]) / (width * height)
    assert mask.mean() == pytest.approx(whole.mean() / area, rel=0.05)  # the same lesion, of a smaller picture


def test_a_run_without_masks_or_maps_still_has_its_errors(prepared, tmp_path):
    predict(tmp_path, prepared)
    unmasked = SimpleNamespace(
        index=prepared.index.assign(mask=None), classes=prepared.classes, store=prepared.store, root=prepared.root
    )
    task = task_for(prepared)
    assert error_analysis.explain_run(tmp_path, unmasked, task, resize="stretch", batch_size=8) == ""
    assert not (tmp_path / "attention.csv").exists()
    assert (tmp_path / "figures/errors.png").exists()

    task.backbone, task.head = Tokens(), nn.Linear(2, 7)
    other = tmp_path / "other"
    predict(other, prepared)
    reason = error_analysis.explain_run(other, prepared, task, resize="stretch", batch_size=8)
    assert "the spatial layout of its features is unknown" in reason
    assert sorted(path.name for path in other.iterdir()) == ["errors.csv", "predictions"]


def test_a_damaged_mask_is_reported_alone(prepared, tmp_path):
    predict(tmp_path, prepared)
    (tmp_path / "bad.png").write_bytes(b"no image")
    moved = SimpleNamespace(
        index=prepared.index.assign(mask="bad.png"), classes=prepared.classes, store=prepared.store, root=tmp_path
    )
    reason = error_analysis.explain_run(tmp_path, moved, task_for(prepared), resize="stretch", batch_size=8)
    assert re.search(r"excludes \d+ images with unusable true masks, such as bad\.png is not an image", reason)
    assert not (tmp_path / "attention.csv").exists()
    assert (tmp_path / "figures/errors.png").exists()


def test_a_mask_of_another_size_is_reported(prepared, tiny_demo, tmp_path):
    predict(tmp_path, prepared)
    Image.new("L", (7, 5)).save(tmp_path / "small.png")
    index = prepared.index.copy()
    index["mask"] = [str(tiny_demo / name) for name in index["mask"]]
    tested = index.index[index["role"] == "test"][0]
    index.loc[tested, "mask"] = str(tmp_path / "small.png")
    moved = SimpleNamespace(index=index, classes=prepared.classes, store=prepared.store, root=tiny_demo)
    reason = error_analysis.explain_run(tmp_path, moved, task_for(prepared), resize="stretch", batch_size=8)
    assert "excludes 1 images" in reason
    assert "small.png is 7 × 5 px, but its image is" in reason
    shown = error_analysis.read_attention(tmp_path / "attention.csv")
    assert index.loc[tested, "image_id"] not in set(shown["image_id"])
    assert len(shown)


def test_a_failing_backbone_costs_only_the_maps(prepared, tmp_path, monkeypatch):
    predict(tmp_path, prepared)

    def broken(*_):
        raise AttributeError("no forward_head")

    monkeypatch.setattr(error_analysis, "grad_cam", broken)
    reason = error_analysis.explain_run(tmp_path, prepared, task_for(prepared), resize="stretch", batch_size=8)
    assert reason == "no Grad-CAM maps: AttributeError: no forward_head"
    assert (tmp_path / "errors.csv").exists()


def test_texts_of_the_sheet_are_not_interpreted(tmp_path):
    case = error_analysis.ErrorExample(
        np.full((8, 8, 3), 200, np.uint8), np.eye(8, dtype=np.float32), None, ["$\\frac{<script>$ name", "x" * 300]
    )
    figure = error_analysis.attention_sheet([case, case], title="$\\frac$", note="$")
    style.save(figure, tmp_path / "sheet.png")
    with pytest.raises(ValueError, match="cases is empty"):
        error_analysis.attention_sheet([])
