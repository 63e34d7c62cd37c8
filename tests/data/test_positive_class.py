"""Test which of two classes is positive."""

import pytest

from skincancer.data.positive_class import check_positive, find_positive, order_classes
from skincancer.errors import ConfigError


@pytest.mark.parametrize(
    ("classes", "malignant", "chosen", "expected", "reason"),
    [
        # The second name by the alphabet is benign in the first three.
        (("melanoma", "nevus"), (), None, "melanoma", "by its name"),
        (("Malignant", "Mole"), (), None, "Malignant", "by its name"),
        (("MEL", "NV"), (), None, "MEL", "by its name"),
        (("benign", "malignant"), (), None, "malignant", "by its name"),
        (("0", "1"), (), None, "1", "by its name"),
        (("1", "0"), (), None, "1", "by its name"),
        (("basal cell carcinoma", "seborrheic_keratosis"), (), None, "basal cell carcinoma", "by its name"),
        (("melanoma", "non-melanoma"), (), None, "melanoma", "by its name"),
        (("cancer", "no_cancer"), (), None, "cancer", "by its name"),
        (("negative", "positive"), (), None, "positive", "by its name"),
        # The malignant class wins over names, and data.positive over everything.
        (("x", "y"), ("x",), None, "x", "the malignant class"),
        (("melanoma", "nevus"), ("nevus",), None, "nevus", "the malignant class"),
        (("melanoma", "nevus"), (), "nevus", "nevus", "set by data.positive"),
        # Nothing decides.
        (("a", "b"), (), None, "", ""),
        (("melanoma", "scc"), (), None, "", ""),
        (("grade 1", "grade 2"), (), None, "", ""),
        (("melanocytic", "vascular"), (), None, "", ""),
        # Only two classes have a positive class.
        (("mel", "nv", "bkl"), ("mel",), None, "", ""),
    ],
)
def test_positive_class(classes, malignant, chosen, expected, reason):
    assert find_positive(classes, malignant, chosen) == (expected, reason)
    ordered = order_classes(classes, expected)
    assert sorted(ordered) == sorted(classes)
    assert ordered == classes if not expected else ordered[-1] == expected


@pytest.mark.parametrize(
    ("classes", "malignant", "chosen", "message"),
    [
        (("a", "b"), (), "c", "data.positive is 'c'; expected one of the classes a, b"),
        (("a", "b", "c"), (), "a", "it is for two classes, and these are 3: a, b, c"),
        (("a", "b"), ("a",), "b", "'a' is the malignant class"),
        (("a", "b"), (), None, "do not decide which one is positive.*Set --data.positive to 'a' or 'b'"),
    ],
)
def test_positive_class_refuses(classes, malignant, chosen, message):
    with pytest.raises(ConfigError, match=message):
        check_positive(classes, malignant, chosen)
