"""Wrong data, weights and losses of a user, through `fit.main`. Wrong flags and files stand in `test_refused_requests`.

Wrong input ends with 2 and a failed run with 1; the text says what was given, what is allowed and what to do; there is no
traceback; and nothing half-written is taken for whole.
"""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import TINY_FIT
from PIL import Image

from skincancer import fit
from skincancer.data.readers.demo import read as read_demo
from skincancer.errors import ConfigError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Separate cache of the test."""
    monkeypatch.setenv("SKINCANCER_CACHE", str(tmp_path / "own-cache"))
    return tmp_path / "own-cache"


@pytest.fixture
def refused(places: Path, session_cache: Path, cache: Path, capsys: pytest.CaptureFixture[str]):
    """Run `fit.main`, check that it fails and writes nothing, and return its message."""

    def run(*argv: str, code: int = 2, experiment: str = "resnet50") -> str:
        assert fit.main([f"--experiment={experiment}", *TINY_FIT, *argv]) == code
        message = capsys.readouterr().err
        assert message.startswith("error: ")
        assert "Traceback" not in message
        assert runs() == [], "no run was started"
        assert not list(places.rglob("work/*"))
        assert not [path for path in cache.rglob("*") if ".tmp" in path.name or ".partial" in path.name]
        return message

    return run


def runs() -> list:
    """Return all runs of the store of this test, none without a store."""
    from skincancer.runs.store import connect
    from skincancer.system.paths import sqlite_path, tracking_uri

    path = sqlite_path(tracking_uri(None))
    if path is None or not path.exists():
        return []
    client = connect(None)
    return list(client.search_runs([e.experiment_id for e in client.search_experiments()]))


def artifact(run, name: str) -> Path:
    from skincancer.runs.store import connect

    return Path(connect(None).download_artifacts(run.info.run_id, name))


def stores(cache: Path) -> list[Path]:
    return [path for path in (cache / "stores").glob("*") if path.is_dir()]


@pytest.fixture
def ham(tmp_path: Path, tiny_demo: Path) -> Path:
    """The tiny demo's files in the layout of HAM10000."""
    root = tmp_path / "ham10000"
    shutil.copytree(tiny_demo / "images", root / "HAM10000_images")
    shutil.copy(tiny_demo / "metadata.csv", root / "HAM10000_metadata.csv")
    return root


def on_ham(root: Path) -> list[str]:
    return ["--data.dataset=ham10000", f"--data.root={root}"]


# --------------------------------------------------------------------------------------------------------------------- names


def test_an_unknown_backbone_is_reported_before_data_are_read(refused, tmp_path: Path):
    message = refused("--model.backbone=resnet50.imagenet", f"--data.root={tmp_path / 'nowhere'}")
    for text in ("'resnet50.imagenet'", "weights tag", "a1_in1k"):
        assert text in message
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.slow
def test_an_unknown_backbone_imports_neither_lightning_nor_mlflow_nor_kornia():
    code = (
        "import sys; from skincancer import fit; assert fit.main(sys.argv[1:]) == 2;"
        "print([n for n in ('pytorch_lightning', 'mlflow', 'kornia', 'pandas') if n in sys.modules])"
    )
    command = [sys.executable, "-c", code, "--experiment=resnet50", "--model.backbone=resnet51"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------------------------------------------------------- data folders


def test_a_data_folder_that_is_missing_or_empty(refused, tmp_path: Path):
    message = refused(*on_ham(tmp_path / "nothing"))
    for text in (str(tmp_path / "nothing"), "does not exist", "10.7910/DVN/DBW86T", "HAM10000_metadata.csv"):
        assert text in message
    (tmp_path / "empty").mkdir()
    assert "is empty" in refused(*on_ham(tmp_path / "empty"))


def test_data_that_are_nowhere_name_every_place(refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SKINCANCER_DATA", str(tmp_path / "pool"))
    message = refused("--data.dataset=malignant_vs_benign")
    for text in (str(tmp_path / "pool/malignant_vs_benign"), str(tmp_path / "data/malignant_vs_benign"), "Kaggle"):
        assert text in message


@pytest.mark.parametrize("dataset", ["ham10000", "isic2018_task3", "malignant_vs_benign", "folder", "csv"])
def test_a_folder_of_another_layout(refused, tmp_path: Path, dataset: str):
    (tmp_path / "other" / "scans" / "today").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "other" / "scans" / "today" / "a.jpg")
    message = refused(f"--data.dataset={dataset}", f"--data.root={tmp_path / 'other'}")
    assert str(tmp_path / "other") in message
    expected = {
        "ham10000": "HAM10000_metadata",
        "isic2018_task3": "ISIC2018_Task3_Training_Input",
        "malignant_vs_benign": "train",
        "folder": "one folder per class",
        "csv": "index.csv",
    }
    assert expected[dataset] in message


def test_the_demo_is_not_drawn_over_other_files(refused, tmp_path: Path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.jpg").write_bytes(b"precious")
    assert str(tmp_path / "photos") in refused(f"--data.root={tmp_path / 'photos'}")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["mine.jpg"]


def test_a_row_without_image_and_an_image_without_row(refused, ham: Path):
    image = sorted((ham / "HAM10000_images").iterdir())[0]
    content = image.read_bytes()
    image.unlink()
    message = refused(*on_ham(ham))
    assert "1 rows without an image" in message
    assert image.stem in message
    image.write_bytes(content)
    (ham / "HAM10000_images" / "ISIC_9999999.jpg").write_bytes(content)
    message = refused(*on_ham(ham))
    assert "1 images without a row" in message
    assert "ISIC_9999999" in message
    assert "HAM10000_metadata.csv" in message


def test_a_label_outside_the_catalog(refused, ham: Path):
    path = ham / "HAM10000_metadata.csv"
    path.write_text(path.read_text().replace(",vasc,", ",vascular,"))
    message = refused(*on_ham(ham))
    for text in ("'vascular'", "akiec, bcc, bkl, df, mel, nv, vasc"):
        assert text in message


def test_a_class_with_fewer_lesions_than_roles(refused, ham: Path):
    path = ham / "HAM10000_metadata.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    lesions = table.loc[table["dx"] == "df", "lesion_id"].unique()
    gone = table[table["lesion_id"].isin(lesions[2:])]
    for image_id in gone["image_id"]:
        (ham / "HAM10000_images" / f"{image_id}.jpg").unlink()
    table.drop(gone.index).to_csv(path, index=False)
    message = refused(*on_ham(ham))
    for text in ("'df'", "only 2 lesions", "training, validation and test", "data.split 80:20"):
        assert text in message
    message = refused(*on_ham(ham), "--data.split=fold:0/6")
    for text in ("fold:0/6", "'akiec' has only 5 lesions", "fewer folds"):
        assert text in message


def test_a_table_of_groups_that_is_not_there(refused, ham: Path, tmp_path: Path):
    for early in ((), ("--dry-run",)):
        message = refused(*on_ham(ham), f"--data.groups={tmp_path / 'no.csv'}", *early)
        assert f"data.groups is {tmp_path / 'no.csv'}, which is not a file" in message


def test_a_table_of_groups_without_its_columns(refused, ham: Path, tmp_path: Path):
    (tmp_path / "wrong.csv").write_text("image_id,lesion\na,b\n")
    for early in ((), ("--dry-run",)):
        message = refused(*on_ham(ham), f"--data.groups={tmp_path / 'wrong.csv'}", *early)
        assert "wrong.csv has no column group; its columns are image_id, lesion" in message


def test_official_parts_where_there_are_none(refused, ham: Path):
    message = refused(*on_ham(ham), "--data.split=official")
    assert "official" in message
    assert "80:20" in message


# ---------------------------------------------------------------------------------------------------------------------- files


def damage(ham: Path) -> dict[str, str]:
    """Break three images of different classes. Return the expected error of each id."""
    table = read_table(ham)
    # a class may lose no more than it can spare: one view of the lesions with most images
    views = table["lesion_id"].map(table["lesion_id"].value_counts())
    chosen = list(table[views > 1].drop_duplicates("dx")["image_id"][:3])
    assert len(chosen) == 3
    truncated, empty, text = ((ham / "HAM10000_images" / f"{image_id}.jpg") for image_id in chosen)
    truncated.write_bytes(truncated.read_bytes()[:900])
    empty.write_bytes(b"")
    text.write_text("<html>404 Not Found</html>")
    return dict(zip(chosen, ["cannot be decoded", "is empty (0 bytes)", "is not an image"], strict=True))


def read_table(ham: Path) -> pd.DataFrame:
    return pd.read_csv(ham / "HAM10000_metadata.csv", dtype=str, keep_default_na=False)


def test_broken_files_are_listed_together(refused, ham: Path):
    broken = damage(ham)
    message = refused(*on_ham(ham))
    assert "3 of 57 images of ham10000 cannot be used" in message
    assert "--data.skip_bad true" in message
    for image_id, reason in broken.items():
        (line,) = (line for line in message.splitlines() if f"{image_id}.jpg" in line)
        assert reason in line


def test_broken_files_can_be_left_out_and_nobody_else_moves(ham: Path, cache: Path):
    from skincancer.data.prepare import prepare_data
    from skincancer.schema.data import DataConfig

    config = DataConfig(dataset="ham10000", root=str(ham), size=32, skip_bad=True)
    whole = prepare_data(config)
    assert whole.dropped.empty
    broken = damage(ham)
    data = prepare_data(config)
    assert sorted(data.dropped["image_id"]) == sorted(broken)
    assert data.left_out.startswith("3 images (dropped.csv): ")
    assert str(ham) not in data.left_out, "files are named in dropped.csv"
    before, after = (prepared.index.set_index("image_id")["role"] for prepared in (whole, data))
    assert (after[list(broken)] == "").all()
    assert after.drop(list(broken)).equals(before.drop(list(broken)))
    assert (data.split_hash, data.index_hash) == (whole.split_hash, whole.index_hash)


@pytest.mark.slow
def test_a_fit_records_what_it_left_out(ham: Path, cache: Path, capsys):
    broken = damage(ham)
    argv = ["--experiment=resnet50", *TINY_FIT, *on_ham(ham), "--data.skip_bad=true", "--trainer.max_epochs=1"]
    assert fit.main(argv) == 0
    assert "left out: 3 images (dropped.csv)" in capsys.readouterr().out
    (run,) = runs()
    assert run.info.status == "FINISHED"
    assert run.data.params["dropped_images"] == "3"
    dropped = pd.read_csv(artifact(run, "dropped.csv")).set_index("image_id")["reason"]
    assert set(dropped.index) == set(broken)
    for image_id, reason in broken.items():
        assert reason in dropped[image_id]
        assert f"{image_id}.jpg" in dropped[image_id]
    split = pd.read_csv(artifact(run, "split.csv"), keep_default_na=False).set_index("image_id")["role"]
    assert (split[list(broken)] == "").all()
    tested = set(pd.read_csv(artifact(run, "predictions/test.csv"))["image_id"])
    assert tested == set(split.index[split == "test"])


def test_leaving_out_may_not_empty_a_class(refused, ham: Path):
    table = read_table(ham)
    for image_id in table.loc[table["dx"] == "df", "image_id"]:
        (ham / "HAM10000_images" / f"{image_id}.jpg").write_bytes(b"")
    message = refused(*on_ham(ham), "--data.skip_bad=true")
    assert "training set has no image of df" in message


def test_files_of_every_kind_are_read_alike(tmp_path: Path, cache: Path):
    """CMYK, greyscale, alpha, palette and EXIF-rotated files are decoded like a plain file."""
    from skincancer.data.prepare import prepare_data
    from skincancer.schema.data import DataConfig

    blocks = np.zeros((24, 48), np.uint8)
    blocks[:, :24], blocks[:12, 24:], blocks[12:, 24:] = (
        40,
        120,
        220,
    )  # three areas of grey: no turn or flip looks alike
    plain = Image.fromarray(np.repeat(blocks[..., None], 3, axis=2))
    alpha = plain.copy()
    alpha.putalpha(90)
    rotated = Image.Exif()
    rotated[0x0112] = 6  # stored turned to the left, to be shown turned to the right
    kinds = {
        "plain.png": (plain, {}),
        "cmyk.jpg": (plain.convert("CMYK"), {"quality": 98}),
        "grey.jpg": (plain.convert("L"), {"quality": 98}),
        "alpha.png": (alpha, {}),
        "palette.png": (plain.quantize(8), {}),
        "rotated.jpg": (plain.transpose(Image.Transpose.ROTATE_90), {"quality": 98, "exif": rotated}),
    }
    root = tmp_path / "mixed"
    for label in ("a", "b"):
        (root / label).mkdir(parents=True)
        for name, (image, options) in kinds.items():
            image.save(root / label / name, **options)
    data = prepare_data(DataConfig(dataset="folder", root=str(root), size=24))
    assert data.store.bad.empty
    assert (data.index["width"] == 48).all()
    assert (data.index["height"] == 24).all()
    expected = np.asarray(plain.resize((24, 24), Image.Resampling.BILINEAR)).astype(int)
    for row, image_id in enumerate(data.index["image_id"]):
        assert abs(data.store.images[row].astype(int) - expected).max() <= 8, image_id


# -------------------------------------------------------------------------------------------------------------------- machine


def test_more_devices_than_there_are(refused, tiny_demo: Path, monkeypatch: pytest.MonkeyPatch):
    import torch

    cores = os.cpu_count() or 1
    message = refused(f"--data.root={tiny_demo}", f"--trainer.devices={cores + 1}")
    for text in (f"trainer.devices is {cores + 1}", f"{cores} CPU cores"):
        assert text in message
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    message = refused(f"--data.root={tiny_demo}", "--trainer.accelerator=gpu", "--trainer.devices=2")
    assert "trainer.devices is 2, but this machine has 1 GPU" in message
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    message = refused(f"--data.root={tiny_demo}", "--trainer.accelerator=gpu")
    assert "no GPU" in message
    assert "cpu" in message
    message = refused(f"--data.root={tiny_demo}", "--trainer.precision=16-mixed")
    assert "bf16-mixed" in message


def no_space(*arguments: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fail_late(patch: pytest.MonkeyPatch) -> None:
    write, written = os.pwrite, []

    def pwrite(*arguments) -> int:
        written.append(1)
        return no_space() if len(written) > 20 else write(*arguments)

    patch.setattr(os, "pwrite", pwrite)


@pytest.mark.parametrize("fail", [lambda patch: patch.setattr(os, "posix_fallocate", no_space), fail_late])
def test_a_full_disk_while_the_store_is_built(refused, tiny_demo: Path, cache: Path, fail):
    with pytest.MonkeyPatch.context() as patch:
        fail(patch)
        message = refused(f"--data.root={tiny_demo}")
    for text in ("is full", str(cache), "57 images at 32 px", "SKINCANCER_CACHE"):
        assert text in message
    assert stores(cache) == []

    from skincancer.data.prepare import prepare_data
    from skincancer.schema.data import DataConfig

    data = prepare_data(DataConfig(root=str(tiny_demo), size=32))
    assert len(stores(cache)) == 1
    assert (data.store.images.reshape(57, -1).max(axis=1) > 0).all(), "no row was left empty"


def test_a_cache_that_is_no_folder(refused, tiny_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SKINCANCER_CACHE", str(tmp_path / "file"))
    message = refused(f"--data.root={tiny_demo}")
    assert str(tmp_path / "file") in message
    assert "SKINCANCER_CACHE" in message


def test_shared_memory_that_is_too_small_for_loader_processes(
    refused, tiny_demo: Path, monkeypatch: pytest.MonkeyPatch
):
    from skincancer.data import datamodule
    from skincancer.data.prepare import prepare_data
    from skincancer.schema.data import DataConfig

    monkeypatch.setattr(datamodule, "disk_usage", lambda folder: SimpleNamespace(free=100_000))
    message = refused(f"--data.root={tiny_demo}", "--data.workers=2")
    # Two batches ahead of each process and one in training, of eight images of 32 × 32 px in three channels.
    for text in ("data.workers is 2", "need 122.88 kB", "/dev/shm has 100.00 kB free", "--shm-size"):
        assert text in message
    config = DataConfig(root=str(tiny_demo), size=32, batch_size=8, workers=2)
    data = prepare_data(config)
    monkeypatch.setattr(datamodule, "disk_usage", lambda folder: SimpleNamespace(free=122_880))
    datamodule.check_shared_memory(data, config, ranks=1)
    with pytest.raises(ConfigError, match=r"need 245\.76 kB"):
        datamodule.check_shared_memory(data, config, ranks=2)


@pytest.mark.slow
def test_two_fits_at_once_on_unprepared_data(tiny_demo: Path, cache: Path):
    command = [sys.executable, "-m", "skincancer.fit", "--experiment=resnet50", *TINY_FIT, f"--data.root={tiny_demo}"]
    command += ["--trainer.max_epochs=1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen([*command, f"--seed={seed}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        for seed in (0, 1)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(outputs)
    assert sum("preparing demo at 32 px: 57 done" in output for output in outputs) == 1
    (store,) = stores(cache)
    assert np.load(store / "images.npy", mmap_mode="r").shape == (57, 32, 32, 3)
    assert [run.info.status for run in runs()] == ["FINISHED", "FINISHED"]


# -------------------------------------------------------------------------------------------------------------------- weights


class Code:
    """Object that makes a folder when it is unpickled. This code must not run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("kind", ["whole file", "inside a checkpoint", "old format"])
def test_a_checkpoint_with_pickled_code_is_refused_and_not_run(
    refused, store: str, tiny_demo: Path, tmp_path: Path, kind: str
):
    import torch

    code = Code(tmp_path / "it ran")
    content = {"state_dict": {"weight": torch.zeros(2)}, "extra": code} if kind == "inside a checkpoint" else code
    torch.save(content, tmp_path / "evil.ckpt", _use_new_zipfile_serialization=kind != "old format")
    message = refused(f"--data.root={tiny_demo}", f"--model.weights={tmp_path / 'evil.ckpt'}")
    for text in (str(tmp_path / "evil.ckpt"), "refused", "pickled", "state dict", "safetensors"):
        assert text in message
    assert not (tmp_path / "it ran").exists()
    torch.load(tmp_path / "evil.ckpt", weights_only=False)
    assert (tmp_path / "it ran").exists(), "it would have run"


def test_weights_that_do_not_fit(refused, store: str, tiny_demo: Path, tmp_path: Path):
    import timm
    import torch

    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "other.pt")
    message = refused(f"--data.root={tiny_demo}", f"--model.weights={tmp_path / 'other.pt'}")
    for text in ("other.pt does not fit test_efficientnet", "at least 90%", "Missing: conv_stem.weight"):
        assert text in message
    state = timm.create_model("test_efficientnet").state_dict()
    wider = {name: torch.cat([tensor, tensor]) if tensor.ndim == 4 else tensor for name, tensor in state.items()}
    torch.save(wider, tmp_path / "wider.pt")
    message = refused(f"--data.root={tiny_demo}", f"--model.weights={tmp_path / 'wider.pt'}")
    assert "Other shape: " in message
    assert "instead of" in message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("missing.pt", None),
        ("empty.pt", b""),
        ("short.pt", b"junk"),
        ("page.pth", b"<html>404 Not Found</html>" * 50),
        ("zip.ckpt", b"PK\x03\x04" + b"\0" * 200),
        ("pickle.pt", b"\x80\x02}q\x00."),
        ("junk.safetensors", b"junk"),
        ("page.safetensors", b"<html>404 Not Found</html>" * 50),
    ],
)
def test_files_that_are_no_weights(
    refused, store: str, tiny_demo: Path, tmp_path: Path, name: str, content: bytes | None
):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    message = refused(f"--data.root={tiny_demo}", f"--model.weights={tmp_path / name}")
    assert str(tmp_path / name) in message


def test_a_truncated_checkpoint_is_no_weights(refused, store: str, tiny_demo: Path, tmp_path: Path):
    import timm
    import torch

    torch.save(timm.create_model("test_efficientnet").state_dict(), tmp_path / "whole.pt")
    content = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: len(content) // 2])
    assert str(tmp_path / "cut.pt") in refused(f"--data.root={tiny_demo}", f"--model.weights={tmp_path / 'cut.pt'}")


def test_weights_of_a_run_that_does_not_exist(refused, store: str, tiny_demo: Path):
    message = refused(f"--data.root={tiny_demo}", "--model.weights=run:0123", code=1)
    assert "run 0123" in message


# ------------------------------------------------------------------------------------------------------------------ a loss NaN


def loss_of_nan_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the loss of one training step (from 0) be NaN."""
    import torch

    from skincancer.models.tasks.classification import ClassificationTask

    original = ClassificationTask.training_step

    def training_step(self, batch, batch_idx):
        loss = original(self, batch, batch_idx)
        if self.global_step == step:
            loss = self.guard(loss * torch.nan)
        return loss

    monkeypatch.setattr(ClassificationTask, "training_step", training_step)


@pytest.mark.parametrize("every", [1, 50])
def test_a_loss_of_nan_stops_the_run_and_names_the_step(
    store: str, tiny_demo: Path, monkeypatch: pytest.MonkeyPatch, capsys, every: int
):
    loss_of_nan_at(7, monkeypatch)  # of 5 steps an epoch: in the second
    argv = ["--experiment=resnet50", *TINY_FIT, f"--data.root={tiny_demo}", "--trainer.max_epochs=4"]
    assert fit.main([*argv, f"--trainer.log_every_n_steps={every}"]) == 1
    message = capsys.readouterr().err
    assert "Traceback" not in message
    (run,) = runs()
    assert run.info.status == "FAILED"
    for text in (message, run.data.tags["status_reason"]):
        assert "step 7" in text
        assert "epoch 2" in text
        assert "--model.optimizer.lr" in text
    history = pd.read_csv(Path(run.data.tags["work_folder"]) / "epochs.csv")
    assert history["epoch"].tolist() == [1], "it stopped in the second"
    assert "test/accuracy" not in run.data.metrics


def test_a_learning_rate_far_too_high_ends_failed(store: str, tiny_demo: Path, capsys):
    argv = ["--experiment=resnet50", *TINY_FIT, f"--data.root={tiny_demo}", "--model.optimizer.name=sgd"]
    argv += ["--model.optimizer.lr=90", "--model.optimizer.weight_decay=0.5", "--trainer.max_epochs=10"]
    assert fit.main(argv) == 1
    message = capsys.readouterr().err
    assert "Traceback" not in message
    (run,) = runs()
    assert run.info.status == "FAILED"
    assert "NaN" in run.data.tags["status_reason"]
    assert "step" in run.data.tags["status_reason"]
    assert run.data.tags["status_reason"] in message


def test_the_tiny_demo_is_what_the_numbers_above_say(tiny_demo: Path):
    table = read_demo(tiny_demo)
    assert len(table) == 57
    assert (table.groupby("diagnosis")["lesion_id"].nunique() >= 5).all()
