"""Name the key that stands here for a key of TRL or verl."""

ELSEWHERE = {  # TRL's and verl's names of what stands under another key here
    "num_iterations": "train.epochs",
    "steps_per_generation": "train.prompts_per_iteration = per_device_train_batch_size x devices x"
    " steps_per_generation / num_generations (TRL counts micro-steps and completions; unset it is"
    " gradient_accumulation_steps, one optimizer step a rollout)",
    "max_staleness": "train.rollout_lag (0 or 1 iterations; sampling and training do not overlap)",
    "generation_batch_size": "train.prompts_per_iteration = generation_batch_size /"
    " num_generations (TRL counts completions)",
    "num_generations": "sampling.num_samples",
    "max_completion_length": "sampling.max_new_tokens",
    "max_new_tokens": "sampling.max_new_tokens",
    "max_prompt_length": "data.max_prompt_length",
    "chat_template": "data.template",
    "chat_template_path": "data.template",
    "temperature": "sampling.temperature",
    "scale_rewards": "advantage.scale_rewards (of advantage.name=grpo)",
    "r": "lora.rank",
    "lora_r": "lora.rank",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "target_modules": "lora.targets",
    "lora_target_modules": "lora.targets",
    "num_train_epochs": "train.iterations = num_train_epochs x prompts / prompts_per_iteration (it"
    " counts passes over the prompts; train.epochs are passes over one rollout)",
    "max_steps": "train.iterations = max_steps x batch_size / prompts_per_iteration / epochs",
    "gradient_accumulation_steps": "train.micro_batches",
    "per_device_train_batch_size": "train.batch_size = per_device_train_batch_size x devices x"
    " gradient_accumulation_steps / num_generations (TRL's GRPO counts completions of a micro-step"
    " on one device)",
    "warmup_steps": "optimizer.warmup_ratio = warmup_steps / all steps",
    "rpo_alpha": "loss.sft_weight",
    "init_from": "model.source = the folder of the run whose policy this one begins with",
    "sampler_tolerance": "train.sampler_bound, a factor on bounds that follow from the dtypes; 1 is"
    " usual, whatever the tolerance was",
    "metric_for_best_model": "train.select_by",
    "load_best_model_at_end": "train.select_by (the best policy is exported as policy_best/)",
    "early_stopping_patience": "train.patience",
    "report_to": "tracking.report_to",
    "run_name": "tracking.run_name",
    "project": "tracking.project",
    # verl's
    "train_batch_size": "train.prompts_per_iteration (verl counts the prompts of a rollout)",
    "ppo_mini_batch_size": "train.batch_size (prompts of an optimizer step)",
    "ppo_micro_batch_size_per_gpu": "train.micro_batches = ppo_mini_batch_size x n / devices /"
    " ppo_micro_batch_size_per_gpu (a number of parts; verl's is a number of responses)",
    "ppo_max_token_len_per_gpu": "train.max_token_len",
    "log_prob_max_token_len_per_gpu": "train.max_token_len (scoring and training have one)",
    "use_dynamic_bsz": "train.max_token_len (above 0)",
    "use_remove_padding": "train.padding_free",
    "logger": "tracking.report_to",
    "project_name": "tracking.project",
    "experiment_name": "tracking.run_name",
    "ppo_epochs": "train.epochs",
    "total_epochs": "train.iterations = total_epochs x prompts / train_batch_size (verl counts"
    " passes over the prompts)",
    "n": "sampling.num_samples",
    "attn_implementation": "model.attention",
    "learning_rate": "optimizer.learning_rate",
    "lr": "optimizer.learning_rate",
    "loss_type": "loss.name",
    "epsilon": "loss.epsilon",
    "epsilon_high": "loss.epsilon_high",
    "mask_truncated_completions": "group.mask_truncated_completions",
    "dynamic_sampling": "group.filter_groups",
    "reward_funcs": "oracle.name=python and its keyword function",
    "reward_weights": "oracle.name=python and its keyword weights",
    "kl_loss_coef": "loss.beta",
    "bf16_stochastic_round": "optimizer.rounding",
    "importance_sampling_cap": "train.importance_sampling_clip_max",
    "vllm_importance_sampling_correction": "train.importance_sampling_correction",
    "vllm_importance_sampling_mode": "train.importance_sampling_mode",
    "vllm_importance_sampling_clip_max": "train.importance_sampling_clip_max",
    "vllm_importance_sampling_cap": "train.importance_sampling_clip_max",
    "rollout_is": "train.importance_sampling_mode (token_truncate or sequence_truncate), with"
    " train.importance_sampling_correction=true",
    "rollout_is_threshold": "train.importance_sampling_clip_max",
}
