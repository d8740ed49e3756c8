"""Families of small policies on which the theorem is checked.

An instance is a table of logits for a tree. The instances of a family have
random logits, or hand-made logits with noise. Answer 0 is the right one.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import tabular
from enumeration import Prefix
from tabular import TabularParams, Tree

_ANSWERS = 3
_JITTER = 0.3  # standard deviation of the noise on hand-made logits


@dataclasses.dataclass(frozen=True)
class Family:
  """Instances that share a tree.

  Attributes:
    name: in the results.
    text: a description.
    tree: of all instances.
    params: of the instances, stacked: float64[m, n, ...].
  """

  name: str
  text: str
  tree: Tree
  params: TabularParams


Logits = Callable[[Prefix], Sequence[float]]


def all_families(count: int, seed: int) -> list[Family]:
  """Makes all families with `count` instances each."""
  return [
      *_random(count, seed),
      _redundant_tail(count, seed),
      _filler_first(count, seed),
      _needed_check(count, seed),
      _confidently_wrong(count, seed),
      _mute_probe(count, seed),
      _late_information(count, seed),
  ]


def _random(count: int, seed: int) -> list[Family]:
  """Makes three families of random tables of two tokens and depth 3."""
  tree, numbers = tabular.make_tree(
      lambda prefix: (0, 1, 2) if len(prefix) < 3 else (2,),
      num_tokens=2,
      num_answers=_ANSWERS,
  )
  rng = np.random.default_rng([seed, 0])
  steps = rng.normal(size=(count, *tree.allowed.shape))
  answers = 1.5 * rng.normal(size=(count, len(numbers), _ANSWERS))
  informed = answers.copy()
  informed[:, :, 0] += 1.5 * tree.depths - 1.0
  rows = [
      tabular.consistent_answers(TabularParams(*row), tree, numbers)
      for row in zip(steps, answers, strict=True)
  ]
  consistent = np.stack([row.answers for row in rows])
  return [
      Family(name, text, tree, TabularParams(steps, table))
      for name, text, table in (
          ("random", "random steps and answers", answers),
          ("consistent", "elicited answers are the mean of later ones",
           consistent),
          ("thinking helps", "the right answer's logit grows with depth",
           informed),
      )
  ]  # fmt: skip


def _family(
    name: str,
    text: str,
    next_steps: Callable[[Prefix], Sequence[int]],
    steps: Logits,
    answers: Logits,
    *,
    num_tokens: int,
    count: int,
    seed: Sequence[int],
) -> Family:
  """Makes instances of a hand-made table, each with noise."""
  tree, numbers = tabular.make_tree(
      next_steps, num_tokens=num_tokens, num_answers=_ANSWERS
  )
  rng = np.random.default_rng(seed)
  params = []
  for rule in (steps, answers):
    table = np.array([rule(prefix) for prefix in numbers], np.float64)
    noise = rng.normal(size=(count, *table.shape))
    params.append(table + _JITTER * noise)
  return Family(name, text, tree, TabularParams(*params))


def _redundant_tail(count: int, seed: int) -> Family:
  """Makes policies whose first token settles the answer."""
  return _family(
      "redundant tail",
      "the first token settles the answer, up to four more say nothing",
      lambda prefix: (0, 1) if len(prefix) < 5 else (1,),
      lambda prefix: (1.0, 0.0),
      lambda prefix: (6.0, 0.0, 0.0) if prefix else (0.5, 0.0, 0.0),
      num_tokens=1,
      count=count,
      seed=[seed, 1],
  )


def _filler_first(count: int, seed: int) -> Family:
  """Makes policies whose filler (1) only delays two steps of work (0)."""

  def next_steps(prefix: Prefix) -> Sequence[int]:
    if prefix.count(0) == 2:
      return (2,)
    return (0, 1) if prefix.count(1) < 3 else (0,)

  return _family(
      "filler first",
      "every route ends once two steps of work are done; filler delays them",
      next_steps,
      lambda prefix: (0.0, 0.5, 0.0),
      lambda prefix: (3.0 * prefix.count(0), 0.0, 0.0),
      num_tokens=2,
      count=count,
      seed=[seed, 2],
  )


def _needed_check(count: int, seed: int) -> Family:
  """Makes policies where a check (2) repairs the answer after a slip (1)."""

  def next_steps(prefix: Prefix) -> Sequence[int]:
    if not prefix:
      return (0, 1)
    return (2, 3) if len(prefix) == 1 else (3,)

  def answers(prefix: Prefix) -> Sequence[float]:
    if not prefix:
      return (0.0, 0.0, 0.0)
    slipped = prefix == (1,)
    return (0.0, 4.0, 0.0) if slipped else (4.0, 0.0, 0.0)

  return _family(
      "needed check",
      "a slip leaves the policy sure and wrong; a check repairs it, and says"
      " nothing elsewhere",
      next_steps,
      lambda prefix: (1.0, 0.0, 0.5, 0.5),
      answers,
      num_tokens=3,
      count=count,
      seed=[seed, 3],
  )


def _confidently_wrong(count: int, seed: int) -> Family:
  """Makes policies whose early answers are sure and wrong."""
  table = ((0.0, 4.0, 0.0), (0.5, 0.5, 0.0), (1.5, 0.0, 0.0), (2.0, 0.0, 0.0))
  return _family(
      "early and wrong",
      "an early answer is sure and wrong; thinking first brings doubt",
      lambda prefix: (0, 1) if len(prefix) < 3 else (1,),
      lambda prefix: (0.5, 0.0),
      lambda prefix: table[len(prefix)],
      num_tokens=1,
      count=count,
      seed=[seed, 4],
  )


def _mute_probe(count: int, seed: int) -> Family:
  """Makes policies that never learned early answers and guess them."""

  def answers(prefix: Prefix) -> Sequence[float]:
    if len(prefix) < 3:
      return (0.0, 0.0, 0.0)
    return (4.0 if prefix[0] == 0 else 1.0, 0.0, 0.0)

  return _family(
      "mute probe",
      "asked early the policy guesses, though its first token decides",
      lambda prefix: (0, 1, 2) if len(prefix) < 3 else (2,),
      lambda prefix: (0.0, 0.0, -1.0),
      answers,
      num_tokens=2,
      count=count,
      seed=[seed, 5],
  )


def _late_information(count: int, seed: int) -> Family:
  """Makes chains of up to 12 tokens whose tenth settles the answer."""
  return _family(
      "late answer",
      "a chain of up to 12 tokens settles the answer at its tenth",
      lambda prefix: (0, 1) if len(prefix) < 12 else (1,),
      lambda prefix: (2.0, 0.0),
      lambda prefix: (5.0 if len(prefix) >= 10 else 0.0, 0.0, 0.0),
      num_tokens=1,
      count=count,
      seed=[seed, 6],
  )
