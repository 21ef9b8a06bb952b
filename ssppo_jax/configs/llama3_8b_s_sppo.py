"""S-SPPO on Llama-3-8B-Instruct: the settings of the paper (arXiv 2606.01561, section 4.1, appendix
B), for 8 devices.

Written down from the paper; this file has not been run at its full size.

- The oracle is the paper's, PairRM-0.4B, on the same mesh; it has never been run here with its own
  weights, only held against llm-blender's model with random ones. Its input is the prompt's plain
  text; SPPO's scripts pass the chat-templated one (`oracle.source_template`).
- Ranking 5 responses reads 20 texts of up to 1542 tokens, both orders of each pair: 20 x 1542 x 2 x
  302M matrix entries and attention beside it, 25 TFLOP a prompt at most. `plan` counts 47 for
  sampling and 92 for the training step, what remat computes again included. Counted, not timed.
- The optimizer is not named in the paper: RMSProp, as in the SPPO scripts it builds on
  (reconstruction).
- "18 epochs" is the length of the learning rate schedule; the policy after epoch 1 goes on, as in
  SPPO (reconstruction: the 16 minutes of training the paper reports fit one epoch).
- Lengths are SPPO's, 1024 tokens of which 512 for the prompt. SPPO cuts longer prompts at the left;
  here they are dropped and listed.
- The number of held-out prompts is ours: the paper gives none.

The model is gated: accept its licence on Hugging Face and set HF_TOKEN. Prompts need `pip install
'ssppo_jax[hf]'`."""

from ssppo_jax.schema import base_config, select


def get_config():
    config = base_config()
    config.model.source = "meta-llama/Meta-Llama-3-8B-Instruct"
    config.model.dtype = "bfloat16"
    # bfloat16 parameters would need float32 ones beside them at a rate of 5e-7
    config.model.param_dtype = "float32"
    config.model.remat = "full"
    config.model.attention_chunk = 128
    config.mesh.data = 1
    config.mesh.fsdp = -1

    # 59,720 UltraFeedback prompts: the three disjoint parts of about 20,000 are these, shuffled and
    # cut anew. Set data.source.revision to a commit for a run that is to be repeated.
    splits = "train_iteration_1+train_iteration_2+train_iteration_3"
    repo = "snorkelai/Snorkel-Mistral-PairRM-DPO-Dataset"
    select(
        config,
        "data.source",
        "hf",
        repo_id=repo,
        split=splits,
        id_field="prompt_id",
        duplicates="keep_first",
    )
    config.data.heldout = 512
    config.data.max_prompt_length = 512
    config.data.prompt_buckets = (128, 256, 512)

    config.sampling.num_samples = 5
    config.sampling.temperature = 1.0
    config.sampling.top_p = 1.0
    config.sampling.max_new_tokens = 512
    # Each group of 4 devices holds all weights, so that no token gathers them.
    config.sampling.mesh.data = -1
    config.sampling.mesh.tensor = 4
    config.sampling.param_dtype = "bfloat16"
    config.sampling.batch_size = 0

    select(
        config, "oracle", "pairrm", source="llm-blender/PairRM-hf", dtype="bfloat16", batch_size=64
    )
    config.pairs.win_rate_estimator = "pairwise"
    config.pairs.include_self = True
    config.pairs.gate_level = "pair"
    select(config, "pairs.gate", "linear")
    config.similarity.encoder = "embedded:minilm"  # all-MiniLM-L6-v2
    config.similarity.name = "relu_cosine"
    config.similarity.embed_text = "response"

    select(
        config,
        "loss",
        "s_sppo",
        beta=1e-3,
        repulsion_weight=1.0,
        log_z_coef=0.5,
        pair_reduction="mean",
    )
    select(config, "optimizer", "rmsprop")
    config.optimizer.learning_rate = 5e-7
    config.optimizer.schedule = "linear"
    config.optimizer.warmup_ratio = 0.1
    config.optimizer.scope = "iteration"
    config.optimizer.schedule_epochs = 18.0

    config.train.iterations = 3
    config.train.prompts_per_iteration = 0  # disjoint thirds
    config.train.epochs = 1
    config.train.batch_size = 64
    config.train.reference = "iteration"
    config.eval.num_samples = 1
    config.eval.final_num_samples = 2
    config.checkpoint.every_steps = 100
    return config
