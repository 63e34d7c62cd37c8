"""Test predictions for image files: probabilities, paths, bad files, crops, sources of runs."""

import csv
import io
import os
import re
import shutil
import socket
import struct
import unicodedata
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import TINY_FIT, finished_run, put
from isic_challenge_scoring.classification import ClassificationMetric, ClassificationScore
from PIL import Image

from skincancer import predict
from skincancer.data import prepare
from skincancer.data.image_files import ImageSearch
from skincancer.data.prepare import prepare_data
from skincancer.data.readers import demo
from skincancer.errors import ConfigError, DataError
from skincancer.inference.image_files import ImageEntry, Shard, find_images
from skincancer.inference.model import mask_source
from skincancer.inference.predictor import load_predictor, map_in_order
from skincancer.runs.store import connect
from skincancer.schema.data import DataConfig

CLASSIFY = ["--experiment=resnet50", *TINY_FIT, "--model.tta=flips", "--data.resize=pad", "--data.split=40:60"]


@pytest.fixture(scope="module")
def finished(tiny_demo, session_cache, tmp_path_factory):
    """A finished classifier and its store."""
    folder = tmp_path_factory.mktemp("classified")
    with finished_run(session_cache, folder, *CLASSIFY, f"--data.root={tiny_demo}") as found:
        yield found


@pytest.fixture(scope="module")
def index(tiny_demo) -> pd.DataFrame:
    return demo.read(tiny_demo).set_index("image_id", drop=False)


@pytest.fixture
def folder(artifacts, tmp_path) -> Path:
    """Folder with only the files that a model is rebuilt from."""
    place = tmp_path / "downloaded"
    for name in ("config.yaml", "checkpoints/best.ckpt"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(artifacts / name, place / name)
    return place


@pytest.fixture
def image(tiny_demo, index) -> Path:
    return tiny_demo / index["image"].iloc[0]


def say(run, out: Path, *arguments) -> int:
    return predict.main(["--run", str(run), "--out", str(out), *map(str, arguments)])


def table(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "predictions.csv", dtype={"image_id": str, "correct": str}, keep_default_na=False)


def error_of(capsys) -> str:
    return " ".join(capsys.readouterr().err.split())


def test_probabilities_are_those_of_the_runs_own_test(run, artifacts, folder, tiny_demo, index, tmp_path):
    stored = pd.read_csv(artifacts / "predictions/test.csv", dtype={"image_id": str}).set_index("image_id")
    paths = [tiny_demo / index.loc[name, "image"] for name in stored.index]
    assert say(run.info.run_id, tmp_path / "out", *paths) == 0
    given = table(tmp_path / "out")
    columns = [name for name in stored.columns if name.startswith("p_")]
    assert list(given.columns) == ["image_id", "file", "prediction", *columns, "error"]
    assert given["image_id"].tolist() == stored.index.tolist()
    assert given["file"].tolist() == [str(path) for path in paths]
    assert given["prediction"].tolist() == stored["prediction"].tolist()
    # float32 through other threads and other memory: six digits
    np.testing.assert_allclose(given[columns], stored[columns], rtol=1e-6, atol=0)
    # in any other company an image rounds otherwise
    assert say(folder, tmp_path / "other", *reversed(paths)) == 0
    other = table(tmp_path / "other").set_index("image_id").loc[stored.index]
    np.testing.assert_allclose(other[columns], stored[columns], rtol=1e-4, atol=1e-7)


def test_needs_neither_data_nor_network_nor_store(folder, image, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "prepare_data", lambda *_, **__: pytest.fail("the training data were wanted"))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was wanted"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert say(folder, tmp_path / "out", image) == 0
    assert len(table(tmp_path / "out")) == 1


def test_folders_named_after_classes_give_the_truth(folder, index, tiny_demo, tmp_path, capsys):
    pictures = tmp_path / "pictures"
    for diagnosis in ("nv", "mel", "unknown"):
        (pictures / diagnosis).mkdir(parents=True)
        rows = index[index["diagnosis"] == ("nv" if diagnosis == "unknown" else diagnosis)].head(3)
        for number, row in enumerate(rows.itertuples()):
            shutil.copy(tiny_demo / row.image, pictures / diagnosis / f"{number}.jpg")
    (pictures / "nv/x.svg").write_bytes(b"<svg/>")
    assert say(folder, tmp_path / "out", pictures) == 0
    assert "skipped 1 file not read as images: 1 .svg\n" in capsys.readouterr().out
    found = table(tmp_path / "out")
    assert list(found.columns[:5]) == ["image_id", "file", "prediction", "truth", "correct"]
    assert sorted(found["image_id"]) == sorted(f"{name}/{n}" for name in ("nv", "mel", "unknown") for n in range(3))
    for row in found.itertuples():
        parent = Path(row.file).parent.name
        assert row.truth == ("" if parent == "unknown" else parent)
        assert row.correct == ("" if parent == "unknown" else "TRUE" if row.prediction == parent else "FALSE")


NAMES = [
    'comma, and "quote".jpg',
    "schön été 皮膚.jpg",
    "brackets [1].jpg",
    "<b>&amp;.jpg",
    "=1+1.jpg",
    "two\nlines.jpg",
]


def test_file_names_of_all_kinds_are_in_the_table(folder, image, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in NAMES:
        shutil.copy(image, pictures / name)
    bytes_name = os.fsencode(pictures) + b"/not utf-8 \xff.jpg"
    Path(os.fsdecode(bytes_name)).write_bytes(image.read_bytes())
    assert say(folder, tmp_path / "out", pictures) == 0
    with open(tmp_path / "out/predictions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {Path(row["file"]).name for row in rows} == {*NAMES, "not utf-8 \\udcff.jpg"}
    assert all(row["prediction"] and not row["error"] for row in rows)
    # given one by one, the file that is there goes before what its name means as a pattern
    assert say(folder, tmp_path / "one", *(pictures / name for name in NAMES)) == 0
    assert table(tmp_path / "one")["file"].tolist() == [str(pictures / name) for name in NAMES]


def test_patterns_are_searched(tmp_path):
    for name in ("a/1.jpg", "a/2.png", "a/notes.txt", "b/1.jpg", "b/c/3.jpg", "b/1_segmentation.png", "a/.hidden.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"named alone")

    def found(*patterns: str) -> list[str]:
        return [
            Path(row.file).relative_to(tmp_path).as_posix() for row in find_images([tmp_path / p for p in patterns])
        ]

    assert found("*/1.*") == ["a/1.jpg", "b/1.jpg"]
    assert [row.image_id for row in find_images([tmp_path / "*/1.*"])] == ["a/1", "b/1"], "two files of one name"
    assert found("**/*.jpg") == ["a/1.jpg", "b/1.jpg", "b/c/3.jpg"]
    assert found("[ab]") == ["a/1.jpg", "a/2.png", "b/1.jpg", "b/c/3.jpg"]
    assert found("a/1.jpg", "a", "b/../a/1.jpg") == ["a/1.jpg", "a/2.png"], "each once"
    assert [row.image_id for row in find_images([tmp_path / "a/1.jpg", tmp_path / "a"])] == ["1", "2"]
    with pytest.raises(DataError, match=r"no image matches .*\*\.gif"):
        found("*/*.gif")
    with pytest.raises(DataError, match="have the same image id 1; use only one of them"):
        found("a/1.jpg", "b/1.jpg")
    (tmp_path / "a/1.png").write_bytes(b"named alone")
    with pytest.raises(DataError, match="have the same image id 1; use only one of them"):
        found("a")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="contains no image"):
        found("empty")


def test_output_of_predict_is_not_used_as_input(tmp_path, monkeypatch):
    for name in ("a.jpg", "overlays/a_overlay.jpg", "masks/a_segmentation.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"named alone")
    monkeypatch.chdir(tmp_path)
    rows = find_images([tmp_path], ImageSearch(without=(Path("masks"), Path("overlays"))))
    assert [row.image_id for row in rows] == ["a"]


@pytest.mark.parametrize("name", ["~nobody/a.jpg", "a" * 300 + ".jpg"])
def test_invalid_paths_are_reported(name):
    with pytest.raises(DataError, match=r"does not exist|File name too long"):
        find_images([name])


@pytest.fixture
def many(tiny_demo, index, tmp_path) -> Path:
    """24 images and an unreadable file; one image is in a folder that is named after a class."""
    pictures = tmp_path / "pictures"
    (pictures / "nv").mkdir(parents=True)
    for number, name in enumerate(index["image"].head(24)):
        shutil.copy(tiny_demo / name, pictures / ("nv/0.jpg" if number == 0 else f"{number // 2}_{number % 2}.jpg"))
    (pictures / "bad.jpg").write_bytes(b"no image")
    return pictures


def shard_tables(out: Path, count: int) -> list[pd.DataFrame]:
    files = [out / f"predictions_{number}_of_{count}.csv" for number in range(1, count + 1)]
    return [pd.read_csv(file, dtype={"image_id": str, "correct": str}, keep_default_na=False) for file in files]


def test_shards_are_disjoint_and_together_the_whole_prediction(folder, many, tmp_path, capsys, monkeypatch):
    assert say(folder, tmp_path / "whole", many) == 1
    whole = table(tmp_path / "whole").set_index("image_id")
    capsys.readouterr()
    # Each machine has the folder elsewhere, and all machines write into one folder.
    codes, lines = [], []
    for number in range(1, 5):
        mounted = tmp_path / f"machine{number}"
        mounted.symlink_to(many)
        codes.append(say(folder, tmp_path / "answers", "--shard", f"{number}/4", mounted))
        lines += [line for line in capsys.readouterr().out.splitlines() if line.startswith("shard ")]
    tables = shard_tables(tmp_path / "answers", 4)
    sizes = [len(rows) for rows in tables]
    assert lines == [f"shard {number}/4: {size} of 25 images" for number, size in enumerate(sizes, 1)]
    assert min(sizes) > 2
    assert codes == [int((rows["error"] != "").any()) for rows in tables]
    assert sum(codes) == 1, "one shard has the unreadable file"
    # Only one shard has an image with a truth, but all have the column.
    assert all(list(rows.columns) == list(tables[0].columns) for rows in tables)
    page = (Path(__file__).parents[2] / "docs/evaluating_and_predicting.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^### Join the tables\n\n```python\n(.*?)^```", page, re.M | re.S)
    monkeypatch.chdir(tmp_path)
    exec(code)
    joined = table(tmp_path / "answers").set_index("image_id")
    assert joined.index.is_unique
    assert len(joined) == len(whole) == 25
    joined = joined.loc[whole.index]
    exact = ["prediction", "truth", "correct"]
    pd.testing.assert_frame_equal(joined[exact], whole[exact])
    assert list(joined.columns) == list(whole.columns)
    # In batches with other images, a probability is rounded otherwise.
    columns = [name for name in whole.columns if name.startswith("p_")]
    for name in columns:
        np.testing.assert_allclose(pd.to_numeric(joined[name]), pd.to_numeric(whole[name]), rtol=1e-4, atol=1e-7)


def test_shards_of_all_formats_and_mask_sources_are_the_whole_prediction(folder, segmenter, many, tmp_path):
    (many / "bad.jpg").unlink()
    cropped = changed(folder, tmp_path / "cropped", crop=True, crop_margin=0.1, masks="truth")
    for case, (run, *flags) in enumerate(
        [(segmenter,), (segmenter, "--format", "isic"), (folder, "--format", "isic"), (cropped, "--masks", "otsu")]
    ):
        whole, shards = tmp_path / f"{case}", tmp_path / f"{case} shards"
        assert say(run, whole, *flags, many) == 0
        for number in (1, 2):
            assert say(run, shards, *flags, "--shard", f"{number}/2", many) == 0

        def files(out: Path) -> set[str]:
            return {path.relative_to(out).as_posix() for path in out.rglob("*.[pj][np]g")}

        assert files(shards) == files(whole)
        assert len(files(whole)) == (48, 24, 0, 0)[case]
        if (whole / "predictions.csv").exists():
            lines = [(shards / f"predictions_{n}_of_2.csv").read_text().splitlines() for n in (1, 2)]
            expected = (whole / "predictions.csv").read_text().splitlines()
            assert lines[0][0] == lines[1][0] == expected[0]
            ids = sorted(line.split(",")[0] for part in lines for line in part[1:])
            assert ids == sorted(line.split(",")[0] for line in expected[1:])


def test_empty_shard_is_no_error(folder, image, tmp_path, capsys):
    for number in (1, 2):
        assert say(folder, tmp_path, "--shard", f"{number}/2", image) == 0
    output = capsys.readouterr().out
    assert output.count("shard 1/2: ") == output.count("shard 2/2: ") == output.count(": 0 of 1 images\n") == 1
    tables = shard_tables(tmp_path, 2)
    assert sorted(map(len, tables)) == [0, 1]
    assert list(tables[0].columns) == list(tables[1].columns)


def test_shard_depends_on_the_relative_path_only():
    names = ["nevus/ISIC_0024306.jpg", "a.png", "été.jpg", "not utf-8 \udcff.jpg"]
    # The values must never change: machines with other versions would leave images out.
    assert [shard_of(name) for name in names] == [2, 1, 3, 2]
    assert shard_of(unicodedata.normalize("NFD", names[2])) == 3, "a folder of macOS"


def shard_of(relative: str) -> int:
    (number,) = (n for n in range(1, 9) if Shard(n, 8).select([ImageEntry("", "", relative)]))
    return number


def test_images_keep_their_path_below_the_searched_folder(tmp_path):
    put(tmp_path, "in/a/1.jpg", "in/b/1.jpg", "in/2.PNG")
    for path, expected in (
        ("in", ["2.PNG", "a/1.jpg", "b/1.jpg"]), ("in/*/1.*", ["a/1.jpg", "b/1.jpg"]), ("in/a/1.jpg", ["1.jpg"]),
    ):  # fmt: skip
        assert [image.relative for image in find_images([tmp_path / path])] == expected


@pytest.mark.parametrize(
    "shard", ["0/8", "9/8", "3", "a/b", "1/0", "-1/8", "1/8/2", "1.0/8", " 1/8", "٣/8", "1/" + "9" * 5000]
)
def test_wrong_shards_are_refused_before_any_work(shard, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(predict, "find_images", lambda *_: pytest.fail("the folder was searched"))
    assert say("run", tmp_path / "out", f"--shard={shard}", tmp_path) == 2
    error = error_of(capsys)
    assert "--shard is" in error
    assert "expected I/N with I from 1 to N" in error or "it must have at most" in error
    assert not (tmp_path / "out").exists()


def png(width: int, height: int) -> bytes:
    """A PNG with this size in its header."""
    stream = io.BytesIO()
    Image.new("L", (1, 1)).save(stream, "png")
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        stream.getvalue()[:8]
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
        + stream.getvalue()[33:]
    )


def test_bad_files_are_named_and_the_rest_is_written(folder, image, tmp_path, capsys):
    bad = {
        "empty.jpg": b"", "text.jpg": b"no image", "cut.jpg": image.read_bytes()[:2000], "bomb.png": png(20_000, 20_000),
        "lying.png": png(3, 3),
    }  # fmt: skip
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name, content in bad.items():
        (pictures / name).write_bytes(content)
    for number in range(10):
        shutil.copy(image, pictures / f"good{number}.jpg")
    assert say(folder, tmp_path / "out", pictures) == 1
    error = error_of(capsys)
    assert "5 of 15 images could not be read and have no prediction" in error
    assert f"{pictures}/empty.jpg is empty (0 bytes)" in error
    assert f"{pictures}/text.jpg is not an image" in error
    assert f"{pictures}/bomb.png is too large: Image size (400000000 pixels) exceeds limit" in error
    found = table(tmp_path / "out").set_index("image_id")
    assert len(found) == 15
    assert set(found.index[found["error"] != ""]) == {"empty", "text", "cut", "bomb", "lying"}
    assert (found.loc[found["error"] != "", "prediction"] == "").all()
    assert (found.loc[found["error"] == "", "p_nv"] != "").all()


def test_only_bad_files_give_an_error(folder, tmp_path, capsys):
    for number in range(30):
        (tmp_path / f"{number}.jpg").write_bytes(b"no image")
    assert say(folder, tmp_path / "out", *(tmp_path / f"{n}.jpg" for n in range(30))) == 1
    error = error_of(capsys)
    assert "30 of 30 images" in error
    assert "… and 10 more; predictions.csv names all" in error


def test_a_hundred_megapixels_are_predicted(folder, tmp_path):
    Image.new("L", (10_000, 10_000), 150).save(tmp_path / "large.png", compress_level=1)
    Image.new("L", (100, 100), 150).save(tmp_path / "small.png")
    assert say(folder, tmp_path / "out", tmp_path / "large.png", tmp_path / "small.png") == 0
    found = table(tmp_path / "out")
    columns = [name for name in found.columns if name.startswith("p_")]
    np.testing.assert_allclose(found.loc[0, columns].astype(float), found.loc[1, columns].astype(float), rtol=1e-3)


def test_files_are_read_on_demand(folder, image):
    begun = 0

    def files():
        nonlocal begun
        for _ in range(10_000):
            begun += 1
            yield image

    predictor = load_predictor(str(folder))
    answers = predictor.predict(files())
    next(answers)
    answers.close()
    assert begun <= 4 * predictor.model.batch_size


def test_results_keep_the_order():
    from concurrent.futures import ThreadPoolExecutor
    from time import sleep

    with ThreadPoolExecutor(4) as pool:
        waits = [0.02, 0.0, 0.01, 0.0, 0.0, 0.03, 0.0]
        assert list(map_in_order(pool, lambda item: sleep(item[1]) or item[0], list(enumerate(waits)), 3)) == list(
            range(7)
        )


def test_isic_table_is_read_by_the_official_scorer(folder, tiny_demo, index, tmp_path, monkeypatch):
    # the scorer calls by its old name what pandas 3 has as `map`
    monkeypatch.setattr(pd.DataFrame, "applymap", pd.DataFrame.map, raising=False)
    rows = index.groupby("diagnosis").head(3)
    paths = [tiny_demo / path for path in rows["image"]]
    assert say(folder, tmp_path / "full", *paths) == 0
    assert say(folder, tmp_path / "isic", "--format", "isic", *paths) == 0
    text = (tmp_path / "isic/predictions.csv").read_text()
    assert text.splitlines()[0] == "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC"
    truth = pd.DataFrame({"image": rows["image_id"].to_numpy()})
    for name in ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"):
        truth[name] = (rows["diagnosis"].to_numpy() == name.lower()).astype(float)
    score = ClassificationScore.from_stream(
        io.StringIO(truth.to_csv(index=False)), io.StringIO(text), ClassificationMetric.BALANCED_ACCURACY
    )
    full = table(tmp_path / "full")
    right = full["prediction"].to_numpy() == rows["diagnosis"].to_numpy()
    assert score.overall == pytest.approx(
        np.mean([right[rows["diagnosis"] == d].mean() for d in rows["diagnosis"].unique()])
    )
    given = pd.read_csv(tmp_path / "isic/predictions.csv")
    np.testing.assert_allclose(given["AKIEC"], full["p_akiec"], rtol=1e-8)
    assert given["image"].tolist() == full["image_id"].tolist()


def changed(folder: Path, place: Path, **data) -> Path:
    """Copy a run's folder, with other values in the data section of its config."""
    shutil.copytree(folder, place)
    config = yaml.safe_load((place / "config.yaml").read_text())
    config["data"] |= data
    (place / "config.yaml").write_text(yaml.safe_dump(config))
    return place


def test_isic_table_of_other_classes_is_refused(folder, image, tmp_path, capsys):
    content = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)
    content["hyper_parameters"]["classes"][0] = "other"
    torch.save(content, folder / "checkpoints/best.ckpt")
    assert say(folder, tmp_path / "out", "--format", "isic", image) == 2
    assert "the classes of this run are other, bcc," in error_of(capsys)


@pytest.fixture
def segmenter(tmp_path) -> Path:
    """A segmenter's run as a folder, never trained: 24 px, padded, masks cleaned."""
    from skincancer.config.resolve import resolve
    from skincancer.models.tasks.segmentation import SegmentationTask
    from skincancer.system.yaml_files import dump_yaml

    flags = {
        "data.size": 24, "data.resize": "pad", "data.batch_size": 5, "model.backbone": "tu-test_resnet",
        "model.mask.largest_component": True,
    }  # fmt: skip
    experiment, _ = resolve("unet_resnet34", flags)
    model = experiment.to_dict()["model"]
    torch.manual_seed(3)
    task = SegmentationTask(
        architecture="unet", backbone="tu-test_resnet", size=24, freeze="none", unfreeze_epoch=None, loss=model["loss"],
        optimizer=model["optimizer"], schedule=model["schedule"], tta="none", threshold=0.5, channels_last=False, seed=0,
    )  # fmt: skip
    folder = tmp_path / "segmenter"
    (folder / "checkpoints").mkdir(parents=True)
    with torch.inference_mode():  # a threshold that cuts something out of most images
        values = task.eval()(torch.rand(8, 3, 24, 24)).sigmoid()
    hyper_parameters = {**task.hparams, "threshold": float(values.quantile(0.8))}
    content = {"hyper_parameters": hyper_parameters, "state_dict": task.state_dict()}
    torch.save(content, folder / "checkpoints/best.ckpt")
    (folder / "config.yaml").write_text(dump_yaml(experiment.to_dict()))
    (folder / "split.csv").write_text("image_id,lesion_id,role\n")
    return folder


@pytest.mark.parametrize("source", ["run", "otsu"])
def test_images_are_cropped_as_in_training(folder, segmenter, tiny_demo, index, tmp_path, source):
    masks = f"run:{segmenter}" if source == "run" else "otsu"
    config = DataConfig(root=str(tiny_demo), size=32, resize="pad", crop=True, masks=masks, crop_margin=0.1)
    data = prepare_data(config, mask_source(config, None), jobs=1)
    assert data.store.table["left"].nunique() > 3, "cut here and there"
    place = changed(folder, tmp_path / "cropped", crop=True, crop_margin=0.1, masks=masks)
    if source == "run":  # as a run keeps it
        shutil.move(segmenter, place / "segmenter")
    files = [tiny_demo / path for path in data.index["image"]]
    answers = list(load_predictor(str(place)).predict(files))
    for number, answer in enumerate(answers):
        assert np.array_equal(answer.pixels, data.store.images[number])
        assert answer.view[:2] == tuple(data.index.loc[number, ["width", "height"]])
    assert say(place, tmp_path / "out", *files[:3]) == 0
    found = table(tmp_path / "out")["p_nv"].astype(float)
    np.testing.assert_allclose(found, [answer.probability[5] for answer in answers[:3]], rtol=1e-4)


@pytest.mark.parametrize("masks", ["truth", "auto"])
def test_run_on_true_masks_requires_a_mask_source(folder, segmenter, image, tmp_path, capsys, masks):
    place = changed(folder, tmp_path / "cropped", crop=True, crop_margin=0.1, masks=masks)
    (place / "crops.csv").write_text("image_id,left,top,right,bottom,masks\na,0,0,9,9,truth\nb,0,0,9,9,otsu\n")
    assert say(place, tmp_path / "out", image) == 2
    error = error_of(capsys)
    assert f"was trained on images cropped to their true masks (data.masks {masks})" in error
    assert "--masks run:RUN of a segmenter, or --masks otsu" in error
    for name, given in (("otsu", "otsu"), ("run", f"run:{segmenter}")):
        assert say(place, tmp_path / name, "--masks", given, image) == 0
    probabilities = [table(tmp_path / name)["p_nv"][0] for name in ("otsu", "run")]
    assert probabilities[0] != probabilities[1]


def test_auto_masks_of_otsu_alone_are_otsu_masks(folder, image, tmp_path):
    place = changed(folder, tmp_path / "cropped", crop=True, crop_margin=0.1, masks="auto")
    (place / "crops.csv").write_text("image_id,left,top,right,bottom,masks\na,0,0,9,9,empty\nb,0,0,9,9,otsu\n")
    assert say(place, tmp_path / "own", image) == 0
    assert say(place, tmp_path / "otsu", "--masks", "otsu", image) == 0
    assert (tmp_path / "own/predictions.csv").read_bytes() == (tmp_path / "otsu/predictions.csv").read_bytes()


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ("otsu", "--masks is otsu, but .* was trained on whole images; use it for runs on crops"),
        ("mine", "--masks is 'mine'; expected otsu, or run:RUN"),
        ("run:", "--masks is 'run:'; expected otsu, or run:RUN"),
    ],
)
def test_invalid_mask_sources_are_refused(folder, masks, message):
    with pytest.raises(ConfigError, match=message):
        load_predictor(str(folder), masks=masks)


def test_masks_of_a_classifier_are_refused(folder, image, tmp_path, capsys):
    place = changed(folder, tmp_path / "cropped", crop=True, crop_margin=0.1, masks="truth")
    assert say(place, tmp_path / "out", "--masks", f"run:{folder}", image) == 1
    assert f"--masks run:{folder}: the task of run {folder} is classification" in error_of(capsys)


def test_deleted_run_is_refused(run, image, tmp_path, capsys):
    connect(None).delete_run(run.info.run_id)
    try:
        assert say(run.info.run_id, tmp_path / "out", image) == 1
        assert f"run {run.info.run_id} in {os.environ['MLFLOW_TRACKING_URI']} is deleted; restore it" in error_of(
            capsys
        )
    finally:
        connect(None).restore_run(run.info.run_id)


def test_run_without_artifacts_is_refused(store, image, tmp_path, capsys):
    client = connect(None)
    for names, message in (
        ([], "its artifacts were deleted"),
        (["config.yaml"], "has no artifact 'checkpoints/best.ckpt'"),
    ):
        made = client.create_run(client.create_experiment(f"some {len(names)}", (tmp_path / "gone").as_uri()))
        for name in names:
            client.log_text(made.info.run_id, "task: classification\n", name)
        client.set_terminated(made.info.run_id)
        assert say(made.info.run_id, tmp_path / "out", image) == 1
        error = error_of(capsys)
        assert f"run {made.info.run_id}" in error
        assert message in error


def test_registered_model_predicts_as_its_run(run, image, tmp_path, capsys):
    client = connect(None)
    client.create_registered_model("lesions")
    version = client.create_model_version("lesions", f"{run.info.artifact_uri}", run.info.run_id)
    client.set_registered_model_alias("lesions", "candidate", version.version)
    assert say(run.info.run_id, tmp_path / "run", image) == 0
    for number, name in enumerate(("lesions@candidate", "models:/lesions@candidate", "models:/lesions/1")):
        assert say(name, tmp_path / str(number), image) == 0
        own = (tmp_path / str(number) / "predictions.csv").read_bytes()
        assert own == (tmp_path / "run/predictions.csv").read_bytes()
    for name, message in (
        ("lesions@champion", "has no alias 'champion'; its aliases: candidate (version 1)"),
        ("models:/lesions/7", "has no version 7"),
        ("lesion@candidate", "there is no registered model 'lesion' in"),
        ("models:/lesions", "expected NAME@ALIAS, models:/NAME@ALIAS or models:/NAME/VERSION"),
    ):
        assert say(name, tmp_path / "out", image) == 1
        assert message in error_of(capsys)


class Malicious:
    """Runs code when it is unpickled."""

    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self):
        return os.mkdir, (str(self.touched),)


def test_a_malicious_checkpoint_is_not_unpickled(folder, image, tmp_path, capsys):
    touched = tmp_path / "touched"
    content = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)
    torch.save({**content, "evil": Malicious(touched)}, folder / "checkpoints/best.ckpt")
    assert say(folder, tmp_path / "out", image) == 2
    assert "refused: it is no plain torch file, or it holds pickled objects" in error_of(capsys)
    assert not touched.exists()
    torch.load(folder / "checkpoints/best.ckpt", weights_only=False)
    assert touched.exists(), "it would have done it"
