"""Fields of a run's data, and the rules that they must obey by themselves."""

import dataclasses
import datetime

from iapo_jax.config.fields import at_least, between, field, one_of
from iapo_jax.core.errors import fail

PUBLISHED = (
    "gsm8k", "math500", "dapo_math", "commonsense_qa", "aime24", "aime25",
)  # fmt: skip
READ = (*PUBLISHED, "own")  # from files; the other one is made


@dataclasses.dataclass(frozen=True)
class ArithmeticConfig:
  """The synthetic task."""

  operands: int = field(4, "numbers in each problem, at most", at_least(2))
  min_operands: int = field(
      0,
      "fewest numbers in a problem; 0 gives all `operands`, otherwise the count"
      " is a problem's level and evaluations report by level",
  )
  max_operand: int = field(7, "numbers lie in 1 .. this", at_least(1))
  max_total: int = field(
      15, "every running total lies in 0 .. this", at_least(1)
  )
  redundancy: float = field(
      0.8, "share of the warm-start chains with redundant steps", between(0, 1)
  )
  slip_rate: float = field(
      0.0,
      "probability that another number replaces the result of a step, in"
      " rollouts and in the warm-start chains",
      between(0, 1),
  )
  check_rate: float = field(
      0.0,
      "probability that a check follows a right result of a warm-start chain;"
      " only with slip_rate",
      between(0, 1),
  )
  slip_check_rate: float = field(
      0.0, "the same after a result that slipped", between(0, 1)
  )
  train_problems: int = field(
      6000, "distinct, shared with no other split", at_least(1)
  )
  validation_problems: int = field(
      512, "distinct, shared with no other split", at_least(1)
  )
  test_problems: int = field(
      2048, "distinct, shared with no other split", at_least(1)
  )


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """The task and how its text becomes arrays."""

  task: str = field(
      "arithmetic",
      "arithmetic (made), a published data set, or own: rows of question,"
      " answer and perhaps solution, jsonl or parquet",
      one_of("arithmetic", *READ),
      aliases=("dataset", "dataset_name", "train_files"),
  )
  source_dir: str = field(
      "",
      "folder with the data set's files; empty fetches a published one once;"
      " own needs it, or tfds:NAME",
      aliases=("data_dir", "dataset_path"),
  )
  prepared_dir: str = field(
      "", "folder that keeps prepared data sets; empty is TFDS's own place",
      aliases=("cache_dir",),
  )  # fmt: skip
  split: str = field(
      "published",
      "published (train and test as they are) or 80_20 (all problems of a data"
      " set with one split, shuffled: 80 % train, 20 % test)",
      one_of("published", "80_20"),
  )
  split_seed: int = field(
      42, "seed of that order, and of which problems validate",
      between(0, 2**32 - 1),
  )  # fmt: skip
  first_rows: int = field(
      0,
      "first published train problems that are used (without a train split:"
      " test problems); 0 is all",
      at_least(0),
      aliases=("train_max_samples", "max_train_samples"),
  )
  validation_problems: int = field(256, "held out from train", at_least(1))
  test_problems: int = field(
      0, "first test problems that judge a run; 0 is all", at_least(0)
  )
  prompt: str = field(
      "plain",
      "plain (the problem alone) or think_answer (instructions, a worked"
      " example, the problem)",
      one_of("plain", "think_answer"),
  )
  instructions: str = field(
      "system",
      "message that holds the instructions: system, or the first user message,"
      " for templates without a system",
      one_of("system", "user"),
  )
  max_prompt_tokens: int = field(
      16, "p, the longest prompt, in tokens", at_least(1),
      aliases=("max_prompt_length", "prompt_length"),
  )  # fmt: skip
  max_gold_tokens: int = field(
      1, "a, the longest gold answer, in tokens", at_least(1)
  )
  chat_template: bool = field(
      False, "prompts are messages that the tokenizer's chat template joins",
      aliases=("apply_chat_template",),
  )  # fmt: skip
  chat_date: str = field(
      "2026-01-01", "YYYY-MM-DD, the day that chat templates print as today"
  )
  tokenizer: str = field(
      "",
      "Hugging Face folder or hub name; empty is the pretrained model's, or the"
      " synthetic task's words",
      aliases=("tokenizer_name", "tokenizer_path"),
  )
  overlong: str = field(
      "error",
      "a prompt beyond max_prompt_tokens is an error, is skipped and counted,"
      " or loses its beginning and is counted; so is a worked solution beyond"
      " the longest completion, but that is never cut",
      one_of("error", "skip", "truncate_left"),
      aliases=("truncation", "filter_overlong_prompts"),
  )
  arithmetic: ArithmeticConfig = ArithmeticConfig()


def check(d: DataConfig) -> None:
  """Checks what the fields of data must obey together."""
  try:
    datetime.date.fromisoformat(d.chat_date)
  except ValueError:
    fail("data.chat_date", d.chat_date, "must be a date, YYYY-MM-DD")
  if d.task == "own" and not d.source_dir:
    rule = (
        "must be a folder with train.jsonl and test.jsonl, or tfds:NAME, for"
        " data.task own"
    )
    fail("data.source_dir", d.source_dir, rule)
  if d.overlong == "truncate_left" and (
      d.chat_template or d.prompt == "think_answer"
  ):
    rule = "goes not with a prompt whose beginning is needed"
    fail("data.overlong", d.overlong, rule)
  if d.prompt == "plain" and d.instructions != "system":
    fail("data.instructions", d.instructions, "needs data.prompt think_answer")
  sums = d.arithmetic
  if sums.min_operands and not 2 <= sums.min_operands <= sums.operands:
    rule = f"must be 0 or in [2, data.arithmetic.operands = {sums.operands}]"
    fail("data.arithmetic.min_operands", sums.min_operands, rule)
  for name in ("check_rate", "slip_check_rate"):
    if getattr(sums, name) and not sums.slip_rate:
      rule = "needs data.arithmetic.slip_rate (there is nothing to repair)"
      fail(f"data.arithmetic.{name}", getattr(sums, name), rule)
  default = type(d)()
  unused = ["arithmetic"]
  if d.task == "arithmetic":
    unused = [
        "source_dir", "prepared_dir", "split", "split_seed", "first_rows",
        "validation_problems", "prompt",
    ]  # fmt: skip
  for name in unused:
    if getattr(d, name) != getattr(default, name):
      rule = f"is of no use to data.task {d.task}; leave it out"
      fail(f"data.{name}", getattr(d, name), rule)
