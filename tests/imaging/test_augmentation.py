"""Augmentation changes angles, positions, areas, colours and noise by the configured magnitudes."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys

import kornia
import numpy as np
import pytest
import torch
from PIL import Image

from skincancer.errors import ConfigError
from skincancer.imaging.augmentation import Augment
from skincancer.imaging.augmentation_policies import POLICIES, check, describe, resolve
from skincancer.schema.data import AugmentConfig
from skincancer.visualization.contact_sheets import augment_sheet

SHAPES = {"wide": (48, 96), "tall": (96, 48), "square": (64, 64)}
COLOUR_OFF = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, "noise": 0.0}


def only(**values: float) -> Augment:
    return Augment(AugmentConfig(policy="none", **values))


def lesion(batch: int, height: int, width: int) -> torch.Tensor:
    """Create an off-centre ellipse with a notch, so that no flip or rotation maps it onto itself."""
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    mask = ((x - 0.45) / 0.3) ** 2 + ((y - 0.55) / 0.2) ** 2 < 1
    mask &= ~((x < 0.4) & (y < 0.5))
    return mask.float().expand(batch, 1, height, width).clone()


def mild(batch: int = 64, size: int = 16) -> torch.Tensor:
    """Create colours far enough from 0 and 1 that no tested transform is clipped."""
    return 0.4 + 0.2 * torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(3))


def bar(batch: int, height: int, width: int) -> torch.Tensor:
    mask = torch.zeros(batch, 1, height, width)
    mask[..., height // 2 - 3 : height // 2 + 3, width // 2 - 15 : width // 2 + 15] = 1
    return mask


def centroid(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (x, y) in pixels relative to the image centre."""
    height, width = mask.shape[-2:]
    x, y = torch.arange(width) + 0.5 - width / 2, torch.arange(height) + 0.5 - height / 2
    area = mask.sum((1, 2, 3))
    return (mask * x).sum((1, 2, 3)) / area, (mask * y[:, None]).sum((1, 2, 3)) / area


def orientation(mask: torch.Tensor) -> torch.Tensor:
    """Return the anticlockwise angle of the long axis in degrees, from second moments."""
    height, width = mask.shape[-2:]
    x, y = torch.arange(width).double()[None, :], -torch.arange(height).double()[:, None]
    angles = []
    for one in mask[:, 0].double() / mask.double().sum((1, 2, 3))[:, None, None]:
        dx, dy = x - (one * x).sum(), y - (one * y).sum()
        xx, yy, xy = (one * dx * dx).sum(), (one * dy * dy).sum(), (one * dx * dy).sum()
        angles.append(math.degrees(0.5 * math.atan2(2 * xy, xx - yy)))
    return torch.tensor(angles)


def spans(values: torch.Tensor, low: float, high: float, tolerance: float) -> bool:
    """Return whether values stay within a range and reach its outer tenths."""
    edge = (high - low) / 10
    inside = values.min() >= low - tolerance and values.max() <= high + tolerance
    return bool(inside and values.min() < low + edge and values.max() > high - edge)


# --- the mask moves with the image


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "none"])
def test_mask_follows_image(policy, shape):
    mask = lesion(12, *SHAPES[shape])
    augment = Augment(AugmentConfig(policy=policy, **COLOUR_OFF))
    image, moved = augment(mask.expand(-1, 3, -1, -1).contiguous(), mask, seed=5)
    assert set(moved.unique().tolist()) == {0.0, 1.0}
    # The nearest pixel has at least a quarter of the bilinear weight, so beyond a quarter image and mask must agree.
    painted = image[:, :1]
    assert (moved[painted > 0.751] == 1).all()
    assert (moved[painted < 0.249] == 0).all()
    assert (moved != mask).any(dim=3).any(dim=2).any(dim=1).sum() >= 11, "the mask moves"


@pytest.mark.parametrize("policy", POLICIES)
def test_colour_leaves_mask_alone(policy):
    image, mask = torch.rand(6, 3, 40, 56), lesion(6, 40, 56)
    moved = Augment(AugmentConfig(policy=policy))(image, mask, seed=1)[1]
    still_moved = Augment(AugmentConfig(policy=policy, **COLOUR_OFF))(image, mask, seed=1)[1]
    assert torch.equal(moved, still_moved)


@pytest.mark.parametrize("policy", POLICIES)
def test_output_range_and_type(policy):
    image = torch.rand(8, 3, 40, 56)
    before = image.clone()
    out, mask = Augment(AugmentConfig(policy=policy))(image, None, seed=2)
    assert mask is None
    assert out.shape == image.shape
    assert out.dtype == torch.float32
    assert out.min() >= 0
    assert out.max() <= 1
    assert torch.equal(image, before), "the input does not change"


# --- randomness


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "none"])
def test_result_depends_on_the_seed_only(policy):
    image, mask = torch.rand(4, 3, 32, 48), lesion(4, 32, 48)
    augment = Augment(AugmentConfig(policy=policy))
    torch.manual_seed(0)
    first = augment(image, mask, seed=11)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    second = augment(image, mask, seed=11)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], augment(image, mask, seed=12)[0])


def test_samples_of_a_batch_differ():
    image = torch.rand(1, 3, 32, 32).expand(6, -1, -1, -1).contiguous()
    for policy in ("light", "strong", "study1", "study2"):
        out = Augment(AugmentConfig(policy=policy))(image, None, seed=0)[0]
        assert len({one.numpy().tobytes() for one in out}) == 6


def test_parameters_do_not_depend_on_other_switches_or_batch_size():
    image, mask = torch.rand(8, 3, 32, 48), lesion(8, 32, 48)
    light = Augment(AugmentConfig(policy="light"))(image, mask, seed=4)
    unflipped = Augment(AugmentConfig(policy="light", hue=0.0, translation=0.0))(image, mask, seed=4)
    only_shifted = Augment(AugmentConfig(policy="light", hue=0.0))(image, mask, seed=4)
    assert torch.equal(light[1], only_shifted[1])
    assert not torch.equal(light[1], unflipped[1])
    fewer = Augment(AugmentConfig(policy="light"))(image[:3], mask[:3], seed=4)
    torch.testing.assert_close(fewer[0], light[0][:3])


# --- geometry: each switch does what its name says


def test_rotation_by_90_is_rot90():
    image = torch.rand(3, 3, 40, 40)
    out = only(rotation=90, rotation_low=90)(image, None, seed=0)[0]
    torch.testing.assert_close(out, torch.rot90(image, 1, (2, 3)), atol=1e-3, rtol=0)


def test_rotation_is_in_pixels_in_a_wide_image():
    image = torch.rand(2, 3, 40, 96)
    out = only(rotation=90, rotation_low=90)(image, None, seed=0)[0]
    square = torch.rot90(image[..., 28:68], 1, (2, 3))
    torch.testing.assert_close(out[..., 28:68], square, atol=1e-3, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_rotation_angle(shape):
    mask = bar(2, *SHAPES[shape])
    moved = only(rotation=30, rotation_low=30)(mask.expand(-1, 3, -1, -1), mask, seed=0)[1]
    torch.testing.assert_close(orientation(moved), torch.full((2,), 30.0), atol=1.0, rtol=0)
    assert abs(moved.sum() / mask.sum() - 1) < 0.05


@pytest.mark.parametrize(("policy", "low", "high"), [("study2", 0, 30), ("study1", -30, 30), ("light", -15, 15)])
def test_rotation_range_of_policies(policy, low, high):
    mask = bar(64, 48, 80)
    off = dict.fromkeys(("horizontal_flip", "vertical_flip", "translation", "scaling", "shear"), 0.0)
    augment = Augment(AugmentConfig(policy=policy, **off, **COLOUR_OFF))
    angles = orientation(augment(mask.expand(-1, 3, -1, -1), mask, seed=0)[1])
    assert spans(angles, low, high, tolerance=1.0)


@pytest.mark.parametrize(("name", "axis"), [("horizontal_flip", -1), ("vertical_flip", -2)])
def test_flip_moves_pixels_exactly(name, axis):
    image, mask = torch.rand(40, 3, 24, 32), lesion(40, 24, 32)
    out, moved = only(**{name: 1.0})(image, mask, seed=0)
    assert torch.equal(out, image.flip(axis))
    assert torch.equal(moved, mask.flip(axis))
    half = only(**{name: 0.5})(image, mask, seed=0)[0]
    flipped = (half == image.flip(axis)).flatten(1).all(1)
    assert torch.equal(half[~flipped], image[~flipped])
    assert 10 <= flipped.sum() <= 30


def test_flip_inside_a_warp_is_the_same_flip():
    image = torch.rand(16, 3, 24, 32)
    exact = only(horizontal_flip=0.5, vertical_flip=0.5)(image, None, seed=3)[0]
    warped = only(horizontal_flip=0.5, vertical_flip=0.5, rotation=1e-6)(image, None, seed=3)[0]
    torch.testing.assert_close(warped, exact, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_translation_moves_the_centroid_by_the_fraction(shape):
    height, width = SHAPES[shape]
    mask = torch.zeros(64, 1, height, width)
    mask[..., height // 2 - 4 : height // 2 + 4, width // 2 - 4 : width // 2 + 4] = 1
    image = only(translation=0.2)(mask.expand(-1, 3, -1, -1), None, seed=0)[0]
    x, y = centroid(image[:, :1])
    assert spans(x / width, -0.2, 0.2, tolerance=1e-3)
    assert spans(y / height, -0.2, 0.2, tolerance=1e-3)


def test_scaling_changes_area_and_keeps_proportions():
    mask = bar(64, 64, 96)
    image = only(scaling=0.3)(mask.expand(-1, 3, -1, -1), None, seed=0)[0][:, :1]
    factor = (image.sum((1, 2, 3)) / mask.sum((1, 2, 3))).sqrt()
    assert spans(factor, 0.7, 1.3, tolerance=0.02)
    columns, rows = image.amax((1, 2)).sum(1), image.amax((1, 3)).sum(1)
    torch.testing.assert_close(columns / rows, torch.full((64,), 5.0), atol=0, rtol=0.15)


def test_shear_leans_a_vertical_line():
    image = torch.zeros(64, 3, 64, 64)
    image[..., 31:33] = 1
    out = only(shear=20)(image, None, seed=0)[0][:, 0, 12:52]
    column = (out * torch.arange(64)).sum(2) / out.sum(2)
    slope = (column[:, -1] - column[:, 0]) / 39
    assert spans(torch.rad2deg(slope.atan()), -20, 20, tolerance=0.5)
    torch.testing.assert_close(column[:, 19:21].mean(1), torch.full((64,), 31.5), atol=0.1, rtol=0)


def test_elastic_displaces_smoothly_within_its_amplitude():
    height, width, amplitude = 64, 96, 0.05
    y, x = torch.meshgrid(torch.arange(height) / (height - 1), torch.arange(width) / (width - 1), indexing="ij")
    ramps = torch.stack([x, y, torch.zeros_like(x)]).expand(16, -1, -1, -1)
    out = only(elastic=amplitude, elastic_sigma=0.15)(ramps, None, seed=0)[0]
    moved = (out - ramps)[:, :2, 6:-6, 6:-6] * torch.tensor([width - 1, height - 1]).view(2, 1, 1)
    longest = moved.norm(dim=1).amax((1, 2)) / height
    assert longest.max() <= amplitude + 1e-4
    assert longest.max() > 0.9 * amplitude
    assert (moved.mean((2, 3)).abs() < 0.6 * amplitude * height).all()
    inner = out[..., 6:-6, 6:-6]
    assert (inner[:, 0].diff(dim=2) > 0).all(), "the warp does not fold"
    assert (inner[:, 1].diff(dim=1) > 0).all()


def test_strong_is_one_warp(monkeypatch):
    calls = []
    original = torch.nn.functional.grid_sample
    monkeypatch.setattr("torch.nn.functional.grid_sample", lambda *a, **k: calls.append(k["mode"]) or original(*a, **k))
    image, mask = torch.rand(2, 3, 32, 32), lesion(2, 32, 32)
    Augment(AugmentConfig(policy="strong"))(image, mask, seed=0)
    assert calls == ["bilinear", "nearest"]
    only(horizontal_flip=0.5, brightness=0.1)(image, mask, seed=0)
    assert len(calls) == 2, "flips and colour need no interpolation"


# --- colour, compared with kornia at the sampled factor


def test_brightness_is_a_factor():
    image = mild()
    out = only(brightness=0.3)(image, None, seed=0)[0]
    factor = out.mean((1, 2, 3)) / image.mean((1, 2, 3))
    assert spans(factor, 0.7, 1.3, tolerance=1e-4)
    torch.testing.assert_close(out, kornia.enhance.adjust_brightness_accumulative(image, factor))


def test_contrast_keeps_the_mean_grey():
    image = mild()
    out = only(contrast=0.3)(image, None, seed=0)[0]
    grey = kornia.color.rgb_to_grayscale
    torch.testing.assert_close(grey(out).mean((1, 2, 3)), grey(image).mean((1, 2, 3)))
    factor = out[:, 0].std((1, 2)) / image[:, 0].std((1, 2))
    assert spans(factor, 0.7, 1.3, tolerance=1e-4)
    reference = kornia.enhance.adjust_contrast_with_mean_subtraction(image, factor)
    torch.testing.assert_close(out, reference, atol=1e-5, rtol=0)


def test_saturation_keeps_each_pixels_grey():
    image = mild()
    out = only(saturation=0.5)(image, None, seed=0)[0]
    factor = (out[:, 0] - out[:, 1]).std((1, 2)) / (image[:, 0] - image[:, 1]).std((1, 2))
    assert spans(factor, 0.5, 1.5, tolerance=1e-4)
    reference = kornia.enhance.adjust_saturation_with_gray_subtraction(image, factor)
    torch.testing.assert_close(out, reference, atol=1e-5, rtol=0)


def test_combined_colours_equal_the_sequence_of_three():
    image = mild()
    values = {"brightness": 0.2, "saturation": 0.2, "contrast": 0.2}
    alone = {name: only(**{name: value})(image, None, seed=6)[0] for name, value in values.items()}
    brightness = alone["brightness"].mean((1, 2, 3)) / image.mean((1, 2, 3))
    contrast = alone["contrast"][:, 0].std((1, 2)) / image[:, 0].std((1, 2))
    chroma, chroma_before = alone["saturation"][:, 0] - alone["saturation"][:, 1], image[:, 0] - image[:, 1]
    saturation = chroma.std((1, 2)) / chroma_before.std((1, 2))
    reference = kornia.enhance.adjust_brightness_accumulative(image, brightness)
    reference = kornia.enhance.adjust_saturation_with_gray_subtraction(reference, saturation)
    reference = kornia.enhance.adjust_contrast_with_mean_subtraction(reference, contrast)
    torch.testing.assert_close(only(**values)(image, None, seed=6)[0], reference, atol=1e-5, rtol=0)


def test_hue_rotates_colours_about_grey():
    image = mild()
    out = only(hue=0.1)(image, None, seed=0)[0]
    before, after = kornia.color.rgb_to_yuv(image), kornia.color.rgb_to_yuv(out)
    torch.testing.assert_close(after[:, 0], before[:, 0], atol=1e-5, rtol=0)
    plain, turned = torch.complex(before[:, 1], before[:, 2]), torch.complex(after[:, 1], after[:, 2])
    torch.testing.assert_close(turned.abs(), plain.abs(), atol=1e-5, rtol=0)
    turns = torch.angle((turned * plain.conj()).sum((1, 2))) / (2 * math.pi)
    assert spans(turns, -0.1, 0.1, tolerance=1e-3)
    # The HSV hue of a skin tone rotates in the same direction, by a similar angle.
    skin = torch.tensor([0.7, 0.55, 0.5]).view(1, 3, 1, 1).expand(64, -1, 4, 4)
    hue = kornia.color.rgb_to_hsv(only(hue=0.1)(skin, None, seed=0)[0])[:, 0, 0, 0]
    shift = (hue - kornia.color.rgb_to_hsv(skin)[:, 0, 0, 0] + math.pi) % (2 * math.pi) - math.pi
    assert torch.corrcoef(torch.stack([shift, turns]))[0, 1].abs() > 0.95
    assert 0.5 < shift.abs().max() / (2 * math.pi * 0.1) < 2


def test_noise_has_the_configured_standard_deviation():
    image = torch.full((8, 3, 64, 64), 0.5)
    noise = only(noise=0.05)(image, None, seed=0)[0] - image
    assert abs(noise.std() / 0.05 - 1) < 0.02
    assert abs(noise.mean()) < 1e-3
    assert abs(torch.corrcoef(torch.stack([noise[0].flatten(), noise[1].flatten()]))[0, 1]) < 0.05


# --- tensors


def test_input_is_returned_without_active_transforms():
    image, mask = torch.rand(2, 3, 8, 8), lesion(2, 8, 8)
    out, moved = Augment(AugmentConfig(policy="none"))(image, mask, seed=0)
    assert out is image
    assert moved is mask


def test_autocast_changes_nothing():
    image, mask = torch.rand(4, 3, 32, 48), lesion(4, 32, 48)
    augment = Augment(AugmentConfig(policy="strong"))
    plain = augment(image, mask, seed=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = augment(image, mask, seed=0)
    assert cast[0].dtype == torch.float32
    assert torch.equal(cast[0], plain[0])
    assert torch.equal(cast[1], plain[1])


@pytest.mark.parametrize("policy", POLICIES)
def test_channels_last_stays(policy):
    image = torch.rand(4, 3, 32, 48)
    augment = Augment(AugmentConfig(policy=policy))
    out = augment(image.to(memory_format=torch.channels_last), None, seed=0)[0]
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert augment(image, None, seed=0)[0].is_contiguous()
    torch.testing.assert_close(out, augment(image, None, seed=0)[0])


def test_augmentation_has_no_gradient_and_no_state():
    image = torch.rand(2, 3, 16, 16, requires_grad=True)
    augment = Augment(AugmentConfig(policy="strong"))
    assert not augment(image, None, seed=0)[0].requires_grad
    assert not isinstance(augment, torch.nn.Module)


@pytest.mark.gpu
def test_seed_has_the_same_effect_on_a_gpu():
    image, mask = torch.rand(8, 3, 64, 96), lesion(8, 64, 96)
    augment = Augment(AugmentConfig(policy="strong", noise=0.0))
    state = torch.cuda.get_rng_state()
    host, device = augment(image, mask, seed=0), augment(image.cuda(), mask.cuda(), seed=0)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert (host[0] - device[0].cpu()).abs().mean() < 1e-4
    assert (host[1] != device[1].cpu()).float().mean() < 1e-3


def test_bad_tensors_fail():
    augment = Augment(AugmentConfig())
    image = torch.rand(2, 3, 8, 8)
    with pytest.raises(TypeError, match=r"image is torch.uint8.*float32"):
        augment((image * 255).byte(), None, seed=0)
    with pytest.raises(TypeError, match=r"mask is torch.bool"):
        augment(image, torch.zeros(2, 1, 8, 8, dtype=torch.bool), seed=0)
    for bad in (image[0], image[:, :1], torch.rand(2, 8, 8, 3)):
        with pytest.raises(ValueError, match="image has shape"):
            augment(bad, None, seed=0)
    for shape in ((2, 8, 8), (2, 1, 8, 9), (1, 1, 8, 8)):
        with pytest.raises(ValueError, match="mask has shape"):
            augment(image, torch.zeros(shape), seed=0)


# --- configuration


def test_policies_name_real_fields_and_pass_their_own_check():
    names = {field.name for field in dataclasses.fields(AugmentConfig)}
    for policy, values in POLICIES.items():
        assert set(values) <= names - {"policy"}
        check(AugmentConfig(policy=policy))


def test_resolve_fills_only_what_is_missing():
    study2 = resolve(AugmentConfig(policy="study2", scaling=0.5))
    assert (study2.rotation_low, study2.rotation, study2.scaling) == (0.0, 30.0, 0.5)
    assert (study2.vertical_flip, study2.horizontal_flip, study2.translation) == (0.0, 0.5, 0.1)
    assert resolve(AugmentConfig(policy="study2", rotation=20)).rotation_low == 0.0
    assert resolve(AugmentConfig(policy="light", rotation=20)).rotation_low == -20.0
    assert resolve(AugmentConfig(policy="light", rotation=0)).rotation_low == 0.0
    assert resolve(study2) == study2
    assert all(value is not None for value in dataclasses.astuple(study2))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"policy": "ligth"}, r"'ligth'.*none, light, strong, study1, study2.*Did you mean 'light'"),
        ({"rotation": 181}, "augment.rotation is 181; expected 0 to 180"),
        ({"rotation": -5}, "augment.rotation"),
        ({"rotation": 10, "rotation_low": 20}, "augment.rotation_low is 20; expected -180 to 10"),
        ({"horizontal_flip": 1.5}, "augment.horizontal_flip is 1.5; expected 0 to 1"),
        ({"vertical_flip": -0.1}, "augment.vertical_flip"),
        ({"translation": 1.1}, "augment.translation"),
        ({"scaling": 1.0}, "augment.scaling"),
        ({"shear": 90}, "augment.shear"),
        ({"brightness": 1.2}, "augment.brightness"),
        ({"contrast": -1}, "augment.contrast"),
        ({"saturation": float("nan")}, "augment.saturation is nan"),
        ({"hue": 0.6}, "augment.hue is 0.6; expected 0 to 0.5"),
        ({"noise": -0.1}, "augment.noise"),
        ({"elastic": 0.05, "elastic_sigma": 0.08}, "at most half of elastic_sigma"),
        ({"elastic_sigma": 0.0}, "augment.elastic_sigma is 0; expected 0.03 to 0.3"),
    ],
)
def test_bad_configuration_fails(values, message):
    with pytest.raises(ConfigError, match=message):
        check(AugmentConfig(**values))
    with pytest.raises(ConfigError, match=message):
        Augment(AugmentConfig(**values))


def test_describe_lists_active_magnitudes_with_units():
    assert describe(AugmentConfig(policy="none")) == "none: nothing on"
    text = describe(AugmentConfig(policy="study2", hue=0.05, elastic=0.02, noise=0.01))
    assert text == (
        "study2: rotation 0 to 30°, horizontal flip p 50 %, translation ±10 %, scaling ±10 %, shear ±10°, hue ±18°, "
        "noise sd 0.01, elastic 2 % (sigma 8 %)"
    )


def test_policies_import_no_torch():
    code = "import sys, skincancer.imaging.augmentation_policies as p; p.check(p.AugmentConfig()); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- contact sheets


def test_sheet_shows_originals_copies_and_contours(tmp_path):
    images = np.empty((2, 30, 40, 3), np.uint8)
    images[0], images[1] = (200, 40, 30), (30, 40, 200)
    masks = np.zeros((2, 30, 40), np.uint8)
    masks[:, 10:20, 10:30] = 255
    titles = ["ISIC_$0024306$", "x" * 80]

    def share(path, colour):
        pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
        return (np.abs(pixels - colour).max(2) <= 3).mean()

    plain = augment_sheet(images, AugmentConfig(policy="none"), tmp_path / "new" / "plain.png", titles, copies=3)
    outlined = augment_sheet(images, AugmentConfig(policy="none"), tmp_path / "b.png", titles, copies=3, masks=masks)
    assert share(plain, (200, 40, 30)) > 0.25, "four cells of each colour fill most of the page"
    assert share(plain, (30, 40, 200)) > 0.25
    assert share(plain, (0, 229, 255)) == 0
    assert share(outlined, (0, 229, 255)) > 0.001
    dimmed = AugmentConfig(policy="none", brightness=0.5)
    assert share(augment_sheet(images, dimmed, tmp_path / "c.png", titles, copies=3), (200, 40, 30)) < 0.15


def test_augment_sheet_with_inconsistent_arguments_fails(tmp_path):
    images, config, path = np.zeros((2, 8, 8, 3), np.uint8), AugmentConfig(), tmp_path / "sheet.png"
    with pytest.raises(TypeError, match="uint8"):
        augment_sheet(images.astype(np.float32), config, path, ["a", "b"])
    with pytest.raises(ValueError, match="titles has 1 entries for 2 images"):
        augment_sheet(images, config, path, ["a"])
    with pytest.raises(ValueError, match="copies is 0"):
        augment_sheet(images, config, path, ["a", "b"], copies=0)
    with pytest.raises(ValueError, match="masks has shape"):
        augment_sheet(images, config, path, ["a", "b"], masks=np.zeros((2, 8, 9)))
    assert not path.exists()
