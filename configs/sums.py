"""Synthetic sums: plain, of mixed difficulty, or with slips.

  iapo train --config=sums:mixed-to_go

A variant joins these words by `-`, in any order; each may be left out: a task
(`arithmetic`, default; `mixed`; `slips`), and `sft` (the warm start alone) or a
method of docs/method.md (`paper`, default). `arithmetic`, `mixed` and `slips`
are single tasks; their files describe them.
"""

import ml_collections

from iapo_jax.config import methods, parsing, presets

VARIANTS = ("paper", "sft", *(x for x in methods.NAMES if x != "paper"))
# For each task: fields of data.arithmetic, and rollout.max_tokens.
TASKS = {
    "arithmetic": ({}, 72),
    "mixed": (
        {
            "min_operands": 3,
            "operands": 7,
            "max_operand": 9,
            "max_total": 18,
            "validation_problems": 400,
            "test_problems": 1500,
        },
        132,
    ),
    "slips": (
        {
            "slip_rate": 0.15,
            "check_rate": 0.35,
            "slip_check_rate": 0.65,
            "test_problems": 1536,
        },
        84,
    ),
}


def get_config(
    variant: str | None = None, task: str | None = None
) -> ml_collections.ConfigDict:
  """Returns the configuration of a variant, which omits a given `task`."""
  if task is None:
    task, method = presets.parts(variant, (TASKS, VARIANTS))
  else:
    (method,) = presets.parts(variant, (VARIANTS,))
  fields, max_tokens = TASKS[task]
  config = parsing.default()
  config.prompts_per_step = 16
  config.num_steps = 100
  config.rollout.max_tokens = max_tokens
  config.data.arithmetic.update(fields)
  config.optimizer.update(
      {"learning_rate": 4e-4, "warmup_steps": 10, "decay": True}
  )
  config.warm_start.num_steps = 900
  config.warm_start.optimizer.update({"warmup_steps": 50, "decay": True})
  config.evaluation.update({"problems": 512, "batch_size": 512})
  config.checkpoint.every = 100
  if task != "arithmetic":
    config.warm_start.num_steps = 2600
  if task == "mixed":
    config.data.max_prompt_tokens = 21
    config.evaluation.update({"problems": 400, "batch_size": 500})
  if task == "slips":
    config.model.num_layers = 4
  _set_method(config, method)
  return config


def _set_method(config: ml_collections.ConfigDict, method: str) -> None:
  if method == "sft":
    config.num_steps = 0
    return
  methods.choose(config, method)
  if method == "grpo":
    config.optimizer.learning_rate = 2e-4
  if method == "s_grpo":  # its defaults are for completions of 300 tokens
    tokens = config.rollout.max_tokens
    config.select.first_tokens = tokens // 3
    config.select.short_tokens = tokens * 3 // 4
