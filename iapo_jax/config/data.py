"""The fields of `data`, and the rules between them."""

import dataclasses
import datetime
import json
from typing import Any

from iapo_jax.config import gym
from iapo_jax.config.fields import at_least, between, field, one_of
from iapo_jax.config.gym import GymConfig
from iapo_jax.core.errors import fail

PUBLISHED = (
    "gsm8k", "math500", "dapo_math", "commonsense_qa", "aime24", "aime25",
)  # fmt: skip
READ = (*PUBLISHED, "own")  # from files; the others are generated


@dataclasses.dataclass(frozen=True)
class ArithmeticConfig:
  """The synthetic task."""

  operands: int = field(4, "most numbers in a problem", at_least(2))
  min_operands: int = field(
      0,
      "fewest numbers in a problem; 0 gives every problem `operands` numbers;"
      " otherwise the count is the problem's level, and evaluations report by"
      " level",
  )
  max_operand: int = field(7, "largest number; the smallest is 1", at_least(1))
  max_total: int = field(
      15, "largest running total; the smallest is 0", at_least(1)
  )
  redundancy: float = field(
      0.8,
      "share of the warm start's solutions that contain redundant steps",
      between(0, 1),
  )
  slip_rate: float = field(
      0.0,
      "probability that another number replaces the result of a step, in"
      " rollouts and in the warm start's solutions",
      between(0, 1),
  )
  check_rate: float = field(
      0.0,
      "probability that a check follows a right result in a solution of the"
      " warm start; needs slip_rate",
      between(0, 1),
  )
  slip_check_rate: float = field(
      0.0,
      "probability that a check follows a replaced result in a solution of the"
      " warm start; needs slip_rate",
      between(0, 1),
  )
  train_problems: int = field(
      6000,
      "number of distinct train problems; none is in another split",
      at_least(1),
  )
  validation_problems: int = field(
      512,
      "number of distinct validation problems; none is in another split",
      at_least(1),
  )
  test_problems: int = field(
      2048,
      "number of distinct test problems; none is in another split",
      at_least(1),
  )


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """The task and how its text becomes arrays."""

  task: str = field(
      "arithmetic",
      "arithmetic or reasoning_gym (generated), a published data set, or own:"
      " your files, jsonl or parquet, with columns question, answer and"
      " optionally solution",
      one_of("arithmetic", "reasoning_gym", *READ),
      aliases=("dataset", "dataset_name", "train_files"),
  )
  source_dir: str = field(
      "",
      "folder with the data set's files; empty downloads a published data set"
      " once; task own needs a folder or tfds:NAME",
      aliases=("data_dir", "dataset_path"),
  )
  prepared_dir: str = field(
      "", "folder for prepared data sets; empty uses the default of TFDS",
      aliases=("cache_dir",),
  )  # fmt: skip
  split: str = field(
      "published",
      "published (the published train and test) or 80_20 (a data set with a"
      " single split, shuffled: 80 % train, 20 % test)",
      one_of("published", "80_20"),
  )
  split_seed: int = field(
      42, "seed that draws the 80_20 split and the validation problems",
      between(0, 2**32 - 1),
  )  # fmt: skip
  first_rows: int = field(
      0,
      "number of published train problems to use, the first ones; with split"
      " 80_20, of problems of the single split; 0 uses all",
      at_least(0),
      aliases=("train_max_samples", "max_train_samples"),
  )
  validation_problems: int = field(
      256, "train problems held out for validation", at_least(1)
  )
  test_problems: int = field(
      0, "number of test problems to use, the first ones; 0 uses all",
      at_least(0),
  )
  max_overlap: float = field(
      0.01,
      "largest share of the test problems that may also be train or validation"
      " problems (white space does not count); 1 allows any",
      between(0, 1),
  )
  prompt: str = field(
      "plain",
      "plain (the problem alone) or instructed (the problem with the format's"
      " instructions and perhaps its worked example); by default instructed"
      " unless format.preset is think_answer",
      one_of("plain", "instructed"),
  )
  instructions: str = field(
      "system",
      "message that holds the instructions: system, or user (the first user"
      " message) for chat templates without a system message; by default user"
      " unless format.preset is think_answer",
      one_of("system", "user"),
  )
  system: str = field(
      "",
      "text of a system message, before instructions there; empty adds none",
  )
  max_prompt_tokens: int = field(
      16, "p, the longest prompt, in tokens", at_least(1),
      aliases=("max_prompt_length", "prompt_length"),
  )  # fmt: skip
  max_gold_tokens: int = field(
      1, "a, the longest gold answer, in tokens", at_least(1)
  )
  chat_template: bool = field(
      False,
      "formats prompts with the tokenizer's chat template; by default true"
      " unless format.preset is think_answer",
      aliases=("apply_chat_template",),
  )
  chat_kwargs: str = field(
      "",
      "arguments of the chat template, a JSON object such as"
      ' {"enable_thinking": false}',
      aliases=("chat_template_kwargs", "apply_chat_template_kwargs"),
  )
  chat_date: str = field(
      "2026-01-01", "YYYY-MM-DD; chat templates print it as today's date"
  )
  tokenizer: str = field(
      "",
      "Hugging Face folder, GGUF file or hub name; empty uses the pretrained"
      " model's tokenizer, or for arithmetic without one a tokenizer of its"
      " words",
      aliases=("tokenizer_name", "tokenizer_path"),
  )
  overlong: str = field(
      "error",
      "for a prompt longer than max_prompt_tokens: error stops the run, skip"
      " drops and counts the prompt, truncate_left cuts its beginning and"
      " counts it; a worked solution longer than rollout.max_tokens is dropped"
      " with skip and otherwise an error (task arithmetic: always an error)",
      one_of("error", "skip", "truncate_left"),
      aliases=("truncation", "filter_overlong_prompts"),
  )
  arithmetic: ArithmeticConfig = ArithmeticConfig()
  gym: GymConfig = dataclasses.field(default_factory=GymConfig)


_GIVEN = ("messages", "tools", "add_generation_prompt")


def chat_arguments(d: DataConfig) -> dict[str, Any]:
  """Returns the arguments of the chat template that `data` gives.

  Raises `ConfigError` unless they are a JSON object of names that are free.
  """
  try:
    found = json.loads(d.chat_kwargs or "{}")
  except (ValueError, RecursionError):
    found = None
  if not isinstance(found, dict):
    rule = 'must be a JSON object such as {"enable_thinking": false}'
    fail("data.chat_kwargs", d.chat_kwargs, rule)
  for name in found:
    if name in _GIVEN:
      fail("data.chat_kwargs", d.chat_kwargs, f"{name} is already given")
  return found


def is_date(text: str) -> bool:
  """Returns whether a text is a date, YYYY-MM-DD."""
  try:
    return datetime.date.fromisoformat(text).isoformat() == text
  except ValueError:
    return False


def check(d: DataConfig) -> None:
  """Checks the rules between the fields of `data`."""
  if not is_date(d.chat_date):
    fail("data.chat_date", d.chat_date, "must be a date, YYYY-MM-DD")
  if d.task == "own" and not d.source_dir:
    rule = (
        "must be a folder with train.jsonl and test.jsonl, or tfds:NAME, with"
        " data.task own"
    )
    fail("data.source_dir", d.source_dir, rule)
  if d.overlong == "truncate_left" and (
      d.chat_template or d.prompt == "instructed"
  ):
    rule = (
        "must be error or skip with data.chat_template or data.prompt"
        " instructed, which need the beginning of a prompt"
    )
    fail("data.overlong", d.overlong, rule)
  chat_arguments(d)
  for name in ("chat_kwargs", "system"):
    if getattr(d, name) and not d.chat_template:
      fail(f"data.{name}", getattr(d, name), "needs data.chat_template true")
  sums = d.arithmetic
  if sums.min_operands and not 2 <= sums.min_operands <= sums.operands:
    rule = f"must be 0 or in [2, data.arithmetic.operands = {sums.operands}]"
    fail("data.arithmetic.min_operands", sums.min_operands, rule)
  for name in ("check_rate", "slip_check_rate"):
    if getattr(sums, name) and not sums.slip_rate:
      rule = (
          "needs data.arithmetic.slip_rate > 0: without slips checks repair"
          " nothing"
      )
      fail(f"data.arithmetic.{name}", getattr(sums, name), rule)
  gym.check(d.gym)
  default = type(d)()
  for name in _unused(d.task):
    if getattr(d, name) != getattr(default, name):
      rule = f"has no effect with data.task {d.task}; leave it out"
      fail(f"data.{name}", getattr(d, name), rule)


def _unused(task: str) -> list[str]:
  """Returns the fields of `data` that have no effect with a task."""
  files = [
      "source_dir", "prepared_dir", "split", "split_seed", "first_rows",
      "validation_problems", "max_overlap",
  ]  # fmt: skip
  if task == "arithmetic":
    return [*files, "prompt", "gym"]
  if task == "reasoning_gym":
    return [*files, "test_problems", "arithmetic"]
  return ["arithmetic", "gym"]
