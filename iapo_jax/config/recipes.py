"""What configurations share: of synthetic sums, and of mathematics."""

import dataclasses
from collections.abc import Mapping

import ml_collections

from iapo_jax.config import methods
from iapo_jax.config import parsing as config_lib
from iapo_jax.core.errors import ConfigError

DATA = ("gsm8k", "math500", "dapo")
SUMS = ("sft", *methods.NAMES)


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


def sums(
    variant: str | None, *, max_tokens: int = 72, **sums: float
) -> ml_collections.ConfigDict:
  """Training on synthetic sums.

  Args:
    variant: `sft` (the warm start alone), or a method of `methods.NAMES`, after
      it; `paper` by default.
    max_tokens: the longest completion.
    **sums: fields of `config.data.arithmetic`.

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
  config.rollout.max_tokens = max_tokens
  config.data.arithmetic.update(sums)
  config.optimizer.update(
      {"learning_rate": 4e-4, "warmup_steps": 10, "decay": True}
  )
  config.warm_start.num_steps = 900
  config.warm_start.optimizer.update({"warmup_steps": 50, "decay": True})
  config.evaluation.update({"problems": 512, "batch_size": 512})
  config.checkpoint.every = 100
  if variant == "sft":
    config.num_steps = 0
    return config
  methods.choose(config, variant)
  if variant == "grpo":
    config.optimizer.learning_rate = 2e-4
  if variant == "s_grpo":  # its lengths are of completions of 300 tokens
    config.select.first_tokens = max_tokens // 3
    config.select.short_tokens = max_tokens * 3 // 4
  return config


def mathematics(
    variant: str | None, sizes: Mapping[str, Size]
) -> ml_collections.ConfigDict:
  """The paper's training on mathematics.

  Args:
    variant: any of a size, a data set and a method, joined by `-`; the
      first size, `gsm8k` and `paper` where they are left out.
    sizes: by name, the default first.

  Returns:
    The configuration.

  Raises:
    ConfigError: for an unknown part, or two of a kind.
  """
  size, data, method = _parts(variant, (tuple(sizes), DATA, methods.NAMES))
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
  methods.choose(config, method)
  if method in ("paper", "faithful"):
    info, explore = sizes[size].weights.get(data, (1.0, 1.0))
    config.credit.update({"info_weight": info, "explore_weight": explore})
  if method == "chance":
    config.probe.answer_tokens = 8  # a first digit is no answer
    # A chain adds at most 1 to that chance: the longest costs about as much.
    config.credit.cost = 5e-4
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
