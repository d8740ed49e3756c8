"""Synthetic sums, a decoder of 134,000 weights: the whole method in minutes.

  python experiments/run.py --config=configs/arithmetic.py:to_go

Variants: `sft` (the warm start alone), and the methods of docs/method.md after
it: `paper` (default), `to_go`, `grpo`, `dapo` and the rest, and the controls
`length_penalty`, `shuffled` and others. They begin with the warm start unless
`--config.init_from=FOLDER` names a finished run or a checkpoint and
`--config.warm_start.num_steps=0` leaves it out. `docs/demo.md` has the numbers
to expect. Two CPU cores take two to three minutes for the warm start and one
for each method.

The learning rate of `grpo` is the best of `GRPO_LEARNING_RATES` by validation
accuracy at seed 0 (`experiments/demo.py --tune_grpo` trains all three); every
other method has 4e-4, untuned. What does not belong to a method is the loss of
the paper (token mean, clip 0.2 / 0.28).
"""

import ml_collections

from iapo_jax.config import presets

GRPO_LEARNING_RATES = (1e-4, 2e-4, 4e-4)


def get_config(variant: str | None = None) -> ml_collections.ConfigDict:
  """A variant of `sums` of this task."""
  return presets.read("sums")["get_config"](variant, task="arithmetic")
