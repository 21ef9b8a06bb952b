"""Makes decoders.npz: random models of every family, their logits and greedy answers, by
transformers on torch.

    pip install torch==2.13.0 transformers==5.23.0
    python tests/golden/make_decoders.py

Each case stores config.json as transformers 5 writes it and every tensor under its Hugging Face
name; of two rows, one of 600 tokens and one of 450 padded to 600, the logits of every fifth
position; and what greedy decoding adds to a prompt. Norm scales and biases are randomised (freshly
initialised ones, 1 and 0, hide mistakes), kernels are large enough for attention to be far from
uniform, and windows and RoPE scalings bind well within the 600 tokens."""

import json
import pathlib
import tempfile

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

LENGTHS, EVERY, PROMPT, NEW = (600, 450), 5, 40, 48
COMMON = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1000.0}
LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]
CASES = {
    "llama": {
        "model_type": "llama",
        "head_dim": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    },
    "llama3": {
        "model_type": "llama",
        "rope_parameters": LLAMA3,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-5,
    },
    "linear": {"model_type": "llama", "rope_parameters": LINEAR},
    "mistral": {"model_type": "mistral", "sliding_window": None, "head_dim": 6},
    "mistral_window": {"model_type": "mistral", "sliding_window": 24, "head_dim": 6},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True, "use_sliding_window": False},
    "qwen2_window": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 24,
        "max_window_layers": 1,
    },
    "qwen3": {"model_type": "qwen3", "head_dim": 10},
    "gemma2": {
        "model_type": "gemma2",
        "head_dim": 8,
        "query_pre_attn_scalar": 6,
        "sliding_window": 24,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 4.0,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "head_dim": 8,
        "query_pre_attn_scalar": 6,
        "sliding_window": 24,
        "layer_types": LAYERS,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": LINEAR,
        },
    },
}


def main() -> None:
    torch.manual_seed(0)
    ids = torch.randint(3, COMMON["vocab_size"], (len(LENGTHS), max(LENGTHS)))
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    arrays = {
        "ids": ids.numpy().astype(np.int32),
        "lengths": np.array(LENGTHS, np.int32),
        "cases": np.array(list(CASES)),
    }
    for name, changes in CASES.items():
        model = random_model(COMMON | changes)
        with torch.no_grad():
            logits = model(ids, attention_mask=mask).logits
            alone = model(ids[1:, : LENGTHS[1]]).logits
            assert (logits[1:, : LENGTHS[1]] - alone).abs().max() < 1e-4, (
                name
            )  # transformers agrees with itself
            prompt = ids[:, :PROMPT]
            answer = model.generate(
                prompt, do_sample=False, max_new_tokens=NEW, eos_token_id=None, pad_token_id=0
            )
        for row, length in enumerate(LENGTHS):
            arrays[f"{name}/logits_{row}"] = logits[row, :length:EVERY].float().numpy()
        arrays[f"{name}/greedy"] = answer[:, PROMPT:].numpy().astype(np.int32)
        arrays[f"{name}/config"] = np.array(saved_config(model))
        for key, value in model.state_dict().items():
            if not (model.config.tie_word_embeddings and key == "lm_head.weight"):
                arrays[f"{name}/tensor/{key}"] = value.numpy()
    np.savez_compressed(pathlib.Path(__file__).with_name("decoders.npz"), **arrays)


def random_model(settings: dict) -> torch.nn.Module:
    config = AutoConfig.for_model(**settings)
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    gemma = settings["model_type"].startswith("gemma")
    with torch.no_grad():
        for key, value in model.named_parameters():
            spread = 0.3 if value.ndim == 1 else 1.5 * value.shape[-1] ** -0.5
            value.copy_(
                spread * torch.randn(value.shape) + (1.0 if "norm" in key and not gemma else 0.0)
            )
    return model


def saved_config(model: torch.nn.Module) -> str:
    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        return json.dumps(json.loads((pathlib.Path(folder) / "config.json").read_text()))


if __name__ == "__main__":
    main()
