"""Worked solutions of some families of reasoning-gym, in plain English.

A warm start learns from them where no data set brings any. A plain solution has
only the sentences that are needed. A redundant one also restates, checks,
hesitates and sums up, as language models do. Every sentence is true.
"""

import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Sentence:
  """A sentence of a solution.

  Attributes:
    text: the sentence with its full stop.
    result: the number that the solution has reached with it; None if the
      sentence reaches none.
    chance: the probability that a redundant solution has it; None if it is
      needed, so that every solution has it.
  """

  text: str
  result: int | None = None
  chance: float | None = None


# Metadata of a problem -> its solution, with all sentences that may be left
# out.
Writer = Callable[[Mapping[str, Any]], Iterator[Sentence]]


def writers() -> dict[str, Writer]:
  """Returns the writer of each family that has worked solutions."""
  return {"leg_counting": _legs, "chain_sum": _sum, "gcd": _divisor}


def solution(
    family: str,
    answer: str,
    metadata: Mapping[str, Any],
    rng: random.Random,
    *,
    redundant: bool,
) -> str:
  """Writes the solution of a problem, without its answer's line.

  Args:
    family: one of `writers`.
    answer: the gold answer.
    metadata: the problem's, from reasoning-gym.
    rng: the only source of randomness.
    redundant: whether to write sentences that are not needed.

  Raises:
    ValueError: if the solution does not reach the answer, as after a change of
      reasoning-gym.
  """
  written = [
      x
      for x in writers()[family](metadata)
      if x.chance is None or (redundant and rng.random() < x.chance)
  ]
  reached = [x.result for x in written if x.result is not None]
  if not reached or str(reached[-1]) != answer:
    raise ValueError(
        f"the worked solution of a problem of {family} reaches"
        f" {reached[-1:]}, but its answer is {answer!r}"
    )
  return " ".join(x.text for x in written)


def _legs(metadata: Mapping[str, Any]) -> Iterator[Sentence]:
  """Counts the legs of each animal and adds them up."""
  from reasoning_gym.arithmetic.leg_counting import ANIMALS

  yield Sentence("I will add the legs of all animals.", None, 0.4)
  total, terms = 0, []
  for animal, count in metadata["animals"].items():
    each, name = ANIMALS[animal], animal + "s" * (count > 1)
    legs = count * each
    yield Sentence(f"One {animal} has {each} legs.", None, 0.3)
    reached = None if terms else legs
    yield Sentence(f"{count} {name}: {count} * {each} = {legs}.", reached)
    yield Sentence(f"Wait, is it {count} {name}? Yes, {count}.", None, 0.25)
    terms.append(legs)
    if len(terms) > 1:
      yield from _added(total, "+", legs)
    total += legs
  yield from _closing(terms, total, "there are {} legs")


def _sum(metadata: Mapping[str, Any]) -> Iterator[Sentence]:
  """Adds and subtracts from left to right."""
  first, *rest = metadata["expression"].split()
  yield Sentence("I will go from left to right.", None, 0.4)
  total, terms = int(first), [int(first)]
  for symbol, text in zip(rest[::2], rest[1::2], strict=True):
    number = int(text)
    yield Sentence(f"Now comes {symbol} {number}.", None, 0.3)
    yield from _added(total, symbol, number)
    signed = number if symbol == "+" else -number
    terms.append(signed)
    total += signed
  yield from _closing(terms, total, "the result is {}")


def _divisor(metadata: Mapping[str, Any]) -> Iterator[Sentence]:
  """Divides with remainder until nothing remains (Euclid's algorithm)."""
  yield Sentence("I will divide until the remainder is 0.", None, 0.5)
  found, *others = metadata["numbers"]
  for other in others:
    large, small = max(found, other), min(found, other)
    yield Sentence(f"The larger number is {large}.", None, 0.3)
    remainder = None
    while remainder != 0:
      times, remainder = divmod(large, small)
      yield Sentence(f"{large} = {times} * {small} + {remainder}.", small)
      check = f"Check: {times} * {small} = {times * small}"
      if remainder:
        yield Sentence(f"So far the remainder is {remainder}.", None, 0.4)
        check += f" and {large} - {times * small} = {remainder}"
      yield Sentence(f"{check}, so this is right.", None, 0.4)
      large, small = small, remainder
    found = large
  yield Sentence(f"The last divisor is {found}.", found)
  yield Sentence(f"So the greatest common divisor is {found}.", found, 0.7)


def _added(total: int, symbol: str, number: int) -> Iterator[Sentence]:
  """Adds a number to a total, or subtracts it."""
  after = total + number if symbol == "+" else total - number
  inverse = "-" if symbol == "+" else "+"
  yield Sentence(f"{total} {symbol} {number} = {after}.", after)
  yield Sentence(f"So far the total is {after}.", None, 0.4)
  yield Sentence(
      f"Check: {after} {inverse} {number} = {total}, so this is right.",
      None,
      0.3,
  )


def _closing(
    terms: list[int], total: int, said: str
) -> Iterator[Sentence]:
  """Adds all numbers once more, and repeats the result."""
  first, *rest = terms
  if rest:
    again = f"{first}" + "".join(
        f" {'-' if term < 0 else '+'} {abs(term)}" for term in rest
    )
    yield Sentence(f"Once more: {again} = {total}.", total, 0.3)
  yield Sentence(f"So {said.format(total)}.", total, 0.6)
