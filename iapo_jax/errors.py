"""What is said of user input that breaks a rule."""

import typing
from typing import Any


class ConfigError(ValueError):
  """User input that breaks a rule; the message is one line."""


def fail(field: str, value: Any, rule: str) -> typing.NoReturn:
  """Raises a `ConfigError` that names field, value and rule."""
  raise ConfigError(f"config.{field} = {value!r}: {rule}")
