r"""Trains a small random model on real text in minutes, to test the parts.

  python experiments/run.py --config=configs/gsm8k_smoke.py \
      --config.data.source_dir=FOLDER --config.data.tokenizer=FOLDER

Runs every stage: a warm start on worked solutions of GSM8K, reinforcement
learning with answers graded by meaning, validation, checkpoints and the test.
The tokenizer is that of Qwen2, with about 151,650 tokens. With a network both
flags may be left out. Two CPU cores take about four minutes.

The decoder has 10 million weights, nearly all of them in the embedding, and
learns nothing useful in so few steps. The run shows that the parts work
together, not that they work well. It uses the problems among the first 512
whose prompt has at most 96 tokens, and worked solutions of at most 96 tokens.
"""

import ml_collections

from iapo_jax.config import parsing


def get_config() -> ml_collections.ConfigDict:
  """Returns the configuration."""
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
