"""Files that are written whole or not at all, and names that are still free."""

import contextlib
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from iapo_jax.core.errors import ConfigError


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  """`write_text` of an object."""
  write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(
    path: pathlib.Path, text: str, *, errors: str = "strict"
) -> None:
  """Writes a file whole or not at all, be it that the power goes.

  Args:
    path: of the file, which may be there.
    text: as it is, its ends of lines included.
    errors: of the encoder, UTF-8.
  """
  draft = draft_of(path)
  with draft.open("w", encoding="utf-8", errors=errors, newline="") as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  draft.rename(path)


def draft_of(path: pathlib.Path) -> pathlib.Path:
  """Where a file is written until it is whole; no other process does there."""
  return path.with_name(f"{path.name}.{os.getpid()}.draft")


def sync(folder: pathlib.Path) -> None:
  """Waits until the files of a folder would outlast a power cut."""
  for path in (*folder.iterdir(), folder):
    descriptor = os.open(path, os.O_RDONLY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)


@contextlib.contextmanager
def alone(folder: pathlib.Path) -> Iterator[None]:
  """One process at a time; the others wait."""
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield
  finally:
    os.close(descriptor)


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
