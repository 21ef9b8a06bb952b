"""Write the first layers of SmolLM2 as a model of its own, which the reward model begins from.

    python experiments/pipeline/shorten.py RUN/short

A step of 6 layers costs a fifth of one of 30, so a fit of minutes sees its pairs several times. Its
chat template ends with the answer's <|im_end|>: a score is read behind the last token, and the
newline that SmolLM2's template writes there knows less of the answer."""

import dataclasses
import sys
from pathlib import Path

import jax
from config import get_config

from ssppo_jax.weights import hf
from ssppo_jax.weights.source import resolve

LAYERS = 6
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}"
    "{% if not loop.last %}{{ '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n<|im_start|>assistant\\n' }}{% endif %}"
)


def main(folder):
    source = resolve(get_config("fit").model.source)
    arch = hf.read_arch(source)
    params = hf.load_params(source, arch)
    params["layers"] = jax.tree.map(lambda x: x[:LAYERS], params["layers"])
    short = dataclasses.replace(arch, num_layers=LAYERS)
    texts = {"chat_template.jinja": TEMPLATE}
    hf.save_params(params, short, folder, tokenizer_from=source, replace=True, texts=texts)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
