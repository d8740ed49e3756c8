"""The synthetic task: sums worked out step by step, tersely or wordily.

A problem `5 b + 1 c - 5 d + 3 =` names its steps. A lean chain of thought has
one clause a step, `b 5 + 1 = 6 c 6 - 5 = 1 d 1 + 3 = 4`. A redundant one also
restates totals, checks sums that are right, hesitates and repeats itself; none
of that is needed for the answer.
"""

import dataclasses
import string

import numpy as np

from iapo_jax.config import ArithmeticConfig
from iapo_jax.data.pipeline import Piece
from iapo_jax.errors import ConfigError
from iapo_jax.rewards import text

EOS = "<eos>"
PAD = "<pad>"
UNKNOWN = "<unk>"
SPECIAL = (PAD, EOS, UNKNOWN)

_CLAUSES = (
    "so", "total", "check", "yes", "hmm", "wait", "again", ".", "+", "-", "=",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Problem:
  """A sum.

  Attributes:
    numbers: the operands.
    signs: +1 or -1 before each operand but the first.
  """

  numbers: tuple[int, ...]
  signs: tuple[int, ...]

  @property
  def totals(self) -> tuple[int, ...]:
    """The running total after each operand."""
    totals = [self.numbers[0]]
    for sign, number in zip(self.signs, self.numbers[1:], strict=True):
      totals.append(totals[-1] + sign * number)
    return tuple(totals)

  @property
  def answer(self) -> str:
    """The gold answer."""
    return str(self.totals[-1])

  @property
  def prompt(self) -> str:
    """The prompt, which opens the reasoning."""
    words = [str(self.numbers[0])]
    rest = zip(_step_names(self), self.signs, self.numbers[1:], strict=True)
    for name, sign, number in rest:
      words += [name, _symbol(sign), str(number)]
    return " ".join([*words, "=", text.THINK_OPEN])


def vocabulary(sums: ArithmeticConfig) -> list[str]:
  """Every word of the task, the special ones first."""
  numbers = range(max(sums.max_total, sums.max_operand) + 1)
  tags = (
      text.THINK_OPEN,
      text.THINK_CLOSE,
      text.ANSWER_OPEN,
      text.ANSWER_CLOSE,
  )
  steps = string.ascii_lowercase[1 : sums.operands]
  return [*SPECIAL, *tags, *_CLAUSES, *steps, *map(str, numbers)]


def make_splits(
    sums: ArithmeticConfig, seed: int = 0
) -> dict[str, list[Problem]]:
  """Distinct problems in three splits that share none, by construction.

  One list of distinct problems is drawn and then cut.

  Args:
    sums: sizes and ranges.
    seed: of the draw; fixed, so that every run has the same splits.

  Returns:
    `train`, `validation` and `test`.

  Raises:
    ConfigError: where the ranges do not hold that many distinct problems.
  """
  sizes = {
      "test": sums.test_problems,
      "validation": sums.validation_problems,
      "train": sums.train_problems,
  }
  wanted = sum(sizes.values())
  if sums.operands > len(string.ascii_lowercase):
    raise ConfigError(
        f"config.data.arithmetic.operands = {sums.operands}: must be at most"
        f" {len(string.ascii_lowercase)} (steps are named by letters)"
    )
  rng = np.random.default_rng(seed)
  found: dict[Problem, None] = {}
  # Nearly exhausting the ranges takes several draws a problem.
  for _ in range(30):
    found |= dict.fromkeys(_draw(sums, rng, wanted))
    if len(found) >= wanted:
      break
  else:
    raise ConfigError(
        f"config.data.arithmetic.train_problems = {sums.train_problems}: with"
        f" validation and test {wanted} distinct problems are needed, the"
        f" ranges hold about {len(found)}"
    )
  problems = list(found)[:wanted]
  splits, start = {}, 0
  for name, size in sizes.items():
    splits[name] = problems[start : start + size]
    start += size
  return splits


def demonstration(
    problem: Problem,
    rng: np.random.Generator,
    *,
    redundancy: float,
    early_share: float,
    early_full_share: float,
) -> list[Piece]:
  """A written-out chain of thought, or an early answer, for the warm start.

  Args:
    problem: the sum.
    rng: decides everything random about it.
    redundancy: probability of a redundant chain.
    early_share: probability that the chain is cut at a random point and
      followed by the answer.
    early_full_share: of those, the share whose every token is learned; of the
      others only the answer is.

  Returns:
    Pieces whose texts, one after the other, are the completion without its
    EOS.
  """
  chain = _chain(problem, rng, redundant=rng.random() < redundancy)
  learned = True
  if rng.random() < early_share:
    chain = chain[: rng.integers(len(chain))]
    learned = bool(rng.random() < early_full_share)
  opening = [*chain, text.THINK_CLOSE, text.ANSWER_OPEN]
  return [
      Piece(" ".join(opening), learned),
      Piece(f" {problem.answer}", True),
      Piece(f" {text.ANSWER_CLOSE}", learned),
  ]


def longest_demonstration(sums: ArithmeticConfig) -> int:
  """Words of the longest completion `demonstration` can give, and an EOS."""
  step, restated, checked, hesitation, closing, answer = 6, 4, 7, 3, 4, 5
  steps = sums.operands - 1
  return steps * (step + restated + checked + hesitation) + closing + answer


def _chain(
    problem: Problem, rng: np.random.Generator, *, redundant: bool
) -> list[str]:
  words: list[str] = []
  totals = problem.totals
  steps = zip(
      _step_names(problem),
      totals,
      problem.signs,
      problem.numbers[1:],
      totals[1:],
      strict=False,
  )
  for name, before, sign, number, after in steps:
    clause = f"{before} {_symbol(sign)} {number} = {after}"
    words += [name, *clause.split()]
    if redundant and rng.random() < 0.7:
      words += f"so total {after} .".split()
    if redundant and rng.random() < 0.8:
      words += f"check {clause} yes".split()
    if redundant and rng.random() < 0.5:
      words += ["hmm", "wait", "."]
  if redundant and rng.random() < 0.5:
    words += f"again total {totals[-1]} .".split()
  return words


def _draw(
    sums: ArithmeticConfig, rng: np.random.Generator, count: int
) -> list[Problem]:
  """`count` random problems, less those whose totals leave the range."""
  numbers = rng.integers(1, sums.max_operand + 1, (count, sums.operands))
  signs = rng.choice([1, -1], (count, sums.operands - 1))
  terms = np.concatenate([numbers[:, :1], signs * numbers[:, 1:]], axis=1)
  totals = np.cumsum(terms, axis=1)
  valid = np.all((totals >= 0) & (totals <= sums.max_total), axis=1)
  return [
      Problem(tuple(n), tuple(s))
      for n, s in zip(
          numbers[valid].tolist(), signs[valid].tolist(), strict=True
      )
  ]


def _step_names(problem: Problem) -> str:
  return string.ascii_lowercase[1 : len(problem.numbers)]


def _symbol(sign: int) -> str:
  return "+" if sign > 0 else "-"
