"""`data.clean` from config to prediction, and images on which a step fails."""

import dataclasses
import re

import mlflow
import numpy as np
import pandas as pd
import pytest
from conftest import TINY_FIT, all_runs, finished_run, write
from PIL import Image

from skincancer import evaluate, fit, predict, prepare
from skincancer.data.catalog import dataset as catalog_entry
from skincancer.data.feature_table import open_features
from skincancer.data.index import load_index
from skincancer.data.mask_sources import OtsuMasks
from skincancer.data.prepare import prepare_data
from skincancer.data.readers import demo
from skincancer.data.store import open_store
from skincancer.errors import DataError
from skincancer.imaging.cleaning import steps as steps_module
from skincancer.imaging.cleaning.steps import STEPS, Step, clean
from skincancer.imaging.crop import Crop, crop_box, widen_box
from skincancer.imaging.decode import read_image
from skincancer.imaging.mask_operations import mask_extent
from skincancer.imaging.preprocessing import Preprocessing, View
from skincancer.inference.model import SegmenterMasks
from skincancer.metrics.mask_scorer import MaskRecipe, MaskScorer
from skincancer.schema.data import DataConfig

STEPS_OF_RUN = "--data.clean=[frame,hair,colour]"


@pytest.fixture(scope="module")
def finished(tiny_demo, session_cache, tmp_path_factory):
    """A finished classifier on cleaned images and its store."""
    folder = tmp_path_factory.mktemp("cleaned")
    with finished_run(
        session_cache, folder, "--experiment=resnet50", *TINY_FIT, f"--data.root={tiny_demo}", STEPS_OF_RUN
    ) as found:
        yield found


def data(root, **changed):
    return prepare_data(DataConfig(root=str(root), size=32, **changed), jobs=1)


def reference(path, steps, size=32):
    """Clean an image, then resize it with Pillow."""
    image, _ = clean(np.asarray(read_image(path)), steps)
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def test_the_store_holds_cleaned_images_by_steps_and_their_order(tiny_demo):
    plain, cleaned = data(tiny_demo), data(tiny_demo, clean=["colour", "contrast"])
    other = data(tiny_demo, clean=["contrast", "colour"])
    assert len({found.store.folder for found in (plain, cleaned, other)}) == 3
    assert (plain.index_hash, plain.split_hash) == (cleaned.index_hash, cleaned.split_hash)
    for row in (0, 7):
        path = tiny_demo / cleaned.index["image"][row]
        assert (cleaned.store.images[row] == reference(path, ["colour", "contrast"])).all()
        assert (other.store.images[row] == reference(path, ["contrast", "colour"])).all()
        assert (plain.store.images[row] == reference(path, [])).all()
    assert "left" not in plain.store.table
    assert "left" not in cleaned.store.table


def test_an_uncleaned_store_is_the_one_of_before(tiny_demo, tmp_path):
    index = demo.read(tiny_demo)
    store = open_store(index, tiny_demo, tmp_path, Preprocessing(8, "stretch"), jobs=1)
    assert '"clean' not in (store.folder / "recipe.json").read_text()
    assert open_store(index, tiny_demo, tmp_path, Preprocessing(8, "stretch", ()), jobs=1).folder == store.folder


@pytest.fixture
def framed(tmp_path):
    """A wide image in a black frame, its red lesion, and the mask."""
    pixels = np.zeros((120, 200, 3), np.uint8)
    pixels[20:110, 40:190] = (210, 170, 150)
    pixels[50:80, 60:120] = (150, 40, 40)
    mask = np.zeros((120, 200), np.uint8)
    mask[50:80, 60:120] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(mask).save(tmp_path / "a_mask.png")
    return tmp_path / "a.png", tmp_path / "a_mask.png"


def test_a_mask_is_cut_where_the_frame_is(framed):
    image, mask = framed
    found = Preprocessing(64, "pad", ("frame",)).apply(image, mask)
    assert found.view == (200, 120, (40, 20, 190, 110))
    red = (found.pixels[..., 1] < 100) & (found.pixels[..., 0] > 100)
    assert (red == (found.mask > 0)).mean() > 0.98
    assert (found.mask > 0).sum() > 100


@pytest.mark.parametrize("resize", ["stretch", "pad"])
def test_metrics_at_the_original_size_are_right_after_a_frame_was_cut(framed, resize):
    image, mask = framed
    preprocessing = Preprocessing(96, resize, ("frame",))
    found = preprocessing.apply(image, mask)
    table = pd.DataFrame({"mask": [mask.name]})
    recipe = MaskRecipe(preprocessing, False, False)
    square = (found.mask > 0).astype(np.float32)
    score = MaskScorer(table, mask.parent, recipe, [found.view]).score(0, square, 0.5)
    assert score["jaccard"] > 0.93
    assert (
        MaskScorer(table, mask.parent, recipe, [View(200, 120, (0, 0, 200, 120))]).score(0, square, 0.5)["jaccard"]
        < 0.6
    ), "what ignoring the box would give"
    full = np.ones_like(square)
    assert MaskScorer(table, mask.parent, recipe, [found.view]).mask(0, full, 0.5).sum() == 150 * 90


def test_a_lesion_is_cropped_inside_the_frame_in_the_originals_pixels(framed):
    image, mask = framed
    for crop, given in ((Crop("truth", 0.0), mask), (Crop("otsu", 0.0), None), (Crop("run:x", 0.0), (60, 50, 120, 80))):
        found = Preprocessing(60, "stretch", ("frame",), crop).apply(image, given)
        left, top, right, bottom = found.view.box
        assert (right - left, bottom - top) == pytest.approx((60, 60), abs=4), crop
        assert (left, top) == pytest.approx((60, 35), abs=3)
        assert found.view[:2] == (200, 120)
        with Image.open(image) as original:
            cut = np.asarray(original.crop(found.view.box).resize((60, 60), Image.Resampling.BILINEAR))
        assert (found.pixels == cut).all()
    wide = Preprocessing(60, "stretch", ("frame",), Crop("truth", 3.0)).apply(image, mask)
    assert wide.view.box == (40, 20, 190, 110), "never over the frame"
    lost = Preprocessing(60, "stretch", ("frame",), Crop("run:x", 0.2)).apply(image, (0, 0, 30, 15))
    assert (lost.view.box, lost.source) == ((40, 20, 190, 110), "empty"), "a lesion under the frame is none"


@pytest.mark.parametrize("seed", range(10))
def test_the_widened_box_of_an_extent_is_the_masks_own(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random(tuple(rng.integers(2, 60, 2))) < 0.05
    extent, margin = mask_extent(mask), float(rng.random())
    if extent is None:
        assert crop_box(mask, margin) is None
        return
    whole = (0, 0, mask.shape[1], mask.shape[0])
    assert widen_box(extent, whole, margin) == crop_box(mask, margin)
    shifted = tuple(value + 7 for value in extent)
    moved = widen_box(shifted, tuple(value + 7 for value in whole), margin)
    assert moved == tuple(value + 7 for value in crop_box(mask, margin))


def test_a_segmenter_sees_images_cleaned_by_its_own_config(tiny_demo):
    seen = []

    class Segmenter:
        digest, preprocessing, batch_size = "0123", Preprocessing(16, "stretch", ("frame", "contrast")), 8

        def predict(self, squares):
            seen.append(squares)
            return dataclasses.make_dataclass("Said", ["lesion"])(np.ones(squares.shape[:3], np.float32))

        def mask(self, lesion, view):
            width, height, box = view
            mask = np.zeros((height, width), bool)
            mask[box[1] : box[3], box[0] : box[2]] = True
            return mask

    index = demo.read(tiny_demo).head(8)
    boxes = SegmenterMasks(Segmenter(), index).find(index, tiny_demo, mask_extent, None, 1)
    for row, name in enumerate(index["image"]):
        assert (np.concatenate(seen)[row] == reference(tiny_demo / name, ["frame", "contrast"], 16)).all()
        assert boxes[row] == clean(np.asarray(read_image(tiny_demo / name)), ["frame"])[1]


def test_a_run_on_cleaned_images_says_so(run, artifacts):
    assert run.data.params["clean"] == "frame+hair+colour"
    report = (artifacts / "report.html").read_text()
    assert "Images are cleaned first" in report
    assert "Lee et al. 1997" in report


def test_predict_and_the_served_model_clean_as_fit_did(run, artifacts, tiny_demo, tmp_path):
    tested = pd.read_csv(artifacts / "predictions/test.csv", dtype={"image_id": str}).set_index("image_id")
    files = demo.read(tiny_demo).set_index("image_id")["image"]
    paths = [str(tiny_demo / files[name]) for name in tested.index]
    assert predict.main(["--run", run.info.run_id, "--out", str(tmp_path / "out"), *paths]) == 0
    said = pd.read_csv(tmp_path / "out/predictions.csv", dtype={"image_id": str}).set_index("image_id")
    columns = [name for name in tested if name.startswith("p_")]
    np.testing.assert_allclose(said.loc[tested.index, columns], tested[columns], atol=2e-6)
    model = run.outputs.model_outputs[0].model_id
    served = mlflow.pyfunc.load_model(f"models:/{model}")
    answer = served.predict(pd.DataFrame({"image": paths}))
    np.testing.assert_allclose(answer[columns], tested[columns], atol=2e-6)


def test_evaluate_cleans_as_the_run_did(run):
    assert evaluate.main(["--run", run.info.run_id, "--part=test"]) == 0
    found = all_runs()[-1]
    assert found.data.tags["kind"] == "evaluate"
    assert found.data.params["clean"] == "frame+hair+colour"
    assert found.data.metrics["test/accuracy"] == run.data.metrics["test/accuracy"]


def test_an_evaluation_takes_no_other_cleaning(run, capsys):
    assert evaluate.main(["--run", run.info.run_id, "--data.clean=[hair]"]) == 2
    assert "--data.clean is fixed by the run to ['frame', 'hair', 'colour']" in capsys.readouterr().err


@pytest.fixture
def failing_hair(monkeypatch):
    """A cleaning step that fails on upright images."""

    def fail(image):
        if image.shape[0] > image.shape[1]:
            raise RuntimeError("no upright ones")
        return image

    monkeypatch.setitem(STEPS, "glare", Step("failing:fail", "image", "", ""))
    load = steps_module._load
    monkeypatch.setattr(steps_module, "_load", lambda name: fail if name == "failing:fail" else load(name))


def test_a_step_that_fails_on_some_images_costs_those_alone(failing_hair, tiny_demo, tmp_path, monkeypatch):
    monkeypatch.setenv("SKINCANCER_CACHE", str(tmp_path))
    sizes = data(tiny_demo).index
    upright = set(sizes.loc[sizes["height"] > sizes["width"], "image_id"])
    assert upright
    with pytest.raises(DataError, match=r"cannot be cleaned: glare failed: RuntimeError: no upright ones") as caught:
        data(tiny_demo, clean=["glare"])
    lines = [line for line in str(caught.value).splitlines() if "glare failed" in line]
    files = sizes.set_index("image_id")["image"]
    assert sorted(line.split()[0] for line in lines) == sorted(str(tiny_demo / files[image_id]) for image_id in upright)
    found = data(tiny_demo, clean=["glare"], skip_bad=True)
    assert set(found.dropped["image_id"]) == upright
    kept = found.store.table["error"] == ""
    assert kept.sum() == len(sizes) - len(upright)
    assert found.store.images[int(np.flatnonzero(kept)[0])].any()


def test_a_step_that_fails_on_one_image_is_in_the_feature_table_too(failing_hair, tmp_path, monkeypatch):
    monkeypatch.setenv("SKINCANCER_CACHE", str(tmp_path / "cache"))
    for name, size in (("wide", (40, 30)), ("upright", (30, 40)), ("other", (40, 30))):
        Image.effect_noise(size, 50).convert("RGB").save(tmp_path / f"{name}.png")
    write(tmp_path / "index.csv", "image,diagnosis", "wide.png,a", "upright.png,b", "other.png,a")
    entry = catalog_entry("csv")
    index, _ = load_index(entry, tmp_path)
    found = open_features(index, tmp_path, entry, OtsuMasks(), ["glare"], jobs=1)
    assert found.bad["image_id"].tolist() == ["upright"]
    said = f"{tmp_path / 'upright.png'} cannot be cleaned: glare failed: RuntimeError: no upright ones"
    assert found.bad["error"].tolist() == [said]
    measured = found.table.set_index("image_id")["mask_empty"].notna()
    assert measured.to_dict() == {"wide": True, "upright": False, "other": True}


def test_predict_names_an_image_that_cannot_be_cleaned(run, artifacts, tiny_demo, tmp_path, monkeypatch, capsys):
    index = data(tiny_demo).index
    upright, wide = (
        str(tiny_demo / index.loc[chosen, "image"].iloc[0])
        for chosen in (index["height"] > index["width"], index["height"] < index["width"])
    )
    load = steps_module._load

    def failing(name):
        def shave(image):
            if image.shape[0] > image.shape[1]:
                raise RuntimeError("no upright ones")
            return load(name)(image)

        return shave if name.endswith("dull_razor") else load(name)

    monkeypatch.setattr(steps_module, "_load", failing)
    assert predict.main(["--run", run.info.run_id, "--out", str(tmp_path / "out"), upright, wide]) == 1
    assert f"{upright} cannot be cleaned: hair failed: RuntimeError" in " ".join(capsys.readouterr().err.split("\n"))
    said = pd.read_csv(tmp_path / "out/predictions.csv").set_index("file")
    assert said.loc[wide, "p_nv"] > 0
    assert np.isnan(said.loc[upright, "p_nv"])


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        (
            "--data.clean=[hiar]",
            "command line: data.clean contains 'hiar', which is no cleaning step. Did you mean 'hair'?",
        ),
        ("--data.clean=[hair,hair]", "data.clean contains 'hair' twice"),
        ("--data.clean=hair", "data.clean is 'hair'; it must be list"),
    ],
)
def test_wrong_names_are_reported_before_any_work(flag, said, capsys):
    assert fit.main(["--experiment=resnet50", *TINY_FIT, flag]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_show_clean_writes_a_sheet_with_what_was_found(tiny_demo, tmp_path, capsys):
    path = tmp_path / "sheet.png"
    arguments = ["demo", f"--data.root={tiny_demo}", "--data.size=32", "--show", "clean", f"--out={path}"]
    assert prepare.main([*arguments, "--data.clean=[hair]"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "hair (Lee et al. 1997)" in printed
    with Image.open(path) as sheet:
        marked = (np.abs(np.asarray(sheet.convert("RGB")).astype(int) - (0, 229, 255)).max(axis=2) < 40).sum()
        assert sheet.width > 400
    assert marked > 50, "hair is marked"
    assert "checked images, artefacts are found by hair in" in printed
    assert prepare.main(arguments) == 2
    assert "--show clean requires cleaning steps: hair" in capsys.readouterr().err


def test_show_clean_shows_images_where_a_step_acts(tmp_path, capsys, monkeypatch):
    rng = np.random.default_rng(0)
    rows = ["image,diagnosis"]
    for number in range(40):
        pixels = np.full((64, 64, 3), 200, np.uint8) + rng.integers(0, 9, (64, 64, 3), dtype=np.uint8)
        if number >= 36:
            pixels[:10] = pixels[-10:] = pixels[:, :10] = pixels[:, -10:] = 0
        Image.fromarray(pixels).save(tmp_path / f"{number:02}.png")
        rows.append(f"{number:02}.png,{'mel' if number % 2 else 'nv'}")
    (tmp_path / "index.csv").write_text("\n".join(rows))
    shown = []
    monkeypatch.setattr(
        "skincancer.visualization.previews.clean_sheet", lambda images, steps, path, titles: shown.extend(titles)
    )
    arguments = ["csv", f"--data.root={tmp_path}", "--data.size=16", "--show=clean", "--data.clean=[frame,hair]"]
    assert prepare.main([*arguments, f"--out={tmp_path / 'sheet.png'}"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    [count] = re.findall(r"artefacts are found by frame in (\d), hair in 0", printed)
    assert len(shown) == 12
    assert int(count) > 0
    assert all(int(title[:2]) >= 36 for title in shown[: int(count)])
    assert all(int(title[:2]) < 36 for title in shown[int(count) :])
