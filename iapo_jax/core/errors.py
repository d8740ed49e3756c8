"""Errors that end a command with a one-line message."""

import typing
from typing import Any


class ConfigError(ValueError):
  """User input that breaks a rule; the message is one line."""


class SaveError(Exception):
  """A checkpoint that could not be written; the message is one line."""


class SharedError(Exception):
  """One process's error, raised in all of them; the message is one line."""


def reason(error: Exception) -> str:
  """Returns the first line of an error's text, or its type if it has none."""
  return [*str(error).strip().splitlines(), type(error).__name__][0]


def fail(field: str, value: Any, rule: str) -> typing.NoReturn:
  """Raises a `ConfigError` that names field, value and rule."""
  raise ConfigError(f"config.{field} = {value!r}: {rule}")
