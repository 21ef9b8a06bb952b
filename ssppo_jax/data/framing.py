"""Frame prompts: a system turn, answered examples before the question, a template around it.

Framing is the same for every prompt of a run, so it does not change what a prompt asks: the ids of
random keys and the split come from the prompt as its source gave it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ssppo_jax.data.order import asked
from ssppo_jax.data.sources import answered_turns
from ssppo_jax.errors import ConfigError, DataError
from ssppo_jax.types import Prompt

PLACE = re.compile(r"\{(\w+)\}")
UNFRAMED = {"system_prompt": "", "few_shot": "", "prompt_template": "{prompt}"}


def template_problem(text: str) -> str | None:
    """Say what a prompt template must be; None if it is one. The rule of `data.prompt_template`."""
    names = PLACE.findall(text)
    if "prompt" not in names:
        return "a text with {prompt} where the prompt stands, such as '{prompt} Think first.'"
    if "answer" in names:
        return "a text without {answer}: the model would be shown what it is asked for"
    return None


def framed(prompts: Sequence[Prompt], settings: Mapping[str, Any]) -> list[Prompt]:
    """Return the prompts with the configured system turn, examples and template.

    The turns become: system turn, examples, the prompt's own earlier turns, and its last turn put
    into the template. `{column}` in the template is a field of the row beside the prompt.

    Args:
      prompts: as their source made them.
      settings: the `data` node of a config: system_prompt, few_shot, prompt_template.

    Raises:
      ConfigError: a prompt has a system turn and the settings have another.
      DataError: the file of examples cannot be read, or has bad rows; the template names a field
        that a prompt lacks.
    """
    if all(settings[name] == value for name, value in UNFRAMED.items()):
        return list(prompts)
    examples = answered_turns(settings["few_shot"]) if settings["few_shot"] else ()
    return [_framed(prompt, settings, examples) for prompt in prompts]


def _framed(prompt: Prompt, settings: Mapping[str, Any], examples: tuple[dict, ...]) -> Prompt:
    turns, system = list(prompt.messages), settings["system_prompt"]
    own = [turns.pop(0)] if turns[0]["role"] == "system" else []
    if own and system:
        raise ConfigError(
            f"data.system_prompt is set, and prompt {prompt.id!r} has a system turn of its own;"
            " remove one of them"
        )
    first = [{"role": "system", "content": system}] if system else own
    last = turns[-1] | {"content": _filled(settings["prompt_template"], prompt)}
    messages = (*first, *examples, *turns[:-1], last)
    return dataclasses.replace(prompt, messages=messages, canonical=asked(prompt))


def _filled(template: str, prompt: Prompt) -> str:
    """Return the template with the prompt's text and fields in their places."""
    fields = prompt.meta | {"prompt": prompt.text}

    def field(match: re.Match) -> str:
        name = match[1]
        if not isinstance(fields.get(name), (str, int, float)):
            texts = [key for key, value in fields.items() if isinstance(value, (str, int, float))]
            raise DataError(
                f"data.prompt_template names {{{name}}}, and prompt {prompt.id!r} has no such text;"
                f" it has: {', '.join(t for t in texts if t != 'answer')}"
            )
        return str(fields[name])

    return PLACE.sub(field, template)
