"""Small files, written whole or not at all, and names that are still free."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from iapo_jax.errors import ConfigError


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  """Writes a file whole or not at all, be it that the power goes."""
  text = json.dumps(content, indent=2) + "\n"
  draft = path.with_name(path.name + ".draft")
  with draft.open("w", encoding="utf-8") as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  draft.rename(path)


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """An object from a file.

  Args:
    path: of the file.

  Returns:
    The object.

  Raises:
    ConfigError: where there is no such file, or something else in it.
  """
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
  except OSError as error:
    raise ConfigError(f"{str(path)!r}: {error.strerror}") from error
  except (ValueError, RecursionError) as error:
    raise ConfigError(f"{str(path)!r}: is not JSON ({error})") from error
  if not isinstance(content, dict):
    raise ConfigError(f"{str(path)!r}: is not a JSON object")
  return content


def numbered(path: pathlib.Path, separator: str) -> pathlib.Path:
  """The first free one of PATH + separator + 1, 2, 3, ..."""
  number = 1
  while (free := path.with_name(f"{path.name}{separator}{number}")).exists():
    number += 1
  return free
