from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torch._inductor.config
import yaml
from torch import nn

from skincancer import fit
from skincancer.errors import ConfigError
from skincancer.models.backbones import (
    build_backbone,
    check_backbone,
    count_features,
    current_name,
    frozen_parameters,
    normalisation,
    stages,
)
from skincancer.models.compatibility import check_network, with_current_name
from skincancer.models.names import SMALLEST_SIZE
from skincancer.schema.data import DataConfig
from skincancer.schema.experiment import Experiment
from skincancer.schema.model import ModelConfig
from skincancer.system.paths import experiments_folder

TINY = ["test_efficientnet", "test_resnet", "test_vit"]
_EXPERIMENTS = [yaml.safe_load(path.read_text()) for path in experiments_folder().glob("*.yaml")]
SHIPPED = sorted(
    {
        each["model"]["backbone"]
        for each in _EXPERIMENTS
        if each["task"] == "classification" and "backbone" in each["model"]  # hand-crafted features have none
    }
)


def build_on_meta(name: str, size: int = 96) -> nn.Module:
    with torch.device("meta"):
        return build_backbone(name, size).eval()


def test_an_unknown_backbone_is_reported_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'densnet169'.*does not know\. Did you mean 'densenet169'\?"):
        check_backbone("densnet169", 64)
    with pytest.raises(ConfigError, match=r"'what is this'.*does not know\. `python"):  # nothing is near
        check_backbone("what is this", 64)


def test_an_unknown_weights_tag_is_reported_with_the_nearest_and_the_known() -> None:
    check_backbone("test_vit.r160_in1k", 32)
    with pytest.raises(
        ConfigError, match=r"unknown weights tag\. Did you mean 'test_vit\.r160_in1k'\? Known: test_vit"
    ):
        check_backbone("test_vit.r160", 32)


def test_every_old_name_of_timm_is_replaced_as_timm_does() -> None:
    old_names = timm.models.get_deprecated_models()
    assert len(old_names) > 200
    for old, current in old_names.items():
        assert current_name(old) == current
        assert current_name(current) == current
        assert timm.is_model(current)
    assert current_name("resnet50") == "resnet50"
    assert current_name("no_model") == "no_model"


@pytest.mark.parametrize(
    ("task", "old", "current"),
    [
        ("classification", "xception", "legacy_xception"),
        ("classification", "tf_efficientnet_b0_ns", "tf_efficientnet_b0.ns_jft_in1k"),
        ("segmentation", "tu-tv_resnet34", "tu-resnet34.tv_in1k"),
    ],
)
def test_an_experiment_gets_the_current_name(task: str, old: str, current: str) -> None:
    architecture = "unet" if task == "segmentation" else ""
    experiment = Experiment(
        task=task, model=ModelConfig(architecture=architecture, backbone=old), data=DataConfig(size=64)
    )
    check_network(experiment)
    assert with_current_name(experiment).model.backbone == current
    assert with_current_name(with_current_name(experiment)) == with_current_name(experiment)


def test_fit_prints_the_current_name(capsys: pytest.CaptureFixture[str]) -> None:
    """timm's own table names a weights tag that it has renamed since, which is then reported."""
    assert fit.main(["--experiment=efficientnet_lite0", "--model.backbone=vit_base_patch16_224_sam"]) == 2
    output = capsys.readouterr()
    assert "model.backbone vit_base_patch16_224_sam is called vit_base_patch16_224.sam in timm now" in output.out
    assert "unknown weights tag" in output.err


def test_compiling_without_a_compiler_is_refused_before_data_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    flags = ["--model.backbone=test_resnet", "--data.size=32", "--model.compile=true", f"--data.root={tmp_path / 'no'}"]
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        assert fit.main(["--experiment=efficientnet_lite0", *flags]) == 2
    torch._dynamo.reset()
    message = capsys.readouterr().err
    assert "model.compile is True, but torch.compile fails on this machine" in message
    assert "Install a C++ compiler" in message
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        ("inception_v3", 74, "Kernel size"),
        ("vgg16", 16, "Output size is too small"),
        ("test_vit", 33, "divisible by patch size"),
    ],
)
def test_a_size_that_a_backbone_cannot_take(name: str, size: int, reason: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s){name} does not take images of {size} px .*{reason}.*--data\.size"):
        check_backbone(name, size)


@pytest.mark.parametrize(("name", "size"), SMALLEST_SIZE.items())
def test_the_smallest_size_is_the_smallest(name: str, size: int) -> None:
    check_backbone(name, size)
    with pytest.raises(ConfigError):
        check_backbone(name, size - 1)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_backbones_take_the_studies_size(name: str) -> None:
    check_backbone(name, 224)


@pytest.mark.parametrize("name", TINY)
def test_features_are_counted_as_the_backbone_gives_them(name: str) -> None:
    backbone = build_backbone(name, 32)
    backbone.train()
    features = count_features(backbone, 32)
    assert backbone.training
    assert features == timm.create_model(name).get_classifier().in_features
    assert backbone(torch.rand(3, 3, 32, 32)).shape == (3, features)


def test_counting_features_moves_no_batch_statistics() -> None:
    backbone = build_backbone("test_resnet", 32).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    count_features(backbone, 32)
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(("name", "convolutions"), [("vgg11", 8), ("vgg16", 13), ("vgg19", 16)])
def test_vgg_keeps_its_convolutions_alone(name: str, convolutions: int) -> None:
    backbone = build_on_meta(name)
    layers = [module for module in backbone.modules() if list(module.parameters(recurse=False))]
    assert [type(layer).__name__ for layer in layers] == ["Conv2d"] * convolutions
    assert max(max(parameter.shape) for parameter in backbone.parameters()) == 512
    assert backbone(torch.zeros(1, 3, 64, 64, device="meta")).shape == (1, 512)
    with torch.device("meta"):
        whole = timm.create_model(name)
    published = sum(p.numel() for key, p in whole.named_parameters() if key.startswith("features."))
    assert sum(p.numel() for p in backbone.parameters()) == published


@pytest.mark.parametrize("size", [32, 64])
def test_a_vit_is_built_for_its_image_size(size: int) -> None:
    backbone = build_backbone("test_vit", size)
    assert backbone.patch_embed.img_size == (size, size)
    assert backbone.pos_embed.shape[1] == (size // 16) ** 2 + 1  # patches and the class token
    assert backbone(torch.rand(2, 3, size, size)).shape == (2, 64)


def test_normalisation_is_that_of_the_weights() -> None:
    assert normalisation("test_efficientnet") == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])  # ImageNet's
    assert normalisation("test_vit") == ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
    assert normalisation("test_vit.r160_in1k") == normalisation("test_vit")


# Models for which timm has no groups, or only fine ones.
WITHOUT_GROUPS = ["caformer_s18", "csatv2", "pit_ti_224", "poolformer_s12", "rdnet_tiny"]


@pytest.mark.slow
@pytest.mark.parametrize("module", timm.list_modules())
def test_stages_of_every_family_are_complete(module: str) -> None:
    for name in timm.list_models(module=module)[::20]:
        backbone = build_on_meta(name, timm.get_pretrained_cfg(name).input_size[-1])
        found = stages(backbone)
        assert len(found) >= 3, name
        assert sorted(key for stage in found for key in stage) == sorted(dict(backbone.named_parameters())), name


@pytest.mark.parametrize("name", [*TINY, *SHIPPED, *WITHOUT_GROUPS])
def test_stages_stand_in_the_order_in_which_an_image_passes_them(name: str) -> None:
    size = 96
    backbone = build_on_meta(name, size)
    found = stages(backbone)
    number = {parameter: stage for stage, names in enumerate(found) for parameter in names}
    assert sorted(name for stage in found for name in stage) == sorted(name for name, _ in backbone.named_parameters())
    passed: list[tuple[int, str]] = []
    for prefix, module in backbone.named_modules():
        own = [f"{prefix}.{key}" for key, _ in module.named_parameters(recurse=False)]
        if prefix and own:
            module.register_forward_pre_hook(
                lambda _, __, stage=number[own[0]], prefix=prefix: passed.append((stage, prefix))
            )
    backbone(torch.zeros(1, 3, size, size, device="meta"))
    numbers = [stage for stage, _ in passed]
    assert numbers == sorted(numbers), passed
    assert len(found) >= 5
    assert numbers[0] == 0


@pytest.mark.parametrize("name", TINY)
def test_frozen_parameters(name: str) -> None:
    backbone = build_backbone(name, 32)
    everything = {key for key, _ in backbone.named_parameters()}
    assert frozen_parameters(backbone, "none") == set()
    assert frozen_parameters(backbone, "all") == everything
    before: set[str] = set()
    count = len(stages(backbone))
    for number in range(1, count + 1):
        frozen = frozen_parameters(backbone, str(number))
        assert before < frozen
        before = frozen
    assert before == everything
    with pytest.raises(ConfigError, match=rf"freeze is {count + 1}, but the backbone has {count} stages"):
        frozen_parameters(backbone, str(count + 1))
    check_backbone(name, 32, str(count))
    with pytest.raises(ConfigError, match=rf"freeze is {count + 1}, but"):
        check_backbone(name, 32, str(count + 1))


def test_the_stages_of_a_plugins_backbone_are_its_modules() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
            self.pool = nn.AdaptiveAvgPool2d(1)
            self.last = nn.Linear(4, 5)

    stem = ["stem.0.weight", "stem.0.bias", "stem.1.weight", "stem.1.bias"]
    assert stages(Own()) == [["scale", *stem], ["last.weight", "last.bias"]]
    assert stages(nn.Linear(2, 2)) == [["weight", "bias"]]


def test_the_first_stages_of_a_resnet_by_name() -> None:
    backbone = build_backbone("test_resnet", 32)
    frozen = frozen_parameters(backbone, "2")
    assert {name.split(".")[0] for name in frozen} == {"conv1", "bn1", "layer1"}
    assert {
        name for name, _ in backbone.named_parameters() if name.split(".")[0] in ("conv1", "bn1", "layer1")
    } == frozen
