"""Answers are found where people and models put them."""

import pytest

from ssppo_jax.oracles.answers import STYLES, well_formed

FOUND = [
    ("boxed", r"so \boxed{\frac{1}{2}} and then \boxed{ 3 }.", "3"),
    ("boxed", r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    ("boxed", r"\boxed{4} or \boxed{5", "4"),
    ("boxed", r"\boxed{}", None),
    ("tag", "<answer>1</answer> no: <answer>\n 2 </answer>", "2"),
    ("tag", "<answer>7", None),
    ("tag", "<answer>6 <answer>8</answer>", "8"),
    ("hash", "2 + 2 = 4\n#### 1,234 \nbye", "1,234"),
    ("hash", "no mark: 4", None),
    ("final_number", "It is 1,234.50 dollars.", "1234.50"),
    ("final_number", "I count 3.", "3"),
    ("final_number", "7-5 = -2", "-2"),
    ("final_number", "the range 7-5", "5"),
    ("final_number", "costs $-3", "-3"),
    ("final_number", "-$3", "-3"),
    ("final_number", "minus: −8", "-8"),
    ("final_number", "x2 and y", "2"),
    ("final_number", "a half: 1/2", "1/2"),
    ("final_number", "none", None),
    ("final_number", "", None),
    ("whole", " 42. \n", "42"),
    ("whole", " . ", None),
    ("auto", r"first 5, then \boxed{6}, 7", "6"),
    ("auto", "<answer>six</answer> 7", "six"),
    ("auto", "7\n#### 8\n9", "8"),
    ("auto", "The answer is 12", "12"),
]


@pytest.mark.parametrize("style, text, answer", FOUND)
def test_the_answer_is_found(style, text, answer):
    assert STYLES[style](text) == answer


def test_every_style_is_tried():
    assert {style for style, _, _ in FOUND} == set(STYLES)


@pytest.mark.parametrize(
    "style, text, good",
    [
        ("final_number", " 42. ", True),
        ("final_number", "It is 42", False),
        ("final_number", "", False),
        ("auto", "1,000", True),
        ("whole", "anything", True),
        ("whole", " ", False),
        ("tag", "think <answer>3</answer>", True),
        ("tag", "<answer>3</answer><answer>4</answer>", False),
        ("boxed", r"\boxed{3}", True),
        ("boxed", r"\boxed{3} \boxed{3}", False),
        ("hash", "4\n#### 4", True),
        ("hash", "4", False),
    ],
)
def test_the_format_is_the_marker_once_or_the_answer_alone(style, text, good):
    assert well_formed(text, style) is good
