"""Prepare, download or audit a data set: `skincancer prepare NAME`."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skincancer.audit.command import audit, check_audit_flags, check_outputs, other_dataset
from skincancer.config.cli import build_parser, parse_flags
from skincancer.config.resolve import absolute_run, resolve
from skincancer.config.validation import check_masks
from skincancer.data.catalog import DATASETS
from skincancer.data.catalog import dataset as catalog_entry
from skincancer.errors import ConfigError, NoDiagnoses, SplitError
from skincancer.imaging.cleaning.steps import STEPS
from skincancer.schema.data import segmenter_run
from skincancer.schema.experiment import Experiment
from skincancer.schema.model import FAMILIES
from skincancer.system.console import make_console, make_table, program, progress_bars, run_verb, warn
from skincancer.system.files import check_file
from skincancer.system.paths import data_folder

if TYPE_CHECKING:
    import pandas as pd
    from jsonargparse import ArgumentParser
    from rich.console import Console

    from skincancer.data.prepare import PreparedData

# Keys of `visualization.previews.SHEETS`, which imports more than a wrong flag needs.
SHEET_NAMES = ("augment", "crop", "clean", "structures")


def prepare(experiment: Experiment, console: Console | None = None) -> PreparedData:
    """Build the store of an experiment, and print its facts.

    Raises:
        ConfigError, DataError: as in `skincancer.data.prepare.prepare_data`.
    """
    from skincancer.data.groups import group_noun
    from skincancer.data.mask_sources import describe_crops
    from skincancer.data.prepare import ROLES, prepare_data
    from skincancer.inference.model import mask_source
    from skincancer.runs.store import RunStore

    console = console or make_console()
    masks = mask_source(experiment.data, RunStore(experiment.tracking.uri)) if experiment.data.crop else None
    split_error = ""
    with progress_bars(console) as bars:
        try:
            data = prepare_data(experiment.data, masks, bars, task=experiment.task)
        # Sheets and features need no split.
        except SplitError as error:
            data = prepare_data(experiment.data, masks, bars, task=experiment.task, whole=True)
            split_error = str(error)
    index, entry, store = data.index, data.entry, data.store
    readable = index[index["width"] > 0]
    sizes = Counter(zip(readable["width"], readable["height"], strict=True)).most_common()
    common = ", ".join(f"{width}×{height} ({count})" for (width, height), count in sizes[:4])
    size = (store.images.nbytes + (0 if store.masks is None else store.masks.nbytes)) / 1e6
    with_masks = "" if store.masks is None else ", with masks"
    facts: list[list[object]] = [
        ["folder", data.root],
        ["images", f"{len(index)}, of which {len(store.bad)} cannot be read"],
        ["lesions", data.lesions or "unknown: the data have no lesion ids"],
        *_count_patients(index),
        ["masks", int(index["mask"].notna().sum())],
        ["sizes (px)", common + (f" and {len(sizes) - 4} more" if len(sizes) > 4 else "")],
        ["store", f"{store.folder} ({size:.0f} MB at {experiment.data.size} px{with_masks})"],
        ["licence", entry.licence],
        ["citation", entry.citation],
    ]
    if experiment.data.clean:
        facts.append(["cleaned by", ", ".join(f"{name} ({STEPS[name].source})" for name in experiment.data.clean)])
    if data.left_out:
        facts.append(["left out", data.left_out.replace(" (dropped.csv)", "")])
    if experiment.data.crop:
        facts.append(["crops", describe_crops(store.table, experiment.data)])
    console.print(make_table(entry.title, ["", "found"], facts))
    roles = () if split_error else ROLES
    rows: list[list[object]] = [
        [diagnosis, len(group), group["lesion_id"].nunique(), *(int((group["role"] == role).sum()) for role in roles)]
        for diagnosis, group in index.groupby(index["diagnosis"].fillna("(no diagnosis)"))
    ]
    by_role = f", and their images by role at {experiment.data.split} (split seed {experiment.data.split_seed})"
    title = f"classes{'' if split_error else by_role}"
    console.print(make_table(title, ["diagnosis", "images", group_noun(index), *roles], rows))
    data.reading.report(console)
    if split_error:
        reason = split_error.removesuffix(".")
        warn(console, "no split", f"{reason}. No experiment can be fitted on these images as they are.")
    return data


def _count_patients(index: pd.DataFrame) -> list[list[object]]:
    known = index.loc[index["patient_id"] != "", "patient_id"]
    count = (
        f"{known.nunique()}, of {len(known)} of the {len(index)} images; a split treats the lesions of a patient as one"
    )
    return [["patients", count]] if len(known) else []


def download(experiment: Experiment, console: Console | None = None, accept: bool = False) -> None:
    """Download the missing files of an experiment's data set.

    Args:
        experiment: experiment with `data.dataset` and `data.root`.
        accept: the user agrees to the publisher's terms of use.

    Raises:
        ConfigError, DataError: as in `skincancer.data.download.publisher.download`.
    """
    from skincancer.data.download import publisher

    entry, console = catalog_entry(experiment.data.dataset), console or make_console()
    publisher.check_downloadable(entry)
    root = publisher.download_root(entry, experiment.data.root, data_folder())
    with progress_bars(console) as bars:
        publisher.download(
            entry, root, accept=accept, say=lambda line: console.print(line, markup=False), progress=bars
        )


def prepare_features(
    data: PreparedData, experiment: Experiment, masks: str = "auto", console: Console | None = None, out: Path | None = None
) -> Path:  # fmt: skip
    """Build the table of hand-crafted features, and print its path.

    Args:
        masks: mask source, as `data.masks`.
        out: CSV file for a copy of the table with diagnosis, lesion_id, part and role of each image.

    Returns:
        The CSV file of the cache, one row per image.

    Raises:
        ConfigError: the mask source is unknown.
        DataError, RunError: as in `open_features` and `mask_source`.
    """
    check_masks(masks)
    from skincancer.data.feature_table import DIGITS, open_features
    from skincancer.data.mask_sources import describe_masks
    from skincancer.data.prepare import list_bad
    from skincancer.imaging.features.families import WORKING_SIDE, feature_names
    from skincancer.inference.model import mask_source
    from skincancer.runs.store import RunStore

    console = console or make_console()
    settings = replace(experiment.data, masks=absolute_run(masks))
    with progress_bars(console) as bars:
        source = mask_source(settings, RunStore(experiment.tracking.uri))
        features = open_features(data.index, data.root, data.entry, source, settings.clean, bars)
    names = f"{len(feature_names())} of {', '.join(FAMILIES)}, at {WORKING_SIDE} px (longest side)"
    facts: list[list[object]] = [
        ["table", features.file],
        ["images", f"{len(features.table)}, of which {len(features.bad)} cannot be used"],
        ["features", names],
        ["masks", describe_masks(features.table, settings, "nothing measured")],
    ]
    console.print(make_table(f"hand-crafted features of {data.entry.title}", ["", "found"], facts))
    if len(features.bad):
        console.print(f"not measured:\n  {list_bad(features.bad)}", markup=False)
    if unlikely := features.describe_unlikely():
        warn(console, "unlikely masks", unlikely)
    if out is not None:
        columns = data.index[["image_id", "diagnosis", "lesion_id", "part", "role"]]
        columns.merge(features.table, on="image_id").to_csv(out, index=False, float_format=DIGITS)
        console.print(f"wrote {out}", markup=False)
    return features.file


def make_parser() -> ArgumentParser:
    """Return the parser of `prepare`."""
    prog = program("prepare")
    parser = build_parser(prog, f"Prepare, download or audit a data set: {prog} NAME [--data.size 224 …]")
    for flag, text in (
        ("--download", "download the data set from its publisher first"),
        ("--accept-licence", "accept the terms of use that --download prints"),
        ("--features", "also measure hand-crafted features, into a table"),
        ("--audit", "check for copies, leaks, missing metadata, bad masks and confounding"),
    ):
        parser.add_argument(flag, action="store_true", help=text)
    for flag, metavar, text in (
        (
            "--show",
            "|".join(SHEET_NAMES),
            "write a contact sheet of originals next to augmented or cleaned images, crops, or structures",
        ),
        ("--out", "PATH", "output of --show (a PNG), --features (a CSV, copy of the table) or --audit (a folder)"),
        ("--against", "OTHER", "with --audit: also search the images in the data set OTHER"),
        ("--against_root", "FOLDER", "with --against: the folder of OTHER (also --against.root)"),
        (
            "--write_groups",
            "FILE",
            "with --audit: write the copies, and the lesions known from OTHER, for --data.groups",
        ),
    ):
        parser.add_argument(flag, type=str, metavar=metavar, help=text)
    return parser


def _verb(argv: Sequence[str]) -> None:
    console = make_console()
    parser = make_parser()
    name = argv[0] if argv and not argv[0].startswith("-") else None
    argv = [re.sub(r"^--(write|against)[-.](groups|root)(?==|$)", r"--\1_\2", flag) for flag in argv]
    keys, flags = parse_flags(parser, argv[1:] if name else argv)
    if flags.get("list"):
        rows = [
            [entry.name, entry.title, entry.licence, "yes" if entry.downloads else ""] for entry in DATASETS.values()
        ]
        console.print(make_table("data sets", ["name", "what", "licence", "--download"], rows))
        return
    name = name or keys.get("data.dataset")
    if not name:
        raise ConfigError(f"the name of the data set is missing; expected one of {', '.join(DATASETS)}.")
    show, features, out = flags.get("show"), bool(flags.get("features")), flags.get("out")
    if show not in (None, *SHEET_NAMES):
        raise ConfigError(f"--show is {show!r}; expected one of {', '.join(SHEET_NAMES)}.")
    if out and not (show or features or flags.get("audit")):
        raise ConfigError("--out requires --show, --audit or --features. Use one of them, or remove --out.")
    if flags.get("accept_licence") and not flags.get("download"):
        raise ConfigError("--accept-licence requires --download. Use both, or remove --accept-licence.")
    check_audit_flags(keys, flags)
    if features and keys.get("data.crop"):
        raise ConfigError("--features measures whole images. Remove --data.crop.")
    # Without crops, only the features need a mask source, so that the experiment would reject the key.
    masks = keys.pop("data.masks", None) if features else None
    keys["data.dataset"] = name
    if flags.get("audit"):
        # The experiment accepts quality rules only with this value, and an audit checks by these rules.
        keys["data.quality"] = "drop_flagged"
    if not flags.get("experiment") and "task" not in keys and "classification" not in catalog_entry(name).tasks:
        keys["task"] = "segmentation"
    if keys.get("task") in ("segmentation", "joint"):
        # Any segmenter will do, because a store depends on the data section only.
        keys.setdefault("model.architecture", "unet")
    experiment, notes = resolve(flags.get("experiment"), keys, parser)
    for note in notes:
        console.print(note, markup=False)
    sheet, folder = Path(out or f"{name}_{show}.png"), Path(out or ".")
    groups = Path(flags["write_groups"]) if flags.get("write_groups") else None
    table = Path(out) if out and features and not show else None
    if table is not None:
        check_file(table, "--out")
    if show:
        experiment = _check_show(show, experiment, sheet, masks, features)
    if flags.get("audit"):
        check_outputs(folder, groups)
    if flags.get("download"):
        download(experiment, console, accept=bool(flags.get("accept_licence")))
    if flags.get("audit"):
        audit(experiment.data, folder, other_dataset(flags), groups, console)
        return
    data = _prepare_any(experiment, keys, flags, parser, console)
    if features:
        prepare_features(data, experiment, masks or experiment.data.masks, console, table)
    if show:
        from skincancer.visualization.previews import SHEETS

        console.print(f"wrote {SHEETS[show](data, experiment, sheet)}", markup=False)


def _prepare_any(
    experiment: Experiment, keys: dict[str, Any], flags: dict[str, Any], parser: ArgumentParser, console: Console
) -> PreparedData:
    """Prepare a data set. Without diagnoses and a chosen task, prepare its masks."""
    try:
        return prepare(experiment, console)
    except NoDiagnoses:
        if (
            flags.get("experiment")
            or "task" in keys
            or "segmentation" not in catalog_entry(experiment.data.dataset).tasks
        ):
            raise
    console.print("The data set has no diagnoses; its masks are prepared for segmentation.")
    masks_only, _ = resolve(None, {**keys, "task": "segmentation", "model.architecture": "unet"}, parser)
    return prepare(masks_only, console)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb of a command line. Return the exit code."""
    return run_verb(_verb, argv)


def _check_show(show: str, experiment: Experiment, sheet: Path, masks: str | None, features: bool) -> Experiment:
    """Check the flags of a sheet. Return the experiment to show.

    Args:
        show: name of the sheet, of `SHEET_NAMES`.
        sheet: PNG file of the sheet.
        masks: mask source of the features, None for that of the experiment.
        features: whether features are measured too.

    Raises:
        ConfigError: another flag is required, or the sheet cannot be written.
    """
    check_file(sheet, "--out")
    if sheet.suffix.lower() != ".png":
        raise ConfigError(f"--out is {sheet}; expected a name that ends in .png, because --show writes a PNG.")
    if show == "crop" and not experiment.data.crop:
        raise ConfigError("--show crop requires crops. Use --data.crop true.")
    if show == "clean" and not experiment.data.clean:
        raise ConfigError(
            f"--show clean requires cleaning steps: {', '.join(STEPS)}. Set them, as in --data.clean [hair,colour]."
        )
    if show != "structures":
        return experiment
    if not features:
        raise ConfigError("--show structures requires the features. Use --features.")
    masks = masks or experiment.data.masks
    check_masks(masks)
    if segmenter_run(masks):
        raise ConfigError(
            f"--data.masks is {masks}; expected truth, otsu or auto with --show structures. Use one of them."
        )
    return replace(experiment, data=replace(experiment.data, masks=masks))


if __name__ == "__main__":
    sys.exit(main())
