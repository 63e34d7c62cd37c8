"""Test the mapping of classes of runs and data sets."""

import numpy as np
import pytest
from scipy.special import softmax

from skincancer.data.catalog import DATASETS, HAM10000_CLASSES, HAM10000_MALIGNANT, malignant_classes
from skincancer.errors import ConfigError
from skincancer.evaluation.class_mapping import map_classes, parse_map

TWO = ("benign", "malignant")
PH2 = ("atypical_nevus", "common_nevus", "melanoma")


def of_ham(data_classes, data_malignant=(), given=None):
    return map_classes(HAM10000_CLASSES, HAM10000_MALIGNANT, data_classes, data_malignant, given)


def test_same_names_in_another_order_keep_the_runs_order():
    mapping = map_classes(("a", "b", "c"), (), ("c", "a", "b"), ())
    assert mapping.kind == "same"
    assert mapping.classes == ("a", "b", "c")
    assert mapping.data_label(np.array([0, 1, 2, -1])).tolist() == [2, 0, 1, -1]
    p = np.array([[0.2, 0.3, 0.5]])
    assert mapping.probability(p) is p
    assert mapping.positive == (), "three classes of which nobody knows more"
    assert map_classes(TWO, (), TWO[::-1], ()).positive == ("malignant",)


def test_names_that_differ_in_case_are_equal():
    mapping = map_classes(TWO, (), ("Malignant", "BENIGN"), ())
    assert (mapping.kind, mapping.classes, mapping.positive) == ("same", TWO, ("malignant",))
    assert mapping.data_label(np.array([0, 1])).tolist() == [1, 0]
    mapping = map_classes(("Benign", "Malignant"), (), HAM10000_CLASSES, HAM10000_MALIGNANT)
    assert (mapping.kind, mapping.classes) == ("malignancy", TWO)
    assert mapping.run_label(np.array([0, 1])).tolist() == [0, 1]
    with pytest.raises(ConfigError, match="cannot be mapped by their names"):
        map_classes(("Nevus", "nevus"), (), ("NEVUS", "nevus"), ())


def test_an_older_run_keeps_its_positive_class():
    """Earlier versions ordered two classes by name, so the second one was positive."""
    mapping = map_classes(("melanoma", "nevus"), (), ("nevus", "melanoma"), ("melanoma",))
    assert (mapping.classes, mapping.positive) == (("melanoma", "nevus"), ("nevus",))
    assert mapping.data_label(np.array([0, 1])).tolist() == [1, 0]


def test_malignancy_is_the_sum_of_the_malignant_classes():
    mapping = of_ham(TWO)
    assert (mapping.kind, mapping.classes, mapping.positive) == ("malignancy", TWO, ("malignant",))
    logits = np.random.default_rng(0).normal(size=(5, 7))
    p = softmax(logits, axis=1)
    akiec, bcc, mel = 0, 1, 4
    np.testing.assert_allclose(mapping.probability(p)[:, 1], p[:, akiec] + p[:, bcc] + p[:, mel], atol=1e-15)
    np.testing.assert_allclose(softmax(mapping.logits(logits), axis=1), mapping.probability(p), atol=1e-12)
    assert mapping.run_label(np.arange(-1, 7)).tolist() == [-1, 1, 1, 0, 0, 1, 0, 0]
    assert mapping.data_label(np.array([0, 1, -1])).tolist() == [0, 1, -1]
    assert of_ham(TWO[::-1]).data_label(np.array([0, 1])).tolist() == [1, 0]
    assert "malignant = akiec + bcc + mel of the run, malignant of the data set" in mapping.describe()


def test_malignancy_the_other_way_round():
    mapping = map_classes(TWO, (), HAM10000_CLASSES, HAM10000_MALIGNANT)
    assert mapping.classes == TWO
    assert mapping.data_label(np.arange(7)).tolist() == [1, 1, 0, 0, 1, 0, 0]
    p = np.array([[0.4, 0.6]])
    assert mapping.probability(p) is p


def test_a_subset_is_compared_in_the_runs_classes_and_not_renormalised():
    mapping = of_ham(("mel", "nv"))
    assert (mapping.kind, mapping.classes) == ("subset", HAM10000_CLASSES)
    p = softmax(np.random.default_rng(0).normal(size=(5, 7)), axis=1)
    assert mapping.probability(p) is p
    assert mapping.data_label(np.array([0, 1])).tolist() == [4, 5]
    assert "Probabilities are not renormalised" in mapping.describe()


def test_given_binary_melanoma():
    mapping = of_ham(PH2, given={"melanoma": ["mel"], "other": ["*"]})
    assert mapping.classes == ("other", "melanoma"), "the positive one is the second"
    assert mapping.positive == ("melanoma",)
    assert mapping.malignant(HAM10000_MALIGNANT) == ("melanoma",)
    assert mapping.malignant(()) == (), "which is positive is chosen, which is malignant is known or not"
    assert mapping.run_label(np.arange(7)).tolist() == [0, 0, 0, 0, 1, 0, 0]
    assert mapping.data_label(np.arange(3)).tolist() == [0, 0, 1]
    both = of_ham(HAM10000_CLASSES, given={"benign": ["nv", "bkl", "df", "vasc"], "malignant": ["mel", "bcc", "akiec"]})
    assert both.positive == ("malignant",), "whatever the order"
    three = of_ham(
        HAM10000_CLASSES, given={"cancer": ["mel", "bcc"], "early": ["akiec"], "rest": ["nv", "bkl", "df", "vasc"]}
    )
    assert (three.classes, three.positive) == (("cancer", "early", "rest"), ("cancer", "early"))


def test_error_shows_both_sets_of_classes():
    with pytest.raises(ConfigError) as error:
        of_ham(PH2)
    for name in (*HAM10000_CLASSES, *PH2, "--map", "--data.target malignancy"):
        assert name in str(error.value)
    with pytest.raises(ConfigError, match="cannot be mapped"):
        map_classes(("a", "b", "c"), (), TWO, ("malignant",))  # nobody knows which of a, b, c are malignant


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"melanoma": ["mel"], "other": ["nv"]}, "does not contain akiec, bcc, bkl, df, vasc, atypical_nevus, common_nevus"),
        ({"melanoma": ["mell"], "other": ["*"]}, "'mell' is not a class of the run or data set. Did you mean 'mel'"),
        ({"melanoma": ["mel"], "other": ["mel", "*"]}, "assigns 'mel' to 'melanoma' and to 'other'"),
        ({"melanoma": ["*"]}, "names 1 target"),
        ({"melanoma": ["mel", "*"], "other": ["*"]}, r"assigns \* to melanoma and to other"),
        ({"melanoma": ["melanoma"], "other": ["*"]}, "--map melanoma contains no class of the run"),
    ],
)  # fmt: skip
def test_invalid_explicit_mapping_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        of_ham(PH2, given=given)


def test_parse_map(tmp_path):
    expected = {"melanoma": ["mel", "melanoma"], "other": ["*"]}
    assert parse_map(["melanoma=mel+melanoma", "other=*"]) == expected
    (tmp_path / "map.yaml").write_text("melanoma: [mel, melanoma]\nother: '*'\n")
    assert parse_map([str(tmp_path / "map.yaml")]) == expected
    for words, message in (
        (["melanoma"], "expected TARGET=CLASS"),
        (["a=b", "a=c"], "'a' twice"),
        (["a=b++c"], "expected a list of class names"),
        ([str(tmp_path / "none.yaml")], "cannot be read as YAML"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_map(words)


def test_malignant_classes_of_runs():
    ham, folder = DATASETS["ham10000"], DATASETS["folder"]
    assert malignant_classes(ham, HAM10000_CLASSES, "diagnosis") == HAM10000_MALIGNANT
    assert malignant_classes(ham, HAM10000_CLASSES, "diagnosis", ("mel",)) == ("mel",)
    assert malignant_classes(ham, TWO, "malignancy", ("mel",)) == ("malignant",)
    assert malignant_classes(folder, ("a", "b"), "diagnosis") == ()
