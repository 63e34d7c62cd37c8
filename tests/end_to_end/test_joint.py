"""The joint task from config to prediction. Images may lack a mask or a label."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from conftest import TINY_FIT, all_runs, copy_demo, finished_run, only_run
from html_pages import asks_for_nothing
from html_pages import read as read_page
from PIL import Image
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from skincancer import evaluate, fit, predict, prepare
from skincancer.data.balance import distribute_batches, epoch_order
from skincancer.errors import ConfigError, RunError
from skincancer.imaging.decode import read_mask
from skincancer.metrics.names import MASK_METRICS, TWO_CLASS_METRICS, class_metric, monitor_mode
from skincancer.metrics.segmentation import mask_metrics
from skincancer.models.decoders import Segmenter
from skincancer.models.factory import load_task
from skincancer.models.names import ARCHITECTURES, JOINT_ARCHITECTURES
from skincancer.models.segmenters import build_joint, check_segmenter
from skincancer.models.tasks.base import VIEWS, turn, turn_back
from skincancer.models.tasks.joint import JointTask
from skincancer.models.weights import load_backbone, load_encoder
from skincancer.runs.store import connect

JOINT = [
    "--experiment=unet_efficientnet_lite0_joint", *TINY_FIT, "--model.backbone=tu-test_resnet", "--model.tta=flips",
    "--data.resize=pad", "--data.split=40:60",
]  # fmt: skip
CLASSES = ["a", "b", "c"]
Batch = dict[str, Any]


# ------------------------------------------------------------------------------------------------------------ a run


METRICS = tuple(class_metric(name, 7) for name in TWO_CLASS_METRICS)


@pytest.fixture(scope="module")
def partial(tiny_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo as a table: every sixth image has no mask, the images of every other nevus have no diagnosis, some have neither."""
    root = tmp_path_factory.mktemp("partial")
    table = copy_demo(tiny_demo, root)
    nevi = sorted(table.loc[table["diagnosis"] == "nv", "lesion_id"].unique())[1::2]
    chosen = table.index[table["lesion_id"].isin(nevi)]
    table.loc[table.index[2::6], "mask"] = None
    table.loc[chosen, "diagnosis"] = None
    table.to_csv(root / "index.csv", index=False)
    return root


@pytest.fixture(scope="module")
def index(partial: Path) -> pd.DataFrame:
    return pd.read_csv(partial / "index.csv", dtype=str).set_index("image_id")


@pytest.fixture(scope="module")
def finished(partial, session_cache, tmp_path_factory):
    """A finished run shared by several tests, and its store."""
    flags = [*JOINT, "--data.dataset=csv", f"--data.root={partial}", "--model.loss.class_factor=0.5"]
    flags += ["--data.balance=class_weights", "--model.loss.label_smoothing=0.1"]
    with finished_run(session_cache, tmp_path_factory.mktemp("joint"), *flags) as found:
        yield found


def read(artifacts: Path, part: str) -> pd.DataFrame:
    return pd.read_csv(artifacts / f"predictions/{part}.csv", dtype={"image_id": str}).set_index("image_id")


def test_run_contract(run, artifacts, index):
    assert run.info.status == "FINISHED"
    params = run.data.params
    assert params["task"] == "joint"
    assert (params["architecture"], params["backbone"]) == ("unet", "tu-test_resnet")
    assert params["loss"] == "1 dice + 1 bce + 0.5 cross_entropy"
    assert params["dropout"] == "0.2"
    assert params["monitor"] == "val/balanced_accuracy"
    assert {path.relative_to(artifacts).as_posix() for path in artifacts.rglob("*") if path.is_file()} == {
        "config.yaml", "classes.json", "split.csv", "dropped.csv", "environment.txt", "epochs.csv", "intervals.csv",
        "digests.csv", "fingerprints.npz", "checkpoints/best.ckpt", "predictions/val.csv", "predictions/test.csv",
        "figures/learning_curves.png", "figures/jaccard_histogram.png", "figures/overlays.png",
        "figures/confusion_matrix.png", "figures/roc.png",
        "figures/precision_recall.png", "figures/reliability.png",
        "errors.csv", "attention.csv", "figures/errors.png", "report.html",
    }  # fmt: skip
    page = read_page(artifacts / "report.html")
    assert asks_for_nothing(page)
    assert {"Classes", "Calibration", "Masks", "Errors", "Predictions"} <= set(page.of("h2"))
    classes = json.loads((artifacts / "classes.json").read_text())["classes"]
    assert classes == sorted(index["diagnosis"].dropna().unique())
    epochs = pd.read_csv(artifacts / "epochs.csv")
    assert epochs["epoch"].tolist() == [1, 2]
    assert {f"val/{name}" for name in METRICS} <= set(epochs.columns)
    assert {f"val/mask_{name}" for name in MASK_METRICS} <= set(epochs.columns)
    assert not {f"val/{name}" for name in ("jaccard", "hd95")} & set(epochs.columns)
    assert epochs["val/loss"].to_numpy() == pytest.approx(epochs["val/mask_loss"] + 0.5 * epochs["val/class_loss"])
    assert run.data.metrics["best_epoch"] == epochs["epoch"][epochs["val/balanced_accuracy"].idxmax()]
    assert 0 < run.data.metrics["threshold"] < 1


def test_what_is_absent_is_left_out_and_recorded(run, artifacts, index):
    neither = sorted(index.index[index["mask"].isna() & index["diagnosis"].isna()])
    assert neither
    dropped = pd.read_csv(artifacts / "dropped.csv", dtype=str)
    assert sorted(dropped["image_id"]) == neither
    assert set(dropped["reason"]) == {"no mask and no label"}
    split = pd.read_csv(artifacts / "split.csv", dtype={"image_id": str})
    for role in ("train", "val", "test"):
        part = index.loc[split.loc[split["role"] == role, "image_id"]]
        assert run.data.params[f"{role}_images"] == str(len(part))
        assert run.data.params[f"{role}_masks"] == str(part["mask"].notna().sum())
        assert run.data.params[f"{role}_labels"] == str(part["diagnosis"].notna().sum())


def test_images_count_for_what_they_have(run, artifacts, index):
    classes = json.loads((artifacts / "classes.json").read_text())["classes"]
    intervals = pd.read_csv(artifacts / "intervals.csv").set_index("metric")
    for part, prefix in (("val", "best"), ("test", "test")):
        table = read(artifacts, part)
        assert list(table.columns) == [
            "lesion_id", "label", "prediction", *(f"p_{name}" for name in classes), *(f"logit_{name}" for name in classes),
            *(f"mask_{name}" for name in MASK_METRICS),
        ]  # fmt: skip
        own = index.loc[table.index]
        assert table["label"].fillna("").tolist() == own["diagnosis"].fillna("").tolist()
        assert table["mask_jaccard"].notna().tolist() == own["mask"].notna().tolist()
        for name in MASK_METRICS:
            expected = np.mean([value for value in table[f"mask_{name}"] if not np.isnan(value)])
            assert run.data.metrics[f"{prefix}/mask_{name}"] == pytest.approx(expected)
        known = table[table["label"].notna()]
        predicted = np.array(classes)[known[[f"p_{name}" for name in classes]].to_numpy().argmax(1)]
        assert known["prediction"].tolist() == predicted.tolist()
        assert run.data.metrics[f"{prefix}/accuracy"] == pytest.approx(accuracy_score(known["label"], predicted))
        balanced = balanced_accuracy_score(known["label"], predicted)
        assert run.data.metrics[f"{prefix}/balanced_accuracy"] == pytest.approx(balanced)
    assert table["label"].isna().any(), "the test part has images without a label"
    assert table["mask_jaccard"].isna().any(), "and without a mask"
    assert {*METRICS, *(f"mask_{name}" for name in MASK_METRICS)} <= set(intervals.index)
    assert not intervals.index.has_duplicates
    for name in ("accuracy", "mask_jaccard"):
        assert intervals.loc[name, "low"] < run.data.metrics[f"test/{name}"] < intervals.loc[name, "high"]


def test_predict_gives_the_masks_that_were_scored(artifacts, partial, index, tmp_path):
    scores = read(artifacts, "test")
    paths = [str(partial / index.loc[image_id, "image"]) for image_id in scores.index]
    assert predict.main(["--run", str(artifacts), "--out", str(tmp_path / "out"), *paths]) == 0
    # and, from the same pass, the probabilities
    said = pd.read_csv(tmp_path / "out/predictions.csv", dtype={"image_id": str}).set_index("image_id")
    columns = [name for name in scores.columns if name.startswith("p_")]
    assert said.index.tolist() == scores.index.tolist()
    assert list(said.columns) == ["file", "prediction", *columns, "width", "height", "lesion_share", "error"]
    assert said["prediction"].tolist() == scores["prediction"].tolist()
    np.testing.assert_allclose(said[columns], scores[columns], rtol=1e-6, atol=0)
    compared = 0
    for image_id, path in zip(scores.index, paths, strict=True):
        mask = Image.open(tmp_path / f"out/masks/{image_id}_segmentation.png")
        assert mask.size == Image.open(path).size
        if isinstance(truth_file := index.loc[image_id, "mask"], str):
            truth = np.asarray(read_mask(partial / truth_file)) > 0
            again = mask_metrics(truth, np.asarray(mask) > 0)
            assert scores.loc[image_id, [f"mask_{name}" for name in MASK_METRICS]].tolist() == pytest.approx(
                [again[name] for name in MASK_METRICS], rel=1e-7
            )
            compared += 1
    assert 0 < compared < len(scores)


def test_a_checkpoint_gives_the_task_back(artifacts, index):
    content = torch.load(artifacts / "checkpoints/best.ckpt", weights_only=True)
    task = load_task(artifacts / "checkpoints/best.ckpt")
    assert isinstance(task, JointTask)
    assert not task.training
    assert dict(task.hparams) == content["hyper_parameters"]
    assert task.classes == sorted(index["diagnosis"].dropna().unique())
    assert task.threshold == content["hyper_parameters"]["threshold"]
    torch.manual_seed(1)
    other = load_task(artifacts / "checkpoints/best.ckpt")
    image = torch.rand(2, 3, 40, 50)  # no multiple of the stride, and not square
    with torch.no_grad():
        (masks, classes), again = task(image), other(image)
    assert masks.shape == (2, 1, 40, 50)
    assert classes.shape == (2, 7)
    assert torch.equal(masks, again[0])
    assert torch.equal(classes, again[1])


def test_a_classifier_takes_the_encoder_of_a_joint_run_and_back(run, artifacts, tmp_path):
    state = torch.load(artifacts / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    (name,) = [name for name in state if name.endswith("layer1.0.conv1.weight")]
    loaded = load_backbone("test_resnet", 32, f"run:{run.info.run_id}", artifacts / "checkpoints/best.ckpt")
    assert loaded.source == f"run:{run.info.run_id}"
    assert torch.equal(loaded.backbone.state_dict()["layer1.0.conv1.weight"], state[name])

    for kind, values in (("classifier", loaded.backbone.state_dict()), ("segmenter", state)):
        torch.save(values, tmp_path / f"{kind}.pt")
        segmenter = build_joint("unet", "tu-test_resnet", 32, 7, 0.0)
        load_encoder(segmenter, "tu-test_resnet", 32, str(tmp_path / f"{kind}.pt"))
        assert torch.equal(segmenter.encoder.state_dict()["model.layer1.0.conv1.weight"], state[name])


@pytest.mark.slow
def test_an_evaluation_of_its_own_test_part_gives_its_own_metrics(run, artifacts):
    assert evaluate.main([f"--run={run.info.run_id}", "--part=test"]) == 0
    found = next(one for one in all_runs() if one.data.tags["kind"] == "evaluate")
    own = {name: value for name, value in run.data.metrics.items() if name.startswith("test/")}
    own = {
        name: value for name, value in own.items() if name not in ("test/attention_in_mask", "test/mask_share")
    }  # of fits
    assert "test/mask_jaccard" in own
    assert {name: found.data.metrics[name] for name in own} == own
    table = connect(None).download_artifacts(found.info.run_id, "predictions/test.csv")
    assert Path(table).read_bytes() == (artifacts / "predictions/test.csv").read_bytes()


# ------------------------------------------------------------------------------------------------------------ the task


def make_task(**changes: Any) -> JointTask:
    settings: dict[str, Any] = {
        "architecture": "unet", "backbone": "tu-test_resnet", "size": 32, "classes": CLASSES, "dropout": 0.0, "freeze": "none",
        "unfreeze_epoch": None, "class_weights": None, "tta": "none", "threshold": None, "channels_last": True, "seed": 0,
        "loss": {
            "name": "cross_entropy", "label_smoothing": 0.0, "gamma": 2.0, "masks": {"bce": 1.0}, "class_factor": 3.0,
            "alpha": 0.5, "beta": 0.5,
        },
        "optimizer": {"name": "adamw", "lr": 1e-2, "weight_decay": 0.01, "momentum": 0.9},
        "schedule": {"name": "constant", "warmup_epochs": 0.0, "step_epochs": 10, "gamma": 0.1},
    }  # fmt: skip
    torch.manual_seed(0)
    return JointTask(**(settings | changes))


def make_batch(label: list[int], has_mask: list[bool], number: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(5 + number)
    count = len(label)
    mask = (torch.rand(count, 1, 32, 32, generator=generator) > 0.5).float()
    return {
        "image": torch.rand(count, 3, 32, 32, generator=generator), "label": torch.tensor(label), "mask": mask,
        "has_mask": torch.tensor(has_mask), "index": torch.arange(count) + number * count, "draw": (0, number),
    }  # fmt: skip


def make_trainer(epochs: int, *callbacks: pl.Callback) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, log_every_n_steps=1, callbacks=list(callbacks),
    )  # fmt: skip


def loader(*batches: Batch) -> DataLoader[Any]:
    return DataLoader(list(batches), batch_size=None)


class Steps(pl.Callback):
    """Record the loss of every step and its gradients."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.gradients: dict[str, Tensor | None] = {}

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.gradients = {
            name: None if parameter.grad is None else parameter.grad.clone()
            for name, parameter in pl_module.named_parameters()
        }

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]))


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")  # one step alone
@pytest.mark.parametrize("name", ["cross_entropy", "focal"])
@pytest.mark.parametrize(
    ("label", "has_mask"),
    [
        ([0, 1, 2, 1], [True] * 4),
        ([0, -1, 2, -1], [False, True, True, False]),
        ([-1] * 4, [True] * 4),
        ([0, 1, 2, 1], [False] * 4),
        ([-1] * 4, [False] * 4),
    ],
    ids=["both", "some", "no label", "no mask", "neither"],
)
def test_the_loss_is_the_sum_over_what_is_there(name: str, label: list[int], has_mask: list[bool]) -> None:
    loss = make_task().hparams["loss"] | {"name": name}
    task, batch, steps = make_task(loss=loss, class_weights=[1.0, 2.0, 0.5]), make_batch(label, has_mask), Steps()
    with torch.no_grad():
        masks, classes = make_task(loss=loss).train()(batch["image"])
    expected, labelled = 0.0, batch["label"] >= 0
    if any(has_mask):
        masked = batch["has_mask"]
        expected += float(F.binary_cross_entropy_with_logits(masks[masked], batch["mask"][masked]))
    if labelled.any():
        logits, true = classes[labelled], batch["label"][labelled]
        each = F.cross_entropy(logits, true, reduction="none")
        focused = each if name == "cross_entropy" else (1 - torch.exp(-each)) ** 2 * each
        weight = torch.tensor([1.0, 2.0, 0.5])[true]
        expected += 3.0 * float((weight * focused).sum() / weight.sum())
    make_trainer(1, steps).fit(task, loader(batch))
    assert steps.losses == pytest.approx([expected], rel=1e-4)
    for parameter, gradient in steps.gradients.items():
        assert gradient is not None, f"{parameter} has no gradient: DDP would wait for it for ever"
        assert torch.isfinite(gradient).all()
    head = steps.gradients["segmenter.model.classification_head.3.weight"]
    decoder = steps.gradients["segmenter.model.segmentation_head.0.weight"]
    assert head is not None
    assert decoder is not None
    assert bool(head.any()) == bool(labelled.any())
    assert bool(decoder.any()) == any(has_mask)


def test_one_pass_gives_both() -> None:
    task, batch = make_task(tta="flips"), make_batch([0, 1], [True, True])
    calls: list[tuple[int, ...]] = []
    task.segmenter.encoder.register_forward_pre_hook(lambda module, args: calls.append(tuple(args[0].shape)))
    task.eval()(batch["image"])
    assert calls == [(2, 3, 64, 64)]  # padded to what U-Net takes
    calls.clear()
    make_trainer(1).fit(task.train(), loader(batch), loader(batch))
    assert len(calls) == 2  # a step, and a validation of one view
    task.scorer = Truth(batch)
    calls.clear()
    make_trainer(1).test(task, loader(batch), verbose=False)
    assert len(calls) == 4


class Truth:
    """Score masks at the input size against the masks of a batch."""

    def __init__(self, batch: Batch) -> None:
        self.masks = batch["mask"][:, 0].numpy() > 0

    def truth(self, row: int) -> np.ndarray:
        return self.masks[row]

    def probability(self, row: int, square: np.ndarray) -> np.ndarray:
        return square

    def score(self, row: int, square: np.ndarray, threshold: float) -> dict[str, float]:
        return mask_metrics(self.masks[row], square >= threshold)


def test_views_of_masks_are_turned_back_and_both_averaged() -> None:
    task, image = make_task(tta="d4").eval(), make_batch([0, 1], [True, True])["image"]
    with torch.no_grad():
        probability, classes = task.predict(image)
        each = [(task(turn(image, view)), view) for view in VIEWS["d4"]]
        masks = sum(turn_back(found, view) for (found, _), view in each) / 8
        torch.testing.assert_close(probability, masks.sigmoid())
        torch.testing.assert_close(classes, sum(found for (_, found), _ in each) / 8)
        assert not torch.allclose(classes, task(image)[1], atol=1e-5)


def test_evaluation_leaves_out_what_is_absent() -> None:
    task = make_task()
    first, second = make_batch([0, -1, 2], [True, False, False]), make_batch([-1, 1, -1], [True, True, False], number=1)
    trainer = make_trainer(1)
    trainer.fit(task, loader(first), loader(second, first))
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    found = task.predictions
    assert found is not None
    assert found.classes.index.tolist() == found.masks.index.tolist() == [0, 1, 2, 3, 4, 5]
    assert found.classes.label.tolist() == [0, -1, 2, -1, 1, -1]
    assert found.masks.table["jaccard"].notna().tolist() == [True, False, False, True, True, False]
    with torch.no_grad():
        outputs = [task.eval()(batch["image"]) for batch in (first, second)]
    masks, classes = (torch.cat(parts) for parts in zip(*outputs, strict=True))
    truth = torch.cat([first["mask"], second["mask"]])
    kept, labelled = [0, 3, 4], [0, 2, 4]
    mask_loss = float(F.binary_cross_entropy_with_logits(masks[kept], truth[kept]))
    class_loss = float(F.cross_entropy(classes[labelled], torch.tensor([0, 2, 1])))
    assert logged["val/mask_loss"] == pytest.approx(mask_loss, rel=1e-5)
    assert logged["val/class_loss"] == pytest.approx(class_loss, rel=1e-5)
    assert logged["val/loss"] == pytest.approx(mask_loss + 3 * class_loss, rel=1e-5)
    scores = [mask_metrics(truth[row, 0].numpy() > 0, masks[row, 0].sigmoid().numpy() >= 0.5) for row in kept]
    for name in MASK_METRICS:
        assert logged[f"val/mask_{name}"] == pytest.approx(np.mean([score[name] for score in scores]), rel=1e-5)
    assert logged["val/accuracy"] == pytest.approx(accuracy_score([0, 2, 1], classes[labelled].argmax(1)))


@pytest.mark.parametrize(
    ("label", "has_mask", "message"),
    [
        ([-1, -1], [True, True], "none of the 2 evaluated val images has a label; raise trainer.limit_val"),
        ([0, 1], [False, False], "none of the evaluated val images has a mask; raise trainer.limit_val"),
    ],
)
def test_a_validation_without_any_label_or_mask_is_reported(
    label: list[int], has_mask: list[bool], message: str
) -> None:
    whole = make_batch([0, 1], [True, True])
    with pytest.raises(RunError, match=message):
        make_trainer(1).fit(make_task(), loader(whole), loader(make_batch(label, has_mask)))


def test_the_threshold_is_searched_on_images_with_a_mask() -> None:
    from skincancer.metrics.segmentation import ThresholdSearch

    task, batch = make_task().eval(), make_batch([0, -1], [True, False])
    with torch.no_grad():
        probability = task.predict(batch["image"])[0].numpy()
    expected = ThresholdSearch()
    expected.add(probability[0, 0], batch["mask"][0, 0].numpy() > 0)
    task.scorer, task.search = Truth(batch), ThresholdSearch()
    make_trainer(1).validate(task, loader(batch), verbose=False)
    assert task.threshold == expected.best()[0]
    assert task.search is None
    assert task.predictions is None
    make_trainer(1).validate(task, loader(batch), verbose=False)
    assert task.predictions is not None
    assert len(task.predictions.classes.index) == 2  # those of the search are not counted again


def test_freezing_holds_the_encoder_alone() -> None:
    task = make_task(freeze="all")
    free = {name for name, parameter in task.named_parameters() if parameter.requires_grad}
    assert free
    assert not any(".encoder." in name for name in free)
    assert any("classification_head" in name for name in free)


@pytest.mark.slow
def test_resuming_gives_the_same_weights(tmp_path: Path) -> None:
    batches = [make_batch([0, 1, -1, 2], [True, False, True, True], number) for number in range(2)]

    def train(epochs: int, resume: Path | None = None) -> tuple[JointTask, pl.Trainer]:
        task, trainer = make_task(dropout=0.5), make_trainer(epochs)
        trainer.fit(task, loader(*batches), loader(*batches), ckpt_path=resume, weights_only=True)
        return task, trainer

    whole, _ = train(2)
    _, interrupted = train(1)
    interrupted.save_checkpoint(tmp_path / "last.ckpt")
    torch.manual_seed(99)
    resumed, _ = train(2, tmp_path / "last.ckpt")
    for (name, tensor), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name


@pytest.mark.parametrize("architecture", JOINT_ARCHITECTURES)
def test_architectures_give_masks_and_classes_and_others_are_refused(architecture: str) -> None:
    encoder = "tu-test_vit" if architecture == "dpt" else "tu-test_resnet"
    check_segmenter(architecture, encoder, 64, joint=True)
    segmenter: Segmenter = build_joint(architecture, encoder, 64, 3, 0.0).eval()
    with torch.no_grad():
        masks, classes = segmenter(torch.rand(2, 3, 64, 64))
    assert masks.shape == (2, 1, 64, 64)
    assert classes.shape == (2, 3)


@pytest.mark.parametrize("architecture", sorted(set(ARCHITECTURES) - set(JOINT_ARCHITECTURES)))
def test_architectures_without_a_class_head_are_refused(architecture: str) -> None:
    with pytest.raises(
        ConfigError, match=f"'{architecture}', which has no class head for a joint task; choose one of unet"
    ):
        check_segmenter(architecture, "resnet50", 64, joint=True)


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.head=sigmoid"], "model.head is 'sigmoid'; it is for task classification, and the task is joint"),
        (["--model.head_hidden=8"], "model.head_hidden is 8; it is for task classification, and the task is joint"),
        (["--model.architecture=fcn"], "model.architecture is 'fcn', which has no class head for a joint task; choose one of unet"),
        (["--model.architecture=maskrcnn"], "model.architecture is 'maskrcnn', which has no class head"),
        (["--model.architecture=unett"], "model.architecture is 'unett'; choose one of unet"),
        (["--model.freeze=2"], "model.freeze is '2'; it must be none or all (the encoder) for joint"),
        (["--model.loss.class_factor=-1"], "model.loss.class_factor is -1.0; it must be 0 or more"),
        (["--model.loss.class_factor=.inf"], "it must be 0 or more, at most 1000"),
        (["--model.loss.gamma=3"], "model.loss.gamma is 3.0; it is for focal, and chosen is cross_entropy, dice, bce"),
        (["--training.monitor=val/jaccard"], "training.monitor is 'val/jaccard'; choose one of val/loss, val/accuracy"),
        (["--data.dataset=isic2018_task1"], "isic2018_task1 is for segmentation, not for joint"),
        (["--data.dataset=isic2018_task3"], "isic2018_task3 is for classification, not for joint"),
    ],
)  # fmt: skip
def test_bad_settings_are_reported_before_any_work(capsys, flags, message):
    assert fit.main(["--experiment=unet_efficientnet_lite0_joint", *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("experiment", ["resnet50", "unet_resnet34"])
def test_the_class_factor_is_refused_where_it_would_be_ignored(capsys, experiment):
    assert fit.main([f"--experiment={experiment}", "--model.loss.class_factor=2"]) == 2
    assert "model.loss.class_factor is 2.0; it is for task joint" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [
        ["--training.monitor=val/mask_hd95"], ["--training.monitor=val/auroc_macro"], ["--model.loss.name=focal"],
        ["--model.loss.name=focal", "--model.loss.gamma=1"], ["--model.loss.class_factor=0"],
        ["--data.target=malignancy", "--data.balance=undersample"],
    ],
)  # fmt: skip
def test_what_a_joint_task_takes(capsys, flags):
    assert fit.main(["--experiment=unet_densenet169_joint", *flags, "--dry-run"]) == 0


def test_distances_of_masks_are_minimised():
    assert monitor_mode("val/mask_hd95") == "min"
    assert monitor_mode("val/mask_jaccard") == "max"


@pytest.mark.parametrize(
    ("column", "message"), [("mask", "has no masks, which joint needs"), ("diagnosis", "has no diagnoses")]
)
def test_data_without_any_are_refused(partial, store, tmp_path, capsys, column, message):
    shutil.copytree(partial, tmp_path / "data")
    table = pd.read_csv(partial / "index.csv", dtype=str).drop(columns=column)
    table.to_csv(tmp_path / "data/index.csv", index=False)
    assert fit.main([*JOINT, "--data.dataset=csv", f"--data.root={tmp_path / 'data'}"]) == 2
    assert message in capsys.readouterr().err
    assert not all_runs()


def test_a_part_without_masks_is_refused(partial, store, tmp_path, capsys):
    shutil.copytree(partial, tmp_path / "data")
    table = pd.read_csv(partial / "index.csv", dtype=str)
    table.loc[1:, "mask"] = None
    table.loc[0, "mask"] = "masks/" + Path(table.loc[0, "image"]).stem + "_segmentation.png"
    table.to_csv(tmp_path / "data/index.csv", index=False)
    assert fit.main([*JOINT, "--data.dataset=csv", f"--data.root={tmp_path / 'data'}"]) == 2
    assert "set has no image with a mask. Add masks, or use another --data.split" in capsys.readouterr().err


def test_classes_cannot_be_sampled_where_labels_are_absent(partial, store, capsys):
    flags = ["--data.dataset=csv", f"--data.root={partial}", "--data.balance=undersample"]
    assert fit.main([*JOINT, *flags]) == 2
    assert "data.balance is undersample, but" in capsys.readouterr().err
    assert not all_runs(), "reported before a run starts"


def test_prepare_stores_masks_of_a_joint_task(partial, capsys):
    assert prepare.main(["csv", f"--data.root={partial}", "--task=joint", "--data.size=32"]) == 0
    assert "with masks" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_with_steps_that_lack_labels_or_masks(partial, index, places):
    """In some steps one rank has no mask or no label, and the other must not wait for its gradients."""
    flags = [
        *JOINT,
        "--data.dataset=csv",
        f"--data.root={partial}",
        "--trainer.devices=2",
        "--data.batch_size=2",
        "--seed=6",
    ]
    command = [sys.executable, "-m", "skincancer.fit", *flags, "--trainer.max_epochs=1"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=400, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = only_run()
    folder = Path(connect(None).download_artifacts(run.info.run_id, ""))
    split = pd.read_csv(folder / "split.csv", dtype=str)
    train = split.loc[split["role"] == "train", "image_id"].to_numpy()
    order = epoch_order(np.zeros(len(train), dtype=np.int64), "none", seed=6, epoch=0)
    lacking = set()
    for rank in range(2):
        for positions in distribute_batches(order, 2, rank, 2):
            lacking |= {column for column in ("mask", "diagnosis") if index.loc[train[positions], column].isna().all()}
    assert lacking == {"mask", "diagnosis"}, "there were such steps"
    table = read(folder, "test")
    assert table.index.tolist() == split.loc[split["role"] == "test", "image_id"].tolist()
    known = table[table["label"].notna()]
    assert run.data.metrics["test/accuracy"] == pytest.approx((known["label"] == known["prediction"]).mean())
    assert run.data.metrics["test/mask_jaccard"] == pytest.approx(table["mask_jaccard"].mean())
