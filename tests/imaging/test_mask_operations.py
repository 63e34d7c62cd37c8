from __future__ import annotations

import numpy as np
import pytest

from skincancer.imaging.mask_operations import clean_mask


def mask(*rows):
    return np.array([[character == "#" for character in row] for row in rows])


RING_AND_BLOB = mask(
    "####...",
    "#..#.##",
    "#..#.##",
    "####...",
    ".....#.",
)
RING = mask(
    "####...",
    "#..#...",
    "#..#...",
    "####...",
    ".......",
)
DISC = mask(
    "####...",
    "####...",
    "####...",
    "####...",
    ".......",
)
DISC_AND_BLOB = RING_AND_BLOB | DISC


@pytest.mark.parametrize(
    ("largest", "fill", "expected"),
    [(False, False, RING_AND_BLOB), (True, False, RING), (False, True, DISC_AND_BLOB), (True, True, DISC)],
)
def test_largest_component_and_holes(largest, fill, expected):
    image_mask = RING_AND_BLOB.copy()
    np.testing.assert_array_equal(clean_mask(image_mask, largest=largest, fill=fill), expected)
    np.testing.assert_array_equal(image_mask, RING_AND_BLOB)


def test_corners_join_components_but_not_background():
    diamond = mask(
        "..#....",
        ".#.#...",
        "..#..##",
        ".....##",
    )
    np.testing.assert_array_equal(
        clean_mask(diamond, largest=False, fill=True),
        mask(
            "..#....",
            ".###...",
            "..#..##",
            ".....##",
        ),
    )
    diagonal = mask("#...##", ".#....", "..#..#")
    np.testing.assert_array_equal(clean_mask(diagonal, largest=True, fill=False), mask("#.....", ".#....", "..#..."))


def test_background_at_the_edge_is_no_hole():
    bay = mask("###", "#..", "###")
    np.testing.assert_array_equal(clean_mask(bay, largest=True, fill=True), bay)
    at_the_edge = mask("#..#", "####")
    np.testing.assert_array_equal(clean_mask(at_the_edge, largest=False, fill=True), at_the_edge)


def test_size_is_counted_before_holes_are_filled():
    image_mask = mask(
        "###...",
        "#.#.##",
        "###.##",
        "....##",
        "....##",
        "....#.",
    )
    kept = image_mask.copy()
    kept[:3, :3] = False  # the ring: 8 pixels, 9 when filled, and it comes first; the other: 9
    np.testing.assert_array_equal(clean_mask(image_mask, largest=True, fill=True), kept)


@pytest.mark.parametrize(
    ("image_mask", "expected"),
    [
        (mask("##.", "...", ".##"), mask("##.", "...", "...")),
        (mask("..#.", "#...", "#.##"), mask("....", "#...", "#...")),  # #, ##, ##: those of two, by their first pixel
        (mask("...#", "#..#", "#..."), mask("...#", "...#", "....")),
    ],
)
def test_first_of_equally_large_components_is_kept(image_mask, expected):
    np.testing.assert_array_equal(clean_mask(image_mask, largest=True, fill=False), expected)


@pytest.mark.parametrize("shape", [(5, 7), (1, 1), (1, 9), (9, 1)])
@pytest.mark.parametrize("value", [False, True])
def test_empty_and_full_masks_stay(shape, value):
    image_mask = np.full(shape, value)
    cleaned = clean_mask(image_mask, largest=True, fill=True)
    assert cleaned.dtype == np.bool_
    np.testing.assert_array_equal(cleaned, image_mask)
    cleaned[:] = ~value
    assert (image_mask == value).all()


def test_random_masks_against_a_flood_fill():
    """Components and holes equal the result of a flood fill."""
    for seed in range(20):
        image_mask = np.random.default_rng(seed).random((13, 17)) < 0.45
        components = regions(image_mask, [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)])
        largest = max(components, key=len)  # the first of equals, and they come in scan order
        expected = np.zeros_like(image_mask)
        expected[tuple(np.transpose(largest))] = True
        np.testing.assert_array_equal(clean_mask(image_mask, largest=True, fill=False), expected)
        for hole in regions(~expected, [(0, 1), (0, -1), (1, 0), (-1, 0)]):
            if all(0 < row < 12 and 0 < column < 16 for row, column in hole):
                expected[tuple(np.transpose(hole))] = True
        np.testing.assert_array_equal(clean_mask(image_mask, largest=True, fill=True), expected)


def regions(image_mask, steps):
    left, components = {tuple(pixel) for pixel in np.argwhere(image_mask).tolist()}, []
    for start in map(tuple, np.argwhere(image_mask).tolist()):
        if start in left:
            left.remove(start)
            region = [start]
            for row, column in region:
                for down, right in steps:
                    pixel = (row + down, column + right)
                    if pixel in left:
                        left.remove(pixel)
                        region.append(pixel)
            components.append(region)
    return components


@pytest.mark.parametrize("bad", [np.ones((3, 3)), np.ones((3, 3), np.uint8), np.ones((1, 3, 3), bool)])
def test_masks_that_are_not_bool_planes_fail(bad):
    with pytest.raises(ValueError, match=r"mask is .*; expected bool \(H, W\)"):
        clean_mask(bad, largest=True, fill=True)
