"""Makes reward_models.npz: random sequence classifiers with one label and their scores, by
transformers on torch.

    pip install torch==2.13.0 transformers==5.23.0
    python tests/golden/make_reward_models.py

Each case stores config.json, every tensor under its Hugging Face name, and the scores of two rows
of 600 tokens and one of 450 padded to 600 (transformers looks for the last token that is not the
pad token)."""

import json
import pathlib
import tempfile

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

LENGTHS = (600, 600, 450)
COMMON = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 1024,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "num_labels": 1,
}
CASES = {
    "llama": {"model_type": "llama"},
    "mistral": {"model_type": "mistral", "sliding_window": 24},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3"},
    "gemma2": {
        "model_type": "gemma2",
        "query_pre_attn_scalar": 6,
        "sliding_window": 24,
        "attn_logit_softcapping": 3.0,
    },
}


def main() -> None:
    torch.manual_seed(0)
    ids = torch.randint(3, COMMON["vocab_size"], (len(LENGTHS), max(LENGTHS)))
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    ids = ids * mask
    arrays = {"ids": ids.numpy().astype(np.int32), "lengths": np.array(LENGTHS, np.int32)}
    arrays["cases"] = np.array(list(CASES))
    for name, changes in CASES.items():
        config = AutoConfig.for_model(**(COMMON | changes))
        model = (
            AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
            .float()
            .eval()
        )
        gemma = changes["model_type"].startswith("gemma")
        with torch.no_grad():
            for key, value in model.named_parameters():
                spread = 0.3 if value.ndim == 1 else 1.5 * value.shape[-1] ** -0.5
                value.copy_(
                    spread * torch.randn(value.shape)
                    + (1.0 if "norm" in key and not gemma else 0.0)
                )
            arrays[f"{name}/scores"] = model(ids, attention_mask=mask).logits[:, 0].numpy()
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            arrays[f"{name}/config"] = np.array(
                json.dumps(json.loads((pathlib.Path(folder) / "config.json").read_text()))
            )
        arrays |= {
            f"{name}/tensor/{key}": value.numpy() for key, value in model.state_dict().items()
        }
    np.savez_compressed(pathlib.Path(__file__).with_name("reward_models.npz"), **arrays)


if __name__ == "__main__":
    main()
