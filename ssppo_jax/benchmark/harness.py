"""Our models for lm-evaluation-harness: its `LM` interface on our sampler and our log-probs.

The harness is an extra (`pip install 'ssppo_jax[lm-eval]'`) and imported only when asked for. Text
is tokenised as the harness's Hugging Face backend does: no BOS is added, a context's trailing
spaces belong to the continuation, and an empty context is the BOS or EOS token."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ssppo_jax.benchmark.answers import Model, said_before, widths
from ssppo_jax.benchmark.likelihood import Likelihood
from ssppo_jax.data import EncodedPrompt, addresses
from ssppo_jax.data.chat import encode_text
from ssppo_jax.errors import ConfigError
from ssppo_jax.rollout.sample import sample_prompts
from ssppo_jax.runtime import EVALUATION, sampling_params
from ssppo_jax.types import Prompt

STREAM = 4  # of random keys
MAX_GEN_TOKS = 256  # the harness's default
BATCH = 4  # contexts scored at a time
INSTALL = "pip install 'ssppo_jax[lm-eval]'"


def make_lm(model: Model) -> Any:
    """Return the model as an `LM` of lm-evaluation-harness.

        from lm_eval import simple_evaluate
        simple_evaluate(model=make_lm(Model(config)), tasks=["arc_easy"])

    Raises:
        ConfigError: lm_eval is not installed.
    """
    try:
        base = importlib.import_module("lm_eval.api.model").TemplateLM
    except ImportError as error:
        raise ConfigError(f"benchmark lm_eval needs the package: {INSTALL} ({error})") from None
    made: Any = type("SsppoLM", (_Harness, base), {})
    return made(model)


class _Harness:
    """The methods of the interface; `make_lm` joins them with the harness's own base class."""

    backend = "causal"

    def __init__(self, model: Model):
        super().__init__()
        self.model = model
        self.tokenizer = model.runtime.tokenizer
        self.max_length = model.runtime.arch.reach
        self._likelihood = Likelihood(model.runtime, model.params, batch_size=BATCH)

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """Return what an empty context is: BOS, or EOS where there is none."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        return str(self.model.folder).replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        if add_special_tokens:
            return list(self.tokenizer(string, add_special_tokens=True)["input_ids"])
        return list(encode_text(self.tokenizer, string).tolist())

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Score continuations; what does not fit loses its oldest tokens, as in the harness."""
        contexts, ends = [], []
        for _, context, continuation in requests:
            whole = [*context, *continuation][-(self.max_length + 1) :]
            cut = max(1, len(whole) - len(continuation))
            contexts.append(whole[:cut])
            ends.append([whole[cut:]])
        found: list[tuple[float, bool]] = [(0.0, False)] * len(contexts)

        def done(index: int, scores: list[tuple[float, bool]]) -> None:
            found[index] = scores[0]

        self._likelihood.score(contexts, ends, done, what="loglikelihood")
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False):
        """Return each text's log-prob, in disjoint windows of the model's length."""
        utils = importlib.import_module("lm_eval.utils")
        windows, owner = [], []
        for index, request in enumerate(requests):
            rolling = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for window in map(utils.make_disjoint_window, rolling):
                context, scored = map(list, window)
                windows.append((None, context, scored))
                owner.append(index)
        totals = [0.0] * len(requests)
        for index, (logp, _) in zip(owner, self._loglikelihood_tokens(windows), strict=True):
            totals[index] += logp
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Sample each context; requests with equal settings share a compiled sampler."""
        groups: dict[tuple, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(_settings(request.args[1]), []).append(index)
        texts = [""] * len(requests)
        for (temperature, top_p, most, until), rows in groups.items():
            chosen = [requests[i].args[0] for i in rows]
            found = self._generated(chosen, temperature, top_p, most)
            for i, text in zip(rows, found, strict=True):
                texts[i] = said_before(text, until)
        return texts

    def _generated(
        self, contexts: Sequence[str], temperature: float, top_p: float, most: int
    ) -> list[str]:
        config, runtime = self.model.config, self.model.runtime
        room = self.max_length - most
        if room < 1:
            raise ConfigError(f"max_gen_toks={most} leaves no room in {self.max_length} positions")
        names = [f"{i}" for i in range(len(contexts))]
        spots = addresses(names)
        encoded = []
        for name, text in zip(names, contexts, strict=True):
            ids = encode_text(self.tokenizer, text)[-room:]
            asked = ({"role": "user", "content": text},)
            encoded.append(EncodedPrompt(Prompt(name, asked), ids, spots[name]))
        config.data.prompt_buckets = widths([len(e.tokens) for e in encoded])
        config.sampling.max_new_tokens, config.sampling.top_p = most, top_p
        sampler = runtime.make_sampler(
            num_samples=1, sampling=sampling_params(config, temperature=temperature)
        )
        key = jax.random.fold_in(runtime.key(EVALUATION, STREAM), most)
        sampled = sample_prompts(runtime, sampler, self.model.params, encoded, key, what="generate")
        return [group[0] for group in sampled.texts]


def _settings(given: dict[str, Any]) -> tuple[float, float, int, tuple[str, ...]]:
    """Return temperature, top_p, tokens and stop texts of a request's settings."""
    until = given.get("until") or []
    until = (until,) if isinstance(until, str) else tuple(until)
    greedy = given.get("do_sample") is False or not given.get("temperature", 0.0)
    temperature = 0.0 if greedy else float(given["temperature"])
    most = int(given.get("max_gen_toks", given.get("max_new_tokens", MAX_GEN_TOKS)))
    return temperature, float(given.get("top_p", 1.0)), most, until


def finite(value: Any) -> float:
    """Return a metric of the harness as a number; NaN for one that is none."""
    return float(value) if isinstance(value, (int, float, np.number)) else float("nan")
