"""The synthetic task: sums worked out step by step, tersely or wordily.

A problem `5 b + 1 c - 5 d + 3 =` names its steps. A lean chain of thought has
one clause per step, `b 5 + 1 = 6 c 6 - 5 = 1 d 1 + 3 = 4`. A redundant one also
restates totals, checks right sums, hesitates and repeats itself. None of that
is needed for the answer.

If results slip, a check repairs them: `b 5 + 1 = 9 check 5 + 1 = 9 no so total
6 .` continues from 6. Without the check, the chain continues from 9. A chain
clips its totals to the range of the task and ends in the answer that it
reached.
"""

import dataclasses
import itertools
import string
from collections.abc import Iterable, Mapping

import numpy as np

from iapo_jax.config import formats
from iapo_jax.config.data import ArithmeticConfig
from iapo_jax.config.schema import WarmStartConfig
from iapo_jax.core.errors import fail
from iapo_jax.data.pipeline import Piece, cut_early

EOS = "<eos>"
PAD = "<pad>"
UNKNOWN = "<unk>"
SPECIAL = (PAD, EOS, UNKNOWN)
TAGS = formats.of("think_answer")  # the only format of this task

_CLAUSES = (
    "so", "total", "check", "yes", "hmm", "wait", "again", ".", "+", "-", "=",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Problem:
  """A sum; `signs` holds +1 or -1 for each operand but the first."""

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
  def level(self) -> int:
    """The number of operands."""
    return len(self.numbers)

  @property
  def columns(self) -> dict[str, str]:
    """The prompt without the opener of its format, and the gold answer."""
    question = self.prompt.removesuffix(TAGS.opener).rstrip()
    return {"question": question, "answer": self.answer}

  @property
  def answer(self) -> str:
    """The gold answer."""
    return str(self.totals[-1])

  @property
  def prompt(self) -> str:
    """The prompt, which opens the reasoning."""
    words = [str(self.numbers[0])]
    names = step_names(self.level)
    steps = zip(names, self.signs, self.numbers[1:], strict=True)
    for name, sign, number in steps:
      words += [name, _symbol(sign), str(number)]
    return " ".join([*words, "=", TAGS.opener])


def vocabulary(sums: ArithmeticConfig) -> list[str]:
  """Returns every word of the task; the special ones come first."""
  repair = ("no",) if sums.slip_rate else ()
  steps = step_names(sums.operands)
  numbers = number_words(sums)
  return [*SPECIAL, *TAGS.marks, *_CLAUSES, *repair, *steps, *numbers]


def number_words(sums: ArithmeticConfig) -> list[str]:
  """Returns the words 0, 1, 2, ... of the task."""
  return [str(i) for i in range(max(sums.max_total, sums.max_operand) + 1)]


def make_splits(sums: ArithmeticConfig) -> dict[str, list[Problem]]:
  """Draws `train`, `validation` and `test`, which share no problem.

  Draws one list of distinct problems for each level, and cuts it. Validation
  and test hold equally many problems of each level (one more of the highest
  levels if the number does not divide). Levels take turns, from the lowest.
  Train is made in the same way; if a level has too few problems left, train
  takes all of them, and equally more of the other levels. The seed is fixed, so
  every run has the same splits.

  Raises:
    ConfigError: if the ranges hold too few distinct problems.
  """
  most = len(string.ascii_lowercase)
  if sums.operands > most:
    rule = f"must be at most {most} (steps are named by letters)"
    fail("data.arithmetic.operands", sums.operands, rule)
  rng = np.random.default_rng(0)
  sizes = _sizes(sums)
  by_level: dict[str, list[list[Problem]]] = {name: [] for name in sizes}
  for level in sorted(sizes["test"]):
    wanted = sum(split[level] for split in sizes.values())
    problems = iter(_distinct(sums, level, rng, wanted))
    for name, split in sizes.items():
      by_level[name].append(list(itertools.islice(problems, split[level])))
  return {
      name: [p for turn in itertools.zip_longest(*levels) for p in turn if p]
      for name, levels in by_level.items()
  }


def _sizes(sums: ArithmeticConfig) -> dict[str, dict[int, int]]:
  """Returns the number of problems of each level, by split."""
  sizes = {"test": sums.test_problems, "validation": sums.validation_problems}
  if not sums.min_operands:
    sizes |= {"train": sums.train_problems}
    return {name: {sums.operands: size} for name, size in sizes.items()}
  levels = range(sums.min_operands, sums.operands + 1)
  tests, validations = (
      _shared_out(size, dict.fromkeys(levels, size)) for size in sizes.values()
  )
  rooms = {}
  for level in levels:
    held, needed = _held(sums, level), tests[level] + validations[level]
    rooms[level] = held - needed
    if rooms[level] < 1:
      fail(
          "data.arithmetic.test_problems",
          sums.test_problems,
          f"needs {tests[level]} problems with {level} operands for test,"
          f" {validations[level]} for validation and at least 1 for train, but"
          f" the ranges hold {held}; lower test_problems or"
          " validation_problems, or raise max_total",
      )
  if sum(rooms.values()) < sums.train_problems:
    fail(
        "data.arithmetic.train_problems",
        sums.train_problems,
        f"must be at most {sum(rooms.values())}, the distinct problems that"
        " validation and test leave",
    )
  trains = _shared_out(sums.train_problems, rooms)
  return {"test": tests, "validation": validations, "train": trains}


def _shared_out(total: int, rooms: Mapping[int, int]) -> dict[int, int]:
  """Divides a total equally; a part with too little room is filled up."""
  parts = {}
  narrowest_first = sorted(rooms, key=lambda level: rooms[level])
  for i, level in enumerate(narrowest_first):
    parts[level] = min(rooms[level], total // (len(rooms) - i))
    total -= parts[level]
  return parts


def _held(sums: ArithmeticConfig, operands: int) -> int:
  """Counts the distinct problems that the ranges hold."""
  steps = range(1, sums.max_operand + 1)
  ways = {number: 1 for number in steps if number <= sums.max_total}
  for _ in range(operands - 1):
    following: dict[int, int] = {}
    for total, count in ways.items():
      for after in (total + sign * step for sign in (1, -1) for step in steps):
        if 0 <= after <= sums.max_total:
          following[after] = following.get(after, 0) + count
    ways = following
  return sum(ways.values())


def _distinct(
    sums: ArithmeticConfig,
    operands: int,
    rng: np.random.Generator,
    wanted: int,
) -> list[Problem]:
  """Draws `wanted` distinct problems."""
  held = _held(sums, operands)
  found: dict[Problem, None] = {}
  # Each problem takes several draws where nearly all problems are wanted, and a
  # hundred where problems are long: few draws stay within the ranges.
  for _ in range(300):
    if held < wanted:
      break
    found |= dict.fromkeys(_draw(sums, operands, rng, wanted))
    if len(found) >= wanted:
      return list(found)[:wanted]
  drawn = f" and the draw found {len(found)}" if held >= wanted else ""
  fail(
      "data.arithmetic.train_problems",
      sums.train_problems,
      f"train, validation and test need {wanted} distinct problems with"
      f" {operands} operands, but the ranges hold {held}{drawn}; lower it, or"
      " raise max_total",
  )


def demonstration(
    problem: Problem,
    sums: ArithmeticConfig,
    rng: np.random.Generator,
    stage: WarmStartConfig,
) -> list[Piece]:
  """Writes a chain of thought and its answer, or an early answer.

  An early answer follows a part of the chain, and is the one that the whole
  chain reaches. `rng` is the only source of randomness.

  Returns:
    Pieces whose joined texts are the completion without EOS. Results that
    slipped are not learned.
  """
  redundant = rng.random() < sums.redundancy
  chain, slips, answer = _chain(problem, sums, rng, redundant=redundant)
  chain, learned = cut_early(chain, rng, stage)
  slips = frozenset(place for place in slips if place < len(chain))
  opening = [*chain, TAGS.closer, TAGS.answer_open]
  return [
      *_pieces(opening, slips, learned),
      Piece(f" {answer}", True),
      Piece(f" {TAGS.answer_close}", learned),
  ]


def longest_demonstration(sums: ArithmeticConfig) -> int:
  """Returns the number of words of the longest demonstration, EOS included."""
  step, restated, hesitation, closing, answer = 6, 4, 3, 4, 5
  checked = 11 if sums.slip_rate else 7
  steps = sums.operands - 1
  return steps * (step + restated + checked + hesitation) + closing + answer


def _pieces(
    words: Iterable[str], slips: frozenset[int], learned: bool
) -> list[Piece]:
  """Joins words into pieces; words at the places `slips` are not learned."""
  pieces: list[Piece] = []
  for is_slip, group in itertools.groupby(
      enumerate(words), lambda word: word[0] in slips
  ):
    blank = " " if pieces else ""
    text_ = blank + " ".join(word for _, word in group)
    pieces.append(Piece(text_, learned and not is_slip))
  return pieces


def _chain(
    problem: Problem,
    sums: ArithmeticConfig,
    rng: np.random.Generator,
    *,
    redundant: bool,
) -> tuple[list[str], frozenset[int], int]:
  """Returns the words of a chain, the places of slips, and its answer."""
  words: list[str] = []
  slips: set[int] = set()
  total = problem.numbers[0]
  steps = zip(
      step_names(problem.level), problem.signs, problem.numbers[1:], strict=True
  )
  for name, sign, number in steps:
    clause = f"{total} {_symbol(sign)} {number} ="
    right = min(max(total + sign * number, 0), sums.max_total)
    total = right
    words += [name, *clause.split()]
    check_rate = sums.check_rate
    if sums.slip_rate and rng.random() < sums.slip_rate:
      total, check_rate = _another(right, sums, rng), sums.slip_check_rate
      slips.add(len(words))
    words += [str(total)]
    if sums.slip_rate and rng.random() < check_rate:
      words += f"check {clause} {total} {_verdict(right, total)}".split()
      total = right
    if redundant and rng.random() < 0.7:
      words += f"so total {total} .".split()
    # If results slip, only the rates above decide whether a check follows.
    if not sums.slip_rate and redundant and rng.random() < 0.8:
      words += f"check {clause} {total} {_verdict(right, total)}".split()
    if redundant and rng.random() < 0.5:
      words += ["hmm", "wait", "."]
  if redundant and rng.random() < 0.5:
    words += f"again total {total} .".split()
  return words, frozenset(slips), total


def _another(
    right: int, sums: ArithmeticConfig, rng: np.random.Generator
) -> int:
  """Draws a number of the task other than `right`, uniformly."""
  other = int(rng.integers(len(number_words(sums)) - 1))
  return other + (other >= right)


def _verdict(right: int, stated: int) -> str:
  """Returns the last words of a check; they repair a wrong result."""
  return "yes" if stated == right else f"no so total {right} ."


def _draw(
    sums: ArithmeticConfig, operands: int, rng: np.random.Generator, count: int
) -> list[Problem]:
  """Draws `count` problems and drops those whose totals leave the range."""
  numbers = rng.integers(1, sums.max_operand + 1, (count, operands))
  signs = rng.choice([1, -1], (count, operands - 1))
  terms = np.concatenate([numbers[:, :1], signs * numbers[:, 1:]], axis=1)
  totals = np.cumsum(terms, axis=1)
  valid = np.all((totals >= 0) & (totals <= sums.max_total), axis=1)
  return [
      Problem(tuple(n), tuple(s))
      for n, s in zip(
          numbers[valid].tolist(), signs[valid].tolist(), strict=True
      )
  ]


def step_names(operands: int) -> str:
  """Returns the letters that name the steps of a problem."""
  return string.ascii_lowercase[1:operands]


def _symbol(sign: int) -> str:
  return "+" if sign > 0 else "-"
