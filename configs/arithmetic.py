"""Synthetic sums, a decoder of 134,000 weights: the whole method in minutes.

  python experiments/run.py --config=configs/arithmetic.py:to_go

The variant is `sft` (the warm start alone) or a method of docs/method.md:
`paper` (default), `to_go`, `grpo`, `dapo` and others, or a control such as
`length_penalty` or `shuffled`. Methods begin with the warm start. To skip it,
set `--config.init_from=FOLDER` to a finished run or a checkpoint, and
`--config.warm_start.num_steps=0`. `docs/demo.md` has the numbers to expect. Two
CPU cores take two to three minutes for the warm start and one minute for each
method.

The learning rate of `grpo` is the best of `DEMO.grpo_rates` by validation
accuracy at seed 0 (`experiments/demo.py --tune_grpo` trains all three). Every
other method uses 4e-4, untuned. Settings that a method does not change are
those of the paper's loss (token mean, clip 0.2 / 0.28).
"""

import ml_collections

from iapo_jax.config import presets
from iapo_jax.config.demos import Demo

DEMO = Demo(
    title="The demo: one warm start, then reinforcement learning",
    methods=("grpo", "paper", "to_go"),
    minutes=(3.0, 2.0),
    timed_problems=1024,
    grpo_rates=(1e-4, 2e-4, 4e-4),
    small={
        "warm_start.num_steps": 4,
        "num_steps": 2,
        "data.arithmetic.operands": 3,
        "data.arithmetic.train_problems": 64,
        "data.arithmetic.test_problems": 64,
        "rollout.max_tokens": 56,
        "evaluation.problems": 64,
        "evaluation.batch_size": 64,
        "model.d_model": 32,
        "model.mlp_dim": 64,
    },
)


def get_config(variant: str | None = None) -> ml_collections.ConfigDict:
  """Returns a variant of `sums` for this task."""
  return presets.read("sums")["get_config"](variant, task="arithmetic")
