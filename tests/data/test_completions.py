"""Given responses become the ids that a sampler could have drawn."""

import numpy as np
import pytest

from ssppo_jax.data import encode_prompts
from ssppo_jax.data.completions import encode_given
from ssppo_jax.errors import DataError
from ssppo_jax.types import Given, Prompt
from ssppo_jax.weights.tiny import byte_tokenizer

EOS = (2,)


def encoded(*texts, template="model"):
    prompts = [
        Prompt(f"p{i}", ({"role": "user", "content": "hi"},), given=Given((text, "ok")))
        for i, text in enumerate(texts)
    ]
    return encode_prompts(prompts, byte_tokenizer(), max_prompt_length=200, template=template)[0]


@pytest.mark.parametrize("template", ["model", "plain"])
def test_a_response_is_its_text_and_one_end_token(template):
    """The model's template writes a line break behind the end token, the plain one writes no end
    token."""
    rows, _ = encode_given(
        encoded("yes  no", template=template),
        byte_tokenizer(),
        EOS,
        max_new_tokens=20,
        template=template,
    )
    ids = rows[0].completions[0]
    assert ids[-1] == EOS[0] and np.count_nonzero(ids == EOS[0]) == 1
    assert byte_tokenizer().decode(ids[:-1]).strip() == "yes  no"
    assert len(rows[0].completions) == 2


def test_a_response_that_is_too_long_is_left_out_with_its_length_and_never_cut():
    found = encode_given(encoded("x" * 30, "yes"), byte_tokenizer(), EOS, max_new_tokens=9)
    assert found.too_long == (("p0", 31),)
    assert [e.prompt.id for e in found.encoded] == ["p1"]
    with pytest.raises(DataError, match=r"9 tokens; raise it \(.* needs 31, the longest 31\)"):
        encode_given(encoded("x" * 30), byte_tokenizer(), EOS, max_new_tokens=9)


def test_a_template_that_writes_answered_turns_otherwise_is_refused():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% if not add_generation_prompt %}!{% endif %}{% for m in messages %}{{ m['content'] }}"
        "{% endfor %}"
    )
    rows = encode_prompts(
        [Prompt("p", ({"role": "user", "content": "hi"},), given=Given(("a", "b")))],
        tokenizer,
        max_prompt_length=9,
    )[0]
    with pytest.raises(DataError, match="prompt 'p': the chat template writes an answered"):
        encode_given(rows, tokenizer, EOS, max_new_tokens=9)
