from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from sklearn.metrics import accuracy_score
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader
from torchvision.transforms.functional import normalize

from skincancer.errors import RunError, WeightsError
from skincancer.models.factory import build_task, load_task
from skincancer.models.optimizers import OPTIMIZERS
from skincancer.models.tasks.base import VIEWS, Normalise, turn, turn_back
from skincancer.models.tasks.classification import ClassificationTask
from skincancer.schema.data import DataConfig
from skincancer.schema.experiment import Experiment
from skincancer.schema.model import ModelConfig
from skincancer.schema.tasks import TASKS
from skincancer.training.callbacks import EpochRecord

# said of frozen BatchNorm, and of a few steps without validation: both are on purpose here
pytestmark = [
    pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode at the start of training"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
]

CLASSES = ["a", "b", "c", "d"]
Batch = dict[str, Any]


def make_task(**changes: Any) -> ClassificationTask:
    settings: dict[str, Any] = {
        "backbone": "test_resnet", "size": 32, "classes": CLASSES, "dropout": 0.0, "head": "softmax", "head_hidden": 0,
        "freeze": "none", "unfreeze_epoch": None, "loss": {"name": "cross_entropy", "label_smoothing": 0.0, "gamma": 2.0},
        "optimizer": {"name": "adamw", "lr": 1e-2, "weight_decay": 0.01, "momentum": 0.9},
        "schedule": {"name": "constant", "warmup_epochs": 0.0, "step_epochs": 10, "gamma": 0.1},
        "class_weights": None, "tta": "none", "channels_last": True, "seed": 0,
    }  # fmt: skip
    torch.manual_seed(0)
    return ClassificationTask(**(settings | changes))


def make_batches(count: int = 2, size: int = 4, classes: int = 4) -> list[Batch]:
    generator = torch.Generator().manual_seed(5)
    return [
        {
            "image": torch.rand(size, 3, 32, 32, generator=generator),
            "label": torch.arange(size) % classes,
            "index": torch.arange(size) + number * size,
            "draw": (0, number),
        }
        for number in range(count)
    ]


def make_trainer(epochs: int, *callbacks: pl.Callback, log_every_n_steps: int = 1) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, callbacks=list(callbacks), log_every_n_steps=log_every_n_steps,
    )  # fmt: skip


def loader(batches: list[Batch]) -> DataLoader[Any]:
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


class Snapshots(pl.Callback):
    """Keeps the model's tensors at the end of every epoch."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.states.append(copy_state(pl_module))


class Gradients(pl.Callback):
    """Keeps the names of parameters that ever had a gradient (Lightning clears them)."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.names |= {name for name, parameter in pl_module.named_parameters() if parameter.grad is not None}


def copy_state(task: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in task.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def test_normalise_is_torchvisions() -> None:
    image = torch.rand(5, 3, 7, 9)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    torch.testing.assert_close(Normalise(mean, std)(image), normalize(image, mean, std))


def test_a_task_normalises_first() -> None:
    task = make_task(backbone="test_efficientnet").eval()
    image = make_batches()[0]["image"]
    normalised = normalize(image, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(task(image), task.head(task.backbone(normalised)))


def test_a_softmax_head() -> None:
    task = make_task().eval()
    assert [type(layer) for layer in task.head] == [nn.Dropout, nn.Linear]
    assert task(make_batches()[0]["image"]).shape == (4, 4)


def test_a_sigmoid_head_gives_two_logits_whose_softmax_is_its_sigmoid() -> None:
    task = make_task(classes=["benign", "malignant"], head="sigmoid").eval()
    assert task.head[-1].out_features == 1
    image = make_batches()[0]["image"]
    logits = task(image)
    z = task.head(task.backbone(task.normalise(image)))[:, 0]
    assert logits.shape == (4, 2)
    assert not logits[:, 0].any()
    torch.testing.assert_close(torch.softmax(logits, 1)[:, 1], torch.sigmoid(z))


def test_a_hidden_layer_stands_before_the_classifying_one() -> None:
    task = make_task(head_hidden=11, dropout=0.3)
    dropout, hidden, relu, again, last = task.head
    assert isinstance(relu, nn.ReLU)
    assert (dropout.p, again.p) == (0.3, 0.3)
    assert (hidden.in_features, hidden.out_features, last.in_features, last.out_features) == (96, 11, 11, 4)


def test_channels_last_where_asked() -> None:
    weights = [make_task(channels_last=asked).backbone.layer1[0].conv2.weight for asked in (True, False)]
    assert [weight.is_contiguous(memory_format=torch.channels_last) for weight in weights] == [True, False]
    torch.testing.assert_close(weights[0], weights[1])


@pytest.mark.parametrize(("freeze", "still"), [("all", ""), ("2", ("conv1.", "bn1.", "layer1."))])
def test_frozen_parts_learn_nothing_and_keep_their_statistics(freeze: str, still: str | tuple[str, ...]) -> None:
    task = make_task(freeze=freeze)
    before, gradients = copy_state(task), Gradients()
    trainer = make_trainer(2, gradients)
    trainer.fit(task, loader(make_batches()), loader(make_batches()))  # a validation between the epochs
    moved = changed(before, task.state_dict())
    held = {
        name for name in before if name.startswith("backbone.") and name.removeprefix("backbone.").startswith(still)
    }
    frozen_layers = {
        name.rsplit(".", 1)[0] for name, parameter in task.named_parameters() if not parameter.requires_grad
    }
    statistics = {f"{layer}.running_mean" for layer in frozen_layers} & set(before)
    assert statistics <= held
    assert len(statistics) > 3
    assert not moved & held
    learned = set(before) - held - {"normalise.mean", "normalise.std"}
    assert learned
    assert moved == learned  # statistics of free BatchNorm layers among them
    assert gradients.names == {name for name, _ in task.named_parameters()} - held
    in_optimizer = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert in_optimizer == {id(p) for name, p in task.named_parameters() if name not in held}


def test_free_batch_norm_moves_where_frozen_does_not() -> None:
    task = make_task(freeze="3").train()
    modes = {name: module.training for name, module in task.backbone.named_modules() if isinstance(module, _BatchNorm)}
    assert {name for name, training in modes.items() if training} == {
        name for name in modes if "layer3" in name or "layer4" in name
    }
    task.eval()
    assert not any(module.training for module in task.modules())


def test_nothing_is_frozen_without_being_asked() -> None:
    task = make_task()
    before = copy_state(task)
    make_trainer(1).fit(task, loader(make_batches()))
    assert changed(before, task.state_dict()) == set(before) - {"normalise.mean", "normalise.std"}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_unfreezing_at_an_epoch(optimizer: str) -> None:
    options = {"name": optimizer, "lr": 1e-2, "weight_decay": 0.01, "momentum": 0.9}
    task = make_task(freeze="all", unfreeze_epoch=2, optimizer=options)
    before, snapshots = copy_state(task), Snapshots()
    make_trainer(4, snapshots).fit(task, loader(make_batches()), loader(make_batches()))
    backbone = {name for name in before if name.startswith("backbone.")}
    first, second, third, fourth = snapshots.states
    assert not changed(before, second) & backbone
    assert changed(first, second) == {"head.1.weight", "head.1.bias"}
    assert changed(second, third) == backbone | {"head.1.weight", "head.1.bias"}
    assert changed(third, fourth) == backbone | {"head.1.weight", "head.1.bias"}


@pytest.mark.parametrize("stop", [1, 3])
def test_resuming_before_or_after_unfreezing_gives_the_same_weights(stop: int, tmp_path: Path) -> None:
    def run(epochs: int, resume: Path | None = None) -> tuple[ClassificationTask, pl.Trainer]:
        task, trainer = make_task(freeze="all", unfreeze_epoch=2, dropout=0.5), make_trainer(epochs)
        trainer.fit(task, loader(make_batches()), loader(make_batches()), ckpt_path=resume, weights_only=True)
        return task, trainer

    whole, _ = run(4)
    _, interrupted = run(stop)
    interrupted.save_checkpoint(tmp_path / "last.ckpt")
    torch.manual_seed(99)
    resumed, _ = run(4, tmp_path / "last.ckpt")
    assert not changed(whole.state_dict(), resumed.state_dict())


@pytest.mark.parametrize("name", ["cross_entropy", "focal"])
def test_four_images_are_learned_by_heart(name: str) -> None:
    task = make_task(backbone="test_efficientnet", loss={"name": name, "label_smoothing": 0.0, "gamma": 2.0})
    batches = make_batches(count=1)
    first = task.class_loss(task(batches[0]["image"]), batches[0]["label"], None).item()
    record = EpochRecord(None, "val/loss")
    make_trainer(40, record).fit(task, loader(batches))
    losses = record.table()["train/loss"]
    assert losses.iloc[0] == pytest.approx(first, rel=1e-4)
    assert first > {"cross_entropy": 1.0, "focal": 0.5}[name]
    assert losses.iloc[-5:].max() < 0.02
    with torch.no_grad():
        assert task.train()(batches[0]["image"]).argmax(1).tolist() == [0, 1, 2, 3]


def test_a_step_draws_from_seed_epoch_and_batch_alone() -> None:
    def draw(task: ClassificationTask, batch: Batch) -> Tensor:
        task.on_train_batch_start(batch, 0)
        return task.head[0](torch.ones(1, 500))

    task, (batch, other) = make_task(dropout=0.5), make_batches()
    first = draw(task, batch)
    torch.rand(7)
    assert torch.equal(draw(task, batch), first)
    assert not torch.equal(draw(task, other), first)
    assert not torch.equal(draw(task, {**batch, "draw": (1, 0)}), first)
    assert not torch.equal(draw(make_task(dropout=0.5, seed=1), batch), first)


def test_evaluation_gives_every_image_in_the_order_of_the_index() -> None:
    weights = [1.0, 2.0, 3.0, 4.0]
    task, batches = make_task(class_weights=weights, dropout=0.5), make_batches(count=3)
    image, label = (torch.cat([batch[name] for batch in batches]) for name in ("image", "label"))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    shuffled = [
        {"image": image[rows], "label": label[rows], "index": rows + 100, "draw": (0, number)}
        for number, rows in enumerate(order.split(5))  # the last batch is smaller
    ]
    (logged,) = make_trainer(1).validate(task, loader(shuffled), verbose=False)
    with torch.no_grad():
        logits = task.eval()(image)
    found = task.predictions
    assert found is not None
    assert found.index.tolist() == list(range(100, 112))
    assert found.label.tolist() == label.tolist()
    np.testing.assert_allclose(found.logits, logits.numpy(), atol=1e-5)
    assert found.probability.dtype == np.float64
    np.testing.assert_allclose(found.probability, F.softmax(logits, 1).numpy(), atol=1e-6)
    expected = F.cross_entropy(logits, label, weight=torch.tensor(weights))
    assert logged["val/loss"] == pytest.approx(float(expected), rel=1e-5)
    assert found.loss == pytest.approx(float(expected), rel=1e-5)
    assert logged["val/accuracy"] == pytest.approx(accuracy_score(label, logits.argmax(1)))
    (logged,) = make_trainer(1).test(task, loader(shuffled), verbose=False)
    assert logged["test/loss"] == pytest.approx(float(expected), rel=1e-5)


def test_class_weights_act_in_training_and_are_no_part_of_a_checkpoint() -> None:
    weights = [1.0, 2.0, 3.0, 4.0]
    task, (batch,) = make_task(class_weights=weights), make_batches(count=1)
    logits = make_task().train()(batch["image"])
    expected = F.cross_entropy(logits, batch["label"], weight=torch.tensor(weights))
    record = EpochRecord(None, "val/loss")
    make_trainer(1, record).fit(task, loader([batch]))
    assert record.rows[0]["train/loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert set(task.state_dict()) == set(make_task().state_dict())


VARIANTS: list[dict[str, Any]] = [
    {},
    {"backbone": "test_efficientnet", "dropout": 0.3, "head_hidden": 5, "channels_last": False},
    {"backbone": "test_vit", "class_weights": [1.0, 2.0, 0.5, 0.5]},
    {"classes": ["benign", "malignant"], "head": "sigmoid", "freeze": "all", "unfreeze_epoch": 1},
    {"freeze": "2", "loss": {"name": "focal", "label_smoothing": 0.0, "gamma": 1.0}},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: ",".join(variant) or "plain")
def test_a_checkpoint_holds_primitives_and_gives_the_model_back(variant: dict[str, Any], tmp_path: Path) -> None:
    task = make_task(**variant)
    assert json.loads(json.dumps(dict(task.hparams))) == dict(task.hparams)
    trainer = make_trainer(1)
    trainer.fit(task, loader(make_batches(classes=len(task.classes))))
    path = tmp_path / "best.ckpt"
    trainer.save_checkpoint(path)
    content = torch.load(path, weights_only=True)
    assert content["hyper_parameters"] == dict(task.hparams)
    torch.manual_seed(77)
    loaded = load_task(path)
    assert not loaded.training
    assert dict(loaded.hparams) == dict(task.hparams)
    image = make_batches()[0]["image"]
    with torch.no_grad():
        assert torch.equal(loaded(image), task.eval()(image))


def test_views_are_the_eight_symmetries_of_the_square() -> None:
    image = torch.arange(9.0).reshape(1, 1, 3, 3)
    seen = {turn(image, view).numpy().tobytes() for view in VIEWS["d4"]}
    expected = {
        np.rot90(flipped, k, (2, 3)).tobytes()
        for flipped in (image.numpy(), image.numpy()[..., ::-1])
        for k in range(4)
    }
    assert seen == expected
    assert len(seen) == 8
    assert [turn(image, view).numpy().tolist() for view in VIEWS["none"]] == [image.numpy().tolist()]
    wide = torch.rand(2, 1, 3, 5)
    assert all(torch.equal(turn_back(turn(wide, view), view), wide) for view in VIEWS["d4"])


@pytest.mark.parametrize(("tta", "count"), [("none", 1), ("flips", 4), ("d4", 8)])
def test_views_are_averaged_after_fit_and_not_in_it(tta: str, count: int) -> None:
    task, (batch,) = make_task(tta=tta), make_batches(count=1)
    trainer = make_trainer(1)
    trainer.fit(task, loader([batch]), loader([batch]))
    assert task.predictions is not None
    task.eval()
    with torch.no_grad():
        plain = task(batch["image"]).numpy()
        x = batch["image"]
        every = [x, x.flip(3), x.flip(2), x.rot90(2, (2, 3)), x.rot90(1, (2, 3)), x.rot90(3, (2, 3)),
                 x.transpose(2, 3), x.transpose(2, 3).rot90(2, (2, 3))]  # fmt: skip
        averaged = np.mean([task(view).numpy() for view in every[:count]], axis=0)
    assert task.predictions.logits == pytest.approx(plain, abs=1e-5)
    trainer.test(task, loader([batch]), verbose=False)
    assert task.predictions.logits == pytest.approx(averaged, abs=1e-5)
    assert (count > 1) == (not np.allclose(averaged, plain, atol=1e-5))


def test_checkpoints_that_are_none(tmp_path: Path) -> None:
    task, path = make_task(), tmp_path / "a.ckpt"
    with pytest.raises(WeightsError, match=r"a\.ckpt"):
        load_task(path)
    torch.save(task.state_dict(), path)
    with pytest.raises(WeightsError, match="no checkpoint of a run"):
        load_task(path)
    hyper_parameters = {**task.hparams, "classes": ["a", "b"]}
    torch.save({"state_dict": task.state_dict(), "hyper_parameters": hyper_parameters}, path)
    with pytest.raises(WeightsError, match="do not fit its own hyper-parameters"):
        load_task(path)


def test_a_checkpoint_of_another_programs_module(tmp_path: Path) -> None:
    path = tmp_path / "other.ckpt"
    torch.save({"state_dict": {"w": torch.zeros(1)}, "hyper_parameters": {"width": 3}}, path)
    with pytest.raises(WeightsError, match=r"other\.ckpt"):
        load_task(path)


def nan_in(batches: list[Batch], number: int) -> list[Batch]:
    batches[number]["image"][0, 0, 0, 0] = math.nan
    return batches


@pytest.mark.parametrize(("bad", "log_every"), [(0, 1), (3, 1), (3, 5), (7, 5), (8, 50)])
def test_a_loss_that_is_not_a_number_is_reported_with_its_step(bad: int, log_every: int) -> None:
    trainer = make_trainer(2, EpochRecord(None, "val/loss"), log_every_n_steps=log_every)
    with pytest.raises(RunError, match=rf"at optimiser step {bad} \(epoch 1\)\. Lower --model\.optimizer\.lr"):
        trainer.fit(make_task(), loader(nan_in(make_batches(count=9), bad)))
    assert trainer.global_step - bad <= log_every


def test_its_step_is_reported_also_where_validation_comes_first() -> None:
    trainer = make_trainer(2, EpochRecord(None, "val/loss"), log_every_n_steps=50)
    with pytest.raises(RunError, match="at optimiser step 3 "):
        trainer.fit(make_task(), loader(nan_in(make_batches(count=9), 3)), loader(make_batches()))


def test_a_model_that_gives_nan_on_good_images_is_refused() -> None:
    task = make_task()
    with torch.no_grad():
        task.head[-1].bias[2] = math.nan
    with pytest.raises(RunError, match="NaN on the test images"):
        make_trainer(1).test(task, loader(make_batches()), verbose=False)


@pytest.mark.parametrize("name", list(TASKS))
def test_each_task_predicts_what_its_kind_says(name: str) -> None:
    data = SimpleNamespace(classes=CLASSES, rows=lambda role: pd.DataFrame({"label": [0, 1, 2, 3]}))
    model = ModelConfig(backbone="test_resnet" if name == "classification" else "tu-test_resnet", architecture="unet")
    task, _ = build_task(Experiment(task=name, data=DataConfig(size=32), model=model), data, from_checkpoint=True)
    kind = TASKS[name]
    assert task.kind == kind
    assert list(task.classes) == (CLASSES if kind.has_classes else [])
    with torch.no_grad():
        masks, logits = task.eval().predict(torch.rand(2, 3, 32, 32))
    assert (None if masks is None else masks.shape) == ((2, 1, 32, 32) if kind.has_masks else None)
    assert (None if logits is None else logits.shape) == ((2, 4) if kind.has_classes else None)
