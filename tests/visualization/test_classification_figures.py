from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib import image
from matplotlib.colors import to_hex, to_rgb
from sklearn import metrics as reference

from skincancer.metrics.classification import classification_metrics
from skincancer.visualization.classification import FIGURES, learning_curves, reliability_change
from skincancer.visualization.style import PALETTE, class_styles, encode_png, new_figure, save

LONG = ["actinic keratosis", "_other$cost$", "vascular lesion (angioma, angiokeratoma, pyogenic granuloma)", "melanoma"]


def predictions(n_classes, n_images=200, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(n_classes, size=n_images)
    logit = rng.normal(size=(n_images, n_classes))
    logit[np.arange(n_images), label] += 1.5
    return label, np.exp(logit) / np.exp(logit).sum(axis=1, keepdims=True)


def names(n_classes):
    return [f"class {i}" for i in range(n_classes)]


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def epochs_table():
    return pd.DataFrame(
        {
            "epoch": [0, 1, 2, 3],
            "train/loss": [1.0, 0.8, 0.6, 0.5],
            "val/loss": [1.1, np.nan, 0.7, 0.8],
            "val/ece": [0.3, 0.2, 0.1, 0.1],
            "val/balanced_accuracy": [0.3, 0.5, 0.7, 0.6],
            "val/accuracy": [0.4, 0.6, 0.8, 0.7],
        }
    )


@pytest.mark.parametrize("stem", FIGURES)
@pytest.mark.parametrize(
    "n_classes", [2, 7, pytest.param(12, marks=pytest.mark.slow), 114, pytest.param(300, marks=pytest.mark.slow)]
)
def test_saved_figures_are_not_cut(tmp_path, stem, n_classes):
    """Figures keep a white margin, with long names, a class without images, title and note."""
    label, probability = predictions(n_classes)
    label[label == n_classes - 1] = 0
    classes = (LONG + [f"vascular lesion (angiokeratoma) of type {i}" for i in range(n_classes)])[:n_classes]
    figure = FIGURES[stem](label, probability, classes, title="densenet169 " * 12, note="synthetic data " * 15)
    path = save(figure, tmp_path / f"{stem}.png")
    assert path.read_bytes()[:4] == b"\x89PNG"
    pixels = image.imread(path)[..., :3]
    assert pixels.min() < 0.3
    edge = 8
    for strip in (pixels[:edge], pixels[-edge:], pixels[:, :edge], pixels[:, -edge:]):
        assert strip.min() == 1


@pytest.mark.parametrize("stem", FIGURES)
def test_every_figure_has_title_and_note(stem):
    figure = FIGURES[stem](*predictions(3), names(3), title="run $1 and $2", note="synthetic data")
    texts = [text.get_text() for text in figure.texts]
    assert texts == [r"run \$1 and \$2", "synthetic data"]
    assert not FIGURES[stem](*predictions(3), names(3)).texts


def test_saved_at_150_dpi(tmp_path):
    figure = learning_curves(epochs_table())
    height, width = image.imread(save(figure, tmp_path / "curves.png")).shape[:2]
    assert (width, height) == (pytest.approx(1500, rel=0.05), pytest.approx(630, rel=0.05))


def test_neither_pyplot_nor_torch_is_imported():
    code = (
        "import sys, numpy as np; from skincancer.visualization.classification import FIGURES\n"
        "for figure in FIGURES.values(): figure([0, 1], np.eye(2), ['a', 'b'])\n"
        "assert not {'matplotlib.pyplot', 'torch'} & set(sys.modules), 'imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_learning_curves_show_the_table():
    table = epochs_table()
    left, right = learning_curves(table, best_epoch=2, title="t", note="n").axes
    assert legend(left) == ["training loss", "validation loss", "best epoch 2"]
    assert legend(right) == ["accuracy", "balanced_accuracy", "best epoch 2"]
    validation = left.lines[1]
    assert (list(validation.get_xdata()), list(validation.get_ydata())) == ([0, 2, 3], [1.1, 0.7, 0.8])  # NaN left out
    assert list(right.lines[0].get_ydata()) == table["val/accuracy"].tolist()
    assert list(right.lines[2].get_xdata()) == [2, 2]
    for axes in (left, right):
        assert all(float(tick).is_integer() for tick in axes.get_xticks())


def test_learning_curves_of_one_epoch_and_without_metrics():
    (axes,) = learning_curves(epochs_table()[["epoch", "train/loss"]].iloc[:1], best_epoch=0).axes
    assert axes.lines[0].get_marker() == "o"
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [0]


@pytest.mark.parametrize(
    ("table", "best", "message"),
    [
        (epochs_table().drop(columns="epoch"), None, r"epochs has columns .*; expected epoch and"),
        (epochs_table()[["epoch", "val/accuracy"]], None, "train/loss or val/loss"),
        (epochs_table(), 9, r"best_epoch is 9; expected one of \[0, 1, 2, 3\]"),
    ],
)
def test_malformed_epochs_fail(table, best, message):
    with pytest.raises(ValueError, match=message):
        learning_curves(table, best)


def test_confusion_matrix_numbers():
    label = [0, 0, 0, 1, 1]
    probability = np.eye(3)[[0, 0, 2, 1, 0]]
    counts, rates = FIGURES["confusion_matrix"](label, probability, names(3)).axes
    assert [t.get_text() for t in counts.texts] == ["2", "0", "1", "1", "1", "0", "0", "0", "0"]
    assert [t.get_text() for t in rates.texts] == ["0.67", "0.00", "0.33", "0.50", "0.50", "0.00", "–", "–", "–"]
    for axes in (counts, rates):
        assert [tick.get_text() for tick in axes.get_yticklabels()] == names(3)
        assert (axes.texts[2].get_position(), axes.get_xlabel()) == (
            (2, 0),
            "predicted class",
        )  # row: true, column: predicted


def luminance(colour):
    srgb = np.array(to_rgb(colour))
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]


def test_confusion_matrix_numbers_are_readable_on_every_shade():
    """Contrast of WCAG level AA, 4.5 to 1, over shares from 0.04 to 1.00."""
    seen = set()
    for n in range(4, 101, 12):
        figure = FIGURES["confusion_matrix"](np.repeat([0, 1], 100), np.eye(2)[[0] * n + [1] * 200][:200], ["a", "b"])
        for axes in figure.axes:
            shown = axes.images[0]
            for text in axes.texts:
                x, y = text.get_position()
                cell = luminance(shown.cmap(shown.norm(shown.get_array()[y, x])))
                ink = luminance(text.get_color())
                assert (max(cell, ink) + 0.05) / (min(cell, ink) + 0.05) >= 4.5
                seen.add(to_hex(text.get_color()))
    assert seen == {"#000000", "#ffffff"}


def test_roc_and_precision_recall_show_sklearns_curves():
    label, probability = predictions(7)
    metrics = classification_metrics(label, probability, names(7))
    (roc,) = FIGURES["roc"](label, probability, names(7)).axes
    (pr,) = FIGURES["precision_recall"](label, probability, names(7)).axes
    for c in range(7):
        auroc = reference.roc_auc_score(label == c, probability[:, c])
        area = reference.average_precision_score(label == c, probability[:, c])
        assert legend(roc)[c] == f"{auroc:.3f}  class {c}"
        assert legend(pr)[c] == f"{area:.3f}  ({np.mean(label == c):.3f})  class {c}"
        (curve,) = [line for line in roc.lines if line.get_color() == PALETTE[c]]
        assert reference.auc(*curve.get_data()) == pytest.approx(auroc)
        curve, prevalence = [line for line in pr.lines if line.get_color() == PALETTE[c]]
        recall, precision = curve.get_data()
        assert -np.sum(np.diff(recall) * precision[:-1]) == pytest.approx(area)  # area under the plotted steps
        assert curve.get_drawstyle() == "steps-post"
        assert prevalence.get_ydata() == pytest.approx([np.mean(label == c)] * 2)
    assert legend(roc)[7] == f"{metrics['auroc_macro']:.3f}  macro mean"
    assert legend(pr)[7] == f"{metrics['average_precision_macro']:.3f}  macro mean"
    assert reference.auc(*roc.lines[-1].get_data()) == pytest.approx(metrics["auroc_macro"], abs=0.002)


def test_curves_of_two_classes_are_for_the_positive_class():
    label, probability = predictions(2)
    for stem in ("roc", "precision_recall"):
        (axes,) = FIGURES[stem](label, probability, ["benign", "malignant"]).axes
        assert [text.split()[-1] for text in legend(axes)] == ["malignant"]
        assert PALETTE[1] in {line.get_color() for line in axes.lines}
        assert PALETTE[0] not in {line.get_color() for line in axes.lines}


def test_class_has_the_same_unique_colour_in_every_figure():
    styles = class_styles(names(12))
    assert len(set(styles)) == 12
    label, probability = predictions(12)
    for stem in ("roc", "precision_recall"):
        (axes,) = FIGURES[stem](label, probability, names(12)).axes
        handles = axes.get_legend().legend_handles[:12]
        assert [(handle.get_color(), handle.get_linestyle()) for handle in handles] == styles


def test_class_without_images_is_marked_undefined():
    label, probability = predictions(3)
    label[label == 2] = 0
    for stem in ("roc", "precision_recall"):
        (axes,) = FIGURES[stem](label, probability, names(3)).axes
        assert legend(axes)[2] == "undefined  class 2"
        assert PALETTE[2] not in {line.get_color() for line in axes.lines}


def test_reliability_shows_bins_counts_and_error():
    label = [0, 0, 1, 1, 0]
    top = np.array([0.95, 0.97, 0.58, 0.6, 0.55])  # bins 14, 14, 8, 8, 8
    predicted = np.array([0, 1, 1, 1, 1])
    probability = np.where(predicted[:, None] == [0, 1], top[:, None], 1 - top[:, None])
    upper, lower = FIGURES["reliability"](label, probability, ["a", "b"]).axes
    assert [bar.get_height() for bar in upper.patches] == pytest.approx([2 / 3, 1 / 2])
    assert [bar.get_x() + bar.get_width() / 2 for bar in upper.patches] == pytest.approx([8.5 / 15, 14.5 / 15])
    (points,) = [line for line in upper.lines if line.get_marker() == "o"]
    assert points.get_xdata() == pytest.approx([np.mean([0.58, 0.6, 0.55]), 0.96])
    assert [bar.get_height() for bar in lower.patches] == [3, 2]
    assert [text.get_text() for text in lower.texts] == ["3", "2"]
    ece = (abs(2 - 1.73) + abs(1 - 1.92)) / 5
    assert f"{ece:.3f}" in upper.get_title()


def test_reliability_change_shows_both_errors():
    rng = np.random.default_rng(0)
    label, before = rng.integers(3, size=80), rng.dirichlet([0.3] * 3, 80)
    after = (before + 1) / 4
    left, right, *_ = reliability_change(label, before, after, ["a", "b", "c"], title="t", note="n").axes
    for axes, name, probability in ((left, "before", before), (right, "after", after)):
        error = classification_metrics(label, probability, ["a", "b", "c"])["ece"]
        assert axes.get_title() == f"{name}: expected calibration error {error:.3f} (15 bins)"


@pytest.mark.parametrize("stem", FIGURES)
def test_malformed_predictions_fail(stem):
    with pytest.raises(ValueError, match="labels must lie in"):
        FIGURES[stem]([0, 3], np.eye(2), ["a", "b"])


@pytest.mark.parametrize("n_classes", [114, 300])
def test_figures_of_many_classes_are_bounded(n_classes, tmp_path):
    label, probability = predictions(n_classes, 2000)
    classes = [f"vascular lesion of angiokeratoma type {i}" for i in range(n_classes)]
    figures = {stem: draw(label, probability, classes) for stem, draw in FIGURES.items()}
    for stem, figure in figures.items():
        pixels = image.imread(save(figure, tmp_path / f"{stem}.png"))
        assert pixels.shape[0] * pixels.shape[1] < 4e6

    matrix, bars = figures["confusion_matrix"].axes[:2]
    assert not matrix.texts
    counts = reference.confusion_matrix(label, probability.argmax(axis=1), labels=range(n_classes))
    np.fill_diagonal(counts, 0)
    true, predicted = np.unravel_index(counts.argmax(), counts.shape)
    listed = [text.get_text() for text in bars.get_yticklabels()]
    assert len(listed) == 20
    first, second = (f"{classes[c][:20]}…{classes[c][-11:]}" for c in (true, predicted))
    assert listed[0] == f"{first} → {second}"

    often = int(np.bincount(label).argmax())
    area = reference.roc_auc_score(label == often, probability[:, often])
    entries = legend(figures["roc"].axes[0])
    assert len(entries) == 22
    assert f"{area:.3f}  {classes[often][:20]}…{classes[often][-11:]}" in entries
    assert entries[-2].endswith("macro mean")
    assert entries[-1] == f"{n_classes - 20} other classes"
    assert len(legend(figures["precision_recall"].axes[0])) == 22


def test_a_huge_figure_has_fewer_pixels_per_inch(tmp_path):
    pixels = image.imread(save(new_figure((60, 60), "title", "note"), tmp_path / "huge.png"))
    assert 14e6 < pixels.shape[0] * pixels.shape[1] < 18e6


def test_a_class_name_of_260_letters_is_cut():
    label, probability = predictions(3)
    figure = FIGURES["roc"](label, probability, ["x" * 260, "a", "b"])
    assert max(len(line) for text in legend(figure.axes[0]) for line in text.splitlines()) < 40
    assert legend(figure.axes[0])[0].endswith("…")
    figure = FIGURES["confusion_matrix"](label, probability, ["x" * 260, "a", "b"])
    assert figure.axes[0].get_yticklabels()[0].get_text().count("\n") == 2


@pytest.mark.parametrize("stem", FIGURES)
def test_perfect_predictions_of_many_classes_are_drawn(stem):
    label = np.arange(60) % 30
    figure = FIGURES[stem](label, np.eye(30)[label], names(30))
    assert encode_png(figure)[:4] == b"\x89PNG"
