"""Our exports, opened by transformers on torch: `make parity`. Not part of the tests, which need no torch.

For every case of decoders.npz: the stored tensors through our import and export into a folder, that folder through
AutoModelForCausalLM, and its logits against the stored ones. Exits 1 when one differs by more than 2e-4.
"""

import json
import pathlib
import sys
import tempfile

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM

from ssppo_jax.models.hf_config import arch_from_hf
from ssppo_jax.weights import hf

EVERY = 5


def main() -> int:
    with np.load(pathlib.Path(__file__).with_name("decoders.npz"), allow_pickle=False) as file:
        golden = dict(file)
    ids, worst = torch.tensor(golden["ids"][:1].astype(np.int64)), 0.0
    for case in map(str, golden["cases"]):
        with tempfile.TemporaryDirectory() as scratch:
            folder = exported(case, golden, pathlib.Path(scratch))
            model, info = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
            )
            with torch.no_grad():
                logits = model.eval()(ids).logits[0, ::EVERY].numpy()
        off = float(np.abs(logits - golden[f"{case}/logits_0"]).max())
        unread = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
        print(f"{case:16} largest difference {off:.1e} {unread or ''}")
        worst = max(worst, off, 1.0 if unread else 0.0)
    return int(worst > 2e-4)


def exported(case: str, golden: dict, scratch: pathlib.Path) -> pathlib.Path:
    arch = arch_from_hf(json.loads(str(golden[f"{case}/config"])))
    mark = f"{case}/tensor/"
    tensors = {key.removeprefix(mark): value for key, value in golden.items() if key.startswith(mark)}
    save_file(tensors, scratch / "model.safetensors")
    return hf.save_params(hf.load_params(scratch, arch), arch, scratch / "out")


if __name__ == "__main__":
    sys.exit(main())
