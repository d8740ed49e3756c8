"""Makes train, validation and test problems with reasoning-gym.

Problem i of a family depends on the seed and i alone. The splits of a family
are ranges of i, test first, so that they share no problem. A question that an
earlier problem had, but for white space, is left out, and a further one is
drawn.
"""

import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence

from iapo_jax.config import gym as gym_config
from iapo_jax.config import gym_families
from iapo_jax.config.data import DataConfig
from iapo_jax.config.gym import GymConfig
from iapo_jax.core import errors
from iapo_jax.core.errors import fail
from iapo_jax.data import worked
from iapo_jax.data.examples import Example
from iapo_jax.data.published import Kind
from iapo_jax.rewards import gym as gym_rewards
from iapo_jax.rewards import gym_entries

KIND = Kind(
    name="reasoning_gym",
    form="The answer has the form that the problem asks for.",
)
# Stands for the gold answer where a family gives none; nothing is compared
# with it.
NO_GOLD = "?"
_MOST_IN_VAIN = 1000  # draws in a row without a new question
_TOLD_AFTER = 10.0  # seconds, then after twice as long, and so on


def make_splits(data: DataConfig) -> dict[str, list[Example]]:
  """Makes `train`, `validation` and `test`; prints what was left out.

  Every split has the weights of the families, in every part of it.

  Raises:
    ConfigError: if reasoning-gym is missing, if a family does not take its
      arguments, or if it has too few distinct questions.
  """
  g = data.gym
  sizes = _sizes(g)
  arguments = _arguments(g)
  seen: set[str] = set()
  made: dict[str, dict[str, list[Example]]] = {name: {} for name in sizes}
  for family in gym_config.families_of(g):
    counts = {split: sizes[split][family] for split in sizes}
    rows = _distinct(g, family, arguments[family], sum(counts.values()), seen)
    for split, count in counts.items():
      made[split][family] = [next(rows) for _ in range(count)]
  order = ("train", "validation", "test")
  return {split: _mixed(made[split]) for split in order}


def _sizes(g: GymConfig) -> dict[str, dict[str, int]]:
  """Returns the number of problems of each family, by split, test first.

  A split of n problems has n w / Σ w of a family of weight w, rounded so that
  the sum is n (largest remainders).
  """
  weights = gym_config.families_of(g)
  whole, found = math.fsum(weights.values()), {}
  for split in ("test", "validation", "train"):
    size = getattr(g, f"{split}_problems")
    exact = {k: size * weight / whole for k, weight in weights.items()}
    parts = {family: int(share) for family, share in exact.items()}
    by_remainder = sorted(exact, key=lambda k: parts[k] - exact[k])
    for family in by_remainder[: size - sum(parts.values())]:
      parts[family] += 1
    found[split] = parts
    none = [family for family, count in parts.items() if not count]
    if none:
      rule = (
          f"leaves no {split} problem to {', '.join(none)}; raise it or the"
          " weights in data.gym.families"
      )
      fail(f"data.gym.{split}_problems", size, rule)
  return found


def _mixed(rows: Mapping[str, Sequence[Example]]) -> list[Example]:
  """Mixes families so that every part of a split has about their weights."""
  placed = [
      ((i + 0.5) / len(examples), example)
      for examples in rows.values()
      for i, example in enumerate(examples)
  ]
  return [example for _, example in sorted(placed, key=lambda x: x[0])]


def _arguments(g: GymConfig) -> dict[str, str]:
  """Returns the arguments of each family as JSON; checks their names."""
  given, found = gym_config.arguments_of(g), {}
  for family in gym_config.families_of(g):
    chosen = given.get(family, {})
    known = gym_entries.arguments(family)
    for name in chosen:
      if name not in known:
        rule = f"{family} has no argument {name}; it has {', '.join(known)}"
        fail("data.gym.arguments", g.arguments, rule)
    found[family] = gym_entries.spelled(chosen)
  return found


def _distinct(
    g: GymConfig, family: str, arguments: str, wanted: int, seen: set[str]
) -> Iterator[Example]:
  """Makes `wanted` problems whose questions are not in `seen`; adds them."""
  problems = gym_entries.dataset(family, g.seed, arguments)
  most = gym_families.known()[family].indices
  found: list[Example] = []
  index, in_vain, begun, tell_after = 0, 0, time.monotonic(), _TOLD_AFTER
  while len(found) < wanted:
    if in_vain == _MOST_IN_VAIN or index == most:
      _fall_short(g, family, len(found), index, wanted)
    try:
      entry = problems[index]
    except Exception as error:  # families raise any type
      told = f"{family} cannot make problem {index}: {errors.reason(error)}"
      fail("data.gym.families", g.families, told)
    question = " ".join(entry["question"].split())
    in_vain += 1
    if question not in seen:
      seen.add(question)
      found.append(_example(g, family, arguments, index, entry))
      in_vain = 0
    index += 1
    # Only told: a run that began must go on, however busy the machine is.
    spent = time.monotonic() - begun
    if spent > tell_after:
      tell_after = 2 * spent
      print(
          f"data       {family}: {len(found)} of {wanted} problems took"
          f" {spent:.0f} s; every start makes them again, so use fewer, easier"
          " arguments or another family if that is too slow",
          flush=True,
      )
  print(
      f"data       {family}: {wanted} distinct problems of {index} drawn"
      f" (indices 0 to {index - 1}, seed {g.seed})",
      flush=True,
  )
  return iter(found)


def _fall_short(
    g: GymConfig, family: str, found: int, drawn: int, wanted: int
) -> None:
  rule = (
      f"{family} gives {found} distinct problems in {drawn} draws, but its"
      f" share of train, validation and test is {wanted}; lower"
      " data.gym.train_problems, validation_problems or test_problems, or give"
      " arguments with more problems"
  )
  fail("data.gym.families", g.families, rule)


def _example(
    g: GymConfig,
    family: str,
    arguments: str,
    index: int,
    entry: gym_entries.Entry,
) -> Example:
  """Converts a problem; writes its solution if its family has solutions."""
  answer = entry["answer"]
  if not isinstance(answer, str) or not answer.strip():
    answer = NO_GOLD
  solution = ""
  if family in worked.writers():
    rng = random.Random(f"{g.seed}/{family}/{index}")
    redundant = rng.random() < g.redundancy
    solution = worked.solution(
        family, answer, entry["metadata"], rng, redundant=redundant
    )
  checksum = gym_entries.checksum(entry)
  row = gym_rewards.row_of(family, g.seed, arguments, index, checksum)
  return Example(entry["question"].strip(), answer.strip(), solution, row)


def check_worked(g: GymConfig, num_steps: int) -> None:
  """Raises `ConfigError` if a family has no worked solutions to learn from."""
  known = worked.writers()
  lacking = [name for name in gym_config.families_of(g) if name not in known]
  if lacking:
    rule = (
        f"{', '.join(lacking)} of reasoning_gym: no worked solutions to learn"
        f" from ({', '.join(known)} have some); set it to 0, or start from a"
        " warm-started run with config.init_from"
    )
    fail("warm_start.num_steps", num_steps, rule)
