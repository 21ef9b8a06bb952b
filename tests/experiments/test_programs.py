"""The programs of experiments/programs: what is right in them, and what the sandbox says."""

from pathlib import Path

import numpy as np
import pytest

from ssppo_jax.config import load_module
from ssppo_jax.oracles.code import code
from ssppo_jax.types import Prompt

STUDY = Path(__file__).parents[2] / "experiments/programs"
STEPS = [("plus", 3), ("times", 2), ("minus", 5), ("times", 4), *[("plus", 2)] * 8]


@pytest.fixture(scope="module")
def programs():
    return load_module(str(STUDY / "programs.py"))


def test_careful_and_hasty_statements_by_hand(programs):
    rng = np.random.default_rng(0)
    careful = programs.written(STEPS, rng, hasty=0.0).split("\n ")
    assert careful[:4] == ["def f(a):", "b=a+3", "c=b*2", "d=c-5"] and careful[-1] == "return m"
    assert len(careful) == 14
    hasty = programs.written(STEPS, rng, hasty=1.0).split("\n ")
    assert hasty[:3] == ["def f(a):", "c=a+3*2", "e=c-5*4"] and len(hasty) == 8
    assert programs.prompt_of(STEPS).startswith("b plus 3, c times 2, d minus 5, e times 4, f plus")
    made = ((np.array(programs.ASKED) + 3) * 2 - 5) * 4 + 16
    assert programs.test_of(STEPS).endswith(str(made.tolist()))


def test_the_sandbox_takes_careful_programs_and_refuses_a_product_of_the_last_term(programs):
    rng = np.random.default_rng(1)
    rows = programs.rows(4, seed=3)
    meta = [{k: row[k] for k in ("tests", "entry_point")} for row in rows]
    texts = [row["prompt"] for row in rows]
    words = [[part.split()[1:] for part in text.split(", ")] for text in texts]
    steps = [[(word, int(n)) for word, n in each] for each in words]
    assert [programs.prompt_of(each) for each in steps] == texts
    steps.append(STEPS)
    meta.append({"tests": programs.test_of(STEPS), "entry_point": "f"})
    prompts = [
        Prompt(str(i), ({"role": "user", "content": "f"},), own) for i, own in enumerate(meta)
    ]
    hasty = programs.written(STEPS, rng, hasty=1.0)
    safe = hasty.replace("c=a+3*2", "c=(a+3)*2").replace("e=c-5*4", "e=(c-5)*4")
    responses = [[programs.written(each, rng, 0.0)] * 2 for each in steps[:-1]] + [[hasty, safe]]
    reward = code(code_style="whole").ask(prompts, responses).reward
    assert reward[:-1].min() == 1.0 and reward[-1].tolist() == [0.0, 1.0]


def test_a_program_is_the_text_of_its_tokens(programs):
    made, rng = programs.tokenizer(), np.random.default_rng(2)
    text = programs.written(STEPS, rng, hasty=0.4)
    ids = made.encode(text, add_special_tokens=False)
    assert made.decode(ids) == text and made.unk_token_id not in ids
    asked = made.encode(programs.prompt_of(STEPS), add_special_tokens=False)
    assert len(asked) == 3 * len(STEPS) and made.unk_token_id not in asked
    careful = programs.written(STEPS, rng, hasty=0.0)
    config = load_module(str(STUDY / "config.py")).get_config()
    assert len(made.encode(careful, add_special_tokens=False)) < config.sampling.max_new_tokens
