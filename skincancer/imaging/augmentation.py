"""Random augmentation of training batches on their device."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from kornia.color import rgb_to_yuv
from kornia.filters import gaussian_blur2d
from kornia.geometry.transform import get_affine_matrix2d
from torch import Tensor

from skincancer.errors import RunError
from skincancer.imaging.augmentation_policies import AUGMENTATIONS, check, resolve
from skincancer.schema.data import AugmentConfig

# One random number per parameter. All are sampled, active or not, so that switching one transform does not change the others.
_DRAWS = "horizontal vertical rotation shift_x shift_y scaling shear brightness contrast saturation hue".split()
# Grid cells along the shorter side for the elastic field, which is smooth and therefore sampled and filtered on a coarse grid.
_ELASTIC_CELLS = 32


class Augment:
    """Augmentation of image batches with random parameters for each image.

    Every random number depends on `seed`; the global generators of torch are not used. Parameters and elastic field are sampled on the
    CPU, so that a seed has the same effect on every device, except for rounding. Gaussian noise is sampled on the device of the images (a
    GPU would wait for the CPU), so that noise is reproducible on one kind of device only.

    Flips, rotation, translation, scaling, shear and elastic displacement are one warp: bilinear interpolation of the image, nearest
    neighbour for the mask, reflection at the border for both. Flips alone need no interpolation. Brightness, contrast, saturation and hue
    are one affine map of RGB, and only the result is clipped to [0, 1].

    The class is not an `nn.Module`, so that checkpoints contain no state of the augmentation.

    Args:
        config: magnitudes; None is replaced by the value of the policy.

    Raises:
        ConfigError: the policy is unknown, or a magnitude is out of range.

    Example:
        image, mask = Augment(AugmentConfig(policy="light"))(image, mask, seed=7)
    """

    def __init__(self, config: AugmentConfig) -> None:
        check(config)
        self.config = resolve(config)
        on = self._on
        self._warps = on("rotation", "rotation_low", "translation", "scaling", "shear", "elastic")
        self._flips = on("horizontal_flip", "vertical_flip")
        self._colours = on("brightness", "contrast", "saturation", "hue")

    @torch.no_grad()
    def __call__(self, image: Tensor, mask: Tensor | None, seed: int) -> tuple[Tensor, Tensor | None]:
        """Return the augmented image and mask, or the input without active transforms.

        Args:
            image: float32 (B, 3, H, W) in [0, 1]; a channels_last image stays channels_last.
            mask: float32 (B, 1, H, W) in {0, 1}, on the device of the image, or None.
            seed: seed of all random numbers of this call.

        Returns:
            Image and mask with unchanged shape, dtype and range, also under autocast.

        Raises:
            TypeError: image or mask is not float32.
            ValueError: image or mask has another shape.
        """
        _check_batch(image, mask)
        if not (self._warps or self._flips or self._colours or self._on("noise") or self.config.extra):
            return image, mask
        channels_last = not image.is_contiguous() and image.is_contiguous(memory_format=torch.channels_last)
        generator = torch.Generator().manual_seed(seed)
        draws = torch.rand(len(image), len(_DRAWS), generator=generator, dtype=torch.float64)
        draw = dict(zip(_DRAWS, draws.unbind(1), strict=True))
        noise_seed = int(torch.randint(2**62, (), generator=generator))
        with torch.autocast(image.device.type, enabled=False):
            if self._warps:
                image, mask = self._warp(image, mask, draw, generator)
            elif self._flips:
                image, mask = self._flip(image, mask, draw)
            if self._colours:
                image = self._colour(image, draw)
            if self._on("noise"):
                noise_generator = torch.Generator(image.device).manual_seed(noise_seed)
                noise = torch.randn(image.shape, generator=noise_generator, device=image.device)
                image = torch.add(image, noise, alpha=self._value("noise"))
            if self._colours or self._on("noise"):
                # The image is a new tensor here, never the tensor of the caller.
                image = image.clamp_(0, 1)
            for name in self.config.extra:
                image, mask = _apply(name, image, mask, generator)
        return image.contiguous(memory_format=torch.channels_last) if channels_last else image, mask

    def _value(self, name: str) -> float:
        return float(getattr(self.config, name))

    def _on(self, *names: str) -> bool:
        return any(self._value(name) != 0 for name in names)

    def _around(self, draw: Tensor, name: str) -> Tensor:
        return (2 * draw - 1) * self._value(name)

    def _flipped(self, draw: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return draw["horizontal"] < self._value("horizontal_flip"), draw["vertical"] < self._value("vertical_flip")

    def _flip(self, image: Tensor, mask: Tensor | None, draw: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        for name, axis, chosen in zip(("horizontal_flip", "vertical_flip"), (-1, -2), self._flipped(draw), strict=True):
            if self._on(name):
                where = chosen.to(image.device).view(-1, 1, 1, 1)
                image = torch.where(where, image.flip(axis), image)
                mask = None if mask is None else torch.where(where, mask.flip(axis), mask)
        return image, mask

    def _warp(
        self, image: Tensor, mask: Tensor | None, draw: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        batch, _, height, width = image.shape
        theta = self._affine(draw, height, width).float().to(image.device)
        # affine_grid multiplies matrices, which is ten times slower on a CPU, and less exact on a GPU if a run allows TF32.
        x = (2 * torch.arange(width, device=image.device) + 1) / width - 1
        y = (2 * torch.arange(height, device=image.device) + 1) / height - 1
        grid = image.new_empty(batch, height, width, 2)
        for axis, row in enumerate(theta.unbind(1)):
            along_x, along_y = row[:, :1] * x, row[:, 1:2] * y + row[:, 2:]
            torch.add(along_x[:, None, :], along_y[:, :, None], out=grid[..., axis])
        if self._on("elastic"):
            grid += self._elastic(image, generator)
        image = F.grid_sample(image, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
        if mask is not None:
            mask = F.grid_sample(mask, grid, mode="nearest", padding_mode="reflection", align_corners=False)
        return image, mask

    def _affine(self, draw: dict[str, Tensor], height: int, width: int) -> Tensor:
        """Return maps (B, 2, 3) from normalised output to normalised input coordinates.

        The maps are composed in pixels about the image centre, so that rotations are correct in images that are not square.
        """
        low, high = self._value("rotation_low"), self._value("rotation")
        shift = torch.stack([draw["shift_x"] * 2 - 1, draw["shift_y"] * 2 - 1], 1) * self._value("translation")
        size = shift.new_tensor([width, height])
        forward: Tensor = get_affine_matrix2d(
            translations=shift * size,
            center=torch.zeros_like(shift),
            scale=(1 + self._around(draw["scaling"], "scaling")).unsqueeze(1).expand(-1, 2),
            # A positive angle is clockwise in kornia.
            angle=-(low + (high - low) * draw["rotation"]),
            sx=torch.deg2rad(self._around(draw["shear"], "shear")),
        )
        horizontal, vertical = self._flipped(draw)
        flips = torch.stack([1 - 2 * horizontal.double(), 1 - 2 * vertical.double(), torch.ones_like(shift[:, 0])], 1)
        to_pixels = torch.cat([size / 2, size.new_ones(1)])
        backward: Tensor = torch.linalg.inv(forward @ torch.diag_embed(flips))
        theta: Tensor = backward * to_pixels / to_pixels[:, None]
        return theta[:, :2]

    def _elastic(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Return elastic displacements (B, H, W, 2) in normalised coordinates.

        Smoothed noise, after Simard et al. (2003). The longest displacement of each image is `elastic` times the shorter side, in pixels.
        """
        batch, _, height, width = image.shape
        side = min(height, width)
        cells = [math.ceil(_ELASTIC_CELLS * length / side) for length in (height, width)]
        sigma = self.config.elastic_sigma * _ELASTIC_CELLS
        noise = torch.randn(batch, 2, *cells, generator=generator)
        field: Tensor = gaussian_blur2d(noise, 2 * math.ceil(3 * sigma) + 1, (sigma, sigma), border_type="reflect")
        field = F.interpolate(field.to(image.device), (height, width), mode="bicubic", align_corners=False)
        pixels: Tensor = self._value("elastic") * side / torch.hypot(field[:, 0], field[:, 1]).amax((1, 2))
        to_normalised = field.new_tensor([2 / width, 2 / height])
        displacement: Tensor = field.permute(0, 2, 3, 1) * (pixels.view(-1, 1, 1, 1) * to_normalised)
        return displacement

    def _colour(self, image: Tensor, draw: dict[str, Tensor]) -> Tensor:
        """Apply brightness, saturation, hue and contrast, in this order.

        The four are one matrix and one offset per image.
        """
        factor = {name: 1 + self._around(draw[name], name) for name in ("brightness", "contrast", "saturation")}
        angle = 2 * math.pi * self._around(draw["hue"], "hue")
        to_yuv = rgb_to_yuv(torch.eye(3, dtype=torch.float64).view(1, 3, 3, 1))[0, :, :, 0]
        chroma = torch.zeros(len(image), 3, 3, dtype=torch.float64)
        chroma[:, 0, 0] = 1
        chroma[:, 1, 1] = chroma[:, 2, 2] = factor["saturation"] * angle.cos()
        chroma[:, 2, 1] = factor["saturation"] * angle.sin()
        chroma[:, 1, 2] = -chroma[:, 2, 1]
        brightness, contrast = (factor[name].view(-1, 1, 1) for name in ("brightness", "contrast"))
        matrix = brightness * contrast * (torch.linalg.inv(to_yuv) @ chroma @ to_yuv)
        # Saturation and hue do not change grey values, so the pivot of the contrast is the brightened mean grey of the input.
        pivot = (brightness * (1 - contrast)).float().to(image.device)
        grey = image.mean((2, 3)) @ to_yuv[0].float().to(image.device)
        offset = (pivot * grey.view(-1, 1, 1)).expand(-1, 3, 1)
        return torch.baddbmm(offset, matrix.float().to(image.device), image.flatten(2)).view(image.shape)


def _check_batch(image: Tensor, mask: Tensor | None) -> None:
    batch, _, height, width = image.shape if image.ndim == 4 else (0, 0, 0, 0)
    for name, tensor, shape in (("image", image, (batch, 3, height, width)), ("mask", mask, (batch, 1, height, width))):
        if tensor is None:
            continue
        if tensor.dtype != torch.float32:
            raise TypeError(f"{name} is {tensor.dtype}; expected float32. Convert uint8 images with .float() / 255.")
        if tensor.shape != shape or tensor.ndim != 4:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)} for an image of shape {tuple(image.shape)}; "
                "expected an image (B, 3, H, W) and a mask (B, 1, H, W)."
            )


def _apply(name: str, image: Tensor, mask: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """Apply the augmentation of a plugin.

    Raises:
        RunError: its result does not fit the batch.
    """
    expected = [None if tensor is None else (tuple(tensor.shape), tensor.dtype) for tensor in (image, mask)]
    result = AUGMENTATIONS[name](image, mask, generator)
    pair = result if isinstance(result, tuple) else (result,)
    found = [(tuple(part.shape), part.dtype) if isinstance(part, Tensor) else part for part in pair]
    if found != expected:
        raise RunError(
            f"the augmentation {name} of a plugin returns {found}; expected (image, mask) as {expected}. Fix it."
        )
    return pair
