"""A field of the configuration: default, rule, doc, declared at one place.

    class RolloutConfig:
      max_tokens: int = field(72, "longest completion, in tokens", at_least(2))

declares all three; `check` applies the rules and `describe` prints them.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

from iapo_jax.core.errors import fail


@dataclasses.dataclass(frozen=True)
class Rule:
  """What a value must be.

  Attributes:
    text: completes "must be ...".
    holds: whether a value of the right type obeys.
  """

  text: str
  holds: Callable[[Any], bool]


@dataclasses.dataclass(frozen=True)
class Described:
  """One field as `iapo fields` prints it."""

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
    default: immutable.
    doc: one line, with units.
    rule: what any value must obey by itself; `rules` has what fields must
      obey together.
    aliases: what other trainers call the field, for the error of an unknown
      name.
  """
  metadata = {"doc": doc, "rule": rule, "aliases": aliases}
  return dataclasses.field(default=default, metadata=metadata)


def at_least(low: float) -> Rule:
  """Low or more."""
  return Rule(f"at least {low}", lambda x: low <= x < math.inf)


def between(low: float, high: float) -> Rule:
  """In [low, high]."""
  return Rule(f"in [{low}, {high}]", lambda x: low <= x <= high)


def positive() -> Rule:
  """Above 0."""
  return Rule("positive", lambda x: 0 < x < math.inf)


def one_of(*names: str) -> Rule:
  """One of a few words."""
  return Rule(f"one of {', '.join(names)}", lambda x: x in names)


def check(config: Any, prefix: str = "") -> None:
  """Checks every field of a configuration by its own rule.

  Args:
    config: a dataclass of fields and of groups of fields.
    prefix: dotted, with its last dot, before the names in errors.

  Raises:
    ConfigError: names the first field that breaks its rule.
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
  """Every field with default, rule and doc, in the order of declaration."""
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
