"""Write a trained policy as a folder that transformers, PEFT and every other program opens."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from ssppo_jax import __version__
from ssppo_jax.config import entry, flatten
from ssppo_jax.data.chat import template_text
from ssppo_jax.losses import LOSSES
from ssppo_jax.models.lora import merged, split
from ssppo_jax.runs.report.card import licence_of, model_card
from ssppo_jax.runtime import Runtime
from ssppo_jax.types import PyTree
from ssppo_jax.weights import hf
from ssppo_jax.weights.adapters import base_of, save_adapters

log = logging.getLogger(__name__)


def export_policy(
    runtime: Runtime, params: PyTree, workdir: Path, result: dict, account: dict, which: str = ""
) -> None:
    """Write a policy as a Hugging Face folder, and its adapters if it has them.

    Args:
      result: its evaluation, for the model card.
      account: what became of the prompts (prompts.json), for the model card.
      which: ends the folders' names: `policy`, `adapters`.
    """
    config, arch, lora = runtime.config, runtime.arch, runtime.decoder.lora
    name = config.export.dtype
    dtype = hf.stored_dtype(runtime.folder) if name == "source" else np.dtype(name)
    if dtype.itemsize < runtime.param_dtype.itemsize:
        log.info(
            "policy%s/ is rounded to %s; export.dtype=%s would keep every digit",
            which,
            dtype,
            runtime.param_dtype,
        )
    if lora is not None:
        save_adapters(
            split(params)[1],
            arch,
            lora,
            workdir / f"adapters{which}",
            base=base_of(config.model.source, runtime.folder),
            replace=True,
            texts={"README.md": _card(runtime, result, account, adapter=True)},
        )
        params = merged(params, lora.scale)
    own = template_text(config.data.template)  # it was trained with this and not the model's
    hf.save_params(
        params,
        arch,
        workdir / f"policy{which}",
        tokenizer_from=runtime.folder,
        dtype=dtype,
        replace=True,
        texts=({} if own is None else {"chat_template.jinja": own})
        | {"README.md": _card(runtime, result, account)},
    )


def _card(runtime: Runtime, result: dict, account: dict, *, adapter: bool = False) -> str:
    """Return the model card of a run."""
    config = runtime.config
    return model_card(
        flatten(config),
        result,
        method=entry(LOSSES, config.loss.name).__doc__ or "",
        licence=licence_of(config.model.source, runtime.folder),
        prompts=account,
        version=__version__,
        adapter=adapter,
    )
