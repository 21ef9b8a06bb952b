"""Talk with a model in the terminal; its words appear as they are sampled."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from ssppo_jax.data import EncodedPrompt, pad_batch
from ssppo_jax.data.batches import bucket_of
from ssppo_jax.data.chat import decode
from ssppo_jax.data.prepare import encode
from ssppo_jax.data.sources import check_prompt
from ssppo_jax.distributed.mesh import put_rows
from ssppo_jax.errors import DataError
from ssppo_jax.runtime import EVALUATION, Runtime, build_runtime, sampling_params
from ssppo_jax.types import FINISH_LENGTH, Prompt

HELP = "/new begins another conversation, /quit or Ctrl-D ends, Ctrl-C stops an answer"
UNFINISHED = "\ufffd"  # what the bytes of half a character decode to


class Conversation:
    """Hold a model and the turns so far; `answer` yields the next answer as it grows."""

    def __init__(self, config: ConfigDict):
        self.runtime: Runtime = build_runtime(config)
        self.params = self.runtime.for_sampling(self.runtime.load_params())
        shape = self.runtime.sampling_mesh.shape
        self.size = shape["data"] * shape["fsdp"]  # one conversation, and a filler on the others
        self.sampler = self.runtime.make_sampler(
            num_samples=1, sampling=sampling_params(config), slots=self.size
        )
        self.turns: list[dict] = []
        self.asked = 0
        self.cut = False  # whether the last answer ended at sampling.max_new_tokens

    def answer(self, text: str) -> Iterator[str]:
        """Yield the pieces of the answer to the user's next turn, and keep both turns.

        Raises:
          DataError: the conversation has become longer than data.max_prompt_length.
        """
        turns = [*self.turns, {"role": "user", "content": text}]
        encoded = self._encoded(turns)
        pieces: list[str] = []
        try:
            for piece in self._sampled(encoded):
                pieces.append(piece)
                yield piece
        finally:  # also of an answer that was stopped
            self.asked += 1
            if pieces:
                self.turns = [*turns, {"role": "assistant", "content": "".join(pieces)}]

    def _encoded(self, turns: list[dict]) -> EncodedPrompt:
        settings = self.runtime.config.data
        prompt = Prompt(f"turn-{self.asked}", tuple(turns))
        try:
            check_prompt(prompt)
            return encode([prompt], self.runtime.tokenizer, settings)[0][0]
        except (DataError, ValueError) as error:
            raise DataError(
                f"{error}\nIf it is too long, begin another conversation with /new, or raise"
                f" data.max_prompt_length={settings.max_prompt_length}"
            ) from None

    def _sampled(self, encoded: EncodedPrompt) -> Iterator[str]:
        mesh, sampler = self.runtime.sampling_mesh, self.sampler
        width = bucket_of(np.array([len(encoded.tokens)]), self.runtime.config.data.prompt_buckets)
        batch = pad_batch([encoded], np.array([0]), self.size, width)
        key = self.runtime.key(EVALUATION, 3)
        slots = sampler.start(
            self.params, put_rows(mesh, batch.prompts), key, put_rows(mesh, batch.real)
        )
        said = ""
        while True:
            ended, samples = jax.device_get(sampler.look(slots))
            ids = samples.tokens[0, 0, : samples.length[0, 0]]
            text = decode(self.runtime.tokenizer, ids)
            if ended[0] or not text.endswith(UNFINISHED):
                yield text[len(said) :]
                said = text
            if ended[0]:
                break
            slots = sampler.step(self.params, slots)
        self.cut = bool(samples.finish[0, 0] == FINISH_LENGTH)


def chat(config: ConfigDict, read: Callable[[str], str] = input) -> None:
    """Ask for turns and print the answers until the user ends.

    Args:
      config: names the model and the sampling.
      read: prints its argument and returns a line.
    """
    conversation = Conversation(config)
    print(HELP)
    while True:
        try:
            line = read("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        except UnicodeDecodeError as error:
            print(f"this line is not {error.encoding}: {error.reason}")
            continue
        if line == "/quit":
            return
        if line == "/new":
            conversation.turns = []
        elif line:
            _say(conversation, line)


def _say(conversation: Conversation, line: str) -> None:
    try:
        for piece in conversation.answer(line):
            print(piece, end="", flush=True)
        if conversation.cut:
            print(" [cut at sampling.max_new_tokens]", end="")
    except KeyboardInterrupt:
        pass
    except DataError as error:
        print(error)
    print()
