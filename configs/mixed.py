"""Sums of three to seven numbers: problems that need little or much reasoning.

  python experiments/run.py --config=configs/mixed.py:to_go

Variants are those of `configs/arithmetic.py`.
"""

import ml_collections

from iapo_jax.config import recipes


def get_config(variant: str | None = None) -> ml_collections.ConfigDict:
  """The configuration of one of `recipes.SUMS`; `paper` by default."""
  config = recipes.sums(
      variant,
      max_tokens=132,
      min_operands=3,
      operands=7,
      max_operand=9,
      max_total=18,
      train_problems=6000,
      validation_problems=400,
      test_problems=1500,
  )
  config.data.max_prompt_tokens = 21
  config.warm_start.num_steps = 2600
  config.evaluation.update({"problems": 400, "batch_size": 500})
  return config
