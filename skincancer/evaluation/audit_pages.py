"""An audit as a page: what was found, with the pictures side by side."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from skincancer.data.audit import Audit
from skincancer.data.examined import Examined
from skincancer.data.findings import COPIES, FINDINGS
from skincancer.data.index import image_root
from skincancer.evaluation.audit_tables import confounding_text, lesion_texts, name_finding, source_texts, summary
from skincancer.evaluation.pages import Cell, Part, Picture, Section, Table, Text, write_page
from skincancer.images.decode import BadImage, read_image

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
    bands = ["SYNTHETIC DATA: these images are drawn."] if own.entry.synthetic else []
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
