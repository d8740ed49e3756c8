"""Synthetic sums, a decoder of 134,000 weights: the whole method in minutes.

  python experiments/run.py --config=configs/arithmetic.py:to_go

Variants: `sft` (the warm start alone), and reinforcement learning with `grpo`,
`paper` (default), `to_go`, `faithful` or `length_penalty` credit, and
`shuffled` (`to_go` with each sequence's information permuted: the control).
The RL variants begin with the warm start unless `--config.init_from=FOLDER`
names a finished run or a checkpoint and `--config.warm_start.num_steps=0`
leaves it out. `docs/demo.md` has the numbers to expect. Two CPU cores take two
to three minutes for the warm start and one for each method.

The learning rate of `grpo` is the best of `GRPO_LEARNING_RATES` by validation
accuracy at seed 0 (`experiments/demo.py --tune_grpo` trains all three); every
other method has 4e-4, untuned. All methods share the
loss of the paper (token mean, clip 0.2 / 0.28) and differ in the credit alone.
"""

import ml_collections

from iapo_jax import config as config_lib
from iapo_jax.errors import ConfigError

VARIANTS = (
    "sft", "grpo", "paper", "to_go", "faithful", "length_penalty", "shuffled",
)  # fmt: skip


GRPO_LEARNING_RATES = (1e-4, 2e-4, 4e-4)


def get_config(variant: str | None = None) -> ml_collections.ConfigDict:
  """The configuration of a variant.

  Args:
    variant: one of `VARIANTS`; `paper` by default.

  Returns:
    The configuration.

  Raises:
    ConfigError: for an unknown variant.
  """
  variant = variant or "paper"
  if variant not in VARIANTS:
    raise ConfigError(
        f"variant {variant!r}: must be one of {', '.join(VARIANTS)}"
    )
  config = config_lib.default()
  config.prompts_per_step = 16
  config.num_steps = 100
  config.optimizer.update(
      {"learning_rate": 4e-4, "warmup_steps": 10, "decay": True}
  )
  config.warm_start.num_steps = 900
  config.warm_start.optimizer.update({"warmup_steps": 50, "decay": True})
  config.evaluation.update({"problems": 512, "batch_size": 512})
  config.checkpoint.every = 100
  if variant == "sft":
    config.num_steps = 0
  elif variant in ("to_go", "shuffled"):
    config.credit.mode = "to_go"
    config.credit.info_weight = 2.0
    config.credit.explore_weight = 0.0
    config.credit.shuffle = variant == "shuffled"
  else:
    config.credit.mode = variant
  if variant == "grpo":
    config.optimizer.learning_rate = 2e-4
  return config
