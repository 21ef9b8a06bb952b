"""Answers are found where people and models put them."""

import time

import pytest

from ssppo_jax.oracles.answers import FINDERS, STYLES, readings, said, well_formed
from ssppo_jax.oracles.equal import same

FOUND = [
    ("boxed", r"so \boxed{\frac{1}{2}} and then \boxed{ 3 }.", "3"),
    ("boxed", r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    ("boxed", r"\boxed{4} or \boxed{5", "4"),
    ("boxed", r"\boxed{}", None),
    ("boxed", r"} { \boxed{3} {", "3"),
    ("boxed", r"\boxed{a\boxed{b}}", "b"),
    ("boxed", r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    ("boxed", r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
    ("boxed", r"<think>\boxed{1}</think> I say 2", None),
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
    ("final_number", "it is .5", ".5"),
    ("final_number", "1e5", "1e5"),
    ("final_number", "about 2.5e-3 m", "2.5e-3"),
    ("final_number", "at (3,-5)", "-5"),
    ("final_number", "f(2)-5", "5"),
    ("final_number", "x = -5", "-5"),
    ("final_number", "**-5**", "-5"),
    ("final_number", "by 50%", "50"),
    ("final_number", "3 - 5", "5"),
    ("final_number", "1,234,567.", "1234567"),
    ("final_number", "1,2345", "2345"),
    ("final_number", "2{,}500", "2500"),
    ("final_number", "the 42nd", "42"),
    ("final_number", "version 1.2.3", "3"),
    ("final_number", "+7", "7"),
    ("final_number", "three is ٣", None),
    ("final_number", "<think>1 or 2?</think>3", "3"),
    ("final_number", "<think>1 or 2, well", None),
    ("final_number", "it was opened before me: 4</think> 5", "5"),
    ("final_number", "none", None),
    ("final_number", "", None),
    ("whole", " 42. \n", "42"),
    ("whole", " . ", None),
    ("last_line", "I think\n\n Tuesday. \n", "Tuesday"),
    ("last_line", "\n \n", None),
]
SAID = [
    (r"first 5, then \boxed{6}, 7", "6"),
    ("<answer>six</answer> 7", "six"),
    ("7\n#### 8\n9", "8"),
    ("The answer is 12", "12"),
    ("The answer is 42, because 40 + 3 would be 43.", "42"),
    ("The answer is 42 apples. He had 7.", "42"),
    ("The answer is 40 + 2 = 42. Check: 42 - 2 = 40.", "42"),
    ("Answer: **-1,200**\nThat was 5 steps.", "-1200"),
    ("The answer would be $12.50. Thanks 100 times!", "12.50"),
    ("The answer is 50%. 3 tries.", "50"),
    ("The answer is not 5 but 6, of 7. Or 8?", "7"),
    ("The answer is 5. No, the answer is 6. Or 7", "6"),
    ("The answer is x^2 + 3x. (2 terms)", "x^2 + 3x"),
    (r"The answer is $\frac{1}{2}$. I am 100% sure", r"\frac{1}{2}"),
    ("The answer is (3, -5).", "(3, -5)"),
    ("the answer is:\nyes, after 3 days", "3"),
    ("Final answer: True. 2 steps", "True"),
    ("#### Step 2: add\nso 7", "7"),
    ("#### 18 dollars", "18"),
]


@pytest.mark.parametrize("style, text, answer", FOUND)
def test_the_answer_is_found(style, text, answer):
    assert FINDERS[style](said(text)) == answer


@pytest.mark.parametrize("text, answer", SAID)
def test_without_a_style_the_answer_is_found_where_it_is_said(text, answer):
    assert any(same(answer, reading) for reading in readings(text, "auto", answer))


@pytest.mark.parametrize(
    "piece", ["\\boxed{", "<answer>", "1,", "1", "-", "#### ", "answer is ", "{", "1,000"]
)
def test_a_response_that_repeats_itself_is_read_quickly(piece):
    start = time.process_time()
    for style in STYLES:
        readings(piece * 5000, style, "5")
    assert time.process_time() - start < 2


def test_every_style_is_tried():
    assert {style for style, _, _ in FOUND} == set(FINDERS) == set(STYLES) - {"auto"}


@pytest.mark.parametrize(
    "style, text, good",
    [
        ("final_number", " 42. ", True),
        ("final_number", "It is 42", False),
        ("final_number", "", False),
        ("auto", "1,000", True),
        ("final_number", "−8", True),
        ("final_number", "<think>7 or 8</think>\n8", True),
        ("final_number", "<think>8", False),
        ("auto", "x", False),
        ("last_line", "Tuesday", True),
        ("last_line", "I think\nTuesday", False),
        ("boxed", r"<think>\boxed{2}</think>\boxed{3}", True),
        ("whole", "anything", True),
        ("whole", " ", False),
        ("tag", "think <answer>3</answer>", True),
        ("tag", "<answer>3</answer><answer>4</answer>", False),
        ("boxed", r"\boxed{3}", True),
        ("boxed", r"\boxed{3} \boxed{3}", False),
        ("hash", "4\n#### 4", True),
        ("hash", "4", False),
        ("hash", "#### 3\n#### 4", False),
    ],
)
def test_the_format_is_the_marker_once_or_the_answer_alone(style, text, good):
    assert well_formed(text, style) is good
