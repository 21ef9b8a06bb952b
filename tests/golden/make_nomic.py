"""Makes nomic.npz: a random Nomic BERT, its file as transformers writes it, and its token vectors,
on torch.

    pip install torch==2.13.0 transformers==5.23.0
    python tests/golden/make_nomic.py

It stores config.json, every tensor under the name it has in the file (transformers writes the
published names, with queries, keys and values in one tensor), token ids of 600, 600 and 450 tokens,
and the mean of each row's vectors."""

import json
import pathlib
import tempfile

import numpy as np
import torch
from safetensors.numpy import load_file
from transformers import NomicBertConfig, NomicBertModel

LENGTHS = (600, 600, 450)


def main() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3}
    config = NomicBertConfig(
        **sizes, intermediate_size=40, max_position_embeddings=640, attn_implementation="eager"
    )
    model = NomicBertModel(config).float().eval()
    ids = torch.randint(3, sizes["vocab_size"], (len(LENGTHS), max(LENGTHS)))
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    with torch.no_grad():
        for key, value in model.named_parameters():
            spread = 0.3 if value.ndim == 1 else 1.5 * value.shape[-1] ** -0.5
            value.copy_(
                spread * torch.randn(value.shape) + (1.0 if "norm.weight" in key.lower() else 0.0)
            )
        out = model(ids * mask, attention_mask=mask).last_hidden_state
    mean = (out * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    arrays = {"ids": (ids * mask).numpy().astype(np.int32), "lengths": np.array(LENGTHS, np.int32)}
    arrays["mean"] = mean.numpy()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        arrays["config"] = np.array(
            json.dumps(json.loads((pathlib.Path(folder) / "config.json").read_text()))
        )
        tensors = load_file(pathlib.Path(folder) / "model.safetensors")
    arrays |= {f"tensor/{name}": value for name, value in tensors.items()}
    file = pathlib.Path(__file__).with_name("nomic.npz")
    np.savez_compressed(file, **arrays)
    print(file.name, file.stat().st_size, "bytes", sorted(tensors)[:16], arrays["config"])


if __name__ == "__main__":
    main()
