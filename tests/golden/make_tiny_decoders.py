"""Makes tiny_decoders.npz: random llama, mistral and qwen2 models and their log-probs, by transformers on torch.

    pip install torch==2.13.0 transformers==5.23.0
    python tests/golden/make_tiny_decoders.py

Each case stores config.json as transformers 5 writes it, every tensor under its Hugging Face name, token ids and the
log-softmax of all positions. Norm scales and biases are randomised (freshly initialised ones, 1 and 0, hide
mistakes), and kernels are large enough for attention to be far from uniform.
"""

import json
import pathlib
import tempfile

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

COMMON = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
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
    "original_max_position_embeddings": 16,
}
CASES = {
    "llama": {"model_type": "llama", "head_dim": 8, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "llama3": {"model_type": "llama", "rope_parameters": LLAMA3, "tie_word_embeddings": True, "rms_norm_eps": 1e-5},
    "mistral": {"model_type": "mistral", "sliding_window": None, "head_dim": 6},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True, "use_sliding_window": False},
}


def main() -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, COMMON["vocab_size"], (1, 40))
    arrays = {"ids": ids[0].numpy().astype(np.int32), "cases": np.array(list(CASES))}
    for name, changes in CASES.items():
        config = AutoConfig.for_model(**(COMMON | changes))
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            for key, value in model.named_parameters():
                spread = 0.3 if value.ndim == 1 else 1.5 * value.shape[-1] ** -0.5
                value.copy_(spread * torch.randn(value.shape) + (1.0 if "norm" in key else 0.0))
            arrays[f"{name}/logp"] = torch.log_softmax(model(ids).logits[0].double(), -1).float().numpy()
        with tempfile.TemporaryDirectory() as folder:
            model.config.save_pretrained(folder)
            config_text = (pathlib.Path(folder) / "config.json").read_text()
        arrays[f"{name}/config"] = np.array(json.dumps(json.loads(config_text)))
        tied = config.tie_word_embeddings
        for key, value in model.state_dict().items():
            if not (tied and key == "lm_head.weight"):
                arrays[f"{name}/tensor/{key}"] = value.numpy()
    np.savez_compressed(pathlib.Path(__file__).with_name("tiny_decoders.npz"), **arrays)


if __name__ == "__main__":
    main()
