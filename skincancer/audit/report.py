"""Report of an audit: HTML page, CSV tables and console sentences."""

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

# Limits of the page: pairs or groups per section, images per group, single images per section, width of an image (px).
SHOWN_PAIRS, SHOWN_MEMBERS, SHOWN_IMAGES, PICTURE = 40, 4, 24, 160
BLANK = "\u00a0"
_HEADINGS = {"in_other": "In both data sets"}
_GROUPS = {
    "label_conflict": "One image, several diagnoses",
    "copies_across_parts": "Copies in several subsets",
    "across_parts_by_other": "One lesion in several subsets",
}
_MASKS = ("full_mask", "empty_mask", "same_mask")


def write_audit_page(audit: Audit, path: Path) -> Path:
    """Write the HTML page of an audit, with example images."""
    own = audit.own
    sections = [
        Section("Findings", [Table("", ["finding", "images", "groups"], _cells(summary(audit)))]),
        Section("Lesions", [Text(text) for text in lesion_texts(audit)]),
        Section("Class and source", _confounding(audit)),
    ]
    for finding in (*COPIES, "in_other"):
        sections.append(Section(_heading(audit, finding), _pairs(audit, finding)))
    sections += [Section(heading, _groups(audit, finding)) for finding, heading in _GROUPS.items()]
    sections += [
        Section("Lesions in several subsets", _listed(audit, "lesion_across_parts")),
        Section("Patients in several subsets", _listed(audit, "patient_across_parts")),
        Section("Lesions of several patients", _listed(audit, "patient_conflict")),
        Section("Masks", [part for finding in _MASKS for part in _images(audit, finding)]),
        Section("Images flagged for their quality", _images(audit, "flagged")),
        Section("Masks that cannot be used", _listed(audit, "bad_mask")),
        Section("Files that cannot be used", _listed(audit, "unreadable")),
    ]
    bands = [SYNTHETIC_WARNING] if own.entry.synthetic else []
    against = f" against {audit.other.entry.title}" if audit.other else ""
    subtitle = f"{len(own.index)} images in {own.root}, audited on {audit.day}."
    return write_page(path, f"Audit of {own.entry.title}{against}", subtitle, sections, bands, own.entry.licence)


def _cells(rows: Iterable[list[object]]) -> list[list[str | int | None]]:
    return [[str(what), int(str(images)), int(str(groups)) if groups else None] for what, images, groups in rows]


def _heading(audit: Audit, finding: str) -> str:
    what = _HEADINGS.get(finding) or name_finding(audit, finding)
    return what[:1].upper() + what[1:]


def _confounding(audit: Audit) -> list[Part]:
    parts: list[Part] = [Text(confounding_text(audit)), *(Text(text) for text in source_texts(audit))]
    if audit.confounding is not None:
        rows = [[what, float(area)] for what, area in audit.confounding.features[["what", "auroc"]].values]
        caption = "one class against the rest, mean over the classes, whether high or low values indicate the class; 0.5 is chance"
        parts.append(Table("each feature by itself", ["feature", "AUROC"], rows, caption))
    return parts


def _pairs(audit: Audit, finding: str) -> list[Part]:
    rows = audit.of(finding)
    # Each pair of copies has two rows.
    if finding in COPIES:
        rows = rows[rows["image_id"] < rows["other_id"]]
    if rows.empty:
        return []
    # The correlation of exact copies is 1.
    near = finding == "near_duplicate" or bool((rows["value"] < 1).any())
    other = audit.other if finding == "in_other" and audit.other is not None else audit.own
    columns: dict[str, list[Cell]] = {"image": [], "other image": [], "correlation of detail": [], "description": []}
    for row in rows.sort_values("value").head(SHOWN_PAIRS).to_dict("records"):
        detail = row["detail"] if finding == "in_other" else _labels(audit.own, row)
        pictures = _picture(audit.own, row["image_id"]), _picture(other, row["other_id"])
        for cells, cell in zip(
            columns.values(), (*pictures, f"{row['value']:.3f}" if near else "", detail), strict=True
        ):
            cells.append(cell)
    order = "lowest correlation first; the CSV contains all" if near else "the CSV contains all"
    return [_filled(_count_title(len(rows), SHOWN_PAIRS, "pairs"), columns, order)]


def _filled(title: str, columns: Mapping[str, Sequence[Cell]], caption: str = "") -> Table:
    """Return a table without empty columns."""
    kept = {name: cells for name, cells in columns.items() if any(cell != "" for cell in cells)}
    return Table(title, list(kept), [list(row) for row in zip(*kept.values(), strict=True)], caption)


def _labels(own: Examined, row: Mapping[Hashable, Any]) -> str:
    images = own.index.set_index("image_id")
    labels: list[Any] = [images.at[row[name], "diagnosis"] for name in ("image_id", "other_id")]
    subsets: list[str] = [str(images.at[row[name], "part"]) for name in ("image_id", "other_id")]
    diagnoses = " and ".join(dict.fromkeys(str(label) for label in labels if not pd.isna(label)))
    where = " and ".join(dict.fromkeys(subset for subset in subsets if subset))
    return ", ".join(text for text in (str(row["detail"]), diagnoses, where) if text)


def _groups(audit: Audit, finding: str) -> list[Part]:
    """Return a table with the images of one group per row."""
    rows = audit.of(finding)
    if rows.empty:
        return []
    pictures: list[list[Cell]] = []
    for _, members in list(rows.groupby("group"))[:SHOWN_PAIRS]:
        images = members.head(SHOWN_MEMBERS).to_dict("records")
        pictures.append([_picture(audit.own, row["image_id"], row["detail"]) for row in images])
    widest = max(map(len, pictures))
    cells = [[*row, *[BLANK] * (widest - len(row))] for row in pictures]
    title = _count_title(rows["group"].nunique(), SHOWN_PAIRS, "groups")
    return [Table(title, ["one image", *["another"] * (widest - 1)], cells, "the CSV contains all")]


def _images(audit: Audit, finding: str) -> list[Part]:
    rows = audit.of(finding)
    if rows.empty:
        return []
    examples = rows.head(SHOWN_IMAGES)
    columns: dict[str, list[Cell]] = {
        "image": [_picture(audit.own, image_id) for image_id in examples["image_id"]],
        "share of the image in the mask": ["" if np.isnan(value) else f"{value:.3f}" for value in examples["value"]],
        "the same mask in" if finding == "same_mask" else "reason": list(examples["detail"]),
    }
    return [_filled(f"{FINDINGS[finding]}: {_count_title(len(rows), SHOWN_IMAGES, 'images')}", columns)]


def _listed(audit: Audit, finding: str) -> list[Part]:
    rows = audit.of(finding)
    if rows.empty:
        return []
    cells = [[row["image_id"], row["detail"]] for row in rows.head(200).to_dict("records")]
    return [Table(_count_title(len(rows), 200, "images"), ["image", "detail"], cells)]


def _count_title(count: int, limit: int, plural: str) -> str:
    return f"{count} {plural if count > 1 else plural.removesuffix('s')}" + (
        f", of which {limit} are shown" if count > limit else ""
    )


def _picture(own: Examined, image_id: str, detail: str = "") -> Picture | str:
    """Return a small image with caption, or a text if unreadable."""
    caption = f"{image_id}, {detail}" if detail else image_id
    path = own.index.loc[own.index["image_id"] == image_id, "image"].iloc[0]
    try:
        image = read_image(image_root(own.root) / path)
    except BadImage as error:
        return f"{caption} {error}"
    image.thumbnail((PICTURE, PICTURE))
    pixels: npt.NDArray[np.uint8] = np.asarray(image)
    return Picture(pixels, f"image {image_id}", caption)


def summary(audit: Audit) -> list[list[object]]:
    """Return one row per finding: name, numbers of images and groups.

    The number of groups is "" for findings about single images.
    """
    rows: list[list[object]] = []
    for finding in FINDINGS:
        images, groups = audit.counts(finding)
        if images:
            rows.append([name_finding(audit, finding), images, groups or ""])
    if audit.copies:
        rows.append(["all groups of copies together", sum(map(len, audit.copies)), len(audit.copies)])
    if audit.lesions_by_other:
        merged = audit.groups
        rows.append(["copies and such lesions together", sum(map(len, merged)), len(merged)])
    return rows


def name_finding(audit: Audit, finding: str) -> str:
    """Return the description of a finding for this audit."""
    what = FINDINGS[finding]
    return what.replace("the other data set", audit.other.entry.name) if audit.other is not None else what


def sentences(audit: Audit) -> list[str]:
    """Return sentences about lesions, leakage and confounding of the data set."""
    return [*lesion_texts(audit), confounding_text(audit), *source_texts(audit)]


def lesion_texts(audit: Audit) -> list[str]:
    """Return sentences about the numbers of lesions and their leakage."""
    index, texts = audit.own.index, []
    if known_lesions(index).any():
        groups = group_rows(index["lesion_id"])
        texts.append(
            f"Lesions: {len(index)} images of {index['lesion_id'].nunique()} lesions; {len(groups)} lesions have several images "
            f"({sum(map(len, groups))} in all)"
            + (": a split by image would leak, a split by lesion does not." if groups else ".")
        )
    else:
        texts.append("Lesions: the data set has no lesion ids; images of one lesion are grouped by image similarity.")
    if audit.other is not None:
        name, lesions = audit.other.entry.name, audit.lesion_by_other[audit.lesion_by_other != ""]
        groups = group_rows(audit.lesion_by_other)
        across = audit.counts("across_parts_by_other")[1]
        texts.append(
            f"Lesions by {name}: {len(lesions)} images here show {lesions.nunique()} lesions of {name}; {len(groups)} of these have "
            f"several images here ({sum(map(len, groups))} in all), and {across} are in several of the publisher's subsets."
            if len(lesions)
            else f"Lesions by {name}: none; no image here is a copy of an image of {name} with a known lesion."
        )
    for leak in audit.shared:
        known = (
            f"; {_percent(leak.known_shared, leak.known)} of the {leak.known} with a known lesion"
            if 0 < leak.known < leak.images
            else ""
        )
        texts.append(
            f"Subsets: {leak.shared} of the {leak.images} images of the {leak.part} subset ({_percent(leak.shared, leak.images)}{known}) "
            f"show a lesion that is also in {leak.other}, by {_sources(audit)}."
        )
    return texts


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %"


def _sources(audit: Audit) -> str:
    sources = ["lesion ids"] if known_lesions(audit.own.index).any() else []
    sources += ["copies"] if audit.copies else []
    sources += [f"the lesion ids of {audit.other.entry.name}"] if audit.other and audit.lesions_by_other else []
    return " and ".join(sources)


def confounding_text(audit: Audit) -> str:
    """Return a sentence with the result of the confounding check."""
    if audit.confounding is None:
        return f"Class and source: not measured, {audit.unmeasured}."
    result = audit.confounding
    strongest = ", ".join(f"{what} {area:.2f}" for what, area in result.features[["what", "auroc"]].head(3).values)
    return (
        "Class and source: from file, size, frame and image edge alone, the classes are predicted with an AUROC of "
        f"{result.auroc:.3f} ({result.low:.3f} – {result.high:.3f}; 0.5 is chance; {result.images} images, cross-validated by lesion)."
        + (" With so few images the interval is too narrow." if result.images < FEW else "")
        + (f" Strongest single features: {strongest}." if strongest else "")
    )


def source_texts(audit: Audit) -> list[str]:
    """Return one sentence per confounding check within a class or method."""
    return [
        f"{source.what} {'are' if source.what.endswith('classes') else 'is'} predicted from these features with an AUROC of "
        f"{result.auroc:.3f} ({result.low:.3f} – {result.high:.3f}; {result.images} images)."
        for source in audit.sources
        for result in (source.confounding,)
    ]


def write_csv(audit: Audit, path: Path) -> Path:
    """Write the findings as CSV, with the columns `COLUMNS`.

    There is one row per image and finding. The first rows describe the whole data set and have no image: `lesions` (detail is a sentence of
    `lesion_texts`) and `confounding` (value is an AUROC; detail names the model, an end of its interval, or a single feature).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = [("lesions", 0, "", "", float("nan"), text) for text in lesion_texts(audit)]
    if audit.confounding is not None:
        result = audit.confounding
        areas = [
            ("all features together", result.auroc),
            ("low end of its interval", result.low),
            ("high end of its interval", result.high),
        ]
        areas += [(source.what, source.confounding.auroc) for source in audit.sources]
        areas += [(str(feature), float(area)) for feature, area in result.features[["feature", "auroc"]].values]
        whole += [("confounding", 0, "", "", area, detail) for detail, area in areas]
    rows = [*whole, *audit.findings.itertuples(index=False, name=None)]
    pd.DataFrame(rows, columns=COLUMNS).to_csv(path, index=False, float_format="%.6g")
    return path


def write_images(audit: Audit, path: Path) -> Path:
    """Write one row per image: index columns, errors, size (px), quality, flags.

    Quality columns are named as in `skincancer.imaging.quality.NAMES`. Flags are the violated rules, separated by "; ".
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    index, facts = audit.own.index, audit.own.facts.table
    quality = facts[["error", "mask_error", "width", "height", *NAMES]].rename(columns=NAMES)
    read = facts["error"] == ""
    quality = quality.assign(
        width=quality["width"].where(read).astype("Int64"), height=quality["height"].where(read).astype("Int64")
    )
    flags = audit.flagged.set_index("image_id").reindex(index["image_id"]).fillna("").reset_index(drop=True)
    flagged = pd.DataFrame({"flags": flags["flags"], "reasons": flags["reason"]})
    pd.concat([index[list(INDEX_COLUMNS)], quality, flagged], axis=1).to_csv(path, index=False, float_format="%.6g")
    return path
