"""What ends a command in one line, for people."""

import typing
from typing import Any


class ConfigError(ValueError):
  """User input that breaks a rule; the message is one line."""


class SaveError(Exception):
  """A checkpoint that could not be written; the message is one line."""


class SharedError(Exception):
  """An error of one process that all were told of; the message is one line."""


def reason(error: Exception) -> str:
  """The first line of what another program's error says, or else its kind."""
  return [*str(error).strip().splitlines(), type(error).__name__][0]


def fail(field: str, value: Any, rule: str) -> typing.NoReturn:
  """Raises a `ConfigError` that names field, value and rule."""
  raise ConfigError(f"config.{field} = {value!r}: {rule}")
