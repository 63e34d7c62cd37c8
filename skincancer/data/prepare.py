"""Prepare the data of a run: index, labels, roles, store and features."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from skincancer.data.cache import ProgressBar
from skincancer.data.catalog import Dataset, malignant_classes
from skincancer.data.catalog import dataset as catalog_entry
from skincancer.data.feature_table import FeatureTable, open_features
from skincancer.data.file_facts import Examination, examine, find_flagged, kept_examination
from skincancer.data.groups import (
    check_groups,
    check_lesions,
    check_merged,
    count_shared_ids,
    known_lesions,
    merge_groups,
    merge_patients,
)
from skincancer.data.image_files import unpacked_root
from skincancer.data.index import add_target, find_root, image_root, index_hash, load_index
from skincancer.data.mask_sources import MaskSource
from skincancer.data.positive_class import check_positive
from skincancer.data.readers import demo
from skincancer.data.reading import Reading
from skincancer.data.same_files import merge_same_files
from skincancer.data.splits import Roles, assign_roles, parse_split, split_hash
from skincancer.data.store import Store, open_store
from skincancer.errors import DataError, NoDiagnoses, SplitError
from skincancer.imaging.mask_operations import mask_extent
from skincancer.imaging.preprocessing import Preprocessing
from skincancer.imaging.quality import COLUMNS as QUALITY_COLUMNS
from skincancer.imaging.quality import FLAGS
from skincancer.schema.data import DataConfig
from skincancer.schema.tasks import TASKS
from skincancer.system.paths import cache_folder, data_folder

ROLES: tuple[Literal["train", "val", "test"], ...] = ("train", "val", "test")
SUBSETS = {"train": "training set", "val": "validation set", "test": "test set"}
SPLIT_COLUMNS = ("image_id", "lesion_id", "diagnosis", "label", "role", "age", "sex", "site", "dx_type")
FLAGGED = "flagged: "
SHOWN_REASONS = 8


@dataclass(frozen=True)
class PreparedData:
    """Prepared data of a run.

    Attributes:
        index: one row per image, in the order of the store: the columns of the index, `label`, `role` ("" for none), `width` and
            `height` of the original (px). If an audit or `data.quality` measured the quality, also the columns of `imaging.quality`
            and `quality_flags` (violated rules, separated by "; ").
        dropped: images without a role: image_id, reason.
        segmenter_saw: number of test images that overlap with the images of the segmenter of crops or features (`data.overlap`).
        flagged: number of images left out by `data.quality`.
        features: hand-crafted features of every image, None if not requested.
        reading: messages about the data set.
        lesions: number of lesions, before those of a patient are merged. 0 if no image has a lesion id.
        shared_lesion_ids: number of lesion ids that belong to several patients.
    """

    entry: Dataset
    root: Path
    index: pd.DataFrame
    classes: tuple[str, ...]
    store: Store
    dropped: pd.DataFrame
    leaking_groups: int
    leaking_images: int
    index_hash: str
    split_hash: str
    groups_hash: str
    segmenter_saw: int = 0
    flagged: int = 0
    features: FeatureTable | None = None
    reading: Reading = field(default_factory=Reading)
    lesions: int = 0
    shared_lesion_ids: int = 0

    @property
    def split_table(self) -> pd.DataFrame:
        """Content of split.csv: `SPLIT_COLUMNS`, and the quality if measured."""
        return self.index[[name for name in (*SPLIT_COLUMNS, *QUALITY_COLUMNS, FLAGS) if name in self.index]]

    @property
    def left_out(self) -> str:
        """Counts of images without a role by reason, most frequent first."""
        if self.dropped.empty:
            return ""
        path = dict(zip(self.index["image_id"], self.index["image"], strict=True))
        kinds = Counter[str]()
        for image_id, reason in zip(self.dropped["image_id"], self.dropped["reason"], strict=True):
            kind = str(reason).replace(f"{image_root(self.root) / path[image_id]} ", "")
            # Measured values differ between images, so only dropped.csv contains them.
            kinds.update(re.sub(r" \([^()]*\)", "", kind).split("; ") if kind.startswith(FLAGGED) else [kind[:120]])
        counts = "; ".join(
            f"{count} × {kind.removeprefix(FLAGGED)}" for kind, count in kinds.most_common(SHOWN_REASONS)
        )
        more = f"; and {len(kinds) - SHOWN_REASONS} more reasons" if len(kinds) > SHOWN_REASONS else ""
        return f"{len(self.dropped)} images (dropped.csv): {counts}{more}"

    def rows(self, role: str) -> pd.DataFrame:
        """Return the index rows of one role."""
        return self.index[self.index["role"] == role]


def locate_dataset(config: DataConfig, progress: ProgressBar | None = None) -> tuple[Dataset, Path]:
    """Find the folder of a data set. Create a missing demo.

    Raises:
        DataError: the data are missing. The message explains how to get them.
    """
    entry = catalog_entry(config.dataset)
    if entry.name != "demo":
        root = unpacked_root(find_root(entry, config.root, data_folder()))
        return entry.renamed(config.name), root
    root = Path(config.root) if config.root else demo.default_root(cache_folder())
    # The demo folder is created atomically, so metadata.csv proves that it is complete. Its content does not matter.
    if not (root / "metadata.csv").is_file():
        demo.draw(root, progress=progress("creating the demo") if progress else None)
    return entry, root


def prepare_data(
    config: DataConfig, masks: MaskSource | None = None, progress: ProgressBar | None = None, jobs: int = -1,
    task: str = "classification", whole: bool = False, hand_crafted: bool = False, for_fit: bool = False,
) -> PreparedData:  # fmt: skip
    """Assign labels and roles to images, and open their store.

    Roles are computed on the full index, before images are dropped, so that an unreadable file changes no other image's role.

    Args:
        masks: mask source of `config.masks`, required for crops and for hand-crafted features.
        jobs: number of worker processes, -1 for one per core.
        task: classification drops images without a label, segmentation images without a mask, joint images with neither.
            Segmentation and joint store masks.
        whole: use every image as a test image, for the evaluation of a finished run.
        hand_crafted: also open the table of hand-crafted features.
        for_fit: the positive class of two classes must be known.

    Raises:
        ConfigError: the split, target or positive class does not fit the data.
        DataError: the data are missing, have another layout, are unreadable, or leak between subsets.
        SplitError: the data set has too few images to split.
    """
    kind = TASKS[task]
    entry, root = locate_dataset(config, progress)
    images = image_root(root)
    reading = Reading.from_config(config)
    index, diagnoses = load_index(entry, root, reading)
    if kind.has_classes and index["diagnosis"].isna().all():
        raise NoDiagnoses(
            f"{entry.name} in {root} has no diagnoses, which {task} needs. To get them: {entry.how_to_get}"
        )
    reading.warnings.extend(check_lesions(index) + check_groups(index["patient_id"], "patient"))
    lesions = len(index[["patient_id", "lesion_id"]].drop_duplicates()) if known_lesions(index).any() else 0
    shared_ids = count_shared_ids(index)
    if shared_ids:
        reading.notes.append(
            f"{shared_ids} lesion ids belong to several patients: a lesion is a lesion id of one patient"
        )
    index, same_files = merge_same_files(index, images)
    if same_files:
        reading.notes.append(same_files)
    index, groups_hash = merge_patients(index), ""
    if config.groups:
        before = index["lesion_id"]
        index, groups_hash = merge_groups(index, Path(config.groups), is_part=bool(config.where))
        reading.warnings.extend(check_merged(index, before))
    index, classes = add_target(index, entry, diagnoses, config.target, config.malignant_names, config.positive_name)
    if for_fit and kind.has_classes:
        malignant = malignant_classes(entry, classes, config.target, config.malignant_names)
        check_positive(classes, malignant, config.positive_name)
    if kind.has_masks and index["mask"].isna().all():
        raise DataError(f"{entry.name} in {root} has no masks, which {task} needs. To get them: {entry.how_to_get}")
    source = None
    if config.crop or hand_crafted:
        assert masks is not None, "crops and features need a mask source"
        source = masks.resolve(index, entry)
    preprocessing = Preprocessing.from_config(asdict(config), source.name if source and config.crop else None)
    if whole:
        roles = Roles(np.full(len(index), "test", dtype=object))
    else:
        _check_training_set(index, entry, root)
        try:
            roles = assign_roles(index, parse_split(config.split), config.split_seed, config.leaks)
        except DataError as error:
            # Links explain lesions in two subsets of data without lesion ids.
            raise type(error)(f"{error}{f' Note: {same_files}.' if same_files else ''}") from error
    store = open_store(
        index, images, cache_folder(), preprocessing, masks=kind.has_masks,
        find_masks=partial(source.find, index, images, mask_extent, progress, jobs) if source and config.crop else None,
        progress=progress(f"preparing {entry.name} at {config.size} px") if progress else None, jobs=jobs,
    )  # fmt: skip
    features = None
    if source and hand_crafted:
        features = open_features(index, root, entry, source, config.clean, progress, jobs)
    bad = store.bad if features is None else pd.concat([store.bad, features.bad]).drop_duplicates("image_id")
    if len(bad) and not config.skip_bad:
        raise DataError(
            f"{len(bad)} of {len(index)} images of {entry.name} cannot be used:\n  {list_bad(bad)}\n"
            "Replace them, or use --data.skip_bad true to leave them out and list them in dropped.csv."
        )
    identity = index_hash(index), split_hash(index, roles)
    index = index.assign(role=roles.role, width=store.table["width"], height=store.table["height"])
    dropped = _dropped(index, roles, bad, task)
    flagged = 0
    examination = _examine(config, index, root, entry, progress, jobs)
    if examination is not None:
        poor = find_flagged(examination, config.quality_rules)
        index = _with_quality(index, examination, poor)
        if config.quality == "drop_flagged":
            poor = poor[~poor["image_id"].isin(dropped["image_id"])]
            flagged = len(poor)
            poor = pd.DataFrame({"image_id": poor["image_id"], "reason": FLAGGED + poor["reason"]})
            dropped = pd.concat([dropped, poor], ignore_index=True)
    index.loc[index["image_id"].isin(dropped["image_id"]), "role"] = ""
    if whole:
        _check_whole(index, entry, task)
    else:
        _check_roles(index, classes if kind.has_classes else None, kind.has_masks)
    return PreparedData(
        entry=entry, root=root, index=index, classes=classes, store=store, dropped=dropped,
        leaking_groups=roles.leaking_groups, leaking_images=roles.leaking_images,
        index_hash=identity[0], split_hash=identity[1], groups_hash=groups_hash,
        segmenter_saw=source.count_overlap(index, entry) if source else 0, flagged=flagged, features=features,
        reading=reading, lesions=lesions, shared_lesion_ids=shared_ids,
    )  # fmt: skip


def _examine(
    config: DataConfig, index: pd.DataFrame, root: Path, entry: Dataset, progress: ProgressBar | None, jobs: int
) -> Examination | None:
    """Return the file facts if `data.quality` needs them or if cached."""
    if config.quality == "keep":
        return kept_examination(index, image_root(root), cache_folder())
    report = progress(f"measuring the quality of {entry.name}") if progress else None
    return examine(index, image_root(root), cache_folder(), report, jobs)


def _with_quality(index: pd.DataFrame, examination: Examination, flagged: pd.DataFrame) -> pd.DataFrame:
    rules = index["image_id"].map(dict(zip(flagged["image_id"], flagged["flags"], strict=True))).fillna("")
    return index.assign(**{name: examination.table[name] for name in QUALITY_COLUMNS}, **{FLAGS: rules})


def list_bad(bad: pd.DataFrame) -> str:
    """Join up to twenty texts of the column `error` as indented lines."""
    more = [f"… and {len(bad) - 20} more"] if len(bad) > 20 else []
    return "\n  ".join([*bad["error"].head(20), *more])


def _dropped(index: pd.DataFrame, roles: Roles, bad: pd.DataFrame, task: str) -> pd.DataFrame:
    reasons: dict[str, str] = dict.fromkeys(index.loc[index["role"] == "", "image_id"], "no role in this split")
    unlabelled, unmasked = index["label"] < 0, index["mask"].isna()
    unusable, reason = {
        "classification": (unlabelled, "no label"),
        "segmentation": (unmasked, "no mask"),
        "joint": (unlabelled & unmasked, "no mask and no label"),
    }[task]
    reasons |= dict.fromkeys(index.loc[unusable, "image_id"], reason)
    reasons |= dict.fromkeys(roles.dropped, "its lesion or patient is also in another subset of the publisher")
    reasons |= dict(zip(bad["image_id"], bad["error"], strict=True))
    return pd.DataFrame({"image_id": list(reasons), "reason": list(reasons.values())})


def _check_training_set(index: pd.DataFrame, entry: Dataset, root: Path) -> None:
    parts = set(index["part"])
    if "train" not in parts and "" not in parts:
        names = " and ".join(SUBSETS[part] for part in ROLES if part in parts)
        raise SplitError(
            f"{entry.name} in {root} contains only the publisher's {names}, so that there is nothing to train on. Add the training set; "
            "prepare, evaluate --part all and predict work without it."
        )


def _check_whole(index: pd.DataFrame, entry: Dataset, task: str) -> None:
    test, masks = index[index["role"] == "test"], TASKS[task].has_masks
    if test.empty or (masks and test["mask"].isna().all()):
        raise DataError(
            f"{entry.name} has no readable image with a {'mask' if masks else 'label'} to evaluate. Use other data."
        )


def _check_roles(index: pd.DataFrame, classes: tuple[str, ...] | None, masks: bool) -> None:
    for role in ROLES:
        subset = index[index["role"] == role]
        if subset.empty:
            raise SplitError(f"the {SUBSETS[role]} has no image. Use another --data.split.")
        if masks and subset["mask"].isna().all():
            raise SplitError(f"the {SUBSETS[role]} has no image with a mask. Add masks, or use another --data.split.")
        if classes is None:
            continue
        labels = set(subset.loc[subset["label"] >= 0, "label"])
        missing = [name for label, name in enumerate(classes) if label not in labels]
        if role == "train" and missing:
            raise SplitError(
                f"the training set has no image of {', '.join(missing)}. Add images, or use another --data.split."
            )
        if len(labels) < 2:
            raise SplitError(
                f"the {SUBSETS[role]} has images of {len(labels)} classes; expected at least 2. Use another --data.split."
            )
