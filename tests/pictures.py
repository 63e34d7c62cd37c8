"""Pictures of blobs, and edits after which they are still the same picture."""

import io

import cv2
import numpy as np
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (160, 160), texture: float = 1.0) -> Image.Image:
    """A blob with a skin of its own texture."""
    rng = np.random.default_rng(seed)
    width, height = size
    grey = sum(
        scale * cv2.resize(rng.normal(size=(scale, scale)), size, interpolation=cv2.INTER_CUBIC) for scale in (4, 9, 20)
    )
    y, x = np.mgrid[:height, :width]
    centre, radius = rng.uniform(0.4, 0.6, 2) * (width, height), rng.uniform(0.2, 0.3) * height
    blob = 60 / (1 + np.exp((np.hypot(x - centre[0], y - centre[1]) - radius) / 3))
    values = 150 + 1.2 * texture * grey - blob
    return Image.fromarray(np.stack([values + 40, values, values - 10], axis=2).clip(0, 255).astype(np.uint8))


def compressed(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


EDITS = {
    "flip": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "turn": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "flip and turn": lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    "jpeg 50": lambda image: compressed(image, 50),
    "resize": lambda image: image.resize((100, 100), Image.Resampling.BICUBIC),
    "crop in the middle": lambda image: image.crop((4, 4, 156, 156)),
    "crop at a corner": lambda image: image.crop((0, 8, 152, 160)),
    "brighter": lambda image: image.point(lambda value: min(255, round(value * 1.1))),
    "darker": lambda image: image.point(lambda value: round(value * 0.9)),
    "flip, crop and jpeg": lambda image: compressed(image.crop((8, 0, 160, 152)).transpose(Image.Transpose.ROTATE_180), 60),
}  # fmt: skip
