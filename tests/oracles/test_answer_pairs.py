"""Gold answers and responses with the verdict a careful reader gives. A wrong answer judged right
teaches a model something false, so there are as many wrong rows as right ones."""

import random
import time

import pytest

from ssppo_jax.errors import DataError
from ssppo_jax.oracles import ORACLES
from ssppo_jax.oracles.answers import STYLES, heard, readings
from ssppo_jax.oracles.code import code_of
from ssppo_jax.oracles.equal import latex, same
from ssppo_jax.oracles.protocol import checked
from ssppo_jax.oracles.written import quantity
from ssppo_jax.types import Prompt

RIGHT = {  # gold answer: responses that say it
    "18": [
        r"#### \$18",
        r"The final answer is **\$18.00**.",
        "The answer is $18.",
        "So she makes 9 * 2 = $18 every day.",
        "The answer is 18 dollars per day.",
        "The answer is USD 18.",
        "**Answer:** 18",
        "**Answer: 18**",
        "**Answer**: 18",
        "### Final Answer\n\n$18$",
        "The answer is:\n\n$$\n18\n$$\n\nThat took 2 steps.",
        "The answer is:\n\\[\n18\n\\]",
        r"The answer is \(18\).",
        "The answer is `18`.",
        "The answer to 9 times 2 is 18.",
        "Final Answer: The final answer is $18$. I hope it is correct.",
        "<think>maybe \\boxed{17}</think>The answer is 18.",
        "17 or so, I thought.\n</think>\n\n18",
        "<thinking>\nThe answer is 17.\n</thinking>\nThe answer is 18.",
        "<answer> 18 </answer> after 3 steps",
        "<answer>The answer is 18.</answer>",
        "The answer is eighteen.",
        "The answer is 18, because 20 - 2 is 18 and not 17.",
        "The answer is 18 (that is 9 times 2).",
        "Answer\n\n18 (since 9 + 9 = 18, and not 19)",
        "The correct answer is option C: 18",
        "The answer is (C) 18.",
        r"\boxed{18 \text{ dollars}}",
        r"$\boxed{\text{18}}$",
        r"\boxed{x = 18}",
        r"\boxed{18.}",
        r"\fbox{1} \boxed{18}",
        r"first \boxed{17}, no: \boxed{18}",
        r"\boxed{\boxed{18}}",
        r"\boxed{ 18\,}",
        r"\boxed{+18}",
        r"\boxed{018}",
        r"\boxed{9 \times 2}",
        "The answer is 9 + 9 = 18.",
        "So x = 18",
        "18 = x",
        "The answer is 18!",
        "The answer is 18。",
        "The answer is １８.",
        "The answer is ١٨.",
        "The answer is 18°.",
        "The answer is 18th.",
        "\u200b18",
        "The answer is approximately 18.",
        "answer = 18",
    ],
    "-3": ["−3", "The answer is -3.", "minus 3", r"\boxed{-3}", r"\boxed{\text{−}3}", "It is −3°C"],
    "1000": ["The answer is 1e3.", r"\boxed{1e3}", r"\boxed{10^3}", "1 000", "1k", "one thousand"],
    "1234567": ["1,234,567", "1 234 567", "12,34,567", "1.234.567", "1'234'567", "1 234 567.00"],
    "10080": [r"\boxed{10,\!080}", r"\boxed{10{,}080}", r"\boxed{10\,080}", "10,080 minutes"],
    "1234.5": ["1,234.50", "1.234,50", "1 234,5", "$1,234.50"],
    "0.5": ["1/2", "½", r"\boxed{\frac12}", r"\boxed{\dfrac{1}{2}}", "50%", ".5", "0,5", "0.50"],
    "1/2": ["½", "0.5", r"\frac{1}{2}", r"\tfrac12", r"\frac 1 2", "2/4", "1 / 2", r"50\%"],
    "71/6": ["The answer is 11 5/6.", "11⅚", r"\boxed{11\frac{5}{6}}", r"\boxed{11 \frac56}"],
    "-5/2": ["-2 1/2", r"-\frac{5}{2}", r"\frac{-5}{2}", "-2.5"],
    "1/3": ["0.333333", "0.3333333333", r"\boxed{\frac{2}{6}}"],
    "1500": ["1.5 × 10^3", r"\boxed{1.5 \times 10^{3}}", "1.5e3", "1.5 x 10³", "1.5 thousand"],
    "24": ["The answer is 4!.", r"\boxed{4!}", "two dozen", "24."],
    "5000000": ["5 million", "$5 million", "5,000,000", r"5 \times 10^6"],
    "50": ["50%", r"\boxed{50\%}", "50 percent", "fifty"],
    "50%": ["50", "0.5", r"50\%", "1/2"],
    "12.5%": ["12.5", "0.125", r"12.5\%"],
    "0": ["-0", "0.0", "zero", "0%"],
    "5 cm": ["5", "5 centimeters", r"5\text{ cm}", r"5\,\mathrm{cm}", "5cm"],
    "12 m/s": ["12 meters per second", r"12\ \mathrm{m/s}", "12"],
    "9 m^2": ["9 square meters", "9 m²", "9"],
    "1/8": ["The answer is 1/8 of the pie."],
    "3:4": ["3 : 4", "3 to 4", "3/4", "The ratio is 3:4."],
    "0x1f": ["0x1F", "31", r"\boxed{1f_{16}}"],
    "1011_2": ["1011", "1011_{2}", "(1011)_2"],
    "B": [
        "The correct answer is **B**.",
        "(B)",
        "B)",
        r"$\boxed{\textbf{(B)}\ 12}$",
        "option B",
        "b",
        "B. Paris",
        "The answer is B, since Paris is in France.",
        r"\boxed{\text{B}}",
        "B: Paris",
    ],
    "Yes": ["yes", "Yes.", "Yes, he has 12 left.", "The answer is yes, since 3 > 2.", "**YES**"],
    "True": ["true", "The answer is True.", r"\boxed{\text{true}}"],
    "Tuesday": [
        "The answer is Tuesday.",
        "**Tuesday**",
        "It is in 3 days.\n\nTuesday",
        "tuesday",
        r"\boxed{\text{Tuesday}}",
        "The answer is Tuesday, because 3 days pass.",
    ],
    "the red car": ["Red car", "The answer is a red car.", '"The red car."'],
    "May 5, 2020": ["5 May 2020", "2020-05-05", "May 5th, 2020", "may 05, 2020"],
    "7:30 PM": ["7:30 p.m.", "7:30 pm"],
    "7:05": ["07:05"],
    "(1, 2)": ["(1,2)", r"\left(1,2\right)", "The answer is (1, 2).", r"(1,\ 2)", "(1, 4/2)"],
    "[1, 2)": [r"\left[1, 2\right)", "[1,2)"],
    "{1, 2}": [r"\{2, 1\}", r"\boxed{\left\{1,2\right\}}", r"\lbrace 1, 2\rbrace", "1, 2"],
    "1, 2": ["2, 1", "1 and 2", "x = 1 or x = 2", "1,2", r"1 \text{ and } 2"],
    "[1, 2, 3]": ["[1,2,3]", "1, 2, 3", "The answer is [1, 2, 3]."],
    r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}": [
        r"\boxed{\begin{bmatrix}1&2\\3&4\end{bmatrix}}",
        "[[1, 2], [3, 4]]",
    ],
    "x = 5": ["5", "x=5", r"\boxed{5}", "The answer is x = 5."],
    "y = 2x + 1": ["y = 1 + 2x", "2x + 1", "y=2x+1"],
    "2*x**2 + y**6": ["2x^2 + y^6", "The answer is 2*x**2 + y**6.", "**y**6 + 2*x**2**"],
    "1*3*5 + 9": ["The answer is 1*3*5 + 9.", "24"],
    r"\sqrt{2}": ["sqrt(2)", "√2", r"\sqrt2", r"\boxed{2^{1/2}}", "The answer is $\\sqrt{2}$ cm."],
    r"2\pi": ["2π", r"\boxed{2 \pi}", "2*pi", r"2\pi \text{ cm}", "6.283185"],
    r"\infty": ["∞", "infinity", r"+\infty"],
    "x > 5": ["5 < x", "x>5"],
    r"x \ge 5": ["x ≥ 5", "x >= 5", r"x \geq 5"],
    r"(-\infty, 3) \cup (4, \infty)": [r"(-\infty,3)\cup(4,\infty)", "(-∞, 3) ∪ (4, ∞)"],
    r"\pm 3": [r"\boxed{\pm3}", "±3", "3, -3"],
    "90^\\circ": ["90°", "90 degrees", "90"],
    "48.0 + 36.0i": ["48+36i", "36i + 48"],
    "42": [  # the ways of lm-evaluation-harness's and math-verify's own examples
        r"\[\boxed{42}\]",
        r"\boxed{{42}}",
        r"\boxed{42 \mathrm{~m}}",
        r"\boxed{42\,\text{cm}^2}",
        r"\boxed{\text{The answer is } 42}",
        r"\boxed{42 \text{ (approximately)}}",
        r"\boxed{\approx 42}",
        r"\boxed{\sqrt{1764}}",
        r"\boxed{4.2 \times 10^1}",
        r"\begin{align*} x &= 40+2 \\ &= 42 \end{align*}",
        r"$x \approx 42$",
        r"So the answer is $\$42$.",
        r"\boxed{42",
        "*42*",
        "_42_",
        "**42** ✅",
        "→ 42",
        "#42",
        "• 42",
        "Result: 42 ✅",
        "42 (forty-two)",
        "It's 42",
        "The answer is 42, not 43.",
        "The answer is 42 rather than 43.",
        "There is a 42% chance.",
        "The final answer is 42\n\nLet me know if you have 2 more questions!",
    ],
    r"\frac{3}{4}": [
        r"\boxed{P(A \cap B) = \frac{3}{4}}",
        r"\boxed{\frac{ 3 }{ 4 }}",
        r"\boxed{\frac{3}{4}\text{ cups}}",
        r"\boxed{1-\frac14}",
        r"So the probability is $\frac{3}{4}$.",
        "3 ÷ 4",
        "3⁄4",
        "There is a 75% chance.",
    ],
    "70000": [r"\boxed{\$70,\!000}", "He made 200000-80000-50000=$70000 profit.", "70k"],
    "x=2, y=3": ["y=3, x=2", "x = 2 and y = 3"],
    "6 - 5i": ["-5i + 6", "6 - 5*i"],
    r"\pi": ["pi", "π", "3.141593"],
    r"\emptyset": ["∅", r"\{\}"],
    "e^2": [r"\exp(2)", "7.389056"],
    "n(n+1)/2": [r"\frac{n^2+n}{2}", "n*(n+1)/2"],
    "2^{100}": ["1267650600228229401496703205376", "4^{50}"],
    "1e-5": ["0.00001", "10^{-5}", "1×10⁻⁵"],
    '["a", "b"]': ["['a', 'b']", "[a, b]"],
    '{"a": 1}': ['{"a":1}', '```json\n{"a": 1}\n```'],
    "x^2 + y^2 = 25": ["y^2 + x^2 = 25", "x²+y²=25"],
    "6.02 × 10^23": ["6.02e23", "602000000000000000000000", r"6.02 \cdot 10^{23}"],
    "3 hours 20 minutes": ["3 Hours 20 Minutes."],
    "Paris": ["It is in France.\n\nThe capital is Paris.", "The answer is Paris (France)."],
    "so we add\n#### 1,234": ["The answer is 1234."],
    "We get $2 + 2 = \\boxed{4}$.": ["The answer is 4."],
}
WRONG = {  # gold answer: responses that do not say it
    "18": [
        "",
        " ",
        ".",
        "no idea",
        r"\boxed{}",
        "<think>The answer is 18.",
        "<thinking>The answer is 18.",
        "The answer is 17 or 18.",
        "17 or 18",
        "between 17 and 18",
        "The answer is not 18.",
        "The answer is at least 18.",
        "The answer is more than 18.",
        "The answer is 18% of what",
        r"The answer is 18\% of it",
        "The answer is 18x.",
        r"\boxed{18x}",
        r"\boxed{18\pi}",
        r"\boxed{\sqrt{18}}",
        r"\boxed{18^2}",
        r"\boxed{2^{18}}",
        r"\boxed{x^{18}}",
        r"\boxed{\frac{1}{18}}",
        "So we get 1/18",
        "So we get 10^18",
        r"So we get $\frac{36}{18}$",
        r"So we get $3\sqrt{18}$",
        r"\boxed{2x = 18}",
        r"\boxed{x^2 = 18}",
        r"\boxed{x > 18}",
        r"\boxed{18, 19}",
        r"\boxed{(18, 19)}",
        r"\boxed{1 8}",
        "The answer is 1 8.",
        "The answer is 18 million.",
        "The answer is 18k.",
        "The answer is -18.",
        "minus 18",
        "The answer is 18.5.",
        "The answer is 18 1/2.",
        "The answer is 18/5.",
        "The answer is 1.8.",
        "The answer is 0.18.",
        "The answer is 18e2.",
        "The answer is 180.",
        "The answer is 1,018.",
        "The answer is 7:18.",
        "The answer is 2020-05-18.",
        "The answer is 05/06/18.",
        "The answer is 18!.",
        "The answer is 18 factorial.",
        "The answer is 18 squared.",
        "The answer is 18 to 20.",
        "The answer is 18–20.",
        "The answer is 18 and a half.",
        "The answer is 18 or more.",
        "The answer is 18 times 3.",
        "#### 17",
        "<answer>17</answer> 18",
        r"\boxed{17} and that is near 18",
        r"\boxed{18} no, \boxed{17}",
        "18\nThe answer is 17.",
        "version 1.2.18",
        "x18",
        "0x18",
        "18_9",
        "eighty",
    ],
    "135 + 9": ["The answer is 1*3*5 + 9."],
    "y6": ["The answer is y**6."],
    "5/6": ["It takes 11 5/6 hours", r"\boxed{11\frac{5}{6}}", "11⅚", "6/5", "-5/6", "0.83"],
    "6": [r"So $\frac{5}{6}$", "5/6", "5:6", "x_6", "5 or 6", "2.6", "3^6", "COVID 5.6"],
    "8/3": ["11 5/6", "1 5/3"],
    "0.5": ["0.5%", "5", "1/5", "0.05", "0,05", "{0, 5}", "0.49", "0.500001", "50"],
    "0.0000001": ["0.0000002", "0", "1e-6"],
    "1/3": ["0.33", "0.333", "0.3333333334", "3", "1/4"],
    "1000000": ["1000001", "1000000.4", "1,000,00", "10^7"],
    "3": ["1, 2, 3", "(1, 3)", "3i", "3!", "3 3", "1 2", "3e", "0.3"],
    "1": ["0.01", "1%", "2%"],
    "5 cm": ["5 m", "5 km", "6 cm", r"5\text{ m}", "5 cm^2", "$5"],
    "$5": ["5 cents", "€5", "5 euros"],
    "3:4": ["4:3", "3", "4", "4/3", "3:5"],
    "7:30": ["7.5", "7:31", "730", "30"],
    "7:30 PM": ["7:30 am", "7:30"],
    "1011_2": ["1011_3", "1010", "11"],
    "0x1f": ["1", "0x2f", "1f2"],
    "B": [
        "A",
        "B or C",
        "A and B",
        "A, B",
        "not B",
        "Both",
        "Because",
        "B, C",
        "(A) B",
        "b is not",
        "The answer is a book.",
        "BC",
        "Option A, not B",
        "",
    ],
    "A": ["The answer is a triangle.", "An", "a cat", "A or B", "A+"],
    "Yes": ["no", "Not yes", "yesterday", "No, yes", "The answer is 1."],
    "No": ["on", "none", "not", "now", "yes", "No 5 is alive"],
    "listen": ["silent", "tinsel", "enlist"],
    "ab": ["ba", "a", "b"],
    "Tuesday": ["Thursday", "not Tuesday", "Tuesday or Friday", "Tuesdays and Fridays", "2"],
    "2010": ["2020-05-05", "2010-01-01"],
    "May 5, 2020": ["May 6, 2020", "5 June 2020", "2020-06-05", "2020"],
    "(1, 2)": ["(2, 1)", "[1, 2]", "{1, 2}", r"\{1,2\}", "(1, 2]", "1", "3", "(1, 2, 3)", "2, 1"],
    "[1, 2)": ["[1, 2]", "(1, 2)", "(1, 2]", "1, 2"],
    "{1, 2}": [r"\{1, 3\}", "(1, 2)", "[1, 2]", r"\{1\}", "12"],
    "1, 2": ["1", "2", "1, 2, 3", "12", "1.2", "3", "1, 1"],
    "[1, 2, 3]": ["[3, 2, 1]", "[1, 2]", "(1, 2, 3)", "123", "6", "[1, 2, 3, 4]"],
    r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}": [
        r"\boxed{\begin{pmatrix}1&3\\2&4\end{pmatrix}}",
        r"\boxed{\begin{pmatrix}1&2&3&4\end{pmatrix}}",
    ],
    "x = 5": ["y = 5", "x = 6", "6", "x > 5", "2x = 5"],
    "y = 2x + 1": ["y = 2x", "y = 2x - 1", "1"],
    "2*x**2 + y**6": ["2x^2 + y^5", "2x2 + y6", "2*x*2 + y*6", "2x^2"],
    r"\sqrt{2}": ["2", "1.4", r"\sqrt{3}", r"-\sqrt{2}", r"2\sqrt{2}"],
    r"2\pi": ["2", "6.28", r"\pi", r"2\pi^2", r"\pi^2"],
    r"\infty": [r"-\infty", "0", "8", "1000000"],
    r"-\infty": [r"\infty", "-1"],
    "x > 5": ["x < 5", r"x \ge 5", "5", "x > 6"],
    r"(-\infty, 3) \cup (4, \infty)": [r"(-\infty,3)\cup(5,\infty)", r"(-\infty,3)"],
    r"\pm 3": ["3", "-3"],
    "42": [
        *(rf"\boxed{{{x}}}" for x in ("42i", "42:00", "41, 42", "42 +", "42_42", "x+y=42")),
        *(rf"\boxed{{{x}}}" for x in (r"42\pm 1", r"\text{not } 42", r"\log 42")),
        r"\boxed{42\text{ or }4}",
        r"\boxed{41} and \frac{42}{1}",
        "42)42)",
        "42~43",
        "42+",
        "The numbers are 41 and 42",
        "43 rather than 42",
        "43, not 42",
        "43 (not 42)",
        "log 42",
        "twice 42",
        "the square root of 42",
        "42 out of 43",
        "from 41 to 42",
        "The answer is 42 or maybe 43.",
        "The answer is x, where x > 42.",
        "5" + "!" * 100,
        "9**9**9",
        "1e999999999",
        "9" * 5000,
    ],
    r"\frac{3}{4}": [r"1\frac{3}{4}", r"\frac{3}{4}x", "3/4/2", "0.749999", "2 and 3/4", "75"],
    "x=2, y=3": ["x=3, y=2", "x=2", "5"],
    r"\{x \mid x > 2\}": ["2", "x < 2"],
    "1e-5": ["e-5", "1e5", "0", "1e-6"],
    r"\pi": ["3.14", "3", "p", "i"],
    r"\emptyset": ["0", r"\{0\}"],
    "Paris": ["London, or Paris", "Parisian", "The capital is not Paris.", "Paris (or London)"],
    '["a", "b"]': ['["b", "a"]', '["a"]', "ab"],
    '{"a": 1}': ['{"a": 2}', "1", '{"b": 1}'],
    "x^2 + y^2 = 25": ["25", "x+y=25"],
    "3 hours 20 minutes": ["3 hours", "320", "3 hours 30 minutes"],
    "5": ["5G", "V", "5⁻¹", "5²", "x⁵", "(−5)", "5−6", "0b5", "05/05/2005", "<think>5</think>"],
    "17 apples": ["17 oranges", "16 apples"],
    "False": ["True", "not False", "true or false"],
    "so we add\n#### 1,234": ["The answer is 1235.", "add", "1", "234"],
    "half of it is \\boxed{4}\n#### 8": ["4"],
}
PAIRS = [
    (gold, text, right)
    for right, table in ((1.0, RIGHT), (0.0, WRONG))
    for gold, texts in table.items()
    for text in texts
]


@pytest.fixture(scope="module")
def judge():
    oracle = ORACLES["math_verify"](timeout=10.0)

    def verdict(gold, text):
        prompt = Prompt("q", ({"role": "user", "content": "?"},), {"answer": gold})
        got = checked(oracle.ask([prompt], [[text]]))
        assert got.failed == (None,)
        return float(got.parts["accuracy"][0, 0])

    return verdict


@pytest.mark.parametrize("gold, text, right", PAIRS)
def test_the_verdict_is_a_careful_readers(judge, gold, text, right):
    assert judge(gold, text) == right


MARKS = [
    *("{}", "{}.", "The answer is {}.", "**{}**", "So it is {} in all.", "$\\boxed{{{}}}$"),
    *("#### {}", "<answer>{}</answer>", "Answer: {}", "Step 1: 5\n\n{}", "x = {}"),
    "The answer is {} apples, as 7.",
]
NUMBERS = [
    *("0", "7", "-7", "12", "123", "1,234", "-1,234,567", "0.5", "-2.75", "1/3", "-22/7", "1e6")
]


@pytest.mark.parametrize("gold", NUMBERS)
def test_a_number_is_itself_in_every_phrase_and_no_other(gold):
    for mark in MARKS:
        says = [
            n for n in NUMBERS if any(same(n, r) for r in readings(mark.format(gold), "auto", n))
        ]
        assert says == [gold], mark


@pytest.mark.parametrize("gold", ["5", r"\frac{1}{2}", "Tuesday", "B", "[1, 2]", "x = 5"])
@pytest.mark.parametrize(
    "piece",
    [
        *(r"\boxed{", "<answer>", "1,", "answer: ", "**", "_", "$", "$$", r"\(", "(", "[", "}"),
        " ",
        *("\n", "5 or 6 ", "between ", "10^", r"\frac{", "x=", "²", "½", "aa ", "1 234 ", ", "),
        *(r"\text{", "<think>", "Answer\n", "1/", r"\begin{pmatrix}", "-+", "5 cm ", "\ud800"),
    ],
)
def test_a_hundred_kilobytes_are_read_quickly(gold, piece):
    text, start = piece * (100_000 // len(piece)), time.process_time()
    for reading in readings(text, "auto", gold):
        if same(gold, reading) is None:
            latex(reading)
    assert time.process_time() - start < 5


def test_no_text_raises():
    """Pieces of answers put together at random; the seed is fixed."""
    draw = random.Random(0)
    pieces = [
        *" \n()[]{}<>$*_^=+-/,.;:!%#|&\\'\"`~",
        *"\ud800°²½≈∞€🎉",
        *("\\boxed{", "\\frac{", "\\{", "answer is", "1", "0x", "_2", "7:30", "May 5, 2020", "3:4"),
        *("e5", "one", "Yes", "B", "\\begin{pmatrix}", "\\end{pmatrix}", "<think>", "</answer>"),
        *(" or ", "cm", "million"),
    ]
    for _ in range(800):
        gold, text = ("".join(draw.choices(pieces, k=k)) for k in (3, 8))
        for style in STYLES:
            for reading in readings(text, style, gold):
                same(gold, reading)
        latex(text)


@pytest.mark.parametrize("text", ["ſeven", "Rſ 5", "5 thouſand"])
def test_a_long_s_is_no_letter_of_a_number(text):
    """Without regard to case Python takes "ſ" for "s"."""
    assert quantity(text) is None or quantity(text).value == 5
    for style in STYLES:
        assert not any(same("7", reading) for reading in readings(f"It is {text}", style, "7"))


@pytest.mark.parametrize("answer", [None, float("nan")])
def test_a_null_gold_answer_is_refused_before_anything_is_sampled(answer):
    prompt = Prompt("q", ({"role": "user", "content": "?"},), {"answer": answer})
    with pytest.raises(DataError, match=r"prompt 'q' has no answer .*1 of 1"):
        ORACLES["math_verify"]().check([prompt])


@pytest.mark.parametrize(
    "gold, right, wrong",
    [(5, "5", "6"), (0.1, "1/10", "1"), (1e22, "10^{22}", "22"), (True, "true", "1")],
)
def test_gold_answers_that_json_keeps_as_numbers_are_compared(judge, gold, right, wrong):
    assert (judge(gold, right), judge(gold, wrong)) == (1, 0)


def test_where_the_template_opened_the_thinking_an_unfinished_thought_is_no_answer():
    thinking = Prompt(
        "q", ({"role": "user", "content": "?"},), {"answer": "5", "opens_thinking": True}
    )
    texts = ["It may be 5", "4?</think>5", "5</think>6"]
    assert ORACLES["math_verify"]().ask([thinking], [texts]).reward.tolist() == [[0, 1, 0]]
    assert code_of(heard(thinking, "```\nx\n```"), "auto") is None


def test_the_table_has_enough_of_both():
    assert sum(right for *_, right in PAIRS) > 100 and sum(not right for *_, right in PAIRS) > 100
