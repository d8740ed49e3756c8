"""Atomic writes, folder locks, JSON files and free file names."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from iapo_jax.core.errors import ConfigError


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  """Writes a JSON object as `write_text` does."""
  write_text(path, json.dumps(content, indent=2) + "\n")


def write_fields(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  """Writes a flat JSON object as `write_text` does, one field a line."""
  lines = (f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in content.items())
  write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def write_text(
    path: pathlib.Path, text: str, *, errors: str = "strict"
) -> None:
  """Writes a UTF-8 file atomically: never half-written, even if power fails.

  Replaces an existing file. Line ends are written as they are in `text`;
  `errors` is that of `str.encode`.
  """
  draft = draft_of(path)
  with draft.open("w", encoding="utf-8", errors=errors, newline="") as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  draft.rename(path)


def make_place(flag: str, path: pathlib.Path) -> None:
  """Makes the folder of a file that `--flag` names.

  Raises:
    ConfigError: if that is impossible, or nothing can be written there.
  """
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
      raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
  except OSError as error:
    raise ConfigError(
        f"--{flag} = {str(path)!r}: cannot be written ({error.strerror})"
    ) from error


def draft_of(path: pathlib.Path) -> pathlib.Path:
  """Returns where this process writes a file before it renames it."""
  return path.with_name(f"{path.name}.{os.getpid()}.draft")


@contextlib.contextmanager
def usual_mode(path: pathlib.Path) -> Iterator[None]:
  """Gives the file that the block writes the mode of any other new file.

  Some libraries write a temporary file, which only its owner can read, and
  rename it.
  """
  path.touch()
  mode = path.stat().st_mode  # follows the umask
  yield
  path.chmod(mode)


def sync(folder: pathlib.Path) -> None:
  """Waits until a folder and its files are on disk (fsync)."""
  for path in (*folder.iterdir(), folder):
    descriptor = os.open(path, os.O_RDONLY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)


@contextlib.contextmanager
def alone(folder: pathlib.Path) -> Iterator[None]:
  """Locks a folder; other processes that call this wait."""
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield
  finally:
    os.close(descriptor)


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Reads a JSON object; raises `ConfigError` if the file has none."""
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
  """Returns the first free path of PATH + separator + 1, 2, 3, ..."""
  number = 1
  while (free := path.with_name(f"{path.name}{separator}{number}")).exists():
    number += 1
  return free
