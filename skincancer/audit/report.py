"""An audit as a page: what was found, with the pictures side by side."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from skincancer.audit.audit import Audit
from skincancer.audit.confounding import FEW
from skincancer.audit.dataset import Examined
from skincancer.audit.findings import COLUMNS, COPIES, FINDINGS
from skincancer.data.catalog import SYNTHETIC_WARNING
from skincancer.data.groups import group_rows, known_lesions
from skincancer.data.index import COLUMNS as INDEX_COLUMNS
from skincancer.data.index import image_root
from skincancer.imaging.decode import BadImage, read_image
from skincancer.imaging.quality import NAMES
from skincancer.visualization.html import Cell, Part, Picture, Section, Table, Text, write_page

SHOWN_PAIRS = 40  # of pictures in each section of the page
SHOWN_MEMBERS = 4  # of a group
SHOWN_IMAGES = 24
PICTURE = 160  # width of a picture, px
BLANK = "\u00a0"  # in a cell that has no picture
_HEADINGS = {"in_other": "In both data sets"}
_GROUPS = {
    "label_conflict": "One picture, several diagnoses",
    "copies_across_parts": "Copies in several parts",
    "across_parts_by_other": "One lesion in several parts",
}
_MASKS = ("full_mask", "empty_mask", "same_mask")


def write_audit_page(found: Audit, path: Path) -> Path:
    """Write the page: what was found, the pictures side by side, masks, flagged images, class and source."""
    own = found.own
    sections = [
        Section("What was found", [Table("", ["finding", "images", "groups"], _cells(summary(found)))]),
        Section("Lesions", [Text(text) for text in lesion_texts(found)]),
        Section("Class and source", _confounding(found)),
    ]
    for finding in (*COPIES, "in_other"):
        sections.append(Section(_heading(found, finding), _pairs(found, finding)))
    sections += [Section(heading, _groups(found, finding)) for finding, heading in _GROUPS.items()]
    sections += [
        Section("Lesions in several parts", _listed(found, "lesion_across_parts")),
        Section("Patients in several parts", _listed(found, "patient_across_parts")),
        Section("Lesions of several patients", _listed(found, "patient_conflict")),
        Section("Masks", [part for finding in _MASKS for part in _images(found, finding)]),
        Section("Images flagged for their quality", _images(found, "flagged")),
        Section("Masks that cannot be used", _listed(found, "bad_mask")),
        Section("Files that cannot be used", _listed(found, "unreadable")),
    ]
    bands = [SYNTHETIC_WARNING] if own.entry.synthetic else []
    against = f" against {found.other.entry.title}" if found.other else ""
    subtitle = f"{len(own.index)} images in {own.root}, audited on {found.day}."
    return write_page(path, f"Audit of {own.entry.title}{against}", subtitle, sections, bands, own.entry.licence)


def _cells(rows: Iterable[list[object]]) -> list[list[str | int | None]]:
    return [[str(what), int(str(images)), int(str(groups)) if groups else None] for what, images, groups in rows]


def _heading(found: Audit, finding: str) -> str:
    what = _HEADINGS.get(finding) or name_finding(found, finding)
    return what[:1].upper() + what[1:]


def _confounding(found: Audit) -> list[Part]:
    parts: list[Part] = [Text(confounding_text(found)), *(Text(text) for text in source_texts(found))]
    if found.confounding is not None:
        rows = [[what, float(area)] for what, area in found.confounding.features[["what", "auroc"]].values]
        caption = "mean over the classes, each against the others; the sign that a value goes with does not matter; 0.5 is chance"
        parts.append(Table("each feature by itself", ["feature", "area under the curve"], rows, caption))
    return parts


def _pairs(found: Audit, finding: str) -> list[Part]:
    rows = found.of(finding)
    if finding in COPIES:  # each pair stands there twice
        rows = rows[rows["image_id"] < rows["other_id"]]
    if rows.empty:
        return []
    near = finding == "near_duplicate" or bool((rows["value"] < 1).any())  # exact copies are all 1
    theirs = found.other if finding == "in_other" and found.other is not None else found.own
    columns: dict[str, list[Cell]] = {"image": [], "other image": [], "correlation of detail": [], "what they are": []}
    for row in rows.sort_values("value").head(SHOWN_PAIRS).to_dict("records"):
        detail = row["detail"] if finding == "in_other" else _labels(found.own, row)
        pictures = _picture(found.own, row["image_id"]), _picture(theirs, row["other_id"])
        for cells, cell in zip(
            columns.values(), (*pictures, f"{row['value']:.3f}" if near else "", detail), strict=True
        ):
            cells.append(cell)
    order = "the least alike first; all are in the CSV" if near else "all are in the CSV"
    return [_filled(_shown(len(rows), SHOWN_PAIRS, "pairs"), columns, order)]


def _filled(title: str, columns: Mapping[str, Sequence[Cell]], caption: str = "") -> Table:
    """Return a table of the columns that hold something."""
    kept = {name: cells for name, cells in columns.items() if any(cell != "" for cell in cells)}
    return Table(title, list(kept), [list(row) for row in zip(*kept.values(), strict=True)], caption)


def _labels(own: Examined, row: Mapping[Hashable, Any]) -> str:
    known = own.index.set_index("image_id")
    labels: list[Any] = [known.at[row[name], "diagnosis"] for name in ("image_id", "other_id")]
    parts: list[str] = [str(known.at[row[name], "part"]) for name in ("image_id", "other_id")]
    said = " and ".join(dict.fromkeys(str(label) for label in labels if not pd.isna(label)))
    where = " and ".join(dict.fromkeys(part for part in parts if part))
    return ", ".join(text for text in (str(row["detail"]), said, where) if text)


def _groups(found: Audit, finding: str) -> list[Part]:
    """Show a group a row, its pictures side by side."""
    rows = found.of(finding)
    if rows.empty:
        return []
    shown: list[list[Cell]] = []
    for _, members in list(rows.groupby("group"))[:SHOWN_PAIRS]:
        pictures = members.head(SHOWN_MEMBERS).to_dict("records")
        shown.append([_picture(found.own, row["image_id"], row["detail"]) for row in pictures])
    widest = max(map(len, shown))
    cells = [[*row, *[BLANK] * (widest - len(row))] for row in shown]
    title = _shown(rows["group"].nunique(), SHOWN_PAIRS, "groups")
    return [Table(title, ["one image", *["another"] * (widest - 1)], cells, "all are in the CSV")]


def _images(found: Audit, finding: str) -> list[Part]:
    rows = found.of(finding)
    if rows.empty:
        return []
    shown = rows.head(SHOWN_IMAGES)
    columns: dict[str, list[Cell]] = {
        "image": [_picture(found.own, image_id) for image_id in shown["image_id"]],
        "the mask's share of the image": ["" if np.isnan(value) else f"{value:.3f}" for value in shown["value"]],
        "the same mask in" if finding == "same_mask" else "why": list(shown["detail"]),
    }
    return [_filled(f"{FINDINGS[finding]}: {_shown(len(rows), SHOWN_IMAGES, 'images')}", columns)]


def _listed(found: Audit, finding: str) -> list[Part]:
    rows = found.of(finding)
    if rows.empty:
        return []
    cells = [[row["image_id"], row["detail"]] for row in rows.head(200).to_dict("records")]
    return [Table(_shown(len(rows), 200, "images"), ["image", "what"], cells)]


def _shown(count: int, most: int, what: str) -> str:
    return f"{count} {what if count > 1 else what.removesuffix('s')}" + (
        f", of which {most} are shown" if count > most else ""
    )


def _picture(own: Examined, image_id: str, told: str = "") -> Picture | str:
    """Return an image as a small picture over its id and what is told of it; these alone where it cannot be read."""
    caption = f"{image_id}, {told}" if told else image_id
    path = own.index.loc[own.index["image_id"] == image_id, "image"].iloc[0]
    try:
        image = read_image(image_root(own.root) / path)
    except BadImage as error:
        return f"{caption} {error}"
    image.thumbnail((PICTURE, PICTURE))
    pixels: npt.NDArray[np.uint8] = np.asarray(image)
    return Picture(pixels, f"image {image_id}", caption)


def summary(found: Audit) -> list[list[object]]:
    """Return a row a finding that was made: what, images, groups or pairs ("" where each image stands alone)."""
    rows: list[list[object]] = []
    for finding in FINDINGS:
        images, groups = found.counts(finding)
        if images:
            rows.append([name_finding(found, finding), images, groups or ""])
    if found.copies:
        rows.append(["all groups of copies together", sum(map(len, found.copies)), len(found.copies)])
    if found.lesions_by_other:
        merged = found.groups
        rows.append(["copies and such lesions together", sum(map(len, merged)), len(merged)])
    return rows


def name_finding(found: Audit, finding: str) -> str:
    """Return what a finding is, with the other data set's name where it is about that."""
    what = FINDINGS[finding]
    return what.replace("the other data set", found.other.entry.name) if found.other is not None else what


def sentences(found: Audit) -> list[str]:
    """Say what is known of the data set as a whole: its lesions, those that several parts show, class and source."""
    return [*lesion_texts(found), confounding_text(found), *source_texts(found)]


def lesion_texts(found: Audit) -> list[str]:
    """Say how many images are of how many lesions, by the data set and by the other one, and how many lesions parts share."""
    index, texts = found.own.index, []
    if known_lesions(index).any():
        groups = group_rows(index["lesion_id"])
        texts.append(
            f"Lesions: {len(index)} images of {index['lesion_id'].nunique()} lesions; {len(groups)} lesions have several images "
            f"({sum(map(len, groups))} in all)"
            + (": a split by image would leak, one by lesion does not." if groups else ".")
        )
    else:
        texts.append("Lesions: the data set names none, so that images of one lesion are told by their looks alone.")
    if found.other is not None:
        name, told = found.other.entry.name, found.lesion_by_other[found.lesion_by_other != ""]
        groups = group_rows(found.lesion_by_other)
        across = found.counts("across_parts_by_other")[1]
        texts.append(
            f"Lesions by {name}: {len(told)} images here show {told.nunique()} of its lesions; {len(groups)} of these have several images "
            f"here ({sum(map(len, groups))} in all), and {across} stand in several of the publisher's parts."
            if len(told)
            else f"Lesions by {name}: none; no image here is a copy of one there whose lesion is known."
        )
    for one in found.shared:
        known = (
            f"; {_percent(one.known_shared, one.known)} of the {one.known} whose lesion is known"
            if 0 < one.known < one.images
            else ""
        )
        texts.append(
            f"Parts: {one.shared} of the {one.images} images of the {one.part} part ({_percent(one.shared, one.images)}{known}) show a "
            f"lesion that is also in {one.other}, by {_sources(found)}."
        )
    return texts


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %"


def _sources(found: Audit) -> str:
    sources = ["lesion ids"] if known_lesions(found.own.index).any() else []
    sources += ["copies"] if found.copies else []
    sources += [f"the lesion ids of {found.other.entry.name}"] if found.other and found.lesions_by_other else []
    return " and ".join(sources)


def confounding_text(found: Audit) -> str:
    """Say how well the classes are told by what is hardly of the lesion."""
    if found.confounding is None:
        return f"Class and source: not measured, {found.unmeasured}."
    one = found.confounding
    strongest = ", ".join(f"{what} {area:.2f}" for what, area in one.features[["what", "auroc"]].head(3).values)
    return (
        "Class and source: from file, size, frame and the picture's edge alone, the classes are told with an area under the curve of "
        f"{one.auroc:.3f} ({one.low:.3f} – {one.high:.3f}; 0.5 is chance; {one.images} images, cross-validated by lesion)."
        + (" Of so few images the interval is too narrow." if one.images < FEW else "")
        + (f" Strongest by themselves: {strongest}." if strongest else "")
    )


def source_texts(found: Audit) -> list[str]:
    """Say what the same features tell where class or source is held fixed."""
    return [
        f"{source.what} {'are' if source.what.endswith('classes') else 'is'} told from these with an area of {one.auroc:.3f} "
        f"({one.low:.3f} – {one.high:.3f}; {one.images} images)."
        for source in found.sources
        for one in (source.told,)
    ]


def write_csv(found: Audit, path: Path) -> Path:
    """Write a row an image and finding: finding, group, image_id, other_id, value, detail.

    What is of the data set as a whole comes first, in rows without an image: `lesions` (the sentences of `lesion_texts`) and
    `confounding` (value is an area under the curve; detail says of what: the model, its interval, each feature by itself).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = [("lesions", 0, "", "", float("nan"), text) for text in lesion_texts(found)]
    if found.confounding is not None:
        one = found.confounding
        told = [
            ("all features together", one.auroc),
            ("low end of its interval", one.low),
            ("high end of its interval", one.high),
        ]
        told += [(source.what, source.told.auroc) for source in found.sources]
        told += [(str(feature), float(area)) for feature, area in one.features[["feature", "auroc"]].values]
        whole += [("confounding", 0, "", "", area, detail) for detail, area in told]
    rows = [*whole, *found.findings.itertuples(index=False, name=None)]
    pd.DataFrame(rows, columns=COLUMNS).to_csv(path, index=False, float_format="%.6g")
    return path


def write_images(found: Audit, path: Path) -> Path:
    """Write a row an image: the columns of the index, error, mask_error, width, height (px), its quality, flags, reasons.

    The quality is under the names of `skincancer.imaging.quality.NAMES`; flags are the rules that it breaks, "; " between.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    index, facts = found.own.index, found.own.facts.table
    shown = facts[["error", "mask_error", "width", "height", *NAMES]].rename(columns=NAMES)
    read = facts["error"] == ""
    shown = shown.assign(
        width=shown["width"].where(read).astype("Int64"), height=shown["height"].where(read).astype("Int64")
    )
    told = found.flagged.set_index("image_id").reindex(index["image_id"]).fillna("").reset_index(drop=True)
    flagged = pd.DataFrame({"flags": told["flags"], "reasons": told["reason"]})
    pd.concat([index[list(INDEX_COLUMNS)], shown, flagged], axis=1).to_csv(path, index=False, float_format="%.6g")
    return path
