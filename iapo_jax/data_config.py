"""Fields of a run's data, and the rules that they must obey by themselves."""

import dataclasses
import datetime

from iapo_jax.errors import fail

PUBLISHED = (
    "gsm8k", "math500", "dapo_math", "commonsense_qa", "aime24", "aime25",
)  # fmt: skip
READ = (*PUBLISHED, "own")  # from files; the other one is made
TASKS = ("arithmetic", *READ)
SPLITS = ("published", "80_20")
PROMPTS = ("plain", "think_answer")
INSTRUCTIONS = ("system", "user")
OVERLONG = ("error", "skip", "truncate_left")


@dataclasses.dataclass(frozen=True)
class ArithmeticConfig:
  """The synthetic task.

  Attributes:
    operands: numbers in each problem, or the most of them.
    min_operands: the fewest; 0 is `operands`, so that all have as many.
      Otherwise the number of operands is a problem's level, and evaluations
      report by level.
    max_operand: they lie in 1 .. this.
    max_total: every running total lies in 0 .. this.
    redundancy: share of the warm-start chains with redundant steps.
    slip_rate: probability that the stated result of a step is replaced by
      another number, in rollouts and in the warm-start chains.
    check_rate: probability that a check follows a right result of a
      warm-start chain; only with `slip_rate`.
    slip_check_rate: the same of a result that slipped.
    train_problems: distinct, shared with no other split.
    validation_problems: distinct, shared with no other split.
    test_problems: distinct, shared with no other split.
  """

  operands: int = 4
  min_operands: int = 0
  max_operand: int = 7
  max_total: int = 15
  redundancy: float = 0.8
  slip_rate: float = 0.0
  check_rate: float = 0.0
  slip_check_rate: float = 0.0
  train_problems: int = 6000
  validation_problems: int = 512
  test_problems: int = 2048


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """The task and how its text becomes arrays.

  Attributes:
    task: `arithmetic`, or a published data set: `gsm8k`, `math500`,
      `dapo_math`, `commonsense_qa`, `aime24`, `aime25`; or `own`: rows of
      `question`, `answer` and perhaps `solution`, jsonl or parquet.
    source_dir: a folder with the data set's files; by default they are
      fetched, unless they were before. `own` needs it, or `tfds:NAME`.
    prepared_dir: where prepared data sets are kept; TFDS's own place by
      default.
    split: `published` (train and test as they are), or `80_20` (all problems
      of a data set that has one of them, in an order of its own: 80 % train,
      20 % test).
    split_seed: of that order, and of which problems validate.
    first_rows: how many of the published train problems (of a data set without
      them: of the test problems) are used, the first ones; 0 is all.
    validation_problems: held out from train.
    test_problems: how many of the test problems judge a run, the first ones; 0
      is all.
    prompt: `plain` (the problem alone) or `think_answer` (instructions, a
      worked example, the problem).
    instructions: whether those are a `system` message, or begin the first
      `user` message, for templates that know no system.
    max_prompt_tokens: p.
    max_gold_tokens: a.
    chat_template: whether prompts are messages, put together by the chat
      template of the tokenizer.
    chat_date: YYYY-MM-DD, which chat templates print as today's.
    tokenizer: a Hugging Face folder or hub name; by default the pretrained
      model's, or the synthetic task's words.
    overlong: a prompt beyond p is an error, is skipped (and counted), or
      loses its beginning (and is counted). So is, but never cut, a worked
      solution beyond the longest completion.
    arithmetic: of the synthetic task.
  """

  task: str = "arithmetic"
  source_dir: str = ""
  prepared_dir: str = ""
  split: str = "published"
  split_seed: int = 42
  first_rows: int = 0
  validation_problems: int = 256
  test_problems: int = 0
  prompt: str = "plain"
  instructions: str = "system"
  max_prompt_tokens: int = 16
  max_gold_tokens: int = 1
  chat_template: bool = False
  chat_date: str = "2026-01-01"
  tokenizer: str = ""
  overlong: str = "error"
  arithmetic: ArithmeticConfig = ArithmeticConfig()


def check(d: DataConfig) -> None:
  """Every rule of data by itself, but for ranges and choices.

  Args:
    d: the fields.

  Raises:
    ConfigError: for a broken rule.
  """
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
  for field in unused:
    if getattr(d, field) != getattr(default, field):
      rule = f"is of no use to data.task {d.task}; leave it out"
      fail(f"data.{field}", getattr(d, field), rule)
