"""What configurations share: of synthetic sums, and of mathematics."""

import dataclasses
from collections.abc import Mapping

import ml_collections

from iapo_jax import config as config_lib
from iapo_jax.errors import ConfigError

DATA = ("gsm8k", "math500", "dapo")
CREDIT = ("paper", "to_go", "grpo", "faithful", "length_penalty")
SUMS = (
    "sft", "grpo", "paper", "to_go", "faithful", "length_penalty", "shuffled",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Size:
  """A pretrained model and how its batch is laid out.

  Attributes:
    pretrained: on the hub.
    weights: (w_info, w_explore) of the paper's credit, by data set; (1, 1)
      where nobody has searched for them.
    prompts_per_step: q.
    micro_batches: parts of a batch of full completions.
    sharded: whether weights and moments are spread over all devices.
  """

  pretrained: str
  weights: Mapping[str, tuple[float, float]]
  prompts_per_step: int = 12
  micro_batches: int = 3
  sharded: bool = False


def sums(variant: str | None) -> ml_collections.ConfigDict:
  """Training on synthetic sums, of which a configuration changes the sums.

  All variants share the loss of the paper (token mean, clip 0.2 / 0.28) and
  differ in the credit alone, `grpo` in its learning rate too.

  Args:
    variant: `sft` (the warm start alone), or reinforcement learning after it
      with the credit of that name, or `shuffled` (`to_go` with each sequence's
      information permuted: the control); `paper` by default.

  Returns:
    The configuration.

  Raises:
    ConfigError: for an unknown variant.
  """
  variant = variant or "paper"
  if variant not in SUMS:
    raise ConfigError(f"variant {variant!r}: must be one of {', '.join(SUMS)}")
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


def mathematics(
    variant: str | None, sizes: Mapping[str, Size]
) -> ml_collections.ConfigDict:
  """The paper's training on mathematics.

  Args:
    variant: any of a size, a data set and a credit mode, joined by `-`; the
      first size, `gsm8k` and `paper` where they are left out.
    sizes: by name, the default first.

  Returns:
    The configuration.

  Raises:
    ConfigError: for an unknown part, or two of a kind.
  """
  size, data, credit = _parts(variant, (tuple(sizes), DATA, CREDIT))
  config = config_lib.default()
  config.seed = 42
  _set_model(config, sizes[size])
  config.group_size = 8
  config.rollout.max_tokens = 2048
  config.reward.grader = "host"
  config.loss.head_chunk = 64
  config.optimizer.update({"learning_rate": 1e-6, "clip_norm": 1.0})
  config.evaluation.update({
      "every": 50,
      "problems": 50,
      "samples": 32,
      "batch_size": 256,
      "checkpoint": "best",
  })
  _set_data(config, data)
  _set_credit(config, credit, sizes[size].weights.get(data, (1.0, 1.0)))
  return config


def _parts(
    variant: str | None, kinds: tuple[tuple[str, ...], ...]
) -> list[str]:
  """One of each kind: those that a variant names, else the first."""
  chosen: list[str | None] = [None] * len(kinds)
  for part in variant.split("-") if variant else ():
    kind = next((i for i, names in enumerate(kinds) if part in names), None)
    if kind is None or chosen[kind] is not None:
      rule = "; ".join(", ".join(names) for names in kinds)
      raise ConfigError(
          f"variant {variant!r}: {part!r} must be one of each of: {rule}"
      )
    chosen[kind] = part
  return [
      part or names[0] for part, names in zip(chosen, kinds, strict=True)
  ]


def _set_model(config: ml_collections.ConfigDict, size: Size) -> None:
  config.model.update({
      "pretrained": size.pretrained, "dtype": "bfloat16", "remat": True,
  })  # fmt: skip
  config.prompts_per_step = size.prompts_per_step
  config.loss.micro_batches = size.micro_batches
  if size.sharded:
    config.mesh.update({"data": 1, "fsdp": -1})


def _set_data(config: ml_collections.ConfigDict, data: str) -> None:
  config.data.update({
      "task": "dapo_math" if data == "dapo" else data,
      "prompt": "think_answer",
      "chat_template": True,
      "max_prompt_tokens": 512,
      "max_gold_tokens": 64,
      "validation_problems": 50,
      "split": "published" if data == "gsm8k" else "80_20",
  })
  # One pass over the train problems; over the 350 of MATH-500 four.
  drawn = {"gsm8k": 7423, "math500": 4 * 350, "dapo": 5550}[data]
  config.num_steps = drawn // config.prompts_per_step
  if data == "math500":
    config.evaluation.every = 20  # more than the five of which one is chosen
    # Its longest prompts have over 900 tokens, and are problems like others.
    config.data.max_prompt_tokens = 1024
    config.probe.elicitation = "</think>\n<answer>\\boxed{"
  if data == "dapo":
    config.data.update({"first_rows": 7000, "overlong": "skip"})


def _set_credit(
    config: ml_collections.ConfigDict,
    credit: str,
    weights: tuple[float, float],
) -> None:
  config.credit.mode = credit
  if credit == "to_go":
    config.credit.update({"info_weight": 2.0, "explore_weight": 0.0})
  elif credit in ("paper", "faithful"):
    info, explore = weights
    config.credit.update({"info_weight": info, "explore_weight": explore})
