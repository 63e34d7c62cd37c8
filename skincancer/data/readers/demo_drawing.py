"""Synthetic dermoscopic images of the seven HAM10000 classes, for the demo data set.

A lesion is drawn once, as optical layers on a square canvas. Melanin and blood absorb the light that skin reflects
(Beer-Lambert law). Deep pigment is blue-grey; scars, scale and cysts are pale. A view of the canvas adds rotation,
scale, crop, light, vignette, ruler, hair and noise. The structures of each class follow Kittler et al.,
"Standardization of terminology in dermoscopy", JAAD 2016. Their strength varies between lesions, so that classes
overlap. The images serve to test the software and have no medical meaning.

Layers are float32 and colour is (3, height, width), which numpy processes several times faster than (height, width, 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

Array = npt.NDArray[np.floating[Any]]

# Width and height of the canvas in pixels. A view may reach MARGIN pixels beyond, where the canvas is mirrored.
CANVAS, MARGIN = 192, 36
# Sides of a view in pixels.
LONG, SHORT = 160, 120

# Absorption of red, green and blue light by the two pigments, and the colours (red, green, blue) of other layers.
MELANIN = np.array([0.62, 1.05, 1.35], np.float32).reshape(3, 1, 1)
BLOOD = np.array([0.22, 1.15, 0.80], np.float32).reshape(3, 1, 1)
BLUE_GREY = np.array([0.38, 0.41, 0.52], np.float32).reshape(3, 1, 1)
PALE = np.array([0.93, 0.86, 0.82], np.float32).reshape(3, 1, 1)
HAIR = np.array([0.16, 0.11, 0.09], np.float32).reshape(3, 1, 1)

_Y, _X = (np.mgrid[:CANVAS, :CANVAS] - (CANVAS - 1) / 2).astype(np.float32)


@dataclass
class Lesion:
    """Canvas of one lesion, with layers of shape (192, 192).

    Attributes:
        depth: Signed depth: 1 at the centre, 0 on the border, negative outside. `depth > 0` is the mask.
        edge: Width of the soft border, in the unit of `depth`.
        melanin: Optical density, 0 or more.
        blood: Optical density, 0 or more.
        veil: Share of blue-grey in [0, 1].
        pale: Share of white in [0, 1].
    """

    rng: np.random.Generator
    depth: Array
    edge: float
    melanin: Array = field(init=False)
    blood: Array = field(init=False)
    veil: Array = field(init=False)
    pale: Array = field(init=False)

    def __post_init__(self) -> None:
        self.melanin, self.blood, self.veil, self.pale = np.zeros((4, CANVAS, CANVAS), np.float32)

    @cached_property
    def inside(self) -> Array:
        """Coverage in (0, 1), with a smooth step over the border."""
        return _step(self.depth / self.edge)

    def noise(self, grain: float) -> Array:
        """Generate smooth noise on the canvas, as the function `noise`."""
        return noise(self.rng, (CANVAS, CANVAS), grain)

    def network(self, grain: float) -> Array:
        """Generate a pigment network: ridges in [0, 1] around holes of about `grain` pixels."""
        ridges: Array = np.exp(-((self.noise(grain) / 0.4) ** 2))
        return ridges

    def points(self, count: int, shallow: float = 0.12) -> npt.NDArray[np.intp]:
        """Sample (count, 2) points (x, y) where the depth is at least `shallow`."""
        candidates = np.flatnonzero(self.depth >= min(shallow, 0.9 * float(self.depth.max())))
        chosen = self.rng.choice(candidates, count)
        return np.stack([chosen % CANVAS, chosen // CANVAS], axis=1)

    def spots(self, count: int, radius: tuple[float, float], shallow: float = 0.12, blur: float = 0.0) -> Array:
        """Draw ellipses as coverage in [0, 1] (half axes and blur in pixels)."""
        image, pen = _paper(CANVAS, CANVAS)
        for x, y in self.points(count, shallow):
            a, b = self.rng.uniform(*radius, size=2)
            pen.ellipse([2 * (x - a), 2 * (y - b), 2 * (x + a), 2 * (y + b)], fill=255)
        return _coverage(image, blur)

    def vessels(self, count: int, length: int, width: float) -> Array:
        """Draw arborising vessels, which branch and thin out, as coverage in [0, 1]."""
        image, pen = _paper(CANVAS, CANVAS)
        stems = [(x, y, self.rng.uniform(0, 2 * np.pi), length, width) for x, y in self.points(count, 0.05)]
        while stems:
            x, y, angle, left, width = stems.pop()
            path = [(2.0 * x, 2.0 * y)]
            for _ in range(left // 3):
                angle += self.rng.normal(0, 0.35)
                x, y = x + 3 * np.cos(angle), y + 3 * np.sin(angle)
                path.append((2 * x, 2 * y))
                if width > 1 and self.rng.random() < 0.2:
                    stems.append((x, y, angle + self.rng.choice([-0.8, 0.8]), left // 2, width * 0.6))
            pen.line(path, fill=255, width=max(1, round(2 * width * 0.8)), joint="curve")
        return _coverage(image)


def noise(rng: np.random.Generator, shape: tuple[int, int], grain: float) -> Array:
    """Generate smooth noise (height, width) with blobs about `grain` pixels wide.

    The mean is 0, the standard deviation about 1.
    """
    height, width = shape
    coarse = rng.standard_normal((max(2, round(height / grain)) + 1, max(2, round(width / grain)) + 1), np.float32)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.float32)
    # Bicubic interpolation reduces the standard deviation of unit noise to about 0.7.
    return np.asarray(smooth / 0.7)


def _paper(height: int, width: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Create a black image at twice the size, because PIL draws without anti-aliasing."""
    image = Image.new("L", (2 * width, 2 * height))
    return image, ImageDraw.Draw(image)


def _coverage(paper: Image.Image, blur: float = 0.0) -> Array:
    """Convert an image of `_paper` to coverage in [0, 1] at half its size."""
    softened = paper.filter(ImageFilter.GaussianBlur(2 * blur)) if blur else paper
    return np.asarray(softened.reduce(2), np.float32) / 255


def _step(values: Array) -> Array:
    """Compute the logistic function."""
    return 1 / (1 + np.exp(-np.clip(values, -30, 30)))


def outline(rng: np.random.Generator, radius: float, wobble: float, jag: float, aspect: float, edge: float) -> Lesion:
    """Create an empty lesion: an ellipse with harmonics (`wobble`) and noise (`jag`)."""
    turn = rng.uniform(0, 2 * np.pi)
    across = (_X * math.cos(turn) + _Y * math.sin(turn)) * math.sqrt(aspect)
    along = (_Y * math.cos(turn) - _X * math.sin(turn)) / math.sqrt(aspect)
    angle = np.linspace(-np.pi, np.pi, 361)
    reach = np.ones_like(angle)
    for k in range(2, 8):
        reach += wobble * rng.normal() / k**0.7 * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
    reach = np.interp(np.arctan2(along, across), angle, radius * np.clip(reach, 0.45, 1.7)).astype(np.float32)
    depth = 1 - np.sqrt(across**2 + along**2) / reach
    return Lesion(rng, depth + jag * noise(rng, depth.shape, 9), edge)


def _nevus(rng: np.random.Generator, strength: float) -> Lesion:
    """Draw a round, evenly brown lesion, similar to a melanoma if atypical."""
    odd = 1 - strength
    lesion = outline(
        rng, rng.uniform(16, 36), 0.04 + 0.09 * odd, 0.03 + 0.03 * odd, rng.uniform(0.7, 1.4), rng.uniform(0.06, 0.16)
    )
    density = rng.uniform(0.4, 1.3) * (1 + rng.uniform(-0.3, 0.4) * np.clip(lesion.depth, 0, 1))
    pattern = 0.85 + 0.3 * strength * lesion.network(6) + 0.08 * lesion.noise(10) + 0.3 * odd * lesion.noise(16)
    lesion.melanin = lesion.inside * np.clip(density * pattern, 0.1, 3)
    lesion.blood = lesion.inside * rng.uniform(0.0, 0.35)
    return lesion


def _melanoma(rng: np.random.Generator, strength: float) -> Lesion:
    """Draw a large, asymmetric lesion: brown, black, blue-grey veil, pale regression."""
    radius = rng.uniform(20, 46)
    wobble, jag = 0.07 + 0.11 * strength, 0.04 + 0.06 * strength
    lesion = outline(rng, radius, wobble, jag, rng.uniform(0.6, 1.6), rng.uniform(0.05, 0.14))
    patches = 1 + 0.4 * strength * lesion.noise(radius * 0.7) + 0.12 * lesion.noise(8) + 0.3 * lesion.network(7)
    black = np.clip(lesion.noise(radius * 0.6) - 0.6, 0, 1.2) * strength
    lesion.melanin = lesion.inside * np.clip(rng.uniform(0.5, 1.2) * patches + 1.3 * black, 0.15, 3)
    lesion.blood = lesion.inside * np.clip(0.2 + 0.15 * lesion.noise(radius * 0.5), 0, 0.7)
    core = np.clip(2 * lesion.depth, 0, 1)
    lesion.veil = core * np.clip(0.7 * (lesion.noise(radius * 0.6) - 0.4), 0, 0.7) * strength
    lesion.pale = core * np.clip(0.5 * (lesion.noise(radius * 0.55) - 1.0), 0, 0.45) * strength
    return lesion


def _keratosis(rng: np.random.Generator, strength: float) -> Lesion:
    """Draw a grey-brown lesion: sharp border, furrows, milia-like cysts, comedo-like openings."""
    lesion = outline(rng, rng.uniform(18, 42), 0.08, 0.05, rng.uniform(0.6, 1.6), rng.uniform(0.02, 0.07))
    furrows = lesion.network(rng.uniform(8, 13))
    lesion.melanin = lesion.inside * rng.uniform(0.3, 0.95) * (0.85 + 0.4 * furrows + 0.15 * lesion.noise(6))
    lesion.veil = lesion.inside * rng.uniform(0.0, 0.25)
    lesion.melanin += strength * lesion.spots(round(rng.uniform(3, 16)), (1.0, 3.0))
    lesion.pale = 0.65 * strength * lesion.spots(round(rng.uniform(4, 24)), (0.8, 2.2), blur=0.5) * lesion.inside
    return lesion


def _carcinoma(rng: np.random.Generator, strength: float) -> Lesion:
    """Draw a pink, pearly lesion with arborising vessels and blue-grey ovoid nests."""
    lesion = outline(rng, rng.uniform(18, 42), 0.09, 0.06, rng.uniform(0.65, 1.5), rng.uniform(0.08, 0.2))
    lesion.blood = lesion.inside * np.clip(rng.uniform(0.15, 0.5) + 0.12 * lesion.noise(14), 0, 1)
    vessels = lesion.vessels(round(rng.uniform(2, 6)), 40, rng.uniform(1.2, 2.0))
    lesion.blood += (0.3 + 0.6 * strength) * vessels * np.clip(lesion.inside * 1.4, 0, 1)
    nests = lesion.spots(round(rng.uniform(0, 9)), (2.0, 6.0), blur=1.2)
    lesion.veil = (0.25 + 0.4 * strength) * nests
    lesion.melanin = lesion.inside * rng.uniform(0.0, 0.35) + 0.6 * nests
    lesion.pale = lesion.inside * np.clip(0.25 * lesion.noise(16), 0, 0.4)
    return lesion


def _actinic(rng: np.random.Generator, strength: float) -> Lesion:
    """Draw a pink-red lesion: vague border, white scale, red net around pale follicles."""
    lesion = outline(rng, rng.uniform(22, 48), 0.12, 0.10, rng.uniform(0.6, 1.6), rng.uniform(0.12, 0.28))
    net = 0.8 + 0.6 * strength * lesion.network(9) + 0.2 * lesion.noise(20)
    lesion.blood = lesion.inside * np.clip(rng.uniform(0.25, 0.65) * net, 0, 3)
    lesion.melanin = lesion.inside * np.clip(rng.uniform(0.0, 0.4) + 0.15 * lesion.noise(12), 0, 1)
    follicles = 0.5 * strength * lesion.spots(round(rng.uniform(6, 30)), (1.0, 2.2), 0.05, blur=0.5)
    flakes = lesion.noise(5) + 0.8 * lesion.noise(22) - 1.6 + rng.uniform(0, 0.8) * strength
    lesion.pale = lesion.inside * np.maximum(follicles, np.clip(0.7 * flakes, 0, 0.8))
    return lesion


def _vascular(rng: np.random.Generator, strength: float) -> Lesion:
    """Draw red, purple or blue-black lacunae on a red ground."""
    lesion = outline(rng, rng.uniform(12, 32), 0.09, 0.05, rng.uniform(0.65, 1.5), rng.uniform(0.05, 0.16))
    # 0 is bright red, 1 is clotted.
    dark = rng.uniform(0, 1)
    lacunae = lesion.spots(round(rng.uniform(4, 14)), (2.5, 8), 0.15, blur=1.0)
    lesion.blood = lesion.inside * (rng.uniform(0.35, 0.9) + rng.uniform(0.4, 1.3) * strength * lacunae)
    lesion.melanin = lesion.inside * dark * (0.1 + 0.7 * lacunae)
    lesion.veil = lesion.inside * dark * rng.uniform(0.1, 0.5) * (0.4 + 0.6 * lacunae)
    return lesion


def _fibroma(rng: np.random.Generator, strength: float) -> Lesion:
    """Draw a white scar-like centre inside a delicate brown network."""
    lesion = outline(rng, rng.uniform(18, 40), 0.07, 0.04, rng.uniform(0.65, 1.5), rng.uniform(0.14, 0.26))
    rim = rng.uniform(0.4, 0.65)
    scar = _step((lesion.depth - rim + 0.08 * lesion.noise(8)) / 0.08)
    lesion.melanin = (
        lesion.inside * (1 - 0.7 * strength * scar) * rng.uniform(0.25, 0.8) * (0.6 + 0.5 * lesion.network(6))
    )
    lesion.blood = lesion.inside * rng.uniform(0.05, 0.45)
    lesion.pale = scar * (0.1 + 0.45 * strength) * np.clip(0.9 + 0.2 * lesion.noise(6), 0, 1)
    return lesion


# Drawing function of each class; takes the generator and the strength of typical structures in [0, 1].
CLASSES: dict[str, Callable[[np.random.Generator, float], Lesion]] = {
    "akiec": _actinic,
    "bcc": _carcinoma,
    "bkl": _keratosis,
    "df": _fibroma,
    "mel": _melanoma,
    "nv": _nevus,
    "vasc": _vascular,
}


def draw_lesion(diagnosis: str, rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """Draw one lesion on skin.

    Returns:
        Two square images of `CANVAS + 2 * MARGIN` pixels: the colour ("RGB"), and the depth ("F"), positive inside the
        lesion.
    """
    lesion = CLASSES[diagnosis](rng, rng.uniform(0.25, 1.0))
    rgb = np.array([0.90, 0.74, 0.70]) * rng.uniform(0.82, 1.06) + rng.normal(0, [0.015, 0.035, 0.05])
    tone = rgb.astype(np.float32).reshape(3, 1, 1)
    skin = tone * (1 + 0.02 * lesion.noise(3) + 0.025 * lesion.noise(30))
    flush = np.clip(rng.uniform(0.02, 0.15) + 0.04 * lesion.noise(11), 0, 1)
    freckles = rng.uniform(0, 0.35) * np.clip(lesion.noise(9) - rng.uniform(1.5, 4), 0, 1)
    colour = skin * np.exp(-(lesion.melanin + freckles) * MELANIN - (lesion.blood + flush) * BLOOD)
    colour += lesion.veil * (BLUE_GREY - colour)
    colour += lesion.pale * (PALE * tone.max() - colour)
    pixels = np.moveaxis(np.round(np.clip(colour, 0, 1) * 255).astype(np.uint8), 0, -1)
    return (
        Image.fromarray(np.pad(pixels, ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)), mode="reflect")),
        Image.fromarray(np.pad(lesion.depth, MARGIN, mode="reflect")),
    )


def draw_view(lesion: tuple[Image.Image, Image.Image], rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """Render one view of a lesion.

    Args:
        lesion: Colour and depth from `draw_lesion`.
        rng: Generator of this view.

    Returns:
        Image ("RGB") and mask ("L", 0 or 255), 160×120 pixels, or 120×160 for about every fifth view.
    """
    width, height = (SHORT, LONG) if rng.random() < 0.2 else (LONG, SHORT)
    angle, zoom = rng.uniform(0, 2 * np.pi), math.exp(rng.uniform(-0.2, 0.22))
    matrix = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]) / zoom
    offset = CANVAS / 2 + MARGIN - matrix @ (np.array([width, height]) / 2 + rng.normal(0, 5, 2))
    affine = tuple(np.column_stack([matrix, offset]).ravel())
    colour, depth = (
        np.asarray(layer.transform((width, height), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR))
        for layer in lesion
    )
    image: Array = np.moveaxis(colour, -1, 0) / np.float32(255)
    y, x = (np.mgrid[:height, :width].astype(np.float32) - np.array([height, width], np.float32)[:, None, None] / 2) / (
        LONG / 2
    )
    light = (
        rng.normal(1, 0.04) + rng.normal(0, 0.05) * x + rng.normal(0, 0.05) * y - rng.uniform(0, 0.12) * (x**2 + y**2)
    )
    image *= light * rng.normal(1, 0.015, (3, 1, 1)).astype(np.float32)
    if rng.random() < 0.35:
        image = _add_hair(image, rng)
    if rng.random() < 0.12:
        image = _add_ruler(image, rng)
    # The round field of a dermatoscope leaves the corners dark.
    if rng.random() < 0.25:
        image *= 0.08 + 0.92 * _step((rng.uniform(1.0, 1.15) - np.hypot(x, y)) / 0.03)
    image += 0.012 * rng.standard_normal(image.shape, np.float32)
    pixels = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(np.moveaxis(pixels, 0, -1))), Image.fromarray(
        (depth > 0).astype(np.uint8) * 255
    )


def _add_hair(image: Array, rng: np.random.Generator) -> Array:
    """Add thin, slightly curved dark or fair hairs with a common direction."""
    height, width = image.shape[1:]
    paper, pen = _paper(height, width)
    comb = rng.uniform(0, np.pi)
    t = np.linspace(0, 1, 12)[:, None]
    for _ in range(round(rng.uniform(3, 16))):
        start, angle, length = rng.uniform(0, [width, height]), comb + rng.normal(0, 0.4), rng.uniform(40, 150)
        along = np.array([np.cos(angle), np.sin(angle)])
        bend = rng.normal(0, 0.15) * length * np.array([-along[1], along[0]])
        path = 2 * (start + (t - 0.5) * length * along + 4 * t * (1 - t) * bend)
        pen.line([(float(a), float(b)) for a, b in path], fill=255, width=int(rng.integers(1, 4)), joint="curve")
    shade: Array = HAIR + np.float32(0.25 if rng.random() < 0.3 else 0)
    return image + 0.85 * _coverage(paper) * (shade - image)


def _add_ruler(image: Array, rng: np.random.Generator) -> Array:
    """Add a millimetre scale near one edge, with every fifth tick longer."""
    height, width = image.shape[1:]
    paper, pen = _paper(height, width)
    base, step, upward = 2 * (height - rng.uniform(5, 12)), rng.uniform(8, 14), 1 if rng.random() < 0.5 else -1
    places = np.arange(rng.uniform(0, 60), 2 * width - rng.uniform(0, 60), step)
    pen.line([(places[0], base), (places[-1], base)], fill=255, width=1)
    for number, place in enumerate(places):
        pen.line([(place, base), (place, base - (12 if number % 5 == 0 else 6))], fill=255, width=1)
    return image * (1 - 0.85 * _coverage(paper)[::upward])
