"""Synthetic sums, a decoder of 134,000 weights: the whole method in minutes.

  python experiments/run.py --config=configs/arithmetic.py:to_go

The variant is `sft` (the warm start alone) or a method of docs/method.md:
`paper` (default), `to_go`, `grpo`, `dapo` and others, or a control such as
`length_penalty` or `shuffled`. Methods begin with the warm start. To skip it,
set `--config.init_from=FOLDER` to a finished run or a checkpoint, and
`--config.warm_start.num_steps=0`. `docs/demo.md` has the numbers to expect. Two
CPU cores take two to three minutes for the warm start and one minute for each
method.

The learning rate of `grpo` is the best of `GRPO_LEARNING_RATES` by validation
accuracy at seed 0 (`experiments/demo.py --tune_grpo` trains all three). Every
other method uses 4e-4, untuned. Settings that a method does not change are
those of the paper's loss (token mean, clip 0.2 / 0.28).
"""

import ml_collections

from iapo_jax.config import presets

GRPO_LEARNING_RATES = (1e-4, 2e-4, 4e-4)


def get_config(variant: str | None = None) -> ml_collections.ConfigDict:
  """Returns a variant of `sums` for this task."""
  return presets.read("sums")["get_config"](variant, task="arithmetic")
