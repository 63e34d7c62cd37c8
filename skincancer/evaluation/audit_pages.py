"""An audit as a person reads it: tables for the terminal, a page with the pictures side by side, a CSV with every image."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from skincancer.data.audit import COPIES, FINDINGS, Audit, Examined
from skincancer.data.index import image_root
from skincancer.evaluation.pages import Part, Picture, Section, Table, Text, write_page
from skincancer.images.decode import BadImage, read_image

SHOWN_PAIRS = 40  # of pictures in each section of the page
SHOWN_IMAGES = 24
PICTURE = 160  # width of a picture, px
_HEADINGS = {
    "in_other": "In both data sets",
    "label_conflict": "One picture, several diagnoses",
    "copies_across_parts": "Copies in several parts",
}
_MASKS = ("full_mask", "empty_mask", "same_mask")


def summary(found: Audit) -> list[list[object]]:
    """Return a row a finding that was made: what, images, groups or pairs ("" where each image stands alone)."""
    rows: list[list[object]] = []
    for finding, what in FINDINGS.items():
        images, groups = found.counts(finding)
        if images:
            rows.append([_named(found, finding, what), images, groups or ""])
    if found.groups:
        rows.append(["all groups of copies together", sum(map(len, found.groups)), len(found.groups)])
    return rows


def _named(found: Audit, finding: str, what: str) -> str:
    if finding == "in_other" and found.other is not None:
        return f"images that {found.other.entry.name} holds too"
    return what


def confounding_text(found: Audit) -> str:
    """Say how well the classes are told by what is no lesion."""
    if found.confounding is None:
        return f"Class and source: not measured, {found.unmeasured}."
    one = found.confounding
    strongest = ", ".join(f"{what} {area:.2f}" for what, area in one.features[["what", "auroc"]].head(3).values)
    return (
        "Class and source: from file, size, frame and colour of the edge alone, without looking at the lesion, the classes are told "
        f"with an area under the curve of {one.auroc:.3f} ({one.low:.3f} – {one.high:.3f}; 0.5 is chance; {one.images} images, "
        f"cross-validated by lesion). Strongest by themselves: {strongest}."
    )


def write_csv(found: Audit, path: Path) -> Path:
    """Write a row an image and finding: finding, group, image_id, other_id, value, detail."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found.findings.to_csv(path, index=False, float_format="%.6g")
    return path


def write_audit_page(found: Audit, path: Path) -> Path:
    """Write the page: what was found, the pictures side by side, masks, flagged images, class and source."""
    own = found.own
    sections = [
        Section("What was found", [Table("", ["finding", "images", "groups"], _cells(summary(found)))]),
        Section("Class and source", _confounding(found)),
    ]
    for finding in (*COPIES, "in_other"):
        sections.append(Section(_heading(found, finding), _pairs(found, finding)))
    sections += [
        Section(_HEADINGS[finding], _groups(found, finding)) for finding in ("label_conflict", "copies_across_parts")
    ]
    sections += [
        Section("Lesions in several parts", _listed(found, "lesion_across_parts")),
        Section("Patients in several parts", _listed(found, "patient_across_parts")),
        Section("Masks", [part for finding in _MASKS for part in _images(found, finding)]),
        Section("Images flagged for their quality", _images(found, "flagged")),
        Section("Files that cannot be used", _listed(found, "unreadable")),
    ]
    bands = ["SYNTHETIC DATA: these images are drawn."] if own.entry.synthetic else []
    against = f" against {found.other.entry.title}" if found.other else ""
    subtitle = f"{len(own.index)} images in {own.root}, audited on {found.day}."
    return write_page(path, f"Audit of {own.entry.title}{against}", subtitle, sections, bands, own.entry.licence)


def _cells(rows: Iterable[list[object]]) -> list[list[str | int | None]]:
    return [[str(what), int(str(images)), int(str(groups)) if groups else None] for what, images, groups in rows]


def _heading(found: Audit, finding: str) -> str:
    what = _HEADINGS.get(finding) or _named(found, finding, FINDINGS[finding])
    return what[:1].upper() + what[1:]


def _confounding(found: Audit) -> list[Part]:
    parts: list[Part] = [Text(confounding_text(found))]
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
    theirs = found.other if finding == "in_other" and found.other is not None else found.own
    shown = []
    for row in rows.sort_values("value").head(SHOWN_PAIRS).to_dict("records"):
        detail = row["detail"] if finding == "in_other" else _labels(found.own, row)
        shown.append(
            [_picture(found.own, row["image_id"]), _picture(theirs, row["other_id"]), f"{row['value']:.3f}", detail]
        )
    return [
        Table(
            _shown(len(rows), SHOWN_PAIRS, "pairs"),
            ["image", "other image", "correlation", "of"],
            shown,
            "the least alike first; all are in the CSV",
        )
    ]


def _labels(own: Examined, row: Mapping[Hashable, Any]) -> str:
    known = own.index.set_index("image_id")
    labels: list[Any] = [known.at[row[name], "diagnosis"] for name in ("image_id", "other_id")]
    parts: list[str] = [str(known.at[row[name], "part"]) for name in ("image_id", "other_id")]
    said = " and ".join(dict.fromkeys(str(label) for label in labels if not pd.isna(label)))
    where = " and ".join(dict.fromkeys(part for part in parts if part))
    return ", ".join(text for text in (str(row["detail"]), said, where) if text)


def _groups(found: Audit, finding: str) -> list[Part]:
    rows = found.of(finding)
    if rows.empty:
        return []
    parts: list[Part] = [Text(_shown(rows["group"].nunique(), SHOWN_PAIRS, "groups"))]
    for _, members in list(rows.groupby("group"))[:SHOWN_PAIRS]:
        cells = [[_picture(found.own, row["image_id"]), row["detail"]] for row in members.head(6).to_dict("records")]
        parts.append(Table("", ["image", _HEADINGS[finding].split(", ")[-1]], cells))
    return parts


def _images(found: Audit, finding: str) -> list[Part]:
    rows = found.of(finding)
    if rows.empty:
        return []
    cells = [
        [_picture(found.own, row["image_id"]), "" if np.isnan(row["value"]) else f"{row['value']:.3f}", row["detail"]]
        for row in rows.head(SHOWN_IMAGES).to_dict("records")
    ]
    title = f"{FINDINGS[finding]}: {_shown(len(rows), SHOWN_IMAGES, 'images')}"
    return [Table(title, ["image", "value", "why"], cells)]


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


def _picture(own: Examined, image_id: str) -> Picture | str:
    """Return an image as a small picture; its id alone where it cannot be read."""
    path = own.index.loc[own.index["image_id"] == image_id, "image"].iloc[0]
    try:
        image = read_image(image_root(own.root) / path)
    except BadImage as error:
        return f"{image_id} {error}"
    image.thumbnail((PICTURE, PICTURE))
    pixels: npt.NDArray[np.uint8] = np.asarray(image)
    return Picture(pixels, f"image {image_id}", image_id)
