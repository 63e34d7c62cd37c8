"""An audit as tables and sentences: what the terminal, the page and the CSV files tell of it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from skincancer.data.audit import Audit
from skincancer.data.confounding import FEW
from skincancer.data.findings import COLUMNS, FINDINGS
from skincancer.data.index import COLUMNS as INDEX_COLUMNS
from skincancer.data.lesions import group_rows, known_lesions
from skincancer.images.quality import NAMES


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

    The quality is under the names of `skincancer.images.quality.NAMES`; flags are the rules that it breaks, "; " between.
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
