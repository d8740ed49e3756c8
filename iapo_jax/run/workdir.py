"""The folder of a run: one configuration, one writer."""

import contextlib
import fcntl
import importlib.metadata
import os
import pathlib
import platform
from collections.abc import Iterator
from typing import Any

import jax

from iapo_jax.config import parsing as config_lib
from iapo_jax.core import files
from iapo_jax.core.errors import ConfigError
from iapo_jax.hf import folder, gguf
from iapo_jax.run import checkpoint, places
from iapo_jax.run.assembly import Assembly

SUMMARY = "summary.json"
PROGRAMS = "compiled"
_CONFIG = "config.json"
_ENVIRONMENT = "environment.json"
_QUANTISED = "quantised"  # in the environment
_LOCK = "lock"
_DATA = "data.json"


class BusyError(ConfigError):
  """Another process writes to a workdir."""


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
  """Makes this process the only writer of a workdir; creates it if missing.

  The lock ends with the process, however that ends. Raises `BusyError` if
  another process has it, `ConfigError` if the folder cannot be written.
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
      raise BusyError(
          f"workdir {str(workdir)!r}: process {file.read().strip() or '?'}"
          " writes to it; wait for it, or use another --workdir"
      ) from error
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    yield


def is_claimed(workdir: pathlib.Path) -> bool:
  """Returns whether a folder holds a run; a model's `config.json` is none."""
  return (workdir / _CONFIG).exists() and not places.is_model(workdir)


def is_begun(workdir: pathlib.Path) -> bool:
  """Returns whether a folder holds a run that a training command may continue.

  Raises `ConfigError` if the folder is something else than a run, such as a
  model or the parent of runs.
  """
  if is_claimed(workdir):
    return True
  places.check_workdir(workdir)
  return False


def environment(parts: Assembly) -> dict[str, str]:
  """Returns devices and versions, which change the last digits of a run.

  Also the names of the user's functions, `own`.
  """
  devices = parts.mesh.devices
  packages = ("jax", "jaxlib", "flax", "optax", "grain", "numpy")
  return {
      "devices": f"{devices.size} x {devices.flat[0].device_kind}",
      "processes": str(jax.process_count()),
      "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
      "own": parts.own.described,
      **{name: importlib.metadata.version(name) for name in packages},
      **(_making() if parts.cfg.data.task == "reasoning_gym" else {}),
  }


def _making() -> dict[str, str]:
  """Returns the versions that the problems of reasoning-gym depend on."""
  package = "reasoning-gym"
  return {
      package: importlib.metadata.version(package),
      "python": platform.python_version(),
  }


def _compare_environment(workdir: pathlib.Path, parts: Assembly) -> None:
  """Warns if the devices or versions are not those that the run began with."""
  try:
    theirs = files.read_json(workdir / _ENVIRONMENT)
  except ConfigError as error:
    print(f"warning: {error}; the run may have begun elsewhere", flush=True)
    return
  for name, ours in environment(parts).items():
    if theirs.get(name, ours) != ours:
      then = "the next steps may differ in their last digits"
      if name == "own":
        then = "to continue with the same functions, start the same program"
      print(
          f"warning: {name}: the run began with {theirs[name]!r} and continues"
          f" with {ours!r}; {then}",
          flush=True,
      )


def own_grader(workdir: pathlib.Path) -> str:
  """Returns the name of the user's grader of a run; empty without one."""
  try:
    own = files.read_json(workdir / _ENVIRONMENT).get("own", "")
  except ConfigError:
    return ""  # `_compare_environment` warns when the run continues
  names = [x for x in own.split(", ") if x.startswith("text grader ")]
  return names[0].removeprefix("text grader ") if names else ""


def quantised(workdir: pathlib.Path) -> dict[str, int]:
  """Counts the tensors of each type in the weights that a run comes from.

  Those may be the weights of an earlier run, which this one began with. Returns
  nothing if none was quantised or the run does not tell.
  """
  try:
    return files.read_json(workdir / _ENVIRONMENT).get(_QUANTISED, {})
  except ConfigError:
    return {}  # `_compare_environment` warns when the run continues


def quantised_start(
    cfg: config_lib.Config, scratch: pathlib.Path | None = None
) -> dict[str, int]:
  """Returns what `quantised` will say of a run that has not begun.

  `scratch` is that of `folder.find`.
  """
  if cfg.init_from:
    place = places.look(pathlib.Path(cfg.init_from))
    return quantised(place.found or place.path)
  if not cfg.model.pretrained:
    return {}
  place = folder.find(cfg.model.pretrained, weights=False, scratch=scratch)
  return folder.quantised(place)


def claim(workdir: pathlib.Path, parts: Assembly) -> bool:
  """Claims a locked workdir for this run, or checks that it is this run's.

  Returns whether the workdir holds this run, finished. Raises `ConfigError` if
  it holds a run with another configuration, or one whose configuration is
  lost.
  """
  if is_claimed(workdir):
    check_holds(workdir, parts.cfg)
    check_data(parts, workdir)
    if is_finished(workdir):
      return True
    _compare_environment(workdir, parts)
    return False
  if checkpoint.exists(workdir):
    raise ConfigError(
        f"workdir {str(workdir)!r}: has checkpoints but no {_CONFIG};"
        " restore that file, or use another --workdir"
    )
  found: dict[str, Any] = {**environment(parts)}
  name = parts.cfg.model.pretrained
  if name:
    place = folder.find(name)
    found["model_commit"] = folder.commit(place)
    # The tokenizer of a GGUF file may be one that cannot be rebuilt.
    other = parts.cfg.data.tokenizer and gguf.is_file(place)
    skip = gguf.OF_TOKENIZER if other else ()
    folder.copy_all_but_weights(place, workdir / folder.KEPT, skip=skip)
  if counts := quantised_start(parts.cfg):
    found[_QUANTISED] = counts
  files.write_json(workdir / _ENVIRONMENT, found)
  if parts.cfg.data.tokenizer:
    chosen = folder.find(parts.cfg.data.tokenizer, weights=False)
    folder.copy_tokenizer(chosen, workdir / folder.TOKENIZER)
  elif not name:
    parts.task.tokenizer.save_pretrained(workdir / folder.TOKENIZER)
  for kept in (folder.KEPT, folder.TOKENIZER):
    if (workdir / kept).exists():
      files.sync(workdir / kept)
  if parts.task.fingerprint:
    files.write_json(workdir / _DATA, parts.task.fingerprint)
  files.write_fields(workdir / _CONFIG, config_lib.flatten(parts.cfg))
  return False


def check_shared(workdir: pathlib.Path) -> None:
  """Checks that this process sees the workdir that the first one claimed.

  Raises `ConfigError` if it is another folder here.
  """
  if not is_claimed(workdir):
    raise ConfigError(
        f"workdir {str(workdir.absolute())!r}: must be a folder that all"
        f" processes share; the first one's {_CONFIG} is not in it"
    )


def check_data(parts: Assembly, workdir: pathlib.Path) -> None:
  """Checks that the problems are still those that the run began with.

  Raises `ConfigError` if they are not.
  """
  if not parts.task.fingerprint:
    return
  theirs = files.read_json(workdir / _DATA)
  for split, ours in parts.task.fingerprint.items():
    if theirs.get(split) != ours:
      named = f"source_dir = {parts.cfg.data.source_dir!r}"
      advice = "restore their files"
      if parts.cfg.data.task == "reasoning_gym":
        named, advice = "gym", _restoring(workdir)
      raise ConfigError(
          f"config.data.{named}: the {split} problems are not those that the"
          f" run in {str(workdir)!r} began with; {advice}, or use another"
          " --workdir"
      )


def _restoring(workdir: pathlib.Path) -> str:
  """Says which versions make the problems of a run, and which are here."""
  try:
    theirs = files.read_json(workdir / _ENVIRONMENT)
  except ConfigError:
    theirs = {}
  ours = _making()
  then, now = (
      " and ".join(f"{name} {x.get(name, '(not recorded)')}" for name in ours)
      for x in (theirs, ours)
  )
  return f"they were made with {then}, now with {now}: restore the former"


def is_finished(workdir: pathlib.Path) -> bool:
  """Returns whether a run has its summary, which is written last."""
  path = workdir / SUMMARY
  if not path.exists():
    return False
  try:
    files.read_json(path)
  except ConfigError as error:
    print(f"warning: {error}; the run counts as unfinished", flush=True)
    return False
  return True


def check_holds(workdir: pathlib.Path, cfg: config_lib.Config) -> None:
  """Checks that a workdir holds the run of a configuration.

  A field that did not exist when the run began has its default. The vocabulary
  size of `cfg` may be None. Raises `ConfigError` for another run.
  """
  theirs = config_lib.flatten(load_config(workdir))
  ours = config_lib.flatten(cfg)
  if not cfg.model.is_complete:
    ours["model.vocab_size"] = theirs["model.vocab_size"]
  for field in ours:
    values = ours[field], theirs[field]
    if field in config_lib.FREE:  # `check_data` compares the data
      continue
    names = ("init_from", "model.pretrained", "data.tokenizer")
    if field in names and all(values):
      # The same folder may be written as several paths.
      values = tuple(pathlib.Path(value).resolve() for value in values)
    if values[0] != values[1]:
      raise ConfigError(
          f"config.{field} = {ours[field]!r}: workdir {str(workdir)!r}"
          f" holds a run with {theirs[field]!r}; use another --workdir"
      )


def read_config(workdir: pathlib.Path) -> dict[str, Any]:
  """Returns the configuration of a run, fields by their dotted names.

  Raises `ConfigError` if there is none or it cannot be read.
  """
  if not is_claimed(workdir):
    raise ConfigError(
        f"workdir {str(workdir)!r}: holds no run;"
        f" {places.explain(workdir, 'run')}"
    )
  return files.read_json(workdir / _CONFIG)


def load_config(workdir: pathlib.Path) -> config_lib.Config:
  """Returns the checked configuration of a run.

  Raises `ConfigError` if there is none or it breaks a rule.
  """
  nested: dict[str, Any] = {}
  for name, value in read_config(workdir).items():
    *groups, field = name.split(".")
    node = nested
    for group in groups:
      node = node.setdefault(group, {})
    node[field] = value
  return config_lib.parse(_renamed(nested))


def _renamed(nested: dict[str, Any]) -> dict[str, Any]:
  """Replaces values that runs of earlier versions have under other names."""
  data = nested.get("data")
  if isinstance(data, dict) and data.get("prompt") == "think_answer":
    data = data | {"prompt": "instructed"}
  return nested | ({"data": data} if data else {})
