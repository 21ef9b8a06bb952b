"""S-SPPO on Llama-3-8B-Instruct, for 8 devices or more. Not run here.

Source: arXiv 2606.01561, section 4.1 and appendix B; the optimizer and the length of the schedule
are reconstructions (the config says which). Published, after iteration 3: AlpacaEval 2 with GPT-4
as annotator, 40.95 length-controlled and 46.52 raw. The bounds are 3 points wide on each side.

    python -m ssppo_jax benchmark --name=alpaca_eval --model=RUN/policy --judge=ENDPOINT_MODEL
"""

from ssppo_jax.config import load_config


def get_config():
    return load_config("llama3_8b_s_sppo")


if __name__ == "__main__":
    from check import check

    check(
        get_config(),
        {"win_rate": (0.5, 1.0)},  # of PairRM, on held-out prompts; the paper gives no number
        {"length_controlled_winrate": (37.95, 43.95), "win_rate": (43.52, 49.52)},
    )
