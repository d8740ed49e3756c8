"""Synthetic sums, a 0.1 M-parameter decoder: the whole method in minutes.

  python experiments/run.py --config=configs/arithmetic.py:to_go

Variants: `sft` (the warm start alone), and reinforcement learning with `grpo`,
`paper` (default), `to_go`, `faithful` or `length_penalty` credit, and
`shuffled` (`to_go` with each sequence's information permuted: the control).
The RL variants begin with the warm start unless `--config.init_from=FOLDER`
names a finished run. `docs/demo.md` has the numbers to expect.
"""

import ml_collections

from iapo_jax import config as config_lib

VARIANTS = (
    "sft", "grpo", "paper", "to_go", "faithful", "length_penalty", "shuffled",
)  # fmt: skip


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
    raise config_lib.ConfigError(
        f"variant {variant!r}: must be one of {', '.join(VARIANTS)}"
    )
  config = config_lib.default()
  config.warm_start.num_steps = 1200
  config.warm_start.optimizer.warmup_steps = 50
  config.warm_start.optimizer.decay = True
  if variant == "sft":
    config.num_steps = 0
  elif variant in ("to_go", "shuffled"):
    config.credit.mode = "to_go"
    config.credit.info_weight = 2.0
    config.credit.explore_weight = 0.0
    config.credit.shuffle = variant == "shuffled"
  else:
    config.credit.mode = variant
  return config
