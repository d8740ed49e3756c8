"""Sums of two to seven numbers: problems that need little or much reasoning.

  python experiments/run.py --config=configs/mixed.py:to_go

Variants are those of `configs/arithmetic.py`.
"""

import ml_collections

from iapo_jax import recipes


def get_config(variant: str | None = None) -> ml_collections.ConfigDict:
  """The configuration of one of `recipes.SUMS`; `paper` by default."""
  config = recipes.sums(
      variant,
      max_tokens=132,
      min_operands=2,
      operands=7,
      max_operand=20,
      max_total=20,
      train_problems=6000,
      validation_problems=384,
      test_problems=1536,
  )
  config.data.max_prompt_tokens = 21
  config.evaluation.update({"problems": 384, "batch_size": 384})
  return config
