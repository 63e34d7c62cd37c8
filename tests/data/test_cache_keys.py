"""Keys of stores and feature tables: a cache that exists must stay valid, so the keys are compared with literals."""

import hashlib
import json
import os

import numpy as np
import pandas as pd
import pytest
from image_writers import write_png
from PIL import Image

from skincancer.data.cache import files_key
from skincancer.data.mask_sources import BY_NAME
from skincancer.data.prepare import prepare_data
from skincancer.imaging.preprocessing import Preprocessing
from skincancer.inference import model
from skincancer.inference.model import SegmenterMasks, mask_source
from skincancer.schema.data import DataConfig

STAMP = 10**18  # ns: keys contain the times of the files


class Segmenter:
    digest, preprocessing, batch_size = "0123", Preprocessing(4, "stretch"), 4

    def __init__(self):
        self.settings = {"data": {"dataset": "demo"}}

    def predict(self, squares):
        return type("ModelOutput", (), {"lesion": np.ones((len(squares), 4, 4), np.float32)})

    def mask(self, lesion, view):
        return np.ones((view.height, view.width), dtype=bool)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Two images of 4 × 4 px: all.csv gives a mask to both, some.csv to one."""
    monkeypatch.setenv("SKINCANCER_CACHE", str(tmp_path / "cache"))
    for name in "ab":
        (tmp_path / f"{name}.ppm").write_bytes(b"P6 4 4 255\n" + bytes(range(48)))
        (tmp_path / f"{name}_mask.pgm").write_bytes(b"P5 4 4 255\n" + bytes([0] * 5 + [255] * 2 + [0] * 9))
        for file in (f"{name}.ppm", f"{name}_mask.pgm"):
            os.utime(tmp_path / file, ns=(STAMP, STAMP))
    (tmp_path / "all.csv").write_text("image,mask,diagnosis\na.ppm,a_mask.pgm,nv\nb.ppm,b_mask.pgm,mel\n")
    (tmp_path / "some.csv").write_text("image,mask,diagnosis\na.ppm,a_mask.pgm,nv\nb.ppm,,mel\n")
    return tmp_path


def prepared(root, table="all", masks="auto", task="classification", hand_crafted=False, **config):
    split = pd.DataFrame({"image_id": [], "lesion_id": [], "role": []}, dtype=str)
    source = BY_NAME[masks] if masks in BY_NAME else SegmenterMasks(Segmenter(), split)
    settings = DataConfig(dataset="csv", root=str(root / f"{table}.csv"), size=8, masks=masks, skip_bad=True, **config)
    return prepare_data(settings, source, jobs=1, task=task, hand_crafted=hand_crafted, whole=True)


# of commit 6ad2922: a raised FORMAT changes these keys, and nothing else may
@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({}, "7c68fa9295a621587e22d3cfde517639"),
        ({"task": "segmentation"}, "c70b640f17cc198a649af060ad5e0371"),
        ({"resize": "pad", "clean": ["frame", "contrast"]}, "b07c7a8bad28d84d56ca1005d45dba12"),
        ({"crop": True, "crop_margin": 0.1, "masks": "truth"}, "a66715d75acfc463eef644166158252f"),
        ({"crop": True, "crop_margin": 0.1, "masks": "auto"}, "a66715d75acfc463eef644166158252f"),
        ({"crop": True, "crop_margin": 0.1, "masks": "otsu"}, "1eea4c26b3cdb898499e3977ef2e9730"),
        ({"crop": True, "crop_margin": 0.1, "masks": "run:x"}, "f4b485f839da49cc994831288bbbd5b0"),
        ({"crop": True, "masks": "otsu", "clean": ["contrast"]}, "ff857d1742aeeae6b4451cff427b7313"),
        ({"crop": True, "crop_margin": 0.1, "table": "some"}, "1ebd43b55a7bb07092f2e167872d1193"),
    ],
)
def test_keys_of_stores(root, options, key):
    assert prepared(root, **options).store.folder.name == key


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"masks": "truth"}, "50590d17baadda4530ac81671f5cc7a9"),
        ({"masks": "auto"}, "50590d17baadda4530ac81671f5cc7a9"),
        ({"masks": "otsu"}, "71e9efed537a9d3fdb6691df12fdcd06"),
        ({"masks": "run:x"}, "506d6c86ee1c075524a08a1727fe0b42"),
        ({"masks": "otsu", "clean": ["contrast"]}, "6f7f4ce0b402f19df98f9b51658944a9"),
        ({"table": "some"}, "938637ed01f0caf943a3321963ea59b9"),
    ],
)
def test_keys_of_feature_tables(root, options, key):
    assert prepared(root, hand_crafted=True, **options).features.folder.name == key


def test_the_segmenter_is_loaded_once_for_store_and_feature_table(root, monkeypatch):
    loads = []
    monkeypatch.setattr(model, "load_segmenter", lambda run, _, purpose: loads.append((run, purpose)) or Segmenter())
    (root / "split.csv").write_text("image_id,lesion_id,role\na,a,train\n")
    config = DataConfig(dataset="csv", root=str(root / "all.csv"), size=8, masks=f"run:{root}")
    data = prepare_data(config, mask_source(config, None), jobs=1, hand_crafted=True, whole=True)
    assert loads == [(str(root), f"data.masks run:{root}")]
    assert set(data.features.table["masks"]) == {"run:0123"}


@pytest.mark.parametrize(("name", "bits", "same"), [("a.png", 8, True), ("a.png", 16, False), ("a.dcm", 8, False)])
def test_only_files_that_were_read_otherwise_get_new_keys(tmp_path, name, bits, same):
    """Older versions read 16 bits per channel almost black or not at all, and cached that."""
    file = tmp_path / name
    if bits == 16:
        write_png(file, np.zeros((4, 4, 3), np.uint16))
    else:
        Image.new("RGB", (4, 4)).save(file, format="png")
    os.utime(file, ns=(STAMP, STAMP))
    index = pd.DataFrame({"image_id": ["a"], "image": [name], "mask": [None]})
    old = f"{json.dumps({})}a\0{name}\0{file.stat().st_size}\0{STAMP}\n"
    assert (files_key(index, tmp_path, {}, masks=False) == hashlib.sha256(old.encode()).hexdigest()[:32]) == same
