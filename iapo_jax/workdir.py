"""The folder of a run: one configuration, one writer."""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from iapo_jax import config as config_lib
from iapo_jax.assembly import Assembly
from iapo_jax.errors import ConfigError

SUMMARY = "summary.json"
_CONFIG = "config.json"
_ENVIRONMENT = "environment.json"
_LOCK = "lock"


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
  """Makes this process the only writer of a workdir.

  The lock goes with the process, however that ends.

  Args:
    workdir: created if need be.

  Yields:
    Nothing.

  Raises:
    ConfigError: where another process has it, or it cannot be written.
  """
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    file = (workdir / _LOCK).open("a+", encoding="utf-8")
  except OSError as error:
    raise ConfigError(
        f"workdir {str(workdir)!r}: must be a folder that can be written"
        f" ({error.strerror})"
    ) from error
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      file.seek(0)
      raise ConfigError(
          f"workdir {str(workdir)!r}: process {file.read().strip() or '?'}"
          " writes to it; wait for it, or use another --workdir"
      ) from error
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    yield


def is_claimed(workdir: pathlib.Path) -> bool:
  """Whether a folder holds a run."""
  return (workdir / _CONFIG).exists()


def environment(parts: Assembly) -> dict[str, str]:
  """What the last digits of a run's numbers depend on besides its config."""
  devices = parts.mesh.devices
  return {
      "devices": f"{devices.size} x {devices.flat[0].device_kind}",
      "jax": jax.__version__,
  }


def _compare_environment(workdir: pathlib.Path, parts: Assembly) -> None:
  """Warns where a run goes on elsewhere: it will not repeat itself exactly."""
  path = workdir / _ENVIRONMENT
  theirs = read_json(path) if path.exists() else {}
  for name, ours in environment(parts).items():
    if theirs.get(name, ours) != ours:
      print(
          f"warning: {name}: the run began with {theirs[name]} and goes on with"
          f" {ours}; the steps from here on may differ in their last digits",
          flush=True,
      )


def claim(workdir: pathlib.Path, parts: Assembly) -> bool:
  """Makes a locked workdir this run's, or finds that it is.

  Args:
    workdir: that exists.
    parts: of the run.

  Returns:
    Whether it holds this run, finished.

  Raises:
    ConfigError: where it holds a run with another configuration.
  """
  ours = config_lib.flatten(parts.cfg)
  if (workdir / _CONFIG).exists():
    theirs = read_config(workdir)
    for field in ours | theirs:
      if ours.get(field) != theirs.get(field):
        raise ConfigError(
            f"config.{field} = {ours.get(field)!r}: workdir {str(workdir)!r}"
            f" holds a run with {theirs.get(field)!r}; use another --workdir"
        )
    _compare_environment(workdir, parts)
    return (workdir / SUMMARY).exists()
  write_json(workdir / _ENVIRONMENT, environment(parts))
  parts.task.tokenizer.save_pretrained(workdir / "tokenizer")
  write_json(workdir / _CONFIG, ours)
  return False


def read_config(workdir: pathlib.Path) -> dict[str, Any]:
  """The configuration of a run, fields by their dotted names.

  Args:
    workdir: of a run.

  Returns:
    The fields.

  Raises:
    ConfigError: where there is none, or it cannot be read.
  """
  if not is_claimed(workdir):
    raise ConfigError(f"workdir {str(workdir)!r}: holds no run (no {_CONFIG})")
  return read_json(workdir / _CONFIG)


def load_config(workdir: pathlib.Path) -> config_lib.Config:
  """The checked configuration of a run.

  Args:
    workdir: of a run.

  Returns:
    The configuration.

  Raises:
    ConfigError: where there is none, or it breaks a rule.
  """
  nested: dict[str, Any] = {}
  for name, value in read_config(workdir).items():
    *groups, field = name.split(".")
    node = nested
    for group in groups:
      node = node.setdefault(group, {})
    node[field] = value
  return config_lib.parse(nested)


def checked(cfg: config_lib.Config) -> config_lib.Config:
  """A changed configuration, checked like one that a user wrote."""
  return config_lib.parse(dataclasses.asdict(cfg))


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
  except ValueError as error:
    raise ConfigError(f"{str(path)!r}: is not JSON ({error})") from error
  if not isinstance(content, dict):
    raise ConfigError(f"{str(path)!r}: is not a JSON object")
  return content


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  """Writes a file whole or not at all."""
  draft = path.with_name(path.name + ".draft")
  draft.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
  draft.rename(path)
