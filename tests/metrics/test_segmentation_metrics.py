from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from isic_challenge_scoring import metrics as official
from isic_challenge_scoring.confusion import create_binary_confusion_matrix
from scipy import ndimage
from scipy.spatial.distance import cdist

from skincancer.imaging.mask_operations import surface
from skincancer.metrics.estimates import mean_intervals
from skincancer.metrics.names import MASK_METRICS
from skincancer.metrics.segmentation import THRESHOLDS, ThresholdSearch, binarise, hd95, mask_metrics, mean_metrics

OFFICIAL = {
    "jaccard": official.binary_jaccard,
    "dice": official.binary_dice,
    "thresholded_jaccard": official.binary_threshold_jaccard,
    "pixel_accuracy": official.binary_accuracy,
    "sensitivity": official.binary_sensitivity,
    "specificity": official.binary_specificity,
}


def blob(shape, seed, area=0.3, smooth=6.0):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), smooth)
    return noise > np.quantile(noise, 1 - area)


def disc(shape, row, column, radius):
    y, x = np.mgrid[: shape[0], : shape[1]]
    return (y - row) ** 2 + (x - column) ** 2 <= radius**2


def point(shape, row, column):
    mask = np.zeros(shape, dtype=bool)
    mask[row, column] = True
    return mask


def brute_force_hd95(truth, prediction):
    """The definition, over all pairs of surface pixels: pixels lost in an erosion by a cross, outside being background."""
    if not truth.any() and not prediction.any():
        return 0.0
    if not truth.any() or not prediction.any():
        return np.sqrt(truth.shape[0] ** 2 + truth.shape[1] ** 2)
    one, other = (np.argwhere(mask & ~ndimage.binary_erosion(mask)) for mask in (truth, prediction))
    distance = cdist(one, other)
    return max(np.percentile(distance.min(axis=1), 95), np.percentile(distance.min(axis=0), 95))


def pairs():
    shape = (40, 60)
    empty, full = np.zeros(shape, dtype=bool), np.ones(shape, dtype=bool)
    yield from (
        pytest.param(a, b, id=f"{name_a} {name_b}")
        for name_a, a in {"empty": empty, "full": full, "blob": blob(shape, 0), "pixel": point(shape, 3, 50)}.items()
        for name_b, b in {"empty": empty, "full": full, "blob": blob(shape, 1), "pixel": point(shape, 39, 0)}.items()
    )
    for seed in range(6):
        yield pytest.param(blob((120, 90), seed, 0.4), blob((120, 90), seed, 0.3, 5.0), id=f"similar {seed}")
    yield pytest.param(disc((300, 400), 40, 50, 30), disc((300, 400), 260, 340, 25), id="far apart")
    yield pytest.param(disc((300, 400), 150, 200, 120), disc((300, 400), 160, 190, 70), id="one in the other")
    yield pytest.param(blob((90, 120), 3, 0.5, 0.0), blob((90, 120), 4, 0.3, 0.0), id="noise")
    yield pytest.param(blob((1, 300), 5), blob((1, 300), 6), id="one row")
    yield pytest.param(blob((300, 1), 5), blob((300, 1), 6), id="one column")
    yield pytest.param(blob((12, 500), 7, 0.5), blob((12, 500), 8, 0.2), id="wide")
    yield pytest.param(blob((500, 12), 7, 0.5), blob((500, 12), 8, 0.2), id="tall")
    yield pytest.param(np.ones((1, 1), dtype=bool), np.zeros((1, 1), dtype=bool), id="one pixel")


@pytest.mark.parametrize(("truth", "prediction"), list(pairs()))
def test_metrics_equal_the_official_scorers_and_hd95_all_pairs(truth, prediction):
    found = mask_metrics(truth, prediction)
    assert tuple(found) == MASK_METRICS
    assert all(type(value) is float for value in found.values())
    confusion = create_binary_confusion_matrix(truth, prediction)
    for name, function in OFFICIAL.items():
        assert found[name] == pytest.approx(function(confusion), abs=1e-6), name
    assert found["hd95"] == pytest.approx(brute_force_hd95(truth, prediction), abs=1e-9)
    assert found["hd95"] == pytest.approx(hd95(prediction, truth), abs=1e-9)


@pytest.mark.parametrize("side", [2890, 6000])
def test_hd95_is_exact_in_large_images(side):
    """At 6000 px float32 would not hold every square exactly."""
    rng = np.random.default_rng(0)
    place = rng.integers(30, side - 30, size=(200, 2))
    place[:2] = [30, 30], [side - 31, side - 31]
    truth, prediction = np.zeros((2, side, side), dtype=bool)
    truth[tuple(place.T)] = prediction[tuple((place + rng.integers(-20, 21, size=place.shape)).T)] = True
    assert hd95(truth, prediction) == pytest.approx(brute_force_hd95(truth, prediction), abs=1e-9)


def test_hd95_by_hand():
    """The percentiles of the two directions are apart: pooled, the 100 zeros of the truth would bring it down."""
    truth = np.zeros((1, 200), dtype=bool)
    truth[0, :100] = True
    prediction = truth.copy()
    assert hd95(truth, prediction) == 0
    prediction[0, 100:120] = True  # 1 … 20 px off
    # of its 120 distances, 0.95 · 119 = 113.05: 14 px at rank 113 (from 0), 15 px at rank 114
    assert hd95(truth, prediction) == pytest.approx(14.05)


def test_surface_is_what_an_erosion_takes_away():
    for mask in (
        blob((50, 70), 0),
        np.ones((4, 5), dtype=bool),
        blob((1, 30), 1),
        blob((30, 2), 1),
        ~blob((40, 40), 2),
    ):
        before = mask.copy()
        np.testing.assert_array_equal(surface(mask), mask & ~ndimage.binary_erosion(mask))
        np.testing.assert_array_equal(mask, before)


def test_thresholded_jaccard_keeps_the_jaccard_from_065_upwards():
    truth, prediction = np.zeros((2, 20, 1), dtype=bool)
    truth[:20], prediction[:13] = True, True
    assert mask_metrics(truth, prediction)["thresholded_jaccard"] == 0.65
    prediction[12] = False
    assert mask_metrics(truth, prediction)["thresholded_jaccard"] == 0
    assert mask_metrics(truth, prediction)["jaccard"] == 0.6


@pytest.mark.parametrize(
    ("truth", "prediction", "message"),
    [
        (np.ones((2, 2), np.uint8), np.ones((2, 2), bool), r"truth must be bool \(H, W\).* got uint8 \(2, 2\)"),
        (np.ones((2, 2), bool), np.ones((1, 2, 2), bool), r"prediction must be bool \(H, W\).* got bool \(1, 2, 2\)"),
        (np.ones((0, 2), bool), np.ones((0, 2), bool), "at least one pixel"),
        (np.ones((2, 3), bool), np.ones((3, 2), bool), r"truth has shape \(2, 3\) and prediction \(3, 2\)"),
    ],
)
def test_malformed_masks_are_refused(truth, prediction, message):
    for function in (mask_metrics, hd95):
        with pytest.raises(ValueError, match=message):
            function(truth, prediction)


def test_names_are_had_without_scipy_and_pandas():
    code = (
        "import sys; from skincancer.metrics.names import MASK_METRICS\n"
        "assert not {'scipy', 'pandas', 'torch'} & set(sys.modules), 'imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_means_are_over_images_that_have_a_mask():
    table = pd.DataFrame([dict.fromkeys(MASK_METRICS, value) for value in (0.5, np.nan, 1.0)])
    table["image_id"] = list("abc")
    assert mean_metrics(table) == dict.fromkeys(MASK_METRICS, 0.75)
    found = mean_metrics(table.add_prefix("mask_"), prefix="mask_")
    assert list(found) == [f"mask_{name}" for name in MASK_METRICS]
    assert np.isnan(list(mean_metrics(table.iloc[1:2]).values())).all()
    with pytest.raises(ValueError, match="lacks the columns dice, hd95"):
        mean_metrics(table.drop(columns=["dice", "hd95"]))


def search(images):
    found = ThresholdSearch()
    for probability, truth in images:
        found.add(probability, truth)
    return found


def drawn_images(n):
    rng = np.random.default_rng(0)
    for seed in range(n):
        truth = blob((30, 40), seed) if seed else np.zeros((30, 40), dtype=bool)
        probability = np.clip(0.3 * truth + 0.35 * rng.random(truth.shape) + 0.1, 0, 1)
        yield probability.astype(np.float32), truth


def test_threshold_has_the_highest_mean_official_jaccard():
    images = [*drawn_images(5), (np.full((3, 3), 0.02, np.float32), np.zeros((3, 3), bool))]
    means = {
        threshold: np.mean(
            [official.binary_jaccard(create_binary_confusion_matrix(t, p >= np.float32(threshold))) for p, t in images]
        )
        for threshold in THRESHOLDS
    }
    expected = max(means, key=means.get)
    assert expected not in (THRESHOLDS[0], 0.5, THRESHOLDS[-1])
    assert search(images).best() == (expected, pytest.approx(means[expected], abs=1e-12))
    parts = [search(images[:2]), search(images[2:])]
    assert ThresholdSearch.merged(parts).best() == (expected, pytest.approx(means[expected], abs=1e-12))


def test_grid_of_thresholds():
    assert THRESHOLDS == pytest.approx(np.arange(0.05, 0.96, 0.05))
    assert 0.5 in THRESHOLDS


def test_probabilities_at_a_threshold_are_lesion():
    """Also where float32 rounds the threshold up, as 0.85."""
    for threshold in THRESHOLDS:
        at = np.float32(threshold)
        probability = np.array([[np.nextafter(at, np.float32(0)), at]])
        assert binarise(probability, threshold).tolist() == [[False, True]]
        assert binarise(probability, np.float64(threshold)).tolist() == [[False, True]]
        # only at this threshold and the ones before is the right pixel lesion, only at those before the left one
        best, jaccard = search([(probability, np.array([[False, True]]))]).best()
        assert (best, jaccard) == (threshold, 1)


def test_of_equally_good_thresholds_the_nearest_to_the_middle_is_taken():
    truth = np.array([[True, False]])
    for low, high, expected in [(0.1, 0.9, 0.5), (0.72, 0.9, 0.75), (0.1, 0.33, 0.3), (0.47, 0.52, 0.5)]:
        assert search([(np.array([[high, low]], np.float32), truth)]).best() == (expected, 1)
    # 0.45 and 0.55 are equally good and 0.5 is worse: two images, each of which misses at one side
    nothing, everything = np.zeros((1, 2), bool), np.ones((1, 2), bool)
    images = [(np.full((1, 2), 0.52, np.float32), nothing), (np.full((1, 2), 0.47, np.float32), everything)]
    assert search(images).best() == (0.45, 0.5)


@pytest.mark.parametrize(
    ("probability", "truth", "message"),
    [
        (np.full((2, 2), 1.5, np.float32), np.ones((2, 2), bool), r"must lie in \[0, 1\].*sigmoid"),
        (np.full((2, 2), np.nan, np.float32), np.ones((2, 2), bool), r"must lie in \[0, 1\]"),
        (np.zeros((2, 3), np.float32), np.ones((2, 2), bool), "must be equal"),
        (np.zeros((2, 2), np.float32), np.ones((2, 2)), "truth must be bool"),
    ],
)
def test_malformed_probabilities_are_refused(probability, truth, message):
    with pytest.raises(ValueError, match=message):
        ThresholdSearch().add(probability, truth)


def test_search_without_images_has_no_threshold():
    with pytest.raises(ValueError, match="no image was added"):
        ThresholdSearch().best()


def test_images_without_a_value_are_left_out_of_means():
    table = pd.DataFrame({"mask_dice": [0.5, np.nan, np.nan], "nothing": [np.nan] * 3})
    found = mean_intervals(table, ["mask_dice", "nothing"], list("abc")).set_index("metric")
    low, high = found.loc["mask_dice", ["low", "high"]]
    assert found.loc["mask_dice", "value"] == 0.5
    assert low < 0.05, "one image says little"
    assert high > 0.95
    assert found.loc["nothing", ["value", "low", "high"]].isna().all()
    assert found.loc["nothing", "note"] == "no image counts"


def test_intervals_do_not_depend_on_the_order_of_images():
    rng = np.random.default_rng(0)
    table, groups = pd.DataFrame({"dice": rng.random(50)}), np.array([f"L{i}" for i in rng.integers(20, size=50)])
    order = rng.permutation(50)
    first, again = (mean_intervals(table.iloc[rows], ["dice"], groups[rows]) for rows in (np.arange(50), order))
    pd.testing.assert_frame_equal(first, again)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": ["jaccard"]}, "metric is 'jaccard'; expected one of dice"),
        ({"groups": ["a"]}, "groups must have shape"),
        ({"level": 95}, "level must lie between 0 and 1"),
        ({"table": pd.DataFrame({"dice": [1, np.inf]})}, r"values of dice must be in \[0, 1\]"),
    ],
)
def test_malformed_tables_are_refused(change, message):
    good = {"table": pd.DataFrame({"dice": [0.5, 1.0]}), "columns": ["dice"], "groups": ["a", "b"]}
    with pytest.raises(ValueError, match=message):
        mean_intervals(**(good | change))
