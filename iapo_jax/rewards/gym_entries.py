"""Problems of reasoning-gym and the scores of answers, by family and index.

The process that makes the problems of a run and the processes that score its
answers make the same problem from the same numbers. Needs the extra `gym`.
"""

import copy
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping
from typing import Any

from iapo_jax.config import gym, gym_families
from iapo_jax.core import errors
from iapo_jax.core.errors import ConfigError, fail

Entry = dict[str, Any]
_HOW = f"pip install 'reasoning-gym=={gym_families.VERSION}'"


def library() -> Any:
  """Imports reasoning-gym; raises `ConfigError` for another version or none."""
  try:
    found = importlib.metadata.version("reasoning-gym")
  except importlib.metadata.PackageNotFoundError:
    found = None
  if found != gym_families.VERSION:
    state = f"is {found}" if found else "is not installed"
    raise ConfigError(
        f"data reasoning_gym: the package reasoning-gym {state}; other versions"
        f" make and score problems differently, so run {_HOW}"
    )
  import reasoning_gym

  return reasoning_gym


def arguments(family: str) -> list[str]:
  """Returns the names of the arguments that a family takes from a user."""
  _, config = library().factory.DATASETS[family]
  names = [field.name for field in dataclasses.fields(config)]
  return [name for name in names if name not in gym.TAKEN]


def spelled(given: Mapping[str, Any]) -> str:
  """Returns arguments as JSON, spelled the same for the same arguments."""
  return json.dumps(given, sort_keys=True)


@functools.lru_cache(maxsize=64)
def dataset(family: str, seed: int, arguments: str) -> Any:
  """Returns the problems of a family and a seed.

  Args:
    family: one of `gym_families.known`.
    seed: of all problems.
    arguments: of the family, a JSON object.

  Raises:
    ConfigError: if the family does not take the arguments.
  """
  size = gym_families.known()[family].indices
  try:
    return library().create_dataset(
        family, seed=seed, size=size, **json.loads(arguments)
    )
  except ConfigError:
    raise
  except Exception as error:  # families raise any type
    rule = f"{family} does not take them: {errors.reason(error)}"
    fail("data.gym.arguments", arguments, rule)


def checksum(entry: Entry) -> str:
  """Returns a checksum of a problem, to find that two processes differ."""
  text = json.dumps([entry["question"], entry["answer"]])
  return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.lru_cache(maxsize=1024)
def _entry(family: str, seed: int, arguments: str, index: int) -> Entry:
  return dataset(family, seed, arguments)[index]


def scoring(
    family: str, seed: int, arguments: str, index: int, known: str, answer: str
) -> Callable[[], float | str]:
  """Makes a problem, and returns what scores an answer of it.

  The score is in [0, 1]. It is a text, the reason, if the problem cannot be
  made, or is not the one whose checksum is `known`.
  """
  try:
    made = _entry(family, seed, arguments, index)
    problems = dataset(family, seed, arguments)
  except Exception as error:  # families raise any type
    reason = errors.reason(error)
    return lambda: f"cannot be made again: {reason}"
  if checksum(made) != known:
    return lambda: "is another one than before"
  entry = copy.deepcopy(made)  # some scorers change it

  def score() -> float:
    try:
      found = float(problems.score_answer(answer, entry))
    except Exception:  # many scorers raise on answers of another form
      return 0.0
    return found if 0 <= found <= 1 else 0.0

  return score
