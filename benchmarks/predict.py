"""Compare predict with a bare model loop over decoded tensors, and measure peak memory.

    python benchmarks/predict.py --folder IMAGES --images 10000 --size 224

A few images are linked under the requested number of names. The model is not trained, which does not change the speed. predict reads,
decodes and resizes each file, runs the network and writes a row. The bare loop runs the same network on as many images in batches of the
same size, in a separate process. Its images are float32 tensors in memory. It is measured twice: with the default allocator of the C
library, and with the setting of predict (`allocator.py`). Decoding in the threads of predict is measured separately. On a CPU decoding
and the model share the cores, so that with the same allocator the ratio cannot exceed bare/(bare + decoding). With a GPU both run in
parallel.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from side_by_side import in_turns, machine, ratios, spread

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from skincancer.system.hardware import keep_freed_memory

# Smaller of the two numbers of images at which peak memory is measured.
COUNTS = 1000


def make_run(folder: Path, backbone: str, size: int, batch: int) -> None:
    """Write the folder of a run with an untrained network."""
    import torch

    from skincancer.config.resolve import resolve
    from skincancer.models.tasks.classification import ClassificationTask
    from skincancer.system.yaml_files import dump_yaml

    flags = {"data.size": size, "data.batch_size": batch, "model.backbone": backbone, "model.weights": "none"}
    experiment, _ = resolve("efficientnet_lite0", flags)
    model = experiment.to_dict()["model"]
    task = ClassificationTask(
        backbone=backbone, size=size, classes=list("abcdefg"), dropout=0.0, head="softmax", head_hidden=0, freeze="none",
        unfreeze_epoch=None, loss=model["loss"], optimizer=model["optimizer"], schedule=model["schedule"],
        class_weights=None, tta="none", channels_last=True, seed=0,
    )  # fmt: skip
    (folder / "checkpoints").mkdir(parents=True)
    torch.save(
        {"hyper_parameters": dict(task.hparams), "state_dict": task.state_dict()}, folder / "checkpoints/best.ckpt"
    )
    (folder / "config.yaml").write_text(dump_yaml(experiment.to_dict()))


def link(source: Path, folder: Path, count: int) -> None:
    """Link the images of a folder under `count` names."""
    files = sorted(path for path in source.rglob("*") if path.suffix.lower() in (".jpg", ".png"))[:64]
    folder.mkdir()
    for number in range(count):
        file = files[number % len(files)]
        (folder / f"{number:06d}{file.suffix}").symlink_to(file.resolve())


def peak(run: Path, images: Path, out: Path) -> None:
    """Predict in this process, and print its peak memory in MB (Linux)."""
    from skincancer.predict import predict

    predict(str(run), [images], out)
    # getrusage would report the peak of the parent process, because the peak survives exec.
    status = Path("/proc/self/status").read_text()
    print(int(status.partition("VmHWM:")[2].split()[0]) // 1024)


def bare(run: Path, images: Path, size: int, batch: int, keep: bool) -> None:
    """Run the bare model loop in this process, and print images per second."""
    import torch
    from PIL import Image
    from torchvision.transforms.functional import pil_to_tensor

    from skincancer.models.factory import load_task

    if keep:
        keep_freed_memory()
    task = load_task(run / "checkpoints/best.ckpt").to("cuda" if torch.cuda.is_available() else "cpu")
    files = sorted(images.iterdir())
    some = [pil_to_tensor(Image.open(file).convert("RGB").resize((size, size))) / 255 for file in files[: 8 * batch]]
    tensors = torch.stack(some).split(batch)
    with torch.inference_mode():
        for number in range(-1, -(-len(files) // batch)):
            # Batch -1 is warm-up.
            if number == 0:
                start = time.perf_counter()
            task(tensors[number % len(tensors)].to(task.device)).softmax(dim=1).cpu()
    print(len(files) / (time.perf_counter() - start))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="folder of images (default: the demo)")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of speed; 0 measures memory only")
    parser.add_argument("--peak", nargs=3, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--bare", nargs=2, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--keep", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.bare:
        bare(*given.bare, given.size, given.batch, given.keep)
        return
    if given.peak:
        peak(*given.peak)
        return
    if given.folder is None:
        from skincancer.data.prepare import locate_dataset
        from skincancer.schema.data import DataConfig

        given.folder = locate_dataset(DataConfig())[1] / "images"
    with tempfile.TemporaryDirectory() as place:
        make_run(Path(place) / "run", given.backbone, given.size, given.batch)
        if given.rounds:
            measure_speed(given, Path(place))
        measure_memory(given, Path(place))


def measure_memory(given: argparse.Namespace, place: Path) -> None:
    """Print the peak memory of predict at 1,000 and at all images."""
    for count in sorted({min(COUNTS, given.images), given.images}):
        images = place / f"many{count}"
        link(given.folder, images, count)
        command = [sys.executable, __file__, "--peak", str(place / "run"), str(images), str(place / f"out{count}")]
        shown = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        print(f"peak memory at {count:,} images: {shown.strip()} MB", flush=True)


def measure_speed(given: argparse.Namespace, place: Path) -> None:
    """Print images per second of predict, of the bare loop and of decoding, and their ratios."""
    from skincancer.inference.image_files import find_images
    from skincancer.inference.predictor import load_predictor, map_in_order, thread_pool
    from skincancer.predict import write_outputs

    many = place / "many"
    link(given.folder, many, given.images)
    out = place / "out"
    out.mkdir()
    images = find_images([many])
    predictor = load_predictor(str(place / "run"))

    def timed(work: Callable[[], object]) -> float:
        start = time.perf_counter()
        work()
        return len(images) / (time.perf_counter() - start)

    def bare_loop(*flags: str) -> float:
        command = [sys.executable, __file__, "--bare", str(place / "run"), str(many), "--size", str(given.size), *flags]
        command += ["--batch", str(given.batch)]
        return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)

    def decoding() -> None:
        with thread_pool() as pool:
            for _ in map_in_order(pool, predictor._read, (Path(image.file) for image in images), 2 * given.batch):
                pass

    print(f"{len(images)} images, {given.backbone} at {given.size} px, batches of {given.batch}")
    print(machine(str(predictor.model.task.device)))
    done = in_turns(
        {
            "predict": lambda: timed(lambda: write_outputs(predictor, images, out)),
            "bare": bare_loop,
            "bare, memory kept": lambda: bare_loop("--keep"),
            "decoding": lambda: timed(decoding),
        },
        given.rounds,
    )
    for name, speeds in done.items():
        print(f"{name:18} {spread(speeds)} images/s")
    for name in ("bare", "bare, memory kept"):
        bound = [loop * decode / (loop + decode) for loop, decode in zip(done[name], done["decoding"], strict=True)]
        print(
            f"predict / {name}: {spread(ratios(done['predict'], done[name]), 2)}; "
            f"/ ({name}, then decoding): {spread(ratios(done['predict'], bound), 2)}"
        )


if __name__ == "__main__":
    main()
