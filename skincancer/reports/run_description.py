"""The part of a report on what was done: data, split, leaks, training, configuration, environment, licence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from skincancer.data.catalog import SYNTHETIC_WARNING, Dataset
from skincancer.data.mask_sources import describe_crops
from skincancer.data.prepare import ROLES
from skincancer.data.splits import VALIDATION_PERCENT, parse_split
from skincancer.imaging.cleaning.steps import STEPS
from skincancer.imaging.features.families import WORKING_SIDE
from skincancer.reports.thumbnails import picture
from skincancer.runs import artifacts
from skincancer.runs.finished import FinishedRun
from skincancer.schema import DEEP, OF_CLASSIFIERS, DataConfig, Experiment, flatten
from skincancer.system.yaml_files import dump_yaml
from skincancer.visualization.html import Cell, Code, Part, Section, Table, Text

BALANCE_AT_ONCE = {
    "none": "every image",
    "undersample": "of every class as many images as the rarest has, drawn once",
    "oversample": "images of the rarer classes repeatedly, until every class has as many as the largest",
    "class_weights": "every image; those of rarer classes count more",
}
BALANCE = {
    "none": "every image once an epoch",
    "undersample": "each epoch draws of every class as many images as the rarest has",
    "oversample": "each epoch shows images of the rarer classes repeatedly, until every class has as many as the largest",
    "class_weights": "every image once an epoch; the loss counts rarer classes more",
}
VERSIONS = (
    "torch", "torchvision", "pytorch-lightning", "timm", "segmentation-models-pytorch", "kornia", "mlflow", "numpy",
)  # fmt: skip
WORK = {"optimizer_steps": "optimiser steps", "images_seen": "images seen", "images_per_second": "images per second"}


def count(table: pd.DataFrame) -> tuple[int, int]:
    """Return the numbers of images and lesions in a table."""
    return len(table), int(table["lesion_id"].nunique())


def warnings(run: FinishedRun) -> list[str]:
    """Return what nobody may overlook."""
    found = []
    if run.dataset.synthetic or run.tags.get("synthetic") == "true":
        found.append(SYNTHETIC_WARNING)
    if run.params.get("weights") == "random":
        found.append("RANDOM FIRST WEIGHTS: this is not transfer learning.")
    saw = int(run.params.get("segmenter_saw_test_images", 0))
    if saw:
        found.append(
            f"THE SEGMENTER HAS SEEN TEST IMAGES: {saw:,} test images are of lesions that the segmenter behind the crops "
            "was trained or chosen on. Their crops are better than those of new images."
        )
    shared = shared_lesions(run.split)
    if shared:
        found.append(
            f"LEAKING LESIONS: {shared:,} lesions have images in more than one of train, validation and test. The test is "
            "easier than new lesions are."
        )
    expected, tested = int((run.split["role"] == "test").sum()), len(run.predictions("test"))
    if tested != expected:
        found.append(f"PART OF THE TEST: {tested:,} of {expected:,} test images were evaluated.")
    return found


def shared_lesions(split: pd.DataFrame) -> int:
    """Count the lesions of `split.csv` that have images in more than one role."""
    return int((split.groupby("lesion_id")["role"].nunique() > 1).sum())


def split_in_words(split: str, seed: int) -> str:
    """Say what a `data.split` does."""
    rule = parse_split(split)
    if rule.kind == "official":
        return (
            "Split: the publisher's own parts; where there is no labelled validation part, a tenth of the lesions of their "
            "training part validates."
        )
    ranked = f"Lesions are ranked within each diagnosis by a hash of their id and the split seed, {seed}"
    if rule.kind == "fold":
        return (
            f"Split: fold {rule.fold} of {rule.folds} (counted from 0). {ranked}; every {rule.folds}th is in the test, and a "
            "tenth of the rest validates. All images of a lesion are on one side."
        )
    train = 100 - VALIDATION_PERCENT - rule.test
    return (
        f"Split {split}: {rule.test} % of the lesions are the test, {VALIDATION_PERCENT} % validate, {train} % train. {ranked}. "
        "All images of a lesion are on one side, and larger test parts hold the smaller ones."
    )


def data_section(run: FinishedRun) -> Section:
    """What was trained on what."""
    settings = run.config["data"]
    label = run.split["label"].astype(int)
    groups = {name: label == number for number, name in enumerate(run.classes)}
    if run.classes and (label < 0).any():
        groups["(no label)"] = label < 0
    groups["all"] = run.split["role"] != ""
    counts: list[list[Cell]] = [
        [name, *(number for role in ROLES for number in count(run.split[chosen & (run.split["role"] == role)]))]
        for name, chosen in groups.items()
    ]
    columns = ["class", *(f"{role} {what}" for role in ROLES for what in ("images", "lesions"))]
    size = settings["size"]
    seen = f"the network sees {size} × {size} px (resize: {settings['resize']})"
    if "masks" in run.params and not run.is_network:
        seen = f"features are measured on whole images of {WORKING_SIDE} px (the longest side)"
    parts: list[Part] = [
        Text(f"{run.dataset.title}; {seen}.{_cleaned(run)}{_crops(run)}"),
        Table("Images and lesions of each role", columns, counts),
        Text(split_in_words(settings["split"], int(settings["split_seed"]))),
    ]
    balance = BALANCE if run.is_network else BALANCE_AT_ONCE
    if run.classes:
        parts.append(
            Text(f"Balance of the training part: {balance.get(settings['balance'], '')} ({settings['balance']}).")
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
        rows: list[list[Cell]] = [[str(reason), int(number)] for reason, number in reasons.head(10).items()]
        more = f"and {len(reasons) - 10} other reasons: {artifacts.DROPPED_FILE}" if len(reasons) > 10 else ""
        parts.append(Table("Images that take no part", ["reason", "images"], rows, more))
    return Section("Data", parts)


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
    images, lesions = count(run.split)
    shared = f"{shared_lesions(run.split):,} of {lesions:,}"
    if images == lesions:
        shared = (
            "cannot be known: every image has a lesion of its own here, as where the data set does not name lesions"
        )
    rows: list[list[Cell]] = [[f"lesions with images in more than one role ({artifacts.SPLIT_FILE})", shared]]
    if settings["split"] == "official":
        lesions_between = run.params.get("leaking_lesions", "")
        rows.append(["lesions in two of the publisher's parts", f"{lesions_between} (data.leaks: {settings['leaks']})"])
    if settings["groups"]:
        rows.append(["lesions found to be the same", f"merged by {Path(settings['groups']).name}"])
    if "segmenter_saw_test_images" in run.params:
        rows.append(["test images that the segmenter behind the crops knew", run.params["segmenter_saw_test_images"]])
    audit = run.folder / artifacts.AUDIT_FILE
    told = audit.read_text(encoding="utf-8").strip() if audit.is_file() else "no audit of these files (prepare --audit)"
    rows.append(["copies under other lesion ids, by the last audit", told])
    return rows


def training_section(run: FinishedRun) -> Section:
    """What was trained, how, and for how long."""
    if not run.is_network:
        return _fitting_section(run)
    model, optimizer = run.config["model"], run.config["model"]["optimizer"]
    epochs = run.table(artifacts.EPOCHS_FILE)
    best = f"; the best is epoch {run.metrics['best_epoch']:.0f}" if "best_epoch" in run.metrics else ""
    network = model["backbone"]
    rows: list[list[Cell]] = [
        ["network", f"{model['architecture']}, encoder {network}" if model["architecture"] else network],
        ["first weights", run.params.get("weights")],
        ["frozen", str(model["freeze"])],
        ["loss", run.params.get("loss")],
        ["optimiser", f"{optimizer['name']}, learning rate {optimizer['lr']:g}, {model['schedule']['name']} schedule"],
        ["batch size", str(run.config["data"]["batch_size"])],
        ["augmentation", run.config["augment"]["policy"]],
        ["epochs", f"{0 if epochs is None else len(epochs)}{best} by {run.config['training']['monitor']}"],
        ["test-time augmentation", model["tta"]],
    ]
    rows += [[text, f"{run.metrics[name]:,.0f}"] for name, text in WORK.items() if name in run.metrics]
    if "threshold" in run.metrics:
        chosen = ", chosen on the validation part" if model["mask"]["threshold"] == "auto" else ""
        rows.append(["threshold of masks", f"{run.metrics['threshold']:.2f}{chosen}"])
    curves = picture(
        run.folder,
        "learning_curves",
        f"Loss and validation metrics of each epoch. All numbers: {artifacts.EPOCHS_FILE}.",
    )
    return Section("Training", [Table("", ["what", "value"], rows), *curves])


def _fitting_section(run: FinishedRun) -> Section:
    """What was fitted on which features, and whose masks these were measured in."""
    model = run.config["model"]
    own = [key for key, owner in OF_CLASSIFIERS.items() if owner == model["classifier"]]
    rows: list[list[Cell]] = [["classifier", model["classifier"].replace("_", " ")]]
    rows += [[key, str(model["classical"][key])] for key in own]
    rows.append(["features", run.params.get("features")])
    if run.params.get("weights", "none") != "none":
        rows.append(["weights of the backbone, which is frozen", run.params["weights"]])
    whose = {
        "truth": "true masks",
        "otsu": "masks by Otsu's threshold",
        "run": "a segmenter's masks",
        "empty": "empty masks",
    }
    measured = [
        f"{int(run.params[f'masks_{name}']):,} images in {text}"
        for name, text in whose.items()
        if f"masks_{name}" in run.params
    ]
    if measured:
        rows.append(["measured", f"{', '.join(measured)} (data.masks: {run.params.get('masks')})"])
    if DEEP in model["classical"]["features"]:
        rows.append(["scale", "centred on the training images, else as the backbone gives them"])
    else:
        rows.append(["missing values", "medians of the training images; all features standardised by these"])
    return Section("Training", [Table("", ["what", "value"], rows)])


def configuration_section(run: FinishedRun) -> Section:
    """What differs from the defaults, then everything."""
    defaults = flatten(Experiment().to_dict())
    rows: list[list[Cell]] = [
        [key, _shown(value), _shown(defaults.get(key))]
        for key, value in flatten(run.config).items()
        if value != defaults.get(key) and key not in ("name", "description")
    ]
    complete = Code(
        f"{artifacts.CONFIG_FILE}, complete: --experiment {artifacts.CONFIG_FILE} repeats the run",
        dump_yaml(run.config),
    )
    return Section(
        "Configuration", [Table("What differs from the defaults", ["key", "value", "default"], rows), complete]
    )


def _shown(value: Any) -> str:
    if isinstance(value, (list, dict, bool)):
        return json.dumps(value, ensure_ascii=False)
    return "" if value is None else str(value)


def environment_section(run: FinishedRun) -> Section:
    """Code, device, versions, digests."""
    changes = {"true": ", WITH CHANGES THAT ARE NOT COMMITTED", "false": ", without changes"}
    commit = run.tags.get("git_commit") or "none: not run from a git checkout"
    rows: list[list[Cell]] = [
        ["run", run.id],
        ["git commit", commit + changes.get(run.tags.get("git_dirty", ""), "")],
        ["device", run.tags.get("device")],
    ]
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
    """Of the data."""
    licence = entry.licence or "not known to this software; ask whoever gave you the images"
    cite = [Text(f"Cite: {entry.citation}.")] if entry.citation else []
    return Section("Data licence and citation", [Text(f"Licence of the images: {licence}."), *cite])
