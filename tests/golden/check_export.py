"""Our exports, opened by transformers and PEFT on torch: `make parity`. Not part of the tests,
which need no torch.

For every case of decoders.npz: the stored tensors through our import and export into a folder, that
folder through AutoModelForCausalLM, and its logits against the stored ones; then random adapters,
exported and loaded by PEFT, against our merged export of the same. Exits 1 when one differs by more
than 2e-4."""

import json
import pathlib
import sys
import tempfile

import jax
import numpy as np
import torch
from peft import PeftModel
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM

from ssppo_jax.models.decoder import Decoder, init_params
from ssppo_jax.models.hf_config import arch_from_hf
from ssppo_jax.models.lora import Lora, join, merged, split
from ssppo_jax.weights import hf
from ssppo_jax.weights.adapters import save_adapters

EVERY = 5
LORA = Lora(rank=3, alpha=12.0)


def main() -> int:
    with np.load(pathlib.Path(__file__).with_name("decoders.npz"), allow_pickle=False) as file:
        golden = dict(file)
    ids, worst = torch.tensor(golden["ids"][:1].astype(np.int64)), 0.0
    for case in map(str, golden["cases"]):
        with tempfile.TemporaryDirectory() as scratch:
            folder = exported(case, golden, pathlib.Path(scratch))
            model, info = opened(folder)
            off = float(np.abs(logits_of(model, ids) - golden[f"{case}/logits_0"]).max())
            adapted, moved = adapters_differ(folder, model, ids, pathlib.Path(scratch))
        unread = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
        print(
            f"{case:16} largest difference {off:.1e}; by PEFT {adapted:.1e} of {moved:.1f}"
            f" {unread or ''}"
        )
        worst = max(worst, off, adapted, 1.0 if unread or moved < 0.1 else 0.0)
    return int(worst > 2e-4)


def opened(folder: pathlib.Path):
    settings = {"dtype": torch.float32, "attn_implementation": "eager", "output_loading_info": True}
    return AutoModelForCausalLM.from_pretrained(folder, **settings)


def logits_of(model, ids) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(ids).logits[0, ::EVERY].numpy()


def adapters_differ(folder: pathlib.Path, model, ids, scratch: pathlib.Path) -> tuple[float, float]:
    """(PEFT's model against our merged export, what the adapters change), largest differences of
    logits."""
    arch, rng, adapters = hf.read_arch(folder), np.random.default_rng(0), {}
    shapes = jax.eval_shape(lambda: init_params(Decoder(arch, lora=LORA), jax.random.key(0)))
    for path, leaf in hf.flatten(split(shapes)[1]):
        hf.insert(adapters, path, (0.2 * rng.standard_normal(leaf.shape)).astype(np.float32))
    both = merged(join(hf.load_params(folder, arch), adapters), LORA.scale)
    want = logits_of(opened(hf.save_params(both, arch, scratch / "merged"))[0], ids)
    without = logits_of(model, ids)
    got = PeftModel.from_pretrained(
        model, save_adapters(adapters, arch, LORA, scratch / "adapters", base=str(folder))
    )
    return float(np.abs(logits_of(got, ids) - want).max()), float(np.abs(want - without).max())


def exported(case: str, golden: dict, scratch: pathlib.Path) -> pathlib.Path:
    arch = arch_from_hf(json.loads(str(golden[f"{case}/config"])))
    mark = f"{case}/tensor/"
    tensors = {
        key.removeprefix(mark): value for key, value in golden.items() if key.startswith(mark)
    }
    save_file(tensors, scratch / "model.safetensors")
    return hf.save_params(hf.load_params(scratch, arch), arch, scratch / "out")


if __name__ == "__main__":
    sys.exit(main())
