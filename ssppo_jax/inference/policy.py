"""Use the package from Python: train, load a policy, sample from it, score responses.

    import ssppo_jax

    config = ssppo_jax.configure("smoke", {"loss.name": "dpo", "train.iterations": 1})
    result = ssppo_jax.train(config, "runs/first")
    policy = ssppo_jax.load_policy("runs/first/policy")
    texts = ssppo_jax.sample(policy, ["Describe the sea."], num_samples=2)
    logp = ssppo_jax.score(policy, ["Describe the sea."], texts)

Keys, defaults and errors are those of the command line."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ssppo_jax import schema
from ssppo_jax.data import EncodedPrompt
from ssppo_jax.data.completions import encode_response
from ssppo_jax.data.prepare import encode
from ssppo_jax.data.sources import check_prompt
from ssppo_jax.distributed.mesh import replicated
from ssppo_jax.errors import ConfigError, DataError
from ssppo_jax.rollout.rows import batch_of, samples_of
from ssppo_jax.rollout.sample import sample_prompts
from ssppo_jax.rollout.score import score_rows
from ssppo_jax.runtime import EVALUATION, Runtime, build_runtime, sampling_params
from ssppo_jax.sampling.choose import SamplingParams
from ssppo_jax.sampling.sampler import CompiledSampler
from ssppo_jax.steps import make_score_step
from ssppo_jax.types import Prompt, PyTree

Chat = str | Sequence[Mapping[str, str]]  # a user's text, or turns that end with the user's


@dataclasses.dataclass
class LoadedPolicy:
    """Hold a model on the devices, with its tokenizer, settings and compiled programs."""

    runtime: Runtime
    params: PyTree
    samplers: dict[tuple[int, SamplingParams], CompiledSampler] = dataclasses.field(
        default_factory=dict
    )

    @functools.cached_property
    def scorer(self) -> Callable:
        """Return the program that scores completions."""
        return jax.jit(
            make_score_step(self.runtime.make_apply()),
            out_shardings=replicated(self.runtime.mesh),
            static_argnames="slots",
        )


def configure(name: str = "quickstart", overrides: Mapping[str, Any] | None = None) -> ConfigDict:
    """Return a config by name, path or module, with `--config.KEY=VALUE` as {"KEY": value}.

    Raises:
      ConfigError: every problem of the config, all at once.
    """
    given = {
        key: value if isinstance(value, str) else repr(value)
        for key, value in (overrides or {}).items()
    }
    return schema.load(name, given, jax.device_count())


def load_policy(source: str | Path, config: ConfigDict | None = None) -> LoadedPolicy:
    """Load a model: anything `model.source` may be, such as RUN/policy or a checkpoint's folder.

    Args:
      source: of the model.
      config: for its dtype, mesh, lengths, template and sampling; None: the defaults, with a batch
        that the devices divide.

    Raises:
      ConfigError: there is no such model, or the config cannot run here.
    """
    own = (config or schema.base_config()).copy_and_resolve_references()
    own.model.source = str(source)
    if config is None:  # any number of devices divides its own number
        own.train.batch_size = own.sampling.batch_size = 8 * jax.device_count()
    schema.check(own, jax.device_count())
    runtime = build_runtime(own)
    return LoadedPolicy(runtime, runtime.load_params())


def sample(
    policy: LoadedPolicy,
    prompts: Chat | Sequence[Chat],
    *,
    num_samples: int = 1,
    seed: int = 0,
    **settings: Any,
) -> list[list[str]]:
    """Return `num_samples` responses to each prompt.

    Args:
      policy: from `load_policy`.
      prompts: a text, or a list of texts or of chats ([{"role": ..., "content": ...}, ...]).
      num_samples: responses to each.
      seed: another seed draws other responses.
      **settings: of `sampling`: temperature, top_k, top_p, min_p, max_new_tokens.

    Raises:
      ConfigError: no such setting, or no sample is asked for. DataError: a prompt that cannot be
        read, or is too long.
    """
    if num_samples < 1:
        raise ConfigError(f"num_samples={num_samples}: give 1 or more")
    config = policy.runtime.config.copy_and_resolve_references()
    known = ("temperature", "top_k", "top_p", "min_p", "max_new_tokens")
    for name, value in settings.items():
        if name not in known:
            raise ConfigError(f"sample takes no {name!r}; it takes {', '.join(known)}")
        config.sampling[name] = value
    schema.check(config, jax.device_count())
    encoded = _encoded(policy, prompts)
    _check_reach(policy, max(len(e.tokens) for e in encoded), config.sampling.max_new_tokens)
    runtime = dataclasses.replace(policy.runtime, config=config)
    kind = num_samples, sampling_params(config)
    if kind not in policy.samplers:
        policy.samplers[kind] = runtime.make_sampler(num_samples=kind[0], sampling=kind[1])
    sampler = policy.samplers[kind]
    key = jax.random.fold_in(runtime.key(EVALUATION, 4), seed)
    return sample_prompts(runtime, sampler, policy.params, encoded, key, what="sample").texts


def score(
    policy: LoadedPolicy, prompts: Chat | Sequence[Chat], responses: Sequence[Sequence[str]]
) -> np.ndarray:  # [B,K]
    """Return the log-probability of each response, nats, summed over its tokens and its end.

    Args:
      policy: from `load_policy`.
      prompts: B prompts, as for `sample`.
      responses: B lists of K texts.

    Raises:
      DataError: the lists do not fit, or a text that the chat template cannot write.
    """
    runtime = policy.runtime
    encoded = _encoded(policy, prompts)
    if any(isinstance(group, str) for group in responses):
        raise DataError(
            "score takes a list of texts for each prompt, as [[TEXT], ...]; a text given"
        )
    sizes = {len(group) for group in responses}
    if len(responses) != len(encoded) or len(sizes) != 1 or 0 in sizes:
        raise DataError(
            f"score takes B lists of K texts for B prompts; given {len(responses)} lists of"
            f" {sorted(sizes)} texts for {len(encoded)} prompts"
        )
    settings = runtime.config.data
    how = {"template": settings.template, "date": settings.date}
    ids = [
        [encode_response(runtime.tokenizer, e, text, runtime.eos, **how) for text in group]
        for e, group in zip(encoded, responses, strict=True)
    ]
    for e, group in zip(encoded, ids, strict=True):
        _check_reach(policy, len(e.tokens), max(map(len, group)))
    slots = max(len(one) for group in ids for one in group)
    batch = batch_of(encoded, samples_of(ids, slots, len(ids[0])))
    logp, _ = score_rows(runtime, policy.scorer, policy.params, batch, "the policy")
    return logp.sum(-1)


def _check_reach(policy: LoadedPolicy, prompt: int, response: int) -> None:
    """Raise DataError where prompt and response have more tokens than the model has positions."""
    reach = policy.runtime.arch.reach
    if prompt + response > reach:
        raise DataError(
            f"a prompt of {prompt} tokens and a response of {response} make {prompt + response}"
            f" positions, and the model reads {reach}; shorten one of them"
        )


def _encoded(policy: LoadedPolicy, prompts: Chat | Sequence[Chat]) -> list[EncodedPrompt]:
    """Encode prompts in their order; none may be left out."""
    single = isinstance(prompts, str) or (bool(prompts) and isinstance(prompts[0], Mapping))
    chats: Sequence[Any] = [prompts] if single else prompts
    if not len(chats):
        raise DataError("there is no prompt; give a text, or a list of texts or of chats")
    made = []
    for i, chat in enumerate(chats):
        turns = ({"role": "user", "content": chat},) if isinstance(chat, str) else tuple(chat)
        if not all(isinstance(turn, Mapping) for turn in turns):
            raise DataError(
                f"prompt {i} is neither a text nor a list of turns such as"
                ' {"role": "user", "content": "Hi"}'
            )
        made.append(Prompt(f"prompt-{i}", tuple(dict(turn) for turn in turns)))
        try:
            check_prompt(made[-1])
        except ValueError as error:
            raise DataError(f"prompt {i}: {error}") from None
    encoded, dropped = encode(made, policy.runtime.tokenizer, policy.runtime.config.data)
    if dropped.rows:
        raise DataError(f"{dropped}; raise data.max_prompt_length")
    return encoded
