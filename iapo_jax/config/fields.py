"""Declares a configuration field's default, rule and doc in one place.

    class RolloutConfig:
      max_tokens: int = field(72, "longest completion, in tokens", at_least(2))

declares all three. `check` applies the rules; `describe` lists the fields.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

from iapo_jax.core.errors import fail


@dataclasses.dataclass(frozen=True)
class Rule:
  """A rule for one value.

  Attributes:
    text: completes "must be ...".
    holds: returns whether a value of the right type obeys the rule.
  """

  text: str
  holds: Callable[[Any], bool]


@dataclasses.dataclass(frozen=True)
class Described:
  """A field, for `iapo fields` to print."""

  name: str
  default: Any
  rule: str
  doc: str
  aliases: tuple[str, ...]


def field(
    default: Any,
    doc: str,
    rule: Rule | None = None,
    *,
    aliases: tuple[str, ...] = (),
) -> Any:
  """Declares a field of a configuration dataclass.

  Args:
    default: an immutable value.
    doc: the meaning, with units; `iapo fields` prints it.
    rule: the rule for any value; `rules` has the rules between fields.
    aliases: other trainers' names for the field. The error of an unknown name
      uses them.
  """
  metadata = {"doc": doc, "rule": rule, "aliases": aliases}
  return dataclasses.field(default=default, metadata=metadata)


def at_least(low: float) -> Rule:
  """Requires a finite number of at least `low`."""
  return Rule(f"at least {low}", lambda x: low <= x < math.inf)


def between(low: float, high: float) -> Rule:
  """Requires a number in [low, high]."""
  return Rule(f"in [{low}, {high}]", lambda x: low <= x <= high)


def above(low: float) -> Rule:
  """Requires a finite number above `low`."""
  return Rule(f"above {low}", lambda x: low < x < math.inf)


def positive() -> Rule:
  """Requires a finite number above 0."""
  return Rule("positive", lambda x: 0 < x < math.inf)


def one_of(*names: str) -> Rule:
  """Requires one of a few words."""
  return Rule(f"one of {', '.join(names)}", lambda x: x in names)


def check(config: Any, prefix: str = "") -> None:
  """Checks every field of a configuration against its rule.

  Args:
    config: a dataclass of fields and groups of fields.
    prefix: the names in errors begin with it; ends with a dot.

  Raises:
    ConfigError: if a field breaks its rule; it names the first such field.
  """
  for known in dataclasses.fields(config):
    value = getattr(config, known.name)
    if dataclasses.is_dataclass(value):
      check(value, f"{prefix}{known.name}.")
      continue
    rule = known.metadata.get("rule")
    if rule is None or value is None:
      continue
    if not isinstance(value, tuple):
      _check_one(f"{prefix}{known.name}", value, rule)
      continue
    for i, entry in enumerate(value):
      _check_one(f"{prefix}{known.name}[{i}]", entry, rule)


def _check_one(name: str, value: Any, rule: Rule) -> None:
  if not rule.holds(value):
    fail(name, value, f"must be {rule.text}")


def describe(config: Any, prefix: str = "") -> Iterator[Described]:
  """Yields every field, in the order of declaration."""
  for known in dataclasses.fields(config):
    value, name = getattr(config, known.name), f"{prefix}{known.name}"
    if dataclasses.is_dataclass(value):
      yield from describe(value, f"{name}.")
      continue
    rule = known.metadata.get("rule")
    yield Described(
        name=name,
        default=value,
        rule=rule.text if rule else "",
        doc=known.metadata["doc"],
        aliases=known.metadata["aliases"],
    )
