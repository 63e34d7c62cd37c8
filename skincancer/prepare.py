"""A data set into its prepared store: `python -m skincancer.prepare NAME`; says what was found, or how to get what is missing.

With `--download` the data set is first fetched from its publisher, where that lets anyone.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skincancer.config.cli import build_parser, parse_flags
from skincancer.config.resolve import absolute_run, resolve
from skincancer.config.validation import check_masks
from skincancer.data.catalog import DATASETS
from skincancer.data.catalog import dataset as catalog_entry
from skincancer.errors import ConfigError, DataError, SplitError
from skincancer.imaging.cleaning.steps import STEPS
from skincancer.imaging.features.families import FAMILIES
from skincancer.schema import DataConfig, Experiment, segmenter_run
from skincancer.system.console import make_console, make_table, program, progress_bars, run_verb, warn
from skincancer.system.files import check_file, check_folder
from skincancer.system.paths import data_folder
from skincancer.visualization.previews import SHEETS

if TYPE_CHECKING:
    import pandas as pd
    from jsonargparse import ArgumentParser
    from rich.console import Console

    from skincancer.audit.audit import Audit
    from skincancer.data.prepare import PreparedData


def prepare(experiment: Experiment, console: Console | None = None) -> PreparedData:
    """Build the store that an experiment's `data` section needs, and print what was found.

    Raises:
        ConfigError, DataError: as `skincancer.data.prepare.prepare_data`.
    """
    from skincancer.data.mask_sources import describe_crops
    from skincancer.data.prepare import ROLES, prepare_data
    from skincancer.inference.model import mask_source
    from skincancer.runs.store import RunStore

    console = console or make_console()
    masks = mask_source(experiment.data, RunStore(experiment.tracking.uri)) if experiment.data.crop else None
    unsplit = ""
    with progress_bars(console) as bars:
        try:
            data = prepare_data(experiment.data, masks, bars, task=experiment.task)
        except SplitError as error:  # pictures and features of them can be had all the same
            data, unsplit = prepare_data(experiment.data, masks, bars, task=experiment.task, whole=True), str(error)
    index, entry = data.index, data.entry
    usable = index[index["width"] > 0]
    sizes = Counter(zip(usable["width"], usable["height"], strict=True)).most_common()
    stored, with_masks = data.store.images.nbytes, ""
    if data.store.masks is not None:
        stored, with_masks = stored + data.store.masks.nbytes, ", with masks"
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
        ConfigError, DataError: as `skincancer.data.download.publisher.download`.
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
        DataError, RunError: as `open_features` and `mask_source`.
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
        found = open_features(data.index, data.root, data.entry, source, settings.clean, bars)
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


def make_parser() -> ArgumentParser:
    """Return the parser of prepare's flags."""
    prog = program("prepare")
    parser = build_parser(prog, f"A data set into its prepared store: {prog} NAME [--data.size 224 …]")
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
    return parser


def _verb(argv: Sequence[str]) -> None:
    console = make_console()
    parser = make_parser()
    name = argv[0] if argv and not argv[0].startswith("-") else None
    argv = [re.sub(r"^--(write|against)[-.](groups|root)(?==|$)", r"--\1_\2", flag) for flag in argv]
    flags, own = parse_flags(parser, argv[1:] if name else argv)
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
    experiment, notes = resolve(own.get("experiment"), flags, parser)
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


USED = ("data.dataset", "data.root", "data.quality_rules", "plugins")  # of the configuration
_NEEDED = {"against": "audit", "write_groups": "audit", "against_root": "against"}
_SPELT = {"against": "--against", "write_groups": "--write-groups", "against_root": "--against.root"}


def audit(
    experiment: Experiment, folder: Path, against: DataConfig | None = None, groups: Path | None = None,
    console: Console | None = None,
) -> Audit:  # fmt: skip
    """Look for what is wrong with a data set, print it, and write NAME_audit.csv, NAME_images.csv and NAME_audit.html.

    Args:
        experiment: its `data` section names the data set, and the quality rules.
        folder: where the three files are written.
        against: another data set, to look for the images in.
        groups: where the table is written that `data.groups` takes: copies, and lesions by the other data set; None for nowhere.
        console: where to print.

    Raises:
        ConfigError: `folder` or `groups` cannot be written, or as `skincancer.audit.audit.audit`.
        DataError: as there; or a file cannot be written in the end, when the others are.
    """
    check_outputs(folder, groups)
    from skincancer.audit.audit import audit as find
    from skincancer.audit.audit import write_groups
    from skincancer.audit.report import sentences, summary, write_audit_page, write_csv, write_images

    console = console or make_console()
    with progress_bars(console) as bars:
        found = find(experiment.data, against, bars)
    entry, rows = found.own.entry, summary(found)
    title = f"audit of {entry.title}: {len(found.own.index)} images in {found.own.root}"
    console.print(make_table(title, ["found", "images", "groups"], rows or [["nothing", "", ""]]))
    for text in sentences(found):
        console.print(text, markup=False)
    name = f"{entry.name}_audit" if found.other is None else f"{entry.name}_audit_against_{found.other.entry.name}"
    files: dict[Path, Callable[[Audit, Path], object]] = {
        folder / f"{name}.csv": write_csv,
        folder / f"{entry.name}_images.csv": write_images,
    }
    if groups is not None:
        files[groups] = write_groups
    files[folder / f"{name}.html"] = write_audit_page
    failed = []
    for path, write in files.items():
        try:
            told = write(found, path)
        except OSError as error:  # one full disk loses no other file
            failed.append(f"{path} cannot be written: {error.strerror or error}")
            continue
        more = f": {told} groups, for --data.groups {path}" if path == groups else ""
        console.print(f"wrote {path}{more}", markup=False)
    if found.unkept:
        console.print(f"fits are not told of this audit, as it cannot be kept: {found.unkept}", markup=False)
    if failed:
        raise DataError(f"{'; '.join(failed)}. Free some space, or give another place with --out and --write-groups.")
    return found


def check_outputs(folder: Path, groups: Path | None) -> None:
    """Try to write where an audit will write.

    Raises:
        ConfigError: `folder` or `groups` cannot be written.
    """
    check_folder(folder, "--out")
    if groups is not None:
        check_file(groups, "--write-groups")


def check_flags(flags: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse what an audit would ignore, and what goes with it alone.

    Args:
        flags: keys of the configuration given on the command line.
        own: flags of `prepare`.

    Raises:
        ConfigError: names the flag.
    """
    for flag, needed in _NEEDED.items():
        if own.get(flag) and not own.get(needed):
            raise ConfigError(f"{_SPELT[flag]} goes with --{needed}.")
    if not own.get("audit"):
        return
    if own.get("show"):
        raise ConfigError("--audit and --show are two things; give one of them.")
    if own.get("features"):
        raise ConfigError("--audit and --features are two things; give one of them.")
    unused = [*(["experiment"] if own.get("experiment") else []), *(key for key in flags if key not in USED)]
    if unused:
        raise ConfigError(
            f"--audit makes no use of --{unused[0]}: it looks at whole images as their publisher has them. "
            f"Of the configuration it takes {', '.join(f'--{key}' for key in USED)}. Leave it out."
        )


def other_data(own: Mapping[str, Any]) -> DataConfig | None:
    """Return where the data set that --against names is."""
    if not own.get("against"):
        return None
    root = own.get("against_root")
    name = catalog_entry(own["against"], "--against").name
    return DataConfig(dataset=name, root=str(Path(root).expanduser().absolute()) if root else None)


def check_show(show: str, experiment: Experiment, sheet: Path, masks: str | None, features: bool) -> Experiment:
    """Check what a sheet needs before any work; return the experiment with the masks that it is drawn with.

    Args:
        show: of `SHEETS`.
        experiment: resolved.
        sheet: the PNG to write.
        masks: as given for the features; None for those of the experiment.
        features: they are measured too.

    Raises:
        ConfigError: something else has to be given too, or the sheet cannot be written there.
    """
    check_file(sheet, "--out")
    if sheet.suffix.lower() != ".png":
        raise ConfigError(f"--out is {sheet}; --show writes a PNG, so give a name that ends in .png.")
    if show == "crop" and not experiment.data.crop:
        raise ConfigError("--show crop shows what --data.crop true cuts out; give that too.")
    if show == "clean" and not experiment.data.clean:
        raise ConfigError(
            f"--show clean shows what --data.clean does; give its steps, such as [hair,colour]: {', '.join(STEPS)}."
        )
    if show != "structures":
        return experiment
    if not features:
        raise ConfigError("--show structures shows what --features finds in lesions; give that too.")
    masks = masks or experiment.data.masks
    check_masks(masks)
    if segmenter_run(masks):
        raise ConfigError(f"--show structures takes --data.masks truth, otsu or auto, given {masks}.")
    return replace(experiment, data=replace(experiment.data, masks=masks))


if __name__ == "__main__":
    sys.exit(main())
