"""Description of a run for its report: data, split, leaks, training, configuration, environment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from skincancer.data.catalog import SYNTHETIC_WARNING, Dataset
from skincancer.data.groups import describe_unknown_lesions, group_noun, known_lesions
from skincancer.data.mask_sources import describe_crops
from skincancer.data.prepare import ROLES
from skincancer.data.splits import VALIDATION_PERCENT, parse_split
from skincancer.imaging.cleaning.steps import STEPS
from skincancer.imaging.features.families import WORKING_SIDE
from skincancer.reports.thumbnails import embed_figure
from skincancer.runs import artifacts
from skincancer.runs.finished import FinishedRun
from skincancer.schema.data import DataConfig
from skincancer.schema.dotted_keys import flatten
from skincancer.schema.experiment import Experiment
from skincancer.schema.model import DEEP, OF_CLASSIFIERS
from skincancer.system.yaml_files import dump_yaml
from skincancer.visualization.html import Cell, Code, Part, Section, Table, Text

BALANCE_AT_ONCE = {
    "none": "every image",
    "undersample": "from every class as many images as the rarest class has, sampled once",
    "oversample": "images of rarer classes repeatedly, until all classes have as many as the largest",
    "class_weights": "every image, with larger weights for rarer classes",
}
BALANCE = {
    "none": "every image once per epoch",
    "undersample": "each epoch samples from every class as many images as the rarest class has",
    "oversample": "each epoch repeats images of rarer classes, until all classes have as many as the largest",
    "class_weights": "every image once per epoch; the loss has larger weights for rarer classes",
}
VERSIONS = (
    "torch", "torchvision", "pytorch-lightning", "timm", "segmentation-models-pytorch", "kornia", "mlflow", "numpy",
)  # fmt: skip
WORK = {"optimizer_steps": "optimiser steps", "images_seen": "images seen", "images_per_second": "images per second"}


def count(table: pd.DataFrame) -> tuple[int, int]:
    """Return the numbers of images and lesions in a table."""
    return len(table), int(table["lesion_id"].nunique())


def warnings(run: FinishedRun) -> list[str]:
    """Return the warnings at the top of the report."""
    texts = []
    if run.dataset.synthetic or run.tags.get("synthetic") == "true":
        texts.append(SYNTHETIC_WARNING)
    if run.params.get("weights") == "random":
        texts.append("RANDOM FIRST WEIGHTS: this is not transfer learning.")
    leaking = int(run.params.get("segmenter_saw_test_images", 0))
    if leaking:
        texts.append(
            f"THE SEGMENTER WAS TRAINED ON TEST IMAGES: {leaking:,} test images show lesions of its training or validation set. "
            "Their masks are better than those of new images."
        )
    shared = shared_lesions(run.split)
    if shared:
        texts.append(
            f"LEAKING LESIONS: {shared:,} lesions have images in more than one of training, validation and test set. "
            "The test set is easier than new lesions."
        )
    expected, tested = int((run.split["role"] == "test").sum()), len(run.predictions("test"))
    if tested != expected:
        texts.append(f"PART OF THE TEST: {tested:,} of {expected:,} test images were evaluated.")
    return texts


def shared_lesions(split: pd.DataFrame) -> int:
    """Count the lesions of `split.csv` that have images in more than one role."""
    return int((split.groupby("lesion_id")["role"].nunique() > 1).sum())


def split_in_words(split: str, seed: int) -> str:
    """Describe a value of `data.split`."""
    rule = parse_split(split)
    if rule.kind == "official":
        return (
            "Split: the publisher's own subsets. Without a labelled validation set, it consists of a tenth of the lesions of the "
            "training set."
        )
    ranked = f"Lesions are ranked within each diagnosis by a hash of their id and the split seed, {seed}"
    if rule.kind == "fold":
        return (
            f"Split: fold {rule.fold} of {rule.folds} (counted from 0). {ranked}. Every {rule.folds}th lesion is in the test "
            "set, and a tenth of the others in the validation set. All images with one lesion id are in one subset."
        )
    train = 100 - VALIDATION_PERCENT - rule.test
    return (
        f"Split {split}: {rule.test} % of the lesions are in the test set, {VALIDATION_PERCENT} % in the validation set, {train} % in "
        f"the training set. {ranked}. All images with one lesion id are in one subset, and larger test sets contain the smaller ones."
    )


def data_section(run: FinishedRun) -> Section:
    """Return the section on the data of a run."""
    settings = run.config["data"]
    label = run.split["label"].astype(int)
    groups = {name: label == number for number, name in enumerate(run.classes)}
    if run.classes and (label < 0).any():
        groups["(no label)"] = label < 0
    groups["all"] = run.split["role"] != ""
    counts: list[list[Cell]] = [
        [name, *(number for role in ROLES for number in count(run.split[rows & (run.split["role"] == role)]))]
        for name, rows in groups.items()
    ]
    columns = ["class", *(f"{role} {what}" for role in ROLES for what in ("images", group_noun(run.split)))]
    size = settings["size"]
    inputs = f"the input of the network has {size} × {size} px (resize: {settings['resize']})"
    if "masks" in run.params and not run.is_network:
        inputs = f"features are measured on whole images of {WORKING_SIDE} px (the longest side)"
    parts: list[Part] = [
        Text(f"{run.dataset.title}; {inputs}.{_cleaned(run)}{_crops(run)}"),
        Table("Images and lesions of each role", columns, counts),
        Text(
            _sentences(
                split_in_words(settings["split"], int(settings["split_seed"])), describe_unknown_lesions(run.split)
            )
        ),
    ]
    balance = BALANCE if run.is_network else BALANCE_AT_ONCE
    if run.classes:
        parts.append(
            Text(f"Balance of the training set: {balance.get(settings['balance'], '')} ({settings['balance']}).")
        )
    parts.append(Table("Leaks", ["checked", "found"], _leaks(run)))
    masks = {role: run.params[f"{role}_masks"] for role in ROLES if f"{role}_masks" in run.params}
    if masks:
        parts.append(
            Text("Images with a mask: " + ", ".join(f"{role} {number}" for role, number in masks.items()) + ".")
        )
    dropped = run.table(artifacts.DROPPED_FILE, "image_id", "reason")
    if dropped is not None and len(dropped):
        reasons = dropped["reason"].str.slice(0, 120).value_counts()
        reason_rows: list[list[Cell]] = [[str(reason), int(number)] for reason, number in reasons.head(10).items()]
        more = f"and {len(reasons) - 10} other reasons: {artifacts.DROPPED_FILE}" if len(reasons) > 10 else ""
        parts.append(Table("Images that are left out", ["reason", "images"], reason_rows, more))
    return Section("Data", parts)


def _sentences(*texts: str) -> str:
    """Join texts to sentences, and leave out empty ones."""
    return " ".join(f"{text[0].upper()}{text[1:].removesuffix('.')}." for text in texts if text)


def _cleaned(run: FinishedRun) -> str:
    steps = run.config["data"].get("clean", [])
    if not steps:
        return ""
    done = "; ".join(f"{name}: {STEPS[name].description} ({STEPS[name].source})" for name in steps if name in STEPS)
    return f" Images are cleaned first: {done}."


def _crops(run: FinishedRun) -> str:
    crops = run.table(artifacts.CROPS_FILE, "image_id", "masks")
    if crops is None:
        return ""
    crops = crops[crops["masks"] != ""].assign(error="")
    return f" Images are cropped to the lesion: {describe_crops(crops, DataConfig(**run.config['data']))}."


def _leaks(run: FinishedRun) -> list[list[Cell]]:
    settings = run.config["data"]
    known = known_lesions(run.split)
    shared = f"{shared_lesions(run.split):,} of {run.split['lesion_id'][known].nunique():,}"
    if not known.any():
        shared = "unknown: every image has its own lesion, as in data sets without lesion ids"
    elif not known.all():
        shared += f"; unknown for {(~known).sum():,} images without a lesion id"
    rows: list[list[Cell]] = [
        [f"{group_noun(run.split)} with images in more than one role ({artifacts.SPLIT_FILE})", shared]
    ]
    if settings["split"] == "official":
        lesions_between = run.params.get("leaking_lesions", "")
        rows.append(
            ["lesions in two of the publisher's subsets", f"{lesions_between} (data.leaks: {settings['leaks']})"]
        )
    if "shared_lesion_ids" in run.params:
        text = f"{run.params['shared_lesion_ids']}; a lesion is a lesion id of one patient"
        rows.append(["lesion ids that belong to several patients", text])
    if settings["groups"]:
        rows.append(["lesions with duplicate images", f"merged by {Path(settings['groups']).name}"])
    if "segmenter_saw_test_images" in run.params:
        rows.append(
            ["test images of lesions that the segmenter was trained on", run.params["segmenter_saw_test_images"]]
        )
    audit = run.folder / artifacts.AUDIT_FILE
    verdict = audit.read_text(encoding="utf-8").strip() if audit.is_file() else "no audit (use prepare --audit)"
    rows.append(["copies under other lesion ids, by the last audit", verdict])
    return rows


def training_section(run: FinishedRun) -> Section:
    """Return the section on the training."""
    if not run.is_network:
        return _fitting_section(run)
    model, optimizer = run.config["model"], run.config["model"]["optimizer"]
    epochs = run.table(artifacts.EPOCHS_FILE)
    best = f"; the best is epoch {run.metrics['best_epoch']:.0f}" if "best_epoch" in run.metrics else ""
    network = model["backbone"]
    rows: list[list[Cell]] = [
        ["network", f"{model['architecture']}, encoder {network}" if model["architecture"] else network],
        ["first weights", run.params.get("weights")], ["frozen", str(model["freeze"])], ["loss", run.params.get("loss")],
        ["optimiser", f"{optimizer['name']}, learning rate {optimizer['lr']:g}, {model['schedule']['name']} schedule"],
        ["batch size", str(run.config["data"]["batch_size"])], ["augmentation", run.config["augment"]["policy"]],
        ["epochs", f"{0 if epochs is None else len(epochs)}{best} by {run.config['training']['monitor']}"],
        ["test-time augmentation", model["tta"]],
    ]  # fmt: skip
    rows += [[text, f"{run.metrics[name]:,.0f}"] for name, text in WORK.items() if name in run.metrics]
    if "threshold" in run.metrics:
        origin = ", selected on the validation set" if model["mask"]["threshold"] == "auto" else ""
        rows.append(["threshold of masks", f"{run.metrics['threshold']:.2f}{origin}"])
    caption = f"Loss and validation metrics of each epoch. All numbers: {artifacts.EPOCHS_FILE}."
    curves = embed_figure(run.folder, "learning_curves", caption)
    return Section("Training", [Table("", ["what", "value"], rows), *curves])


def _fitting_section(run: FinishedRun) -> Section:
    """Return the section on the fit of a classical classifier."""
    model = run.config["model"]
    keys = [key for key, owner in OF_CLASSIFIERS.items() if owner == model["classifier"]]
    rows: list[list[Cell]] = [["classifier", model["classifier"].replace("_", " ")]]
    rows += [[key, str(model["classical"][key])] for key in keys]
    rows.append(["features", run.params.get("features")])
    if run.params.get("weights", "none") != "none":
        rows.append(["weights of the frozen backbone", run.params["weights"]])
    sources = {
        "truth": "true masks", "otsu": "masks by Otsu's threshold", "run": "masks of a segmenter", "empty": "empty masks",
    }  # fmt: skip
    measured = [
        f"{int(run.params[f'masks_{name}']):,} images in {text}"
        for name, text in sources.items()
        if f"masks_{name}" in run.params
    ]
    if measured:
        rows.append(["measured", f"{', '.join(measured)} (data.masks: {run.params.get('masks')})"])
    if DEEP in model["classical"]["features"]:
        rows.append(["scale", "centred on the training images, otherwise unchanged"])
    else:
        rows.append(
            ["missing values", "replaced by medians of the training images, which also standardise all features"]
        )
    return Section("Training", [Table("", ["what", "value"], rows)])


def configuration_section(run: FinishedRun) -> Section:
    """Return the section on the configuration: differences from the defaults, then all keys."""
    defaults = flatten(Experiment().to_dict())
    rows: list[list[Cell]] = [
        [key, _text(value), _text(defaults.get(key))]
        for key, value in flatten(run.config).items()
        if value != defaults.get(key) and key not in ("name", "description")
    ]
    complete = Code(
        f"{artifacts.CONFIG_FILE}, complete: --experiment {artifacts.CONFIG_FILE} repeats the run",
        dump_yaml(run.config),
    )
    return Section(
        "Configuration", [Table("Differences from the defaults", ["key", "value", "default"], rows), complete]
    )


def _text(value: Any) -> str:
    if isinstance(value, (list, dict, bool)):
        return json.dumps(value, ensure_ascii=False)
    return "" if value is None else str(value)


def environment_section(run: FinishedRun) -> Section:
    """Return the section on code, device, versions and digests."""
    changes = {"true": ", WITH CHANGES THAT ARE NOT COMMITTED", "false": ", without changes"}
    commit = run.tags.get("git_commit") or "none: not run from a git checkout"
    rows: list[list[Cell]] = [
        ["run", run.id], ["git commit", commit + changes.get(run.tags.get("git_dirty", ""), "")], ["device", run.tags.get("device")],
    ]  # fmt: skip
    parts: list[Part] = []
    path = run.folder / artifacts.ENVIRONMENT_FILE
    if path.is_file():
        text = path.read_text(encoding="utf-8")
        first, *packages = text.splitlines()
        versions = dict(line.split("==", 1) for line in packages if "==" in line)
        rows.append(["Python", first.removeprefix("# Python ")])
        rows += [[name, versions[name]] for name in VERSIONS if name in versions]
        parts.append(Code(f"{artifacts.ENVIRONMENT_FILE}: every package", text))
    rows += [[name.replace("_", " "), digest] for name, digest in run.tags.items() if name.endswith("_hash") and digest]
    return Section("Environment", [Table("", ["what", "value"], rows), *parts])


def licence_section(entry: Dataset) -> Section:
    """Return the section on the licence of the data."""
    licence = entry.licence or "unknown; ask the provider of the images"
    cite = [Text(f"Cite: {entry.citation}.")] if entry.citation else []
    return Section("Data licence and citation", [Text(f"Licence of the images: {licence}."), *cite])
