"""A data set into its prepared store: `python -m skincancer.prepare NAME`; says what was found, or how to get what is missing.

With `--download` the data set is first fetched from its publisher, where that lets anyone.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skincancer import config
from skincancer.auditing import audit, check_flags, check_outputs, other_data
from skincancer.checks import check_masks
from skincancer.data.catalog import DATASETS
from skincancer.data.catalog import dataset as catalog_entry
from skincancer.errors import ConfigError, SplitError
from skincancer.files import check_file
from skincancer.images.cleaning import STEPS
from skincancer.images.features import FAMILIES
from skincancer.paths import data_folder
from skincancer.schema import Experiment
from skincancer.showing import SHEETS, check_show
from skincancer.terminal import make_console, make_table, progress_bars, run_verb, warn

if TYPE_CHECKING:
    import pandas as pd
    from jsonargparse import ArgumentParser
    from rich.console import Console

    from skincancer.data.prepared import PreparedData


def prepare(experiment: Experiment, console: Console | None = None) -> PreparedData:
    """Build the store that an experiment's `data` section needs, and print what was found.

    Raises:
        ConfigError, DataError: as `skincancer.data.prepared.prepare_data`.
    """
    from skincancer.data.boxes import describe_crops
    from skincancer.data.prepared import ROLES, prepare_data

    console = console or make_console()
    given: dict[str, Any] = {"task": experiment.task, "uri": experiment.tracking.uri}
    unsplit = ""
    with progress_bars(console) as bars:
        try:
            data = prepare_data(experiment.data, bars, **given)
        except SplitError as error:  # pictures and features of them can be had all the same
            data, unsplit = prepare_data(experiment.data, bars, whole=True, **given), str(error)
    index, entry = data.index, data.entry
    usable = index[index["width"] > 0]
    sizes = Counter(zip(usable["width"], usable["height"], strict=True)).most_common()
    masks = data.store.masks
    stored, with_masks = (
        data.store.images.nbytes + (0 if masks is None else masks.nbytes),
        "" if masks is None else ", with masks",
    )
    shown = ", ".join(f"{width}×{height} ({count})" for (width, height), count in sizes[:4])
    facts: list[list[object]] = [
        ["folder", data.root],
        ["images", f"{len(index)}, of which {len(data.store.bad)} cannot be read"],
        ["lesions", index["lesion_id"].nunique()],
        *_patients(index),
        ["masks", int(index["mask"].notna().sum())],
        ["sizes (px)", shown + (f" and {len(sizes) - 4} more" if len(sizes) > 4 else "")],
        ["store", f"{data.store.folder} ({stored / 1e6:.0f} MB at {experiment.data.size} px{with_masks})"],
        ["licence", entry.licence],
        ["citation", entry.citation],
    ]
    if experiment.data.clean:
        facts.append(["cleaned by", ", ".join(f"{name} ({STEPS[name].source})" for name in experiment.data.clean)])
    if data.left_out:
        facts.append(["left out", data.left_out.replace(" (dropped.csv)", "")])
    if experiment.data.crop:
        facts.append(["crops", describe_crops(data.store.table, experiment.data)])
    console.print(make_table(entry.title, ["", "found"], facts))
    rows: list[list[object]] = []
    for diagnosis, part in index.groupby(index["diagnosis"].fillna("(no diagnosis)")):
        counts = [] if unsplit else [int((part["role"] == role).sum()) for role in ROLES]
        rows.append([diagnosis, len(part), part["lesion_id"].nunique(), *counts])
    title = f"classes, and their images by role at {experiment.data.split} (split seed {experiment.data.split_seed})"
    if unsplit:
        console.print(make_table("classes", ["diagnosis", "images", "lesions"], rows))
        warn(
            console,
            "no split",
            f"{unsplit.removesuffix('.')}. No experiment can be fitted on these images as they are.",
        )
    else:
        console.print(make_table(title, ["diagnosis", "images", "lesions", *ROLES], rows))
    return data


def _patients(index: pd.DataFrame) -> list[list[object]]:
    known = index.loc[index["patient_id"] != "", "patient_id"]
    told = f"{known.nunique()}, of {len(known)} of the {len(index)} images; the lesions of a patient count as one"
    return [["patients", told]] if len(known) else []


def download(experiment: Experiment, console: Console | None = None, accept: bool = False) -> None:
    """Fetch what is missing of an experiment's data set into the folder where `prepare` then finds it.

    Args:
        experiment: its `data.dataset` and `data.root` count.
        console: to print to.
        accept: the user agrees to the publisher's terms of use, where there are some.

    Raises:
        ConfigError, DataError: as `skincancer.data.download.download`.
    """
    from skincancer.data import download as fetch

    entry, console = catalog_entry(experiment.data.dataset), console or make_console()
    fetch.check_downloadable(entry)
    root = fetch.download_root(entry, experiment.data.root, data_folder())
    with progress_bars(console) as bars:
        fetch.download(entry, root, accept=accept, say=lambda line: console.print(line, markup=False), progress=bars)


def prepare_features(
    data: PreparedData,
    experiment: Experiment,
    masks: str = "auto",
    console: Console | None = None,
    out: Path | None = None,
) -> Path:
    """Build the table of hand-made features of a data set and print where it is.

    Args:
        data: prepared.
        experiment: whose data they are.
        masks: whose masks they are measured in, as `data.masks`.
        console: where to print.
        out: CSV file to write the table to as well, with diagnosis, lesion_id, part and role of each image.

    Returns:
        The CSV file: a row an image.

    Raises:
        ConfigError: no such masks.
        DataError, RunError: as `skincancer.data.features.open_features`.
    """
    check_masks(masks)
    from skincancer.data.boxes import describe_masks
    from skincancer.data.features import DIGITS, open_features
    from skincancer.data.prepared import list_bad
    from skincancer.images.features import WORKING_SIDE, feature_names

    console = console or make_console()
    settings = replace(experiment.data, masks=config.absolute_run(masks))
    with progress_bars(console) as bars:
        found = open_features(data.index, data.root, data.entry, settings, experiment.tracking.uri, bars)
    facts: list[list[object]] = [
        ["table", found.file],
        ["images", f"{len(found.table)}, of which {len(found.bad)} cannot be used"],
        [
            "features",
            f"{len(feature_names())} of {', '.join(FAMILIES)}, at {WORKING_SIDE} px (longest side)",
        ],
        ["masks", describe_masks(found.table, settings, "nothing measured")],
    ]
    console.print(make_table(f"hand-made features of {data.entry.title}", ["", "found"], facts))
    if len(found.bad):
        console.print(f"not measured:\n  {list_bad(found.bad)}", markup=False)
    if unlikely := found.describe_unlikely():
        warn(console, "unlikely masks", unlikely)
    if out is not None:
        known = data.index[["image_id", "diagnosis", "lesion_id", "part", "role"]]
        known.merge(found.table, on="image_id").to_csv(out, index=False, float_format=DIGITS)
        console.print(f"wrote {out}", markup=False)
    return found.file


def _add_flags(parser: ArgumentParser) -> None:
    parser.add_argument("--download", action="store_true", help="first fetch the data set from its publisher")
    parser.add_argument(
        "--accept-licence", action="store_true", help="agree to the terms of use that --download prints"
    )
    parser.add_argument(
        "--show",
        type=str,
        metavar="|".join(SHEETS),
        help="write a contact sheet: augmented or cleaned images, crops, or what structures are found, beside the originals",
    )
    parser.add_argument("--features", action="store_true", help="measure hand-made features too, into a table")
    parser.add_argument(
        "--out",
        type=str,
        metavar="PATH",
        help="where --show writes (a PNG), --features a copy of its table (a CSV), or --audit (a folder)",
    )
    parser.add_argument("--audit", action="store_true", help="look for copies, leaks, gaps, bad masks and confounding")
    parser.add_argument("--against", type=str, metavar="OTHER", help="with --audit: look for the images in OTHER too")
    parser.add_argument(
        "--against_root", type=str, metavar="FOLDER", help="with --against: the folder of OTHER (also --against.root)"
    )
    parser.add_argument(
        "--write_groups",
        type=str,
        metavar="FILE",
        help="with --audit: write the copies, and the lesions known by OTHER, for --data.groups",
    )


def _verb(argv: Sequence[str]) -> None:
    console = make_console()
    prog = "python -m skincancer.prepare"
    parser = config.build_parser(
        prog, "A data set into its prepared store: python -m skincancer.prepare NAME [--data.size 224 …]"
    )
    _add_flags(parser)
    name = argv[0] if argv and not argv[0].startswith("-") else None
    argv = [re.sub(r"^--(write|against)[-.](groups|root)(?==|$)", r"--\1_\2", flag) for flag in argv]
    flags, own = config.parse_flags(parser, argv[1:] if name else argv)
    if own.get("list"):
        rows = [
            [entry.name, entry.title, entry.licence, "yes" if entry.downloads else ""] for entry in DATASETS.values()
        ]
        console.print(make_table("data sets", ["name", "what", "licence", "--download"], rows))
        return
    name = name or flags.get("data.dataset")
    if not name:
        raise ConfigError(f"give the name of a data set: {', '.join(DATASETS)}.")
    show = own.get("show")
    if show not in (None, *SHEETS):
        raise ConfigError(f"--show is {show!r}; it can show: {', '.join(SHEETS)}.")
    if own.get("out") and not (show or own.get("audit") or own.get("features")):
        raise ConfigError("--out goes with --show, --audit or --features.")
    if own.get("accept_licence") and not own.get("download"):
        raise ConfigError("--accept-licence goes with --download.")
    check_flags(flags, own)
    if own.get("features") and flags.get("data.crop"):
        raise ConfigError("--features measures whole images; leave --data.crop out.")
    # of whole images, masks are for features alone
    masks = flags.pop("data.masks", None) if own.get("features") else None
    flags["data.dataset"] = name
    if own.get("audit"):
        flags["data.quality"] = "drop_flagged"  # so that its rules may be given: they are the audit's
    if not own.get("experiment") and "task" not in flags and "classification" not in catalog_entry(name).tasks:
        flags |= {"task": "segmentation"}
    if flags.get("task") in ("segmentation", "joint"):
        flags.setdefault("model.architecture", "unet")  # any will do: a store depends on the data section alone
    experiment, notes = config.resolve(own.get("experiment"), flags, parser)
    for note in notes:
        console.print(note, markup=False)
    sheet = Path(own.get("out") or f"{name}_{show}.png")
    folder, groups = Path(own.get("out") or "."), Path(own["write_groups"]) if own.get("write_groups") else None
    table = Path(own["out"]) if own.get("out") and own.get("features") and not show else None
    if table is not None:
        check_file(table, "--out")
    if show:
        experiment = check_show(show, experiment, sheet, masks, bool(own.get("features")))
    if own.get("audit"):
        check_outputs(folder, groups)
    if own.get("download"):
        download(experiment, console, accept=bool(own.get("accept_licence")))
    if own.get("audit"):
        audit(experiment, folder, other_data(own), groups, console)
        return
    data = prepare(experiment, console)
    if own.get("features"):
        prepare_features(data, experiment, masks or experiment.data.masks, console, table)
    if show:
        console.print(f"wrote {SHEETS[show](data, experiment, sheet)}", markup=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; return the exit code."""
    return run_verb(_verb, argv)


if __name__ == "__main__":
    sys.exit(main())
