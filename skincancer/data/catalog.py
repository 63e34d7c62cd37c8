"""Catalog of data sets: source, layout, licence, classes and allowed tasks.

This module imports no large library, because names are checked before pandas, numpy or torch are loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from skincancer.errors import ConfigError, nearest

HAM10000_CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")

# akiec contains actinic keratoses and intraepithelial carcinoma (Bowen's disease). Studies usually count it as
# malignant when they group the seven classes into two.
HAM10000_MALIGNANT = ("akiec", "bcc", "mel")

HAM10000_CITATION = (
    "Tschandl P., Rosendahl C., Kittler H. The HAM10000 dataset, a large collection of multi-source dermatoscopic "
    "images of common pigmented skin lesions. Sci Data 5, 180161 (2018). doi:10.1038/sdata.2018.161"
)
ISIC2018_CITATION = (
    "Codella N., Rotemberg V., Tschandl P., et al. Skin Lesion Analysis Toward Melanoma Detection 2018: A Challenge "
    "Hosted by the International Skin Imaging Collaboration (ISIC). arXiv:1902.03368 (2019)"
)
ISIC2017_CITATION = (
    "Codella N., Gutman D., Celebi M. E., et al. Skin Lesion Analysis Toward Melanoma Detection: A Challenge at the 2017 "
    "International Symposium on Biomedical Imaging (ISBI), Hosted by the International Skin Imaging Collaboration (ISIC). "
    "arXiv:1710.05006 (2017)"
)
ISIC2016_CITATION = (
    "Gutman D., Codella N., Celebi E., et al. Skin Lesion Analysis toward Melanoma Detection: A Challenge at the "
    "International Symposium on Biomedical Imaging (ISBI) 2016, hosted by the International Skin Imaging Collaboration "
    "(ISIC). arXiv:1605.01397 (2016)"
)
PH2_CITATION = (
    "Mendonça T., Ferreira P. M., Marques J. S., Marcal A. R. S., Rozeira J. PH2 - A dermoscopic image database for "
    "research and benchmarking. 35th Annual International Conference of the IEEE Engineering in Medicine and Biology "
    "Society (EMBC), 5437-5440 (2013). doi:10.1109/EMBC.2013.6610779"
)


SYNTHETIC_NOTE = "synthetic data: no medical meaning"  # for figures and titles
SYNTHETIC_WARNING = "SYNTHETIC DATA: the images are synthetic. The numbers have no medical meaning."  # for pages

ISIC_HOST = "https://isic-challenge-data.s3.amazonaws.com"
HAM10000_DOI = "doi:10.7910/DVN/DBW86T"


@dataclass(frozen=True)
class Source:
    """File that `prepare NAME --download` downloads.

    Attributes:
        url: URL, or the `doi:` of a Harvard Dataverse data set. The Dataverse then gives URL, size and md5.
        file: Published file name; an archive if it ends in .zip.
        target: Path in the root: folder of an unpacked archive, or name of any other file.
        checksum: "md5:…" or "sha256:…" from the publisher, None if unknown. The ISIC challenges publish none.
        size: Size in bytes, None if unknown.
        holds: Required ending of a file name in the archive, in any case. It detects a wrong archive.
    """

    url: str
    file: str
    target: str
    checksum: str | None = None
    size: int | None = None
    holds: str = ""


def _isic(year: int, *files: str) -> tuple[Source, ...]:
    return tuple(
        Source(f"{ISIC_HOST}/{year}/{file}", file, file.removesuffix(".zip"), holds=_content(file)) for file in files
    )


def _content(file: str) -> str:
    """Return the ending of the files in an archive, "" for other files.

    An archive contains images, masks, or the diagnoses of Task 3 of 2018.
    """
    if not file.endswith(".zip"):
        return ""
    if "GroundTruth" not in file:
        return ".jpg"
    return ".csv" if "Task3" in file else "_segmentation.png"


@dataclass(frozen=True)
class Dataset:
    """Catalog entry of one data set.

    Attributes:
        name: Value of `data.dataset`, and name of the default folder.
        title: Printed name.
        reader: Dotted `module:function`. The function takes the root folder and returns the index table.
        tasks: Tasks that the annotations allow: classification, segmentation, joint.
        classes: Diagnoses in fixed order. If empty, the sorted diagnoses of the index.
        malignant: Classes that count as malignant. If empty, the user sets `data.malignant`.
        licence: Licence of the images.
        citation: Publications to cite.
        how_to_get: Where to download the files, and where to unpack them.
        layout: Files that the reader expects in the root folder.
        defaults: Dotted config keys with other defaults than in the schema.
        synthetic: The images are synthetic.
        downloads: Files that anyone may download. Empty if an account or a request is needed.
        copies: Other data sets with the same images under other names and encodings, where ids and pixels cannot match.
    """

    name: str
    title: str
    reader: str
    tasks: tuple[str, ...]
    classes: tuple[str, ...]
    malignant: tuple[str, ...]
    licence: str
    citation: str
    how_to_get: str
    layout: str
    defaults: Mapping[str, Any] = field(default_factory=dict, hash=False)
    synthetic: bool = False
    downloads: tuple[Source, ...] = ()
    copies: tuple[str, ...] = ()

    def renamed(self, name: str | None) -> Dataset:
        """Return the entry under another name (`data.name`), None to keep its own."""
        return replace(self, name=name, title=name) if name else self


DATASETS: dict[str, Dataset] = {
    "demo": Dataset(
        name="demo",
        title="Demo (synthetic dermoscopy)",
        reader="skincancer.data.readers.demo:read",
        tasks=("classification", "segmentation", "joint"),
        classes=HAM10000_CLASSES,
        malignant=HAM10000_MALIGNANT,
        licence="Apache-2.0, generated by this project",
        citation="",
        how_to_get="Nothing to download: the images are generated within seconds on first use.",
        layout="written by skincancer.data.readers.demo",
        defaults={
            "data.size": 64,
            "trainer.max_epochs": 14,
            "data.batch_size": 16,
            "model.optimizer.lr": 1e-3,
        },
        synthetic=True,
    ),
    "ham10000": Dataset(
        name="ham10000",
        title="HAM10000",
        reader="skincancer.data.readers.ham10000:read",
        tasks=("classification", "segmentation", "joint"),
        classes=HAM10000_CLASSES,
        malignant=HAM10000_MALIGNANT,
        licence="CC BY-NC 4.0",
        citation=HAM10000_CITATION,
        how_to_get=(
            "Harvard Dataverse, https://doi.org/10.7910/DVN/DBW86T: HAM10000_images_part_1.zip, "
            "HAM10000_images_part_2.zip, HAM10000_metadata and, for masks, HAM10000_segmentations_lesion_tschandl.zip; "
            "unpack each archive into a folder of the same name."
        ),
        layout=(
            "HAM10000_metadata.csv (or HAM10000_metadata, HAM10000_metadata.tab); the images (*.jpg) in "
            "HAM10000_images_part_1/ and HAM10000_images_part_2/, or all in HAM10000_images/, images/ or the root "
            "itself; optionally HAM10000_segmentations_lesion_tschandl/<image id>_segmentation.png"
        ),
        downloads=(
            Source(HAM10000_DOI, "HAM10000_metadata", "HAM10000_metadata.csv"),
            *(
                Source(HAM10000_DOI, f"{name}.zip", name, holds="_segmentation.png" if "lesion" in name else ".jpg")
                for name in (
                    "HAM10000_segmentations_lesion_tschandl",
                    "HAM10000_images_part_1",
                    "HAM10000_images_part_2",
                )
            ),
        ),
    ),
    "isic2018_task3": Dataset(
        name="isic2018_task3",
        title="ISIC 2018 Task 3",
        reader="skincancer.data.readers.isic2018_task3:read",
        tasks=("classification",),
        classes=HAM10000_CLASSES,
        malignant=HAM10000_MALIGNANT,
        licence="CC BY-NC 4.0",
        citation=f"{ISIC2018_CITATION}; {HAM10000_CITATION}",
        how_to_get=(
            "https://challenge.isic-archive.com/data/#2018, Task 3: the Training, Validation and Test archives "
            "ISIC2018_Task3_<Part>_Input.zip and ISIC2018_Task3_<Part>_GroundTruth.zip, and "
            "ISIC2018_Task3_Training_LesionGroupings.csv; unpack each archive into a folder of the same name."
        ),
        layout=(
            "ISIC2018_Task3_Training_Input/*.jpg, "
            "ISIC2018_Task3_Training_GroundTruth/ISIC2018_Task3_Training_GroundTruth.csv, "
            "ISIC2018_Task3_Training_LesionGroupings.csv; also, or alone, Input and GroundTruth of Validation and of Test. "
            "The CSV files may also be in the root"
        ),
        downloads=_isic(
            2018,
            "ISIC2018_Task3_Training_LesionGroupings.csv",
            *(
                f"ISIC2018_Task3_{part}_{kind}.zip"
                for part in ("Training", "Validation", "Test")
                for kind in ("GroundTruth", "Input")
            ),
        ),
    ),
    "isic2018_task1": Dataset(
        name="isic2018_task1",
        title="ISIC 2018 Task 1",
        reader="skincancer.data.readers.isic_segmentation:read_2018",
        tasks=("segmentation",),
        classes=(),
        malignant=(),
        licence="CC0",
        citation=f"{ISIC2018_CITATION}; {HAM10000_CITATION}",
        how_to_get=(
            "https://challenge.isic-archive.com/data/#2018, Task 1: the Training, Validation and Test archives "
            "ISIC2018_Task1-2_<Part>_Input.zip and ISIC2018_Task1_<Part>_GroundTruth.zip; unpack them side by side."
        ),
        layout=(
            "ISIC2018_Task1-2_Training_Input/<image id>.jpg and "
            "ISIC2018_Task1_Training_GroundTruth/<image id>_segmentation.png; also, or alone, the same of Validation and Test"
        ),
        downloads=_isic(
            2018,
            *(
                f"ISIC2018_{kind.format(part)}.zip"
                for part in ("Training", "Validation", "Test")
                for kind in ("Task1_{}_GroundTruth", "Task1-2_{}_Input")
            ),
        ),
    ),
    "isic2017_task1": Dataset(
        name="isic2017_task1",
        title="ISIC 2017 Parts 1 and 3",
        reader="skincancer.data.readers.isic_segmentation:read_2017",
        tasks=("classification", "segmentation", "joint"),
        classes=("melanoma", "nevus", "seborrheic_keratosis"),
        malignant=("melanoma",),
        licence="CC0",
        citation=ISIC2017_CITATION,
        how_to_get=(
            "https://challenge.isic-archive.com/data/#2017: ISIC-2017_<Part>_Data.zip and "
            "ISIC-2017_<Part>_Part1_GroundTruth.zip for <Part> = Training, Validation and Test_v2; unpack them side by "
            "side. For diagnoses, add ISIC-2017_<Part>_Part3_GroundTruth.csv to the same folder; for classification alone, the masks "
            "are not needed."
        ),
        layout=(
            "ISIC-2017_<Part>_Data/<image id>.jpg of one or more of Training, Validation and Test_v2; for segmentation and joint "
            "ISIC-2017_<Part>_Part1_GroundTruth/<image id>_segmentation.png; for classification and joint "
            "ISIC-2017_<Part>_Part3_GroundTruth.csv of each available subset"
        ),
        downloads=_isic(
            2017,
            *(
                f"ISIC-2017_{part}_{kind}"
                for part in ("Training", "Validation", "Test_v2")
                for kind in ("Part3_GroundTruth.csv", "Part1_GroundTruth.zip", "Data.zip")
            ),
        ),
    ),
    "isic2016_task1": Dataset(
        name="isic2016_task1",
        title="ISIC 2016 Parts 1 and 3",
        reader="skincancer.data.readers.isic_segmentation:read_2016",
        tasks=("classification", "segmentation", "joint"),
        classes=("benign", "malignant"),
        malignant=("malignant",),
        licence="CC0",
        citation=ISIC2016_CITATION,
        how_to_get=(
            "https://challenge.isic-archive.com/data/#2016, Part 1: ISBI2016_ISIC_Part1_<Part>_Data.zip and "
            "ISBI2016_ISIC_Part1_<Part>_GroundTruth.zip of Training and Test; unpack them side by side. For diagnoses, add "
            "ISBI2016_ISIC_Part3_<Part>_GroundTruth.csv of Part 3 to the same folder; for classification alone, the masks are not needed."
        ),
        layout=(
            "ISBI2016_ISIC_Part1_<Part>_Data/<image id>.jpg (or ISBI2016_ISIC_Part3_<Part>_Data) of one or both of Training and Test; for "
            "segmentation and joint ISBI2016_ISIC_Part1_<Part>_GroundTruth/<image id>_Segmentation.png; for classification and "
            "joint ISBI2016_ISIC_Part3_<Part>_GroundTruth.csv of each available subset"
        ),
        downloads=_isic(
            2016,
            *(
                f"ISBI2016_ISIC_{kind.format(part)}"
                for part in ("Training", "Test")
                for kind in ("Part3_{}_GroundTruth.csv", "Part1_{}_GroundTruth.zip", "Part1_{}_Data.zip")
            ),
        ),
    ),
    "ph2": Dataset(
        name="ph2",
        title="PH²",
        reader="skincancer.data.readers.ph2:read",
        tasks=("classification", "segmentation", "joint"),
        classes=("atypical_nevus", "common_nevus", "melanoma"),
        malignant=("melanoma",),
        licence="for research and education only; redistribution is not allowed",
        citation=PH2_CITATION,
        how_to_get="On request at https://www.fc.up.pt/addi/; unpack the archive as it is.",
        layout=(
            "PH2_dataset.txt, PH2 Dataset images/<case>/<case>_Dermoscopic_Image/<case>.bmp and "
            "PH2 Dataset images/<case>/<case>_lesion/<case>_lesion.bmp; all may be inside PH2Dataset/"
        ),
    ),
    "malignant_vs_benign": Dataset(
        name="malignant_vs_benign",
        title="Skin Cancer: Malignant vs. Benign",
        reader="skincancer.data.readers.malignant_vs_benign:read",
        tasks=("classification",),
        classes=("benign", "malignant"),
        malignant=("malignant",),
        licence="ISIC Archive terms of use; the licence of each image applies",
        citation=(
            "Fanconi C. Skin Cancer: Malignant vs. Benign. Kaggle (2019), "
            "https://www.kaggle.com/datasets/fanconic/skin-cancer-malignant-vs-benign; images from the ISIC Archive"
        ),
        how_to_get=(
            "Kaggle, https://www.kaggle.com/datasets/fanconic/skin-cancer-malignant-vs-benign "
            "(kaggle datasets download fanconic/skin-cancer-malignant-vs-benign); unpack the archive as it is."
        ),
        layout="train/ and test/ (or data/train/ and data/test/), each with benign/*.jpg and malignant/*.jpg; one of both is enough",
        copies=("ham10000", "isic2018_task3"),
    ),
    "folder": Dataset(
        name="folder",
        title="One folder per class",
        reader="skincancer.data.readers.folder:read",
        tasks=("classification",),
        classes=(),
        malignant=(),
        licence="",
        citation="",
        how_to_get="Set --data.root to your folder.",
        layout="<class>/**/<image>, or train/, val/ and test/ each with <class>/**/<image>",
    ),
    "csv": Dataset(
        name="csv",
        title="CSV table of images",
        reader="skincancer.data.readers.csv_table:read",
        tasks=("classification", "segmentation", "joint"),
        classes=(),
        malignant=(),
        licence="",
        citation="",
        how_to_get="Set --data.root to your table, or to its folder.",
        layout=(
            "index.csv or a single CSV file with the column `image` (path relative to the folder of the table, or to "
            "--data.images) and `diagnosis` or `mask` or both; optional: image_id, lesion_id, patient_id, part (train, "
            "val, test), age, sex, site, dx_type"
        ),
    ),
}


def dataset(name: str, flag: str = "data.dataset") -> Dataset:
    """Return the catalog entry of a data set.

    Args:
        name: Name of the data set.
        flag: Key or flag with this name, for the error message.

    Raises:
        ConfigError: The name is unknown; with the nearest and all known names.
    """
    if name not in DATASETS:
        raise ConfigError(
            f"{flag} is {name!r}, which is not in the catalog.{nearest(name, DATASETS)} "
            f"Use one of {', '.join(DATASETS)}."
        )
    return DATASETS[name]


def malignant_classes(
    entry: Dataset, classes: tuple[str, ...], target: str, malignant: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Return the malignant classes of a run, () if unknown.

    Args:
        entry: Catalog entry of the data set.
        classes: Classes of the run, from `add_target`.
        target: `data.target`.
        malignant: `data.malignant`; if empty, the catalog decides.
    """
    known = ("malignant",) if target == "malignancy" else malignant or entry.malignant
    return tuple(name for name in classes if name in known)
