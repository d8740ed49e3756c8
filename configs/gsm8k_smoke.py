r"""The whole path of real text with a small random model, in minutes.

  python experiments/run.py --config=configs/gsm8k_smoke.py \
      --config.data.source_dir=FOLDER --config.data.tokenizer=FOLDER

GSM8K's text, the Qwen2 tokenizer and its some 151,650 tokens, worked solutions
as warm start, reinforcement learning with grading by meaning, validation,
checkpoints, test. Both flags may be left out where there is a network. Two CPU
cores take about four minutes. The decoder has 10 million weights,
nearly all of them in the embedding, and in so few steps it learns nothing worth
having: this shows that things work together, not that they work well. Of the
first 512 problems those are used whose prompt has at most 96 tokens, and of
their solutions those that fit into as many.
"""

import ml_collections

from iapo_jax.config import parsing


def get_config() -> ml_collections.ConfigDict:
  """The configuration."""
  config = parsing.default()
  config.model.update({"family": "qwen2", "qkv_bias": True})
  config.data.update({
      "task": "gsm8k",
      "tokenizer": "Qwen/Qwen2.5-0.5B-Instruct",
      "first_rows": 512,
      "validation_problems": 16,
      "test_problems": 32,
      "max_prompt_tokens": 96,
      "max_gold_tokens": 16,
      "overlong": "skip",
  })
  config.prompts_per_step = 4
  config.group_size = 4
  config.num_steps = 4
  config.rollout.max_tokens = 96
  config.reward.grader = "host"
  config.loss.head_chunk = 16
  config.optimizer.learning_rate = 1e-4
  config.warm_start.update({"num_steps": 24, "batch_size": 8})
  config.evaluation.update({"every": 2, "problems": 16, "batch_size": 16})
  config.checkpoint.every = 10
  return config
