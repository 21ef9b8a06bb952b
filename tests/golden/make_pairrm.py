"""Makes pairrm.npz: a random PairRM and its logits, by llm-blender's own model on torch.

    pip install torch==2.13.0 transformers==5.23.0
    pip install --no-deps llm-blender==0.0.2
    python tests/golden/make_pairrm.py

Two rows of 600 tokens and one of 350 padded to 600 (so that distances reach into the logarithmic
buckets and beyond their end), with the marker tokens at places of their own. Stored: config.json,
every tensor, ids, logits."""

import importlib.metadata
import importlib.util
import json
import pathlib

import numpy as np
import torch
from transformers import DebertaV2Config

LENGTHS = (600, 600, 350)
MARKERS = (60, 61, 62)
SETTINGS = {
    "vocab_size": 64,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 96,
    "type_vocab_size": 0,
    "layer_norm_eps": 1e-7,
    "relative_attention": True,
    "position_buckets": 32,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
    "n_tasks": 2,
    "drop_out": 0.05,
    "sep_token_id": 2,
    "source_prefix_id": MARKERS[0],
    "cand_prefix_id": 63,
    "cand1_prefix_id": MARKERS[1],
    "cand2_prefix_id": MARKERS[2],
}


def main() -> None:
    torch.manual_seed(0)
    model = pairrm_class()(DebertaV2Config(**SETTINGS)).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            scale = 20.0 if "head_layer.4" in name else 2.0
            spread = 0.3 if value.ndim == 1 else scale * value.shape[-1] ** -0.5
            value.copy_(
                spread * torch.randn(value.shape) + (1.0 if "LayerNorm.weight" in name else 0.0)
            )
    ids = torch.randint(3, 60, (len(LENGTHS), max(LENGTHS)))
    for row, length in enumerate(LENGTHS):
        for marker, place in zip(
            MARKERS, (1 + row, length // 3, 2 * length // 3 + row), strict=True
        ):
            ids[row, place] = marker
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, return_dict=True).logits
    settings = SETTINGS | {
        "model_type": "deberta-v2",
        "architectures": ["DebertaV2PairRM"],
        "hidden_act": "gelu",
    }
    arrays = {
        "ids": ids.numpy().astype(np.int32),
        "lengths": np.array(LENGTHS, np.int32),
        "logits": logits.numpy(),
    }
    arrays |= {"config": np.array(json.dumps(settings))}
    arrays |= {f"tensor/{name}": value.numpy() for name, value in model.state_dict().items()}
    np.savez_compressed(pathlib.Path(__file__).with_name("pairrm.npz"), **arrays)


def pairrm_class() -> type:
    """llm-blender's class alone: its package imports what no longer exists in transformers 5."""
    file = importlib.metadata.distribution("llm-blender").locate_file(
        "llm_blender/pair_ranker/pairrm.py"
    )
    spec = importlib.util.spec_from_file_location("pairrm", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.DebertaV2PairRM


if __name__ == "__main__":
    main()
